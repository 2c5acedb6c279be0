"""One class for each image, by cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.tasks.task import Samples, Task


class Classification(Task):
    """Logits (B, classes) against labels int64 (B,)."""

    lipschitz = math.sqrt(2.0)  # the slope softmax − e_y is shorter, and comes close

    def targets(self, samples: Samples, ids: np.ndarray, **view: Any) -> Tensor:
        return samples.labels(ids)

    def wrong_shape(self, shape: tuple[int, ...], image: tuple[int, ...], classes: int) -> str:
        if shape == (classes,):
            return ""
        flat = "; end with nn.Flatten()" if math.prod(shape) == classes else ""
        return f"a vector of {classes}, a logit for each class{flat}"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets
