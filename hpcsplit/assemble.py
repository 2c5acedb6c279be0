"""Puts a run together: the only place that knows concrete methods, stores and data sets by name."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from hpcsplit.config import Config
from hpcsplit.config.checks import AUTO, parse_ratio
from hpcsplit.config.declared import declared_methods
from hpcsplit.config.optimizers import OPTIMIZERS
from hpcsplit.data.catalog import lookup
from hpcsplit.data.dataset import Dataset, load
from hpcsplit.data.order import batches
from hpcsplit.data.part import Part
from hpcsplit.data.source import Source
from hpcsplit.engine.job import Choose, Identity, Job, Observer, Silent, seen
from hpcsplit.errors import ConfigError
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import TrainingMethod, own_variables
from hpcsplit.nets.build import build
from hpcsplit.nets.code import FUNCTION, SOURCE, function_of, source_of
from hpcsplit.nets.shapes import block_shapes
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule import auto
from hpcsplit.schedule.hybrid import Phase, SavePolicy, learning_rate, phases
from hpcsplit.stage.cuts import ranges
from hpcsplit.stage.stage import Shape, Stage
from hpcsplit.stage.timetable import Order
from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.store import Field, MemoryStore, Store, generation_bytes
from hpcsplit.tasks import TASKS, Samples


@dataclass(frozen=True)
class Prepared:
    """What rank 0 found out before the run and told the others; JSON by `as_dict`.

    Attributes:
        code: fingerprints of the user's own network.
        rehearse: rank 0 has written a forecast, which wants the times of stages that compute at once.
        plans: of the stages, as plain values.
        adapted: values that the network needs in place of the configuration's, {"section.key": value}.
        notes: what there is to say of the network.
    """

    cuts: tuple[int, ...]
    costs: tuple[float, ...]
    data_fingerprint: str
    baseline_samples_per_s: float | None
    rehearse: bool = False
    code: Mapping[str, str] = field(default_factory=dict)
    plans: tuple[dict[str, Any], ...] = ()
    adapted: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Prepared:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


# ------------------------------------------------------------------------------------------------ pieces by name


def build_network(config: Config, *, meta: bool = False) -> nn.Sequential:
    """The whole network with the initial weights of this seed, the same on every rank.

    Args:
        meta: without values, for its names and shapes; a factory that looks at values gets them all the same.
    """
    spec, m = lookup(config.data.name), config.model
    shape = spec.input_shape(config.data.pool)

    def make() -> nn.Sequential:
        return build(m.name, shape, spec.classes, block=m.block, depth=m.depth, width=m.width)

    if meta:
        with suppress(ConfigError) if ":" in m.name else nullcontext(), torch.device("meta"):
            return make()
    torch.manual_seed(config.run.seed)
    return make()


def code_prints(config: Config) -> dict[str, str]:
    """What the user's own network computes and a hash of its text; nothing of the program's own networks."""
    if ":" not in config.model.name:
        return {}
    shape = lookup(config.data.name).input_shape(config.data.pool)
    factory = config.model.name.partition(":")[0]
    return {
        FUNCTION: function_of(lambda: build_network(config), shape),
        SOURCE: source_of(factory, build_network(config, meta=True)),
    }


def build_method(config: Config) -> TrainingMethod:
    """The configured training method with its options."""
    declared = declared_methods()[config.method.name]
    cls = getattr(importlib.import_module(declared.module), declared.class_name)
    return cls(**config.method.options)


def make_optimizer(config: Config, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimizer over these parameters."""
    o, known = config.optim, OPTIMIZERS[config.optim.name]
    options: dict[str, Any] = {"lr": o.lr, "weight_decay": o.weight_decay}
    if known.momentum:
        options["momentum"] = o.momentum
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if known.fused:
        kinds = {fused: [p for p in parameters if p.is_floating_point() == fused] for fused in (True, False)}
        groups = [{"params": those, "fused": fused} for fused, those in kinds.items() if those]
    optimizer: torch.optim.Optimizer = pkgutil.resolve_name(known.kind)(groups, **options)
    optimizer.register_step_pre_hook(_start_late_momentum)
    return optimizer


def _start_late_momentum(optimizer: torch.optim.Optimizer, *step: Any) -> None:
    """Zero momentum for a weight that has its first gradient after others: the fused step wants all or none."""
    for group in optimizer.param_groups:
        if not (group.get("fused") and group.get("momentum")):
            continue
        moving = [p for p in group["params"] if p.grad is not None]
        late = [p for p in moving if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        for p in late if len(late) < len(moving) else ():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def decides(config: Config) -> bool:
    """Whether the kind of an epoch is decided while the run trains."""
    return config.schedule.ratio == AUTO and declared_methods()[config.method.name].parallel


def make_phases(config: Config) -> tuple[Phase, ...]:
    """The kind of every epoch; where that is decided while the run trains, as if every parallel epoch paid."""
    s = config.schedule
    if decides(config):
        return auto.expected(s.epochs, s.warmup)
    if not declared_methods()[config.method.name].parallel:
        return phases(s.epochs, 1, 0, s.order, s.warmup)
    return phases(s.epochs, *parse_ratio(s.ratio), s.order, s.warmup)


def make_choice(config: Config, observer: Observer) -> Choose | None:
    """What decides the kind of an epoch from the records of those before, and says why; None where nothing has to."""
    s, in_turn = config.schedule, config.run.runner == "lockstep"
    if not decides(config):
        return None

    def choose(decided: Sequence[Phase]) -> Phase:
        whole = [record.epoch for record in observer.past] == list(range(len(observer.past)))  # nobody removed some
        past = [seen(record, in_turn=in_turn) for record in observer.past] if whole else []
        phase, why = auto.choose(decided, past, s.epochs, s.warmup)
        if why:
            observer.say(f"epoch {len(decided) + 1} will be {phase}: {why}")
        return phase

    return choose


def load_data(config: Config) -> Dataset:
    d = config.data
    sizes(config)  # refuses a set that leaves nothing to train on
    return load(
        d.name,
        d.root,
        download=d.download,
        limit_train=d.limit_train,
        limit_test=d.limit_test,
        pool=d.pool,
        validation=d.validation,
    )


def aux_policy(config: Config) -> str:
    """checkpoint.aux; rows that live in memory cannot be kept, so they are recomputed."""
    in_memory = config.store.kind == "memory" and config.checkpoint.aux == "keep"
    return "recompute" if in_memory else config.checkpoint.aux


def sizes(config: Config) -> tuple[int, int]:
    """Training and test samples, without reading them; those held out are in neither.

    Raises ConfigError where none are left to train on.
    """
    spec, d = lookup(config.data.name), config.data
    train = d.limit_train or spec.train
    if d.validation >= train:
        raise ConfigError(f"data.validation = {d.validation} leaves none of {train} training samples; hold out fewer")
    return train - d.validation, d.limit_test or spec.test


def epoch_samples(config: Config) -> int:
    """Training samples of an epoch, their copies included."""
    return sizes(config)[0] * config.data.copies


def batch_size(config: Config, most: int = 0) -> int:
    """Samples of a mini-batch; data.batch_size = 0 takes all training samples, or `most` where that is fewer."""
    samples = epoch_samples(config)
    return config.data.batch_size or min(samples, most or samples)


def batch_sizes(config: Config) -> list[int]:
    """Samples of each mini-batch of an epoch."""
    order = np.arange(epoch_samples(config))
    return [len(ids) for ids in batches(order, batch_size(config), config.data.last_batch)]


def device_of(config: Config, local_rank: int) -> torch.device:
    """The device of a rank: its own GPU of the node where there is one."""
    wish = config.run.device
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError('run.device = "cuda", but torch sees no GPU here; use "auto" or "cpu"')
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def precision_of(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.run.precision == "bfloat16" else torch.float32


# ------------------------------------------------------------------------------------------------ a rank's job


def make_stage(
    config: Config,
    net: nn.Sequential,
    index: int,
    count: int,
    cuts: tuple[int, ...],
    device: torch.device,
    shapes: Sequence[Shape] = (),
) -> Stage:
    """Stage `index` with the blocks that the cuts give it.

    Args:
        shapes: at all boundaries of the network, both ends included; () finds them.
    """
    part = ranges(cuts, len(net))[index]
    input_shape = lookup(config.data.name).input_shape(config.data.pool)
    shapes = shapes or [input_shape, *block_shapes(net, input_shape)]
    return Stage(
        index,
        count,
        net[part.start : part.stop],
        shapes[part.start : part.stop + 1],
        lambda parameters: make_optimizer(config, parameters),
        clip=config.optim.clip,
        device=device,
        dtype=precision_of(config),
        channels_last=config.run.channels_last,
        torch_compile=config.run.torch_compile,
        frozen=config.method.frozen,
        seed=config.run.seed,
        first_block=part.start,
        net_blocks=len(net),
        task=TASKS[config.model.task](),
    )


def make_source(config: Config, part: Part, data: Dataset, device: torch.device) -> Source:
    return Source(
        part,
        data.mean,
        data.std,
        seed=config.run.seed,
        flip=data.flip,
        padding=2 if config.data.pool else 4,
        copies=config.data.copies if part is data.train else 1,
        channels_last=config.run.channels_last,
        device=device,
    )


def make_identity(
    config: Config, net: nn.Sequential, cuts: tuple[int, ...], data_fingerprint: str, code: Mapping[str, str]
) -> Identity:
    """What a checkpoint of this run must agree with; `code` is that of `code_prints`."""
    blocks = hashlib.sha256(str(net).encode()).hexdigest()[:16]
    prints = {**config.fingerprint(), "network": blocks, "images": data_fingerprint}
    accepts = config.checkpoint.changed_code == "accept"
    return Identity(prints, cuts, config.to_toml(origins=False), code, accepts)


def make_store(
    config: Config, stage: Stage, method: TrainingMethod, run_dir: RunDir, samples: int, digest: str
) -> Store | None:
    """The store of this stage's variables; None when it has none."""
    own = own_variables(method, stage.place)
    if not own or "parallel" not in make_phases(config):
        return None
    fields = [Field(v.name, v.row_shape(stage.place), v.before_block(stage.place)) for v in own]
    dtype = getattr(torch, config.store.dtype)
    labels = {"config": digest}
    if config.store.kind == "memory":
        return MemoryStore(fields, samples, dtype, stage=stage.index, labels=labels)
    folder = run_dir.store(config.store.path, 2 * generation_bytes(fields, samples, dtype))
    pinned = stage.device.type == "cuda"
    return HdfStore(fields, samples, dtype, folder, stage=stage.index, labels=labels, pinned=pinned)


def make_job(
    config: Config,
    prepared: Prepared,
    run_dir: RunDir,
    index: int,
    count: int,
    device: torch.device,
    observer: Observer | None = None,
) -> Job:
    """Everything that rank `index` of `count` needs."""
    net = build_network(config)
    identity = make_identity(config, net, prepared.cuts, prepared.data_fingerprint, prepared.code)
    method = build_method(config)
    stage = make_stage(config, net, index, count, prepared.cuts, device)
    method.prepare(stage)
    data = load_data(config) if stage.first or stage.last or method.images else None
    train_size = epoch_samples(config)
    observer = observer or Silent()
    choose = make_choice(config, observer)
    schedule, optim, save = config.schedule, config.optim, config.checkpoint
    train: Samples = make_source(config, data.train, data, device) if data else Nowhere()
    test: Samples = make_source(config, data.test, data, device) if data else Nowhere()
    held_out: Samples | None = None
    if config.data.validation:
        held_out = make_source(config, data.validation, data, device) if data and data.validation else Nowhere()
    return Job(
        stage=stage,
        method=method,
        exact=Backprop(schedule.microbatches, cast(Order, schedule.pipeline), schedule.recompute),
        store=make_store(config, stage, method, run_dir, train_size, identity.digest()),
        aux_dtype=getattr(torch, config.store.dtype),
        train=train,
        test=test,
        train_size=train_size,
        test_size=sizes(config)[1],
        validation=held_out,
        validation_size=config.data.validation,
        eval_train_size=min(sizes(config)[0], config.data.eval_train or train_size),
        evaluate_every=config.run.evaluate_every,
        batch_size=batch_size(config),
        last_batch=config.data.last_batch,
        seed=config.run.seed,
        augment=config.data.augment,
        epochs=schedule.epochs,
        plan=() if choose else make_phases(config),
        choose=choose,
        learning_rate=lambda epoch: learning_rate(
            epoch,
            schedule.epochs,
            optim.lr,
            optim.lr_schedule,
            step=optim.lr_step,
            milestones=optim.lr_milestones,
            gamma=optim.lr_gamma,
        ),
        save_policy=SavePolicy(save.every_epochs, save.every_minutes, aux_policy(config)),
        checkpoints=run_dir.checkpoints,
        keep_checkpoints=save.keep,
        identity=identity,
        batch_norm=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()),
        observer=observer,
        provenance=run_dir.provenance_text() if index == 0 else "",
        still_ours=run_dir.check_held,
    )


class Nowhere:
    """The data of a stage that sees neither images nor labels."""

    def images(self, ids: Any, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        raise AssertionError("only the first stage reads images")

    def labels(self, ids: Any) -> torch.Tensor:
        raise AssertionError("only the last stage reads labels")
