"""The one list of optimizers: a new one is an entry here, and a file with its class where torch does not have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """What the program knows of an optimizer without importing it."""

    kind: str  # its class, "module:class"; it takes `lr` and `weight_decay`, and these two where they are true
    momentum: bool = False
    betas: bool = False
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
    "muon": Optimizer("hpcsplit.stage.matrices:Muon", momentum=True),
    "rotated-adam": Optimizer("hpcsplit.stage.matrices:RotatedAdam", betas=True),
}
