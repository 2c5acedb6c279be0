"""The numbers of a report: the CSV has the records to the digit; times add up; the points of the plane."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import pytest

from hpcsplit.report.curves import points
from hpcsplit.report.summary import COLUMNS, csv_text, overview
from hpcsplit.report.times import balance, run_parts
from hpcsplit.run.records import EpochRecord
from tests.report.made import BARE, run


def rows(runs: dict[str, list[EpochRecord]]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(runs))))


def test_the_csv_has_every_number_of_the_records_to_the_digit() -> None:
    records = run("sppsp", stages=3)
    found = rows({"one": records})
    assert len(found) == len(records)
    for row, record in zip(found, records, strict=True):
        values = dataclasses.asdict(record)
        stages, terms, theorem = (values.pop(key) for key in ("stages", "terms", "theorem"))
        expected = values | {"run": "one", "epoch": record.epoch + 1}
        expected |= {f"terms.{key}": value for key, value in (terms or {}).items()}
        for k, stage in enumerate(stages):
            assert stage.pop("stage") == k
            expected |= {f"stage{k}.{key}": value for key, value in stage.items()}
        for key, value in (theorem or {}).items():
            several = isinstance(value, list)
            expected |= (
                {f"theorem.{key}.{k}": v for k, v in enumerate(value, 1)} if several else {f"theorem.{key}": value}
            )
        assert {k: text for k, text in row.items() if text} == {k: str(v) for k, v in expected.items() if v is not None}


def test_runs_share_the_columns_and_stages_come_in_their_order() -> None:
    text = csv_text({"small": run("s", stages=2), 'a, "b"': run("spp", stages=12)})
    header, *_ = csv.reader(io.StringIO(text))
    assert header[:3] == ["run", "epoch", "phase"]
    places = [header.index(f"stage{k}.compute_s") for k in range(12)]
    assert places == sorted(places)
    assert len(set(header)) == len(header)
    assert rows({'a, "b"': run("s")})[0]["run"] == 'a, "b"'


def test_a_line_from_before_memory_and_checkpoints_is_read() -> None:
    values = json.loads(run("s")[0].to_json())
    del values["checkpoint_s"]
    for stage in values["stages"]:
        del stage["peak_rss_bytes"]
    old = EpochRecord.from_json(json.dumps(values))
    assert (old.checkpoint_s, old.stages[0].peak_rss_bytes) == (None, None)
    assert rows({"old": [old]})[0]["stage0.peak_rss_bytes"] == ""
    assert run_parts([old])["evaluation and checkpoint"] == pytest.approx(1.5)


def test_the_parts_of_a_run_are_all_its_seconds() -> None:
    records = run("spp")
    parts = run_parts(records)
    assert sum(parts.values()) == pytest.approx(sum(record.wall_s or 0.0 for record in records))
    assert parts["computing"] == pytest.approx(3 * (2.0 + 1.75) / 2)
    assert parts["imbalance"] == pytest.approx(3 * 0.25 / 2)
    assert parts["refresh"] == 0.5
    assert parts["checkpoint"] == 0.75
    assert sum(run_parts(BARE).values()) == 0.0


def test_balance_is_the_quickest_over_the_slowest_stage() -> None:
    assert balance(run("p", stages=3)[0]) == 1.5 / 2.0
    assert balance(run("s", stages=1)[0]) is None
    assert balance(BARE[0]) is None


def test_the_plane_adds_up_training_and_refresh() -> None:
    records = run("spp")
    expected: list[tuple[float, Any]] = [
        (2.5, pytest.approx(60.0)),
        (5.5, pytest.approx(80.0)),
        (8.0, pytest.approx(100 - 40 / 3)),
    ]
    assert points(records) == expected
    unknown = dataclasses.replace(records[1], train_s=None)
    assert points([records[0], unknown, records[2]]) == points(records)[:1]
    untested = dataclasses.replace(records[1], test_accuracy=None)
    assert [seconds for seconds, _ in points([records[0], untested, records[2]])] == [2.5, 8.0]


def test_a_line_of_the_overview() -> None:
    [row] = overview({"one": run("spp")})
    assert dict(zip(COLUMNS, row, strict=True)) == {
        "run": "one",
        "epochs": "3",
        "parallel": "2",
        "test accuracy": "86.67%",
        "best": "86.67%",
        "train s": "8.0",
        "parallel samples/s": "100",
        "label signal": "0.32, 1.00",
    }
    assert overview({"one": BARE}) == [("one", "1", "0", "-", "-", "0.0", "-", "-")]
