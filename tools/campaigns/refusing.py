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
from tools.campaigns.runs import continued, learned, write_config
from tools.program import ROOT, Journal, content, crossed, forked, last_line, say, text

NO_ROOM = 73
KINDS = {  # name -> (errno, 0 for a short write; whether all calls from there on fail)
    f"{error}{ending}": (getattr(errno, error), bool(ending))
    for error in ("EIO", "ENOSPC", "EDQUOT")
    for ending in ("", " for good")
} | {"short write": (0, False)}
SCENES = {  # store.kind and checkpoint.aux
    "copy": ("hdf5", "copy"), "keep": ("hdf5", "keep"), "memory": ("memory", "copy"), "export": ("hdf5", "copy"),
}  # fmt: skip
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
        toml = write_config(
            place / "c.toml",
            data={"limit_train": 48, "limit_test": 16, "eval_train": 16},
            schedule={"epochs": 3},
            store={"kind": store},
            checkpoint={"aux": aux},
            run={"runner": "lockstep"},
        )
        self.train = ["train", str(toml), "--run-dir", str(self.run_dir)]
        one_epoch = [*self.train, "--run.time_limit", "1e-6"]  # ends after it, with a checkpoint
        self.command = ["export", str(self.run_dir), "--out", str(self.exported)] if name == "export" else one_epoch
        with redirect_stdout(io.StringIO()):  # what this process has imported and begun, its children need not
            self._need(_main(self.train), DONE)
        self.learned = learned(self.run_dir)
        shutil.rmtree(self.run_dir)
        for _ in range(2 if name == "export" else 1):
            self._need(self._start(one_epoch), REQUEUE)
        shutil.copytree(self.work, self.state, symlinks=True)
        with (place / "calls").open("w+b") as log:
            self._need(self._start(self.command, (0, 0, False, log.fileno())), DONE, REQUEUE)
            log.seek(0)
            self.calls = [line.split(b" ", 1)[1].decode() for line in log.read().splitlines()]
        self.checkpoints = self._checkpoints()
        self.content = self.exported.read_bytes() if name == "export" else b""

    def _need(self, code: int, *wanted: int) -> None:
        if code not in wanted:
            raise SystemExit(f"without faults {self.name} ended with {code}: {last_line(text(self.said))}")

    def _start(self, words: Sequence[str], refusal: tuple[int, int, bool, int] | None = None) -> int:
        """The exit code of the program in a forked child; minus a signal; SIGALRM for one that hangs.

        Args:
            refusal: the number of the call (0: none), errno, whether it is for good, a descriptor that logs all, or -1.
        """

        def act() -> int:
            if refusal:
                self.library.refuse_arm(os.fsencode(self.work), *refusal)
            return _main(list(words))

        code = forked(act, self.said, HANGS_S)
        return -signal.SIGALRM if code is None else code

    def planned(self, number: int, kind: str) -> Trial:
        """The trial of the refusal of this call (from 1), before it."""
        return Trial(self.name, number, kind, self.calls[number - 1], 0, "", program())

    def attempt(self, trial: Trial) -> Trial:
        shutil.rmtree(self.work)
        shutil.copytree(self.state, self.work, symlinks=True)
        code = self._start(self.command, (trial.number, *KINDS[trial.kind], -1))
        return replace(trial, code=code, wrong="; ".join(self._complaints(code)))

    def _complaints(self, code: int) -> Iterator[str]:
        """What should not have come of it."""
        said = text(self.said)
        if code not in (DONE, REQUEUE, NO_ROOM):
            yield f"signal {-code}" if code < 0 else f"exit {code}: {last_line(said)}"
        if "Traceback" in said or (code == NO_ROOM and "hpcsplit: " not in said):
            yield "no sentence"
        for name, weights in self._checkpoints().items():
            if weights != self.checkpoints[name]:
                yield f"{name} counts and is not what it should be"
        if self.name == "export":
            if self.exported.exists() and self.exported.read_bytes() != self.content:
                yield "another file"
            if code == DONE and not self.exported.exists():
                yield "no file"
            return
        again = lambda _: (self._start(self.train), text(self.said), "")  # noqa: E731
        if wrong := continued(again, REQUEUE, self.run_dir, self.learned, STARTS)[1]:
            yield f"then {wrong}"

    def _checkpoints(self) -> dict[str, object]:
        """Of each checkpoint that counts, all that its stages have learned, or why it cannot be read."""
        from hpcsplit.checkpoint.state import stage_files, tensor_digests
        from hpcsplit.errors import CheckpointError
        from hpcsplit.files import checkpoints as ckpt
        from hpcsplit.files.hdf5 import read_tensors

        found: dict[str, object] = {}
        for folder in ckpt.complete(self.run_dir / "checkpoints"):
            try:
                ckpt.verify(folder, ckpt.listed(folder))
                stages = [read_tensors(folder / name)[0] for name in stage_files(folder)]
                found[folder.name] = [sorted(tensor_digests(tensors)) for tensors in stages]
            except CheckpointError as error:
                found[folder.name] = str(error)
        return found


def _main(words: list[str]) -> int:
    from hpcsplit import cli
    from hpcsplit.report import watch

    watch.draw = lambda *_: None  # type: ignore[attr-defined]
    return cli.main(words)


def table(trials: Sequence[Trial]) -> str:
    """Scene x kind, each cell tried / ended with a sentence / went on as if nothing had happened / wrong."""
    scenes, kinds = (list(dict.fromkeys(getattr(t, name) for t in trials)) for name in ("scene", "kind"))
    head = "tried/sentence/no effect/wrong"
    lines = crossed(head, trials, [*scenes, "all"], kinds, lambda t: (t.scene, t.kind), _cell)
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
    return content(ROOT, "hpcsplit", "tools/campaigns", "tools/campaigns/refuse.c")


def refuse(out: Path, scenes: Sequence[str], every: int) -> int:
    """Build the library, and run this module under it; the exit code, 1 where anything was wrong."""
    out.mkdir(parents=True, exist_ok=True)
    library = str(build(out))
    words = [str(out), library, str(every), *scenes]
    environment = os.environ | {"LD_PRELOAD": library, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", __name__, *words], cwd=ROOT, env=environment).returncode


def main(folder: str, preloaded: str, step: str, *scenes: str) -> int:
    """Try every so many-th call of each scene; trials are kept in the folder, and not made again by a later start."""
    out, library, every = Path(folder), ctypes.CDLL(preloaded), int(step)
    library.refuse_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    trials: list[Trial] = []
    journal = Journal(out / "refusals.jsonl", lambda values: Trial(**values).key)
    for name in scenes:
        scene = Scene(name, out / name, library)
        planned = [
            scene.planned(number, kind)
            for position, kind in enumerate(KINDS)
            for number in range(1 + position % every, len(scene.calls) + 1, every)
        ]
        before = [journal.known.get(trial.key) for trial in planned]
        done = sum(kept is not None for kept in before)
        say(f"{name}: {len(scene.calls)} calls, {len(planned)} refusals, {done} of them tried already")
        for trial, kept in zip(planned, before, strict=True):
            trials.append(Trial(**kept) if kept else scene.attempt(trial))
            if not kept:
                journal.add(asdict(trials[-1]))
            if trials[-1].wrong:
                say(f"WRONG: {trials[-1]}")
        (out / "refusals.txt").write_text(table(trials) + "\n", encoding="utf-8")
    print(table(trials))
    return int(any(trial.wrong for trial in trials))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
