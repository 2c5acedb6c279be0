"""Every call of the C library that changes something of a run on the disk, refused once, or all from there on.

What may come of it: a sentence and exit 73, or nothing at all.  Then the same command, started again, must end with the
weights of a run without faults, and no checkpoint that counts may be another than in that run.

The calls are refused by refuse.c, which is built for it and preloaded; each trial is a forked child of this process.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from hpcsplit.errors import DONE, REQUEUE
from tools.campaigns.runs import Again, Outcome, continued, write_config
from tools.program import ROOT, Journal, Sections, aligned, content, crossed, forked, last_line, say, text

NO_ROOM = 73
SHORT = "short write"
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, SHORT: 0}
KINDS = [(error, for_good) for error in ERRORS for for_good in (False, True) if error != SHORT or not for_good]
SCENES = {"copy": ("hdf5", "copy"), "keep": ("hdf5", "keep"), "memory": ("memory", "copy"), "export": ("hdf5", "copy")}
"""Of each scene store.kind and checkpoint.aux."""

HANGS_S, STARTS = 120.0, 4


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
    """Which call of a scene fails, from 1 (0: none), and how; with a file descriptor `log` it gets a line a call."""

    number: int
    error: str
    for_good: bool = False
    log: int = -1


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
    def key(self) -> tuple[str, ...]:
        """Which refusal it is; the call without the numbers of processes in its path."""
        call = re.sub(r"\d+|[0-9a-f]{8,}", "*", self.call)
        return self.scene, str(self.number), self.kind, call, self.program


class Scene:
    """What is done under refusals, from a state that is made once: a parallel epoch and its checkpoint, or an export.

    Attributes:
        calls: the calls that change something, in their order, as "name path".
    """

    def __init__(self, name: str, place: Path, library: ctypes.CDLL) -> None:
        self.name, self.library = name, library
        self.state, self.work, self.said = place / "state", place / "work", place / "said"
        self.run_dir, self.exported = self.work / "run", self.work / "net.pt"
        shutil.rmtree(place, ignore_errors=True)
        self.work.mkdir(parents=True)
        store, aux = SCENES[name]
        settings: Sections = {
            "data": {"limit_train": 48, "limit_test": 16, "eval_train": 16},
            "schedule": {"epochs": 3},
            "store": {"kind": store},
            "checkpoint": {"aux": aux},
            "run": {"runner": "lockstep"},
        }
        toml = write_config(place / "c.toml", settings)
        self.train = ["train", str(toml), "--run-dir", str(self.run_dir)]
        one_epoch = [*self.train, "--run.time_limit", "1e-6"]  # ends after it, with a checkpoint
        self.command = ["export", str(self.run_dir), "--out", str(self.exported)] if name == "export" else one_epoch
        with redirect_stdout(io.StringIO()):  # what this process has imported and begun, its children need not
            self._need(_main(self.train), DONE)
        self.outcome = Outcome.of(self.run_dir)
        shutil.rmtree(self.run_dir)
        for _ in range(2 if name == "export" else 1):
            self._need(self._start(one_epoch), REQUEUE)
        shutil.copytree(self.work, self.state, symlinks=True)
        with (place / "calls").open("w+b") as log:
            self._need(self._start(self.command, Refusal(0, SHORT, log=log.fileno())), DONE, REQUEUE)
            log.seek(0)
            self.calls = [line.split(b" ", 1)[1].decode() for line in log.read().splitlines()]
        self.checkpoints = {folder.name: self._weights(folder) for folder in self._counting()}
        self.content = self.exported.read_bytes() if name == "export" else b""

    def _need(self, code: int, *wanted: int) -> None:
        if code not in wanted:
            raise SystemExit(f"without faults {self.name} ended with {code}: {last_line(text(self.said))}")

    def _start(self, words: Sequence[str], refusal: Refusal | None = None) -> int:
        """The exit code of the program in a forked child; minus a signal; SIGALRM for one that hangs."""

        def act() -> int:
            if r := refusal:
                self.library.refuse_arm(os.fsencode(self.work), r.number, ERRORS[r.error], r.for_good, r.log)
            return _main(list(words))

        code = forked(act, self.said, HANGS_S, nap_s=0.005)
        return -signal.SIGALRM if code is None else code

    def attempt(self, refusal: Refusal) -> Trial:
        shutil.rmtree(self.work)
        shutil.copytree(self.state, self.work, symlinks=True)
        code = self._start(self.command, refusal)
        return replace(self.planned(refusal), code=code, wrong="; ".join(self._complaints(code)))

    def planned(self, refusal: Refusal) -> Trial:
        """The trial of a refusal, before it."""
        call = self.calls[refusal.number - 1]
        return Trial(self.name, refusal.number, kind(refusal.error, refusal.for_good), call, 0, "", program())

    def _complaints(self, code: int) -> Iterator[str]:
        """What should not have come of it."""
        said = text(self.said)
        if code not in (DONE, REQUEUE, NO_ROOM):
            yield f"signal {-code}" if code < 0 else f"exit {code}: {last_line(said)}"
        if "Traceback" in said or (code == NO_ROOM and "hpcsplit: " not in said):
            yield "no sentence"
        for folder in self._counting():
            if self._weights(folder) != self.checkpoints[folder.name]:
                yield f"{folder.name} counts and is not what it should be"
        if self.name == "export":
            if self.exported.exists() and self.exported.read_bytes() != self.content:
                yield "another file"
            if code == DONE and not self.exported.exists():
                yield "no file"
            return
        again = lambda _: Again(self._start(self.train), text(self.said))  # noqa: E731
        if wrong := continued(again, REQUEUE, self.run_dir, self.outcome, STARTS)[1]:
            yield f"then {wrong}"

    def _counting(self) -> list[Path]:
        from hpcsplit.files import checkpoints as ckpt

        return ckpt.complete(self.run_dir / "checkpoints")

    def _weights(self, folder: Path) -> object:
        """Everything that the checkpoint's stages have learned, or why it cannot be read."""
        from hpcsplit.checkpoint.state import stage_files, tensor_digests
        from hpcsplit.errors import CheckpointError
        from hpcsplit.files import checkpoints as ckpt
        from hpcsplit.files.hdf5 import read_tensors

        try:
            ckpt.verify(folder, ckpt.listed(folder))
            return [sorted(tensor_digests(read_tensors(folder / name)[0])) for name in stage_files(folder)]
        except CheckpointError as error:
            return str(error)


def _main(words: list[str]) -> int:
    from hpcsplit import cli
    from hpcsplit.report import watch

    watch.draw = lambda *_: None  # type: ignore[attr-defined]
    return cli.main(words)


def table(trials: Sequence[Trial]) -> str:
    """Scene x kind, each cell tried / ended with a sentence / went on as if nothing had happened / wrong."""
    scenes, kinds = (list(dict.fromkeys(getattr(t, name) for t in trials)) for name in ("scene", "kind"))
    head = "tried/sentence/no effect/wrong"
    lines = aligned(crossed(head, trials, [*scenes, "all"], kinds, lambda t: (t.scene, t.kind), _cell))
    signals, wrong = sum(trial.code < 0 for trial in trials), [trial for trial in trials if trial.wrong]
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
    return content(ROOT, "hpcsplit", "tools/campaigns")


def refuse_all(out: Path, library: str, scenes: Sequence[str], every: int) -> list[Trial]:
    """The trials of all scenes, of every `every`-th call of each, and their table in `out`; for a process that has the
    library preloaded.  Each is kept, and not made again by a later start."""
    loaded = ctypes.CDLL(library)
    loaded.refuse_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    trials: list[Trial] = []
    journal = Journal(out / "refusals.jsonl", lambda values: Trial(**values).key)
    for name in scenes:
        scene = Scene(name, out / name, loaded)
        refusals = [
            Refusal(number, *each)
            for position, each in enumerate(KINDS)
            for number in range(1 + position % every, len(scene.calls) + 1, every)
        ]
        before = [journal.known.get(scene.planned(refusal).key) for refusal in refusals]
        done = sum(kept is not None for kept in before)
        say(f"{name}: {len(scene.calls)} calls, {len(refusals)} refusals, {done} of them tried already")
        for refusal, kept in zip(refusals, before, strict=True):
            trials.append(Trial(**kept) if kept else scene.attempt(refusal))
            if not kept:
                journal.add(asdict(trials[-1]))
            if trials[-1].wrong:
                say(f"WRONG: {trials[-1]}")
        (out / "refusals.txt").write_text(table(trials) + "\n", encoding="utf-8")
    return trials


def refuse(out: Path, scenes: Sequence[str], every: int) -> int:
    """Build the library, and run this module under it; the exit code, 1 where anything was wrong."""
    out.mkdir(parents=True, exist_ok=True)
    library = str(build(out))
    words = [str(out), library, ",".join(scenes), str(every)]
    environment = os.environ | {"LD_PRELOAD": library, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", __name__, *words], cwd=ROOT, env=environment).returncode


def main() -> int:
    out, library, scenes, every = sys.argv[1:]
    trials = refuse_all(Path(out), library, scenes.split(","), int(every))
    print(table(trials))
    return int(any(trial.wrong for trial in trials))


if __name__ == "__main__":
    raise SystemExit(main())
