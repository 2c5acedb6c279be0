"""A configuration worked out: everything that follows from it alone, each thing once."""

from __future__ import annotations

import hashlib
import math
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hpcsplit.config import Config
from hpcsplit.config.checks import AUTO, parse_ratio
from hpcsplit.config.declared import DeclaredMethod, declared_methods
from hpcsplit.config.optimizers import OPTIMIZERS, Optimizer
from hpcsplit.config.option import names_code
from hpcsplit.data.catalog import Spec, lookup, opener
from hpcsplit.data.dataset import DataOptions, Dataset, InMemory, Opened, Part, cut_to_size, load, open_set
from hpcsplit.data.inputs import Inputs
from hpcsplit.data.mixing import Mixing
from hpcsplit.data.order import batches
from hpcsplit.data.source import Source
from hpcsplit.engine.job import FORWARD_ROWS, Identity
from hpcsplit.errors import ConfigError
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import TrainingMethod
from hpcsplit.nets.catalog import build, is_users
from hpcsplit.nets.catalog import lookup as lookup_network
from hpcsplit.nets.code import FUNCTION, SOURCE, function_of, source_of
from hpcsplit.plan.blocks import BlockCost, block_costs, kept_bytes
from hpcsplit.plan.optimizer import users_optimizer
from hpcsplit.schedule import auto
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.hybrid import phases
from hpcsplit.schedule.learning_rate import LearningRate
from hpcsplit.schedule.timetable import Order
from hpcsplit.stage.cuts import ranges
from hpcsplit.stage.stage import Shape, Stage
from hpcsplit.tasks.catalog import OF_CLASSES, TASKS
from hpcsplit.tasks.losses import named, users
from hpcsplit.tasks.task import Task

MOST_WORKERS = 8  # that data.workers = -1 takes
_NAMES = 32_000  # letters of the classes' names that an attribute of a file has room for


@dataclass(frozen=True)
class Setting:
    """A configuration and what follows from it.  Properties are worked out when they are first asked for and kept.

    Raises ConfigError or DataError where the configuration asks for what cannot be.
    """

    config: Config

    def adapted(self, values: Mapping[str, Any]) -> Setting:
        """The same with other values, {"section.key": value}, that the network needs."""
        return self.replaced(self.config.with_values(values, "the network"))

    def replaced(self, config: Config) -> Setting:
        """Another configuration with the same network and data, which are not looked at again."""
        other, known = Setting(config), vars(self)
        shared = ("net", "blocks", "kept", "spec", "opened", "data", "code")
        vars(other).update({name: known[name] for name in shared if name in known})
        return other

    def with_spec(self, spec: Spec) -> Setting:
        """The same where another rank has looked at the data."""
        vars(self)["spec"] = spec
        return self

    # -------------------------------------------------------------------------------------------- data

    @cached_property
    def opened(self) -> Opened | None:
        """The data set as it was found; None for a published one, which need not be looked at to be known."""
        d, run = self.config.data, self.config.run
        if not opener(d.name):
            return None
        workers = d.workers if d.workers >= 0 else min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1)
        return open_set(
            DataOptions(
                d.name,
                d.root,
                download=d.download,
                size=d.size,
                classes=d.classes,
                context=d.context,
                normalise=d.normalise,
                skip_broken=d.skip_broken,
                workers=workers,
                seed=run.seed,
                validation=d.validation,
            )
        )

    @cached_property
    def spec(self) -> Spec:
        spec = self.opened.spec if self.opened else lookup(self.config.data.name)
        if self.config.data.copies > 1 and not spec.views:
            raise ConfigError(
                f"data.copies = {self.config.data.copies}: copies are other views of a sample, and {spec.name} has "
                "none; set it to 1"
            )
        return spec

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample, (C, H, W) of an image."""
        return self.spec.input_shape(self.config.data.pool)

    @property
    def input_dtype(self) -> torch.dtype:
        """Of what the network takes: int64 of tokens, else float32."""
        return torch.int64 if self.spec.kind == "tokens" else torch.float32

    @cached_property
    def train_size(self) -> int:
        """Training samples, without reading them and without those held out."""
        train, held_out = self.config.data.limit_train or self.spec.train, self.config.data.validation
        if held_out >= train:
            raise ConfigError(f"data.validation = {held_out} leaves none of {train} training samples; hold out fewer")
        return train - held_out

    @property
    def test_size(self) -> int:
        return self.config.data.limit_test or self.spec.test or self.config.data.validation

    @property
    def eval_train_size(self) -> int:
        """Training samples that are evaluated after an epoch."""
        return min(self.train_size, self.config.data.eval_train or self.train_size)

    @property
    def epoch_samples(self) -> int:
        """Training samples of an epoch, their copies included."""
        return self.train_size * self.config.data.copies

    @property
    def batch_size(self) -> int:
        """Samples of a mini-batch; data.batch_size = 0 takes all of an epoch."""
        return self.config.data.batch_size or self.epoch_samples

    @property
    def timed_batch(self) -> int:
        """Samples of the steps that are timed: a mini-batch, or as much of a full batch as is computed at once."""
        return self.config.data.batch_size or min(self.epoch_samples, FORWARD_ROWS)

    @cached_property
    def batch_sizes(self) -> list[int]:
        """Samples of each mini-batch of an epoch."""
        order = np.arange(self.epoch_samples)
        return [len(ids) for ids in batches(order, self.batch_size, self.config.data.last_batch)]

    @cached_property
    def data(self) -> Dataset[Part]:
        d = self.config.data
        assert self.train_size  # refuses a set that leaves nothing to train on
        limits = {"limit_train": d.limit_train, "limit_test": d.limit_test, "validation": d.validation}
        if self.opened:
            return cut_to_size(self.opened, **limits)
        return load(d.name, d.root, download=d.download, pool=d.pool, **limits)

    @property
    def sample_bytes(self) -> int:
        """What a sample takes in memory for the whole run; 0 where it is read when it is needed."""
        each = {"images": 1, "numbers": 4, "tokens": 8}[self.spec.kind]
        return each * math.prod(self.input_shape) if self.spec.in_memory else 0

    def made_up(self, size: int) -> Dataset[Part]:
        """As many samples of zeros in place of the data."""
        spec, inputs = self.spec, torch.zeros(size, *self.input_shape)
        inputs = inputs.to({"images": torch.uint8, "numbers": torch.float32, "tokens": torch.int64}[spec.kind])
        labels = torch.zeros(size, *spec.target_shape, dtype=torch.int64 if spec.classes else torch.float32)
        part, channels = InMemory(inputs, labels), self.input_shape[0]
        return Dataset(part, part, known=(torch.zeros(channels), torch.ones(channels)))

    @property
    def inputs(self) -> Inputs:
        """What one must know who has the network but not the data."""
        mean, std = (tuple(t.tolist()) for t in self.data.moments) if self.data.normalise else ((), ())
        names = self.spec.names if sum(map(len, self.spec.names)) < _NAMES else ()
        spec = self.spec
        return Inputs(spec.shape, mean, std, self.config.data.pool, names, spec.kind, spec.classes, spec.target_shape)

    def source(self, data: Dataset[Part], part: Part, device: torch.device) -> Source:
        """The samples of a part of the data as a stage on `device` takes them."""
        mean, std = data.moments if data.normalise else (None, None)
        return Source(
            part,
            mean,
            std,
            seed=self.config.run.seed,
            flip=self.spec.flip,
            padding=self.spec.padding // 2 if self.config.data.pool else self.spec.padding,
            copies=self.config.data.copies if part is data.train else 1,
            channels_last=self.config.run.channels_last,
            device=device,
        )

    @property
    def mixing(self) -> Mixing | None:
        """How the samples of a mini-batch are mixed, if they are."""
        optim, shape = self.config.optim, self.input_shape
        if optim.cutmix and len(shape) != 3:
            raise ConfigError(
                f"optim.cutmix = {optim.cutmix:g} cuts boxes out of images, and samples have the shape {shape}; take "
                "optim.mixup, or leave it out"
            )
        return Mixing(optim.mixup, optim.cutmix, shape, self.config.run.seed) if optim.mixup or optim.cutmix else None

    # -------------------------------------------------------------------------------------------- network

    def network(self, *, meta: bool = False) -> nn.Sequential:
        """The whole network anew, with the initial weights of this seed, the same on every rank; `meta`: without
        values."""
        m, shape, outputs = self.config.model, self.input_shape, self.outputs
        if not meta:
            torch.manual_seed(self.config.run.seed)
        with torch.device("meta" if meta else "cpu"):
            return build(
                m.name,
                shape,
                outputs,
                dtype=self.input_dtype,
                weights="" if meta else m.weights,
                block=m.block,
                depth=m.depth,
                width=m.width,
            )

    @property
    def outputs(self) -> int:
        """What the network has a number for: each class, or each value of a target."""
        return math.prod(self.target_shape) if self.config.model.task == "regression" else self.spec.classes

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Of what belongs to a sample; () is a class, or one number."""
        return self.spec.target_shape

    @property
    def building(self) -> str:
        """The expression that builds a network of the program's own, by nets/catalog.py."""
        m = self.config.model
        values = f"{m.name!r}, {self.input_shape}, {self.outputs}"
        return f"build({values}, block={m.block!r}, depth={m.depth}, width={m.width})"

    def random_inputs(self, size: int) -> Tensor:
        """So many random samples as the network takes them, the same each time."""
        generator = torch.Generator().manual_seed(0)
        if self.spec.kind == "tokens":
            return torch.randint(self.spec.classes, (size, *self.input_shape), generator=generator)
        return torch.randn(size, *self.input_shape, generator=generator)

    @property
    def users_network(self) -> bool:
        """Whether the network is code of others, which is tried out: the user's own, or a package's."""
        return lookup_network(self.config.model.name).whose != "ours"

    @cached_property
    def task(self) -> Task:
        """What the network learns, with the loss of the configuration."""
        m, classes = self.config.model, self.spec.classes
        options: dict[str, Any] = {}
        if m.task in OF_CLASSES:
            options = {"smoothing": self.config.optim.label_smoothing, "weights": m.class_weights}
            if wrong := _other_targets(m.task, classes, self.target_shape):
                raise ConfigError(f'model.task = "{m.task}": {self.spec.name} has {wrong}')
            if m.class_weights and len(m.class_weights) != classes:
                raise ConfigError(
                    f"model.class_weights has {len(m.class_weights)} numbers, {self.spec.name} has {classes} classes; "
                    "give one for each"
                )
        if m.loss and m.loss != "cross_entropy":
            given = users(m.loss) if names_code(m.loss) else named(m.loss, of_classes=m.task == "classification")
            options["given"] = given
        return cast(Task, pkgutil.resolve_name(TASKS[m.task])(**options))

    @cached_property
    def net(self) -> nn.Sequential:
        """The whole network to look at, not to train; a user's may need values, the program's own has none."""
        return self.network(meta=not self.users_network)

    def following(self, phases: Sequence[Phase]) -> Setting:
        """The same with these kinds of epochs in place of those that follow from it; with none given, itself."""
        if not phases:
            return self
        other = self.replaced(self.config)
        vars(other)["phases"] = tuple(phases)
        return other

    def release_network(self) -> None:
        """Give the memory of `net` back; what is asked of it later makes it anew."""
        vars(self).pop("net", None)

    @cached_property
    def blocks(self) -> list[BlockCost]:
        return block_costs(self.net, self.input_shape, self.input_dtype)

    @cached_property
    def kept(self) -> list[int]:
        """Bytes that autograd keeps of each block for its backward pass, of one sample."""
        return kept_bytes(self.net, self.input_shape, self.input_dtype)

    @property
    def shapes(self) -> list[Shape]:
        """Of a sample at all boundaries of the network, both ends included."""
        return [self.input_shape, *(block.out_shape for block in self.blocks)]

    @cached_property
    def code(self) -> dict[str, str]:
        """What the user's own network computes and a hash of its text; nothing of the program's own networks."""
        if not is_users(self.config.model.name):
            return {}
        factory = self.config.model.name.partition(":")[0]
        function = function_of(self.network, self.input_shape, self.input_dtype)
        return {FUNCTION: function, SOURCE: source_of(factory, self.net)}

    def identity(self, cuts: tuple[int, ...], images: str, code: Mapping[str, str]) -> Identity:
        """What a checkpoint of this run must agree with, `images` being the fingerprint of the data ("" where none were
        read) and `code` that of rank 0."""
        blocks = hashlib.sha256(str(self.net).encode()).hexdigest()[:16]
        prints = {**self.config.fingerprint(), "network": blocks, "images": images}
        accepts = self.config.checkpoint.changed_code == "accept"
        return Identity(prints, cuts, self.config.to_toml(origins=False), code, accepts)

    # -------------------------------------------------------------------------------------------- method, schedule

    @property
    def declared(self) -> DeclaredMethod:
        return declared_methods()[self.config.method.name]

    @cached_property
    def method(self) -> TrainingMethod:
        """The training method of the parallel epochs with its options."""
        return made(self.declared, self.config.method.options)

    @property
    def exact(self) -> Backprop:
        """The method of the exact epochs.  Autocast and torch's compiler leave layers whole."""
        schedule, run = self.config.schedule, self.config.run
        return Backprop(
            schedule.microbatches,
            cast(Order, schedule.pipeline),
            schedule.recompute,
            deferred=schedule.deferred and run.precision == "float32" and not run.torch_compile,
            waiting=schedule.waiting,
        )

    @property
    def decides(self) -> bool:
        """Whether the kind of an epoch is decided while the run trains."""
        return self.config.schedule.ratio == AUTO and self.declared.parallel

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The kind of every epoch; where that is decided while the run trains, as if every parallel epoch paid."""
        s = self.config.schedule
        if self.decides:
            return auto.expected(s.epochs, s.warmup)
        return phases(s.epochs, *(parse_ratio(s.ratio) if self.declared.parallel else (1, 0)), s.order, s.warmup)

    @property
    def learning_rate(self) -> LearningRate:
        """That of every step."""
        o = self.config.optim
        return LearningRate(
            o.lr,
            o.lr_schedule,
            self.phases,
            by_step=o.lr_steps == "step",
            warmup=o.lr_warmup,
            step=o.lr_step,
            milestones=o.lr_milestones,
            gamma=o.lr_gamma,
            power=o.lr_power,
            begins=self.config.schedule.lr_phases,
        )

    @property
    def parallel(self) -> bool:
        """Whether any epoch is parallel."""
        return "parallel" in self.phases

    @property
    def aux_policy(self) -> str:
        """checkpoint.aux; rows that live in memory cannot be kept, so they are recomputed."""
        in_memory = self.config.store.kind == "memory" and self.config.checkpoint.aux == "keep"
        return "recompute" if in_memory else self.config.checkpoint.aux

    # -------------------------------------------------------------------------------------------- machine

    @property
    def precision(self) -> torch.dtype:
        """The type of activations."""
        return torch.bfloat16 if self.config.run.precision == "bfloat16" else torch.float32

    @property
    def store_dtype(self) -> torch.dtype:
        """The type of the variables' rows in the store."""
        return cast(torch.dtype, getattr(torch, self.config.store.dtype))

    def device(self, local_rank: int = 0) -> torch.device:
        """The device of a rank: its own GPU of the node where there is one."""
        asked = self.config.run.device
        if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise ConfigError('run.device = "cuda", but torch sees no GPU here; use "auto" or "cpu"')
        return torch.device("cuda", local_rank % torch.cuda.device_count())

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The configured optimizer over these parameters."""
        o, own_code = self.config.optim, names_code(self.config.optim.name)
        known = Optimizer(o.name) if own_code else OPTIMIZERS[o.name]
        groups: dict[str, dict[str, Any]] = {}
        for p in parameters:
            own: dict[str, Any] = {"fused": p.is_floating_point()} if known.fused else {}
            own |= {} if o.decay_norms or p.dim() > 1 else {"weight_decay": 0.0}
            groups.setdefault(str(own), {"params": [], **own})["params"].append(p)
        if own_code:
            params = list(parameters) if o.decay_norms else list(groups.values())
            return users_optimizer(o.name, params, o.lr, o.weight_decay)
        options: dict[str, Any] = {"lr": o.lr}
        options |= {"weight_decay": o.weight_decay} if known.decay else {}
        options |= {"momentum": o.momentum} if known.momentum else {}
        options |= {"betas": (o.beta1, o.beta2)} if known.betas else {}
        options |= {"nesterov": True} if o.nesterov else {}
        optimizer: torch.optim.Optimizer = pkgutil.resolve_name(known.kind)(list(groups.values()), **options)
        optimizer.register_step_pre_hook(_start_late_momentum)
        return optimizer

    def stage(
        self,
        net: nn.Sequential,
        index: int,
        cuts: tuple[int, ...],
        device: torch.device,
        between_blocks: Callable[[], None] = lambda: None,
    ) -> Stage:
        """Stage `index` with the blocks of `net` that the cuts give it."""
        part = ranges(cuts, len(net))[index]
        return Stage(
            index,
            len(cuts) + 1,
            net[part.start : part.stop],
            self.shapes[part.start : part.stop + 1],
            self.optimizer,
            clip=self.config.optim.clip,
            ema=self.config.optim.ema,
            accumulate=self.config.optim.accumulate,
            device=device,
            dtype=self.precision,
            channels_last=self.config.run.channels_last,
            torch_compile=self.config.run.torch_compile,
            frozen=self.config.method.frozen,
            seed=self.config.run.seed,
            first_block=part.start,
            net_blocks=len(net),
            task=self.task,
            between_blocks=between_blocks,
        )


def _other_targets(task: str, classes: int, target_shape: Shape) -> str:
    """What targets a data set has in place of classes, or of tokens; and the task of such ones, or ""."""
    if not classes:
        return 'numbers for targets, no classes; set model.task = "regression"'
    if task == "language" and not target_shape:
        return 'one label for each sample, no token at each place; set model.task = "classification"'
    if task == "classification" and target_shape:
        return f'targets of shape {target_shape}, not one label; set model.task = "language"'
    return ""


def _start_late_momentum(optimizer: torch.optim.Optimizer, *step: Any) -> None:
    """Zero momentum for a weight that has its first gradient after others: the fused step wants all or none."""
    for group in optimizer.param_groups:
        if not (group.get("fused") and group.get("momentum")):
            continue
        moving = [p for p in group["params"] if p.grad is not None]
        late = [p for p in moving if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        for p in late if len(late) < len(moving) else ():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def made(method: DeclaredMethod, options: Mapping[str, Any]) -> TrainingMethod:
    """The method with these options; imports its file."""
    return cast(TrainingMethod, pkgutil.resolve_name(f"{method.module}:{method.class_name}")(**options))
