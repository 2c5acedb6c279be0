"""Whether a network can be trained as a configuration says; `plan` and `train` refuse what cannot, with one sentence.

A few made-up images go forward and backward through a copy of the network, on the run's device, in its memory format
and precision: once with every block as a stage of its own, once as a whole, in training and in evaluation mode.  Then
mini-batches of the very sizes that the run will have go forward without values, which costs next to nothing.

The program's own networks are known to be good.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcsplit.config import Config
from hpcsplit.config.option import names_code, show
from hpcsplit.data.order import batches
from hpcsplit.engine.job import FORWARD_ROWS
from hpcsplit.errors import ConfigError
from hpcsplit.host.blame import block_label, line_raised, other_types, said
from hpcsplit.host.chance import nothing_drawn
from hpcsplit.nets.custom import whose
from hpcsplit.nets.shapes import FEW, Shadow, meta_sample, twin
from hpcsplit.nets.weights import random_head
from hpcsplit.plan.optimizer import check_optimizer
from hpcsplit.plan.setting import Setting
from hpcsplit.schedule.timetable import slices
from hpcsplit.stage.stage import Stage
from hpcsplit.tasks.task import Task

Targets = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Checked:
    """The setting as the network can be run, what that changes, and what there is to say of it."""

    setting: Setting
    adapted: Mapping[str, Any]
    notes: tuple[str, ...]


def check_network(setting: Setting, device: torch.device) -> Checked:
    """Compute a little with a copy of the network, as the run will.

    Without channels_last where the network takes the plain memory format only, and with the last mini-batch joined to
    the one before where it cannot take that alone.
    Raises ConfigError where it cannot be trained, naming the block and the line of the user's source.
    """
    if setting.declared.images and setting.spec.kind == "tokens":
        raise ConfigError(
            f'method.name = "{setting.declared.name}" makes its variables from images or numbers, and '
            f"{setting.spec.name} has tokens; take another method"
        )
    if setting.config.run.torch_compile:
        try:  # something new, of a size that no cache has
            torch.compile(lambda x: x.sin() + 1)(torch.zeros(os.getpid(), device=device))
        except Exception as error:
            raise ConfigError(
                f"run.torch_compile = true, but torch cannot compile here ({said(error)}); install a C++ compiler "
                "(g++, or name it in CXX; for GPUs triton), or set run.torch_compile = false"
            ) from error
    weights = setting.config.model.weights
    looked_at = setting.net if setting.users_network or not weights else setting.network()  # refuses what does not fit
    begins = tuple(filter(None, [random_head(weights, looked_at)] if weights else []))
    first = None
    with nothing_drawn(device):
        task, fit = setting.task, False
        with suppress(ConfigError) if setting.users_network else nullcontext():  # of which more is said below
            _check_outputs(setting, task)
            fit = True
        if fit:
            _check_loss(setting, task, device)
        if not setting.users_network:
            _check_optimizer(setting, device)
            return Checked(setting, {}, begins)
        for adapted in _adaptations(setting.config):
            here = setting.adapted(adapted)
            try:
                _check_values(here, device)
                _check_sizes(here, training_sizes(here), training=True)
                _check_sizes(here, evaluation_sizes(here), training=False)
            except ConfigError as error:
                first, last = first or error, error
                continue
            _check_optimizer(here, device)
            values = " and ".join(f"{name} = {show(value)}" for name, value in adapted.items())
            notes = (f"note: {first}; so this run takes {values}",) if first else ()
            return Checked(here, adapted, notes + begins)
    raise ConfigError(f"{whose(setting.config.model.name)}{last}") from last


def _adaptations(config: Config) -> list[dict[str, Any]]:
    """What may be changed for a network, from nothing to all of it."""
    plain = {"run.channels_last": False} if config.run.channels_last else {}
    joined = {"data.last_batch": "join"} if config.data.last_batch == "keep" else {}
    every: list[dict[str, Any]] = [{}, plain, joined, plain | joined]
    return [changes for number, changes in enumerate(every) if changes not in every[:number]]


# ------------------------------------------------------------------------------------------------ sizes


def training_sizes(setting: Setting) -> dict[int, str]:
    """The mini-batches that a run has in training mode, and where they come from."""
    config, samples, most = setting.config, setting.epoch_samples, setting.batch_size
    cures = "another data.batch_size"
    if config.data.last_batch == "keep":
        cures = f'data.last_batch = "join" or {cures}'
    whole = set(setting.batch_sizes)
    result = {most: f"data.batch_size is {most}"}
    for size in whole - {most}:
        result[size] = f"the last of the mini-batches of {most} that {samples} samples make has {size}: set {cures}"
    pieces = {"schedule": config.schedule.microbatches, "method": setting.method.microbatches}
    for section, number in pieces.items():
        for size in sorted(whole, reverse=True):
            for piece in {part.stop - part.start for part in slices(size, number)}:
                result.setdefault(
                    piece,
                    f"of {number} micro-batches of a mini-batch of {size} one has {piece}: lower "
                    f"{section}.microbatches, or set {cures}",
                )
    for ids in batches(np.arange(samples), min(most, FORWARD_ROWS), config.data.last_batch):
        result.setdefault(
            len(ids),
            f"of {samples} samples, {min(most, FORWARD_ROWS)} at a time, that BatchNorm statistics are taken of, "
            f"{len(ids)} are left: set {cures}",
        )
    return result


def evaluation_sizes(setting: Setting) -> dict[int, str]:
    """The mini-batches that only go forward."""
    kinds = {"training": setting.epoch_samples, "test": setting.test_size}
    kinds |= {"evaluated training": setting.eval_train_size, "held-out": setting.config.data.validation}
    most = min(setting.batch_size, FORWARD_ROWS)
    last = "keep" if setting.config.data.last_batch == "keep" else "join"
    cure = ': set data.last_batch = "join"' if last == "keep" else ""
    return {
        len(ids): f"of {number} {kind} samples, {most} at a time, there are {len(ids)} at the end{cure}"
        for kind, number in kinds.items()
        for ids in batches(np.arange(number), most, last)
    }


# ------------------------------------------------------------------------------------------------ with values


def _check_values(setting: Setting, device: torch.device) -> None:
    """A few samples through every block as a stage of its own, then through all of them as one stage."""
    # A user's optimizer may want the whole network.
    plain = {"optim.name": "sgd"} if names_code(setting.config.optim.name) else {}
    setting = setting.adapted({"run.torch_compile": False, "optim.accumulate": 1, **plain})
    net, copied = setting.net, twin(setting.net, device)
    watch, targets = _Watch(setting, copied), partial(made_up_targets, setting)
    every = tuple(range(1, len(net)))
    stages = [_stage(setting, copied, k, every, device) for k in range(len(net))]
    before = _shared_buffers(copied)
    for training, there in ((True, training_sizes(setting)), (False, evaluation_sizes(setting))):
        copied.train(training)
        _with_few(there, setting, device, partial(_in_stages, net, stages, targets, training=training))
    _check_shared(net, copied, before)
    whole = _stage(setting, copied, 0, (), device)
    copied.train()
    _with_few(training_sizes(setting), setting, device, partial(_as_one, net, whole, watch, targets))


def _with_few(sizes: Mapping[int, str], setting: Setting, device: torch.device, act: Callable[[Tensor], None]) -> None:
    """Act on at most `FEW` samples, and on a single one last, where the run has that; say where those come from that
    are not taken where others are.  Pixels are uniform, normalised; tokens are the first one."""
    shape, dtype = setting.input_shape, setting.input_dtype
    for size, what in sorted({min(size, FEW): what for size, what in sizes.items()}.items(), reverse=True):
        pixels = torch.rand(size, *shape, generator=torch.Generator().manual_seed(size))
        try:
            act(((pixels - 0.5) / 0.25 if dtype.is_floating_point else torch.zeros_like(pixels)).to(device, dtype))
        except ConfigError as error:
            raise (error if size == FEW else ConfigError(f"{error}; {what}")) from error


def _stage(setting: Setting, copied: nn.Sequential, index: int, cuts: tuple[int, ...], device: torch.device) -> Stage:
    try:
        stage = setting.stage(copied, index, cuts, device)
    except Exception as error:
        label = block_label(setting.net, index, error) if cuts else "the network"
        raise ConfigError(f"{label} cannot be trained with this configuration ({said(error)})") from error
    stage.set_lr(0.0)
    return stage


def _in_stages(
    net: nn.Sequential, stages: Sequence[Stage], targets: Targets, images: Tensor, *, training: bool
) -> None:
    """Forward and backward through each stage on its own."""
    x = images
    for index, stage in enumerate(stages):
        x = stage.in_own_format(x.detach()).requires_grad_(training and index > 0)
        before, version = x.detach().clone(), x._version
        try:
            with torch.set_grad_enabled(training):
                y = stage.forward(x)
        except Exception as error:
            if (line := _line_of_change(stage, before)) is not None:
                raise _changes(net, index, line) from error
            raise _refuses(net, index, before, error, training=training) from error
        if x._version != version or not torch.equal(before, x):
            raise _changes(net, index, _line_of_change(stage, before) or "")
        if training:
            _backward(net, index, stage, x, y, targets(images))
        x = y


def _backward(net: nn.Sequential, index: int, stage: Stage, x: Tensor, y: Tensor, targets: Tensor) -> None:
    if y.requires_grad:
        try:
            (stage.loss(y, targets) if stage.last else y.square()).mean().backward()
            stage.update()
        except ConfigError:  # of the loss
            raise
        except Exception as error:
            raise ConfigError(
                f"{block_label(net, index, error)} cannot be trained: its backward pass fails ({said(error)})"
            ) from error
    if index and x.grad is None:
        raise ConfigError(
            f"{block_label(net, index)} gives its input no gradient, and what stands before it cannot be trained; "
            "leave detach() and no_grad() out, or join it with all that stands before it"
        )


def made_up_targets(setting: Setting, images: Tensor) -> Tensor:
    """What would belong to these images in a data set whose every label is 0."""
    dtype = torch.int64 if setting.spec.classes else torch.float32
    labels = torch.zeros(len(images), *setting.target_shape, dtype=dtype, device=images.device)
    made_up: Any = SimpleNamespace(images=lambda ids, **view: images, labels=lambda ids, **view: labels)
    return setting.task.targets(made_up, np.arange(len(images)))


def _check_outputs(setting: Setting, task: Task) -> None:
    """Whether the network's outputs are what the task compares."""
    spec, shape = setting.spec, setting.shapes[-1]
    if wrong := task.wrong_shape(shape, setting.input_shape, spec.classes, setting.target_shape):
        raise ConfigError(
            f'model.name = "{setting.config.model.name}" returns outputs of shape {shape} a sample; {spec.name} needs '
            f"{wrong}"
        )


def _check_loss(setting: Setting, task: Task, device: torch.device) -> None:
    """Whether the loss of a few made-up outputs can be descended."""
    shape, name = setting.shapes[-1], setting.config.model.loss
    targets = [made_up_targets(setting, torch.zeros(size, *setting.input_shape, device=device)) for size in (2, 1)]
    if setting.mixing:
        targets.append(setting.mixing.targets(targets[0], np.arange(2), 0, shape[0]))
    for each in targets:
        outputs = torch.randn(len(each), *shape, device=device, requires_grad=True)
        loss = task.loss(outputs, each)
        if not loss.requires_grad:
            raise ConfigError(
                f'model.loss = "{name}" gives its outputs no gradient; leave detach(), no_grad() and numpy out of it'
            )
        try:
            loss.sum().backward()
        except Exception as error:
            line = line_raised(error)
            raise ConfigError(
                f'model.loss = "{name}" cannot be descended: its backward pass fails ({said(error)}'
                f"{f', {line}' if line else ''})"
            ) from error


def _check_optimizer(setting: Setting, device: torch.device) -> None:
    """Whether a user's optimizer trains this network, and can be saved."""
    here = setting.adapted({"run.torch_compile": False, "optim.accumulate": 1})
    if names_code(setting.config.optim.name):
        check_optimizer(setting.config.optim.name, lambda: here.stage(here.network(), 0, (), device))


def _line_of_change(stage: Stage, x: Tensor) -> str | None:
    """Where the stage changes its input, as far as that is known; None where it does not."""
    spare = x.clone()
    version = spare._version
    with torch.no_grad(), suppress(Exception):  # it may come behind the change
        stage.forward(spare)
    if spare._version == version and torch.equal(spare, x):
        return None
    try:
        with torch.enable_grad():
            stage.forward(x.clone().requires_grad_())  # torch allows no change of it
    except Exception as error:
        return line_raised(error)
    return ""


def _changes(net: nn.Sequential, index: int, line: str) -> ConfigError:
    join = ", or join it with the block before it" if index else ""
    at = f" ({line})" if line else ""
    return ConfigError(
        f"{block_label(net, index)} changes its input in place{at}, which may be a stored variable, or be needed for a "
        f"gradient; use inplace=False, or an operation that makes a new tensor{join}"
    )


def _refuses(net: nn.Sequential, index: int, x: Tensor, error: Exception, *, training: bool) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    return ConfigError(
        f"{block_label(net, index, error)} does not take {_samples(len(x))} of shape {tuple(x.shape[1:])} in "
        f"{_mode(training)} ({said(error)}){other_types(net[index])}"
    )


def _as_one(net: nn.Sequential, stage: Stage, watch: _Watch, targets: Targets, images: Tensor) -> None:
    """Forward and backward through the whole network, blocks handing each other what they make as it is."""
    stage.zero_grad()
    try:
        y = stage.forward(images)
    except Exception as error:
        raise _refuses(net, watch.index, watch.x, error, training=True) from error
    try:
        stage.loss(y, targets(images)).mean().backward()
    except Exception as error:
        line = line_raised(error)
        raise ConfigError(
            f"the network cannot be trained: its backward pass fails ({said(error)}{f', {line}' if line else ''})"
        ) from error


class _Watch:
    """Looks at what every block returns; `index` is the block that computes, `x` its input."""

    def __init__(self, setting: Setting, copied: nn.Sequential) -> None:
        self._net, self._copied, self._shapes, self._setting = setting.net, copied, setting.shapes, setting
        self.index, self.x = 0, torch.empty(0)
        for index, block in enumerate(copied):
            block.register_forward_pre_hook(partial(self._enter, index))
            block.register_forward_hook(partial(self._leave, index))

    def _enter(self, index: int, block: nn.Module, inputs: tuple[Tensor]) -> None:
        self.index, self.x = index, inputs[0]

    def _leave(self, index: int, block: nn.Module, inputs: tuple[Tensor], y: object) -> None:
        x = inputs[0]
        if wrong := self._wrong(index, x, y):
            label, mode = block_label(self._net, index), _mode(self._copied.training)
            raise ConfigError(f"{label} returns {wrong.format(mode=f'for {_samples(len(x))} in {mode}')}")

    def _wrong(self, index: int, x: Tensor, y: object) -> str:
        """What is wrong with an output, or ""."""
        last = index + 1 == len(self._net)
        if not isinstance(y, Tensor):
            return f"{type(y).__name__} {{mode}}; a block returns one tensor, so that the network can be cut behind it"
        shape, kind = (len(x), *self._shapes[index + 1]), str(y.dtype).removeprefix("torch.")
        if tuple(y.shape) != shape:
            return f"a tensor of shape {tuple(y.shape)} {{mode}}, and elsewhere {shape}; it must be the same everywhere"
        if not y.is_floating_point() or not (last or y.dtype in (torch.float32, self._setting.precision)):
            wanted = self._setting.config.run.precision
            return f"{kind} {{mode}}; activations are {wanted}: convert it there, as by x.float()"
        if not bool(y.isfinite().all()):
            return (
                "numbers that are not finite {mode}, before anything is trained; correct its initial weights or forward"
            )
        if last:
            spec, task = self._setting.spec, self._setting.task
            wanted = task.wrong_shape(shape[1:], self._shapes[0], spec.classes, self._setting.target_shape)
            return f"outputs of shape {shape[1:]} a sample; {spec.name} needs {wanted}" if wanted else ""
        return ""


def _shared_buffers(copied: nn.Sequential) -> dict[tuple[int, str], tuple[int, Tensor]]:
    """The buffers, by a block's number and their name, that an earlier block has, too; with its number and a copy."""
    owner: dict[int, int] = {}
    return {
        (index, name): (owner[id(buffer)], buffer.clone())
        for index, block in enumerate(copied)
        for name, buffer in block.named_buffers()
        if owner.setdefault(id(buffer), index) != index
    }


def _check_shared(net: nn.Sequential, copied: nn.Sequential, before: dict[tuple[int, str], tuple[int, Tensor]]) -> None:
    for (index, name), (first, value) in before.items():
        if not torch.equal(copied[index].get_buffer(name), value):
            raise ConfigError(
                f"{block_label(net, first)} and {block_label(net, index)} share the buffer {name} and change it, but "
                "may be trained by different ranks; join them in one block or give each its own"
            )


# ------------------------------------------------------------------------------------------------ without values


def _check_sizes(setting: Setting, sizes: Mapping[int, str], *, training: bool) -> None:
    """Mini-batches of all these sizes forward."""
    net, shapes, shadow = setting.net, setting.shapes, Shadow(setting.net, training=training)
    for size, what in sizes.items():
        x = meta_sample(net, shapes[0], size, setting.input_dtype)
        for index in range(len(net)):
            try:
                with torch.no_grad():
                    y, *_ = shadow.passed(index, x, nullcontext)
            except Exception as error:
                raise ConfigError(f"{_refuses(net, index, x, error, training=training)}; {what}") from error
            wanted = (size, *shapes[index + 1])
            if not isinstance(y, Tensor) or tuple(y.shape) != wanted:
                got = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
                raise ConfigError(
                    f"{block_label(net, index)} returns {got} for {_samples(size)} in {_mode(training)}, not one of "
                    f"shape {wanted}; {what}"
                )
            x = y


def _samples(number: int) -> str:
    return f"{number} sample{'s' * (number != 1)}"


def _mode(training: bool) -> str:
    return "training mode" if training else "evaluation mode"
