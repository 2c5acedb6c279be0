"""One half of a data set: images and labels as they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


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
