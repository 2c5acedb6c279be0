"""Taking a run up again, as a stage program: from a checkpoint of these cuts or of any others.

Everything in a checkpoint is named by its place in the whole network, not by the rank that wrote it: weights and
optimizer state by layer, auxiliary variables by the block that they stand before.  So each rank reads what its blocks
need from the files that have it.  Variables at a boundary that is new are computed by a forward pass.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.manifest import Manifest
from hpcsplit.checkpoint.state import check_headers, load_stage
from hpcsplit.config import differences
from hpcsplit.engine.job import Identity, Job
from hpcsplit.engine.persist import EpochSums
from hpcsplit.errors import CheckpointError, HpcsplitError, LaunchError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import Stored
from hpcsplit.nets.catalog import of_earlier
from hpcsplit.nets.code import FUNCTION, NETWORK, change_of, said_of
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.hybrid import of_initials
from hpcsplit.stage.carry import block_of, of_cuts
from hpcsplit.stage.cuts import ranges
from hpcsplit.stage.stage import Stage
from hpcsplit.store.store import Store
from hpcsplit.wire.port import Share, Verb

T = TypeVar("T")
LEFT_OUT = "mini-batches in flight, networks and variables of a stage's own, or rows to measure with"


@dataclass
class State:
    """Where a run begins, at epoch 0 or behind a checkpoint, and what a rank carries on from action to action."""

    first_epoch: int = 0
    first_step: int = 0
    have_aux: bool = False
    missing: frozenset[str] = frozenset()  # this stage's variables that are absent, while it has others
    missing_anywhere: bool = False  # on any stage
    recomputed: bool = False
    epoch: EpochSums = field(default_factory=EpochSums)  # of the epoch under way
    phases: Sequence[Phase] = ()  # the kinds of epochs that had been decided, where that happens during the run
    refresh_s: float = 0.0
    save_s: float = 0.0


def resume(job: Job) -> Generator[Verb, Any, State]:
    """Continue from the newest complete checkpoint, if there is one.  CheckpointError, the same on every rank, where it
    is damaged or belongs to another run."""
    job.where = "resume"
    _, (known, *_) = yield from _all_learn(
        lambda: newest(job.checkpoints, job.identity) if job.rank == 0 else None,
        lambda newest: newest and (str(newest[0]), vars(newest[1])),
    )
    if known is None:
        return State()

    folder, saved = Path(known[0]), Manifest(**known[1])
    recut = tuple(saved.cuts) != job.identity.cuts
    (sums, _), left_out = yield from _all_learn(lambda: _load(job, folder, saved, recut), lambda loaded: loaded[1])
    within = f"step {saved.step} of epoch {saved.epochs_done + 1}" if saved.step else f"epoch {saved.epochs_done}"
    job.observer.say(f"continuing after {within} from {folder}")
    if note := said_of(_code_change(saved, job.identity), folder.name):
        job.observer.say(note)
    if recut:
        job.observer.say(f"the stages were cut at {saved.cuts} and are cut at {list(job.identity.cuts)} now")
        if any(left_out):
            job.observer.say("what only stages with the old cuts could go on with is left out: " + LEFT_OUT)
    aux = yield from _auxiliary(job, folder, saved, recut)
    return State(saved.epochs_done, saved.step, *aux, saved.recomputed, sums, of_initials(saved.phases))


def _all_learn(find: Callable[[], T], said: Callable[[T], Any]) -> Generator[Verb, Any, tuple[T, list[Any]]]:
    """What this rank finds out, and what each rank says of it, by rank: JSON values.  CheckpointError, the same on
    every rank, where one has failed."""
    try:
        mine = find()
        report = {"error": "", "said": said(mine)}
    except LaunchError:  # of this process, not of what it looked at
        raise
    except HpcsplitError as error:
        report = {"error": str(error)}
    reports = yield Share(report)
    for each in reports:
        if each["error"]:
            raise CheckpointError(each["error"]).on_all_ranks()
    return mine, [each["said"] for each in reports]


def newest(checkpoints: Path | None, identity: Identity) -> tuple[Path, Manifest] | None:
    """The newest complete checkpoint if it can be continued with this identity, or None when there is none.
    CheckpointError where it is damaged or belongs to another run.  Nothing is touched."""
    candidates = ckpt.complete(checkpoints) if checkpoints else []
    if not candidates:
        return None
    folder = candidates[0]
    saved = manifest.read(folder)
    theirs, ours = saved.fingerprints, identity.fingerprints
    changed = [section for section in ours if section != NETWORK and theirs.get(section) != ours[section]]
    if changed:
        keys = differences(_tables(saved.config), _tables(identity.config_toml), changed)
        raise CheckpointError(
            f"checkpoint {folder} was made with another {' and '.join(changed)}: "
            f"{keys or 'the keys are the same, what they name is not'}. Change it back, or take another --run-dir"
        )
    if _code_change(saved, identity) == FUNCTION and not identity.accepts_code:
        raise CheckpointError(
            f"checkpoint {folder} was made with another network: what it computes has changed. Change the code back, "
            "take another --run-dir, or go on with the code as it is now by --checkpoint.changed_code accept"
        )
    return folder, saved


def _code_change(saved: Manifest, identity: Identity) -> str:
    return change_of(saved.fingerprints, {**identity.fingerprints, **identity.code})


def _tables(toml: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(toml)
        tables["model"]["name"] = of_earlier(tables["model"]["name"])
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # of somebody else's checkpoint
        return {}
    return tables


def _load(job: Job, folder: Path, saved: Manifest, recut: bool) -> tuple[EpochSums, bool]:
    """Take up weights, optimizer state and carry of this stage's blocks; what the epoch under way has added up to, and
    whether something was left out that belongs to a stage with other cuts.  CheckpointError where a file that this
    stage needs, its copied rows included, is damaged."""
    stage, sums = job.stage, EpochSums()
    blocks, left_out = set(stage.block_numbers), False
    tensors: dict[str, torch.Tensor] = {}
    for k, theirs in enumerate(ranges(tuple(saved.cuts), stage.net_blocks)):
        if blocks.isdisjoint(theirs):
            continue
        file = ckpt.stage_file(k)
        stored = Stored(ckpt.image(folder, file), folder / file)
        everything = blocks.issuperset(theirs)
        lost = {key for key in stored.headers if recut and of_cuts(key.removeprefix("carry/"))}
        wanted = [key for key in stored.headers if key not in lost and (everything or _belongs(key, stage))]
        left_out = left_out or bool(lost)
        check_headers(stage, {key: stored.headers[key] for key in wanted})
        tensors |= {key: stored.tensor(key) for key in wanted}
        if theirs.stop == stage.block_numbers.stop:  # its loss and its violation are those of the blocks before there
            if (found := EpochSums.from_json(stored.attributes.get("sums"))) is None:
                raise ckpt.damaged(folder, f"{file} does not say what the epoch under way has added up to")
            sums = found
    if job.store and saved.aux_mode == "copy" and (described := _described(job.store, saved.aux)):
        ckpt.verify(folder, map(job.store.schema.saved_name, described["checksums"]))
    load_stage(stage, tensors)
    return sums, left_out


def _belongs(key: str, stage: Stage) -> bool:
    """Whether a tensor of a checkpoint (checkpoint/state.py) is one of this stage's."""
    kind, _, name = key.partition("/")
    if kind == "carry":
        return block_of(name) in (None, *stage.block_numbers)
    return name.partition(".")[0] in dict(stage.blocks.named_children())


def _auxiliary(
    job: Job, folder: Path, saved: Manifest, recut: bool
) -> Generator[Verb, Any, tuple[bool, frozenset[str], bool]]:
    """Take up the auxiliary variables; whether there are any, which ones this stage misses, whether any stage does."""
    store, missing, reason = job.store, list[str](), "no epoch is parallel" if job.own_variables() else ""
    if store:
        missing, reason = _take_up(store, folder, saved)
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
        if saved.aux_needed and everyone["missing"]:
            why = "; ".join(reasons) or "the checkpoint has those of other boundaries"
            job.observer.say(f"the auxiliary variables are computed anew: {why}")
        return not (reasons or everyone["missing"]), frozenset(), False
    if recut and saved.aux_needed:
        job.observer.say(f"auxiliary variables taken up: {', '.join(everyone['kept'])}")
        if everyone["missing"]:
            job.observer.say(f"auxiliary variables computed anew at new boundaries: {', '.join(everyone['missing'])}")
    return True, frozenset(missing), bool(everyone["missing"])


def _take_up(store: Store, folder: Path, saved: Manifest) -> tuple[list[str], str]:
    """The variables that the checkpoint does not have for this stage; all of them with the reason when it fails."""
    description = _described(store, saved.aux)
    if description is None:
        whole = all(aux is None for aux in saved.aux)
        none = "the checkpoint has none (checkpoint.aux = recompute, or none were needed)"
        return list(store.fields), none if whole else ""
    try:
        if saved.aux_mode == "copy":
            store.restore(folder, description)
        else:
            store.adopt(description)
    except LaunchError:
        raise
    except HpcsplitError as error:
        return list(store.fields), str(error)
    if saved.aux_mode == "keep" and saved.aux_needed:
        store.protect(description["slot"])
    return store.schema.absent(description), ""


def _described(store: Store, descriptions: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """What the stages of the checkpoint say of this stage's variables, as one description; None when nothing."""
    merged: dict[str, Any] | None = None
    for theirs in filter(None, descriptions):
        names = [name for name, field in store.fields.items() if theirs["boundaries"].get(name) == field.boundary]
        if not names:
            continue
        generation = {key: theirs[key] for key in ("slot", "epoch", "rows", "dtype")}
        merged = merged or {**generation, "filled": {}, "checksums": {}}
        if all(merged[key] == value for key, value in generation.items()):
            for key in ("filled", "checksums"):
                merged[key] |= {name: theirs[key][name] for name in names if name in theirs[key]}
    return merged
