"""What an nn.Module does with its samples, followed with torch.fx (Reed et al. 2022) into containers and no further.

A layer stays the module that it is.  Numbers of samples are kept apart from all other sizes, which are plain numbers,
so that a forward may look at them; and what depends on being in training or in evaluation goes on doing so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.utils.flop_counter import FlopCounterMode

from hpcsplit.errors import ConfigError
from hpcsplit.host.blame import line_raised, line_running, said
from hpcsplit.host.chance import drawn_so_far, nothing_drawn
from hpcsplit.nets.shapes import meta_sample, some_values, twin

SIZES = (2, 3)  # samples: what differs between the two belongs to the batch
_TOLD = (
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "shape",
    "ndim",
    "is_nested",
)  # of a tensor without looking at its values
_FACTORIES = {name: getattr(torch, name) for name in ("empty", "full", "ones", "rand", "randint", "randn", "zeros")}
_OPENED = 1 / 4  # a layer with more of all multiply-adds is looked into


@dataclass
class Route:
    """A forward as torch.fx has it, with what each node gives for `SIZES` samples."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, tuple[Any, Any]] = field(default_factory=dict)
    flops: dict[fx.Node, int] = field(default_factory=dict)
    paths: dict[fx.Node, str] = field(default_factory=dict)  # of the opened module that it stands in
    lines: dict[fx.Node, str] = field(default_factory=dict)  # of the user's source
    of_any: set[fx.Node] = field(default_factory=set)  # what any tensor with the batch first can tell


def follow(net: nn.Module, input_shape: Sequence[int], dtype: torch.dtype) -> Route:
    """The route of samples of shape `input_shape` and type `dtype`, the same in training and in evaluation.

    Raises ConfigError, with the line of the user's source, where it cannot be followed.
    """
    opened = {path for path, part in net.named_modules() if not path or _is_container(part)}
    closed = set[str]()
    modes = [(part, part.training) for part in net.modules()]
    shadow, device = twin(net, "meta").eval(), torch.device("meta")
    try:
        while True:
            try:
                route = Route()
                for training in (True, False):
                    tracer = _Tracer(net.train(training), shadow, opened - closed, device, route)
                    before, route = route, tracer.follow(input_shape, dtype)
                route = _joined(before, route, net)
            except _NeedsValues:
                shadow, device = twin(net, "cpu").eval(), torch.device("cpu")
            except _Failed as error:
                if not error.path:
                    kind = Unfollowed if error.unfollowed else ConfigError
                    raise kind(f"the forward of {type(net).__name__} {error.reason}") from error
                closed.add(error.path)
            else:
                if not (more := _large(net, route) - opened):
                    return route
                opened |= more
    finally:
        for part, training in modes:
            part.training = training


class _NeedsValues(Exception):
    """Something looks at the values of a meta tensor."""


class Unfollowed(ConfigError):
    """A forward does what cannot be followed, though it may run."""


class _Failed(Exception):
    """What happens in the module `path` cannot be followed, or fails."""

    def __init__(self, path: str, reason: str, *, unfollowed: bool = True) -> None:
        self.path, self.reason, self.unfollowed = path, reason, unfollowed


def _is_container(part: nn.Module) -> bool:
    """Whether a module is a sequence, or has a stack of several layers that are more than sequences."""
    if type(part).forward is nn.Sequential.forward:
        return True
    stacks = (m for m in part.modules() if isinstance(m, nn.Sequential | nn.ModuleList))
    return any(sum(bool(m._modules) and not isinstance(m, nn.Sequential) for m in stack) >= 2 for stack in stacks)


def _large(net: nn.Module, route: Route) -> set[str]:
    most = _OPENED * sum(route.flops.values())
    paths = {str(node.target) for node, flops in route.flops.items() if node.op == "call_module" and flops > most}
    own = {path: net.get_submodule(path) for path in paths}
    return {path for path, part in own.items() if part._modules and not type(part).__module__.startswith("torch.nn")}


# ------------------------------------------------------------------------------------------------ one mode


class _Proxy(fx.Proxy):
    """A value on its way; it knows its shape."""

    tracer: _Tracer

    def __getattr__(self, k: str) -> Any:
        held = None if k.startswith("__") else getattr(self.tracer.route.values[self.node][0], k, None)
        if held is None or callable(held):
            return super().__getattr__(k)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __len__(self) -> int:
        return len(self.tracer.elements(self))


class _Tracer(fx.Tracer):
    """Follows the forward of `net` and of its modules at the paths `opened`; `shadow` is a copy to compute with."""

    def __init__(
        self, net: nn.Module, shadow: nn.Module, opened: set[str], device: torch.device, before: Route
    ) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self.route = Route()
        self._net, self._shadow, self._opened, self._device = net, shadow, opened, device
        self._before, self._known = before, iter(before.graph.nodes)  # the other mode
        self._inside: list[str] = []  # the opened modules that are running
        self._computing = False

    def follow(self, input_shape: Sequence[int], dtype: torch.dtype) -> Route:
        samples = [meta_sample(self._net, input_shape, size, dtype) for size in SIZES]
        self._samples = samples if self._device.type == "meta" else [some_values(t) for t in samples]
        fast = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # a way of nn.TransformerEncoder for evaluation alone
            self._stand_in()
            with torch.enable_grad():
                self.route.graph = self.trace(self._net)
        except _NeedsValues:
            raise
        except Exception as error:  # the user's code runs here
            fails = self._computing or isinstance(error, AssertionError)
            reason = f"does not take samples of shape {tuple(input_shape)}" if fails else "cannot be followed"
            reason += f" ({', '.join(filter(None, (said(error), line_raised(error))))})"
            raise _Failed(self._inside[-1] if self._inside else "", reason, unfollowed=not fails) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            self._stand_back()
        return self.route

    # -------------------------------------------------------------------------------------------- what torch.fx asks

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The samples are the only argument; others have their defaults."""
        x = self.create_proxy("placeholder", "x", (), {})
        self._batch = super().create_proxy("call_function", _length, (x,), {})
        self._where = super().create_proxy("call_function", getattr, (x, "device"), {})
        self.route.of_any = {self._batch.node, self._where.node}
        return (lambda root, x: root(x)), [self.root, x]  # through __call__, for its hooks

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._opened

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.submodule_paths.get(m) if self.submodule_paths else None
        if self._computing or path is None:  # one made on the way
            return forward(*args, **kwargs)
        if path not in self._opened:
            return super().call_module(m, forward, args, kwargs)
        self._inside.append(path)
        before = drawn_so_far()
        result = super().call_module(m, forward, args, kwargs)
        if drawn_so_far() != before:
            raise fx.proxy.TraceError("random numbers are drawn once, that are no tensor with a row for each sample")
        self._inside.pop()  # not where it fails
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(len(self.elements(obj)))])

    def elements(self, obj: fx.Proxy) -> Any:
        first, second = self.route.values[obj.node]
        if len(first) != len(second):
            raise fx.proxy.TraceError("the number of samples decides what is done")
        return first

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **others: Any) -> fx.Node:
        if not torch.is_grad_enabled() or any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            raise fx.proxy.TraceError("no_grad and autocast are not seen from outside of a layer")
        node = super().create_node(kind, target, args, kwargs, *more, **others)
        self.route.lines[node], self.route.paths[node] = line_running(), self._inside[-1] if self._inside else ""
        like, route = next(self._known, node), self.route
        if kind != "output" and (like.op, like.target) == (kind, target) and like in self._before.values:
            route.values[node], route.flops[node] = self._before.values[like], self._before.flops[like]
        elif kind != "output":
            self._compute(node)
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **others: Any) -> Any:
        """Sizes are numbers; those that the samples have a part in are multiples of how many they are, whichever tensor
        tells them."""
        if target is getattr and args[1] == "device":
            return self._where
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **others)
        name = args[1] if target is getattr else target if kind == "call_method" else getattr(target, "__name__", "")
        size = self._size(*self.route.values[proxy.node]) if kind != "call_module" and name in _TOLD else None
        return proxy if size is None else size

    def _stand_in(self) -> None:
        """For the functions that make tensors of so many samples, and do not ask what a size is."""
        for name, function in _FACTORIES.items():
            setattr(torch, name, partial(self._made, function))

    def _stand_back(self) -> None:
        for name, function in _FACTORIES.items():
            setattr(torch, name, function)

    def _made(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        proxies = list[Any]()
        map_aggregate((args, kwargs), lambda a: proxies.append(a) if isinstance(a, _Proxy) else None)
        return self.create_proxy("call_function", function, args, kwargs) if proxies else function(*args, **kwargs)

    # -------------------------------------------------------------------------------------------- computing along

    def _size(self, first: Any, second: Any) -> Any:
        if isinstance(first, tuple):
            sizes = tuple(map(self._size, first, second))
            return None if any(size is None for size in sizes) else sizes
        if first == second:
            return first
        times, rest = divmod(first, SIZES[0])
        if rest or times * SIZES[1] != second:
            return None
        return self._batch if times == 1 else self._batch * times

    def _compute(self, node: fx.Node) -> None:
        counter = FlopCounterMode(display=False)
        self._computing = True
        self._stand_back()
        try:
            with nothing_drawn(), torch.no_grad(), self._device:
                with counter:
                    first = self._value(node, 0)
                self.route.values[node] = first, self._value(node, 1)
        except Exception as error:
            if self._device.type == "meta":
                raise _NeedsValues from error
            raise
        self._computing = False  # not where it fails
        self._stand_in()
        self.route.flops[node] = counter.get_total_flops()

    def _value(self, node: fx.Node, which: int) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.route.values[n][which])
        if node.op == "placeholder":
            return self._samples[which]
        if node.op == "get_attr":
            value = attribute(self._shadow, str(node.target), attribute(self._net, str(node.target)))
            return value.detach().to(self._device) if isinstance(value, Tensor) else value
        if node.op == "call_module":
            return self._shadow.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return cast(Any, node.target)(*args, **kwargs)


def _length(x: Tensor) -> int:
    return x.shape[0]


def attribute(net: nn.Module, path: str, default: Any = None) -> Any:
    """What of a network has this path, such as "layer1.0.weight"."""
    value: Any = net
    for name in path.split("."):
        value = getattr(value, name, default)
    return value


# ------------------------------------------------------------------------------------------------ both modes


def _joined(trained: Route, evaluated: Route, net: nn.Module) -> Route:
    """One route for both: where one has True and the other has False, whether the network is in training."""
    ours, theirs = list(trained.graph.nodes), list(evaluated.graph.nodes)
    numbers = {node: number for nodes in (ours, theirs) for number, node in enumerate(nodes)}
    with trained.graph.inserting_before(ours[0]):
        training = trained.graph.create_node("get_attr", "training")
        evaluating = trained.graph.call_function(operator.not_, (training,))
    for node, value in ((training, True), (evaluating, False)):
        trained.values[node], trained.flops[node], trained.paths[node], trained.lines[node] = (value, value), 0, "", ""

    def same(a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) and isinstance(b, fx.Node) and numbers[a] == numbers[b]:
            return a
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return type(a)([same(*pair) for pair in zip(a, b, strict=True)])
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: same(a[key], b[key]) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(same(a.start, b.start), same(a.stop, b.stop), same(a.step, b.step))
        if isinstance(a, bool) and isinstance(b, bool) and a != b:
            return training if a else evaluating
        if type(a) is not type(b) or a != b:
            raise ValueError
        return a

    for a, b in zip(ours, theirs, strict=False):  # where one is longer, its partner is the output
        try:
            if a.op != b.op or (a.target != b.target and not _same_constant(net, str(a.target), str(b.target))):
                raise ValueError
            a.args, a.kwargs = same(a.args, b.args), same(a.kwargs, b.kwargs)
        except (ValueError, TypeError):
            line = f" ({trained.lines[a]})" if trained.lines[a] else ""
            raise _Failed(trained.paths[a], f"does something else in training than in evaluation{line}") from None
    return trained


def _same_constant(net: nn.Module, a: str, b: str) -> bool:
    first, second = attribute(net, a), attribute(net, b)
    tensors = "_tensor_constant" in a and isinstance(first, Tensor) and isinstance(second, Tensor)
    return tensors and first.shape == second.shape and (first.is_meta or torch.equal(first, second))
