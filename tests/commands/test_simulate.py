"""`simulate`: what it prints and draws, from a profile that lies in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.plan.blocks import BlockTime
from hpcsplit.plan.profile import CutCost, Profile
from tests.engine.small import write_toml

Command = Callable[..., tuple[int, str, str]]
BLOCKS = 6  # of the small network


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return write_toml(tmp_path / "c.toml", 1, split__cuts="flops", schedule__microbatches=2)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Six equal blocks, cuts that cost nothing: K stages of equal length where 6 is a multiple of K."""
    times, pieces = (BlockTime(0.001, 0.002),) * BLOCKS, (BlockTime(0.0005, 0.001),) * BLOCKS
    even = Profile(times, pieces, 2, (CutCost(),) * BLOCKS, (1,) * BLOCKS, 0.0, 0.0)
    path = tmp_path / "forecast.json"
    path.write_text(json.dumps({"profile": asdict(even)}))
    return path


def rows(hpcsplit: Command, toml: Path, profile: Path, *words: object) -> list[dict[str, Any]]:
    free = ("--latency-us", "0", "--bandwidth-gb", "0")
    code, out, err = hpcsplit("simulate", toml, "--profile", profile, "--json", *free, *words)
    assert code == 0, err
    answer: list[dict[str, Any]] = json.loads(out)["rows"]
    return answer


def test_even_stages_reach_what_their_number_and_the_bubble_allow(hpcsplit: Command, toml: Path, profile: Path) -> None:
    found = rows(hpcsplit, toml, profile, "--ranks", "1,2,3,6", "--data.limit_train", "320000")
    assert [each["parallel_speed_up"] for each in found] == pytest.approx([1, 2, 3, 6])
    assert [each["exact_speed_up"] for each in found] == pytest.approx([k * 2 / (k + 1) for k in (1, 2, 3, 6)])
    # S PPP S and one refresh, whose pass of 1 ms a block is a pipeline: a third of a parallel epoch
    parts = [2 / each["exact_speed_up"] + (3 + 1 / 3) / each["parallel_speed_up"] for each in found]
    assert [each["hybrid_speed_up"] for each in found] == pytest.approx([5 / part for part in parts], rel=1e-3)
    assert {each["parallel_binds"] for each in found} == {"computation"}


def test_weight_gradients_wait_where_they_did_in_the_run(hpcsplit: Command, toml: Path, profile: Path) -> None:
    """Half of a backward pass; two stages and micro-batches: F F . B W B W | . F B F B W W, and without F F . . B B."""
    values = json.loads(profile.read_text())
    late = [piece | {"weights_s": 0.0005} for piece in values["profile"]["pieces"]]
    for waiting, gain in ((late, 12 / 7), ([], 4 / 3)):
        profile.write_text(json.dumps({"profile": values["profile"] | {"late": waiting}}))
        (found,) = rows(hpcsplit, toml, profile, "--ranks", "2")
        assert found["exact_speed_up"] == pytest.approx(gain)
    profile.write_text(json.dumps({"profile": values["profile"] | {"late": late}}))
    (found,) = rows(hpcsplit, toml, profile, "--ranks", "2", "--schedule.deferred", "false")
    assert found["exact_speed_up"] == pytest.approx(4 / 3)


def test_more_ranks_than_blocks_have_a_deeper_network(hpcsplit: Command, toml: Path, profile: Path) -> None:
    few, many = rows(hpcsplit, toml, profile, "--ranks", "6,16")
    assert (few["deeper"], few["blocks"]) == (1, 6)
    assert (many["deeper"], many["blocks"]) == (16, 66)  # 4 for each rank, of the 4 inner ones
    assert many["one_rank_s"] == pytest.approx(66 * 0.003)
    assert many["nodes"] == 2


def test_a_fixed_depth_is_kept_and_more_ranks_are_refused(hpcsplit: Command, toml: Path, profile: Path) -> None:
    (found,) = rows(hpcsplit, toml, profile, "--ranks", "10", "--deeper", "2")
    assert found["blocks"] == 10
    code, _, err = hpcsplit("simulate", toml, "--profile", profile, "--ranks", "11", "--deeper", "2")
    assert code == 65
    assert "11 stages need at least 11 blocks, but the network has 10" in err


def test_hundreds_of_ranks_are_no_matter(hpcsplit: Command, toml: Path, profile: Path) -> None:
    (found,) = rows(hpcsplit, toml, profile, "--ranks", "256")
    assert found["parallel_speed_up"] == pytest.approx(1026 / 5)  # the largest stage has 5 of 1026 blocks
    assert found["exact_speed_up"] == pytest.approx(256 * 2 / 257, rel=0.05)


def test_the_table_and_the_picture(hpcsplit: Command, toml: Path, profile: Path, tmp_path: Path) -> None:
    picture = tmp_path / "scaling.png"
    words = ("--ranks", "1,2,16", "--node", "4", "--straggler", "1.5", "--disk-gb", "2", "--out", picture)
    code, out, err = hpcsplit("simulate", toml, "--profile", profile, *words)
    assert code == 0, err
    lines = out.splitlines()
    assert "nodes of 4" in lines[0]
    assert "one rank 1.5 x slower" in lines[0]
    assert [line.split()[0] for line in lines[4:7]] == ["1", "2", "16"]
    assert lines[6].split()[1:5] == ["4", "66", "x", "16"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_delayed_gradients_of_very_many_ranks_are_left_out(hpcsplit: Command, toml: Path, profile: Path) -> None:
    code, out, err = hpcsplit(
        "simulate", toml, "--method.name", "delayed", "--profile", profile, "--ranks", "2,1024", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert [each["ranks"] for each in found["rows"]] == [2]
    assert "1024 ranks: left out" in found["notes"][0]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--straggler", "0.5"), 64, "--straggler 0.5 must be 1 or more"),
        (("--out", "picture.pdf"), 64, "--out picture.pdf must end in .png"),
        (("--node", "0"), 64, "--node"),
        (("--bandwidth-gb", "1,2,3"), 64, "--bandwidth-gb"),
        (("--latency-us", "fast"), 64, "--latency-us"),
        (("--profile", "absent.json"), 65, "absent.json has no profile of a run"),
        (("--schedule.microbatches", "4"), 65, "2 micro-batches in exact and 1 in parallel steps, this network has 6"),
        (("--method.name", "delayed", "--method.microbatches", "2"), 65, "this network has 6 blocks, with 2 and 2"),
    ],
    ids=lambda value: str(value),
)
def test_mistakes_are_named(
    hpcsplit: Command, toml: Path, profile: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    given = words if "--profile" in words else ("--profile", profile, *words)
    found, _, err = hpcsplit("simulate", toml, *given)
    assert found == code
    assert sentence in err


def test_layer_by_layer_is_no_pipeline_of_stages(hpcsplit: Command, tmp_path: Path, profile: Path) -> None:
    changes = {"method__name": "pdadmm", "schedule__ratio": "0:1", "schedule__warmup": 0, "model__name": "mlp"}
    toml = write_toml(tmp_path / "layers.toml", 1, split__cuts="flops", **changes)
    code, _, err = hpcsplit("simulate", toml, "--profile", profile)
    assert code == 65
    assert 'method.name = "pdadmm" works layer by layer' in err
