"""Mini-batches as a network wants them: on the device, images normalised, cropped and flipped at random.

Crops and flips belong to a sample, not to the batch it happens to be in.  Its random number is a hash of (seed, epoch,
sample id): element `id` of the splitmix64 sequence that starts at a hash of seed and epoch.  A stage that meets the
sample later, alone or in another batch, sees the same picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hpcsplit.data.dataset import AS_IT_IS, InMemory, Part
from hpcsplit.host.device import upload

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Source:
    """Hands out the samples of one part by id.

    What is in memory stays on `device`; a batch is picked there, augmented if asked, converted once and normalised in
    place: (pixel / 255 - mean) / std with `mean` and `std` float32 (C,), and for numbers (x - mean) / std; None leaves
    them as they are.  `seed`, `flip` and `padding` (pixels) steer the augmentation of images; there are `copies` of
    each sample.
    `channels_last` sets the memory format of batches of colour images; with one channel the two formats are the same
    bytes and the plain one is kept.

    Attributes:
        waited_s: how long samples have been waited for that are not in memory.
    """

    def __init__(
        self,
        part: Part,
        mean: Tensor | None,
        std: Tensor | None,
        *,
        seed: int,
        flip: bool,
        padding: int = 4,
        copies: int = 1,
        channels_last: bool,
        device: torch.device | str,
    ) -> None:
        self._part, self._device, self.waited_s = part, torch.device(device), 0.0
        self._here = None
        if isinstance(part, InMemory) and not part.mapped:
            self._here = part.images.to(self._device), part.labels.to(self._device)
        self._mean, self._std = (None if t is None else t.to(self._device, torch.float32) for t in (mean, std))
        self._moved = partial(crop_flip, seed=seed, flip=flip, padding=padding) if padding or flip else None
        self._copies, self._channels_last = copies, channels_last

    def __len__(self) -> int:
        return len(self._part)

    def expect(self, batches: Sequence[np.ndarray], *, epoch: int = 0, augment: bool = False) -> None:
        """These mini-batches will be asked for, in this order: what is not in memory is read ahead."""
        if self._here is None:
            self._part.expect(batches, epoch if augment else AS_IT_IS)

    def images(self, ids: np.ndarray | Tensor, *, epoch: int = 0, augment: bool = False) -> Tensor:
        """The inputs (B, *shape) of samples `ids` int64 (B,); n + c · len(self) is copy c of sample n.

        Images and numbers are float32, tokens int64.  With `augment` images are cropped and flipped at random, the same
        for the same (seed, epoch, id).  Without it copy 0 is the image as it is, the other copies are cropped and
        flipped in a way that is theirs for ever.
        """
        ids = self._checked(ids)
        if self._here is not None:
            picked = self._here[0].index_select(0, self._rows(ids))
        else:
            picked = self._waited(lambda: self._part.inputs(ids, epoch if augment else AS_IT_IS))
        pixels, copied = picked.dtype == torch.uint8, ids >= len(self)
        if pixels and self._moved and augment:
            picked = self._moved(picked, ids, epoch=epoch)
        elif pixels and self._moved and copied.any():
            own = upload(copied, self._device)[:, None, None, None]
            picked = torch.where(own, self._moved(picked, ids, epoch=AS_IT_IS), picked)
        if picked.dtype == torch.int64:
            return picked
        coloured = picked.dim() == 4 and picked.shape[1] > 1 and self._channels_last
        batch = picked.to(torch.float32, memory_format=torch.channels_last if coloured else torch.contiguous_format)
        if self._mean is None or self._std is None:
            return batch
        scale, shape = (255 if pixels else 1), (-1, *(1 for _ in batch.shape[2:]))
        return batch.sub_((scale * self._mean).view(shape)).div_((scale * self._std).view(shape))

    def labels(self, ids: np.ndarray | Tensor, *, epoch: int = 0, augment: bool = False) -> Tensor:
        """The targets of samples `ids` int64 (B,): int64 classes (B,) or tokens (B, *shape), or float32 numbers."""
        ids = self._checked(ids)
        if self._here is not None:
            return self._here[1].index_select(0, self._rows(ids))
        return self._waited(lambda: self._part.targets(ids, epoch if augment else AS_IT_IS))

    def _checked(self, ids: np.ndarray | Tensor) -> np.ndarray:
        assert len(ids) == 0 or int(ids.max()) < self._copies * len(self), f"sample {ids.max()} of {len(self)}"
        return np.asarray(ids)

    def _rows(self, ids: np.ndarray) -> Tensor:
        return upload(ids.astype(np.int64) % len(self), self._device)

    def _waited(self, read: Callable[[], Tensor]) -> Tensor:
        began = time.perf_counter()
        answer = upload(read(), self._device)
        self.waited_s += time.perf_counter() - began
        return answer


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
