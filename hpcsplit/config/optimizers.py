"""The one list of optimizers: a new one is an entry here, and a file with its class where torch does not have it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from hpcsplit.config.option import names_code
from hpcsplit.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    """What the program knows of an optimizer without importing it."""

    kind: str  # its class, "module:class"; it takes `lr`, and these where they are true
    momentum: bool = False
    betas: bool = False
    decay: bool = True  # `weight_decay`
    fused: bool = False  # steps all real weights in one kernel: a third to a seventh of the time


OPTIMIZERS = {
    "sgd": Optimizer("torch.optim:SGD", momentum=True, fused=True),
    "adam": Optimizer("torch.optim:Adam", betas=True, fused=True),
    "adamw": Optimizer("torch.optim:AdamW", betas=True, fused=True),
    "adagrad": Optimizer("torch.optim:Adagrad"),
    "adadelta": Optimizer("torch.optim:Adadelta"),
    "rmsprop": Optimizer("torch.optim:RMSprop", momentum=True),
    "nadam": Optimizer("torch.optim:NAdam", betas=True),
    "radam": Optimizer("torch.optim:RAdam", betas=True),
    "adamax": Optimizer("torch.optim:Adamax", betas=True),
    "adafactor": Optimizer("torch.optim:Adafactor"),
    "rprop": Optimizer("torch.optim:Rprop", decay=False),
    "muon": Optimizer("hpcsplit.stage.matrices:Muon", momentum=True),
    "rotated-adam": Optimizer("hpcsplit.stage.matrices:RotatedAdam", betas=True),
}
FACTORY = "package.module:factory"
_REFUSED = {
    "lbfgs": "it computes the loss several times in a step, each time through all stages",
    "sparseadam": "it takes sparse gradients alone, and those of a network are not",
}


def known_name(name: str) -> str:
    """The name as this list spells it; torch's classes in capitals mean the same, with torch.optim in front or without.
    A function of the user's stays as it is.  ConfigError for any other."""
    if names_code(name):
        return name
    plain = name.lower().removeprefix("torch.").removeprefix("optim.")
    if plain in OPTIMIZERS:
        return plain
    if plain in _REFUSED:
        raise ConfigError(f'optim.name = "{name}": {_REFUSED[plain]}; take another, such as "adamw"')
    close = difflib.get_close_matches(plain, OPTIMIZERS, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f'optim.name = "{name}" is not one of {", ".join((*OPTIMIZERS, FACTORY))}{hint}')
