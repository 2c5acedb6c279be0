"""The program of one rank: obey rank 0's actions until the run is over."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from hpcsplit.checkpoint.state import tensor_digests, weights_sha256
from hpcsplit.config.option import cures, options_of
from hpcsplit.engine.epochs import copied_bytes, diverged, last_rate, train_epoch
from hpcsplit.engine.evaluate import Scores, evaluate
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.engine.persist import EpochSums, save
from hpcsplit.engine.probe import Signals, probe
from hpcsplit.engine.resume import State, resume
from hpcsplit.engine.theorem import theorem
from hpcsplit.errors import NumericalError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import dtype_name
from hpcsplit.host.proc import peak_resident_bytes
from hpcsplit.methods.contract import Iterates
from hpcsplit.run.records import EpochRecord, StageRecord, finite
from hpcsplit.schedule.actions import Action, Refresh, Save, Stop, Train, Trained, from_json, to_json
from hpcsplit.schedule.hybrid import actions
from hpcsplit.wire.port import Meter, Share, Traffic, Verb

ROUNDING_SAID = 0.5  # the label signal is 1 / sqrt(1 + 0.5²) of what it would be
RATIO_LIMIT = 1e6  # of what the variables teach to the exact gradient: they grow without bound

log = logging.getLogger("hpcsplit")


def rank_program(job: Job) -> Generator[Verb, Any, Stop]:
    """Walk through the whole run; returns the action that ended it."""
    state = yield from resume(job)
    job.observer.resumed(state.first_epoch)
    if job.rank == 0 and job.checkpoints and not state.first_step and job.is_best(state.first_epoch - 1):
        ckpt.mark_best(job.checkpoints, ckpt.folder_name(state.first_epoch))  # the start before was cut short there
    decisions = actions(
        job.plan or state.phases,
        job.save_policy,
        epochs=job.epochs,
        choose=job.choose,
        told=bool(job.choose) or job.replanned,
        best=job.is_best,
        enough=job.enough,
        first_epoch=state.first_epoch,
        first_step=state.first_step,
        have_aux=state.have_aux,
        missing_aux=state.missing_anywhere,
        recomputed=state.recomputed,
        no_aux=not job.has_variables,
        stop_reason=job.stop_reason,
        restarts=job.method.restarts,
    )
    trained: Trained | None = None
    while True:
        announced = to_json(decisions.send(trained)) if job.rank == 0 else None
        trained = None
        action: Action = from_json((yield Share(announced))[0])
        log.info("%s", action)
        job.where = str(action)
        if isinstance(action, Stop):
            return action
        if isinstance(action, Refresh):
            if action.recomputed:
                job.observer.say(str(action))
            started = time.perf_counter()
            yield from refresh(job, action, state.missing if action.missing else None)
            state.refresh_s = time.perf_counter() - started
            state.have_aux, state.missing = True, frozenset()
        elif isinstance(action, Train):
            trained = yield from _epoch(job, action, state)
        elif isinstance(action, Save):
            started = time.perf_counter()
            yield from save(job, action, state.have_aux, state.epoch)
            state.save_s = time.perf_counter() - started


def _epoch(job: Job, action: Train, state: State) -> Generator[Verb, Any, Trained]:
    """Train; at the epoch's end evaluate, probe, and let rank 0 put the record together."""
    sums = state.epoch
    if paused := (yield from _train(job, action, state)):
        sums.sent_bytes -= copied_bytes(job, action, paused)
        stops = yield Share(bool(job.stop_reason()))
        return Trained(paused, any(stops))
    state.epoch = EpochSums()
    evaluation_began = time.perf_counter()

    scores = Scores()
    if job.evaluated(action.epoch):
        scores = yield from evaluate(job, action.phase, bn=action.phase == "parallel" or action.last)
    if not all(math.isfinite(loss or 0.0) for loss in (scores.loss, scores.test_loss, scores.validation_loss)):
        raise diverged(f"the loss of the whole network is {scores.loss} after {_named(action)}").on_all_ranks()
    signals = yield from probe(job, action)
    bound = None
    if action.phase == "parallel" and not action.goes_on:
        bound = yield from theorem(job, action.parallel_epochs)
    told = asdict(_report(job, action, sums, signals))
    told["stage"] = finite(told["stage"])
    reports = msgspec.convert((yield Share(told)), list[StageReport])
    if broken := [str(report.stage.stage) for report in reports if not report.finite]:
        raise diverged(f"weights of stage {', '.join(broken)} are not finite after {_named(action)}").on_all_ranks()
    ratio, stage = max((report.stage.label_ratio or 0.0, report.stage.stage) for report in reports)
    if ratio > RATIO_LIMIT:
        raise diverged(
            f"after {_named(action)} stage {stage} is given {ratio:.1e} times the exact gradient (label ratio; at most "
            f"{RATIO_LIMIT:.0e})",
            cures(options_of(type(job.method)), "divergence"),
        ).on_all_ranks()
    seconds = sums.seconds
    wall_s = seconds["train"] + seconds["refresh"] + seconds["save"] + time.perf_counter() - evaluation_began
    record = EpochRecord(
        epoch=action.epoch,
        phase=action.phase,
        **asdict(scores),
        wall_s=wall_s,
        checkpoint_s=seconds["save"],
        theorem=bound,
        lr=last_rate(job, action),
        beta=job.method.at(action.parallel_epochs).beta if action.phase == "parallel" else None,
        recomputed=action.recomputed,
    )
    record = merged(record, reports, sums.tally.samples)
    terms = {name: value for name, value in (record.terms or {}).items() if value is not None}
    if terms and isinstance(job.method, Iterates) and (sentence := job.method.verdict(job.stage, terms)):
        raise NumericalError(f"{sentence}. It is epoch {action.epoch + 1}; the last checkpoint is whole").on_all_ranks()
    for each in record.stages:
        if (each.rounding or 0.0) > ROUNDING_SAID:
            job.observer.say(
                f"store.dtype = {dtype_name(job.aux_dtype)} rounds away {each.rounding:.0%} of what the variables "
                f'teach stage {each.stage}; set store.dtype = "float32"'
            )
    job.observer.epoch_done(record)
    return Trained(0, any(report.stop for report in reports))


def _train(job: Job, action: Train, state: State) -> Generator[Verb, Any, int]:
    """Train, and add to the epoch's sums what was counted meanwhile; the step after which it pauses, or 0."""
    sums, began = state.epoch, time.perf_counter()
    before: Traffic = replace((yield Meter()))  # as it is now
    io_before = job.store.io_wait_s if job.store else 0.0
    data_before = job.data_wait_s
    paused = yield from train_epoch(job, action, sums.tally)
    after: Traffic = yield Meter()
    sums.add_seconds(
        train=time.perf_counter() - began,
        exposed=after.exposed_s - before.exposed_s,
        imbalance=after.imbalance_s - before.imbalance_s,
        turn=after.turn_s - before.turn_s,
        io=(job.store.io_wait_s if job.store else 0.0) - io_before,
        data=job.data_wait_s - data_before,
        refresh=state.refresh_s,
        save=state.save_s,  # of the checkpoint before it
    )
    sums.sent_bytes += after.sent_bytes - before.sent_bytes
    state.refresh_s = state.save_s = 0.0
    return paused


@dataclass(frozen=True)
class StageReport:
    """What a rank tells the others of its stage at the end of an epoch; `violation_next` is that of the boundary behind
    it, `aux_loss` the last stage's φ on its own λ, `terms` are means over the samples."""

    stage: StageRecord
    violation_next: float | None
    train_s: float
    refresh_s: float
    stop: bool
    aux_loss: float | None
    terms: dict[str, float]
    digests: list[tuple[str, str]]
    finite: bool


def _report(job: Job, action: Train, sums: EpochSums, signals: Signals) -> StageReport:
    exact, tally, seconds = action.phase == "serial", sums.tally, sums.seconds
    violation = signals.violation_next if exact or not tally.aux_sq else math.sqrt(tally.gap_sq / tally.aux_sq)
    terms = {name: value / tally.samples for name, value in tally.terms.items()}
    waited = seconds["exposed"] + seconds["imbalance"] + seconds["io"] + seconds["data"]
    return StageReport(
        stage=StageRecord(
            stage=job.rank,
            label_signal=1.0 if exact else signals.label_signal,
            label_ratio=1.0 if exact else signals.label_ratio,
            penalty_signal=signals.penalty_signal,
            rounding=None if exact else signals.rounding,
            compute_s=seconds["turn"] or seconds["train"] - waited,
            exposed_comm_s=seconds["exposed"],
            exposed_io_s=seconds["io"],
            exposed_data_s=seconds["data"] or None,
            imbalance_s=seconds["imbalance"],
            sent_bytes=sums.sent_bytes,
            peak_rss_bytes=peak_resident_bytes(),
        ),
        violation_next=violation,
        train_s=seconds["train"],
        refresh_s=seconds["refresh"],
        stop=bool(job.stop_reason()),
        # the label leaks through λ, so this is not the loss of the network
        aux_loss=terms.get("phi") if not exact and job.stage.last and job.has_variables else None,
        terms=terms,
        digests=tensor_digests(job.stage.state()),
        finite=job.stage.finite(),
    )


def merged(record: EpochRecord, reports: Sequence[StageReport], samples: int) -> EpochRecord:
    """The record with what the stages have reported of so many samples."""
    names = dict.fromkeys(name for report in reports for name in report.terms)
    terms = {name: math.fsum(report.terms.get(name, 0.0) for report in reports) for name in names}
    train_s = max(report.train_s for report in reports)
    violations = [0.0, *(report.violation_next for report in reports[:-1])]
    return replace(
        record,
        train_s=train_s,
        refresh_s=max(report.refresh_s for report in reports),
        samples_per_s=samples / train_s,
        aux_loss=reports[-1].aux_loss,
        terms=terms if record.phase == "parallel" else None,
        weights_sha256=weights_sha256(report.digests for report in reports),
        stages=tuple(replace(r.stage, violation=v) for r, v in zip(reports, violations, strict=True)),
    )


def _named(action: Train) -> str:
    return f"epoch {action.epoch + 1} ({action.phase})"
