"""What a method cannot train is one sentence, said before torch is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.cli import main
from hpcsplit.config import Config, resolve
from hpcsplit.errors import ConfigError
from tests.wire.launch import needs_mpi, python

Tree = dict[str, dict[str, Any]]
PDADMM: Tree = {
    "data": {"name": "fake", "limit_train": 20, "limit_test": 10, "batch_size": 10},
    "model": {"name": "mlp", "depth": 3, "width": 4},
    "method": {"name": "pdadmm"},
    "schedule": {"epochs": 2, "ratio": "0:1", "warmup": 0},
    "run": {"device": "cpu", "threads": 1, "baseline": False},
}


def changed(tree: Tree, **changes: Any) -> Tree:
    """The same with `section__key=value`."""
    new = {section: dict(keys) for section, keys in tree.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        new.setdefault(section, {})[key] = value
    return new


DLADMM = changed(PDADMM, method__name="dladmm", data__batch_size=0)

DELAYED = changed(PDADMM, method__name="delayed")
AUXNET = changed(PDADMM, method__name="auxnet")

REFUSED = [
    (changed(DELAYED, method__predict=True, method__weights="stale"), r'predict = true: with .*"stale" .* "stash"'),
    (changed(DELAYED, method__predict=True, optim__name="nadam"), r'sgd, adam or adamw; optim\.name = "nadam"'),
    (
        changed(DELAYED, method__feedback=0.5, method__spike=True),
        r"feedback = 0\.5 and method\.spike = true .* take one",
    ),
    (changed(DELAYED, method__predict=True, optim__momentum=0.0), r"optim\.momentum = 0\. Take one of them, sgd with"),
    (
        changed(DELAYED, method__spike=True, optim__momentum=1.0),
        r"spike = true .* = 1\. Take sgd with a momentum below",
    ),
    (changed(DELAYED, method__compensation=1.0, method__weights="replay"), r'compensation = 1 .* is "replay"; take'),
    (changed(DELAYED, method__microbatches=11), r"method\.microbatches = 11 is more than data\.batch_size = 10"),
    (changed(DELAYED, method__compensation=-1.0), r"compensation = -1\.0 is below its smallest value 0"),
    (
        changed(AUXNET, method__name="chunked", method__refresh_every=2),
        r"refresh_every = 2: chunked keeps no variables",
    ),
    (changed(AUXNET, data__copies=2, data__augment=False), r"copies = 2: .* set it to true, or copies to 1"),
    (changed(AUXNET, data__copies=0), r"copies = 0 is below its smallest value 1"),
    (changed(AUXNET, method__start="adjoint"), r'start = "adjoint": auxnet keeps no variables .* leave it out'),
    (
        changed(AUXNET, method__name="al", method__refresh_every=2),
        r"refresh_every = 2 throws away .*adjoint",
    ),
    (changed(AUXNET, method__refresh_every=2), r"refresh_every = 2: auxnet keeps no variables .* leave it out"),
    (changed(AUXNET, method__aux_width=0), r"aux_width = 0 is below its smallest value 1"),
    (changed(DELAYED, method__weights="none"), r"weights = 'none' is not one of stash, replay, stale"),
    (changed(PDADMM, model__name="resnet20"), r'model\.name = "resnet20": pdadmm works layer by layer .* "mlp" only'),
    (changed(DLADMM, model__name="cnn"), r'model\.name = "cnn": dladmm works layer by layer .* "mlp" only'),
    (changed(PDADMM, method__rho=0.0), r"method\.rho = 0\.0 must be greater than 0"),
    (changed(PDADMM, method__rho=-1.0), r"method\.rho = -1\.0 must be greater than 0"),
    (changed(PDADMM, method__nu=0.0), r"method\.nu = 0\.0 must be greater than 0"),
    (changed(DLADMM, method__rho=0.0), r"method\.rho = 0\.0 must be greater than 0"),
    (changed(PDADMM, method__patience=0), r"method\.patience = 0 is below its smallest value 1"),
    (changed(PDADMM, method__exchange="int4"), r"method\.exchange = .*int4.* float32, float16, int8"),
    (changed(PDADMM, schedule__ratio="1:4"), r'ratio = "1:4": pdadmm goes on .* set schedule\.ratio = "0:1"'),
    (changed(DLADMM, schedule__ratio="1:1"), r'ratio = "1:1": dladmm goes on .* set schedule\.ratio = "0:1"'),
    (changed(PDADMM, schedule__ratio="1:0"), r'ratio = "1:0": pdadmm goes on'),
    (changed(DLADMM, data__batch_size=10), r"batch_size = 10: dladmm takes all .* set data\.batch_size = 0"),
    (changed(DLADMM, run__stages=2), r"2 stages: dladmm is sequential and runs on 1 rank"),
    (changed(DLADMM, split__cuts=[1, 2]), r"3 stages: dladmm is sequential and runs on 1 rank"),
    (changed(PDADMM, method__grow=[1, 2]), r"grow = \[1, 2\] must be increasing and end with model\.depth = 3"),
    (changed(PDADMM, method__grow=[1, 4]), r"grow = \[1, 4\] must be increasing and end with model\.depth = 3"),
    (changed(PDADMM, method__grow=[2, 1, 3]), r"grow = \[2, 1, 3\] must be increasing"),
    (changed(PDADMM, method__grow=[1, 1, 3]), r"grow = \[1, 1, 3\] must be increasing"),
    (changed(PDADMM, method__grow=[1, 3], schedule__warmup=1), r"schedule\.warmup = 1: exact epochs would train"),
    (changed(PDADMM, method__grow=[0, 3]), r"method\.grow"),
    (changed(DLADMM, method__grow=[1, 3]), r"unknown key method\.grow"),
]


@pytest.mark.parametrize(("tree", "sentence"), REFUSED, ids=[sentence[:24] for _, sentence in REFUSED])
def test_what_a_method_cannot_train_is_one_sentence(tree: Tree, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as failure:
        resolve(tree)
    assert "\n" not in str(failure.value)


def test_it_is_said_before_torch_is_imported() -> None:
    program = (
        "import json, sys\n"
        "from hpcsplit.config import resolve\n"
        "from hpcsplit.errors import ConfigError\n"
        "refused = 0\n"
        "for tree in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        resolve(tree)\n"
        "    except ConfigError:\n"
        "        refused += 1\n"
        "print(refused, sorted({'torch', 'numpy', 'h5py', 'mpi4py'} & sys.modules.keys()))\n"
    )
    ended = python("-c", program, json.dumps([tree for tree, _ in REFUSED]))
    assert (ended.out, ended.err) == (f"{len(REFUSED)} []\n", "")


@pytest.mark.parametrize(
    "tree",
    [
        PDADMM,
        DLADMM,
        changed(PDADMM, schedule__warmup=1),
        changed(DLADMM, schedule__warmup=2),
        changed(PDADMM, data__batch_size=0),
        changed(PDADMM, run__stages=4),
        changed(PDADMM, method__grow=[3]),
        changed(PDADMM, method__grow=[1, 2, 3]),
        changed(DLADMM, run__stages=1),
        changed(DELAYED, method__predict=True, method__spike=True, method__compensation=1.0),
        changed(DELAYED, method__weights="stale"),
        changed(DELAYED, method__microbatches=11, data__batch_size=0),
        changed(AUXNET, method__name="al", method__refresh_every=2, method__start="adjoint"),
    ],
)
def test_what_a_method_can_train_is_not_refused(tree: Tree) -> None:
    assert isinstance(resolve(tree), Config)


# ------------------------------------------------------------------------------------------------ ranks


def written(place: Path, tree: Tree) -> Path:
    """As a file; what JSON writes for these values is TOML too."""
    path = place / "c.toml"
    sections = [
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for name, keys in tree.items()
    ]
    path.write_text("\n".join(sections), encoding="utf-8")
    return path


def test_more_stages_than_layers_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, changed(PDADMM, run__runner="lockstep", run__stages=5))
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run")]) == 65
    assert "5 stages need at least 5 blocks, but the network has 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@needs_mpi
@pytest.mark.mpi
def test_a_second_rank_of_a_sequential_method_is_refused_once_and_before_any_work(tmp_path: Path) -> None:
    file = written(tmp_path, DLADMM)
    ended = python("-m", "hpcsplit", "train", file, "--run-dir", tmp_path / "run", ranks=2)
    assert ended.code == 65, ended.err
    [complaint] = [line for line in ended.err.splitlines() if line.startswith("hpcsplit: ")]
    assert "2 stages: dladmm is sequential and runs on 1 rank; start one" in complaint
    assert not (tmp_path / "run").exists()


def test_the_plan_of_a_sequential_method_is_for_one_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path, DLADMM))
    assert main(["plan", file, "--json"]) == 0
    assert [plan["ranks"] for plan in json.loads(capsys.readouterr().out)] == [1]
    assert main(["plan", file, "--ranks", "2"]) == 65
    assert "2 stages: dladmm is sequential" in capsys.readouterr().err
