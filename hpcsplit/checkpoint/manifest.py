"""What the manifest of a checkpoint says, with every value of the kind that it must be."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hpcsplit.checkpoint import folder as ckpt
from hpcsplit.errors import CheckpointError
from hpcsplit.files.hdf5 import Stored

FORMAT = 2
_MOST_BYTES = 1 << 26
_AUX = {
    "slot": int,
    "epoch": (int, None),
    "rows": int,
    "dtype": str,
    "filled": {str: float},
    "checksums": {str: int},
    "boundaries": {str: int},
}
_KINDS: dict[str, Any] = {
    "epochs_done": int,
    "step": int,
    "cuts": [int],
    "fingerprints": {str: str},
    "config": str,
    "aux_mode": str,
    "aux_needed": int,
    "recomputed": int,
    "aux": [(_AUX, None)],
    "phases": str,
}
_JSON = ("cuts", "fingerprints", "aux")


@dataclass(frozen=True)
class Manifest:
    """A checkpoint after `epochs_done` whole epochs and `step` steps of the next one.

    Attributes:
        aux: what each stage's store says of its variables (Store.describe), None where it has none.
        phases: initials of the kinds of epochs that had been decided, where that happens during the run.
    """

    epochs_done: int
    step: int
    cuts: list[int]
    fingerprints: dict[str, str]
    config: str
    aux_mode: str
    aux_needed: int
    recomputed: int
    aux: list[dict[str, Any] | None]
    phases: str


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint, whose checksum is compared first.

    Raises:
        CheckpointError: it is absent, damaged or of another version, or a value in it is not what it must be.
    """
    values = Stored(ckpt.image(folder, ckpt.MANIFEST, _MOST_BYTES), folder / ckpt.MANIFEST).attributes
    if "format" in values and values["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {values['format']}, this program reads {FORMAT}; continue with the "
            "version that wrote it, or take another --run-dir"
        )
    values = {"phases": "", **values}
    for key, kind in _KINDS.items():
        if key not in values:
            raise _strange(folder, f"it has no {key}")
        if key in _JSON:
            values[key] = parsed(values[key])
        if not fits(values[key], kind):
            raise _strange(folder, f"its {key} is not what it must be")
    cuts = values["cuts"]
    if min(values["epochs_done"], values["step"]) < 0 or any(a >= b for a, b in zip([0, *cuts], cuts, strict=False)):
        raise _strange(folder, "its epochs, step or cuts cannot be")
    return Manifest(**{field.name: values[field.name] for field in fields(Manifest)})


def parsed(text: Any) -> Any:
    """The value of a JSON text; an empty tuple, which fits nothing, where it is none."""
    try:
        return json.loads(text) if isinstance(text, str) else ()
    except (ValueError, RecursionError):
        return ()


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind.

    Args:
        kind: a type (float takes whole numbers, too); None; (kind, ...) for one of these; [kind] for a list;
            {str: kind} for a dict with any keys; {"key": kind, ...} for one that has these.
    """
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(one, kind[0]) for one in value)
    if isinstance(kind, dict) and str in kind:
        return isinstance(value, dict) and all(fits(one, kind[str]) for one in value.values())
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], one) for key, one in kind.items())
    return value is None if kind is None else type(value) in ((int, float) if kind is float else (kind,))


def _strange(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder} is of another version of this program: its {ckpt.MANIFEST} cannot be understood "
        f"({reason}); use the version that wrote it"
    )
