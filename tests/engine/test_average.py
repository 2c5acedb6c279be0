"""The moving average of the weights is that of torch.optim.swa_utils, whatever trains, stops or cuts the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpcsplit import cli
from hpcsplit.checkpoint.state import read_weights
from hpcsplit.engine.job import Job
from hpcsplit.nets.statedict import tensors_of
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from tests.checkpoint.starts import Course, learned
from tests.engine.small import CUTS, config, make_jobs, records, train_here, write_toml

DECAY = 0.9
EMA: dict[str, Any] = {"optim__ema": DECAY, "data__batch_size": 40}


def averaged(folder: Path) -> dict[str, Tensor]:
    return read_weights(RunDir(folder).checkpoint(), tensors_of(Setting(config()).net), average=True).weights


def test_it_is_torchs_average_of_the_whole_network(tmp_path: Path) -> None:
    """Two exact epochs of two stages, against a plain loop; buffers are the newest ones."""
    course = Course(tmp_path / "run", **EMA, method__name="backprop", schedule__epochs=2, data__augment=False)
    assert course.start()
    cfg = config(1, **course.changes)
    (job,) = make_jobs(cfg, 1, tmp_path / "reference")
    net = Setting(cfg).network().train()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    sgd = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    for epoch in range(2):
        sgd.param_groups[0]["lr"] = Setting(cfg).learning_rate(epoch)
        for ids in job.epoch_batches(epoch):
            batch = job.batch(ids)
            sgd.zero_grad()
            nn.functional.cross_entropy(net(batch.x), batch.y).backward()
            sgd.step()
            average.update_parameters(net)
    found, wanted = averaged(course.folder), dict(net.state_dict())
    wanted |= {name.removeprefix("module."): p.detach() for name, p in average.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        torch.testing.assert_close(found[name], t, msg=name)
    weights = read_weights(RunDir(course.folder).checkpoint(), tensors_of(net)).weights
    assert not torch.equal(weights["stem.0.weight"], found["stem.0.weight"])


@pytest.mark.parametrize(
    "method",
    [
        {"method__name": "penalty"},
        {"method__name": "al"},
        {"method__name": "chunked"},
        {"method__name": "delayed"},
        {"method__name": "delayed", "method__spike": True},
        {"method__name": "delayed", "method__feedback": 0.5},
    ],
    ids=lambda method: " ".join(map(str, method.values())),
)
def test_it_follows_every_step_of_a_parallel_epoch(tmp_path: Path, method: dict[str, Any]) -> None:
    """Where a step leads is seen when the next one begins, and at the end."""
    course, seen = Course(tmp_path, **EMA, **method, schedule__epochs=4), dict[int, list[list[Tensor]]]()  # S PPP
    kept: list[Job] = []

    def look(jobs: list[Job]) -> None:
        kept.extend(jobs)
        for job in jobs:
            stage, led = job.stage, seen.setdefault(job.rank, [])
            assert stage.optimizer
            stage.optimizer.register_step_pre_hook(
                lambda *step, led=led, stage=stage: led.append([p.detach().clone() for p in stage.parameters])
            )

    assert course.start(prepare=look)
    for job in kept:
        _, *led = seen[job.rank]
        led.append([p.detach().clone() for p in job.stage.parameters])
        wanted, *others = led
        for now in others:
            wanted = [DECAY * old + (1 - DECAY) * new for old, new in zip(wanted, now, strict=True)]
        assert job.stage.average
        torch.testing.assert_close(list(job.stage.average.weights.values()), wanted)


@pytest.mark.parametrize("method", ["penalty", "delayed"])
def test_a_run_that_was_stopped_and_cut_anew_has_the_same(tmp_path: Path, method: str) -> None:
    whole, torn = (Course(tmp_path / name, **EMA, method__name=method) for name in ("whole", "torn"))
    assert whole.start()
    for place in [(0, 1), (2, 1), (3, 0)]:
        assert not torn.start(stop=place)
    assert torn.start()
    assert learned(torn) == learned(whole)
    assert all(record.test_accuracy_ema is not None for record in whole.records)
    for name, t in averaged(whole.folder).items():
        assert torch.equal(t, averaged(torn.folder)[name]), name


def test_other_cuts_carry_it_over(tmp_path: Path) -> None:
    exact = {**EMA, "method__name": "backprop", "schedule__epochs": 4}
    whole, torn = Course(tmp_path / "whole", **exact), Course(tmp_path / "torn", **exact)
    assert whole.start()
    for stages, place in ((1, (1, 1)), (3, (2, 1)), (2, None)):
        assert torn.start(cuts=CUTS[stages], stop=place) == (place is None)
    for name, t in averaged(whole.folder).items():
        assert torch.equal(t, averaged(torn.folder)[name]), name


def test_it_is_evaluated_shown_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **EMA, optim__lr=0.2)
    run, own = tmp_path / "run", ["--config", str(toml)]
    assert train_here(toml, run) == 0
    said = capsys.readouterr().out
    assert "(ema " in said
    assert "  of the average of the weights: last " in said
    last = records(run)[-1]
    assert last["test_loss_ema"] != last["test_loss"]
    for words, ending in (([], ""), (["--ema"], "_ema")):
        assert cli.main(["evaluate", str(run), *own, "--json", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["test_loss"] == pytest.approx(last[f"test_loss{ending}"])
        assert found["test_accuracy"] == last[f"test_accuracy{ending}"]
    assert cli.main(["export", str(run), *own, "--ema", "--out", str(tmp_path / "a.pt")]) == 0
    exported = torch.load(tmp_path / "a.pt", weights_only=True)
    for name, t in averaged(run).items():
        assert torch.equal(exported[name], t)


def test_without_one_the_flag_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, schedule__epochs=1)
    assert train_here(toml, tmp_path / "run") == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--config", str(toml), "--ema"]) == 65
    assert "has no average of the weights, which a run with optim.ema keeps" in capsys.readouterr().err


def test_methods_without_steps_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **EMA, model__name="mlp", method__name="pdadmm", schedule__ratio="0:1")
    assert cli.main(["config", str(toml)]) == 65
    assert "optim.ema = 0.9: an iteration of pdadmm is one step over all samples" in capsys.readouterr().err
