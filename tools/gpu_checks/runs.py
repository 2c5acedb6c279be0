"""Checks that start whole runs like a user: methods against the CPU, continuing, training on real images."""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.gpu_checks.checks import Finding, Setting, records, small
from tools.program import MARK, Sections, Start, last_line, merged, write_toml

_CLOSE = 0.05  # of a loss on the CPU: TF32 is off, what remains is the order of sums
METHODS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("backprop", "penalty", "al", "delayed", "gsadmm", "pdadmm", "dladmm", "gsam")},
    "auxnet": {"aux_warmup": 2},
    "chunked": {"chunk": 2},
    "al, downsampled": {"downsample": 2},
    "delayed, corrected": {"predict": True, "spike": True, "lr_anneal": 8},
    "delayed, replay": {"weights": "replay"},
    "delayed, stale": {"weights": "stale"},
}
TESTS = ("tests/whole/test_gpu.py", "tests/engine/test_synchronisation.py", "tests/data/test_source.py")


class Run(Start):
    """A start of the program; it belongs to the check that makes it."""

    def __init__(self, words: Sequence[object], ranks: int, log: Path, **extra: str) -> None:
        super().__init__(words, ranks, os.environ[MARK], log, None, **extra)

    def wait(self, limit_s: float) -> int | None:
        """Its exit code; None where it was ended at the limit."""
        try:
            return self.process.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None

    def last(self) -> str:
        return last_line(self.said())[:300]


def train(toml: Path, folder: Path, ranks: int, *words: object, **extra: str) -> Run:
    log = folder.with_suffix(".log")
    return Run(["-m", "hpcsplit", "train", toml, "--run-dir", folder, *words], ranks, log, **extra)


def methods(setting: Setting) -> Iterator[Finding]:
    """Four epochs of every method, two ranks: losses on the device beside those on the CPU."""
    base = Path(tempfile.mkdtemp())
    names = list(METHODS)[: 2 if setting.tiny else None]
    tasks = [(name, kind) for name in names for kind in dict.fromkeys(("cpu", setting.device.type))]

    def one(task: tuple[str, str]) -> tuple[int | None, list[float], str]:
        name, kind = task
        method, folder = name.partition(",")[0], base / f"{_word(name)}-{kind}"
        toml = write_toml(folder.with_suffix(".toml"), _small(method, METHODS[name]))
        start = train(toml, folder, 1 if method == "dladmm" else 2, "--run.device", kind, NVIDIA_TF32_OVERRIDE="0")
        code = start.wait(setting.left_s - 5)
        return code, [record["loss"] for record in records(folder)], start.last()

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 3)) as pool:
        found = dict(zip(tasks, pool.map(one, tasks), strict=True))
    for name in names:
        here, there = found[name, "cpu"], found[name, setting.device.type]
        if (here[0], there[0]) != (0, 0):
            yield {"ok": False, "method": name, "codes": [here[0], there[0]], "said": [here[2], there[2]]}
            continue
        gaps = [abs(a - b) / max(abs(a), 1e-9) for a, b in zip(here[1], there[1], strict=True)]
        worst = max(gaps, default=1.0)
        yield {"ok": worst < _CLOSE, "method": name, "epochs": len(gaps), "worst_gap": float(f"{worst:.2g}")}


def _word(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _small(method: str, options: dict[str, Any]) -> Sections:
    given: Sections = {
        "data": {"limit_train": 128, "eval_train": 64, "batch_size": 32},
        "schedule": {"epochs": 4, "ratio": "1:1"},
        "optim": {"lr": 0.02},
        "method": {"name": method, **options},
    }
    if method not in ("pdadmm", "dladmm"):
        return small("resnet8", 2, "cpu", **given)
    whole: Sections = {
        "data": {"name": "digits", "batch_size": 0},
        "model": {"name": "mlp", "depth": 3, "width": 32},
        "schedule": {"ratio": "0:1", "warmup": 0},
        "split": {"cuts": "time"},
    }
    return small("resnet8", 2, "cpu", **merged(given, whole))


def resume(setting: Setting) -> Iterator[Finding]:
    """Stopped by a signal after some epochs and started again: the weights of a run that was never stopped."""
    base = Path(tempfile.mkdtemp())
    cases = [("penalty", "sgd"), ("penalty", "adam"), ("delayed", "sgd")][: 1 if setting.tiny else 3]

    def one(case: tuple[str, str]) -> Finding:
        method, optimizer = case
        name = f"{method}-{optimizer}"
        sections = small(
            "resnet8",
            2,
            setting.device,
            data={"limit_train": 640, "batch_size": 32, "eval_train": 64},
            method={"name": method},
            schedule={"epochs": 5, "ratio": "1:2"},
            optim={"name": optimizer, "lr": 0.02 if optimizer == "sgd" else 0.001},
            run={"deterministic": True},
        )
        toml, whole, parts = write_toml(base / f"{name}.toml", sections), base / f"{name}-whole", base / f"{name}-parts"
        starts = train(toml, whole, 2), train(toml, parts, 2)
        while len(records(parts)) < 2 and starts[1].process.poll() is None and setting.left_s > 5:
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.kill(starts[1].process.pid, signal.SIGUSR1)
        codes = [start.wait(setting.left_s - 5) for start in starts]
        again = train(toml, parts, 2)
        codes.append(again.wait(setting.left_s - 5))
        a, b = records(whole), records(parts)
        same = bool(a) and [r["weights_sha256"] for r in a] == [r["weights_sha256"] for r in b]
        what = {"method": method, "optimizer": optimizer, "codes": codes, "same_bits": same}
        return {"ok": codes in ([0, 75, 0], [0, 0, 0]) and same, **what, "said": again.last()}

    with ThreadPoolExecutor(len(cases)) as pool:
        yield from pool.map(one, cases)


def tests(setting: Setting) -> Iterator[Finding]:
    """The tests of the suite that want a GPU."""
    chosen = TESTS[-1:] if setting.tiny else TESTS
    code, lines = _command(setting, "tests", ["-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], 1)
    yield {"ok": code == 0, "code": code, "said": lines[-1:]}


def doctor(setting: Setting) -> Iterator[Finding]:
    """What `hpcsplit doctor` says of the GPU."""
    code, lines = _command(setting, "doctor", ["-m", "hpcsplit", "doctor"], 2)
    yield {"ok": code in (0, 1), "code": code, "said": [line.strip() for line in lines if "GPU" in line][:6]}


def _command(setting: Setting, name: str, words: list[str], ranks: int) -> tuple[int | None, list[str]]:
    run = Run(words, ranks, setting.out / f"{name}.log")
    return run.wait(setting.left_s - 2), run.said().splitlines()


def training(setting: Setting) -> Iterator[Finding]:
    """Several kinds of runs on CIFAR-10 at once, for as many epochs as fit; the frozen control among them."""
    if setting.data is None:
        yield {"ok": None, "why": "no --data DIR with cifar-10-batches-py"}
        return
    base = setting.out / "training"
    base.mkdir(exist_ok=True)
    network, epochs = ("resnet8", 2) if setting.tiny else ("resnet20", 60)
    corrected = {"name": "delayed", "epoch_end": "run", "predict": True, "spike": True, "lr_anneal": 2000}
    kinds: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
        "exact": (1, {"name": "backprop"}, {}),
        "delayed, corrected": (2, corrected, {"ratio": "0:1", "warmup": 0}),
        "penalty 1:4": (2, {"name": "penalty"}, {"ratio": "1:4"}),
        "frozen 1:4": (2, {"name": "penalty", "frozen": True}, {"ratio": "1:4"}),
    }
    limit, starts = max(30.0, setting.left_s - 30), []
    few = {"limit_train": 256, "limit_test": 64} if setting.tiny else {"limit_test": 0}
    for kind, (ranks, method, schedule) in kinds.items():
        folder = base / _word(kind)
        sections = small(
            network,
            ranks,
            setting.device,
            data={"name": "cifar10", "root": str(setting.data), "batch_size": 128, "eval_train": 1000, **few},
            method=method,
            schedule={"epochs": epochs, **schedule},
            optim={"lr": 0.1, "lr_schedule": "cosine", "weight_decay": 1e-4},
            store={"kind": "memory"},
            run={"time_limit": limit / 60, "evaluate_every": 1 if setting.tiny else 5},
        )
        starts.append((kind, folder, train(write_toml(folder.with_suffix(".toml"), sections), folder, ranks)))
    for kind, folder, start in starts:
        code = start.wait(setting.left_s - 4)
        found = records(folder)
        tested = [record["test_accuracy"] for record in found if record["test_accuracy"] is not None]
        yield {
            "ok": code in (0, 75) and bool(found),
            "run": kind,
            "network": network,
            "code": code,
            "epochs": f"{len(found)} of {epochs}",
            "test_accuracy": tested[-1] if tested else None,
            "train_s": round(statistics.median(record["train_s"] for record in found), 2) if found else None,
            "said": start.last(),
        }
        if found:
            shutil.copy(folder / "records.jsonl", setting.out / f"training-{folder.name}.jsonl")
