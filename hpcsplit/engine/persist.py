"""Saving a checkpoint, as a stage program: every rank its own file, rank 0 the rest.  resume.py continues from it."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import msgspec

from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.state import stage_tensors
from hpcsplit.engine.job import Job
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.atomic import fsync_dir, write_failure
from hpcsplit.files.hdf5 import write_tensors
from hpcsplit.methods.contract import Tally
from hpcsplit.schedule.actions import Save
from hpcsplit.wire.port import Share, Verb


class _Tally(TypedDict):
    samples: int
    terms: dict[str, float]
    gap_sq: float
    aux_sq: float


class _Sums(TypedDict):
    tally: _Tally
    seconds: dict[str, float]
    sent_bytes: int


@dataclass
class EpochSums:
    """What the steps of an epoch under way have added up to, and where its time went; a checkpoint keeps it."""

    tally: Tally = field(default_factory=Tally)
    seconds: dict[str, float] = field(default_factory=dict)
    sent_bytes: int = 0

    def add_seconds(self, **parts: float) -> None:
        for name, value in parts.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: Any) -> EpochSums | None:
        """None where it is not what `to_json` has written."""
        values = manifest.parsed(text)
        if not manifest.is_of(values, _Sums):
            return None
        return msgspec.convert(values, cls)


def save(job: Job, action: Save, have_aux: bool, sums: EpochSums) -> Generator[Verb, Any, None]:
    """Write the checkpoint; it counts once every file of every rank is on the disk."""
    if job.checkpoints is None:
        return
    job.where = str(action)
    try:
        policy, name = job.save_policy.aux, ckpt.folder_name(action.epochs_done, action.step)
        if job.rank == 0:
            ckpt.begin(job.checkpoints, name)
        yield Share()
        folder = job.checkpoints / f"{name}.tmp"

        file, position = ckpt.stage_file(job.rank), manifest.position(action.epochs_done, action.step)
        attributes = position | {"stage": job.rank, "sums": sums.to_json()}
        sums_of = {file: write_tensors(folder / file, stage_tensors(job.stage), attributes)}
        aux: dict[str, Any] | None = None
        if job.store and have_aux and policy != "recompute":
            job.store.sync()
            if policy == "keep":
                aux = job.store.describe()
            elif action.need_aux:
                aux = job.store.describe()
                sums_of |= job.store.save(folder)
        fsync_dir(folder)
        parts = yield Share({"sums": sums_of, "aux": aux, "left_out": job.stage.besides.attributes()})

        if job.rank == 0:
            _say_what_is_left_out(job, [name for part in parts for name in part["left_out"]])
            said = manifest.Manifest(
                epochs_done=action.epochs_done,
                step=action.step,
                cuts=list(job.identity.cuts),
                fingerprints={**job.identity.fingerprints, **job.identity.code},
                config=job.identity.config_toml,
                provenance=job.provenance,
                aux_mode=policy,
                aux_needed=action.need_aux,
                aux=[part["aux"] for part in parts],
                recomputed=action.recomputed,
                phases=action.phases,
                origin=job.identity.origin.to_json() if job.identity.origin else "",
                inputs=dict(job.inputs),
            )
            everything = {ckpt.MANIFEST: manifest.write(folder, said)}
            for part in parts:
                everything |= part["sums"]
            job.still_ours()
            ckpt.finish(folder, everything, job.keep_checkpoints, best=action.best)
        yield Share()
        if job.store:
            job.store.protect(aux["slot"] if aux and policy == "keep" and action.need_aux else None)
    except OSError as error:
        raise write_failure(error.filename or job.checkpoints, error) from error
    job.saved_at = time.monotonic()


def _say_what_is_left_out(job: Job, names: list[str], most: int = 5) -> None:
    """Once a start: what else of the network training changes."""
    if not names or job.said_left_out:
        return
    job.said_left_out = True
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    job.observer.say(
        f"warning: training changes {shown}, which no checkpoint keeps, so a run that is stopped and continued may "
        "differ from one that is not; make it a buffer, or return it from get_extra_state"
    )
