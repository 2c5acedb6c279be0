"""Weight gradients that wait until there is time for them.

The backward pass of a layer has two halves: the gradient of its input, which the stage before waits for, and that of
its weights, which nobody needs before the optimizer's step.  Within `DeferredGradients.active` convolutions and linear
layers do the first half at once and put the second into a queue, which the stage works off where it would wait for a
message, and before its update (Qi et al., "Zero Bubble Pipeline Parallelism", 2023; a queue in place of their table).
Every weight takes its gradients in the order of the plain backward pass, so they add up to the same bits.
A parameter that is used several times gets the sum of each pass at once, as autograd gives it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp import is_autocast_available
from torch.overrides import TorchFunctionMode


class DeferredGradients:
    """The queue of a stage; `count` is how many have been put into it, done or not, `on` whether it is active."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self.count = 0
        self.on = False
        self.looked = False  # what else parameters are used for: in the first pass, which leaves layers whole
        self.elsewhere: set[int] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """One forward pass inside makes a graph whose backward pass leaves weight gradients to the queue.

        A layer stays whole in the first pass of all; where a parameter of it is none that is trained, has hooks, or is
        used by another operation, too; where its padding has a name; for a single sample without a batch dimension;
        under autocast; and where somebody keeps saved tensors in a way of his own (torch.utils.checkpoint).
        """
        self.on = True
        try:
            with _Halving(self):
                yield
        finally:
            self.on, self.looked = False, True

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self.count += 1

    def one(self) -> bool:
        """Work off the oldest gradient; False where there is none."""
        if not self._jobs:
            return False
        with torch.no_grad():
            self._jobs.popleft()()
        return True

    def finish(self, between: Callable[[], None] = lambda: None, left: int = 0) -> None:
        """Work off all but the newest `left`; `between` is called after each."""
        while len(self._jobs) > left:
            self.one()
            between()

    def drop(self) -> None:
        self._jobs.clear()


class _Halving(TorchFunctionMode):
    """Replaces convolutions and linear layers of a pass by those whose backward pass is in halves."""

    def __init__(self, queue: DeferredGradients) -> None:
        super().__init__()
        self._queue, self._sums = queue, _PassGradients()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _HALVED and torch.is_grad_enabled():
            layer, x, weight, bias = _HALVED[func](*args, **named)
            if layer and _plain(weight) and _plain(bias) and _usual(x.device.type):
                self._note([x])
                if self._queue.looked and not {id(weight), id(bias)} & self._queue.elsewhere:
                    return _Layer.apply(x, weight, bias, layer, self._queue, self._sums)
                return func(*args, **named)
        if func.__name__ != "__get__":  # an attribute
            self._note([*args, *named.values()])
        return func(*args, **named)

    def _note(self, values: Iterable[Any]) -> None:
        self._queue.elsewhere.update(id(value) for value in values if isinstance(value, torch.nn.Parameter))


def _usual(device: str) -> bool:
    """Whether a graph is made as always."""
    if is_autocast_available(device) and torch.is_autocast_enabled(device):
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def _plain(p: torch.Tensor | None) -> bool:
    """Whether it takes its gradient as it comes."""
    if p is None:
        return True
    hooked = p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
    return isinstance(p, torch.nn.Parameter) and p.requires_grad and not hooked


class _PassGradients:
    """The gradients of one pass by parameter; each is added to those of other passes when it is whole."""

    def __init__(self) -> None:
        self._left: Counter[int] = Counter()
        self._sums: dict[int, torch.Tensor] = {}

    def await_one(self, p: torch.Tensor) -> None:
        self._left[id(p)] += 1

    def add(self, p: torch.Tensor, g: torch.Tensor) -> None:
        key = id(p)
        g = self._sums.pop(key) + g if key in self._sums else g
        self._left[key] -= 1
        if self._left[key]:
            self._sums[key] = g
        else:
            p.grad = g if p.grad is None else p.grad.add_(g)


class _Convolution:
    """torch.conv1d, conv2d or conv3d with these settings."""

    def __init__(self, *how: Any) -> None:
        self._how = how

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = torch.ops.aten.convolution(x, weight, bias, *self._how)
        return y

    def at_input(self, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        slope: torch.Tensor = self._slopes(g, x, weight, [True, False, False])[0]
        return slope

    def at_weights(
        self, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, slope, shift = self._slopes(g, x, weight, [False, True, bias])
        return slope, shift

    def _slopes(self, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(g, x, weight, [weight.shape[0]], *self._how, mask)


class _Product:
    """torch.nn.functional.linear."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    def at_input(self, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return g.matmul(weight)

    def at_weights(
        self, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = g.reshape(-1, g.shape[-1])
        return rows.t().mm(x.reshape(-1, x.shape[-1])), rows.sum(0) if bias else rows


def _convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[_Convolution | None, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What a call of torch.conv1d, conv2d or conv3d computes, and from what; None where it stays whole."""
    if isinstance(padding, str) or input.dim() != weight.dim():
        return None, input, weight, bias
    sizes = weight.dim() - 2
    stride, padding, dilation = (
        list(v) if isinstance(v, tuple | list) else [v] * sizes for v in (stride, padding, dilation)
    )
    return _Convolution(stride, padding, dilation, False, [0] * sizes, groups), input, weight, bias


def _product(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[_Product, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The same of torch.nn.functional.linear."""
    return _Product(), input, weight, bias


_HALVED: dict[Any, Any] = {
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    torch.nn.functional.linear: _product,
}


class _Layer(torch.autograd.Function):
    """y of a layer; backward gives the gradient at x and queues those of weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layer: _Convolution | _Product,
        queue: DeferredGradients,
        sums: _PassGradients,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias, ctx.layer, ctx.queue, ctx.sums = bias, layer, queue, sums
        return layer.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        layer, bias, sums = ctx.layer, ctx.bias, ctx.sums
        parameters = [weight] if bias is None else [weight, bias]

        def late() -> None:
            slopes = layer.at_weights(g, x, weight, bias=bias is not None)
            for p, slope in zip(parameters, slopes, strict=False):
                sums.add(p, slope)

        for p in parameters:
            sums.await_one(p)
        ctx.queue.put(late)
        return layer.at_input(g, x, weight) if ctx.needs_input_grad[0] else None, None, None, None, None, None
