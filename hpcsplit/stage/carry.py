"""What a method or the probe keeps from step to step and from epoch to epoch, named by what it belongs to.

    "<name>"         the same on every stage
    "<n>.<name>"     of block n of the whole network
    "stage/<name>"   of a stage with just these cuts; lost with others

Checkpoints save it under these names.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from torch import Tensor

_STAGE = "stage/"


class Carry(MutableMapping[str, Tensor]):
    """Tensors by name; those whose names begin with `prefix`, as a view, by the rest of their names."""

    def __init__(self, tensors: dict[str, Tensor] | None = None, prefix: str = "") -> None:
        self._tensors: dict[str, Tensor] = {} if tensors is None else tensors
        self._prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._tensors[self._prefix + name] = tensor

    def __delitem__(self, name: str) -> None:
        del self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter([name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def below(self, prefix: str) -> Carry:
        """The view of the names that begin with `prefix`."""
        return Carry(self._tensors, self._prefix + prefix)

    def block(self, number: int) -> Carry:
        """What belongs to this block of the whole network."""
        return self.below(f"{number}.")

    @property
    def stage(self) -> Carry:
        """What belongs to a stage with just these cuts."""
        return self.below(_STAGE)


def of_cuts(name: str) -> bool:
    """Whether what has this name is lost with other cuts."""
    return name.startswith(_STAGE)


def block_of(name: str) -> int | None:
    """The block that what has this name belongs to, if it is one's."""
    number, dot, _ = name.partition(".")
    return int(number) if dot and number.isdecimal() else None
