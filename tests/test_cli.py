"""The command line: exit codes, what is imported before an answer, and the numbers of `plan`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcsplit import __version__
from hpcsplit.cli import main

Toml = Callable[..., str]
USAGE, CONFIG = 64, 65
HEAVY = {"torch", "numpy", "mpi4py", "h5py", "torchvision", "matplotlib", "rich", "scipy"}


@pytest.fixture
def toml(tmp_path: Path) -> Toml:
    """Write a configuration file of this text and return its path as text."""

    def write(text: str = "") -> str:
        path = tmp_path / "experiment.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def hpcsplit(*arguments: str, cwd: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run the program as a user would; its result and the heavy libraries that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "hpcsplit", *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)
    times = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    done.stderr = "\n".join(line for line in done.stderr.splitlines() if line not in times)
    imported = {line.rsplit("|")[-1].strip().split(".")[0] for line in times}
    assert "argparse" in imported
    return done, HEAVY & imported


# ------------------------------------------------------------------------------------------------ light answers


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--version"], __version__),
        (["--help"], "COMMAND"),
        (["train", "--help"], "--run-dir"),
        (["plan", "--help"], "--ranks"),
        (["simulate", "--help"], "--straggler"),
        (["config", "--help"], "CONFIG.toml"),
    ],
)
def test_help_and_version_need_no_library(tmp_path: Path, arguments: list[str], answer: str) -> None:
    done, heavy = hpcsplit(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert answer in done.stdout
    assert heavy == set()


def test_config_needs_no_library(tmp_path: Path, toml: Toml) -> None:
    done, heavy = hpcsplit("config", toml("[optim]\nlr = 0.5\n"), "--run.seed", "3", cwd=tmp_path)
    assert done.returncode == 0
    assert "lr = 0.5" in done.stdout
    assert heavy == set()


@pytest.mark.parametrize(
    ("text", "arguments", "code"),
    [
        ("[optim]\nlrr = 1", [], CONFIG),
        ("[model]\nname = 'resnet21'", [], CONFIG),
        ("[data", [], CONFIG),
        ("", ["--optim.lr", "fast"], CONFIG),
        ("", ["--optim"], USAGE),
    ],
)
def test_a_mistake_that_the_file_shows_needs_no_library_and_no_traceback(
    tmp_path: Path, toml: Toml, text: str, arguments: list[str], code: int
) -> None:
    done, heavy = hpcsplit("train", toml(text), *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("hpcsplit: ")
    assert "Traceback" not in done.stderr
    assert heavy == set()
    assert [p.name for p in tmp_path.iterdir()] == ["experiment.toml"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tarin", "x.toml"], "tarin"),
        (["config"], "CONFIG.toml"),
        (["config", "{file}", "extra"], "extra is not understood"),
        (["config", "{file}", "--run.seed"], "--run.seed has no value"),
        (["config", "{file}", "--seed", "3"], "--section.key VALUE"),
        (["plan", "{file}", "--ranks", "one"], "--ranks one"),
        (["plan", "{file}", "--ranks", "2,0"], "--ranks 2,0"),
        (["plan", "{file}", "--ranks"], "--ranks"),
    ],
)
def test_misuse_is_exit_64_and_one_sentence(
    capsys: pytest.CaptureFixture[str], toml: Toml, arguments: list[str], sentence: str
) -> None:
    file = toml()
    assert main([a.format(file=file) for a in arguments]) == USAGE
    complaint = capsys.readouterr().err
    assert complaint.startswith("hpcsplit: ")
    assert sentence in complaint


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert alone == capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hpcsplit si", {"simulate"}),
        ("hpcsplit train x.toml --continue", {"--continue-from"}),
        ("hpcsplit train x.toml --run.st", {"--run.stages", "--run.stop_before", "--run.stall_limit"}),
        ("hpcsplit train x.toml --method.rho", {"--method.rho"}),
        ("hpcsplit train x.toml --run.device c", {"cpu", "cuda"}),
        ("hpcsplit evaluate run --run.st", set()),
    ],
)
def test_a_shell_completes_options_and_keys(tmp_path: Path, line: str, words: set[str]) -> None:
    pytest.importorskip("argcomplete")
    out = tmp_path / "words"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    done, heavy = hpcsplit(cwd=tmp_path, **asked)
    assert (done.returncode, heavy) == (0, set())
    assert set(out.read_text().split()) == words


def test_an_absent_file_is_exit_65(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", str(tmp_path / "absent.toml")]) == CONFIG
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"])
def test_a_mistake_is_said_by_one_rank_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv(rank, "1")
    assert main(["config", "absent.toml"]) == CONFIG
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--optim.lr", "0.25"], "lr = 0.25"),
        (["--optim.lr=0.25"], "lr = 0.25"),
        (["--split.cuts", "[2, 4]"], "cuts = [2, 4]"),
        (["--split.cuts=[2, 4]"], "cuts = [2, 4]"),
        (["--schedule.ratio", "2:3"], 'ratio = "2:3"'),
        (["--store.path=/a=b"], 'path = "/a=b"'),
        (["--store.path="], 'path = ""'),
        (["--optim.lr", "1", "--optim.lr", "2", "--run.seed=4"], "lr = 2.0"),
    ],
)
def test_an_override_reaches_the_configuration(
    capsys: pytest.CaptureFixture[str], toml: Toml, words: list[str], line: str
) -> None:
    assert main(["config", toml(), *words]) == 0
    assert any(found.split(" # ")[0].strip() == line for found in capsys.readouterr().out.splitlines())


def test_a_negative_override_is_a_value(capsys: pytest.CaptureFixture[str], toml: Toml) -> None:
    assert main(["config", toml(), "--optim.lr", "-0.1"]) == CONFIG
    assert "optim.lr = -0.1 must be greater than 0" in capsys.readouterr().err


def test_help_of_train_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in ("batch_size", "lr_milestones", "eta_kappa_form", "downsample", "time_limit", "warmup"):
        assert f"  {key} " in text


# ------------------------------------------------------------------------------------------------ plan


R110 = '[data]\nname = "cifar10"\n[model]\nname = "resnet110"\n'
SMALL = '[data]\nname = "cifar10"\n[model]\nname = "resnet8"\n[split]\ncuts = [3]\n'  # (32, 16, 16), as R-110 K=2
WRN = '[data]\nname = "cifar10"\n[model]\nname = "wrn-40-10"\n'
MEMORY = [  # methods.md: P, AL, DS-P, DS-AL for N = 50,000 in GiB
    pytest.param(R110, [28], [[32, 16, 16]], (1.53, 3.05, 0.38, 0.76), id="R-110 K=2"),
    pytest.param(R110, [19, 37], [[16, 32, 32], [32, 16, 16]], (4.58, 9.16, 1.14, 2.29), id="R-110 K=3"),
    pytest.param(WRN, [7, 13], [[160, 32, 32], [320, 16, 16]], (45.78, 91.55, 11.44, 22.89), id="WRN-40-10 K=3"),
]
VARIANTS = ("penalty", "al, downsample 1", "penalty, downsample 2", "al, downsample 2")


@pytest.mark.parametrize(("text", "cuts", "shapes", "gib"), MEMORY)
def test_plan_prints_the_memory_table_of_the_paper(
    capsys: pytest.CaptureFixture[str],
    toml: Toml,
    text: str,
    cuts: list[int],
    shapes: list[list[int]],
    gib: tuple[float, ...],
) -> None:
    assert main(["plan", toml(text), f"--split.cuts={cuts}", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["samples"] == 50_000
    assert [stage["in_shape"] for stage in plan["stages"][1:]] == shapes
    assert tuple(round(plan["aux_float32_gib"][name], 2) for name in VARIANTS) == gib


@pytest.mark.parametrize(
    ("method", "downsample", "gib"), [("penalty", 1, 1.53), ("al", 1, 3.05), ("penalty", 2, 0.38), ("al", 2, 0.76)]
)
def test_the_store_of_a_stage_is_that_of_the_table(
    capsys: pytest.CaptureFixture[str], toml: Toml, method: str, downsample: int, gib: float
) -> None:
    words = [f"--method.name={method}", f"--method.downsample={downsample}", "--json"]
    assert main(["plan", toml(SMALL), *words]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert [round(stage["store_bytes"] / 2**30, 2) for stage in plan["stages"]] == [0, gib]


def test_plan_counts_the_bytes_of_an_epoch_in_both_directions(capsys: pytest.CaptureFixture[str], toml: Toml) -> None:
    words = ["--method.name=al", "--method.downsample=2", "--data.batch_size=100", "--json"]
    assert main(["plan", toml(SMALL), *words]) == 0
    first, last = json.loads(capsys.readouterr().out)[0]["stages"]
    one_tensor = 50_000 * 32 * 8 * 8 * 4
    assert (first["to_next_bytes"], first["to_prev_bytes"]) == (one_tensor, 0)
    assert (last["to_next_bytes"], last["to_prev_bytes"]) == (0, 2 * one_tensor)


def test_plan_as_a_program_answers_with_json(tmp_path: Path, toml: Toml) -> None:
    done, _ = hpcsplit("plan", toml(), "--model.name=resnet8", "--ranks", "1,3", "--json", cwd=tmp_path)
    assert done.returncode == 0
    plans = json.loads(done.stdout)
    assert [plan["ranks"] for plan in plans] == [1, 3]
    assert plans[0]["params"] == plans[1]["params"]
    assert plans[0]["aux_float32_gib"]["penalty"] == 0


def test_plan_prints_the_digits_as_text_too(capsys: pytest.CaptureFixture[str], toml: Toml) -> None:
    assert main(["plan", toml(SMALL)]) == 0
    table = "penalty: 1.53; penalty, downsample 2: 0.38; al, downsample 1: 3.05; al, downsample 2: 0.76"
    assert table in capsys.readouterr().out


def test_plan_draws_the_pipeline(capsys: pytest.CaptureFixture[str], toml: Toml) -> None:
    words = ["--model.name=resnet8", "--ranks=1,2", "--schedule.microbatches=3", "--timetable"]
    assert main(["plan", toml(), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "stage 0   F0 F1 .  B0 F2 W0 B1 -  B2 -" in lines
    said = (
        "exact step: 3 micro-batches in 1f1b order, at most 1.80 with stages of one length; activations kept of 2, 1 of"
    )
    assert any(line.startswith(said) for line in lines)
    assert any(line.startswith("exact step: weight gradients of 1, 2 micro-batches wait at most in") for line in lines)
    assert main(["plan", toml(), *words, "--schedule.deferred", "false"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "stage 0   F0 F1 .  .  B0 -  F2 B1 -  .  B2 -" in lines
    assert any(line.startswith(said.replace("1.80", "1.50")) for line in lines)
    assert not any("weight gradients" in line for line in lines)


def test_plan_refuses_more_stages_than_blocks(capsys: pytest.CaptureFixture[str], toml: Toml) -> None:
    assert main(["plan", toml(), "--model.name=resnet8", "--ranks", "9"]) == CONFIG
    assert "9 stages need at least 9 blocks" in capsys.readouterr().err


def test_the_speed_up_bounds_follow_the_largest_share(capsys: pytest.CaptureFixture[str], toml: Toml) -> None:
    words = ["--schedule.epochs=10", "--schedule.ratio=1:4", "--schedule.warmup=1", "--ranks=2", "--json"]
    assert main(["plan", toml(), *words]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    largest = max(stage["share"] for stage in plan["stages"])
    assert plan["parallel_speed_up_bound"] == pytest.approx(1 / largest)
    assert plan["hybrid_speed_up_bound"] == pytest.approx(10 / (2 / 1.2 + 8 * largest))  # F F B B W | W in exact steps
