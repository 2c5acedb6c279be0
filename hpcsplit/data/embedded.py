"""Data sets that come with the package: handwritten digits, and random patterns.

Random numbers are raw words of Philox, which numpy promises never to change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hpcsplit.data import decode
from hpcsplit.data.catalog import Spec
from hpcsplit.data.dataset import InMemory, Part
from hpcsplit.data.order import permutation
from hpcsplit.errors import DataError

DIGITS = Path(__file__).with_name("digits.npz")  # source and licence: digits.txt
DIGITS_MD5 = "35fa292850aefdac88ea117403394609"
SPLIT_SEED = 0
FAKE_SEED = 20


def digits(spec: Spec, root: str = "", download: bool = False) -> tuple[InMemory, InMemory]:
    """The 1797 handwritten digits of 8 x 8 pixels (values 0 .. 16), enlarged to 32 x 32.

    Source: UCI, Optical Recognition of Handwritten Digits, the test half (Alpaydin and Kaynak, 1998).  Which sample is
    for training is fixed once and for all; no seed of a run has a part in it.  DataError where this package's file is
    absent or damaged.
    """
    try:
        pixels, labels = decode.npz(decode.content(DIGITS, DIGITS_MD5))
    except (OSError, ValueError) as problem:
        raise DataError(f"digits in {DIGITS} cannot be read ({problem}); install hpcsplit again") from problem
    small = torch.from_numpy(pixels).float().unsqueeze(1)
    # Weights of a fourfold enlargement are multiples of 1/64: every value is exact, the same on all machines.
    large = torch.nn.functional.interpolate(small, size=spec.shape[1:], mode="bilinear", align_corners=False)
    images = (large * 255 / 16).round().to(torch.uint8).numpy()
    order = permutation((SPLIT_SEED,), len(images))
    train, test = order[: spec.train], order[spec.train :]
    return Part.of(images[train], labels[train]), Part.of(images[test], labels[test])


def fake(spec: Spec, root: str = "", download: bool = False) -> tuple[InMemory, InMemory]:
    """One pattern of 4 x 4 blocks for each class under three times as much noise; classes take turns, 0 1 2 ...

    For the same sizes they are always the same.  Training and test noise differ, so a network can generalise.
    """
    words = np.random.Philox(np.random.SeedSequence(FAKE_SEED))
    channels, height, width = spec.shape
    coarse = _random_bytes(words, (spec.classes, channels, height // 4, width // 4))
    patterns = coarse.repeat(4, axis=2).repeat(4, axis=3).astype(np.uint16)

    def part(size: int) -> InMemory:
        labels = np.arange(size) % spec.classes
        noise = _random_bytes(words, (size, *spec.shape)).astype(np.uint16)
        return Part.of(((patterns[labels] + 3 * noise) // 4).astype(np.uint8), labels)

    train = part(spec.train)
    return train, part(spec.test)


def _random_bytes(words: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform uint8 of `shape`, the same for any byte order of the machine."""
    size = int(np.prod(shape))
    return words.random_raw(-(-size // 8)).astype("<u8").view(np.uint8)[:size].reshape(shape)
