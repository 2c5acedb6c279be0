"""The `export` command: the weights of a checkpoint as one state dict, for a program that knows torch alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hpcsplit.assemble import build_network
from hpcsplit.checkpoint.whole import digest
from hpcsplit.commands.saved import find, warn
from hpcsplit.errors import StoreError, UsageError
from hpcsplit.files.atomic import fsync_dir, sha256_file
from hpcsplit.nets.statedict import values_of
from hpcsplit.printable import printable
from hpcsplit.rundir import RunDir


def export_command(run: RunDir, name: str, config_path: Path | None, out: Path) -> int:
    """Write {name: tensor} to `out`, for torch.load(out, weights_only=True) and load_state_dict; the exit code."""
    _check_free(out)
    saved = find(run, name, config_path)
    saved.check("", "model")
    whole = saved.weights(build_network(saved.config, meta=True))
    weights = whole.weights
    save_new(out, values_of(weights))
    values = sum(t.numel() for t in weights.values())
    text = (
        f"{out}: {len(weights)} tensors, {values:,} values, {out.stat().st_size:,} bytes\n"
        f"checkpoint {saved.name} of {run.path}, {saved.position()}\n"
        f"weights_sha256 {digest(weights)}\n"
        f"sha256 of the file {sha256_file(out)}"
    )
    print(printable(text))
    if whole.buffers:
        warn(
            f"training has changed {', '.join(whole.buffers)}, registered with persistent=False: no state dict has "
            "them, so the exported network computes something else than the run's; make them persistent to have them"
        )
    return 0


def save_new(out: Path, weights: dict[str, Any]) -> None:
    """torch.save to a file that does not exist yet, atomically and durably.

    Raises:
        UsageError: it exists, or its folder does not.
        StoreError: it cannot be written.
    """
    fresh = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with open(fresh, "wb") as file:  # an open file: torch would put the name of a path into the archive
            torch.save(weights, file)
            file.flush()
            os.fsync(file.fileno())
        _check_free(out)  # again: writing takes a while
        os.replace(fresh, out)
        fsync_dir(out.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise StoreError(f"--out {out} cannot be written: {error}; make room, or choose another folder") from None
    finally:
        fresh.unlink(missing_ok=True)


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise UsageError(f"--out {out} is there already and is not overwritten; remove it, or choose another name")
    if not os.path.isdir(out.parent):
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
