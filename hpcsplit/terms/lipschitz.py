"""How much a block can stretch a distance: its Lipschitz constant, estimated as a product of layer norms.

    ‖f(a) − f(b)‖ ≤ H ‖a − b‖   for all inputs a, b of one sample, in evaluation mode

H of a chain is at most the product, of a sum at most the sum, of its parts' constants:

    Linear, convolution, average pooling    the largest singular value of the linear map, by power iteration
    BatchNorm                               max |γ| / √(var + ε) with the running variance
    max pooling                             √(the largest number of windows that one pixel is in)
    ReLU, Tanh, Flatten, Dropout …          1

A block with a forward of its own (a residual block) is traced into its graph by torch.fx, and the constants follow the
graph: branch + shortcut where two paths add, 1 for the pixels that an indexing takes and the zeros that a padding adds.

The product is an upper bound of the constant, usually far above it, but power iteration approaches each norm from
below: 0.5 % under it for 3 x 3 convolutions at the default accuracy.  So the result is an estimate, not a certificate.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.nn import functional as F

ITERATIONS = 100
REL_CHANGE = 1e-4

LINEAR = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ONE = (
    *(nn.ReLU, nn.ReLU6, nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
SUMS = (operator.add, operator.sub, torch.add, torch.sub)
ONE_FUNCTIONS = (torch.relu, torch.relu_, F.relu, torch.tanh, torch.sigmoid, torch.flatten)
ONE_METHODS = ("relu", "relu_", "tanh", "sigmoid", "flatten", "view", "reshape", "contiguous")


class NoEstimate(Exception):
    """No rule for a layer; the text is its class, or the function and the class that calls it."""


def lipschitz(
    module: nn.Module, in_shape: tuple[int, ...], *, iterations: int = ITERATIONS, rel_change: float = REL_CHANGE
) -> float:
    """Estimate H of a module in evaluation mode; its state stays as it was, and no random number is drawn.

    Args:
        in_shape: of one sample, without the batch dimension.
        iterations, rel_change: power iteration ends after so many steps, or when a step raises the norm by less than
            this fraction of it.
    Raises:
        NoEstimate: for a layer without a rule, and for a forward that torch.fx cannot trace.
    """
    assert not module.training, "the constant is that of evaluation mode"
    tensors = (t for t in chain(module.parameters(), module.buffers()) if t.is_floating_point())
    like = next(tensors, torch.empty(0))
    with torch.no_grad():
        return _Walk(iterations, rel_change).through(module, like.new_zeros(1, *in_shape))[0]


class _Children(fx.Tracer):
    """Traces a module's own forward and leaves every child as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Walk:
    """Follows one sample through a module; only its shape matters."""

    def __init__(self, iterations: int, rel_change: float) -> None:
        self.iterations, self.rel_change = iterations, rel_change

    def through(self, module: nn.Module, x: torch.Tensor) -> tuple[float, Any]:
        """The constant of `module` and its output at x (1, *in_shape)."""
        kind = type(module)
        if kind.forward is nn.Sequential.forward:
            total = 1.0
            for child in module.children():
                constant, x = self.through(child, x)
                total *= constant
            return total, x
        if kind in LINEAR:
            return self._norm(module, x), module(x)
        if kind in ONE:
            return 1.0, module(x)
        if kind in NORM:
            return _of_batch_norm(module), module(x)
        if kind in MAX_POOL:
            y = module(x)
            return _of_max_pool(module, tuple(x.shape[2:]), tuple(y.shape[2:])), y
        if kind.__module__.startswith("torch.nn."):
            raise NoEstimate(kind.__name__)
        return self._graph(module, x)

    def _norm(self, layer: nn.Module, x: torch.Tensor) -> float:
        """Largest singular value of the layer without its bias: v ← AᵀA v / ‖AᵀA v‖, always from the same v."""
        weights = {name: p.detach() for name, p in layer.named_parameters()}
        if "bias" in weights:
            weights["bias"] = torch.zeros_like(weights["bias"])
        v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0)).to(x.device)
        sigma = 0.0
        for _ in range(self.iterations):
            v = (v / v.norm()).requires_grad_()
            with torch.enable_grad():
                y = functional_call(layer, weights, v)
            before, sigma = sigma, float(y.detach().norm())
            if sigma - before <= self.rel_change * sigma:
                break
            (v,) = torch.autograd.grad(y, v, y.detach())
        return sigma

    def _graph(self, module: nn.Module, x: torch.Tensor) -> tuple[float, Any]:
        """A module of several layers: every node's constant with respect to the module's input."""
        owner = type(module).__name__
        try:
            graph = _Children().trace(module)
        except Exception as error:  # user code runs here, on stand-ins for tensors
            raise NoEstimate(owner) from error
        constant: dict[fx.Node, float] = {}
        value: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value.__getitem__)
            parts = [constant[a] if isinstance(a, fx.Node) else 0.0 for a in node.args]
            if node.op == "placeholder" and not value:
                constant[node], value[node] = 1.0, x
            elif node.op == "get_attr":
                constant[node], value[node] = 0.0, operator.attrgetter(node.target)(module)
            elif node.op == "call_module" and len(args) == 1 and not kwargs:
                own, value[node] = self.through(module.get_submodule(node.target), args[0])
                constant[node] = own * parts[0]
            elif node.op in ("call_function", "call_method"):
                constant[node] = _of_call(node.target, args, kwargs, parts, owner)
                method = node.op == "call_method"
                value[node] = (
                    getattr(args[0], node.target)(*args[1:], **kwargs) if method else node.target(*args, **kwargs)
                )
            elif node.op == "output" and isinstance(args[0], torch.Tensor):
                return parts[0], args[0]
            else:
                break
        raise NoEstimate(owner)


def _of_batch_norm(norm: Any) -> float:
    if norm.running_var is None:
        raise NoEstimate(f"{type(norm).__name__} without running statistics")
    scale = (norm.running_var + norm.eps).rsqrt()
    return float((scale if norm.weight is None else scale * norm.weight.abs()).max())


def _of_max_pool(pool: Any, size: tuple[int, ...], size_out: tuple[int, ...]) -> float:
    """√n for pixels in up to n windows: |max a − max b|² ≤ Σ |a_i − b_i|² over a window, and a sum of it over windows
    counts a pixel n times."""
    windows = 1
    for axis, (pixels, count) in enumerate(zip(size, size_out, strict=True)):
        kernel, stride, padding, dilation = (
            value[axis] if isinstance(value, tuple) else value
            for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        hits = Counter(o * stride - padding + i * dilation for o in range(count) for i in range(kernel))
        windows *= max(n for pixel, n in hits.items() if 0 <= pixel < pixels)
    return math.sqrt(windows)


def _of_call(target: Any, args: Any, kwargs: Any, parts: list[float], owner: str) -> float:
    """The constant of a function or method call, from those of its arguments (0 for what does not depend on x)."""
    if target == "size" or (target is getattr and args[1] == "shape"):
        return 0.0
    if target in SUMS and not kwargs:
        shapes = {a.shape for a, part in zip(args, parts, strict=True) if part}
        if len(shapes) <= 1:  # a tensor that is copied along a dimension counts more than once
            return sum(parts)
    elif parts and (target in ONE_FUNCTIONS or target in ONE_METHODS or _selects(target, args, kwargs)):
        return parts[0]
    raise NoEstimate(f"{getattr(target, '__name__', target)} in {owner}")


def _selects(target: Any, args: Any, kwargs: Any) -> bool:
    """Whether the call takes some of the elements, each once, or adds zeros to them."""
    if target is operator.getitem:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return all(i is None or i is ... or isinstance(i, int | slice) for i in index)
    return target is F.pad and kwargs.get("mode", "constant") == "constant"
