"""Names of networks as people write them, and those that mean two networks; runs of before keep theirs."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from hpcsplit.cli import main
from hpcsplit.config import resolve
from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build, usual
from hpcsplit.run.trust import check_code
from tests.engine.small import records, train_here, write_toml


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ResNet20", "resnet20"),
        ("ResNet-110", "resnet110"),
        ("RESNET_32", "resnet32"),
        ("cifar-resnet20", "resnet20"),
        ("CIFAR-ResNet50", "cifar-resnet50"),
        ("resnet20-VAE", "resnet20-vae"),
        ("WRN-16-4", "wrn-16-4"),
        ("wrn16-4", "wrn-16-4"),
        ("WRN_16_4", "wrn-16-4"),
        ("MLP", "mlp"),
        ("TorchVision:ResNet18", "torchvision:resnet18"),
        ("my_nets:ResNet20", "my_nets:ResNet20"),  # the user's own code
        ("ResNext-20", "ResNext-20"),  # none
    ],
)
def test_names_as_people_write_them(written: str, name: str) -> None:
    assert usual(written) == name


def test_a_configuration_has_the_usual_name() -> None:
    assert resolve({"model": {"name": "WRN-16-4"}}).model.name == "wrn-16-4"
    assert resolve({}, [("model.name", "ResNet-20")]).model.name == "resnet20"


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (18, ['"torchvision:resnet18"', "resnet14 and resnet20"]),
        (34, ['"torchvision:resnet34"', "resnet32 and resnet38"]),
        (50, ['"torchvision:resnet50"', '"cifar-resnet50"']),
        (101, ['"torchvision:resnet101"', "resnet98 and resnet104"]),
        (152, ['"torchvision:resnet152"', '"cifar-resnet152"']),
    ],
)
def test_a_name_of_two_networks_is_refused_with_both(layers: int, words: list[str]) -> None:
    for name in (f"resnet{layers}", f"ResNet-{layers}"):
        with pytest.raises(ConfigError) as caught:
            resolve({"model": {"name": name}})
        assert all(word in str(caught.value) for word in words)


def test_nobody_confuses_the_others() -> None:
    for layers in (8, 14, 20, 32, 44, 56, 110, 164):
        assert resolve({"model": {"name": f"resnet{layers}"}}).model.name == f"resnet{layers}"
    with pytest.raises(ConfigError, match=r"6n\+2 layers; the nearest are resnet14 and resnet20"):
        resolve({"model": {"name": "cifar-resnet15"}})


@pytest.mark.parametrize("layers", [8, 50])
def test_both_names_are_one_network(layers: int) -> None:
    states = []
    for name in (f"resnet{layers}", f"cifar-resnet{layers}"):
        torch.manual_seed(3)
        if name != "resnet50":
            states.append(build(name, (3, 8, 8), 10).state_dict())
    assert all(torch.equal(t, states[0][name]) for state in states for name, t in state.items())
    assert len({tuple(state) for state in states}) == 1


# ------------------------------------------------------------------------------------------------ runs of before


def test_the_fingerprint_of_a_run_is_as_before() -> None:
    """From a version that called it resnet50."""
    assert resolve({"model": {"name": "cifar-resnet50"}}).fingerprint()["model"] == "3cb1c11a29e0aaf1"
    assert resolve({"model": {"name": "resnet20"}}).fingerprint()["model"] == "efadf980a8d19019"


def test_a_run_of_before_is_evaluated_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file and its folder say resnet50."""
    toml, run = tmp_path / "c.toml", tmp_path / "run"
    sizes = {"data__limit_train": 8, "data__limit_test": 4, "data__batch_size": 4, "data__eval_train": 4}
    write_toml(toml, 2, model__name="cifar-resnet50", schedule__epochs=2, split__cuts=[9], data__pool=True, **sizes)
    assert train_here(toml, run) == 0
    for file in (toml, run / "config.toml"):
        file.write_text(file.read_text().replace("cifar-resnet50", "resnet50"))
    capsys.readouterr()
    for more in ([], ["--config", str(toml)]):
        assert main(["evaluate", str(run), "--json", *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["weights_sha256"] == records(run)[1]["weights_sha256"]
    assert main(["report", str(run)]) == 0
    before = records(run)
    shutil.rmtree(run / "checkpoints" / "epoch-0002-step-000000")
    assert train_here(toml, run) == 0
    assert [record["weights_sha256"] for record in records(run)] == [record["weights_sha256"] for record in before]
    capsys.readouterr()
    assert main(["train", str(toml), "--run-dir", str(tmp_path / "another")]) == 65
    assert '"torchvision:resnet50"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code"),
    [("torchvision:resnet18", False), ("timm:resnet10t.c3_in1k", False), ("resnet20", False), ("my_nets:net", True)],
)
def test_only_the_users_own_is_code_that_a_run_directory_may_not_name(tmp_path: Path, name: str, code: bool) -> None:
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(ConfigError, match="names code to be run") if code else nullcontext():
        check_code(resolve({"model": {"name": name}}).code(), tmp_path / "config.toml", "")
