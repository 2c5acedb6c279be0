"""`hpcsplit` with a fault: python -m tools.campaigns.injected SPEC.json train CONFIG …

SPEC.json: {"rank", "kind", "marker", and either "hook" with "call" (from 1) or "at" (seconds since 1970)}, {} for no
fault, or {"counts": FILE} to count the calls of every hook, by rank.
Torch's compiler, which nothing here uses, and the picture at the end stay out: they are a third of a start.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Generator
from functools import wraps
from pathlib import Path
from typing import Any

from tools.campaigns.moments import HOOKS, IMPORT, Hook
from tools.campaigns.striking import strike

RANK = int(os.environ.get("PMI_RANK", "0"))


class Injection:
    """Replaces functions by ones that count their calls; at the chosen one, the fault strikes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.counts: dict[str, int] = {}
        self.running: set[str] = set()
        self.lock = threading.Lock()

    def concerns(self, hook: Hook) -> bool:
        return "counts" in self.spec or (self.spec.get("rank") == RANK and self.spec.get("hook") == hook.key)

    def visit(self, hook: Hook, args: tuple[Any, ...]) -> None:
        if hook.within and hook.within not in self.running:
            return
        if hook.file and not any(isinstance(arg, Path) and arg.name.startswith(hook.file) for arg in args):
            return
        with self.lock:
            count = self.counts[hook.key] = self.counts.get(hook.key, 0) + 1
        if self.spec.get("hook") == hook.key and self.spec["rank"] == RANK and count == self.spec["call"]:
            file = next((arg for arg in args if isinstance(arg, Path)), None)
            strike(self.spec["kind"], Path(self.spec["marker"]), file)

    def install(self, hooks: tuple[Hook, ...]) -> None:
        """Put the hooks that this run needs in place."""
        wanted = [
            hook
            for hook in hooks
            if self.concerns(hook) and not (hook.place.startswith("hpcsplit.wire.mpi") and alone())
        ]
        for generator in {hook.within for hook in wanted if hook.within}:
            self._replace(generator, self._track(generator))
        for place in {hook.place for hook in wanted}:
            self._replace(place, self._around([hook for hook in wanted if hook.place == place]))

    def _replace(self, place: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        owner, last = located(place)
        original = getattr(owner, last)
        setattr(owner, last, wraps(original)(change(original)))

    def _around(self, hooks: list[Hook]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def visit(after: bool, args: tuple[Any, ...]) -> None:
            for hook in hooks:
                if hook.after == after:
                    self.visit(hook, args)

        def change(original: Callable[..., Any]) -> Callable[..., Any]:
            def replaced(*args: Any, **kwargs: Any) -> Any:
                visit(False, args)
                result = original(*args, **kwargs)
                visit(True, args)
                return result

            return replaced

        return change

    def _track(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Know when a generator function is being run."""

        def change(original: Callable[..., Any]) -> Callable[..., Any]:
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

        return change


def located(place: str) -> tuple[Any, str]:
    """The module or class that has a function, and its name there.  SystemExit where it is no function any more."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    if not callable(getattr(owner, last, None)):
        raise SystemExit(f"tools/campaigns/moments.py: {place} is no function any more")
    return owner, last


def alone() -> bool:
    return "PMI_RANK" not in os.environ


def leave_out_the_unused() -> None:
    compiler = types.ModuleType("torch._dynamo")
    compiler.disable = lambda fn, *_, **__: fn  # type: ignore[attr-defined]
    compiler.graph_break = lambda *_: None  # type: ignore[attr-defined]
    sys.modules["torch._dynamo"] = compiler


def strike_at(spec: dict[str, Any]) -> None:
    def wait() -> None:
        time.sleep(max(0.0, spec["at"] - time.time()))
        while "thread" in spec["kind"] and threading.excepthook is threading.__excepthook__:
            time.sleep(0.01)  # before that, the program has no threads
        strike(spec["kind"], Path(spec["marker"]))

    threading.Thread(target=wait, daemon=True).start()


def main(argv: list[str]) -> int:
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    injection = Injection(spec)
    if "at" in spec and spec["rank"] == RANK:
        strike_at(spec)
    injection.visit(IMPORT, ())
    leave_out_the_unused()
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
        injection.install(tuple(hook for hook in HOOKS if hook not in (request, IMPORT)))
        from hpcsplit.report import watch

        watch.draw = lambda *args: None  # type: ignore[attr-defined]

    stopping.StopRequest.__init__ = with_the_rest  # type: ignore[method-assign]
    code = command(argv[1:])
    if "counts" in spec:
        Path(f"{spec['counts']}-{RANK}.json").write_text(json.dumps(injection.counts), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
