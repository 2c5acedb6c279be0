"""The names of networks, known without torch."""

from __future__ import annotations

import re

from hpcsplit.errors import ConfigError


def check_model_name(name: str) -> None:
    """Raise ConfigError for a network name that no builder knows."""
    if found := re.fullmatch(r"resnet(\d{1,4})(?:-vae)?", name):
        depth = int(found[1])
        if depth < 8 or (depth - 2) % 6:
            below = max(8, depth - (depth - 2) % 6)
            raise ConfigError(
                f'model.name = "{name}": a residual network has 6n+2 layers; '
                f"the nearest are resnet{below} and resnet{below + 6}"
            )
    elif found := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,2})", name):
        depth, width = int(found[1]), int(found[2])
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ConfigError(f'model.name = "{name}": wrn-D-W needs D = 6n+4 (10, 16, 22, 28, 34, 40 ...) and W >= 1')
    elif name not in ("mlp", "cnn", "tssm-resnet") and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ConfigError(
            f'model.name = "{name}" is not resnetN or resnetN-vae (N < 10,000), wrn-D-W (D < 1,000, W < 100), '
            "mlp, cnn, tssm-resnet or package.module:factory"
        )
