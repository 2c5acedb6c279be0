"""Mini-batches as a network wants them: float32, normalised, on the device."""

from __future__ import annotations

import numpy as np
import torch

from hpcsplit.data.augment import crop_flip
from hpcsplit.data.part import Part
from hpcsplit.host.device import upload

FOR_EVER = -1  # in place of an epoch's number


class Source:
    """Hands out the samples of one part by id.

    The uint8 images stay on `device`; a batch is picked there, augmented if asked, converted once and normalised in
    place: (pixel / 255 - mean) / std with `mean` and `std` float32 (C,).  `seed`, `flip` and `padding` (pixels) steer
    the augmentation; there are `copies` of each sample.
    `channels_last` sets the memory format of batches of colour images; with one channel the two formats are the same
    bytes and the plain one is kept.
    """

    def __init__(
        self,
        part: Part,
        mean: torch.Tensor,
        std: torch.Tensor,
        *,
        seed: int,
        flip: bool,
        padding: int = 4,
        copies: int = 1,
        channels_last: bool,
        device: torch.device | str,
    ) -> None:
        channels = part.images.shape[1]
        assert mean.shape == std.shape == (channels,), f"{tuple(mean.shape)}, {tuple(std.shape)}, {channels} channels"
        self._device = torch.device(device)
        self._images = part.images.to(self._device)
        self._labels = part.labels.to(self._device)
        self._centre = (255 * mean).to(self._device, torch.float32).view(1, -1, 1, 1)
        self._scale = (255 * std).to(self._device, torch.float32).view(1, -1, 1, 1)
        self._seed = seed
        self._flip = flip
        self._padding = padding
        self._copies = copies
        self._format = torch.channels_last if channels_last and channels > 1 else torch.contiguous_format

    def __len__(self) -> int:
        return len(self._labels)

    def images(self, ids: np.ndarray | torch.Tensor, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        """Normalised float32 (B, C, H, W) of samples `ids` int64 (B,); n + c · len(self) is copy c of sample n.

        With `augment` cropped and flipped at random, the same for the same (seed, epoch, id).  Without it copy 0 is the
        image as it is, the other copies are cropped and flipped in a way that is theirs for ever.
        """
        picked, copied = self._images.index_select(0, self._rows(ids)), np.asarray(ids) >= len(self)
        if augment:
            picked = self._moved(picked, ids, epoch)
        elif copied.any():
            own = upload(copied, self._device)[:, None, None, None]
            picked = torch.where(own, self._moved(picked, ids, FOR_EVER), picked)
        batch = picked.to(torch.float32, memory_format=self._format)
        return batch.sub_(self._centre).div_(self._scale)

    def labels(self, ids: np.ndarray | torch.Tensor) -> torch.Tensor:
        """int64 (B,) of samples `ids` int64 (B,)."""
        return self._labels.index_select(0, self._rows(ids))

    def _moved(self, picked: torch.Tensor, ids: np.ndarray | torch.Tensor, epoch: int) -> torch.Tensor:
        return crop_flip(picked, ids, seed=self._seed, epoch=epoch, flip=self._flip, padding=self._padding)

    def _rows(self, ids: np.ndarray | torch.Tensor) -> torch.Tensor:
        assert len(ids) == 0 or int(ids.max()) < self._copies * len(self), f"sample {ids.max()} of {len(self)}"
        return upload(torch.as_tensor(ids, dtype=torch.int64) % len(self), self._device)
