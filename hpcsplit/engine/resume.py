"""Taking a run up again, as a stage program: from a checkpoint of these cuts or of any others.

Everything in a checkpoint is named by its place in the whole network, not by the rank that wrote it: weights and
optimizer state by layer, auxiliary variables by the block that they stand before.  So each rank reads what its blocks
need from the files that have it.  Variables at a boundary that is new are computed by a forward pass.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpcsplit.boundary.store import Store
from hpcsplit.checkpoint import folder as ckpt
from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.state import check_headers, load_stage
from hpcsplit.config import differences
from hpcsplit.engine.job import Identity, Job
from hpcsplit.engine.persist import EpochSums
from hpcsplit.errors import CheckpointError, HpcsplitError
from hpcsplit.files.hdf5 import Stored
from hpcsplit.nets.code import FUNCTION, NETWORK, change_of, said_of
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.hybrid import of_initials
from hpcsplit.split.cuts import ranges
from hpcsplit.split.stage import Stage
from hpcsplit.wire.port import Share, Verb

LEFT_OUT = "mini-batches in flight, networks and variables of a stage's own, or rows to measure with"


@dataclass(frozen=True)
class Start:
    """Where a run begins: at epoch 0, or behind a checkpoint.

    Attributes:
        missing: this stage's auxiliary variables that the checkpoint does not have, while it has others.
        missing_anywhere: whether any stage misses some.
        epoch: sums of the epoch under way.
        phases: the kinds of epochs that had been decided, where that happens during the run.
    """

    first_epoch: int = 0
    first_step: int = 0
    have_aux: bool = False
    missing: frozenset[str] = frozenset()
    missing_anywhere: bool = False
    recomputed: bool = False
    epoch: EpochSums = field(default_factory=EpochSums)
    phases: Sequence[Phase] = ()


@dataclass(frozen=True)
class Found:
    """What the manifest of a checkpoint says; JSON by `vars`."""

    folder: str
    epochs_done: int
    step: int
    cuts: list[int]
    aux_mode: str
    aux_needed: bool
    recomputed: bool
    aux: list[dict[str, Any] | None]
    phases: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        within = f"step {self.step} of epoch {self.epochs_done + 1}" if self.step else f"epoch {self.epochs_done}"
        return f"{within} from {self.folder}"


def resume(job: Job) -> Generator[Verb, Any, Start]:
    """Continue from the newest complete checkpoint, if there is one.

    Raises:
        CheckpointError: the newest checkpoint is damaged or belongs to another run; the same on every rank.
    """
    job.where = "resume"
    verdict = None
    if job.rank == 0:
        verdict = _attempt(lambda: _plain(newest(job.checkpoints, job.identity)))
    verdict = (yield Share(verdict))[0]
    _agree([verdict])
    if verdict["value"] is None:
        return Start()

    found = Found(**verdict["value"])
    recut = tuple(found.cuts) != job.identity.cuts
    sums: list[EpochSums] = []
    loaded = yield Share(_attempt(lambda: _load(job, found, recut, sums)))
    _agree(loaded)
    job.observer.say(f"continuing after {found.name}")
    if found.note:
        job.observer.say(found.note)
    if recut:
        job.observer.say(f"the stages were cut at {found.cuts} and are cut at {list(job.identity.cuts)} now")
        if any(verdict["value"] for verdict in loaded):
            job.observer.say("what only stages with the old cuts could go on with is left out: " + LEFT_OUT)
    aux = yield from _auxiliary(job, found, recut)
    return Start(found.epochs_done, found.step, *aux, found.recomputed, sums[0], of_initials(found.phases))


def _plain(found: Found | None) -> dict[str, Any] | None:
    return None if found is None else dict(vars(found))


def _attempt(action: Callable[[], Any]) -> dict[str, Any]:
    """The value of a call, or the sentence it failed with: what one rank finds out, all must know."""
    try:
        return {"value": action(), "error": None}
    except HpcsplitError as error:
        return {"value": None, "error": str(error)}


def _agree(verdicts: list[dict[str, Any]]) -> None:
    for verdict in verdicts:
        if verdict["error"]:
            raise CheckpointError(verdict["error"]).on_all_ranks()


# ------------------------------------------------------------------------------------------------ which checkpoint


def newest(checkpoints: Path | None, identity: Identity) -> Found | None:
    """The newest complete checkpoint if it can be continued with this identity, or None when there is none.

    Raises:
        CheckpointError: it is damaged or belongs to another run.  Nothing has been touched.
    """
    candidates = ckpt.complete(checkpoints) if checkpoints else []
    if not candidates:
        return None
    folder = candidates[0]
    found = manifest.read(folder)
    theirs, ours = found.fingerprints, identity.fingerprints
    changed = [section for section in ours if section != NETWORK and theirs.get(section) != ours[section]]
    if changed:
        keys = differences(_tables(found.config), _tables(identity.config_toml), changed)
        raise CheckpointError(
            f"checkpoint {folder} was made with another {' and '.join(changed)}: "
            f"{keys or 'the keys are the same, what they name is not'}. Change it back, or take another --run-dir"
        )
    note = _code_note(folder, theirs, identity)
    return Found(
        folder=str(folder),
        epochs_done=found.epochs_done,
        step=found.step,
        cuts=found.cuts,
        aux_mode=found.aux_mode,
        aux_needed=bool(found.aux_needed),
        recomputed=bool(found.recomputed),
        aux=found.aux,
        phases=found.phases,
        note=note,
    )


def _code_note(folder: Path, theirs: Mapping[str, str], identity: Identity) -> str:
    """What is to be said of the network's code; CheckpointError where it computes something else, unaccepted."""
    change = change_of(theirs, {**identity.fingerprints, **identity.code})
    if change == FUNCTION and not identity.accepts_code:
        raise CheckpointError(
            f"checkpoint {folder} was made with another network: what it computes has changed. Change the code back, "
            "take another --run-dir, or go on with the code as it is now by --checkpoint.changed_code accept"
        )
    return said_of(change, folder.name)


def _tables(toml: str) -> dict[str, Any]:
    try:
        return tomllib.loads(toml)
    except (ValueError, RecursionError):  # of somebody else's checkpoint
        return {}


# ------------------------------------------------------------------------------------------------ weights


def _load(job: Job, found: Found, recut: bool, sums: list[EpochSums]) -> bool:
    """Take up weights, optimizer state and carry of this stage's blocks, and append to `sums` what the epoch under way
    has added up to; whether something was left out that belongs to a stage with other cuts.

    CheckpointError where a file that this stage needs, its copied rows included, is damaged.
    """
    stage, folder = job.stage, Path(found.folder)
    blocks, left_out = set(stage.block_numbers), False
    sums.append(EpochSums())
    tensors: dict[str, torch.Tensor] = {}
    for k, theirs in enumerate(ranges(tuple(found.cuts), stage.net_blocks)):
        if blocks.isdisjoint(theirs):
            continue
        stored = Stored(ckpt.image(folder, ckpt.stage_file(k)), folder / ckpt.stage_file(k))
        everything = blocks.issuperset(theirs)
        wanted = [key for key in stored.headers if everything or _belongs(key, stage)]
        if recut:
            stays = [key for key in wanted if not key.startswith("carry/stage/")]
            left_out = left_out or any(key.startswith("carry/stage/") for key in stored.headers)
            wanted = stays
        check_headers(stage, {key: stored.headers[key] for key in wanted})
        tensors |= {key: stored.tensor(key) for key in wanted}
        if theirs.stop == stage.block_numbers.stop:  # its loss and its violation are those of the blocks before there
            sums[0] = _sums(folder, ckpt.stage_file(k), stored.attributes)
    if job.store and found.aux_mode == "copy" and (described := _described(job.store, found.aux)):
        ckpt.verify(folder, map(job.store.identity.saved_name, described["checksums"]))
    load_stage(stage, tensors)
    return left_out


def _sums(folder: Path, file: str, attributes: Mapping[str, Any]) -> EpochSums:
    if (sums := EpochSums.from_json(attributes.get("sums"))) is None:
        raise ckpt.damaged(folder, f"{file} does not say what the epoch under way has added up to")
    return sums


def _belongs(key: str, stage: Stage) -> bool:
    """Whether a tensor of a checkpoint (checkpoint/state.py) is one of this stage's."""
    kind, _, name = key.partition("/")
    first = name.partition(".")[0]
    if kind == "carry":
        return not re.fullmatch(r"\d+", first) or int(first) in stage.block_numbers
    return first in dict(stage.blocks.named_children())


# ------------------------------------------------------------------------------------------------ auxiliary variables


def _auxiliary(job: Job, found: Found, recut: bool) -> Generator[Verb, Any, tuple[bool, frozenset[str], bool]]:
    """Take up the auxiliary variables; whether there are any, which ones this stage misses, whether any stage does."""
    store = job.store
    missing, reason = _take_up(store, found) if store else ([], "no epoch is parallel" if job.own_variables() else "")
    names = {name: field.file_stem for name, field in store.fields.items()} if store else {}
    kept = [names[name] for name in names if name not in missing]
    answers = yield Share({"kept": kept, "missing": [names[name] for name in missing], "why": reason})
    everyone = {key: sorted({stem for answer in answers for stem in answer[key]}) for key in ("kept", "missing")}
    reasons = sorted({answer["why"] for answer in answers if answer["why"]})
    if store and recut:
        store.keep_only([*everyone["kept"], *everyone["missing"]])
    if reasons or not everyone["kept"]:
        if store:
            store.protect(None)  # without the other stages' rows ours are of no use to that checkpoint
        if found.aux_needed and everyone["missing"]:
            why = "; ".join(reasons) or "the checkpoint has those of other boundaries"
            job.observer.say(f"the auxiliary variables are computed anew: {why}")
        return not (reasons or everyone["missing"]), frozenset(), False
    if recut and found.aux_needed:
        job.observer.say(f"auxiliary variables taken up: {', '.join(everyone['kept'])}")
        if everyone["missing"]:
            job.observer.say(f"auxiliary variables computed anew at new boundaries: {', '.join(everyone['missing'])}")
    return True, frozenset(missing), bool(everyone["missing"])


def _take_up(store: Store, found: Found) -> tuple[list[str], str]:
    """The variables that the checkpoint does not have for this stage; all of them with the reason when it fails."""
    description = _described(store, found.aux)
    if description is None:
        whole = all(aux is None for aux in found.aux)
        none = "the checkpoint has none (checkpoint.aux = recompute, or none were needed)"
        return list(store.fields), none if whole else ""
    try:
        if found.aux_mode == "copy":
            store.restore(Path(found.folder), description)
        else:
            store.adopt(description)
    except HpcsplitError as error:
        return list(store.fields), str(error)
    if found.aux_mode == "keep" and found.aux_needed:
        store.protect(description["slot"])
    return store.identity.absent(description), ""


def _described(store: Store, descriptions: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """What the stages of the checkpoint say of this stage's variables, as one description; None when nothing."""
    merged: dict[str, Any] | None = None
    for theirs in descriptions:
        names = [name for name, field in store.fields.items() if theirs and _has(theirs, name, field.boundary)]
        if not theirs or not names:
            continue
        generation = {key: theirs[key] for key in ("slot", "epoch", "rows", "dtype")}
        merged = merged or {**generation, "filled": {}, "checksums": {}}
        if any(merged[key] != value for key, value in generation.items()):
            continue
        for key in ("filled", "checksums"):
            merged[key] |= {name: theirs[key][name] for name in names if name in theirs[key]}
    return merged


def _has(description: Mapping[str, Any], name: str, boundary: int) -> bool:
    return description["boundaries"].get(name) == boundary
