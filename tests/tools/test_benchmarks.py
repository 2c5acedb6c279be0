"""Every benchmark is run at its smallest size: no contender fails, and the table has all rows."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.wire.launch import needs_mpi
from tools.benchmarks import forecast, scale, start

pytestmark = [
    needs_mpi,
    pytest.mark.mpi,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks want two cores"),
]
BOTH = ("--networks", "resnet8", "--batch", "4", "--steps", "1", "--rounds", "1")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench(name, *options): the values that tools/bench NAME wrote down, in one thread and a folder of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run(name: str, *options: str) -> Any:
        monkeypatch.setattr("sys.argv", [name, *options, "--out", str(tmp_path / "out")])
        importlib.import_module(f"tools.benchmarks.{name}").main()
        assert (tmp_path / "out" / f"{name}.txt").read_text().startswith(f"tools/bench {name} ")
        return json.loads((tmp_path / "out" / f"{name}.json").read_text())["values"]

    return run


def raced(values: Any) -> dict[str, dict[str, Any]]:
    """The rows of a race with one network, all of which have a time."""
    (table,) = values
    assert [row["failure"] for row in table["rows"]] == [""] * len(table["rows"])
    assert all(0 < row["min_s"] <= row["median_s"] <= row["max_s"] for row in table["rows"])
    assert all(1.0 < balance <= 2.0 for balance in table["balances"].values())
    return {row["name"]: row for row in table["rows"]}


@pytest.mark.slow
def test_every_way_to_train_takes_part(bench: Any) -> None:
    ways = ["one", "two", "ddp", "zb-h1-4", "zbv-4", "exact-4", "parallel"]
    rows = raced(bench("step", *BOTH, "--at-once", "9", "--only", ",".join(ways)))
    assert list(rows) == ways
    assert all(row["over_one_core"] > 0 for row in rows.values())
    assert rows["one"]["over_one_core"] == 1.0
    for name in ("exact-4", "parallel"):
        assert len(rows[name]["exposed_s"]) == len(rows[name]["io_s"]) == 2


@pytest.mark.usefixtures("compiler")
def test_sharded_training_takes_part(bench: Any) -> None:
    (table,) = bench("step", *BOTH, "--only", "fsdp")
    assert [row["failure"] for row in table["rows"]] == [""]


def test_the_hybrid_is_charged_with_its_refresh(bench: Any) -> None:
    (table,) = bench("hybrid", *BOTH, "--only", "hybrid-4")
    charged, spared = table["rows"]
    assert (charged["failure"], spared["failure"]) == ("", "")
    assert charged["median_s"] > spared["median_s"] > 0


def test_scale(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"data": {"limit_train": 8, "batch_size": 4}}
    net = {"model": {"name": "mlp", "width": 8, "depth": 3}, "split": {"cuts": [1]}}
    monkeypatch.setattr(scale, "GROUPS", {"rows, of few": {"few": ([net, small], 2)}, "none": {}})
    (row,) = bench("scale", "--rounds", "2", "--only", "rows")
    assert (row["failure"], row["n"]) == ("", 2)
    assert row["sample_s"] == row["step_s"] / 4 > 0
    assert 10 < row["mib"] < 4000


@pytest.mark.slow
def test_start(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"python -c pass": (["-c", "pass"], 1, ""), "2 ranks": (["-c", "pass"], 2, "python -c pass")}
    monkeypatch.setattr(start, "ROWS", words)
    rows = {row["label"]: row for row in bench("start", "--rounds", "1")}
    assert list(rows) == [*words, start.FIRST_STEP]
    assert rows["2 ranks"]["ratio"] == rows["2 ranks"]["median_s"] / rows["python -c pass"]["median_s"]
    assert rows[start.FIRST_STEP]["median_s"] > rows["2 ranks"]["median_s"]


def test_store(bench: Any) -> None:
    assert bench("store", "--rows", "256", "--batch", "64", "--rounds", "1")


@pytest.mark.slow
def test_wire(bench: Any) -> None:
    rows = bench("wire", "--rounds", "1")
    sizes = [row["bytes"] for row in rows]
    assert sizes == sorted(sizes)
    assert all(row[key] > 0 for row in rows for key in ("copy_s", "one_way_s", "exchange_s"))
    assert rows[-1]["one_way_s"] > rows[0]["one_way_s"]  # 64 MiB and 4 KiB


@pytest.mark.slow
def test_forecast(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "RANKS", (2,))
    monkeypatch.setattr(forecast, "EPOCHS", 2)
    *timed, _, _, _, _ = rows = bench("forecast", *BOTH, "--microbatches", "2")
    assert [(row["phase"], row["ranks"], len(row["runs"])) for row in timed] == [("serial", 2, 1), ("parallel", 2, 1)]
    assert all(seconds > 0 for row in timed for seconds in row["runs"][0].values())
    assert all(row["lockstep"] == row["simulated"] for row in rows[2:])
