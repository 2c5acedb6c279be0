"""The numbers stay what they were: the weights after every epoch of every method, and a run of an earlier version."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from hpcsplit import cli
from hpcsplit.config.declared import declared_methods
from tests.golden.runs import EXPECTED, METHODS, in_portable_arithmetic

EXPECT = json.loads(EXPECTED.read_text())


@pytest.mark.slow
def test_the_weights_of_every_epoch_are_those_of_before() -> None:
    found = json.loads(in_portable_arithmetic("tests.golden.runs"))
    assert found["runs"].keys() == EXPECT["runs"].keys()
    for name, epochs in EXPECT["runs"].items():
        losses = [loss for _, loss in found["runs"][name]]
        assert losses == pytest.approx([loss for _, loss in epochs], rel=1e-3, nan_ok=True), name
    if found["torch"] == EXPECT["torch"]:  # another one may add in another order
        assert found["runs"] == EXPECT["runs"]


def test_every_method_is_among_them() -> None:
    assert {name.split()[0] for name in METHODS} == declared_methods().keys()


# ------------------------------------------------------------------------------------------------ an earlier version
# earlier.tar.gz: `train` of "al, K = 2" at 0.1.0 (commit 6071a41), stopped after step 3 of its second parallel epoch.


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("earlier.tar.gz")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.0 to 3.11.3 has none
        archive.extractall(tmp_path)
    return tmp_path / "earlier"


@pytest.mark.slow
def test_its_run_is_read_and_continued(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = earlier / "config.toml"
    (earlier.parent / "as-it-was.toml").write_text(toml.read_text())
    own = ["--config", str(earlier.parent / "as-it-was.toml")]
    assert cli.main(["evaluate", str(earlier), *own, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["weights_sha256"]) == 64
    assert cli.main(["export", str(earlier), *own, "--out", str(earlier.parent / "weights.pt")]) == 0
    assert (earlier.parent / "weights.pt").stat().st_size > 10_000
    assert cli.main(["report", str(earlier), "--out", str(earlier.parent / "page.html")]) == 0
    assert "test accuracy" in (earlier.parent / "page.html").read_text().lower()

    said = in_portable_arithmetic("hpcsplit", "train", own[1], "--run-dir", earlier)
    assert "epoch 3/5" in said
    assert "epoch 2/5" not in said
    records = [json.loads(line) for line in (earlier / "records.jsonl").read_text().splitlines()]
    expected = EXPECT["runs"]["al, K = 2"]
    assert [record["loss"] for record in records] == pytest.approx([loss for _, loss in expected], rel=1e-3)
    if EXPECT["torch"] in (earlier / "provenance.json").read_text():
        assert [record["weights_sha256"][:16] for record in records] == [digest for digest, _ in expected]
