"""The `export` command: the weights of a checkpoint as one state dict, for a program that knows torch alone."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from hpcsplit.checkpoint.state import digest
from hpcsplit.commands.saved import find, warn
from hpcsplit.errors import UsageError
from hpcsplit.files.atomic import write_bytes, write_failure
from hpcsplit.host.printable import printable
from hpcsplit.nets.statedict import values_of
from hpcsplit.run.folder import RunDir


def export_command(run: RunDir, name: str, config_path: Path | None, out: Path, *, average: bool = False) -> int:
    """Write {name: tensor}, or with `average` the moving average of the weights, to `out`, for
    torch.load(out, weights_only=True) and load_state_dict; the exit code."""
    _check_free(out)
    saved = find(run, name, config_path, average=average)
    saved.check("", "model")
    whole = saved.weights()
    weights = whole.weights
    sha256 = save_new(out, values_of(weights))
    values = sum(t.numel() for t in weights.values())
    of = "the average of the weights of " if average else ""
    text = (
        f"{out}: {len(weights)} tensors, {values:,} values, {out.stat().st_size:,} bytes\n"
        f"{of}checkpoint {saved.name} of {run.path}, {saved.position()}\n"
        f"weights_sha256 {digest(weights)}\n"
        f"sha256 of the file {sha256}"
    )
    print(printable(text))
    if whole.buffers:
        warn(
            f"training has changed {', '.join(whole.buffers)}, registered with persistent=False: no state dict has "
            "them, so the exported network computes something else than the run's; make them persistent to have them"
        )
    return 0


def save_new(out: Path, weights: dict[str, Any]) -> str:
    """torch.save to a file that does not exist yet, atomically and durably; the SHA-256 of its content.

    Raises:
        UsageError: it exists, or its folder does not.
        StoreError: it cannot be written.
    """
    image = io.BytesIO()  # torch overlooks what a disk refuses, and puts the name of a path into the archive
    torch.save(weights, image)
    _check_free(out)  # again: making it takes a while
    try:
        write_bytes(out, image.getbuffer())
    except OSError as error:
        raise write_failure(out, error, image.getbuffer().nbytes) from None
    return hashlib.sha256(image.getbuffer()).hexdigest()


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise UsageError(f"--out {out} is there already and is not overwritten; remove it, or choose another name")
    if not os.path.isdir(out.parent):
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
