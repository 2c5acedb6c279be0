"""A data set ready for training, as it lies in memory: checked, cut to size, with the statistics that normalise it."""

from __future__ import annotations

import hashlib
import math
import pkgutil
from dataclasses import dataclass, replace

import numpy as np
import torch

from hpcsplit.data.catalog import Spec, lookup
from hpcsplit.errors import DataError
from hpcsplit.files.scratch import memory_available_bytes


@dataclass(frozen=True)
class Part:
    """`images` uint8 (N, C, H, W), contiguous; `labels` int64 (N,).  Sample i is row i of both."""

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        assert (self.images.dtype, self.images.ndim) == (torch.uint8, 4), f"{self.images.dtype}, {self.images.shape}"
        assert self.images.is_contiguous()
        assert self.labels.dtype == torch.int64, f"{self.labels.dtype}"
        assert self.labels.shape == self.images.shape[:1], f"{self.labels.shape}, {self.images.shape}"

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def of(images: np.ndarray, labels: np.ndarray) -> Part:
        """From arrays: images uint8 (N, C, H, W) in any strides, labels of any whole type (N,).

        Memory is shared where layout and type allow it.
        """
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        return Part(pixels, torch.from_numpy(np.require(labels, np.int64, ["C", "W"])))

    def first(self, limit: int) -> Part:
        """The first `limit` samples in memory of their own, so that the rest can be freed; 0 keeps all."""
        return Part(self.images[:limit].clone(), self.labels[:limit].clone()) if limit else self

    def parted(self, size: int) -> tuple[Part, Part]:
        """The first `size` samples, and the others."""
        return Part(self.images[:size], self.labels[:size]), Part(self.images[size:], self.labels[size:])

    def pooled(self) -> Part:
        """Each 2 x 2 square of pixels replaced by its mean, halves rounded up: (N, C, H/2, W/2)."""
        images = self.images
        height, width = images.shape[2:]
        assert (height % 2, width % 2) == (0, 0), f"odd height or width: {height} x {width}"
        total = images[:, :, 0::2, 0::2].to(torch.int16)
        for row, column in ((0, 1), (1, 0), (1, 1)):
            total += images[:, :, row::2, column::2]
        return Part(((total + 2) // 4).to(torch.uint8), self.labels)


@dataclass(frozen=True)
class Dataset:
    """Both parts of a data set.

    `mean` and `std` are float32 (C,) of the training images, pixels scaled to [0, 1]; a channel that never changes has
    std 1.  `validation` are training samples that were held out; no other part has them.
    """

    train: Part
    test: Part
    mean: torch.Tensor
    std: torch.Tensor
    validation: Part | None = None


def load(
    name: str,
    root: str = "",
    *,
    download: bool = False,
    limit_train: int = 0,
    limit_test: int = 0,
    pool: bool = False,
    validation: int = 0,
) -> Dataset:
    """Read the data set `name` (a key of catalog.SPECS).

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
    for key, limit, size in (("limit_train", limit_train, spec.train), ("limit_test", limit_test, spec.test)):
        if not 0 <= limit <= size:
            raise DataError(
                f"data.{key} = {limit}, but {spec.name} has {size} samples there; give 1 to {size}, or 0 for all of "
                "them"
            )
    train, test = pkgutil.resolve_name(spec.reader)(spec, root, download)
    _check_part(spec, "training", train, spec.train)
    _check_part(spec, "test", test, spec.test)
    train, test = train.first(limit_train), test.first(limit_test)
    if pool:
        train, test = train.pooled(), test.pooled()
    held_out = None
    if validation:
        train, held_out = train.parted(len(train) - validation)
    return Dataset(train, test, *channel_moments(train.images), held_out)


def fingerprint(dataset: Dataset) -> str:
    """16 hexadecimal digits that change with any pixel, label or shape of any part."""
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.test, dataset.validation):
        for tensor in (part.images, part.labels) if part is not None else ():
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def channel_moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, float32 (C,), of uint8 images (N, C, H, W) scaled to [0, 1]; std 0 is given as 1.

    The pixels are counted by value, so the sums are exact and do not depend on the number of threads.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        variance = (share * (values - mean) ** 2).sum()
        means.append(mean)
        stds.append(variance.sqrt() if variance > 0 else torch.ones_like(variance))
    return torch.stack(means).float(), torch.stack(stds).float()


def _check_part(spec: Spec, which: str, part: Part, size: int) -> None:
    advice = "the files are damaged or of another data set: replace them, or point data.root at another copy"
    if tuple(part.images.shape) != (size, *spec.shape):
        raise DataError(
            f"the {which} images of {spec.name} have shape {tuple(part.images.shape)}, "
            f"expected {(size, *spec.shape)}; {advice}"
        )
    wrong = ((part.labels < 0) | (part.labels >= spec.classes)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{len(wrong)} of the {size} {which} labels of {spec.name} are outside 0 .. {spec.classes - 1}, "
            f"the first is {int(part.labels[row])} at sample {row}; {advice}"
        )
