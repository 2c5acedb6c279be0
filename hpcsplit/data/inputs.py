"""What somebody who has a network but not its data must know: the shape of a sample, how it is normalised, the classes.

A run writes it into its checkpoints (checkpoint/manifest.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from hpcsplit.data.catalog import Spec
from hpcsplit.errors import CheckpointError


@dataclass(frozen=True)
class Inputs:
    """`shape` is that of one sample as it is read, (C, H, W) for images, `pool` halves height and width behind that.
    `mean` and `std` are those of the training set by channel, of pixels scaled to [0, 1]; both are empty where nothing
    is normalised.  `names` are those of the classes, empty where a number says all.  `kind`, `classes` and
    `target_shape` as of data/catalog.py, Spec."""

    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pool: bool = False
    names: tuple[str, ...] = ()
    kind: str = "images"
    classes: int = 0
    target_shape: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Inputs:
        """The reverse.  CheckpointError, naming the source, where the values are not what they must be."""
        try:
            inputs = msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{source} does not say what its samples are ({error}); take another one") from None
        if len(inputs.mean) != len(inputs.std) or not all(scale > 0 for scale in inputs.std):
            raise CheckpointError(f"{source} has no mean and standard deviation that go together; take another one")
        return inputs

    def spec(self, name: str) -> Spec:
        """What is known of the data set without it: nothing of how many samples there are."""
        return Spec(
            name,
            train=0,
            test=0,
            shape=self.shape,
            classes=self.classes,
            flip=False,
            kind=self.kind,
            target_shape=self.target_shape,
            names=self.names,
        )

    @property
    def taken(self) -> tuple[int, ...]:
        """The shape of a sample as the network takes it."""
        return (self.shape[0], self.shape[1] // 2, self.shape[2] // 2) if self.pool else self.shape

    def normalised(self, x: Tensor) -> Tensor:
        """(B, *taken) as the network takes it, of pixels uint8, of floats on the scale of `mean`, or of tokens."""
        if self.kind == "tokens":
            return x.long()
        if not self.mean:
            return x.float()
        mean, std = (torch.tensor(each).view(-1, *[1] * (x.dim() - 2)) for each in (self.mean, self.std))
        if x.dtype == torch.uint8:  # in the order of data/source.py: the same bits
            return x.float().sub_(255 * mean).div_(255 * std)
        return x.float().sub(mean).div_(std)
