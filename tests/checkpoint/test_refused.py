"""A checkpoint that is damaged or of another run is not continued; the sentence says why and what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcsplit.checkpoint.state import read_weights
from hpcsplit.config import option_tree
from hpcsplit.config.config import changeable
from hpcsplit.errors import CheckpointError
from tests.checkpoint.conftest import Run, half_done
from tests.engine.small import Weights, weights

Refused = Callable[..., str]


def truncate(run: Run) -> None:
    path = run.newest / "stage-001.h5"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(run: Run) -> None:
    path = run.newest / "stage-000.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_a_sum(run: Run) -> None:
    path = run.newest / "SHA256SUMS"
    path.write_text(re.sub(r"^\w{8}(.*stage-001)", r"00000000\1", path.read_text(), flags=re.MULTILINE))


def forget_a_line(run: Run) -> None:
    path = run.newest / "SHA256SUMS"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "stage-001" not in line))


def scribble(run: Run) -> None:
    (run.newest / "SHA256SUMS").write_text("../../etc/passwd\n")


def leave_the_folder(run: Run) -> None:
    """A line that is right in all but its name."""
    path = run.newest / "SHA256SUMS"
    path.write_text(path.read_text().replace("  stage-001.h5", "  ../stage-001.h5"))
    (run.newest / "stage-001.h5").rename(run.checkpoints / "stage-001.h5")


def name_a_path(run: Run) -> None:
    path = run.newest / "SHA256SUMS"
    path.write_text(path.read_text() + "0" * 64 + "  /etc/hostname\n")


def remove_a_stage(run: Run) -> None:
    (run.newest / "stage-001.h5").unlink()


def remove_the_manifest(run: Run) -> None:
    (run.newest / "manifest.h5").unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "stage-001.h5 does not have the checksum"),
        (flip_a_bit, "stage-000.h5 does not have the checksum"),
        (edit_a_sum, "stage-001.h5 does not have the checksum"),
        (forget_a_line, "stage-001.h5 is not listed in SHA256SUMS"),
        (scribble, "SHA256SUMS has the line '../../etc/passwd'"),
        (leave_the_folder, "SHA256SUMS has the line"),
        (name_a_path, "SHA256SUMS has the line"),
        (remove_a_stage, "stage-001.h5 cannot be read (No such file or directory)"),
        (remove_the_manifest, "manifest.h5 cannot be read (No such file or directory)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_named_and_the_checkpoint_before_offered(
    half: Run, refused: Refused, harm: Callable[[Run], None], reason: str
) -> None:
    harm(half)
    said = refused()
    assert f"{half.newest} is damaged: {reason}" in said
    assert "the one before it, epoch-0002-step-000000, takes its place" in said
    assert said.count("hpcsplit: ") == 1


def test_a_stage_that_is_not_listed_is_named_with_other_cuts_too(half: Run, refused: Refused) -> None:
    forget_a_line(half)
    assert "stage-001.h5 is not listed in SHA256SUMS" in refused("--split.cuts", "[2]")


def test_weights_of_another_network_are_refused_with_their_folder(half: Run) -> None:
    with pytest.raises(CheckpointError, match=rf"^{half.newest}: the checkpoint has .*, this network has not"):
        read_weights(half.newest, {})


def test_the_offer_holds(half: Run, never_stopped: Weights) -> None:
    """The checkpoint before refers to rows that have been overwritten: its weights are taken, the rows recomputed."""
    shutil.rmtree(half.newest)
    assert half.go() == 0
    assert weights(half.folder)[:2] == never_stopped[:2]
    assert [epoch for epoch, _ in weights(half.folder)] == [0, 1, 2, 3, 4]


def test_without_an_older_one_the_run_begins_anew(half: Run, refused: Refused, never_stopped: Weights) -> None:
    shutil.rmtree(half.checkpoints / "epoch-0002-step-000000")
    truncate(half)
    assert "the run starts from the beginning" in refused()
    shutil.rmtree(half.newest)
    assert half.go() == 0
    assert weights(half.folder) == never_stopped


@pytest.mark.parametrize(
    ("key", "value", "section", "was"),
    [
        ("data.batch_size", 50, "data", "40"),
        ("model.block", "pre", "model", '"post"'),
        ("method.beta", 3.0, "method", "10.0"),
        ("optim.lr", 0.01, "optim", "0.05"),
        ("schedule.epochs", 9, "schedule", "5"),
        ("run.seed", 1, "seed", "0"),
    ],
)
def test_another_configuration(refused: Refused, key: str, value: object, section: str, was: str) -> None:
    said = refused(f"--{key}", value)
    assert f"made with another {section}: " in said
    shown = f'"{value}"' if isinstance(value, str) else value
    assert f"{key} = {was} there, {shown} here" in said


MAY_CHANGE: dict[str, object] = {
    "data.eval_train": 20,
    "data.download": "true",
    "data.workers": 0,
    "schedule.deferred": "false",
    "schedule.waiting": 1,
    "schedule.min_delta": 0.1,
    "split.cuts": "[2]",
    "store.kind": "memory",
    "store.path": "elsewhere",
    "store.dtype": "bfloat16",
    "checkpoint.every_epochs": 2,
    "checkpoint.every_minutes": 0.001,
    "checkpoint.keep": 1,
    "checkpoint.best": "true",
    "checkpoint.aux": "copy",
    "checkpoint.changed_code": "accept",
    "run.stages": 2,
    "run.threads": 2,
    "run.device": "auto",
    "run.precision": "bfloat16",
    "run.channels_last": "false",
    "run.baseline": "true",
    "run.evaluate_every": 2,
    "run.tensorboard": "true",
    "run.time_limit": 1000.0,
    "run.stop_before": 1.0,
    "run.stall_limit": 60.0,
}


@pytest.mark.parametrize(("key", "value"), MAY_CHANGE.items())
def test_what_may_change(half: Run, monkeypatch: pytest.MonkeyPatch, key: str, value: object) -> None:
    monkeypatch.chdir(half.folder.parent)
    assert half.go(f"--{key}", value) == 0


def test_every_key_of_a_section_that_may_change_is_among_those() -> None:
    """But for those that choose how it is started, or change this process for good, and torch's slow compiler."""
    tree, said = option_tree("penalty"), changeable()
    assert said.startswith("[split], [store], [checkpoint], [run] but run.seed, ")
    keys = {f"{section}.{key}" for section in ("split", "store", "checkpoint", "run") for key in tree[section]}
    keys |= set(re.findall(r"(?:data|schedule)\.\w+", said)) - {"schedule.epochs"}
    assert keys - MAY_CHANGE.keys() == {
        "run.seed",
        "run.runner",
        "run.deterministic",
        "run.torch_compile",
        "data.root",
        "schedule.patience",  # tests/checkpoint/test_best.py
    }


def test_the_refusal_says_what_may_change(refused: Refused) -> None:
    assert f"a run goes on with other values of {changeable()}" in refused("--optim.lr", 0.01)


def test_damaged_rows_in_a_checkpoint_are_no_reason_to_compute_them_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], never_stopped: Weights
) -> None:
    run = half_done(tmp_path, checkpoint__aux="copy")
    path = run.newest / "aux-block-003.lam.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run.go() == 65
    assert "damaged: aux-block-003.lam.h5 does not have the checksum" in capsys.readouterr().err
    shutil.rmtree(run.newest)
    assert run.go() == 0
    assert weights(run.folder) == never_stopped
