"""The program of one rank: obey rank 0's actions until the run is over."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from typing import Any

from hpcsplit.checkpoint.state import tensor_digests, weights_sha256
from hpcsplit.engine.epochs import copied_bytes, train_epoch
from hpcsplit.engine.evaluate import NOT_EVALUATED, evaluate
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.engine.persist import EpochSums, save
from hpcsplit.engine.probe import probe
from hpcsplit.engine.resume import Start, resume
from hpcsplit.engine.theorem import theorem
from hpcsplit.errors import NumericalError
from hpcsplit.host.memory import peak_resident_bytes
from hpcsplit.methods.contract import Iterates, Tally
from hpcsplit.run.records import EpochRecord, StageRecord
from hpcsplit.schedule.actions import Action, Refresh, Save, Stop, Train, Trained, from_json, to_json
from hpcsplit.schedule.hybrid import actions
from hpcsplit.wire.port import Meter, Share, Verb

log = logging.getLogger("hpcsplit")


@dataclass
class _Progress:
    """What a rank carries from action to action; `missing` are variables to compute before the next parallel epoch."""

    have_aux: bool = False
    missing: frozenset[str] = frozenset()
    epoch: EpochSums = field(default_factory=EpochSums)
    refresh_s: float = 0.0
    save_s: float = 0.0


def rank_program(job: Job) -> Generator[Verb, Any, Stop]:
    """Walk through the whole run; returns the action that ended it."""
    start = yield from resume(job)
    job.observer.resumed(start.first_epoch)
    state = _Progress(start.have_aux, start.missing, start.epoch)
    decisions = _decisions(job, start) if job.rank == 0 else None
    trained: Trained | None = None
    while True:
        announced = to_json(decisions.send(trained)) if decisions else None
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


def _decisions(job: Job, start: Start) -> Generator[Action, Trained | None, None]:
    return actions(
        start.phases or job.plan,
        job.save_policy,
        epochs=job.epochs,
        choose=job.choose,
        first_epoch=start.first_epoch,
        first_step=start.first_step,
        have_aux=start.have_aux,
        missing_aux=start.missing_anywhere,
        recomputed=start.recomputed,
        no_aux=not job.has_variables,
        stop_reason=job.stop_reason,
        restarts=job.method.restarts,
    )


def _epoch(job: Job, action: Train, state: _Progress) -> Generator[Verb, Any, Trained]:
    """Train; at the epoch's end evaluate, probe, and let rank 0 put the record together."""
    sums = state.epoch
    began = time.perf_counter()
    before = asdict((yield Meter()))
    io_before = job.store.io_wait_s if job.store else 0.0
    paused = yield from train_epoch(job, action, sums.tally)
    after = asdict((yield Meter()))
    sums.add_seconds(
        train=time.perf_counter() - began,
        exposed=after["exposed_s"] - before["exposed_s"],
        imbalance=after["imbalance_s"] - before["imbalance_s"],
        turn=after["turn_s"] - before["turn_s"],
        io=(job.store.io_wait_s if job.store else 0.0) - io_before,
        refresh=state.refresh_s,
        save=state.save_s,  # of the checkpoint before it
    )
    sums.sent_bytes += sum(after[key] - before[key] for key in ("sent_bytes_prev", "sent_bytes_next"))
    state.refresh_s = state.save_s = 0.0
    if paused:
        sums.sent_bytes -= copied_bytes(job, action, paused)
        stops = yield Share(bool(job.stop_reason()))
        return Trained(paused, any(stops))
    state.epoch = EpochSums()
    tally, seconds = sums.tally, sums.seconds
    evaluation_began = time.perf_counter()

    scores = NOT_EVALUATED
    if job.evaluated(action.epoch):
        scores = yield from evaluate(job, action.phase, bn=action.phase == "parallel" or action.last)
    if not all(loss is None or math.isfinite(loss) for loss in scores.losses):
        raise NumericalError(
            f"the loss of the whole network is {scores.loss} after epoch {action.epoch + 1} ({action.phase}): "
            "training has diverged. Lower optim.lr, or set optim.clip; the last checkpoint is whole"
        ).on_all_ranks()
    signals = yield from probe(job, action)
    bound = None
    if action.phase == "parallel" and not action.goes_on:
        bound = yield from theorem(job, action.parallel_epochs)
    violation_next = signals.violation_next
    if action.phase == "parallel" and tally.aux_sq:
        violation_next = math.sqrt(tally.gap_sq / tally.aux_sq)
    exact = action.phase == "serial"
    report = {
        "stage": {
            "stage": job.rank,
            "label_signal": 1.0 if exact else signals.label_signal,
            "label_ratio": 1.0 if exact else signals.label_ratio,
            "penalty_signal": signals.penalty_signal,
            "compute_s": seconds["turn"]
            or seconds["train"] - seconds["exposed"] - seconds["imbalance"] - seconds["io"],
            "exposed_comm_s": seconds["exposed"],
            "exposed_io_s": seconds["io"],
            "imbalance_s": seconds["imbalance"],
            "sent_bytes": sums.sent_bytes,
            "peak_rss_bytes": peak_resident_bytes(),
        },
        "violation_next": violation_next,
        "train_s": seconds["train"],
        "refresh_s": seconds["refresh"],
        "stop": bool(job.stop_reason()),
        "aux_loss": _loss_through_variables(job, action, tally),
        "terms": {name: value / tally.samples for name, value in tally.terms.items()},
        "digests": tensor_digests(job.stage.state()),
        "finite": job.stage.finite(),
    }
    reports = yield Share(report)
    if broken := [str(r["stage"]["stage"]) for r in reports if not r["finite"]]:
        raise NumericalError(
            f"weights of stage {', '.join(broken)} are not finite after epoch {action.epoch + 1} ({action.phase}): "
            "training has diverged. Lower optim.lr, or set optim.clip; the last checkpoint is whole"
        ).on_all_ranks()
    wall_s = seconds["train"] + seconds["refresh"] + seconds["save"] + time.perf_counter() - evaluation_began
    terms = _added_up([r["terms"] for r in reports])
    if (
        isinstance(job.method, Iterates)
        and action.phase == "parallel"
        and (sentence := job.method.verdict(job.stage, terms))
    ):
        raise NumericalError(f"{sentence}. It is epoch {action.epoch + 1}; the last checkpoint is whole").on_all_ranks()
    trained = Trained(0, any(r["stop"] for r in reports))
    if job.rank != 0:
        return trained
    train_s = max(r["train_s"] for r in reports)
    violations = [0.0, *(r["violation_next"] for r in reports[:-1])]
    job.observer.epoch_done(
        EpochRecord(
            epoch=action.epoch,
            phase=action.phase,
            loss=scores.loss,
            test_loss=scores.test_loss,
            train_accuracy=scores.train_accuracy,
            test_accuracy=scores.test_accuracy,
            test_accuracy_bn=scores.test_accuracy_bn,
            validation_loss=scores.validation_loss,
            validation_accuracy=scores.validation_accuracy,
            wall_s=wall_s,
            train_s=train_s,
            refresh_s=max(r["refresh_s"] for r in reports),
            checkpoint_s=seconds["save"],
            samples_per_s=tally.samples / train_s,
            aux_loss=reports[-1]["aux_loss"],
            theorem=asdict(bound) if bound else None,
            terms=terms if action.phase == "parallel" else None,
            lr=job.learning_rate(action.epoch),
            beta=None if exact else job.method.at(action.parallel_epochs).beta,
            weights_sha256=weights_sha256(r["digests"] for r in reports),
            stages=tuple(StageRecord(**r["stage"], violation=v) for r, v in zip(reports, violations, strict=True)),
            recomputed=action.recomputed,
        )
    )
    return trained


def _added_up(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: math.fsum(part.get(name, 0.0) for part in parts) for name in {n: 0 for part in parts for n in part}}


def _loss_through_variables(job: Job, action: Train, tally: Tally) -> float | None:
    """φ of the last stage on its own λ: the label leaks through λ, so this is not the loss of the network."""
    if action.phase == "serial" or not job.stage.last or not job.has_variables:
        return None
    return tally.terms["phi"] / tally.samples if "phi" in tally.terms else None
