"""Mini-batches as a network wants them: float32, normalised, on the device, cropped and flipped at random.

Crops and flips belong to a sample, not to the batch it happens to be in.  Its random number is a hash of (seed, epoch,
sample id): element `id` of the splitmix64 sequence that starts at a hash of seed and epoch.  A stage that meets the
sample later, alone or in another batch, sees the same picture.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from hpcsplit.data.dataset import Part
from hpcsplit.host.device import upload

FOR_EVER = -1  # in place of an epoch's number
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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
        self._moved = partial(crop_flip, seed=seed, flip=flip, padding=padding)
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
            picked = self._moved(picked, ids, epoch=epoch)
        elif copied.any():
            own = upload(copied, self._device)[:, None, None, None]
            picked = torch.where(own, self._moved(picked, ids, epoch=FOR_EVER), picked)
        batch = picked.to(torch.float32, memory_format=self._format)
        return batch.sub_(self._centre).div_(self._scale)

    def labels(self, ids: np.ndarray | torch.Tensor, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        """int64 (B,) of samples `ids` int64 (B,)."""
        return self._labels.index_select(0, self._rows(ids))

    def _rows(self, ids: np.ndarray | torch.Tensor) -> torch.Tensor:
        assert len(ids) == 0 or int(ids.max()) < self._copies * len(self), f"sample {ids.max()} of {len(self)}"
        return upload(torch.as_tensor(ids, dtype=torch.int64) % len(self), self._device)


def crop_flip(
    images: torch.Tensor, ids: np.ndarray | torch.Tensor, *, seed: int, epoch: int, flip: bool, padding: int = 4
) -> torch.Tensor:
    """Each image moved by up to `padding` pixels up or down and left or right, zeros where nothing was.

    `images` uint8 (B, C, H, W) on any device; `ids` int64 (B,) in main memory, the samples they show; the answer is
    like `images`.  With `flip`, every second image on average is mirrored from left to right.  Nothing but
    (seed, epoch, id) decides.
    """
    height, width = images.shape[2:]
    down, right, mirrored = draw(np.asarray(ids), seed=seed, epoch=epoch, padding=padding)
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, 2p+1, 2p+1, H, W)
    moves = upload(np.stack([np.arange(len(down)), down, right, mirrored]), images.device)
    cropped = windows[moves[0], :, moves[1], moves[2]]
    if not flip:
        return cropped
    return torch.where(moves[3].bool()[:, None, None, None], cropped.flip(3), cropped)


def draw(ids: np.ndarray, *, seed: int, epoch: int, padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The random choices of samples `ids` int64 (B,).

    Window row and column, int64 (B,) in 0 .. 2*padding (`padding` is no move), and whether to flip, bool (B,).
    """
    drawn = words(ids, seed=seed, epoch=epoch)
    return _below(2 * padding + 1, drawn), _below(2 * padding + 1, drawn >> np.uint64(24)), drawn >> np.uint64(63) == 1


def words(ids: np.ndarray, *, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """64 random bits of each of the samples `ids` int64 (B,), uint64 (B,); others in every stream."""
    key = _mix(_mix(_word(seed)) + _word(epoch))
    if stream:
        key = _mix(key + _word(stream))
    return _mix(key + (ids.astype(np.int64).view(np.uint64) + np.uint64(1)) * _GOLDEN)


def _word(number: int) -> np.ndarray:
    return np.array([number % 2**64], dtype=np.uint64)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a bijection on uint64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed


def _below(limit: int, words: np.ndarray) -> np.ndarray:
    """int64 numbers 0 .. limit-1 from the lowest 24 bits of `words`; shares are even to limit / 2**24."""
    return (((words & np.uint64(0xFFFFFF)) * np.uint64(limit)) >> np.uint64(24)).astype(np.int64)
