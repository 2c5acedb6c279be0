"""One run over MPI: what it prints, what it leaves, and that it computes what one process computes."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from pathlib import Path

import pytest

from tests.engine.small import records, train_here, weights, write_toml
from tests.whole.conftest import METHODS, Finished, Uninterrupted
from tests.wire.launch import needs_mpi, python

pytestmark = [needs_mpi, pytest.mark.mpi]

EPOCH_LINE = re.compile(r"epoch (\d)/5 (serial|parallel) +loss .* samples/s .* ETA ")


def test_it_ends_well(mpi_run: Finished) -> None:
    assert (mpi_run.ended.code, mpi_run.ended.err) == (0, "")


def test_output_to_a_file_is_plain_whole_lines(mpi_run: Finished) -> None:
    text = mpi_run.ended.out
    assert not re.search(r"[\r\x1b\x08]", text)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("|")]
    assert len(set(lines)) == len(lines)


def test_one_line_for_each_epoch(mpi_run: Finished) -> None:
    found = [EPOCH_LINE.match(line) for line in mpi_run.ended.out.splitlines() if line.startswith("epoch")]
    assert [(m[1], m[2][0]) for m in found if m] == list(zip("12345", "sppps", strict=True))


def test_closing_table_and_picture(mpi_run: Finished) -> None:
    summary = (mpi_run.folder / "summary.txt").read_text()
    assert summary in mpi_run.ended.out
    assert re.search(r"^\| parallel epochs +\| +3 \|", summary, re.MULTILINE)
    picture = (mpi_run.folder / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_layout_of_the_run_directory(mpi_run: Finished) -> None:
    files = {str(p.relative_to(mpi_run.folder)) for p in mpi_run.folder.rglob("*") if not p.is_dir()}
    checkpoint = "checkpoints/epoch-0005-step-000000"
    expected = {"config.toml", "provenance.json", "records.jsonl", "log/rank-000.log", "log/rank-001.log"}
    expected |= {f"{checkpoint}/{name}" for name in ("stage-000.h5", "stage-001.h5", "manifest.h5", "SHA256SUMS")}
    assert expected <= files
    assert not [name for name in files if ".tmp" in name]
    assert (mpi_run.folder / "checkpoints/latest").readlink() == Path("epoch-0005-step-000000")


def test_two_checkpoints_stay(mpi_run: Finished) -> None:
    names = [p.name for p in (mpi_run.folder / "checkpoints").iterdir() if not p.is_symlink()]
    assert sorted(names) == ["epoch-0004-step-000000", "epoch-0005-step-000000"]


def test_nothing_is_open_to_others(mpi_run: Finished) -> None:
    for path in mpi_run.folder.rglob("*"):
        assert not path.lstat().st_mode & stat.S_IRWXO or path.is_symlink(), path


def test_the_resolved_configuration_can_be_run_again(mpi_run: Finished) -> None:
    resolved = tomllib.loads((mpi_run.folder / "config.toml").read_text())
    assert resolved["data"]["limit_train"] == 100
    assert resolved["method"]["eta_lambda"] == 1.0


def test_provenance(mpi_run: Finished) -> None:
    [start] = json.loads((mpi_run.folder / "provenance.json").read_text())["starts"]
    assert start["argv"][1:3] == ["train", str(mpi_run.toml)]
    assert "MPICH" in start["mpi"]
    assert len(start["ranks"]) == 2
    assert start["cuts"] == [3]
    assert {"torch", "numpy", "h5py", "mpi4py"} <= start["packages"].keys()


def test_records_have_every_promised_key(mpi_run: Finished) -> None:
    keys = {"epoch", "phase", "loss", "test_loss", "train_accuracy", "test_accuracy", "test_accuracy_bn", "wall_s"}
    keys |= {"train_s", "refresh_s", "checkpoint_s", "samples_per_s", "aux_loss", "weights_sha256", "stages"}
    per_stage = {"stage", "violation", "label_signal", "penalty_signal", "compute_s", "exposed_comm_s", "exposed_io_s"}
    per_stage |= {"peak_rss_bytes"}
    for record in records(mpi_run.folder):
        assert keys <= record.keys()
        assert [per_stage <= stage.keys() for stage in record["stages"]] == [True, True]


def test_numbers_of_a_parallel_epoch(mpi_run: Finished) -> None:
    record = records(mpi_run.folder)[2]
    first, last = record["stages"]
    assert record["phase"] == "parallel"
    assert first["violation"] == 0.0
    assert last["violation"] > 0.0
    assert (last["label_signal"], last["label_ratio"]) == (1.0, 1.0)
    assert -1.0 <= first["label_signal"] <= 1.0
    assert record["samples_per_s"] == pytest.approx(100 / record["train_s"], rel=0.3)
    assert record["aux_loss"] > 0.0


def test_bytes_on_the_wire_of_a_parallel_epoch(mpi_run: Finished) -> None:
    """Each sample's λ (8 x 7 x 7 float32) travels back once and its x forward once."""
    sent = [stage["sent_bytes"] for stage in records(mpi_run.folder)[2]["stages"]]
    assert sent == [100 * 8 * 7 * 7 * 4] * 2


def test_times_of_a_stage_fit_into_its_epoch(mpi_run: Finished) -> None:
    for record in records(mpi_run.folder):
        for stage in record["stages"]:
            parts = [stage[k] for k in ("compute_s", "exposed_comm_s", "exposed_io_s", "imbalance_s")]
            assert min(parts) >= 0.0
            assert sum(parts) <= record["train_s"] * 1.001


def test_two_ranks_compute_what_one_process_computes(mpi_run: Finished, uninterrupted: Uninterrupted) -> None:
    assert weights(mpi_run.folder) == uninterrupted("penalty", 2)


def test_a_run_that_times_its_stages_first_ends_with_the_same_weights(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **METHODS["penalty"], run__baseline=True)
    ended = python("-m", "hpcsplit", "train", toml, "--run-dir", tmp_path / "run", ranks=2)
    assert ended.code == 0, ended.err
    assert weights(tmp_path / "run") == uninterrupted("penalty", 2)
    expected = json.loads((tmp_path / "run" / "forecast.json").read_text())
    assert expected["profile_together"]["blocks"] != expected["profile"]["blocks"]
    assert "forecast from a profile before the run" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.weekly)])
def test_ranks_compute_what_one_process_computes(ranks: int, tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    """Every method over MPI with rows in files, against all stages in one process with rows in memory."""
    words = []
    for name, changes in METHODS.items():
        words += [write_toml(tmp_path / f"{name}.toml", ranks, **changes), tmp_path / name]
    ended = python("-m", "tests.whole.several", *words, ranks=ranks)
    assert ended.code == 0, ended.err
    for name in METHODS:
        assert weights(tmp_path / name) == uninterrupted("backprop" if name == "deferred" else name, ranks), name


def test_one_rank_alone_needs_no_mpi(uninterrupted: Uninterrupted) -> None:
    assert uninterrupted("backprop", 1) == uninterrupted("backprop", 2)


def test_a_finished_run_started_again_prints_its_table(mpi_run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    before = (mpi_run.folder / "records.jsonl").read_bytes()
    assert train_here(mpi_run.toml, mpi_run.folder) == 0
    out = capsys.readouterr().out
    assert (mpi_run.folder / "summary.txt").read_text() in out
    assert not EPOCH_LINE.search(out)
    assert (mpi_run.folder / "records.jsonl").read_bytes() == before
