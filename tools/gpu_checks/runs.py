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

from tools.gpu_checks.setting import CUTS, Finding, Setting, cores, records, write_toml
from tools.program import MARK, last_line, launch

Sections = dict[str, dict[str, Any]]
_CLOSE = 0.05  # of a loss on the CPU: TF32 is off, what remains is the order of sums
METHODS: dict[str, dict[str, Any]] = {
    "backprop": {},
    "penalty": {},
    "al": {},
    "delayed": {},
    "gsadmm": {},
    "pdadmm": {},
    "dladmm": {},
    "gsam": {},
    "auxnet": {"aux_warmup": 2},
    "chunked": {"chunk": 2},
    "al, downsampled": {"downsample": 2},
    "delayed, corrected": {"predict": True, "spike": True, "lr_anneal": 8},
    "delayed, replay": {"weights": "replay"},
    "delayed, stale": {"weights": "stale"},
}
TESTS = ("tests/whole/test_gpu.py", "tests/engine/test_synchronisation.py", "tests/data/test_source.py")


class Start:
    """A start of the program with its output in a file; it belongs to the check that makes it."""

    def __init__(self, words: Sequence[object], ranks: int, log: Path, **extra: str) -> None:
        self.log = log
        with open(log, "ab") as out:
            self.process = launch([str(w) for w in words], ranks, os.environ[MARK], out, out, extra)  # type: ignore[arg-type]

    def wait(self, limit_s: float) -> int | None:
        """Its exit code; None where it was ended at the limit."""
        try:
            return self.process.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None

    def said(self) -> str:
        return last_line(self.log.read_text(encoding="utf-8", errors="replace"))[:300]


def train(toml: Path, folder: Path, ranks: int, *words: object, **extra: str) -> Start:
    return Start(
        ["-m", "hpcsplit", "train", toml, "--run-dir", folder, *words], ranks, folder.with_suffix(".log"), **extra
    )


def methods(setting: Setting) -> Iterator[Finding]:
    """Four epochs of every method, two ranks: losses on the device beside those on the CPU."""
    base = Path(tempfile.mkdtemp())
    names = list(METHODS)[: 2 if setting.tiny else len(METHODS)]
    tasks = [(name, kind) for name in names for kind in dict.fromkeys(("cpu", setting.device.type))]

    def one(task: tuple[str, str]) -> tuple[int | None, list[float], str]:
        (name, kind), word = task, re.sub(r"\W+", "-", task[0])
        method = name.partition(",")[0]
        toml = write_toml(base / f"{word}-{kind}.toml", _small(method, METHODS[name]))
        folder = base / f"{word}-{kind}"
        start = train(toml, folder, 1 if method == "dladmm" else 2, "--run.device", kind, NVIDIA_TF32_OVERRIDE="0")
        code = start.wait(setting.left_s - 5)
        return code, [record["loss"] for record in records(folder)], start.said()

    with ThreadPoolExecutor(max(1, cores() // 3)) as pool:
        found = dict(zip(tasks, pool.map(one, tasks), strict=True))
    for name in names:
        here, there = found[name, "cpu"], found[name, setting.device.type]
        if here[0] or there[0] or here[0] is None or there[0] is None:
            yield {"ok": False, "method": name, "codes": [here[0], there[0]], "said": [here[2], there[2]]}
            continue
        gaps = [abs(a - b) / max(abs(a), 1e-9) for a, b in zip(here[1], there[1], strict=True)]
        worst = max(gaps, default=1.0)
        yield {"ok": worst < _CLOSE, "method": name, "epochs": len(gaps), "worst_gap": float(f"{worst:.2g}")}


def _small(method: str, options: dict[str, Any]) -> Sections:
    data = {"limit_train": 128, "limit_test": 64, "eval_train": 64}
    kind: Sections = {
        "data": {**data, "name": "fake", "batch_size": 32},
        "model": {"name": "resnet8"},
        "split": {"cuts": [CUTS["resnet8"]]},
        "schedule": {"epochs": 4, "ratio": "1:1"},
    }
    if method in ("pdadmm", "dladmm"):
        kind = {
            "data": {**data, "name": "digits", "batch_size": 0},
            "model": {"name": "mlp", "depth": 3, "width": 32},
            "schedule": {"epochs": 4, "ratio": "0:1", "warmup": 0},
        }
    rest: Sections = {"optim": {"lr": 0.02}, "run": {"threads": 1, "baseline": False}}
    return {**kind, **rest, "method": {"name": method, **options}}


def resume(setting: Setting) -> Iterator[Finding]:
    """Stopped by a signal after some epochs and started again: the weights of a run that was never stopped."""
    base = Path(tempfile.mkdtemp())
    cases = [("penalty", "sgd"), ("penalty", "adam"), ("delayed", "sgd")][: 1 if setting.tiny else 3]

    def one(case: tuple[str, str]) -> Finding:
        method, optimizer = case
        sections: Sections = {
            "data": {"name": "fake", "limit_train": 640, "limit_test": 64, "batch_size": 32, "eval_train": 64},
            "model": {"name": "resnet8"},
            "split": {"cuts": [CUTS["resnet8"]]},
            "method": {"name": method},
            "schedule": {"epochs": 5, "ratio": "1:2"},
            "optim": {"name": optimizer, "lr": 0.02 if optimizer == "sgd" else 0.001},
            "run": {"threads": 1, "baseline": False, "device": setting.device.type, "deterministic": True},
        }
        toml = write_toml(base / f"{method}-{optimizer}.toml", sections)
        whole, parts = base / f"{method}-{optimizer}-whole", base / f"{method}-{optimizer}-parts"
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
        return {"ok": codes in ([0, 75, 0], [0, 0, 0]) and same, **what, "said": again.said()}

    with ThreadPoolExecutor(len(cases)) as pool:
        yield from pool.map(one, cases)


def tests(setting: Setting) -> Iterator[Finding]:
    """The tests of the suite that want a GPU."""
    chosen = TESTS[-1:] if setting.tiny else TESTS
    start = Start(["-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], 1, setting.out / "tests.log")
    code = start.wait(setting.left_s - 2)
    lines = start.log.read_text(encoding="utf-8", errors="replace").splitlines()
    yield {"ok": code == 0, "code": code, "said": lines[-1:]}


def doctor(setting: Setting) -> Iterator[Finding]:
    """What `hpcsplit doctor` says of the GPU."""
    start = Start(["-m", "hpcsplit", "doctor"], 2, setting.out / "doctor.log")
    code = start.wait(setting.left_s - 2)
    lines = start.log.read_text(encoding="utf-8", errors="replace").splitlines()
    yield {"ok": code in (0, 1), "code": code, "said": [line.strip() for line in lines if "GPU" in line][:6]}


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
    limit = max(30.0, setting.left_s - 30)
    starts = []
    for kind, (ranks, method, schedule) in kinds.items():
        word = re.sub(r"\W+", "-", kind)
        sections: Sections = {
            "data": {"name": "cifar10", "root": str(setting.data), "batch_size": 128, "eval_train": 1000},
            "model": {"name": network},
            "split": {"cuts": [CUTS[network]] if ranks == 2 else []},
            "method": method,
            "schedule": {"epochs": epochs, **schedule},
            "optim": {"lr": 0.1, "lr_schedule": "cosine", "weight_decay": 1e-4},
            "store": {"kind": "memory"},
            "run": {
                "threads": 1,
                "baseline": False,
                "device": setting.device.type,
                "time_limit": limit / 60,
                "evaluate_every": 1 if setting.tiny else 5,
            },
        }
        if setting.tiny:
            sections["data"] |= {"limit_train": 256, "limit_test": 64}
        starts.append((kind, base / word, train(write_toml(base / f"{word}.toml", sections), base / word, ranks)))
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
            "said": start.said(),
        }
        if found:
            shutil.copy(folder / "records.jsonl", setting.out / f"training-{folder.name}.jsonl")
