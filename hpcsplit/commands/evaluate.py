"""A checkpoint's network on held-out data, on this process alone: the `evaluate` command, and what `report` shows."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcsplit.assemble import make_jobs
from hpcsplit.checkpoint.state import Whole, digest, load_weights
from hpcsplit.commands.saved import Saved, find, warn
from hpcsplit.config import MethodSection
from hpcsplit.data.dataset import Dataset, Part
from hpcsplit.engine.evaluate import Scores, evaluate, outcomes, outputs
from hpcsplit.engine.job import Job
from hpcsplit.errors import CheckpointError
from hpcsplit.host.printable import printable
from hpcsplit.plan.prepare import Prepared
from hpcsplit.report.examples import SHOWN, Mistakes, Reconstructions, Wrong, confusion_matrix, worst
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import EpochRecord, Records
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.hybrid import of_initials
from hpcsplit.wire import lockstep

NAMES = {"loss": "training loss", "train_accuracy": "training accuracy", "test_loss": "test loss"}
NAMES |= {"test_accuracy": "test accuracy", "test_accuracy_bn": "test accuracy, BatchNorm re-estimated"}
NAMES |= {"test_accuracy_top5": "  among the five most likely", "test_perplexity": "test perplexity"}
NAMES |= {"test_r2": "test R²"}
NAMES |= {"validation_loss": "loss of the samples held out", "validation_accuracy": "their accuracy"}
_SOME = ("test_accuracy_top5", "test_perplexity", "test_r2")  # not of every task
_SAME = 1e-2  # apart from rounding on another device


def evaluate_command(
    run: RunDir,
    name: str,
    config_path: Path | None,
    data_root: str = "",
    other: str = "",
    *,
    as_json: bool,
    average: bool = False,
) -> int:
    """Print loss and accuracy of a checkpoint, and what records.jsonl says of the same epoch; the exit code.

    With the name of an`other` data set, on that one, as it is.
    CheckpointError where the checkpoint is damaged, or its weights are not those that the run recorded.
    """
    saved = find(run, name, config_path, data_root, average=average)
    if other:
        saved.check("", "model")
        saved = saved.on(other)
    else:
        saved.data()
    whole, done, step = saved.weights(), saved.manifest.epochs_done, saved.manifest.step
    scores: Scores = lockstep.run([evaluate(_alone(saved, whole), _phase(saved), bn=not other)])[0]
    records = [] if step or other else Records(run.records).load()  # of a checkpoint within an epoch there is none
    record = next((each for each in records if each.epoch == done - 1), None)
    result: dict[str, Any] = {
        "run": str(run.path),
        "checkpoint": saved.name,
        "data": saved.setting.config.data.name,
        "epochs_done": done,
        "step": step,
        **dataclasses.asdict(scores),
        "train_samples": saved.setting.eval_train_size,
        "test_samples": saved.setting.test_size,
        "weights_sha256": digest(whole.weights),
        "average": average,
        "recorded": _recorded(record, average) if record else None,
    }
    print(json.dumps(result, indent=1) if as_json else printable(_text(saved, result)))
    for key in ("loss", "test_loss") if record else ():
        here, there = result[key], result["recorded"][key]
        if None not in (here, there) and not math.isclose(here, there, rel_tol=_SAME, abs_tol=_SAME):
            warn(
                f"warning: the {NAMES[key]} is {here:.4f} here, the run recorded {there:.4f}: the network's code, what "
                "it keeps besides its weights, or a library is not that of the run"
            )
    if record and not average and record.weights_sha256 != result["weights_sha256"]:
        raise CheckpointError(
            f"checkpoint {saved.folder} does not have the weights that {run.records} has for epoch "
            f"{record.epoch + 1}; one of them is of another run"
        )
    return 0


def _recorded(record: EpochRecord, average: bool) -> dict[str, Any]:
    """What a record has of each number; of the average of the weights that is less."""
    if not average:
        return {key: getattr(record, key) for key in (*NAMES, "weights_sha256")}
    return dict.fromkeys(NAMES) | {"test_loss": record.test_loss_ema, "test_accuracy": record.test_accuracy_ema}


def _alone(saved: Saved, whole: Whole) -> Job:
    """The whole network of a checkpoint as the one stage of this process."""
    config = saved.setting.config
    plain: dict[str, Any] = {
        "method": MethodSection(name="backprop"),
        "optim": dataclasses.replace(config.optim, ema=0.0),
    }
    exact = saved.setting.replaced(dataclasses.replace(config, **plain))
    (job,) = make_jobs(exact, Prepared((), (), "", None), saved.run, [0], saved.device())
    load_weights(job.stage.blocks, *whole)
    return job


def _phase(saved: Saved) -> Phase:
    """The kind of the checkpoint's last epoch, for a method that has exact ones only."""
    if saved.setting.declared.augments:
        return "serial"
    phases = of_initials(saved.manifest.phases) or saved.setting.phases
    return phases[: saved.manifest.epochs_done + bool(saved.manifest.step)][-1]


def _text(saved: Saved, result: dict[str, Any]) -> str:
    def shown(key: str, values: dict[str, Any]) -> str:
        value = values.get(key)
        return "-" if value is None else f"{value:.2%}" if "accuracy" in key else f"{value:.4f}"

    recorded, config = result["recorded"], saved.setting.config
    lines = [
        f"checkpoint {saved.name} of {saved.run.path}, {saved.position()}{', its average of weights' * saved.average}",
        f"{config.model.name} on {config.data.name}: {result['train_samples']} training samples, "
        f"{result['test_samples']} test samples",
        f"{'':<40} {'here':>10} {'recorded':>10}",
        *(
            f"{title:<40} {shown(key, result):>10} {shown(key, recorded or {}):>10}"
            for key, title in NAMES.items()
            if result[key] is not None or not key.startswith(("validation", *_SOME))
        ),
        f"weights_sha256 {result['weights_sha256']}",
    ]
    if recorded is None:
        why = "it lies within an epoch" if result["step"] else f"{saved.run.records} has no line for it"
        why = why if config.data.name == saved.run.load_config().data.name else "the run had another data set"
        lines.append(f"nothing recorded to compare with: {why}")
    return "\n".join(lines)


def examples_of(run: RunDir, data_root: str = "") -> Mistakes | Reconstructions:
    """Of the newest checkpoint: what is wrong on the test set, or its first images and their reconstructions.

    HpcsplitError where there is no checkpoint, or no data, or they are not those of the run.
    """
    saved = find(run, "", None, data_root)
    data = saved.data()
    job = _alone(saved, saved.weights())
    source = f"checkpoint {saved.name}, {saved.position()}"
    ids, shape = np.arange(min(SHOWN, job.test_size)), saved.setting.input_shape
    made = lockstep.run([outputs(job, [ids])])[0]
    pictures = job.stage.task.pictures(made, shape)
    if pictures is None:
        return _mistakes(saved, data, job, source)
    loss = job.stage.task.score(made, job.targets(ids, job.test)).tolist()
    mean, std = (each.view(1, -1, 1, 1) for each in (data.mean, data.std))
    pixels = (255 * (pictures * std + mean)).round().clamp(0, 255).to(torch.uint8)
    both = (x.permute(0, 2, 3, 1).numpy() for x in (data.test.inputs(ids), pixels))
    return Reconstructions(source, list(zip(*both, strict=True)), loss)


def _mistakes(saved: Saved, data: Dataset[Part], job: Job, source: str) -> Mistakes:
    result, spec = lockstep.run([outcomes(job)])[0], saved.setting.spec
    names = spec.names or tuple(map(str, range(spec.classes)))
    labels, predicted, chance, loss = (
        x.tolist() for x in (result.labels, result.predicted, result.chance, result.loss)
    )
    shown = [
        Wrong(
            k, labels[k], predicted[k], chance[k], loss[k], data.test.inputs(np.array([k]))[0].permute(1, 2, 0).numpy()
        )
        for k in worst(result.labels, result.predicted, result.loss)
    ]
    return Mistakes(source, names, confusion_matrix(result.labels, result.predicted, spec.classes), shown)
