from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.errors import DataError
from hpcsplit.run.records import EpochRecord, Records, StageRecord, TheoremRecord


def record(epoch: int) -> EpochRecord:
    stages = (StageRecord(0, violation=0.0, sent_bytes=4096), StageRecord(1, label_signal=1.0, compute_s=0.25))
    return EpochRecord(epoch, "parallel", loss=0.5, test_accuracy=0.75, beta=None, weights_sha256="ab", stages=stages)


def test_a_record_survives_the_round_trip() -> None:
    text = record(3).to_json()
    assert "\n" not in text
    assert EpochRecord.from_json(text) == record(3)


TERMS = {"objective": 0.0035629877563543412, "residual_sq": 2.2201418632844825e-09}
THEOREM: TheoremRecord = {
    "gap": 0.024316478791896395,
    "bound": None,
    "worst": None,
    "residuals": [0.011279594672361486, 0.5],
    "lipschitz": [None, 44.80805604458964],
    "missing": ["stage 1: no estimate: Softsign"],
}


def test_terms_and_theorem_survive_the_round_trip() -> None:
    whole = dataclasses.replace(record(3), terms=TERMS, theorem=THEOREM)
    assert EpochRecord.from_json(whole.to_json()) == whole


def test_a_bound_that_is_not_finite_becomes_null() -> None:
    infinite: Any = THEOREM | {"bound": math.inf, "lipschitz": (math.inf, 2.0)}  # the sequence that is made is a tuple
    text = EpochRecord(0, "parallel", theorem=infinite).to_json()
    theorem = json.loads(text, parse_constant=pytest.fail)["theorem"]
    assert theorem["bound"] is None
    assert theorem["lipschitz"] == [None, 2.0]


def test_a_line_from_an_older_version_is_read() -> None:
    values = json.loads(record(1).to_json())
    del values["terms"], values["theorem"], values["checkpoint_s"]
    for stage in values["stages"]:
        del stage["peak_rss_bytes"]
    assert EpochRecord.from_json(json.dumps(values)) == record(1)


def test_numbers_that_are_not_finite_become_null() -> None:
    text = EpochRecord(0, "serial", loss=float("nan"), stages=(StageRecord(0, violation=float("inf")),)).to_json()
    values = json.loads(text, parse_constant=pytest.fail)
    assert values["loss"] is None
    assert values["stages"][0]["violation"] is None


def test_a_line_that_does_not_say_so_is_of_an_epoch_that_was_not_recomputed() -> None:
    assert EpochRecord.from_json('{"epoch": 1, "phase": "parallel"}') == EpochRecord(1, "parallel", recomputed=False)


def test_a_square_may_be_zero() -> None:
    read = EpochRecord.from_json('{"epoch": 1, "phase": "parallel", "terms": {"residual_sq": 0.0}}')
    assert read.terms == {"residual_sq": 0.0}


def test_unknown_keys_are_left_out() -> None:
    values = json.loads(record(1).to_json())
    values["of_the_future"] = 1
    values["stages"][0]["of_the_future"] = [2]
    assert EpochRecord.from_json(json.dumps(values)) == record(1)


ODD: list[dict[str, Any]] = [
    {"phase": "odd"},
    {"loss": "high"},
    {"terms": [1.0]},
    {"stages": [{"stage": "0"}]},
    {"epoch": None},
    {"lr": [1]},
]
ODD += [{"loss": True}, {"loss": 10**400}, {"loss": 1e301}, {"recomputed": 1}, {"epoch": -1}, {"epoch": 1.0}]
ODD += [
    {"terms": {"a": {}}},
    {"terms": {"residual_sq": -1.0}},
    {"theorem": {}},
    {"theorem": THEOREM | {"missing": [1]}},
]
ODD += [{"theorem": THEOREM | {"gap": "1"}}, {"theorem": THEOREM | {"residuals": 1}}, {"stages": 7}, {"stages": [7]}]
ODD += [{"theorem": THEOREM | {"lipschitz": ["x"]}}, {"stages": [{"stage": 1 << 62}]}, {"weights_sha256": 1}]
ODD += [{"loss": float("nan")}, {"loss": -math.inf}, {"stages": [{"stage": 0, "compute_s": "\x1b[31m"}]}, {"phase": []}]
TEXTS = [
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"epoch": ' + "1" * 5000 + "}",
    '{"epoch": 1, "phase": "serial", "loss": 1e999}',
]
TEXTS += ["", "7", "[]", "{}", '{"epoch": 1}', '{"epoch": 1, "phase": "ser']


@pytest.mark.parametrize("text", [*TEXTS, *(json.dumps({"epoch": 1, "phase": "serial"} | odd) for odd in ODD)])
def test_what_is_no_record_is_a_data_error(text: str) -> None:
    with pytest.raises(DataError) as caught:
        EpochRecord.from_json(text)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_append_and_load(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    assert records.load() == []
    for epoch in range(3):
        records.append(record(epoch))
    assert records.load() == [record(0), record(1), record(2)]
    assert records.path.read_text().count("\n") == 3


def test_the_same_epoch_is_not_written_twice(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.append(record(4))
    with pytest.raises(AssertionError, match="epoch 4"):
        records.append(record(4))


@pytest.mark.parametrize("left", [1, 30, -1])
def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path: Path, left: int) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.append(record(0))
    with records.path.open("a") as file:
        file.write(record(1).to_json()[:left])
    assert records.load() == [record(0)]
    records.append(record(1))
    assert records.load() == [record(0), record(1)]


def test_a_last_line_that_lacks_only_its_newline_counts(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.path.write_text(record(0).to_json())
    records.append(record(1))
    assert records.load() == [record(0), record(1)]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.path.write_text(record(0).to_json() + "\nrubbish\n" + record(2).to_json() + "\n")
    with pytest.raises(DataError, match="record 2 of 3"):
        records.load()


def test_epochs_out_of_order_are_named(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    for epochs in ((0, 1, 1), (0, 2, 1)):
        records.path.write_text("".join(record(epoch).to_json() + "\n" for epoch in epochs))
        with pytest.raises(DataError, match=f"has epoch 1 behind epoch {epochs[1]}; remove one of them"):
            records.load()


def test_truncate_drops_the_epochs_that_will_be_run_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.truncate(0)
    for epoch in range(5):
        records.append(record(epoch))
    records.truncate(3)
    assert [kept.epoch for kept in records.load()] == [0, 1, 2]
    records.append(record(3))
    assert [kept.epoch for kept in records.load()] == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]
