"""A stage: a consecutive piece of the network, its optimizer and the shapes at its two boundaries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcsplit.host.chance import seed_all
from hpcsplit.nets.statedict import has_extra_state, tensors_of
from hpcsplit.stage.average import Average
from hpcsplit.stage.besides import Besides
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.deferred import DeferredGradients
from hpcsplit.stage.gathered import gather
from hpcsplit.tasks.task import Classification, Task
from hpcsplit.terms.resample import cells
from hpcsplit.wire.port import PREV, Recv, Side

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a stage stands: `shapes` are one sample's, without the batch dimension, at the input of each of its blocks
    and at the output of its last one; `first_block` is its first block's number in the whole network."""

    first: bool
    last: bool
    shapes: tuple[Shape, ...]
    first_block: int


class Stage:
    """Stage `index` of `count`: x^k = f_k(W_k, input), with everything that is needed to train f_k.

    Attributes:
        place: with the shapes of one sample at all its blocks; `in_shape` and `out_shape` are the two ends.
        block_numbers: the stage's blocks, as they are counted in the whole network, which has `net_blocks`.
        dtype: type of activations and gradients that exact back-propagation passes between stages; bfloat16 computes
            under autocast.
        wide: type of logits, losses and auxiliary variables: float32 unless `dtype` is wider.
        trained: the parameters that the optimizer has, by name in the whole network.
        frozen: leave the weights of parallel epochs as they are (the frozen control).
        average: the moving average of the weights, with decay `ema`, where there is one.
        stand_in: weights, by name, that `infer` uses in place of the stage's own.
        carry: what a method or the probe keeps from step to step and from epoch to epoch; checkpoints save it.
        task: what the last stage's output is compared with.
        between_blocks: called after every block, forward and backward; the wire makes its progress there.
        position: epoch and step, where in the run the next passes stand.
        passes: the number of the latest forward pass since `at`.
        repeats: a pass of before is made once more (`pass_again`).
        rate: the learning rate of an (epoch, step), where it changes within epochs; what is in flight has its own.
        accumulate: mini-batches whose gradients make one update; `ends` says that the epoch has no more of them.
        deferred: weight gradients that wait until there is time for them.
        defers: whether they may wait in parallel epochs, too.
        besides: what the blocks have besides their state dict, and what of it has changed since the stage was made.
    """

    def __init__(
        self,
        index: int,
        count: int,
        blocks: nn.Sequential,
        shapes: Sequence[Shape],
        optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
        *,
        clip: float = 0.0,
        ema: float = 0.0,
        accumulate: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        torch_compile: bool = False,
        frozen: bool = False,
        seed: int = 0,
        first_block: int = 0,
        net_blocks: int = 0,
        task: Task | None = None,
        between_blocks: Callable[[], None] = lambda: None,
    ) -> None:
        self.index, self.count = index, count
        self.device = torch.device(device)
        self.place = Place(index == 0, index == count - 1, tuple(map(tuple, shapes)), first_block)
        self.first, self.last = self.place.first, self.place.last
        self.in_shape, self.out_shape = self.place.shapes[0], self.place.shapes[-1]
        self.block_numbers = range(first_block, first_block + len(blocks))
        self.net_blocks = net_blocks or len(blocks)
        self.channels_last = channels_last and len(self.in_shape) == 3
        self.blocks = blocks.to(self.device)
        if channels_last:
            self.blocks.to(memory_format=torch.channels_last)
        self.besides = Besides(self.blocks)
        self.deferred, self.defers = DeferredGradients(), False
        self.trained = {name: p for name, p in self.blocks.named_parameters() if p.requires_grad}
        self.parameters = list(self.trained.values())
        self._by_block: dict[int, dict[str, nn.Parameter]] = {}
        numbers = {child: number for number, (child, _) in enumerate(self.blocks.named_children(), first_block)}
        for name, p in self.trained.items():
            self._by_block.setdefault(numbers.get(name.partition(".")[0], first_block), {})[name] = p
        names = {id(p): name for name, p in self.trained.items()}
        tables = [module._parameters for module in self.blocks.modules()]
        self._homes = [(table, key, names[id(p)]) for table in tables for key, p in table.items() if id(p) in names]
        self.optimizer = optimizer(self.parameters) if self.parameters else None
        self.clip, self.frozen = clip, frozen
        self.average = Average(self.trained, ema) if ema and self.parameters else None
        self.stand_in: Mapping[str, Tensor] | None = None
        self.accumulate, self.ends = accumulate, False
        self.dtype, self.wide = dtype, torch.promote_types(dtype, torch.float32)
        self.task = task or Classification()
        self.carry = Carry()
        self.between_blocks = between_blocks
        self.position, self.passes, self.repeats = (0, 0), 0, False
        self.rate: Callable[[int, int], float] | None = None
        self._seed = seed
        for number, block in enumerate(self.blocks, first_block):
            if may_draw(block):
                block.register_forward_pre_hook(lambda block, inputs, number=number: self._seed_block(number))
            block.register_forward_hook(self._after_block)
            if torch_compile:  # what is around it stays as it is: hooks, names, random numbers
                block.forward = torch.compile(block.forward)

    def _seed_block(self, number: int) -> None:
        """Random layers draw the same numbers wherever the network is cut, and whenever this pass is run: torch's, and
        those of `random` and `numpy.random`."""
        if self.blocks.training:
            seed_all(hash((self._seed, *self.position, number, self.passes)) & (2**63 - 1))

    def _after_block(self, block: nn.Module, inputs: Any, output: Tensor) -> None:
        self.between_blocks()
        if output.requires_grad:
            output.register_hook(lambda grad: self.between_blocks())

    def at(self, epoch: int, step: int) -> None:
        """Say where in the run the next passes stand: random layers draw from (seed, epoch, step, block, pass)."""
        self.position, self.passes = (epoch, step), 0

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """f_k(x) for x (B, *in_shape); (B, *out_shape) in `dtype`, the last stage's logits in `wide`.  `weights`, by
        name in the whole network, are used in place of the stage's own."""
        self.passes += 1
        x = self.in_own_format(x)
        half = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half), self._using(weights):
            y: Tensor = self.blocks(x)
        return y.to(self.wide if self.last else self.dtype)

    @contextmanager
    def _using(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        """As torch.func.functional_call, whose search for names in every call takes longer than small layers do."""
        for table, key, name in self._homes if weights else ():
            table[key] = weights[name]  # type: ignore[index,assignment]
        try:
            yield
        finally:
            for table, key, name in self._homes if weights else ():
                table[key] = self.trained[name]

    def in_own_format(self, t: Tensor) -> Tensor:
        """An activation or gradient in the memory format that the stage computes in."""
        return t.contiguous(memory_format=torch.channels_last) if self.channels_last and t.dim() == 4 else t

    def infer(self, x: Tensor) -> Tensor:
        """f_k(x) without a gradient, in the mode (training or evaluation) that the blocks are in."""
        with torch.no_grad():
            return self.forward(x, self.stand_in)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """φ of each sample, (B,): by default of logits (B, classes) and labels (B,)."""
        return self.task.loss(outputs, targets)

    def receive(self, side: Side, name: str, size: int, index: int = 0, *, wide: bool = False, factor: int = 1) -> Recv:
        """Wait for the neighbour's tensor of `size` samples at the boundary to it, in `dtype` or `wide`; with factor 2
        it has one value per 2 x 2 pixels."""
        shape = cells(self.in_shape if side == PREV else self.out_shape, factor)
        return Recv(side, name, (size, *shape), self.wide if wide else self.dtype, index)

    def zero_grad(self) -> None:
        self.deferred.drop()
        for p in self.parameters:
            p.grad = None

    def update(self, samples: int = 1) -> None:
        """One optimizer step with the gradients at hand, the mean over so many samples, clipped to the stage's own
        norm, and the average of where it leads; or, with `accumulate`, they are kept for that of a later mini-batch."""
        if self.step(samples):
            self.stepped()

    def stepped(self) -> None:
        """The weights are where a step leads."""
        if self.average:
            self.average.add()

    def step(self, samples: int = 1) -> bool:
        """As `update`, where the weights are not yet where the whole step leads: `stepped` must follow, if this was
        one."""
        self.deferred.finish(self.between_blocks)
        if self.optimizer is None:
            return False
        if self.accumulate > 1 and gather(self.carry, self._by_block, samples, self.accumulate, ends=self.ends):
            return False
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return True

    def descend(self, loss: Tensor) -> None:
        """One optimizer step of a parallel epoch on the mean over a mini-batch of `loss` (B,)."""
        self.zero_grad()
        if loss.requires_grad:  # a first stage may have no weights
            loss.mean().backward()
        if self.last or not self.frozen:
            self.update(len(loss))

    @property
    def lr(self) -> float:
        """The learning rate; 0 where there is nothing to train."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.optimizer else 0.0

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups if self.optimizer else ():
            group["lr"] = lr

    @contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """Forward passes inside leave every buffer (BatchNorm statistics) and extra state as it was.  Yield a verb
        inside only where all that the stage does until it is answered is to be forgotten, too."""
        forget = self.remember()
        try:
            yield
        finally:
            forget()

    def remember(self) -> Callable[[], None]:
        """The answer gives every buffer and extra state back as it is now."""
        saved = [
            (module._buffers, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in self.blocks.modules()
            for name, buffer in module._buffers.items()
        ]
        extra = [(m, copy.deepcopy(m.get_extra_state())) for m in self.blocks.modules() if has_extra_state(m)]

        def forget() -> None:
            for buffers, name, buffer, value in saved:
                buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.data.copy_(value)
            for module, state in extra:
                module.set_extra_state(state)

        return forget

    @contextmanager
    def pass_again(self, number: int, position: tuple[int, int] | None = None) -> Iterator[None]:
        """The forward pass inside repeats pass `number` of this or an earlier position: it draws the same numbers and
        changes no buffer."""
        latest = self.position, self.passes
        self.position, self.passes, self.repeats = position or self.position, number - 1, True
        with self.statistics_kept():
            yield
        (self.position, self.passes), self.repeats = latest, False

    def finite(self) -> bool:
        """Whether every weight and every buffer is a number."""
        return all(map(_is_finite, self.state().values()))

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and extra state by their names in the whole network (nets/statedict.py)."""
        return tensors_of(self.blocks)


def _is_finite(t: Tensor) -> bool:
    if not (t.is_floating_point() or t.is_complex()):
        return True
    try:
        return bool(t.isfinite().all())
    except NotImplementedError:  # float8; it goes into bfloat16 unchanged, where torch knows how
        return "float8" not in str(t.dtype) or bool(t.bfloat16().isfinite().all())


_LAYERS = ("conv", "linear", "batchnorm", "normalization", "instancenorm", "pooling", "padding", "flatten", "container")
_NEVER_DRAW = (*(f"torch.nn.modules.{name}" for name in _LAYERS), "hpcsplit.nets.")


def may_draw(block: nn.Module) -> bool:
    """Whether a block may use random numbers; only those known not to are spared the seeding before every pass."""
    if any(getattr(m, "draws", False) for m in block.modules()):
        return True
    return not all(isinstance(m, nn.ReLU) or m.__module__.startswith(_NEVER_DRAW) for m in block.modules())
