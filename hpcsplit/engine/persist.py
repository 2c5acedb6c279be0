"""Saving a checkpoint and taking a run up again, as stage programs: every rank its own file, rank 0 the rest."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcsplit.boundary.store import Store
from hpcsplit.checkpoint import folder as ckpt
from hpcsplit.checkpoint.state import load_stage, stage_tensors
from hpcsplit.engine.job import Identity, Job
from hpcsplit.errors import CheckpointError, HpcsplitError, StoreError
from hpcsplit.files.atomic import sha256_file
from hpcsplit.files.hdf5 import read_attributes, read_tensors, write_tensors
from hpcsplit.schedule.actions import Save
from hpcsplit.wire.port import Share, Verb

FORMAT = 1


def save(job: Job, action: Save, have_aux: bool) -> Generator[Verb, Any, None]:
    """Write the checkpoint after an epoch; it counts once every file of every rank is on the disk."""
    if job.checkpoints is None:
        return
    job.where = str(action)
    try:
        yield from _save(job, action, have_aux)
    except OSError as error:
        raise StoreError(f"the checkpoint cannot be written: {error}; make room in {job.checkpoints}") from None


def _save(job: Job, action: Save, have_aux: bool) -> Generator[Verb, Any, None]:
    assert job.checkpoints is not None
    policy, done = job.save_policy.aux, action.epoch + 1
    name = ckpt.folder_name(done)
    if job.rank == 0:
        ckpt.begin(job.checkpoints, name)
    yield Share()
    folder = job.checkpoints / f"{name}.tmp"

    files = [ckpt.stage_file(job.rank)]
    write_tensors(
        folder / files[0], stage_tensors(job.stage), {"format": FORMAT, "stage": job.rank, "epochs_done": done}
    )
    aux: dict[str, Any] | None = None
    if job.store and have_aux and policy != "recompute":
        job.store.sync()
        if policy == "keep":
            aux = job.store.describe()
        elif action.need_aux:
            aux = job.store.describe()
            files += job.store.save(folder)
    sums = {file: sha256_file(folder / file) for file in files}
    parts = yield Share({"sums": sums, "aux": aux})

    if job.rank == 0:
        manifest: dict[str, str | int | float] = {
            "format": FORMAT,
            "epochs_done": done,
            "step": 0,
            "stages": job.stage.count,
            "cuts": json.dumps(job.identity.cuts),
            "fingerprints": json.dumps(dict(job.identity.fingerprints)),
            "config": job.identity.config_toml,
            "aux_mode": policy,
            "aux_needed": int(action.need_aux),
            "aux": json.dumps([part["aux"] for part in parts]),
        }
        write_tensors(folder / ckpt.MANIFEST, {}, manifest)
        everything = {ckpt.MANIFEST: sha256_file(folder / ckpt.MANIFEST)}
        for part in parts:
            everything |= part["sums"]
        ckpt.finish(folder, everything, job.keep_checkpoints)
    yield Share()
    if job.store:
        job.store.protect(aux["slot"] if aux and policy == "keep" and action.need_aux else None)


@dataclass(frozen=True)
class Start:
    """Where a run begins: at epoch 0, or behind a checkpoint."""

    first_epoch: int = 0
    have_aux: bool = False


def resume(job: Job) -> Generator[Verb, Any, Start]:
    """Continue from the newest complete checkpoint, if there is one.

    Raises:
        CheckpointError: the newest checkpoint is damaged or belongs to another run; the same on every rank.
    """
    job.where = "resume"
    verdict = None
    if job.rank == 0:
        verdict = _attempt(lambda: newest(job.checkpoints, job.identity))
    verdict = (yield Share(verdict))[0]
    _agree([verdict])
    if verdict["value"] is None:
        return Start()

    found = verdict["value"]
    folder = Path(found["folder"])
    problems = yield Share(_attempt(lambda: _load(job, folder)))
    _agree(problems)
    have_aux, reason = _take_up_aux(job, folder, found)
    answers = yield Share([have_aux, reason])
    have_aux = all(ok for ok, _ in answers)
    if job.store and not have_aux:
        job.store.protect(None)  # without the other stages' rows ours are of no use to that checkpoint
    job.observer.say(f"continuing after epoch {found['epochs_done']} from {folder}")
    if found["aux_needed"] and not have_aux:
        reasons = {why for _, why in answers if why}
        job.observer.say(f"the auxiliary variables are computed anew: {'; '.join(sorted(reasons))}")
    return Start(found["epochs_done"], have_aux)


def _attempt(action: Any) -> dict[str, Any]:
    """The value of a call, or the sentence it failed with: what one rank finds out, all must know."""
    try:
        return {"value": action(), "error": None}
    except HpcsplitError as error:
        return {"value": None, "error": str(error)}


def _agree(verdicts: list[dict[str, Any]]) -> None:
    for verdict in verdicts:
        if verdict["error"]:
            error = CheckpointError(verdict["error"])
            error.agreed = True
            raise error


def newest(checkpoints: Path | None, identity: Identity) -> dict[str, Any] | None:
    """The newest complete checkpoint if it can be continued with this identity, or None when there is none.

    Raises:
        CheckpointError: it is damaged or belongs to another run.  Nothing has been touched.
    """
    candidates = ckpt.complete(checkpoints) if checkpoints else []
    if not candidates:
        return None
    folder = candidates[0]
    ckpt.verify(folder, [ckpt.MANIFEST])
    manifest = read_attributes(folder / ckpt.MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {folder} has format {manifest.get('format')}; this program reads {FORMAT}")
    theirs, ours = json.loads(manifest["fingerprints"]), identity.fingerprints
    changed = [section for section in ours if theirs.get(section) != ours[section]]
    if changed:
        raise CheckpointError(
            f"checkpoint {folder} was made with another {' and '.join(changed)}: "
            f"{_differences(manifest['config'], identity, changed)}. Change it back, or take another --run-dir"
        )
    if tuple(json.loads(manifest["cuts"])) != identity.cuts:
        raise CheckpointError(
            f"checkpoint {folder} has {manifest['stages']} stages cut at {manifest['cuts']}, this run has "
            f"{identity.stages} cut at {list(identity.cuts)}: continuing with other cuts is not possible yet; "
            f"start with mpirun -n {manifest['stages']} and split.cuts = {manifest['cuts']}, or with another --run-dir"
        )
    missing = {ckpt.stage_file(k) for k in range(identity.stages)} - set(ckpt.listed(folder))
    if missing:
        raise ckpt.damaged(folder, f"{', '.join(sorted(missing))} is not listed in {ckpt.SUMS}")
    return {
        "folder": str(folder),
        "epochs_done": int(manifest["epochs_done"]),
        "aux_mode": manifest["aux_mode"],
        "aux_needed": bool(manifest["aux_needed"]),
        "aux": json.loads(manifest["aux"]),
    }


def _differences(theirs_toml: str, identity: Identity, sections: list[str]) -> str:
    """The lines of the two configurations that differ, theirs -> ours."""
    theirs, ours = (_by_key(text) for text in (theirs_toml, identity.config_toml))
    pairs = [
        f"{key} = {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
        for key in dict.fromkeys([*theirs, *ours])
        if key.split(".")[0] in [*sections, "run" if "seed" in sections else ""] and theirs.get(key) != ours.get(key)
    ]
    return "; ".join(pairs) or "the keys are the same, what they name is not"


def _by_key(text: str) -> dict[str, str]:
    keys, section = {}, ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif " = " in line:
            key, _, value = line.partition(" = ")
            keys[f"{section}.{key}"] = value
    return keys


def _load(job: Job, folder: Path) -> None:
    name = ckpt.stage_file(job.rank)
    mine = [f for f in ckpt.listed(folder) if f == name or f.startswith(f"aux-stage-{job.rank:03d}.")]
    ckpt.verify(folder, mine)
    tensors, _ = read_tensors(folder / name)
    load_stage(job.stage, tensors)


def _take_up_aux(job: Job, folder: Path, found: dict[str, Any]) -> tuple[bool, str]:
    """Whether this rank has the auxiliary variables of the checkpoint again, and why not."""
    if not job.own_variables():
        return True, ""
    description = found["aux"][job.rank]
    if job.store is None or description is None:
        return False, "the checkpoint has none (checkpoint.aux = recompute, or none were needed)"
    try:
        _adopt(job.store, folder, found["aux_mode"], description)
    except HpcsplitError as error:
        return False, str(error)
    if found["aux_mode"] == "keep" and found["aux_needed"]:
        job.store.protect(description["slot"])
    return True, ""


def _adopt(store: Store, folder: Path, mode: str, description: dict[str, Any]) -> None:
    if mode == "copy":
        store.restore(folder, description)
    else:
        store.adopt(description)
