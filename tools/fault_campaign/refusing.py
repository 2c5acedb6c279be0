"""Every call of the C library that changes something of a run on the disk, refused once, or all from there on.

What may come of it: a sentence and exit 73, or nothing at all.  Then the same command, started again, must end with the
weights of a run without faults, and no checkpoint that counts may be another than in that run.

The calls are refused by refuse.c, which is built for it and preloaded; each trial is a forked child of this process.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from tools.fault_campaign.problem import Outcome
from tools.program import ROOT, content, keep, kept, last_line

NO_ROOM, DONE, REQUEUE = 73, 0, 75
SHORT = "short write"
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, SHORT: 0}
KINDS = [(error, for_good) for error in ERRORS for for_good in (False, True) if error != SHORT or not for_good]
SCENES = ("copy", "keep", "memory", "export")
HANGS_S, STARTS = 120.0, 4
_TOML = """
[data]
name = "fake"
pool = true
limit_train = 48
limit_test = 16
batch_size = 16
eval_train = 16

[model]
name = "resnet8"

[split]
cuts = [2]

[schedule]
epochs = 3
ratio = "1:2"

[store]
kind = "{store}"

[checkpoint]
aux = "{aux}"

[run]
threads = 1
device = "cpu"
baseline = false
runner = "lockstep"
"""


def build(folder: Path) -> Path:
    """The library to preload, made in `folder`.  RuntimeError where there is no C compiler or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("no C compiler (cc) is installed here")
    library, source = folder / "refuse.so", Path(__file__).with_name("refuse.c")
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    ended = subprocess.run(words, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{compiler} cannot build refuse.c: {ended.stderr.strip()}")
    return library


def kind(error: str, for_good: bool) -> str:
    """The name of a column of the table."""
    return f"{error} for good" if for_good else error


@dataclass(frozen=True)
class Refusal:
    """Which call of a scene fails, from 1, and how."""

    scene: str
    number: int
    error: str
    for_good: bool


@dataclass(frozen=True)
class Trial:
    """What came of a refusal; `wrong` says what should not have, "" for nothing; `program` is a hash of the code."""

    scene: str
    number: int
    kind: str
    call: str
    code: int
    wrong: str
    program: str = ""

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Which refusal it is; the call without the numbers of processes in its path."""
        return self.scene, self.number, self.kind, re.sub(r"\d+|[0-9a-f]{8,}", "*", self.call)


class Scene:
    """What is done under refusals, from a state that is made once: a parallel epoch and its checkpoint, or an export.

    Attributes:
        calls: the calls that change something, in their order, as "name path".
    """

    def __init__(self, name: str, place: Path, library: ctypes.CDLL) -> None:
        self.name, self.library = name, library
        self.state, self.work, self.said = place / "state", place / "work", place / "said"
        self.run_dir, self.export = self.work / "run", self.work / "net.pt"
        shutil.rmtree(place, ignore_errors=True)
        self.work.mkdir(parents=True)
        store, aux = ("memory", "copy") if name == "memory" else ("hdf5", "copy" if name == "export" else name)
        self.toml = place / "c.toml"
        self.toml.write_text(_TOML.format(store=store, aux=aux), encoding="utf-8")
        with redirect_stdout(io.StringIO()):  # what this process has imported and begun, its children need not
            self._need(_main(self._train()), DONE)
        self.outcome = Outcome.of(self.run_dir)
        shutil.rmtree(self.run_dir)
        for _ in range(2 if name == "export" else 1):
            self._need(self._start([*self._train(), "--run.time_limit", "1e-6"]), REQUEUE)
        shutil.copytree(self.work, self.state, symlinks=True)
        self.calls = self._calls()
        self.checkpoints = {folder.name: self._weights(folder) for folder in self._counting()}
        if name == "export":
            self.exported = self.export.read_bytes()

    def _train(self) -> list[str]:
        return ["train", str(self.toml), "--run-dir", str(self.run_dir)]

    def _command(self) -> list[str]:
        if self.name == "export":
            return ["export", str(self.run_dir), "--out", str(self.export)]
        return [*self._train(), "--run.time_limit", "1e-6"]  # ends after one epoch, with a checkpoint

    def _calls(self) -> list[str]:
        with (self.work.parent / "calls").open("w+b") as log:
            self._need(self._start(self._command(), Refusal(self.name, 0, SHORT, False), log.fileno()), None)
            log.seek(0)
            return [line.split(b" ", 1)[1].decode() for line in log.read().splitlines()]

    def _need(self, code: int, wanted: int | None) -> None:
        if code != wanted and not (wanted is None and code in (DONE, REQUEUE)):
            raise SystemExit(f"without faults {self.name} ended with {code}: {self._last_words()}")

    def _start(self, words: Sequence[str], refusal: Refusal | None = None, log: int = -1) -> int:
        """The exit code of the program in a forked child; minus a signal; SIGALRM for one that hangs."""
        child = os.fork()
        if not child:
            code = 70
            try:
                output = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(output, 1)
                os.dup2(output, 2)
                if refusal:
                    folder, number = os.fsencode(self.work), refusal.number
                    self.library.refuse_arm(folder, number, ERRORS[refusal.error], refusal.for_good, log)
                code = _main(list(words))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        until = time.monotonic() + HANGS_S
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return -signal.SIGALRM
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(ended[1])

    def attempt(self, refusal: Refusal) -> Trial:
        shutil.rmtree(self.work)
        shutil.copytree(self.state, self.work, symlinks=True)
        code = self._start(self._command(), refusal)
        return replace(self.planned(refusal), code=code, wrong="; ".join(self._complaints(code)))

    def planned(self, refusal: Refusal) -> Trial:
        """The trial of a refusal, before it."""
        call = self.calls[refusal.number - 1]
        return Trial(self.name, refusal.number, kind(refusal.error, refusal.for_good), call, 0, "", program())

    def _complaints(self, code: int) -> Iterator[str]:
        """What should not have come of it."""
        said = self.said.read_text(encoding="utf-8", errors="replace")
        if code not in (DONE, REQUEUE, NO_ROOM):
            yield f"signal {-code}" if code < 0 else f"exit {code}: {self._last_words()}"
        if "Traceback" in said or (code == NO_ROOM and "hpcsplit: " not in said):
            yield "no sentence"
        for folder in self._counting():
            if self._weights(folder) != self.checkpoints[folder.name]:
                yield f"{folder.name} counts and is not what it should be"
        if self.name == "export":
            if self.export.exists() and self.export.read_bytes() != self.exported:
                yield "another file"
            if code == DONE and not self.export.exists():
                yield "no file"
            return
        for _ in range(STARTS):
            if (code := self._start(self._train())) != REQUEUE:
                break
        if code != DONE:
            yield f"then exit {code}: {self._last_words()}"
        elif Outcome.of(self.run_dir) != self.outcome:
            yield "then other weights"

    def _counting(self) -> list[Path]:
        from hpcsplit.files import checkpoints as ckpt

        return ckpt.complete(self.run_dir / "checkpoints")

    def _weights(self, folder: Path) -> object:
        """Everything that the checkpoint's stages have learned, or why it cannot be read."""
        from hpcsplit.checkpoint.state import tensor_digests
        from hpcsplit.checkpoint.whole import stage_files
        from hpcsplit.errors import CheckpointError
        from hpcsplit.files import checkpoints as ckpt
        from hpcsplit.files.hdf5 import read_tensors

        try:
            ckpt.verify(folder, ckpt.listed(folder))
            return [sorted(tensor_digests(read_tensors(folder / name)[0])) for name in stage_files(folder)]
        except CheckpointError as error:
            return str(error)

    def _last_words(self) -> str:
        return last_line(self.said.read_text(encoding="utf-8", errors="replace"))


def _main(words: list[str]) -> int:
    from hpcsplit import cli
    from hpcsplit.report import watch

    watch.draw = lambda *_: None
    return cli.main(words)


def table(trials: Sequence[Trial]) -> str:
    """Scene x kind, each cell tried / ended with a sentence / went on as if nothing had happened / wrong."""
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    scenes = list(dict.fromkeys(trial.scene for trial in trials))
    rows = [["tried/sentence/no effect/wrong", *kinds]]
    for name in [*scenes, "all"]:
        here = [trial for trial in trials if name in (trial.scene, "all")]
        rows.append([name, *(_cell([trial for trial in here if trial.kind == kind]) for kind in kinds)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    signals = sum(trial.code < 0 for trial in trials)
    wrong = [trial for trial in trials if trial.wrong]
    lines += ["", f"{len(trials)} refusals, {signals} signals, {len(wrong)} wrong"]
    lines += [f"WRONG: {t.scene}, call {t.number} ({t.call}), {t.kind}: {t.wrong}" for t in wrong]
    return "\n".join(lines)


def _cell(trials: Sequence[Trial]) -> str:
    right = [trial for trial in trials if not trial.wrong]
    spoken = sum(trial.code == NO_ROOM for trial in right)
    return f"{len(trials)}/{spoken}/{len(right) - spoken}/{len(trials) - len(right)}"


@cache
def program() -> str:
    """Which program it is that is tried: results of another one do not count."""
    return content(ROOT, "hpcsplit", "tools/fault_campaign")


def known(file: Path) -> dict[object, Trial]:
    """The trials of this program that an earlier start has kept, by their keys."""
    trials = [Trial(**values) for values in kept(file)]
    return {trial.key: trial for trial in trials if trial.program == program()}


def refuse_all(out: Path, library: Path, scenes: Sequence[str], every: int, say: Callable[[str], None]) -> list[Trial]:
    """The trials of all scenes, of every `every`-th call of each, and their table in `out`; for a process that has the
    library preloaded.  Each is kept, and not made again by a later start."""
    loaded = ctypes.CDLL(str(library))
    loaded.refuse_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    trials: list[Trial] = []
    journal = out / "refusals.jsonl"
    for name in scenes:
        scene, before = Scene(name, out / name, loaded), known(journal)
        refusals = [
            Refusal(name, number, error, for_good)
            for position, (error, for_good) in enumerate(KINDS)
            for number in range(1 + position % every, len(scene.calls) + 1, every)
        ]
        keys = [scene.planned(refusal).key for refusal in refusals]
        done = sum(key in before for key in keys)
        say(f"{name}: {len(scene.calls)} calls, {len(refusals)} refusals, {done} of them tried already")
        for refusal, key in zip(refusals, keys, strict=True):
            if (trial := before.get(key)) is None:
                trial = scene.attempt(refusal)
                keep(journal, asdict(trial))
            trials.append(trial)
            if trial.wrong:
                say(f"WRONG: {trial}")
        (out / "refusals.txt").write_text(table(trials) + "\n", encoding="utf-8")
    return trials


def start(out: Path, scenes: Sequence[str], every: int) -> int:
    """Build the library, and run this module under it; the exit code, 1 where anything was wrong."""
    out.mkdir(parents=True, exist_ok=True)
    library = build(out)
    words = [str(out), str(library), ",".join(scenes), str(every)]
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", __name__, *words], cwd=ROOT, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("out", "library", "scenes", "every"):
        parser.add_argument(name)
    args = parser.parse_args()
    out = Path(args.out)
    trials = refuse_all(
        out,
        Path(args.library),
        args.scenes.split(","),
        int(args.every),
        lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True),
    )
    print(table(trials))
    return int(any(trial.wrong for trial in trials))


if __name__ == "__main__":
    raise SystemExit(main())
