"""Data from the user's own code: data.name = "package.module:factory".

# mydata.py, in a folder on PYTHONPATH
def flowers(root=""):
    turned = v2.RandomHorizontalFlip()
    return MyDataset(root, train=True, transform=turned), MyDataset(root, train=False)

The factory is called with those of the keywords root, download, seed, size and context that it takes.  It returns the
training and the test part; the second may be None where data.validation holds samples out.  Each is a map-style data
set of pairs (x, y), or a pair of arrays or tensors x and y.

x is a tensor, an array, a number or an image (PIL), all of one shape: bytes are images (C, H, W), numbers of floating
point are taken as they are, whole numbers are tokens.  y is a class, tokens, or numbers of floating point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from hpcsplit.data.arrays import described, opened_arrays
from hpcsplit.data.dataset import DataOptions, Opened, as_sample, split_order
from hpcsplit.data.images import GREY, pixels
from hpcsplit.data.stream import Streamed
from hpcsplit.errors import DataError
from hpcsplit.host.blame import line_raised, said
from hpcsplit.host.chance import nothing_drawn, seed_all
from hpcsplit.host.factory import call_factory, is_given

_HASHED = 16  # samples that stand for all in a fingerprint
PARTS = ("training", "test")


class MapItems:
    """The samples of a map-style data set, which `make` makes anew in each process that reads them.

    `shape` (C, H, W) is that of images (PIL), or () before it is known.  `draws` says that a sample may look otherwise
    when it is read again, as transforms do.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        keywords: dict[str, Any],
        whose: str,
        shape: tuple[int, ...],
        *,
        draws: bool,
        made: Any = None,
    ) -> None:
        self.make, self.keywords, self.whose, self.shape, self.draws = make, keywords, whose, shape, draws
        self.imaged = False  # samples are images (PIL)
        self.first: tuple[tuple[int, ...], torch.dtype, tuple[int, ...], torch.dtype] | None = None
        self._dataset = made

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_dataset": None}

    @property
    def dataset(self) -> Any:
        """The data set itself."""
        if self._dataset is None:
            self._dataset = self.make(**self.keywords)
        return self._dataset

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        """DataError, with the user's line, where it cannot be read, and where it is not as sample 0 is."""
        try:
            x, y = self.dataset[number]
            x, y = self._tensor(x), self._tensor(y)
        except DataError:
            raise
        except Exception as error:  # the user's code runs here
            line = line_raised(error)
            raise DataError(
                f"{self.whose}: sample {number} cannot be read ({said(error)}{f', {line}' if line else ''}); a sample "
                "is a pair (x, y) of tensors, arrays, numbers or an image"
            ) from error
        if y.dtype == torch.uint8:
            y = y.long()
        looks = tuple(x.shape), x.dtype, tuple(y.shape), y.dtype
        if self.first and looks != self.first:
            raise DataError(
                f"{self.whose}: sample {number} is x {looks[1]} {looks[0]}, y {looks[3]} {looks[2]}, and sample 0 is "
                f"x {self.first[1]} {self.first[0]}, y {self.first[3]} {self.first[2]}; make them alike"
                + (", or set data.size" if self.imaged else "")
            )
        self.first = looks
        return x, y

    def _tensor(self, value: Any) -> Tensor:
        if isinstance(value, Image):
            self.imaged = True
            channels, *size = self.shape or (1 if value.mode in GREY else 3, value.height, value.width)
            return torch.from_numpy(pixels(value, (channels, size[0], size[1])))
        return as_sample(torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value)))

    def content(self) -> Iterator[bytes | memoryview]:
        """How many samples, and a few of them."""
        size = len(self.dataset)
        yield str(size).encode()
        for number in np.linspace(0, size - 1, min(_HASHED, size), dtype=int):
            with nothing_drawn():
                seed_all(0)
                x, y = self.item(int(number))
            yield hashlib.sha256(x.contiguous().numpy().data).digest() + y.contiguous().numpy().tobytes()


def _users(name: str, part: int, **offered: Any) -> Any:
    """One part of what the user's factory returns."""
    made = call_factory("data.name", name, **offered)
    if not isinstance(made, tuple | list) or len(made) != len(PARTS):
        raise DataError(
            f'data.name = "{name}": the factory returned {type(made).__name__}; it must return two parts, (train, test)'
        )
    return made[part]


def open_factory(asked: DataOptions) -> Opened:
    """ConfigError where the factory fails, DataError where it does not return data."""
    whose = f'data.name = "{asked.name}"'
    keywords: dict[str, Any] = {"name": asked.name, "root": asked.root, "download": asked.download, "seed": asked.seed}
    keywords |= {"size": asked.size, "context": asked.context}
    with nothing_drawn():
        seed_all(asked.seed)
        parts = [_users(part=k, **keywords) for k in range(len(PARTS))]
    if all(part is None or _is_pair(part) for part in parts) and parts[0] is not None:
        return opened_arrays(asked, [array for part in parts if part is not None for array in part], whose)
    if is_given(asked.name):  # other processes know nothing of it
        asked = replace(asked, workers=0)
    every = [
        MapItems(_users, {**keywords, "part": k}, whose, (), draws=True, made=part)
        for k, part in enumerate(parts)
        if part is not None
    ]
    return opened_map(asked, every, whose)


def _is_pair(part: Any) -> bool:
    """Whether it is x and y of all samples, not a data set of two samples."""
    return isinstance(part, tuple | list) and len(part) == 2 and all(hasattr(each, "shape") for each in part)


def opened_map(asked: DataOptions, every: Sequence[MapItems], where: str) -> Opened:
    """A set of one or two map-style data sets."""
    parts: list[Streamed] = []
    names, classes = tuple[str, ...](), 0
    for which, items in zip(PARTS, every, strict=False):
        try:
            size = len(items.dataset)
        except TypeError:
            raise DataError(
                f"{where}: the {which} part, {type(items.dataset).__name__}, has no length; give a map-style data set, "
                "with __len__ and __getitem__"
            ) from None
        if not size:
            raise DataError(f"{where}: the {which} part has no samples")
        if asked.size:
            with nothing_drawn():
                x = items.item(0)[0]
            items.shape, items.first = (len(x), asked.size, asked.size), None
        if parts:
            items.first = every[0].first  # both parts alike
        order = split_order(size) if len(every) == 1 else np.arange(size)
        labels = _known_targets(items.dataset, size)
        part = Streamed(items, order, asked.seed, asked.workers, None if labels is None else labels[order])
        with nothing_drawn():
            part.inputs(np.arange(1))
        parts.append(part)
        names = names or tuple(map(str, getattr(items.dataset, "classes", None) or ()))
        classes = classes or len(names) or int(getattr(items.dataset, "num_classes", 0) or 0)
    return described(asked, parts[0], parts[1] if len(parts) > 1 else None, where, classes, names)


def _known_targets(dataset: Any, size: int) -> Tensor | None:
    """Classes that a data set has as its attribute `targets`, as torchvision's have."""
    try:
        labels = as_sample(torch.as_tensor(np.asarray(dataset.targets)))
    except Exception:  # none, or of another form
        return None
    plain = labels.shape == (size,) and not labels.is_floating_point() and not getattr(dataset, "target_transform", 0)
    return labels.long() if plain else None
