"""The manifest of a checkpoint: what it says, and its attributes in a file, read and written here alone."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict, get_origin, get_type_hints

import msgspec

from hpcsplit.errors import CheckpointError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import Attribute, Stored, write_tensors

FORMAT = 2
_MOST_BYTES = 1 << 26
_LATER = ("origin", "inputs")  # where they are empty, the file is that of the versions before


class Description(TypedDict):
    """What a stage's store says of its variables (Store.describe)."""

    slot: int
    epoch: int | None
    rows: int
    dtype: str
    filled: dict[str, float]
    checksums: dict[str, int]
    boundaries: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checkpoint after `epochs_done` whole epochs and `step` steps of the next one; JSON by `vars`.

    The fields are the attributes of the file, in its order; lists and dicts are JSON there, bools are 0 or 1.  A field
    with a default is absent from older files.
    """

    epochs_done: int
    step: int
    cuts: list[int]
    fingerprints: dict[str, str]
    config: str
    provenance: str = ""
    aux_mode: str
    aux_needed: bool
    aux: list[Description | None]  # for each stage, None where it has no variables or the checkpoint needs none
    recomputed: bool
    phases: str = ""  # initials of the kinds of epochs that had been decided, where that happens during the run
    origin: str = ""  # the checkpoint of another run that the run has begun with, as JSON (origin.py)
    inputs: dict[str, Any] = field(default_factory=dict)  # what one must know who has no data (data/inputs.py)


def position(epochs_done: int, step: int) -> dict[str, Attribute]:
    """The attributes with which the manifest and the file of every stage begin."""
    return {"format": FORMAT, "epochs_done": epochs_done, "step": step}


def write(folder: Path, manifest: Manifest) -> str:
    """Write a new manifest durably; the SHA-256 of its content.  StoreError when it cannot be written."""
    values = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    own = {name: _encoded(value) for name, value in values.items() if value or name not in _LATER}
    begin = position(manifest.epochs_done, manifest.step) | {"stages": len(manifest.cuts) + 1}
    return write_tensors(folder / ckpt.MANIFEST, {}, begin | own)


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint, whose checksum is compared first.  CheckpointError where it is absent, damaged or
    of another version, or a value in it is not what it must be."""
    attributes = Stored(ckpt.image(folder, ckpt.MANIFEST, _MOST_BYTES), folder / ckpt.MANIFEST).attributes
    if "format" not in attributes:
        raise _strange(folder, "it has no format")
    if attributes["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {attributes['format']!r}, this program reads {FORMAT}; continue with the "
            "version that wrote it, or take another --run-dir"
        )
    kinds, values = get_type_hints(Manifest), dict[str, Any]()
    for each in fields(Manifest):
        name, kind = each.name, kinds[each.name]
        if name in attributes:
            value = parsed(attributes[name]) if get_origin(kind) else attributes[name]
            values[name] = bool(value) if kind is bool and type(value) is int else value
            if not is_of(values[name], kind):
                raise _strange(folder, f"its {name} is not what it must be")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise _strange(folder, f"it has no {name}")
    manifest = Manifest(**values)
    cuts = manifest.cuts
    if min(manifest.epochs_done, manifest.step) < 0 or any(a >= b for a, b in zip([0, *cuts], cuts, strict=False)):
        raise _strange(folder, "its epochs, step or cuts cannot be")
    return manifest


def _encoded(value: Any) -> Attribute:
    if isinstance(value, list | dict):
        return json.dumps(value)
    return int(value) if isinstance(value, bool) else value


def parsed(text: Any) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a type; of a TypedDict the keys are there, and maybe others."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _strange(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder} is of another version of this program: its {ckpt.MANIFEST} cannot be understood "
        f"({reason}); use the version that wrote it"
    )
