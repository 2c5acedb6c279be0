"""The `evaluate` command: a checkpoint's network on held-out data, on this process alone, beside what the run wrote."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from hpcsplit.assemble import make_jobs
from hpcsplit.checkpoint.state import Whole, digest, load_weights
from hpcsplit.commands.saved import Saved, find, warn
from hpcsplit.config import MethodSection
from hpcsplit.engine.evaluate import Scores, evaluate
from hpcsplit.engine.job import Job
from hpcsplit.errors import CheckpointError
from hpcsplit.host.printable import printable
from hpcsplit.plan.prepare import Prepared
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import EpochRecord, Records
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.hybrid import of_initials
from hpcsplit.wire import lockstep

NAMES = {"loss": "training loss", "train_accuracy": "training accuracy", "test_loss": "test loss"}
NAMES |= {"test_accuracy": "test accuracy", "test_accuracy_bn": "test accuracy, BatchNorm re-estimated"}
_SAME = 1e-2  # apart from rounding on another device
NAMES |= {"validation_loss": "loss of the samples held out", "validation_accuracy": "their accuracy"}


def evaluate_command(run: RunDir, name: str, config_path: Path | None, data_root: str = "", *, as_json: bool) -> int:
    """Print loss and accuracy of a checkpoint, and what records.jsonl says of the same epoch; the exit code.

    Raises:
        CheckpointError: the checkpoint is damaged, or its weights are not those that the run recorded.
    """
    saved = find(run, name, config_path, data_root)
    saved.data()
    whole = saved.weights()
    scores = score(saved, whole)
    record = _record(saved)
    result: dict[str, Any] = {
        "run": str(run.path),
        "checkpoint": saved.name,
        "epochs_done": saved.manifest.epochs_done,
        "step": saved.manifest.step,
        **dataclasses.asdict(scores),
        "train_samples": saved.setting.eval_train_size,
        "test_samples": saved.setting.test_size,
        "weights_sha256": digest(whole.weights),
        "recorded": {key: getattr(record, key) for key in (*NAMES, "weights_sha256")} if record else None,
    }
    print(json.dumps(result, indent=1) if as_json else printable(_text(saved, result)))
    _compare(result)
    if record and record.weights_sha256 != result["weights_sha256"]:
        raise CheckpointError(
            f"checkpoint {saved.folder} does not have the weights that {saved.run.records} has for epoch "
            f"{record.epoch + 1}; one of them is of another run"
        )
    return 0


def _compare(result: dict[str, Any]) -> None:
    """Warn where the same weights have another loss than the run recorded."""
    recorded = result["recorded"] or {}
    for key in ("loss", "test_loss"):
        here, there = result[key], recorded.get(key)
        if here is None or there is None:
            continue
        if not math.isclose(here, there, rel_tol=_SAME, abs_tol=_SAME):
            warn(
                f"warning: the {NAMES[key]} is {here:.4f} here, the run recorded {there:.4f}: the network's code, what "
                "it keeps besides its weights, or a library is not that of the run"
            )


def score(saved: Saved, whole: Whole) -> Scores:
    """Loss and accuracy of the whole network as a run of one stage computes them."""
    scores: Scores = lockstep.run([evaluate(alone(saved, whole), _phase(saved), bn=True)])[0]
    return scores


def alone(saved: Saved, whole: Whole) -> Job:
    """The whole network of a checkpoint as the one stage of this process."""
    config = saved.setting.config
    device = torch.device("cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(min(config.run.threads or cores, cores))
    exact = saved.setting.replaced(dataclasses.replace(config, method=MethodSection(name="backprop")))
    (job,) = make_jobs(exact, Prepared((), (), "", None), saved.run, [0], device)
    load_weights(job.stage.blocks, *whole)
    return job


def _phase(saved: Saved) -> Phase:
    """The kind of the checkpoint's last epoch, for a method that has exact ones only."""
    if saved.setting.declared.augments:
        return "serial"
    phases = of_initials(saved.manifest.phases) or saved.setting.phases
    return phases[: saved.manifest.epochs_done + bool(saved.manifest.step)][-1]


def _record(saved: Saved) -> EpochRecord | None:
    """What the run wrote down of the checkpoint's last epoch; none within an epoch."""
    if saved.manifest.step:
        return None
    return next((r for r in Records(saved.run.records).load() if r.epoch == saved.manifest.epochs_done - 1), None)


def _text(saved: Saved, result: dict[str, Any]) -> str:
    def shown(key: str, value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}" if "accuracy" in key else f"{value:.4f}"

    recorded, config = result["recorded"], saved.setting.config
    lines = [
        f"checkpoint {saved.name} of {saved.run.path}, {saved.position()}",
        f"{config.model.name} on {config.data.name}: {result['train_samples']} training samples, "
        f"{result['test_samples']} test samples",
        f"{'':<40} {'here':>10} {'recorded':>10}",
    ]
    for key, title in NAMES.items():
        if key.startswith("validation") and result[key] is None:
            continue
        lines.append(f"{title:<40} {shown(key, result[key]):>10} {shown(key, (recorded or {}).get(key)):>10}")
    lines.append(f"weights_sha256 {result['weights_sha256']}")
    if recorded is None:
        why = "it lies within an epoch" if saved.manifest.step else f"{saved.run.records} has no line for it"
        lines.append(f"nothing recorded to compare with: {why}")
    return "\n".join(lines)
