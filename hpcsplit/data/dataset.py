"""A data set ready for training: checked, cut to size, with the statistics that normalise it."""

from __future__ import annotations

import hashlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Self, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from hpcsplit.data.catalog import OPENERS, Spec, lookup, opener
from hpcsplit.data.order import permutation
from hpcsplit.errors import DataError
from hpcsplit.files.scratch import memory_available_bytes

SAMPLES = (torch.uint8, torch.int64, torch.float32)  # the types of samples; targets have no bytes
AS_IT_IS = -1  # in place of an epoch's number: nothing of a sample is drawn anew
SPLIT_SEED = 0
_HASHED_BYTES = 2**32  # of a part that is not in memory, evenly spread rows stand for all
_HASHED_ROWS = 1024


class Part(ABC):
    """The samples of one part of a data set, by their numbers 0 .. len - 1; those above are copies of them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def inputs(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        """What the network takes of samples `ids` (B,), in main memory: (B, *shape), uint8, float32 or int64.  What a
        reader draws at random depends on (seed, epoch, id) alone."""

    @abstractmethod
    def targets(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        """What belongs to them: int64 classes (B,) or tokens (B, *shape), or float32 numbers."""

    @abstractmethod
    def between(self, first: int, last: int) -> Self:
        """The samples from number `first` to before number `last`."""

    @abstractmethod
    def content(self) -> Iterator[bytes | memoryview]:
        """What a fingerprint is made of."""

    def expect(self, batches: Sequence[np.ndarray], epoch: int = AS_IT_IS) -> None:  # noqa: B027  # no part needs it
        """These mini-batches will be asked for, in this order."""

    @staticmethod
    def of(images: np.ndarray, labels: np.ndarray) -> InMemory:
        """From arrays: images uint8 (N, C, H, W) in any strides, labels of any whole type (N,).

        Memory is shared where layout and type allow it.
        """
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        return InMemory(pixels, torch.from_numpy(np.require(labels, np.int64, ["C", "W"])))

    def first(self, limit: int) -> Self:
        """The first `limit` samples; 0 keeps all."""
        return self.between(0, limit) if limit else self

    def parted(self, size: int) -> tuple[Self, Self]:
        """The first `size` samples, and the others."""
        return self.between(0, size), self.between(size, len(self))


def as_sample(values: Tensor) -> Tensor:
    """In one of the types that samples have: uint8 as it is, other whole numbers int64, all others float32."""
    if values.dtype in SAMPLES:
        return values
    if values.is_complex():
        raise DataError("samples are complex numbers; give real ones, such as torch.view_as_real makes of them")
    return values.float() if values.is_floating_point() or values.dtype == torch.bool else values.long()


@dataclass(frozen=True)
class InMemory(Part):
    """Tensors: `images` (N, *shape), uint8, float32 or int64, contiguous; `labels` int64 or float32 (N, *shape).

    Sample i is row i of both.  With `mapped` they lie in a file, and rows are read when they are needed.
    """

    images: Tensor
    labels: Tensor
    mapped: bool = False

    def __post_init__(self) -> None:
        assert self.images.dtype in SAMPLES or self.mapped, f"{self.images.dtype}"
        assert self.images.is_contiguous()
        assert self.labels.dtype in SAMPLES[1:], f"{self.labels.dtype}"
        assert self.labels.shape[:1] == self.images.shape[:1], f"{self.labels.shape}, {self.images.shape}"

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        return as_sample(self.images.index_select(0, torch.from_numpy(np.asarray(ids) % len(self))))

    def targets(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        return self.labels.index_select(0, torch.from_numpy(np.asarray(ids) % len(self)))

    def between(self, first: int, last: int) -> Self:
        return replace(self, images=self.images[first:last], labels=self.labels[first:last])

    def first(self, limit: int) -> Self:
        """In memory of their own, so that the rest can be freed."""
        if not limit or self.mapped:
            return self.between(0, limit or len(self))
        return replace(self, images=self.images[:limit].clone(), labels=self.labels[:limit].clone())

    def in_order(self, order: np.ndarray) -> InMemory:
        """The samples of these numbers."""
        rows = torch.from_numpy(order)
        return InMemory(self.images[rows], self.labels[rows])

    def content(self) -> Iterator[bytes | memoryview]:
        for tensor in (self.images, self.labels):
            yield str(tuple(tensor.shape)).encode()
            if self.mapped and tensor.nbytes > _HASHED_BYTES:
                tensor = tensor[torch.linspace(0, len(tensor) - 1, _HASHED_ROWS, dtype=torch.float64).long()]
            yield tensor.numpy().data

    def pooled(self) -> InMemory:
        """Each 2 x 2 square of pixels replaced by its mean, halves rounded up: (N, C, H/2, W/2)."""
        images = self.images
        height, width = images.shape[2:]
        assert (height % 2, width % 2) == (0, 0), f"odd height or width: {height} x {width}"
        total = images[:, :, 0::2, 0::2].to(torch.int16)
        for row, column in ((0, 1), (1, 0), (1, 1)):
            total += images[:, :, row::2, column::2]
        return InMemory(((total + 2) // 4).to(torch.uint8), self.labels)


AnyPart = TypeVar("AnyPart", bound=Part, covariant=True)


@dataclass(frozen=True)
class Dataset(Generic[AnyPart]):
    """The parts of a data set.  `validation` are training samples that were held out; no other part has them, but the
    test part where a set has none of its own.

    `normalise` says which inputs are normalised: "pixels", scaled to [0, 1] first; "numbers"; or "" for none.
    `known` are their moments where they have been found out before, of all training samples.
    """

    train: AnyPart
    test: AnyPart
    validation: AnyPart | None = None
    normalise: str = "pixels"
    known: tuple[Tensor, Tensor] | None = None

    @property
    def mean(self) -> Tensor:
        """float32 (C,) of the training inputs, of pixels scaled to [0, 1]."""
        return self.moments[0]

    @property
    def std(self) -> Tensor:
        """float32 (C,); a channel that never changes has std 1."""
        return self.moments[1]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training inputs; 0 and 1 where nothing is normalised."""
        if self.known or not self.normalise:
            return self.known or (torch.zeros(1), torch.ones(1))
        if isinstance(self.train, InMemory) and self.normalise == "pixels" and not self.train.mapped:
            return channel_moments(self.train.images)
        return moments_of(self.train)


@dataclass(frozen=True)
class DataOptions:
    """What section [data] says of a set that a user brings."""

    name: str
    root: str = ""
    download: bool = False
    size: int = 0
    classes: int = 0
    context: int = 128
    normalise: str = "images"  # or "all", "none"
    skip_broken: bool = False
    workers: int = 0
    seed: int = 0
    validation: int = 0


@dataclass(frozen=True)
class Opened:
    """A set that a user brings, as it was found; without a test part the samples held out serve as that.

    `notes` are for people.
    """

    spec: Spec
    train: Part
    test: Part | None
    known: tuple[Tensor, Tensor] | None = None
    normalise: str = ""
    notes: tuple[str, ...] = ()


Opener: TypeAlias = Callable[[DataOptions], Opened]


def open_set(asked: DataOptions) -> Opened:
    """Look at a set that a user brings.  DataError where it is absent, damaged or not understood."""
    open_it: Opener = pkgutil.resolve_name(OPENERS[opener(asked.name)])
    opened = open_it(asked)
    if not opened.spec.test and not asked.validation:
        raise DataError(
            f"{opened.spec.name} has no test samples: say with data.validation how many of its {opened.spec.train} "
            "training samples are held out, such as a tenth"
        )
    return opened


def split_order(size: int) -> np.ndarray:
    """The numbers 0 .. size-1 in the order in which samples are dealt that lie sorted by class, the same for ever."""
    return permutation((SPLIT_SEED,), size)


def load(
    name: str,
    root: str = "",
    *,
    download: bool = False,
    limit_train: int = 0,
    limit_test: int = 0,
    pool: bool = False,
    validation: int = 0,
) -> Dataset[InMemory]:
    """Read the published data set `name` (a key of catalog.SPECS).

    `root` is a folder in torchvision's layout; when empty see vision.folder_of.  `download` lets torchvision fetch what
    is absent.  The limits keep the first so many samples, 0 keeps all.  `pool` averages 2 x 2 pixels.  The last
    `validation` of the training samples are held out.  Mean and std are those of the samples that are left.

    DataError: unknown, absent or damaged data, a label that is no class, or a limit above the size.
    """
    spec = lookup(name)
    if spec.endless:
        spec = replace(spec, train=max(spec.train, limit_train), test=max(spec.test, limit_test))
        needed, free = (spec.train + spec.test) * math.prod(spec.shape), memory_available_bytes()
        if needed > free:
            raise DataError(
                f"{spec.train} + {spec.test} samples of {spec.name} have {needed} bytes, {free} bytes of memory are "
                "free; lower data.limit_train or data.limit_test"
            )
    _check_limits(spec, limit_train, limit_test, spec.test)
    train, test = pkgutil.resolve_name(spec.reader)(spec, root, download)
    _check_part(spec, "training", train, spec.train)
    _check_part(spec, "test", test, spec.test)
    train, test = train.first(limit_train), test.first(limit_test)
    if pool:
        train, test = train.pooled(), test.pooled()
    if not validation:
        return Dataset(train, test)
    train, held_out = train.parted(len(train) - validation)
    return Dataset(train, test, held_out)


def cut_to_size(opened: Opened, *, limit_train: int = 0, limit_test: int = 0, validation: int = 0) -> Dataset[Part]:
    """A set that a user brings, as `load` cuts a published one."""
    spec, train, held_out = opened.spec, opened.train, None
    _check_limits(spec, limit_train, limit_test, spec.test or validation)
    train = train.first(limit_train)
    if validation:
        train, held_out = train.parted(len(train) - validation)
    test = opened.test or held_out
    assert test, "open_set has refused it"
    return Dataset(train, test.first(limit_test), held_out, opened.normalise, opened.known)


def _check_limits(spec: Spec, limit_train: int, limit_test: int, tests: int) -> None:
    for key, limit, size in (("limit_train", limit_train, spec.train), ("limit_test", limit_test, tests)):
        if not 0 <= limit <= size:
            raise DataError(
                f"data.{key} = {limit}, but {spec.name} has {size} samples there; give 1 to {size}, or 0 for all of "
                "them"
            )


def fingerprint(dataset: Dataset[Part]) -> str:
    """16 hexadecimal digits that change with any pixel, label or shape of any part."""
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.test, dataset.validation):
        for content in part.content() if part is not None else ():
            digest.update(content)
    return digest.hexdigest()[:16]


def channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float32 (C,), of uint8 images (N, C, H, W) scaled to [0, 1]; std 0 is given as 1.

    The pixels are counted by value, so the sums are exact and do not depend on the number of threads.
    """
    return moments_of_counts(pixel_counts(images))


def pixel_counts(images: Tensor) -> Tensor:
    """How many pixels of uint8 images (N, C, H, W) have each value: int64 (C, 256)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def moments_of_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of pixels scaled to [0, 1] that have been counted by value, int64 (C, 256)."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for count in counts:
        share = count.double() / count.sum()
        mean = (share * values).sum()
        variance = (share * (values - mean) ** 2).sum()
        means.append(mean)
        stds.append(variance.sqrt() if variance > 0 else torch.ones_like(variance))
    return torch.stack(means).float(), torch.stack(stds).float()


def moments_of(part: Part, at_once: int = 1024) -> tuple[Tensor, Tensor]:
    """Those of a part's inputs, (N, C, …), by channel, in one pass; pixels are scaled to [0, 1]."""
    batches = [np.arange(k, min(k + at_once, len(part))) for k in range(0, len(part), at_once)]
    part.expect(batches)
    counts, sums = torch.zeros(0), torch.zeros(0)
    for ids in batches:
        inputs = part.inputs(ids)
        if inputs.dtype == torch.uint8:
            found = pixel_counts(inputs)
            counts = counts + found if counts.numel() else found
            continue
        flat = inputs.double().transpose(0, 1).flatten(1)
        found = torch.stack([torch.full((len(flat),), flat.shape[1]), flat.sum(1), flat.square().sum(1)])
        sums = sums + found if sums.numel() else found
    if counts.numel():
        return moments_of_counts(counts)
    mean = sums[1] / sums[0]
    variance = (sums[2] / sums[0] - mean.square()).clamp(min=0)
    return mean.float(), torch.where(variance > 0, variance.sqrt(), 1.0).float()


def _check_part(spec: Spec, which: str, part: Part, size: int) -> None:
    assert isinstance(part, InMemory)
    advice = "the files are damaged or of another data set: replace them, or point data.root at another copy"
    if tuple(part.images.shape) != (size, *spec.shape):
        raise DataError(
            f"the {which} images of {spec.name} have shape {tuple(part.images.shape)}, "
            f"expected {(size, *spec.shape)}; {advice}"
        )
    check_classes(spec, which, part.labels, advice)


def check_classes(spec: Spec, which: str, labels: Tensor, advice: str) -> None:
    """Raise DataError for a label that is none of the classes of `spec`."""
    wrong = ((labels < 0) | (labels >= spec.classes)).nonzero()
    if len(wrong):
        row = int(wrong[0][0])
        raise DataError(
            f"{len(wrong)} of the {len(labels)} {which} labels of {spec.name} are outside 0 .. {spec.classes - 1}, "
            f"the first is {int(labels[tuple(wrong[0])])} at sample {row}; {advice}"
        )
