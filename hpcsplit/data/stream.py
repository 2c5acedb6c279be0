"""Samples that are made one by one when they are needed, by processes that work ahead of the computation.

A reader may draw at random, as transforms do: before each sample the random numbers of torch, of `random` and of
`numpy.random` begin anew from (seed, epoch, id), so a sample looks the same wherever and whenever it is read.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpcsplit.data.dataset import AS_IT_IS, Part
from hpcsplit.errors import DataError, HpcsplitError
from hpcsplit.files.scratch import memory_available_bytes
from hpcsplit.host.blame import said
from hpcsplit.host.chance import nothing_drawn, seed_all

_AHEAD = 2  # mini-batches that each process prepares
_MOST_KEPT = 0.25  # of the memory that is free: what is decoded and always the same stays there

Key = tuple[int, np.ndarray]  # an epoch and sample ids


class Items(Protocol):
    """Makes the samples of one part; another process makes them from a pickled copy."""

    @property
    def draws(self) -> bool:
        """Whether a sample may look otherwise in another epoch."""

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        """Input and target of one sample.  DataError where it cannot be read."""

    def content(self) -> Iterator[bytes | memoryview]:
        """What a fingerprint is made of."""


@dataclass(frozen=True)
class _Batches(Dataset[tuple[Tensor, Tensor] | str]):
    """A mini-batch as one item of a DataLoader, or the sentence that says why there is none."""

    items: Items
    numbers: np.ndarray  # of the samples of this part among the items
    seed: int

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | str:
        epoch, ids = key
        try:
            made = [self._made(epoch, int(number)) for number in ids]
        except HpcsplitError as error:
            return str(error)
        inputs, targets = zip(*made, strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def _made(self, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        if self.items.draws:
            seed_all(hash((self.seed, epoch, number)) & (2**63 - 1))
        return self.items.item(int(self.numbers[number % len(self.numbers)]))


class Streamed(Part):
    """The items of these `numbers`.

    `labels`, (N, …), are their targets where these are known without making the samples.
    `workers` processes read ahead what is expected.  Without any a thread does, where no reader draws at random: it
    decodes while the stage waits for its neighbours.
    """

    def __init__(
        self, items: Items, numbers: np.ndarray, seed: int, workers: int, labels: Tensor | None = None
    ) -> None:
        self._batches, self._workers, self._labels = _Batches(items, numbers, seed), workers, labels
        self._asked: deque[Key] = deque()  # of the loader, and not taken yet
        self._order: list[Key] = []
        self._loader: DataLoader[Any] | None = None
        self._reading: Iterator[Any] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._coming: Future[tuple[Tensor, Tensor] | str] | None = None  # the first one that is asked for
        self._latest: tuple[Key, tuple[Tensor, Tensor]] | None = None
        self._kept: Tensor | None = None
        self._has = np.zeros(len(numbers), bool)

    def __len__(self) -> int:
        return len(self._batches.numbers)

    def inputs(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        rows = ids % len(self)
        if not self._batches.items.draws and self._has[rows].all() and self._kept is not None:
            self._skip(epoch, ids)
            return self._kept[torch.from_numpy(rows)]
        inputs = self._made(epoch, ids)[0]
        self._keep(rows, inputs)
        return inputs

    def targets(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        if self._labels is not None:
            return self._labels[torch.from_numpy(ids % len(self))]
        return self._made(epoch, ids)[1]

    def between(self, first: int, last: int) -> Self:
        b, labels = self._batches, self._labels
        return type(self)(
            b.items, b.numbers[first:last], b.seed, self._workers, None if labels is None else labels[first:last]
        )

    def content(self) -> Iterator[bytes | memoryview]:
        yield str(len(self)).encode()
        yield self._batches.numbers.tobytes()
        yield from self._batches.items.content()

    def expect(self, batches: Sequence[np.ndarray], epoch: int = AS_IT_IS) -> None:
        self._reading = self._coming = None
        draws = self._batches.items.draws
        self._order = [(epoch, ids) for ids in batches if draws or not self._has[ids % len(self)].all()]
        self._asked = deque(self._order)

    def _made(self, epoch: int, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """A mini-batch as it was read ahead, or is read now."""
        if self._latest and _same(self._latest[0], (epoch, ids)):  # targets follow inputs
            return self._latest[1]
        if self._asked and _same(self._asked[0], (epoch, ids)) and (self._workers or not self._batches.items.draws):
            made = self._next() if self._workers else self._threaded()
        else:
            with nothing_drawn():
                made = self._batches[(epoch, ids)]
        if isinstance(made, str):
            raise DataError(made)
        self._latest = (epoch, ids), made
        return made

    def _threaded(self) -> tuple[Tensor, Tensor] | str:
        self._thread = self._thread or ThreadPoolExecutor(1)
        coming = self._coming or self._thread.submit(self._batches.__getitem__, self._asked[0])
        self._asked.popleft()
        self._coming = self._thread.submit(self._batches.__getitem__, self._asked[0]) if self._asked else None
        return coming.result()

    def _skip(self, epoch: int, ids: np.ndarray) -> None:
        """It had been asked of the loader before it was known that it is here."""
        if self._asked and _same(self._asked[0], (epoch, ids)):
            if self._reading:
                self._next()
            else:
                self._asked.popleft()
                self._coming = None

    def _next(self) -> tuple[Tensor, Tensor] | str:
        if self._reading is None:
            self._order = list(self._asked)
            self._reading = iter(self._loader or self._load())
        self._asked.popleft()
        try:
            made: tuple[Tensor, Tensor] | str = next(self._reading)
        except RuntimeError as error:
            raise DataError(
                f"a process that reads samples has ended ({said(error)}); is its memory enough? Lower data.workers, or "
                "set it to 0"
            ) from error
        return made

    def _load(self) -> DataLoader[Any]:
        self._loader = loader(
            self._batches, self._workers, sampler=_Order(self), prefetch_factor=_AHEAD, persistent_workers=True
        )
        return self._loader

    def _keep(self, rows: np.ndarray, inputs: Tensor) -> None:
        """What is decoded, and the same in each epoch, stays where there is room."""
        if self._batches.items.draws or inputs.dtype != torch.uint8:
            return
        if self._kept is None:
            needed = len(self) * inputs[0].numel()
            size = len(self) if needed <= _MOST_KEPT * memory_available_bytes() else 0
            self._kept = torch.empty((size, *inputs.shape[1:]), dtype=torch.uint8)
        if len(self._kept):
            self._kept[torch.from_numpy(rows)] = inputs
            self._has[rows] = True


def loader(dataset: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
    """The items of a map-style data set one by one, made by so many processes, or in this one."""
    if not workers:
        return DataLoader(dataset, batch_size=None)
    context = multiprocessing.get_context("forkserver")  # no child of a process that has begun with MPI
    context.set_forkserver_preload([__name__])
    return DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context, **options)


class _Order:
    """What the loader is to read, whenever it begins."""

    def __init__(self, part: Streamed) -> None:
        self._part = part

    def __iter__(self) -> Iterator[Key]:
        return iter(self._part._order)

    def __len__(self) -> int:
        return len(self._part._order)


def _same(a: Key, b: Key) -> bool:
    return a[0] == b[0] and np.array_equal(a[1], b[1])
