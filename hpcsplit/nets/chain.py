"""An nn.Module of any forward as an nn.Sequential of named blocks with the same modules, parameters and operations.

Where all that comes later needs one tensor alone, the network can be cut.  Where it needs several, as under the long
skips of a U-Net, they are laid side by side there, and the next block takes them apart.

Names: a block that is one module of the network is called as that module, with _ for its dots, and has its parameters:
`layer1.0.conv1.weight` is `layer1_0.conv1.weight`.  In any other block the names of the network stand behind its own:
`conv1.weight` and `bn1.weight` are `conv1.conv1.weight` and `conv1.bn1.weight`.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from hpcsplit.errors import ConfigError
from hpcsplit.host.chance import nothing_drawn
from hpcsplit.nets.follow import SIZES, Route, attribute, follow

_TORN = 1 / 3  # a block with more of all multiply-adds is cut where several tensors pass, too


def chain(net: nn.Module, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """`net`, for samples of shape `input_shape` and type `dtype`, as blocks that share its modules.

    Each block has a layer that multiplies, and ends where the fewest numbers pass.  What passes is one tensor with the
    batch first; several, or one with the batch elsewhere, pass as (B, n).
    Raises ConfigError, with the line of the user's source, where the forward cannot be followed or nowhere be cut.
    """
    with nothing_drawn():
        pieces = _Pieces(net, follow(net, input_shape, dtype))
    return Chain(net, OrderedDict((pieces.name(part), pieces.block(part)) for part in pieces.parts()))


class Chain(nn.Sequential):
    """Blocks of a network; `names` has that of the network for each of theirs, of parameters and buffers."""

    def __init__(self, net: nn.Module, blocks: OrderedDict[str, nn.Module]) -> None:
        super().__init__(blocks)
        there = {id(t): name for name, t in net.state_dict(keep_vars=True).items()}
        here = self.state_dict(keep_vars=True)
        self.names = {name: there[id(t)] for name, t in here.items() if id(t) in there}

    def __getitem__(self, index: Any) -> Any:
        """A block; of a slice, the blocks alone as a plain nn.Sequential."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return nn.Sequential(OrderedDict(list(self._modules.items())[index]))


class Piece(fx.GraphModule):
    """Some operations of a network of the class `origin`, from one tensor to one."""

    origin: type[nn.Module]

    def recompile(self) -> Any:
        code = super().recompile()
        del type(self).__call__  # that would print what it raises
        return code


@dataclass(frozen=True)
class _Layout:
    """How a tensor passes: its shape without the batch, and which dimension that is."""

    shape: tuple[int, ...]
    batch: int
    dtype: torch.dtype


class _Pieces:
    """The blocks of a route: ranges of those of its nodes that depend on the samples' values or on weights."""

    def __init__(self, net: nn.Module, route: Route) -> None:
        self._net, self._route = net, route
        *nodes, self._output = route.graph.nodes
        self._x = next(node for node in nodes if node.op == "placeholder")
        self._anywhere, self._changed = set[fx.Node](), set[fx.Node]()
        waiting = [source for node in nodes if _changes(node) for source in node.all_input_nodes[:1]]
        while waiting:
            node = waiting.pop()
            waiting += [source for source in node.all_input_nodes if source not in self._changed]
            self._changed.add(node)
        for node in nodes:
            if self._is_anywhere(node):
                self._anywhere.add(node)
        self._body = [node for node in nodes if node not in self._anywhere and node is not self._x]
        numbers = {node: number for number, node in enumerate(self._body)} | {self._output: len(self._body)}
        last_use = {
            value: max((numbers[user] for user in value.users if user in numbers), default=-1)
            for value in (self._x, *self._body)
        }
        self._passing = [[self._x]]  # the values that cross before each node, and behind the last one
        for number, node in enumerate(self._body):
            self._passing.append([value for value in (*self._passing[-1], node) if last_use[value] > number])
        uses = dict[int, list[int]]()  # of each parameter
        for number, node in enumerate(self._body):
            for parameter in self._parameters(node):
                uses.setdefault(id(parameter), []).append(number)
        self._one_stage = {place for numbers in uses.values() for place in range(numbers[0] + 1, numbers[-1] + 1)}

    def _is_anywhere(self, node: fx.Node) -> bool:
        """Whether any block can have it anew: sizes, buffers, constants, and what is made of them alone."""
        if node.op == "get_attr" or node in self._route.of_any:
            return True
        inputs, name = node.all_input_nodes, _name(node)
        return (
            node.op in ("call_function", "call_method")
            and bool(inputs)
            and node not in self._changed
            and not _changes(node)
            and not ("rand" in name or "dropout" in name or name == "bernoulli")
            and all(n in self._anywhere and not isinstance(self._attribute(n), nn.Parameter) for n in inputs)
        )

    def _parameters(self, node: fx.Node) -> Iterator[nn.Parameter]:
        if node.op == "call_module":
            yield from self._net.get_submodule(str(node.target)).parameters()
        yield from (a for a in map(self._attribute, node.all_input_nodes) if isinstance(a, nn.Parameter))

    def _attribute(self, node: fx.Node) -> Any:
        return attribute(self._net, str(node.target)) if node.op == "get_attr" else None

    # -------------------------------------------------------------------------------------------- where

    def parts(self) -> list[range]:
        """The nodes of each block, by their numbers.  ConfigError where there are several layers and one block."""
        heavy = [number for number, node in enumerate(self._body) if self._is_heavy(node)]
        cuts = self._cuts(heavy, most=1)
        most = _TORN * self._flops(0, len(self._body))
        for start, stop in pairwise([0, *cuts, len(self._body)]):
            if self._flops(start, stop) > most:
                cuts = cuts + self._cuts([number for number in heavy if start <= number < stop])
        if len(heavy) > 1 and not cuts:
            name, what = type(self._net).__name__, self._obstacle(heavy[0], heavy[1])
            raise ConfigError(f"{name} can nowhere be cut: {what}")
        return [range(*ends) for ends in pairwise([0, *sorted(cuts), len(self._body)])]

    def _flops(self, start: int, stop: int) -> int:
        return sum(self._route.flops[node] for node in self._body[start:stop])

    def _is_heavy(self, node: fx.Node) -> bool:
        if self._route.flops[node] or node.op != "call_module":
            return self._route.flops[node] > 0
        looks_up = any(n not in self._anywhere for n in node.all_input_nodes)
        return looks_up and any(p.dim() > 1 for p in self._net.get_submodule(str(node.target)).parameters())

    def _cuts(self, heavy: Sequence[int], most: float = float("inf")) -> list[int]:
        """Where the fewest numbers pass between two heavy nodes, in at most `most` tensors; the last of such places."""
        result = []
        for first, second in pairwise(heavy):
            sizes = {}
            for place in range(first + 1, second + 1):
                layouts = self._layouts(place)
                if layouts and len(layouts) <= most:
                    sizes[place] = sum(torch.Size(layout.shape).numel() for layout in layouts)
            if sizes:
                result.append(min(sizes, key=lambda place: (sizes[place], -place)))
        return result

    def _layouts(self, place: int) -> list[_Layout]:
        """Those of the tensors that pass there; none where anything else does, or where both sides share parameters."""
        leaves = [leaf for value in self._passing[place] for _, leaf in _leaves(*self._route.values[value])]
        kinds = {leaf and leaf.dtype for leaf in leaves}
        return [leaf for leaf in leaves if leaf] if len(kinds) == 1 and place not in self._one_stage else []

    def _obstacle(self, first: int, place: int) -> str:
        behind = f"behind {self._body[first].name}"
        if place in self._one_stage:
            return f"{behind} later layers share parameters with those before, and stages are trained apart; untie them"
        for value in self._passing[place]:
            if not all(leaf for _, leaf in _leaves(*self._route.values[value])):
                held, line = self._route.values[value][0], self._route.lines[value]
                kind = f"{held.dtype} of shape {tuple(held.shape)}" if isinstance(held, Tensor) else type(held).__name__
                return (
                    f"{behind} later layers need {value.name} ({', '.join(filter(None, (kind, line)))}), no tensor of "
                    "floating point with a row for each sample; make it where it is needed"
                )
        return f"{behind} later layers need tensors of several types; make them of one"

    # -------------------------------------------------------------------------------------------- made of what

    def name(self, part: range) -> str:
        """That of the first layer in it."""
        name = next(
            (node for node in map(self._body.__getitem__, part) if self._is_heavy(node)), self._body[part[0]]
        ).name
        return f"{name}_" if hasattr(nn.Sequential, name) else name

    def block(self, part: range) -> nn.Module:
        nodes, before, behind = self._body[part.start : part.stop], self._passing[part.start], self._passing[part.stop]
        first, last = part.start == 0, part.stop == len(self._body)
        if (first or self._is_plain(before)) and (last or self._is_plain(behind)):
            [node] = nodes[:1]
            result = self._output.args[0] if last else behind[0]
            if node is result and node.op == "call_module" and node.args == tuple(before) and not node.kwargs:
                return self._net.get_submodule(str(node.target))
        graph = fx.Graph()
        x = graph.placeholder("x")
        here = {before[0]: x} if first or self._is_plain(before) else dict(self._taken_apart(graph, x, before))

        def get(node: fx.Node) -> Any:
            if node not in here:  # one that any block can have
                here[node] = graph.node_copy(node, lambda n: x if node in self._route.of_any else get(n))
            return here[node]

        for node in nodes:
            here[node] = graph.node_copy(node, get)
        if last:
            graph.output(map_arg(self._output.args[0], get))
        else:
            graph.output(here[behind[0]] if self._is_plain(behind) else self._side_by_side(graph, here, behind))
        return self._module(graph)

    def _is_plain(self, values: Sequence[fx.Node]) -> bool:
        [(path, leaf), *_] = _leaves(*self._route.values[values[0]])
        return len(values) == 1 and not path and leaf is not None and leaf.batch == 0

    def _side_by_side(self, graph: fx.Graph, here: dict[fx.Node, Any], values: Sequence[fx.Node]) -> fx.Node:
        rows = []
        for value in values:
            for path, leaf in _leaves(*self._route.values[value]):
                row = here[value]
                for key in path:
                    row = graph.call_function(operator.getitem, (row, key))
                if leaf.batch:
                    row = graph.call_method("movedim", (row, leaf.batch, 0))
                if len(leaf.shape) != 1:
                    row = graph.call_method("flatten" if leaf.shape else "unsqueeze", (row, 1))
                rows.append(row)
        return graph.call_function(torch.cat, (rows, 1)) if len(rows) > 1 else rows[0]

    def _taken_apart(self, graph: fx.Graph, x: fx.Node, values: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, Any]]:
        start = 0

        def tensor(leaf: _Layout) -> fx.Node:
            nonlocal start
            stop = start + torch.Size(leaf.shape).numel()
            columns = slice(start, stop) if leaf.shape else start
            row = graph.call_function(operator.getitem, (x, (slice(None), columns)))
            if len(leaf.shape) > 1:
                row = graph.call_method("unflatten", (row, 1, leaf.shape))
            start = stop
            return graph.call_method("movedim", (row, 0, leaf.batch)) if leaf.batch else row

        for value in values:
            yield value, _rebuilt(*self._route.values[value], tensor)

    def _module(self, graph: fx.Graph) -> nn.Module:
        """With the modules, parameters and buffers that it names, under their paths."""
        persistent = self._net.state_dict(keep_vars=True)
        parts, passing = dict[str, Any](), []
        for node in graph.nodes:
            node.meta.clear()
            if node.op in ("get_attr", "call_module"):
                path, value = str(node.target), attribute(self._net, str(node.target))
                if path != "training" and hasattr(fx.GraphModule, path.partition(".")[0]):
                    node.target = path = f"{path.partition('.')[0]}_{path.removeprefix(path.partition('.')[0])}"
                parts[path] = value
                if isinstance(value, Tensor) and str(node.target) not in persistent:
                    passing.append(path)
        piece = Piece(parts, graph, class_name=type(self._net).__name__)
        piece.origin = type(self._net)
        for path in passing:
            owner, _, name = path.rpartition(".")
            piece.get_submodule(owner)._non_persistent_buffers_set.add(name)
        return piece.train(self._net.training)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _changes(node: fx.Node) -> bool:
    """Whether an operation changes its first argument, as relu_ and iadd do."""
    name = _name(node)
    if node.op not in ("call_function", "call_method") or node.target is operator.not_:
        return False
    return name.endswith("_") or (name[:1] == "i" and hasattr(operator, f"__{name[1:]}__"))


# ------------------------------------------------------------------------------------------------ values that pass


def _layout(first: Any, second: Any) -> _Layout | None:
    """How a tensor passes, seen for both sizes; None for what cannot."""
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.dim() != second.dim():
        return None
    batch = [d for d, pair in enumerate(zip(first.shape, second.shape, strict=True)) if pair[0] != pair[1]]
    if len(batch) != 1 or (first.shape[batch[0]], second.shape[batch[0]]) != SIZES:
        return None
    return _Layout((*first.shape[: batch[0]], *first.shape[batch[0] + 1 :]), batch[0], first.dtype)


def _leaves(first: Any, second: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """What stands in lists, tuples and dicts, with the way there."""
    if type(first) in (list, tuple, dict) and len(first) == len(second):
        for key in first if isinstance(first, dict) else range(len(first)):
            yield from _leaves(first[key], second[key], (*path, key))
    else:
        yield path, _layout(first, second)


def _rebuilt(first: Any, second: Any, tensor: Callable[[_Layout], Any]) -> Any:
    if isinstance(first, dict):
        return {key: _rebuilt(first[key], second[key], tensor) for key in first}
    if isinstance(first, list | tuple):
        return type(first)([_rebuilt(*pair, tensor) for pair in zip(first, second, strict=True)])
    layout = _layout(first, second)
    assert layout
    return tensor(layout)
