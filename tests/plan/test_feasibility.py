"""What cannot be run is refused by `plan` and by `train` in the same words, before anything is made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpcsplit import cli
from hpcsplit.errors import ConfigError
from hpcsplit.plan import feasibility
from hpcsplit.plan.setting import Setting
from tests.engine.small import config, train_here, write_toml

FREE = 1000


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hpcsplit: ")]
    assert len(lines) == 1, lines
    assert code
    return lines[0]


def both(toml: Path, run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and sentence, which the two commands share."""
    code = cli.main(["plan", str(toml), "--run-dir", str(run), *words])
    sentence = refused(capsys, code)
    assert train_here(toml, run, *words) == code
    assert refused(capsys, code) == sentence
    assert not run.exists()
    return code, sentence


def test_more_stages_than_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 1, split__cuts="flops")
    code, sentence = both(toml, tmp_path / "run", capsys, "--run.stages", "40")
    assert code == 65
    assert "40 stages need at least 40 blocks" in sentence
    assert "start at most" in sentence


def test_the_memory_of_a_gpu_is_for_the_ranks_that_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setting, "device", lambda self, rank=0: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # of those that this rank sees
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    need = {"weights": 20, "activations": 30, "images": 10, "peak": 60}
    feasibility._check_memory(Setting(config(1)), [need] * 4, 1)
    for ranks in (2, 0):
        with pytest.raises(ConfigError, match="4 stages would need"):
            feasibility._check_memory(Setting(config(1)), [need] * 4, ranks)


@pytest.mark.parametrize(("method", "own"), [("delayed", " raise method.microbatches,"), ("penalty", "")])
def test_a_method_says_which_of_its_options_save_memory(method: str, own: str) -> None:
    need, setting = {"peak": 1 << 60}, Setting(config(1, method__name=method))
    with pytest.raises(ConfigError, match=f"in exact epochs,{own} keep the store on disk"):
        feasibility._check_memory(setting, [need], 0)


@pytest.mark.parametrize(("method", "own"), [("penalty", " raise method.downsample,"), ("gsadmm", "")])
def test_a_store_without_room_on_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str, own: str
) -> None:
    monkeypatch.setattr(feasibility, "free_bytes", lambda folder: FREE)
    code, sentence = both(write_toml(tmp_path / "c.toml", 2, method__name=method), tmp_path / "run", capsys)
    assert code == 73
    assert f'store.dtype = "float16",{own} or use fewer samples' in sentence
    assert f"{tmp_path / 'run' / 'aux'}: the store of 2 stages needs" in sentence
    assert f"{FREE} are free; set store.path" in sentence


def test_rows_that_are_there_already_need_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, schedule__epochs=2)
    assert train_here(toml, tmp_path / "run") == 0
    monkeypatch.setattr(feasibility, "free_bytes", lambda folder: FREE)
    assert cli.main(["plan", str(toml), "--run-dir", str(tmp_path / "run")]) == 0


def test_more_memory_than_the_machine_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasibility, "memory_limit_bytes", lambda: 3_000_000)
    toml = write_toml(tmp_path / "c.toml", 2)
    code, sentence = both(toml, tmp_path / "run", capsys)
    assert code == 65
    assert "2 stages would need" in sentence
    assert "this node has 0.0 GB; lower data.batch_size" in sentence


def test_a_node_s_share_of_the_stages_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasibility, "free_bytes", lambda folder: FREE)
    toml = write_toml(tmp_path / "c.toml", 2)
    words = ["plan", str(toml), "--run-dir", str(tmp_path / "run")]
    assert cli.main(words) == 73
    assert cli.main([*words, "--node", "1"]) == 0  # the first stage keeps no rows


def test_a_line_of_the_summary_says_what_would_be_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasibility, "free_bytes", lambda folder: FREE)
    toml = write_toml(tmp_path / "c.toml", 1, split__cuts="flops")
    assert cli.main(["plan", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "refused: " in said
    assert "\n    1 " in said
    assert "  ranks: 1; " in said  # all others have no room
