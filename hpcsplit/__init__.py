"""Layer-parallel training of deep networks with auxiliary variables, over MPI.

>>> import hpcsplit
>>> run = hpcsplit.train("config.toml", optim={"lr": 0.05})         # doctest: +SKIP
>>> run.summary["test_accuracy"], run.load_model()                  # doctest: +SKIP

Importing this imports nothing heavy: each public name is looked up when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcsplit.commands.library import train
    from hpcsplit.commands.own_loop import Split, split
    from hpcsplit.commands.past import Run
    from hpcsplit.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        HpcsplitError,
        LaunchError,
        NumericalError,
        StoreError,
        UsageError,
    )

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HpcsplitError",
    "LaunchError",
    "NumericalError",
    "Run",
    "Split",
    "StoreError",
    "UsageError",
    "__version__",
    "split",
    "train",
]
_PLACES = {"train": "library", "Run": "past", "Split": "own_loop", "split": "own_loop"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"hpcsplit has no {name}; it has {', '.join(__all__)}")
    from pkgutil import resolve_name

    module = f"hpcsplit.commands.{_PLACES[name]}" if name in _PLACES else "hpcsplit.errors"
    value = globals()[name] = resolve_name(f"{module}:{name}")
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
