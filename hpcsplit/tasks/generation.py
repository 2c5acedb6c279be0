"""Image generation by a variational auto-encoder: Kingma and Welling 2013; DS-SPH, section 4.2.

The network's output is (B, n + 2 Z): the reconstruction x̂ of the n values of an image, then the mean μ and the
logarithm of the variance, ln σ², of its Z latent values:

    φ = (‖x̂ − x‖² + KL) / n,      KL = ½ Σ (μ² + σ² − 1 − ln σ²),

1/n of the negative lower bound of the likelihood where pixels have a variance of ½ about x̂.  The paper has the MSE, so
the mean over the n values is meant; the scale of φ matters to the splitting methods, which weigh it against β ψ.
Reported is the first term, in units of the normalised image, whose pixels have a variance of about 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from hpcsplit.tasks.task import Samples, Task


@dataclass(frozen=True)
class Generation(Task):
    """Images from their own latent values."""

    def targets(self, samples: Samples, ids: np.ndarray, **view: Any) -> Tensor:
        return samples.images(ids, **view).flatten(1)

    def wrong_shape(
        self, shape: tuple[int, ...], image: tuple[int, ...], classes: int, target: tuple[int, ...] = ()
    ) -> str:
        n = math.prod(image)
        if len(shape) == 1 and shape[0] > n and (shape[0] - n) % 2 == 0:
            return ""
        return f"a vector of {n} + 2 Z: the image, then the means and the log variances of its Z latent values"

    def own_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        n = targets.shape[1]
        mean, log_variance = outputs[:, n:].chunk(2, dim=1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)
        return self.score(outputs, targets) + divergence / n

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, : targets.shape[1]] - targets).square().mean(1)

    def pictures(self, outputs: Tensor, shape: tuple[int, ...]) -> Tensor:
        return outputs[:, : math.prod(shape)].reshape(-1, *shape)
