"""The program as a library: its public names, `train` and `Run`, and what they leave behind: nothing."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

import hpcsplit
from hpcsplit.checkpoint.state import digest
from hpcsplit.host import stopping
from tests.commands.conftest import Run
from tests.commands.damage import flip_a_bit
from tests.engine.small import options, records, train_here, weights, write_toml
from tests.wire.launch import needs_mpi, python

Command = Callable[..., tuple[int, str, str]]
NAMES = ["CheckpointError", "ConfigError", "DataError", "HpcsplitError", "LaunchError", "NumericalError", "Run"]
NAMES += ["Split", "StoreError", "UsageError", "__version__", "split", "train"]


@pytest.fixture(autouse=True)
def no_pictures() -> Iterator[None]:
    with patch("hpcsplit.report.watch.draw"):
        yield


@pytest.fixture(name="hpcsplit_command")
def command(request: pytest.FixtureRequest) -> Command:
    """The fixture `hpcsplit`, which has the package's name."""
    found: Command = request.getfixturevalue("hpcsplit")
    return found


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU()), nn.Linear(6, 10))


def made(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU()), nn.Linear(6, classes))


def tree(stages: int = 1, **changes: Any) -> dict[str, dict[str, Any]]:
    return options(stages, **{"model__name": "resnet8", "data__pool": True, "schedule__epochs": 2, **changes})


def test_the_public_names() -> None:
    """Whoever changes one of them changes this, and the changelog."""
    assert hpcsplit.__all__ == NAMES
    assert set(NAMES) <= set(dir(hpcsplit))
    for name in NAMES:
        assert getattr(hpcsplit, name) is not None
    with pytest.raises(AttributeError, match="hpcsplit has no trian; it has CheckpointError"):
        hpcsplit.trian  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'h5py', 'mpi4py', 'matplotlib', 'msgspec', 'rich'}"
    done = python("-c", f"import sys, hpcsplit; dir(hpcsplit); hpcsplit.ConfigError; print({heavy} & set(sys.modules))")
    assert (done.code, done.out, done.err) == (0, "set()\n", "")


# ------------------------------------------------------------------------------------------------ train


@pytest.mark.parametrize("stages", [1, 2])
def test_it_is_the_command(tmp_path: Path, stages: int) -> None:
    """From a file with overrides, or from a dict: the weights of the command, to the bit."""
    changes = {"model__name": "resnet8", "data__pool": True, "schedule__epochs": 3}
    toml = write_toml(tmp_path / "c.toml", stages, **changes)
    assert train_here(toml, tmp_path / "command", "--optim.lr", 0.02, "--schedule.ratio", "1:1") == 0
    several = {"run.stages": stages} if stages > 1 else {}
    own = {"optim": {"lr": np.float64(0.02)}, "schedule.ratio": "1:1"}
    found = hpcsplit.train(toml, run_dir=tmp_path / "file", **several, **own)  # type: ignore[arg-type]
    assert weights(tmp_path / "file") == weights(tmp_path / "command")
    assert found.path == tmp_path / "file"
    nested = tree(stages, schedule__epochs=3, schedule__ratio="1:1", optim__lr=0.02, run__stages=stages)
    hpcsplit.train(nested, run_dir=str(tmp_path / "dict"))
    hpcsplit.train({f"{s}.{k}": v for s, keys in nested.items() for k, v in keys.items()}, run_dir=tmp_path / "dotted")
    assert weights(tmp_path / "dict") == weights(tmp_path / "dotted") == weights(tmp_path / "command")


def test_a_run_stops_and_continues(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, model__name="resnet8", data__pool=True, schedule__epochs=3)
    assert train_here(toml, tmp_path / "whole") == 0
    stopped = hpcsplit.train(toml, run_dir=tmp_path / "run", run={"time_limit": 1e-6})
    assert stopped.summary["done"] is False
    assert len(stopped.records) < 3
    assert hpcsplit.train(toml, run_dir=tmp_path / "run").summary["done"] is True
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_network_of_a_program(tmp_path: Path) -> None:
    """A module begins with its own weights and stays as it is; a function is called under the seed of the run."""
    own = net()
    before = copy.deepcopy(own.state_dict())
    slow = tree(2, split__cuts=[1], optim__lr=1e-12, optim__weight_decay=0.0, schedule__epochs=1)
    run = hpcsplit.train(slow, model=own, run_dir=tmp_path / "module", data={"pool": False})
    assert all(torch.equal(t, before[name]) for name, t in own.state_dict().items())
    assert all(t.allclose(before[name], atol=1e-6) for name, t in run.load_model().state_dict().items())
    assert run.config["model"]["name"] == "given:Sequential"
    assert digest(run.load_model().state_dict()) == run.summary["weights_sha256"]
    again = hpcsplit.Run(tmp_path / "module")
    with pytest.raises(hpcsplit.ConfigError, match="give model=, the network or the function"):
        again.load_model()
    assert digest(again.load_model(model=own).state_dict()) == run.summary["weights_sha256"]

    for number, model in enumerate((made, lambda input_shape, classes: made(input_shape, classes))):
        hpcsplit.train(slow, model=model, run_dir=tmp_path / f"function{number}", data={"pool": False})
    assert weights(tmp_path / "function0") == weights(tmp_path / "function1")
    names = [hpcsplit.Run(tmp_path / f"function{n}").config["model"]["name"] for n in (0, 1)]
    assert names == [f"{__name__}:made", "given:factory"]


def some(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    y = chance.integers(0, 3, size)
    return (chance.normal(size=(size, 5)) + 3 * np.eye(5)[y]).astype(np.float32), y


def dealt() -> Any:
    return some(40, 0), some(20, 1)


class Pairs(torch.utils.data.Dataset[Any]):
    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, number: int) -> Any:
        return self.x[number], int(self.y[number])


def test_data_of_a_program(tmp_path: Path, hpcsplit_command: Command) -> None:
    """Arrays, a data set, and the function that returns them, are the same data: the same weights; nothing of them is
    needed to predict."""
    config = {"method": {"name": "backprop"}, "schedule": {"epochs": 3}, "run": {"baseline": False, "threads": 1}}
    config |= {"model": {"name": "mlp", "depth": 2, "width": 8}}
    train, test = dealt()
    ways: dict[str, Any] = {"arrays": (train, test), "function": dealt, "lambda": lambda: (train, test)}
    ways["sets"] = (Pairs(*train), Pairs(*test))
    own = {"data.batch_size": 10, "data.augment": False, "data.classes": 3}
    for way, data in ways.items():
        run = hpcsplit.train(config, data=data, run_dir=tmp_path / way, **own)  # type: ignore[arg-type]
        assert run.config["data"]["name"] == (f"{__name__}:dealt" if way == "function" else "given:data")
    assert weights(tmp_path / "arrays") == weights(tmp_path / "function") == weights(tmp_path / "lambda")
    assert [each for each, _ in weights(tmp_path / "sets")] == [0, 1, 2]
    x, y = test
    np.save(tmp_path / "x.npy", x)
    code, out, err = hpcsplit_command("predict", tmp_path / "arrays", tmp_path / "x.npy")
    assert (code, err) == (0, "")
    found = [int(line.split(",")[1]) for line in out.splitlines()[1:]]
    assert np.mean(found == y) == pytest.approx(run_accuracy(tmp_path / "arrays"))
    assert hpcsplit.Run(tmp_path / "arrays").load_model()(torch.from_numpy(x)).shape == (20, 3)
    code, _, err = hpcsplit_command("evaluate", tmp_path / "function")
    assert code == 65
    assert "names code to be run, which is not taken from a run directory" in err


def test_a_run_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    config: dict[str, Any] = {"model": {"name": "mlp", "depth": 2, "width": 8}, "method": {"name": "backprop"}}
    config |= {
        "run": {"baseline": False, "threads": 1},
        "data": {"limit_train": 32, "limit_test": 16, "batch_size": 16},
    }
    first = hpcsplit.train(config, run_dir=tmp_path / "one", schedule={"epochs": 2})
    still = {"lr": 1e-9, "momentum": 0.0, "weight_decay": 0.0}
    second = hpcsplit.train(
        config, run_dir=tmp_path / "two", continue_from=first.path, checkpoint="1", schedule={"epochs": 1}, optim=still
    )
    before, after = first.load_model("1").state_dict(), second.load_model().state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def run_accuracy(folder: Path) -> float:
    accuracy: float = hpcsplit.Run(folder).summary["test_accuracy"]
    return accuracy


def test_what_cannot_be_is_raised(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wrong: dict[str, dict[str, Any]] = {
        r"unknown section \[optm\]; write optim.lr for optm.lr": {"optm": {"lr": 1.0}},
        "unknown key optim.lrate": {"optim": {"lrate": 1.0}},
        'epochs = 3 is no section; write epochs={"key": value}': {"epochs": 3},
        "the forward of Linear does not take samples of shape": {"model": nn.Linear(3, 3)},
        "data.batch_size = 4000 is more than the 100 training samples": {"data": {"batch_size": 4000}},
    }
    for words, how in wrong.items():
        with pytest.raises(hpcsplit.ConfigError, match=words):
            hpcsplit.train(tree(), run_dir=folder, **how)
    with pytest.raises(hpcsplit.ConfigError, match=r"cannot read .*absent\.toml"):
        hpcsplit.train(tmp_path / "absent.toml")
    hpcsplit.train(tree(), run_dir=folder)
    flip_a_bit(folder / "checkpoints" / "epoch-0002-step-000000" / "manifest.h5")
    with pytest.raises(hpcsplit.CheckpointError, match=r"manifest\.h5 does not have the checksum"):
        hpcsplit.train(tree(), run_dir=folder)
    with pytest.raises(hpcsplit.NumericalError, match="training has diverged"):
        hpcsplit.train(tree(optim__lr=1e30), run_dir=tmp_path / "far")


class Interrupts(nn.Linear):
    passes = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        if self.passes > 5:
            raise KeyboardInterrupt
        return super().forward(input)


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not in the process: handlers, threads, cores, random numbers, logs; nor the lock of the folder, whatever ends
    it."""
    logger = logging.getLogger("hpcsplit")

    def state() -> dict[str, Any]:
        numpy: Any = np.random.get_state()  # noqa: NPY002
        return {
            "signals": [signal.getsignal(number) for number in stopping._SIGNALS],
            "threads": [thread for thread in threading.enumerate() if thread.name != "pin"],
            "hooks": (threading.excepthook, logger.level, list(logger.handlers)),
            "cores": (os.sched_getaffinity(0), torch.get_num_threads()),
            "torch": torch.get_rng_state().tolist(),
            "random": random.getstate(),
            "numpy": numpy[1].tolist(),
        }

    breaks = nn.Sequential(nn.Sequential(nn.Flatten(), Interrupts(3 * 32 * 32, 6)), nn.Linear(6, 10))
    before = state()
    hpcsplit.train(tree(2), run_dir=tmp_path / "well", run={"stages": 2, "threads": 2})
    assert state() == before
    with pytest.raises(hpcsplit.NumericalError):
        hpcsplit.train(tree(2, optim__lr=1e30), run_dir=tmp_path / "badly", run={"stages": 2})
    assert state() == before
    how: dict[str, Any] = {"data": {"pool": False}, "split": {"cuts": [1]}}
    with pytest.raises(KeyboardInterrupt):
        hpcsplit.train(tree(2), model=breaks, run_dir=tmp_path / "run", **how)
    assert state() == before
    assert not (tmp_path / "run" / "lock").exists()


def test_a_signal_is_a_checkpoint(tmp_path: Path) -> None:
    """As a batch system sends it; the next one finds the handler of before."""
    asked: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
    try:
        timer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGUSR1))
        with patch("hpcsplit.commands.library.command.give_back", timer.start):
            run = hpcsplit.train(tree(schedule__epochs=200), run_dir=tmp_path / "run")
        assert (run.summary["done"], asked) == (False, [])
        assert len(run.checkpoints) > 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_in_another_thread(tmp_path: Path) -> None:
    """Where Python lets nobody handle signals."""
    thread = threading.Thread(target=hpcsplit.train, args=(tree(),), kwargs={"run_dir": tmp_path / "run"})
    thread.start()
    thread.join()
    assert hpcsplit.Run(tmp_path / "run").summary["done"]


RANKS = """
import json, pathlib, sys, torch, hpcsplit
from tests.commands.test_library import made, tree
torch.set_num_threads(1)
def broken(input_shape, classes):
    if len(sys.argv) > 2 and hpcsplit.ranks > 0:
        raise RuntimeError("on one rank")
    return made(input_shape, classes)
from mpi4py import MPI
hpcsplit.ranks = MPI.COMM_WORLD.rank
how = dict(model=broken, data={"pool": False}, split={"cuts": [1]})
said = []
for name in ("one", "two"):
    run = hpcsplit.train(tree(2), run_dir=f"{sys.argv[1]}/{name}", **how)
    said += [run.summary["weights_sha256"], list(run.load_model()[1].weight.shape)]
try:
    hpcsplit.train(tree(2, split__cuts=[1, 2]), run_dir=sys.argv[1] + "/three")
except hpcsplit.LaunchError as error:
    said.append("refused")
pathlib.Path(sys.argv[1], f"{hpcsplit.ranks}.json").write_text(json.dumps(said))
assert MPI.COMM_WORLD.allreduce(1) == 2
"""


@needs_mpi
@pytest.mark.mpi
def test_on_every_rank(tmp_path: Path) -> None:
    """Twice in one program, with the weights of one process; a refusal is raised on each; a failure ends all."""
    done = python("-c", RANKS, tmp_path, ranks=2)
    assert done.code == 0, done.err
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    hpcsplit.train(tree(2), model=made, run_dir=tmp_path / "here", data={"pool": False}, split={"cuts": [1]})
    wanted = weights(tmp_path / "here")[-1][1]
    assert said == 2 * [[wanted, [10, 6], wanted, [10, 6], "refused"]]
    done = python("-c", RANKS, tmp_path / "other", "broken", ranks=2)
    assert done.code == 65
    assert "rank 1 (stage 1)" in done.err
    assert "failed (RuntimeError: on one rank)" in done.err


# ------------------------------------------------------------------------------------------------ Run


def test_what_a_run_says(runs: Callable[[int], Run]) -> None:
    folder = runs(2).folder
    run, lines = hpcsplit.Run(folder), records(folder)
    assert [json.loads(record.to_json()) for record in run.records] == lines
    assert run.config["model"]["name"] == "resnet8"
    assert run.checkpoints == ["epoch-0003-step-000000", "epoch-0002-step-000000"]
    said = run.summary
    accuracies = [line["test_accuracy"] for line in lines]
    assert (said["epochs"], said["parallel_epochs"], said["done"]) == (3, 1, True)
    assert (said["test_accuracy"], said["best_test_accuracy"]) == (accuracies[-1], max(accuracies))
    assert said["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert said["train_s"] == pytest.approx(sum(line["train_s"] for line in lines))
    assert said["parallel_samples_per_s"] == lines[1]["samples_per_s"]
    assert [stage["violation"] for stage in said["stages"]] == [s["violation"] for s in lines[1]["stages"]]
    assert (said["speed_up"], said["weights_sha256"]) == (None, lines[-1]["weights_sha256"])
    assert repr(run) == f"Run({str(folder)!r})"


def test_the_network_of_a_checkpoint(runs: Callable[[int], Run]) -> None:
    run, lines = hpcsplit.Run(runs(2).folder), records(runs(2).folder)
    for name, epoch in (("latest", 3), (2, 2), ("3", 3), ("epoch-0002-step-000000", 2)):
        model = run.load_model(name)
        assert digest(model.state_dict()) == lines[epoch - 1]["weights_sha256"]
        assert not model.training
        assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(hpcsplit.CheckpointError, match="has no complete checkpoint epoch-0001"):
        run.load_model(1)


def test_a_frame_and_figures(runs: Callable[[int], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hpcsplit.Run(runs(2).folder)
    figure = run.figure("acc")
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy (%)"]
    figure.savefig(tmp_path / "a.png")
    assert run.figure("Label signal").axes[0].get_ylabel() == "cosine (no unit)"
    with pytest.raises(hpcsplit.ConfigError, match="there is no figure 'nothing'; it is one of loss, accuracy"):
        run.figure("nothing")
    with pytest.raises(hpcsplit.DataError, match="No run has a method that records its objective"):
        run.figure("objective and residual")
    monkeypatch.setattr("hpcsplit.commands.past.find_spec", lambda name: None)
    with pytest.raises(hpcsplit.ConfigError, match="needs the package pandas"):
        run.frame  # noqa: B018


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(hpcsplit.ConfigError, match="is no run directory: it has no config"):
        hpcsplit.Run(tmp_path)
