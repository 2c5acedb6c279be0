"""`hpcsplit` with a fault: python -m tools.campaigns.injected SPEC.json train CONFIG …

SPEC.json: {"rank", "kind", "marker", and either "hook" with "call" (from 1) or "at" (seconds since 1970)}, {} for no
fault, or {"counts": FILE} to count the calls of every hook, by rank.
Torch's compiler, which nothing here uses, and the picture at the end stay out: they are a third of a start.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Generator, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from hpcsplit.host.proc import stat
from tools.campaigns.moments import DAMAGES, DISK, HOOKS, IMPORT, SIGNALS, TORN, Hook

ALONE = "PMI_RANK" not in os.environ
RANK = int(os.environ.get("PMI_RANK", "0"))
TO_ITSELF = {
    **dict.fromkeys(("KILL", TORN, *DAMAGES), signal.SIGKILL),
    "SEGV": signal.SIGSEGV,
    "stopped": signal.SIGSTOP,
}


class InjectedError(Exception):
    """A fault of the campaign, and no mistake of the program."""


def strike(kind: str, marker: Path, file: Path | None = None) -> None:
    """Write the time into the marker, then let it happen to this process."""
    with marker.open("a", encoding="ascii") as out:
        out.write(f"{time.time()}\n")
    if kind == TORN:
        assert file
        os.truncate(file, file.stat().st_size // 2)
    if kind in TO_ITSELF:
        os.kill(os.getpid(), TO_ITSELF[kind])
    elif kind == "exception":
        raise InjectedError("a fault of the campaign")
    elif kind == "thread exception":
        threading.Thread(target=_raise).start()
    elif kind in DISK:
        number = getattr(errno, kind)
        raise OSError(number, os.strerror(number), str(file) if file else None)
    elif kind in SIGNALS:
        mine = kind == "USR1 to one rank" or ALONE
        os.kill(os.getpid() if mine else int(stat(os.getppid())[2]), SIGNALS[kind])  # mpirun is above the proxy
        time.sleep(0.2)  # on its way to all ranks
    else:
        assert kind == "asleep", kind
        while True:
            time.sleep(60)


def _raise() -> NoReturn:
    raise InjectedError("a fault of the campaign in a thread of its own")


class Injection:
    """Replaces functions by ones that count their calls; at the chosen one, the fault strikes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.chosen = spec.get("hook") if spec.get("rank") == RANK else None
        self.counts: dict[str, int] = {}
        self.running: set[str] = set()
        self.lock = threading.Lock()

    def visit(self, hook: Hook, args: tuple[Any, ...]) -> None:
        if hook.within and hook.within not in self.running:
            return
        if hook.file and not any(isinstance(arg, Path) and arg.name.startswith(hook.file) for arg in args):
            return
        with self.lock:
            count = self.counts[hook.key] = self.counts.get(hook.key, 0) + 1
        if hook.key == self.chosen and count == self.spec["call"]:
            file = next((arg for arg in args if isinstance(arg, Path)), None)
            strike(self.spec["kind"], Path(self.spec["marker"]), file)

    def install(self, hooks: Iterable[Hook]) -> None:
        """Put the hooks that this run needs in place."""
        wanted = [hook for hook in hooks if "counts" in self.spec or hook.key == self.chosen]
        wanted = [hook for hook in wanted if not (ALONE and hook.place.startswith("hpcsplit.wire.mpi"))]
        for name in {hook.within for hook in wanted if hook.within}:
            owner, last, original = located(name)
            setattr(owner, last, self._tracked(name, original))
        for place in {hook.place for hook in wanted}:
            owner, last, original = located(place)
            setattr(owner, last, self._counted([hook for hook in wanted if hook.place == place], original))

    def _counted(self, hooks: list[Hook], original: Callable[..., Any]) -> Callable[..., Any]:
        before, after = ([hook for hook in hooks if hook.after == late] for late in (False, True))

        @wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            for hook in before:
                self.visit(hook, args)
            result = original(*args, **kwargs)
            for hook in after:
                self.visit(hook, args)
            return result

        return replaced

    def _tracked(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Know when a generator function is being run."""

        @wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            generator, answer = original(*args, **kwargs), None
            while True:
                self.running.add(name)
                try:
                    verb = generator.send(answer)
                except StopIteration as end:
                    return end.value
                finally:
                    self.running.discard(name)
                answer = yield verb

        return replaced


def located(place: str) -> tuple[Any, str, Callable[..., Any]]:
    """The module or class that has a function, its name there, and itself.  SystemExit where it is none any more."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    found = getattr(owner, last, None)
    if not callable(found):
        raise SystemExit(f"tools/campaigns/moments.py: {place} is no function any more")
    return owner, last, found


def strike_at(spec: dict[str, Any]) -> None:
    time.sleep(max(0.0, spec["at"] - time.time()))
    while "thread" in spec["kind"] and threading.excepthook is threading.__excepthook__:
        time.sleep(0.01)  # before that, the program has no threads
    strike(spec["kind"], Path(spec["marker"]))


def main(argv: list[str]) -> int:
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    injection = Injection(spec)
    if "at" in spec and spec["rank"] == RANK:
        threading.Thread(target=strike_at, args=(spec,), daemon=True).start()
    injection.visit(IMPORT, ())
    compiler = sys.modules["torch._dynamo"] = types.ModuleType("torch._dynamo")
    vars(compiler).update(disable=lambda fn, *_, **__: fn, graph_break=lambda *_: None)
    from hpcsplit.cli import main as command
    from hpcsplit.host import stopping

    request = next(hook for hook in HOOKS if hook.place.startswith("hpcsplit.host.stopping"))
    injection.install((request,))
    handlers = stopping.StopRequest.__init__

    def with_the_rest(*args: Any, **kwargs: Any) -> None:
        """The other hooks import torch, which comes after the signal handlers in the program, too."""
        handlers(*args, **kwargs)
        if "marker" in spec:
            Path(f"{spec['marker']}-hears-{RANK}").touch()
        injection.install(hook for hook in HOOKS if hook not in (request, IMPORT))
        from hpcsplit.report import watch

        watch.draw = lambda *_: None  # type: ignore[attr-defined]

    stopping.StopRequest.__init__ = with_the_rest  # type: ignore[method-assign]
    code = command(argv[1:])
    if "counts" in spec:
        Path(f"{spec['counts']}-{RANK}.json").write_text(json.dumps(injection.counts), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
