"""tools/bench: who is ready waits, who fails or hangs is struck off, nobody outlives the play; ratios and the page."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from hpcsplit.nets.catalog import lookup
from tools.benchmarks import page
from tools.benchmarks.hybrid import hybrid
from tools.benchmarks.step import NETWORKS
from tools.program import marked
from tools.timing.networks import ODE, blank110, ode
from tools.timing.race import (
    COPIES,
    DDP,
    ONE,
    PARALLEL,
    at_once,
    charged_or_not,
    delayed,
    exact,
    line,
    row,
    torch_pipeline,
    torchbraid,
    torchgpipe,
)
from tools.timing.table import interval, write
from tools.timing.turns import Contender, play

_PROGRAM = """
import sys, time
from tools.timing.turns import Player

kind, place, first = sys.argv[1:]
player = Player(place, int(first))
if kind == "fails":
    raise SystemExit("hpcsplit: no room")
for number in player.turns():
    if kind == "hangs" and number == 1:
        time.sleep(600)
    with open(player.place.parent / "order", "a") as order:
        print(number, kind, file=order)
    player.note(number, 0.5 + number + int(first), more=kind)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "contender.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\n{_PROGRAM}")
    return str(path)


def test_turns_interleave_and_failures_end_one_contender_only(tmp_path: Path, program: str) -> None:
    good = Contender("good", [([program, "good"], 1)] * 2)
    fails, hangs = (Contender(kind, [([program, kind], 1)]) for kind in ("fails", "hangs"))
    last = Contender("last", [([program, "last"], 1)])
    began, folder = time.monotonic(), tmp_path / "play"
    play([good, fails, hangs, last], 3, folder, limit_s=6.0)
    assert time.monotonic() - began < 60
    assert good.seconds() == [1.5, 2.5, 3.5]  # the slower of its two processes
    assert [[note["more"] for note in notes] for notes in last.notes] == [["last"]] * 3
    assert fails.failure == "ended (exit 1): hpcsplit: no room"
    assert hangs.failure.startswith("no answer in 6 s")
    assert len(hangs.notes) == 1
    rounds = [line.split() for line in (folder / "order").read_text().splitlines()]
    assert [number for number, _ in rounds] == sorted(number for number, _ in rounds)
    assert [kind for number, kind in rounds if number == "0"] == ["good", "good", "hangs", "last"]
    assert not [each for c in (good, fails, hangs, last) for each in marked(str(folder / c.name))]


def test_ratios_are_those_of_the_same_round() -> None:
    def played(name: str, seconds: list[float], processes: int = 1) -> Contender:
        starts: list[tuple[list[str], int]] = [([], 1)] * processes
        return Contender(name, starts, [[{"seconds": s, "cpu_s": 2 * s}] * processes for s in seconds])

    one, copies = played("one", [1.0, 2.0, 4.0]), played("copies", [1.1, 2.2, 4.4], 2)
    ours = played("parallel", [0.6, 1.2, 2.4])
    everyone = [one, copies, ours]
    assert row(ours, everyone)["over_one_core"] == pytest.approx(1 / 0.6)
    assert row(ours, everyone)["of_two_copies"] == pytest.approx(0.55 / 0.6)
    assert row(copies, everyone)["over_one_core"] == pytest.approx(2 / 1.1)
    assert row(copies, everyone)["of_two_copies"] == pytest.approx(1.0)
    more = {each.name: row(each, everyone)["more_cpu_s"] for each in everyone}  # than 4 s, of all processes, in round 2
    assert more == {"one": 0.0, "copies": pytest.approx(0.4), "parallel": pytest.approx(-1.6)}
    assert row(ours, everyone)["over"] == {}
    found = row(ours, everyone, ["one", "two"])["over"]
    assert found == {"one": (pytest.approx(1 / 0.6), pytest.approx(1 / 0.6), pytest.approx(1 / 0.6))}
    assert json.dumps(row(ours, everyone))


def test_an_interval_has_its_coverage() -> None:
    """Of 200 times twelve ratios, whose median is 1, about 95 % have it in their interval."""
    random = np.random.default_rng(3)
    drawn = np.exp(random.normal(0.0, 0.2, (200, 12)))
    inside = sum(low <= 1.0 <= high for low, high in (interval(each, [1.0] * 12) for each in drawn))
    assert 0.88 <= inside / 200 <= 0.99
    assert interval([2.0], [1.0]) == (0.0, math.inf)


def test_a_row_of_a_race_tells_its_waits_apart() -> None:
    """Three rounds of two ranks: every number in a note is another one, and medians are those of the second round."""

    def note(k: int, rank: int) -> dict[str, float]:
        middle = {"seconds": 2.0 - rank, "exposed_s": 0.26, "imbalance_s": 0.14, "io_s": 0.46}
        return {key: value * (1 + rank / 2) * (1 + (k - 1) / 10) for key, value in middle.items()}

    way = exact(4)
    played = Contender(way.name, [([], 2)], [[note(k, rank) for rank in (0, 1)] for k in range(3)])
    found = row(played, [played])
    assert (found["n"], found["median_s"]) == (3, 2.0)
    assert (found["min_s"], found["max_s"]) == (pytest.approx(1.8), pytest.approx(2.2))
    assert found["exposed_s"] == [pytest.approx(0.26), pytest.approx(0.39)]
    assert found["imbalance_s"] == [pytest.approx(0.14), pytest.approx(0.21)]
    assert found["io_s"] == [pytest.approx(0.46), pytest.approx(0.69)]
    ratios = {"over_one_core": 1.25, "of_two_copies": 0.75, "of_its_bound": 0.875, "more_cpu_s": 0.0123}
    said = {"label": "ours", "norm": "B/4", "over": {"zb-h1-4": (1.0312, 0.9871, 1.0449)}}
    first, over, *stages = line(found | ratios | said).splitlines()
    assert first.split() == ["ours", "B/4", "2.000", "1.800", "2.200", "1.25", "0.75", "0.88", "+12.3"]
    assert over == "    1.031 times as fast as zb-h1-4, 95 % interval 0.987 to 1.045"
    assert stages == [
        "    stage 0: exposed messages 13.0 %, store 23.0 %, imbalance 7.0 %",
        "    stage 1: exposed messages 19.5 %, store 34.5 %, imbalance 10.5 %",
    ]


def test_a_pipeline_is_bound_by_its_bubble_and_the_balance() -> None:
    assert exact(4).bound(balance=2.0) == pytest.approx(4 / 5)
    assert PARALLEL.bound(balance=1.8) == pytest.approx(0.9)
    assert DDP.bound(balance=1.8) == 1.0


def test_what_batch_norm_sees_is_said() -> None:
    ways = [ONE, DDP, PARALLEL, exact(1), exact(4), delayed(), hybrid(8), torch_pipeline("ZB-H1", 2)]
    assert [way.norm for way in ways] == ["B", "B/2", "B", "B", "B/4", "B", "B, B/8", "B/2"]


def test_the_networks_of_step_exist() -> None:
    for name in NETWORKS.split(","):
        lookup(name)


def test_who_cannot_take_part_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ONE.missing("resnet8") == exact(4).missing("resnet8") == ""
    assert "no torchgpipe here" in torchgpipe(4).missing("resnet8")
    assert torchbraid("mgrit").missing("resnet8").startswith("trains tools.timing.networks:ode only")
    assert "no torchbraid here" in torchbraid("mgrit").missing(ODE)
    monkeypatch.setitem(sys.modules, "torchgpipe", ModuleType("torchgpipe", None))
    sys.modules["torchgpipe"].__spec__ = ModuleSpec("torchgpipe", None)
    assert torchgpipe(4).missing("resnet8") == ""


@pytest.mark.parametrize("build", [blank110, ode])
def test_networks_of_races_train(build: Callable[..., nn.Sequential]) -> None:
    net = build((3, 32, 32), 10)
    net(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == {blank110: 109, ode: 33}[build]


def test_controls_take_part_in_every_group() -> None:
    ways = [ONE, COPIES, DDP, PARALLEL, exact(2), exact(4), exact(8)]
    groups = at_once(ways, 2)
    assert [[way.name for way in group] for group in groups] == [
        ["one", "copies", "ddp", "parallel"],
        ["one", "copies", "exact-2", "exact-4"],
        ["one", "copies", "exact-8"],
    ]
    rival = exact(16, rivals=("exact-8", "ddp"))
    assert [[way.name for way in group] for group in at_once([*ways, rival], 2)] == [
        ["one", "copies", "parallel", "exact-2"],
        ["one", "copies", "exact-4"],
        ["one", "copies", "ddp", "exact-8", "exact-16"],
    ]
    assert at_once([ONE], 2) == [[ONE]]
    assert at_once([DDP, PARALLEL], 4) == [[DDP, PARALLEL]]


def test_the_hybrid_is_shown_with_and_without_its_refresh() -> None:
    played = Contender(
        "hybrid-4", [([], 1)], [[{"seconds": 1.0, "refresh_s": 0.25}], [{"seconds": 2.0, "refresh_s": 0.5}]]
    )
    charged, spared = charged_or_not(played)
    assert (charged.seconds(), spared.seconds()) == ([1.0, 2.0], [0.75, 1.5])


def test_the_page_has_what_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["wire", "--rounds", "2"])
    write(tmp_path / "bench-wire", "wire", ["bytes  us", "4096  1.5"], [])
    write(tmp_path / "bench-wire-longer", "wire", ["bytes  us", "8192  2.5"], [])
    monkeypatch.setattr("sys.argv", ["page", "--runs", str(tmp_path), "--out", str(tmp_path / "page.md")])
    page.main()
    text = (tmp_path / "page.md").read_text()
    assert "## wire: Messages between two ranks" in text
    assert "tools/bench wire --rounds 2\nbytes  us\n4096  1.5\n\nhardware" in text
    assert text.count("8192  2.5") == 1
    assert "## step" not in text


def test_the_page_keeps_what_has_not_been_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, old = tmp_path / "page.md", ["## wire: old", "```\n1\n```", "## step: kept", "text\n\n```\n2\n```"]
    out.write_text("\n\n".join(["# Performance", *old]) + "\n")
    write(tmp_path / "bench-wire", "wire", ["bytes  us", "4096  1.5"], [])
    monkeypatch.setattr("sys.argv", ["page", "--runs", str(tmp_path), "--out", str(out)])
    for _ in range(2):  # the second time nothing changes
        page.main()
        text = out.read_text()
        assert text.index("## step: kept\n\ntext\n\n```\n2\n```\n\n## wire: Messages between two ranks") > 0
        assert "4096  1.5" in text
        assert "wire: old" not in text
