"""A race: one network, one mini-batch, several ways to train it on two cores (or devices), in turns, and the table.

A few ways are started, with the controls, and take turns, so that a slow minute of the machine strikes all of them;
then come the next few with controls of their own.  A way and its rivals take turns with each other.  Every one has the
same network, images, mini-batch, precision, memory format, optimizer and memory allocator.  One that fails or hangs is
listed with what it said.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from hpcsplit.config import resolve
from hpcsplit.plan.measure import profile
from hpcsplit.plan.prepare import choose_cuts
from hpcsplit.plan.setting import Setting
from hpcsplit.stage.cuts import ranges
from tools.program import ROOT, Sections, merged, write_toml
from tools.timing.networks import ODE
from tools.timing.table import interval, options, ratio, write
from tools.timing.turns import Contender, peer, play

RANKS = 2
LINE = "{:<50} {:>9} {:>9} {:>7} {:>7} {:>6} {:>9} {:>9} {:>8}"
Cuts = Mapping[int, Sequence[int]]  # by the number of stages


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        kind: what the module in tools/timing/peers that does it, the `peer`, calls it.
        starts: processes that are started one by one; `ranks`: of one start, by mpirun.
        microbatches: of a way that is cut into stages and passes exact gradients between them; 0 for others.
        parts: the stages that the network is cut into, whose balance bounds it; 1: none.
        rivals: names of ways before it that its times are compared with.
        needs: a package that is installed with no extra; --checkouts says where it is.
        trains: the only network that it can train; "": any.
        settings: those of this way, over those of the race.
    """

    name: str
    label: str
    kind: str
    peer: str = "torch_alone"
    starts: int = 1
    ranks: int = 1
    microbatches: int = 0
    parts: int = 1
    rivals: tuple[str, ...] = ()
    needs: str = ""
    trains: str = ""
    settings: Sections = field(default_factory=dict)

    def missing(self, network: str) -> str:
        """Why it cannot take part, in words; "" where it can."""
        if self.trains and network != self.trains:
            return f"trains {self.trains} only; add it to --networks"
        if self.needs and not find_spec(self.needs):
            return (
                f"there is no {self.needs} here; name the folder of a checkout, built where it must be, in --checkouts"
            )
        return ""

    def contender(self, folder: Path, settings: Sections, cuts: Cuts) -> Contender:
        cut: Sections = {"split": {"cuts": list(cuts[self.parts])}} if self.parts > 1 else {}
        pieces: Sections = {"schedule": {"microbatches": self.microbatches}} if self.microbatches else {}
        toml = write_toml(folder / f"{self.name}.toml", merged(settings, cut, pieces, self.settings))
        return Contender(self.name, [peer(self.peer, self.kind, toml, self.ranks)] * self.starts)

    @property
    def norm(self) -> str:
        """How many samples of a mini-batch of B BatchNorm normalises over; in a hybrid in parallel and exact epochs."""
        if self.kind in ("ddp", "fsdp"):
            return f"B/{RANKS}"
        pieces = self.microbatches or self.settings.get("schedule", {}).get("microbatches", 1)
        exact = f"B/{pieces}" if pieces > 1 else "B"
        return f"B, {exact}" if self.kind == "hybrid" else exact

    def bound(self, balance: float) -> float:
        """What the cut and the pipeline's bubble leave of the limit: of K·M/(K+M-1), and of the balance."""
        if self.parts == 1:
            return 1.0
        pieces = self.microbatches
        return balance / RANKS * (pieces / (RANKS + pieces - 1) if pieces else 1.0)


ONE = Way("one", "one core, whole network", "one")
COPIES = Way("copies", "two independent copies of it at once", "one", starts=RANKS)
CONTROLS = (ONE, COPIES)
TWO_THREADS = Way("two", "one process, two threads", "two")
DDP = Way("ddp", "torch DistributedDataParallel, gloo", "ddp", starts=RANKS)
FSDP = Way("fsdp", "torch FSDP2, gloo", "fsdp", starts=RANKS)


def torch_pipeline(order: str, microbatches: int) -> Way:
    """torch.distributed.pipelining: 1F1B, ZB-H1 (one stage a rank) or ZBV (two)."""
    kind, parts = order.lower(), RANKS * (2 if order == "ZBV" else 1)
    label = f"torch pipelining, {order}, M = {microbatches}"
    return Way(f"{kind}-{microbatches}", label, kind, starts=RANKS, microbatches=microbatches, parts=parts)


def torchgpipe(microbatches: int) -> Way:
    """Threads of one process in place of ranks."""
    name, label = f"torchgpipe-{microbatches}", f"torchgpipe, M = {microbatches}"
    return Way(name, label, "", "gpipe", microbatches=microbatches, parts=RANKS, needs="torchgpipe")


def torchbraid(kind: str) -> Way:
    label = f"TorchBraid, {'one level' if kind == 'serial' else 'MGRIT, inexact'}"
    return Way(f"torchbraid-{kind}", label, kind, "braid", ranks=RANKS, needs="torchbraid", trains=ODE)


def ours(name: str, label: str, kind: str, ranks: int = RANKS, **more: Any) -> Way:
    return Way(name, label, kind, "ours", ranks=ranks, parts=ranks, **more)


def exact(microbatches: int, label: str = "", rivals: tuple[str, ...] = (), **settings: dict[str, Any]) -> Way:
    name, label = _named(f"exact-{microbatches}", label), f"hpcsplit, exact epoch, M = {microbatches}{label}"
    return ours(name, label, "exact", microbatches=microbatches, rivals=rivals, settings=settings)


def one_core_in_pieces(microbatches: int) -> Way:
    """The exact pipeline's own steps with nobody to share them: what small micro-batches cost alone."""
    name, label, settings = f"one-{microbatches}", f"one core, M = {microbatches}", {"split": {"cuts": "flops"}}
    return ours(name, label, "exact", ranks=1, microbatches=microbatches, settings=settings)


PARALLEL = ours("parallel", "hpcsplit, parallel epoch", "parallel")


def delayed(label: str = "", rivals: tuple[str, ...] = (), whole: bool = False, **method: str) -> Way:
    name, label = _named("delayed", label), f"hpcsplit, delayed gradients{label}"
    schedule = {"ratio": "0:1", "warmup": 0, "deferred": not whole}
    settings = {"method": {"name": "delayed", "epoch_end": "run", **method}, "schedule": schedule}
    return ours(name, label, "parallel", rivals=rivals, settings=settings)


def _named(kind: str, label: str) -> str:
    """With the words of ", word, word"."""
    return "-".join([kind, *label.strip(", ").split()])


def run(doc: str | None, name: str, ways: Sequence[Way], *, networks: str, steps: int, rounds: int = 5) -> None:
    """Race with every network, print the tables and write them down; `doc` is what --help says, and networks, steps and
    rounds are those of the command line where it names none."""
    args = options(
        doc,
        name,
        networks=networks,
        batch=(128, "samples of a mini-batch"),
        steps=(steps, "of a turn"),
        rounds=rounds,
        precision={"default": "float32", "choices": ("float32", "bfloat16")},
        device={"default": "cpu", "choices": ("cpu", "cuda")},
        only=("", "names of ways, with commas"),
        checkouts=("", "folders with torchgpipe or torchbraid, with commas"),
        at_once=(6, "ways that take turns beside the controls: all are in memory"),
        out=(ROOT / "runs" / f"bench-{name}", "default: runs/bench-NAME"),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no contender outlives it
    chosen = [way for way in ways if not args.only or way.name in args.only.split(",")]
    checkouts = [str(Path(folder).resolve()) for folder in args.checkouts.split(",") if folder]
    if checkouts:  # for this process and for the contenders
        sys.path += checkouts
        os.environ["PYTHONPATH"] = os.pathsep.join([*checkouts, *filter(None, [os.environ.get("PYTHONPATH")])])
    lines: list[str] = []
    tables, said = [], ""
    for network in args.networks.split(","):
        missing = {way.label: why for way in chosen if (why := way.missing(network))}
        table, text = _measured(args, network, [way for way in chosen if way.label not in missing])
        tables.append(table)
        text += [f"{label} is left out: {why}" for label, why in missing.items()]
        lines += ["", *text]
        print("", *text, sep="\n", flush=True)
        said = write(args.out, name, lines, tables)
    print(f"\n{said}; table and values: {args.out}")


def _measured(args: argparse.Namespace, network: str, ways: Sequence[Way]) -> tuple[dict[str, Any], list[str]]:
    settings = raced(network, args.batch, args.steps, device=args.device, precision=args.precision)
    cuts, balances = _cut(settings, {way.parts for way in ways} - {1})
    rows: list[dict[str, Any]] = []
    for number, ways_at_once in enumerate(at_once(ways, args.at_once)):
        with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as name:
            folder = Path(name)
            players = [way.contender(folder, settings, cuts) for way in ways_at_once]
            play(players, args.rounds, folder / "play")
        for way, player in zip(ways_at_once, players, strict=True):
            if number and way in CONTROLS:
                continue
            for part in charged_or_not(player):
                found = row(part, players, way.rivals) | {"label": way.label + part.label, "norm": way.norm}
                if "of_two_copies" in found:
                    found["of_its_bound"] = found["of_two_copies"] / way.bound(balances.get(way.parts, 1.0))
                rows.append(found)
    cut = "".join(f"cut {list(cuts[parts])} (balance {balances[parts]:.2f}), " for parts in sorted(cuts))
    about = {"network": network, "batch": args.batch, "precision": args.precision, "device": args.device}
    title = "{network}, batch B = {batch}, {precision}, {device}, ".format_map(about)
    title += f"{cut}{args.steps} steps a turn, n = {args.rounds}"
    header = LINE.format("", "BatchNorm", "s a step", "min", "max", "x one", "of copies", "of bound", "+CPU ms")
    return about | {"balances": balances, "cuts": cuts, "rows": rows}, [title, header, *map(line, rows)]


def at_once(ways: Sequence[Way], most: int) -> list[list[Way]]:
    """Groups of at most so many ways, or more where they are rivals, and in each of them the controls."""
    controls = [way for way in ways if way in CONTROLS]
    linked: list[list[Way]] = []
    for way in ways:
        if way not in CONTROLS:
            rivals = [group for group in linked if any(other.name in way.rivals for other in group)]
            linked = [group for group in linked if group not in rivals] + [[*chain(*rivals), way]]
    groups: list[list[Way]] = [[]]
    for group in linked:
        if len(groups[-1]) + len(group) > most and groups[-1]:
            groups.append([])
        groups[-1] += group
    return [[*controls, *group] for group in groups]


def raced(network: str, batch: int, steps: int, **run: Any) -> Sections:
    """The settings of a network on random images, in epochs of so many steps."""
    return {
        "data": {"name": "fake", "limit_train": batch * steps, "batch_size": batch, "augment": False},
        "model": {"name": network},
        "split": {"cuts": "time"},
        "method": {"name": "penalty"},
        "schedule": {"epochs": 1000},
        "run": {"threads": 1, "baseline": False, **run},
    }


def _cut(settings: Sections, numbers: Iterable[int]) -> tuple[Cuts, dict[int, float]]:
    """By the number of stages: cuts where the measured times of the blocks balance best, and the speed-up that this
    allows two ranks; a rank with two stages has one from each end."""
    torch.set_num_threads(1)
    setting = Setting(resolve(settings, (), stem="bench", source="tools/bench"))
    measured = profile(setting, torch.device("cpu"))
    cuts, balances = {}, {}
    for stages in numbers:
        cuts[stages], costs = choose_cuts(setting, stages, measured)
        times = [sum(costs[i] for i in part) for part in ranges(cuts[stages], len(costs))]
        loads = times if stages == RANKS else [times[k] + times[-1 - k] for k in range(RANKS)]
        balances[stages] = sum(loads) / max(loads)
    return cuts, balances


def charged_or_not(contender: Contender) -> list[Contender]:
    """The rows of a contender: two, where a refresh is part of its turns."""
    if contender.failure or "refresh_s" not in contender.notes[0][0]:
        return [contender]
    spared = [[note | {"seconds": note["seconds"] - note["refresh_s"]} for note in notes] for notes in contender.notes]
    charged = replace(contender, label=", refresh charged")
    return [charged, replace(contender, label=", refresh not charged", notes=spared)]


def row(contender: Contender, everyone: Sequence[Contender], rivals: Sequence[str] = ()) -> dict[str, Any]:
    """Medians of a contender, and ratios of the same round: steps of one core in the time of one of its own."""
    found: dict[str, Any] = {"name": contender.name, "failure": contender.failure}
    if contender.failure:
        return found
    able = {each.name: each for each in everyone if not each.failure}
    seconds, mine = {name: each.seconds() for name, each in able.items()}, contender.seconds()
    found |= {"n": len(mine), "median_s": statistics.median(mine), "min_s": min(mine), "max_s": max(mine)}
    per_step = 1 / RANKS if contender.name == "copies" else 1.0  # two copies make two steps at once
    for name, key, share in (("one", "over_one_core", 1.0), ("copies", "of_two_copies", 1 / RANKS)):
        if name in seconds:
            found[key] = share / per_step * ratio(seconds[name], mine)
    if "one" in able:  # that of all processes
        spent = zip(contender.cpu_seconds(), able["one"].cpu_seconds(), strict=True)
        found["more_cpu_s"] = statistics.median(per_step * cpu_s - alone for cpu_s, alone in spent)
    others = {name: seconds[name] for name in rivals if name in seconds}
    found["over"] = {name: (ratio(theirs, mine), *interval(theirs, mine)) for name, theirs in others.items()}
    for key in ("exposed_s", "imbalance_s", "io_s"):
        if key in contender.notes[0][0]:
            by_rank = zip(*contender.notes, strict=True)
            found[key] = [statistics.median(note[key] for note in notes) for notes in by_rank]
    return found


def line(found: dict[str, Any]) -> str:
    if found["failure"]:
        return f"{found['label']:<50} FAILED {found['failure']}"
    times = [f"{found[key]:.3f}" for key in ("median_s", "min_s", "max_s")]
    keys = ("over_one_core", "of_two_copies", "of_its_bound")
    ratios = [f"{found[key]:.2f}" if key in found else "-" for key in keys]
    cpu = f"{1e3 * found['more_cpu_s']:+.1f}" if "more_cpu_s" in found else "-"
    text = LINE.format(found["label"], found["norm"], *times, *ratios, cpu)
    for name, (middle, low, high) in found["over"].items():
        text += f"\n    {middle:.3f} times as fast as {name}, 95 % interval {low:.3f} to {high:.3f}"
    if "exposed_s" in found:
        for rank, parts in enumerate(zip(found["exposed_s"], found["io_s"], found["imbalance_s"], strict=True)):
            shares = [f"{100 * part / found['median_s']:.1f} %" for part in parts]
            text += "\n    stage {}: exposed messages {}, store {}, imbalance {}".format(rank, *shares)
    return text
