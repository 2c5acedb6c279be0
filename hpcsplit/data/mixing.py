"""Mixed samples: mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018) and cutmix (Yun et al.,
"CutMix", 2019).

A sample x with class y gets a partner x', y' of the same mini-batch and a share λ from the distribution Beta(α, α):

    mixup    x ← λ x + (1 − λ) x'
    cutmix   a box of x that has the share 1 − λ of its pixels, where it is not cut off at the edges, is that of x'

and the target λ y + (1 − λ) y', with the λ that is left of a box cut off.  With both, every second sample on average
gets the one, the others the other.  Partner, λ and box are a function of seed, epoch and the ids of the mini-batch, as
crops and flips are (source.py): the first stage mixes images, the last one targets, and neither tells the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.data.source import words
from hpcsplit.errors import ConfigError
from hpcsplit.host.device import upload

_ORDER, _SHARE, _KIND, _ROW, _COLUMN = range(1, 6)  # streams of random numbers


@dataclass(frozen=True)
class Mixing:
    """How samples of the shape `shape` are mixed; α = 0 leaves a kind out.  A box needs (C, H, W)."""

    mixup: float
    cutmix: float
    shape: tuple[int, ...]
    seed: int

    def images(self, x: Tensor, ids: np.ndarray, epoch: int) -> Tensor:
        """The samples x (B, *shape) of these ids (B,), mixed."""
        if not x.is_floating_point():
            raise ConfigError(
                f"optim.mixup and optim.cutmix mix numbers, and samples are {str(x.dtype).removeprefix('torch.')}; "
                "leave them out"
            )
        partner, _, keep = self._drawn(ids, epoch)
        weight = upload(torch.from_numpy(keep), x.device).to(x.dtype)
        return weight * x + (1 - weight) * x.index_select(0, upload(torch.from_numpy(partner), x.device))

    def targets(self, labels: Tensor, ids: np.ndarray, epoch: int, classes: int) -> Tensor:
        """What belongs to them, from their labels int64 (B,): shares of the classes, float32 (B, classes)."""
        partner, share, _ = self._drawn(ids, epoch)
        own, weight = F.one_hot(labels, classes).float(), upload(torch.from_numpy(share), labels.device)[:, None]
        return weight * own + (1 - weight) * own.index_select(0, upload(torch.from_numpy(partner), labels.device))

    def _drawn(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places of partners int64 (B,), λ (B,), and how much of each pixel stays, (B, 1, …); float32."""
        from scipy.special import betaincinv

        def stream(number: int) -> np.ndarray:
            return words(np.asarray(ids), seed=self.seed, epoch=epoch, stream=number)

        def uniform(number: int) -> np.ndarray:
            return (stream(number) >> np.uint64(11)) * 2.0**-53

        order = np.argsort(stream(_ORDER), kind="stable")
        partner = np.empty_like(order)
        partner[order] = np.roll(order, -1)  # nobody's own, where there is another
        boxed = uniform(_KIND) < 0.5 if self.mixup and self.cutmix else np.full(len(order), bool(self.cutmix))
        alpha = np.where(boxed, self.cutmix, self.mixup)
        share = betaincinv(alpha, alpha, uniform(_SHARE))
        keep = share.reshape(-1, *(1 for _ in self.shape))
        if self.cutmix:
            half, inside = np.sqrt(1 - share) / 2, np.ones((len(order), 1, 1), bool)
            for axis, (size, number) in enumerate(zip(self.shape[1:], (_ROW, _COLUMN), strict=True)):
                pixels = (np.arange(size) + 0.5) / size
                within = np.abs(pixels - uniform(number)[:, None]) < half[:, None]
                inside = inside & np.expand_dims(within, 2 - axis)
            keep = np.where(boxed[:, None, None, None], ~inside[:, None], keep)
            share = np.where(boxed, keep.mean((1, 2, 3)), share)
        return partner, share.astype(np.float32), keep.astype(np.float32)
