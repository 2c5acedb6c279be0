"""Random crops and flips that belong to a sample, not to the batch it happens to be in.

The random number of a sample is a hash of (seed, epoch, sample id): element `id` of the splitmix64 sequence that starts
at a hash of seed and epoch.  A stage that meets the sample later, alone or in another batch, sees the same picture.
"""

from __future__ import annotations

import numpy as np
import torch

from hpcsplit.host.device import upload

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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
    key = _mix(_mix(_word(seed)) + _word(epoch))
    words = _mix(key + (ids.astype(np.int64).view(np.uint64) + np.uint64(1)) * _GOLDEN)
    return _below(2 * padding + 1, words), _below(2 * padding + 1, words >> np.uint64(24)), words >> np.uint64(63) == 1


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
