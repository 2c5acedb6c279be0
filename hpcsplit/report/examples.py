"""What a network makes of the test set: confusion matrix and worst samples, or images and their reconstructions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from hpcsplit.report.figure import figure_of, inline, look

WORST = 12  # samples that are shown
LEGIBLE = 20  # classes up to which every cell has its number
PAIRS = 10  # of classes that are most often mistaken for each other
SHOWN = 12  # of the test set's first images


@dataclass(frozen=True)
class Wrong:
    """A test sample that was given another class than its own; `image` is uint8 (H, W, C)."""

    sample: int
    label: int
    predicted: int
    chance: float
    loss: float
    image: np.ndarray


@dataclass(frozen=True)
class Mistakes:
    """Of one checkpoint on the whole test set."""

    source: str  # the checkpoint, in words
    names: Sequence[str]  # of the classes
    confusion: np.ndarray  # int (classes, classes): samples by their own class (row) and the predicted one (column)
    worst: Sequence[Wrong]  # the wrong samples with the largest loss, largest first

    def pairs(self) -> list[tuple[str, int, str]]:
        """The classes most often taken for another one, how many samples, and which share of their class."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        most = [divmod(int(k), len(self.names)) for k in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]]
        sizes = self.confusion.sum(axis=1)
        return [
            (f"{self.names[a]} as {self.names[b]}", wrong[a, b], f"{wrong[a, b] / sizes[a]:.1%}")
            for a, b in most
            if wrong[a, b]
        ]

    def matrix(self) -> Markup:
        """The confusion matrix as SVG; each cell has the colour of its share of the row."""
        names = self.names
        with look():
            figure, panel = figure_of(5.2, 4.8)
            share = self.confusion / np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
            image = panel.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
            panel.set(xlabel="predicted class", ylabel="true class")
            if len(names) <= LEGIBLE:
                slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
                turned = slanted if max(map(len, names)) > 2 else {}
                panel.set_xticks(range(len(names)), names, **turned, parse_math=False)
                panel.set_yticks(range(len(names)), names, parse_math=False)
                for a, b in np.argwhere(self.confusion):
                    colour = "white" if share[a, b] > 0.6 else "black"
                    panel.text(b, a, str(self.confusion[a, b]), ha="center", va="center", color=colour, fontsize=9)
            figure.colorbar(image, ax=panel, label="share of the true class", shrink=0.8)
            return inline(figure, "confusion matrix")


@dataclass(frozen=True)
class Reconstructions:
    """Test images beside what a generating network makes of them (DS-SPH, Figure 6)."""

    source: str  # the checkpoint, in words
    pairs: Sequence[tuple[np.ndarray, np.ndarray]]  # an image and its reconstruction, uint8 (H, W, C)
    loss: Sequence[float]  # of each pair the mean square error in units of the normalised image


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): how many samples of each class (row) were given each class (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def worst(labels: np.ndarray, predicted: np.ndarray, loss: np.ndarray, most: int = WORST) -> list[int]:
    """The wrong samples with the largest loss, largest first; of equals the earlier one."""
    wrong = np.flatnonzero(labels != predicted)
    return [int(k) for k in wrong[np.argsort(-loss[wrong], kind="stable")][:most]]


def address(image: np.ndarray) -> str:
    """An image uint8 (H, W, C) as a data: address."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
