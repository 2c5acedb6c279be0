"""The keys of [optim] in a run of stages, beside a loop that knows nothing of stages: torch's own optimizer, scheduler
and loss on the whole network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torchs

from hpcsplit import cli
from hpcsplit.config import resolve
from hpcsplit.data.mixing import Mixing
from hpcsplit.data.order import batches, epoch_order
from hpcsplit.engine.job import Job
from hpcsplit.engine.rank import rank_program
from hpcsplit.errors import ConfigError
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.delayed import Delayed
from hpcsplit.plan.setting import Setting
from hpcsplit.run.records import EpochRecord
from hpcsplit.schedule.hybrid import of_initials
from hpcsplit.schedule.learning_rate import LearningRate
from hpcsplit.tasks import task
from hpcsplit.wire import lockstep
from tests.checkpoint.starts import Course, learned, weights
from tests.engine.conftest import Make
from tests.engine.small import CUTS, config, records, train_here, write_toml
from tests.methods.test_delayed import run, vectors
from tests.methods.tiny import batch_of, conv_parts, linear_parts, make_stages, step
from tests.methods.tiny import weights as weights_of
from tests.tasks import mylosses

EXACT = {"method__name": "backprop", "schedule__epochs": 2, "run__channels_last": False}
FULL: dict[str, Any] = {"schedule": {"ratio": "0:1"}, "data": {"batch_size": 0}}
STEPS = 4  # of an epoch


def trained_plainly(
    changes: dict[str, Any],
    optimizer: Callable[[nn.Sequential], Optimizer],
    scheduler: Callable[[Optimizer], torchs.LRScheduler] = lambda optimizer: torchs.ConstantLR(optimizer, 1.0),
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> dict[str, Tensor]:
    """The weights after two epochs."""
    setting = Setting(config(1, **EXACT, **changes))
    net, data = setting.network(), setting.data
    source = setting.source(data, data.train, torch.device("cpu"))
    moving = optimizer(net)
    rates = scheduler(moving)
    for epoch in range(2):
        for ids in batches(epoch_order(0, epoch, 100), 32):
            moving.zero_grad()
            loss(net(source.images(ids, epoch=epoch, augment=True)), source.labels(ids)).backward()
            moving.step()
            rates.step()
    return dict(net.state_dict())


def assert_trained_so(make: Make, changes: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    """A run of two stages ends there, and runs of one and three stages end with the bits of that."""
    ends = []
    for stages in (2, 1, 3):
        jobs = make(stages, None, str(stages), **EXACT, **changes)
        lockstep.run([rank_program(job) for job in jobs])
        ends.append({name: t for job in jobs for name, t in job.stage.state().items()})
    for name, t in wanted.items():
        torch.testing.assert_close(ends[0][name], t, rtol=1e-4, atol=1e-5)
        assert torch.equal(ends[0][name], ends[1][name])
        assert torch.equal(ends[0][name], ends[2][name])


# ------------------------------------------------------------------------------------------------ learning rate


def sgd(net: nn.Sequential) -> Optimizer:
    return SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def test_a_rate_that_moves_with_every_step(make: Make) -> None:
    changes = {"optim__lr_schedule": "onecycle", "optim__lr_steps": "step"}
    plain = trained_plainly(changes, sgd, lambda o: torchs.OneCycleLR(o, 0.05, 2 * STEPS, cycle_momentum=False))
    assert_trained_so(make, changes, plain)


def test_the_rate_of_every_step_and_of_the_record(make: Make) -> None:
    changes = {"optim__lr_schedule": "linear", "optim__lr_steps": "step", "optim__lr_warmup": 0.5}
    (job,) = make(1, **EXACT, **changes)
    found: list[float] = []
    assert job.stage.optimizer
    job.stage.optimizer.register_step_pre_hook(lambda *args: found.append(job.stage.lr))
    noted: list[Any] = []
    job.observer.epoch_done = noted.append  # type: ignore[method-assign,assignment]
    lockstep.run([rank_program(job)])
    wanted = [0.05 * factor for factor in (1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    assert found == pytest.approx(wanted)
    assert [record.lr for record in noted] == pytest.approx([wanted[3], wanted[7]])


@pytest.mark.parametrize("timetable", ["1f1b", "step"])
def test_what_is_in_flight_keeps_the_rate_of_its_own_step(timetable: str) -> None:
    """So all stages take a mini-batch's gradient with one rate, however late it comes."""
    method, data = Delayed(timetable=timetable), vectors(6)
    stages = make_stages(linear_parts(3), data[0][0])
    rate = LearningRate(0.1, "cosine", of_initials("P"), by_step=True)
    found: list[list[float]] = [[], [], []]
    for stage in stages:
        stage.rate = lambda epoch, step: rate(epoch, step, 6)

        assert stage.optimizer
        stage.optimizer.register_step_pre_hook(lambda *args, stage=stage: found[stage.index].append(stage.lr))
        at = stage.at

        def moved(epoch: int, step: int, stage: Any = stage, at: Any = at) -> None:  # as the engine does
            at(epoch, step)
            stage.set_lr(rate(epoch, step, 6))

        stage.at = moved  # type: ignore[method-assign]
    run(method, stages, data)
    assert found == [[rate(0, step, 6) for step in range(6)]] * 3


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("penalty", {"optim__lr_steps": "step", "optim__lr_warmup": 1.5}),
        ("delayed", {"optim__lr_steps": "step", "method__epoch_end": "run", "optim__lr_schedule": "linear"}),
        ("gsadmm", {"optim__lr_steps": "step", "schedule__lr_phases": "each", "method__update": "set"}),
    ],
)
def test_a_run_stopped_within_an_epoch_goes_on_with_the_same_rates(
    tmp_path: Path, method: str, changes: dict[str, Any]
) -> None:
    shape = {"data__batch_size": 15, "schedule__epochs": 4, "schedule__ratio": "1:2", "checkpoint__every_epochs": 0}
    changes = {**shape, "method__name": method, **changes}
    whole, parts = Course(tmp_path / "whole", **changes), Course(tmp_path / "parts", **changes)
    assert whole.start(CUTS[3])
    for place in [(0, 1), (1, 0), (2, 1)]:
        assert not parts.start(CUTS[3], stop=place)
    assert parts.start(CUTS[3])
    assert learned(parts) == learned(whole)


# ------------------------------------------------------------------------------------------------ weights


def spared(net: nn.Sequential) -> Optimizer:
    """SGD looking ahead, without weight decay of what has one dimension."""
    matrices = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return SGD(groups, lr=0.05, momentum=0.9, nesterov=True)


def test_nesterov_without_decay_of_norms_and_biases(make: Make) -> None:
    changes: dict[str, Any] = {"optim__nesterov": True, "optim__decay_norms": False, "optim__weight_decay": 0.1}
    changes |= {"optim__lr_schedule": "constant"}
    assert_trained_so(make, changes, trained_plainly(changes, spared))


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "muon"])
def test_norms_and_biases_are_spared_by_any_optimizer(name: str) -> None:
    """With gradients of 0 nothing but the decay moves a weight."""
    setting = Setting(config(optim__name=name, optim__decay_norms=False, optim__weight_decay=0.1))
    weights = [nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3,), (), (2, 1, 1, 1))]
    optimizer = setting.optimizer(weights)
    for p in weights:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [bool((p != 1).any()) for p in weights] == [True, False, False, True]


def test_spike_compensation_spares_them_too() -> None:
    method, data = Delayed(spike=True), vectors(6)
    ends = []
    for decay in (0.0, 0.3):
        (stage, *others) = make_stages(linear_parts(2), data[0][0], weight_decay=decay)
        for each in (stage, *others):
            assert each.optimizer
            each.optimizer.add_param_group({"params": [], "lr": 0.1})
            biases = [p for p in each.parameters if p.dim() == 1]
            each.optimizer.param_groups[1] |= {"params": biases, "weight_decay": 0.0}
            each.optimizer.param_groups[0]["params"] = [p for p in each.parameters if p.dim() > 1]
        run(method, [stage, *others], data[:1])
        ends.append([p.detach().clone() for p in stage.parameters])
    (matrix, bias), (decayed, spared_bias) = ends
    assert torch.equal(bias, spared_bias)
    assert not torch.equal(matrix, decayed)


MOVED: list[dict[str, Any]] = [
    {"optim__nesterov": True, "optim__decay_norms": False},
    {"optim__name": "adamw", "optim__lr": 1e-3, "optim__decay_norms": False},
    {"optim__name": "tests.plan.myoptims:Lion", "optim__lr": 1e-3},
    {"optim__name": "adafactor", "optim__lr": 1e-3},
    {"optim__accumulate": 3, "run__channels_last": True},
    {"optim__accumulate": 4, "optim__name": "adam", "optim__lr": 1e-3},
]


@pytest.mark.parametrize("changes", MOVED, ids=str)
def test_stopped_and_cut_elsewhere_it_ends_with_the_same_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**EXACT, "data__batch_size": 15, "optim__lr_steps": "step", "checkpoint__every_epochs": 0, **changes}
    whole, parts = Course(tmp_path / "whole", **changes), Course(tmp_path / "parts", **changes)
    assert whole.start(CUTS[1])
    assert not parts.start(CUTS[3], stop=(0, 1))
    assert not parts.start(CUTS[2], stop=(1, 0))
    assert parts.start(CUTS[1])
    assert weights(parts) == weights(whole)


# ------------------------------------------------------------------------------------------------ accumulation


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(6, 6), (5, 5, 2), (4, 4, 4)], ids=str)
def test_gathered_gradients_are_those_of_one_larger_mini_batch(stages: int, sizes: tuple[int, ...]) -> None:
    """In float64 and without BatchNorm; twice, so momentum has its part."""
    images, labels = batch_of((2, 4, 4), 24)
    parts, method = conv_parts(stages, (2, 4, 4)), Backprop(microbatches=2)
    whole, gathered = (make_stages(parts, images, accumulate=n) for n in (1, len(sizes)))
    for half in (slice(0, 12), slice(12, 24)):
        step(method, whole, images[half], labels[half], {})
        for a, b in pairwise([0, *accumulate(sizes)]):
            before = weights_of(gathered)
            step(method, gathered, images[half][a:b], labels[half][a:b], {})
            assert any(not torch.equal(x, y) for x, y in zip(before, weights_of(gathered), strict=True)) == (b == 12)
        for ours, theirs in zip(weights_of(gathered), weights_of(whole), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert all(not len(stage.carry) for stage in gathered)


def test_an_update_for_every_three_mini_batches_and_one_for_the_rest(make: Make) -> None:
    changes = {"optim__accumulate": 3, "optim__lr_schedule": "constant"}
    setting = Setting(config(1, **EXACT, **changes))
    net, data = setting.network(), setting.data
    source, optimizer = setting.source(data, data.train, torch.device("cpu")), sgd(net)
    for epoch in range(2):
        order = batches(epoch_order(0, epoch, 100), 32)
        for group in (order[:3], order[3:]):
            optimizer.zero_grad()
            for ids in group:
                logits = net(source.images(ids, epoch=epoch, augment=True))
                loss = F.cross_entropy(logits, source.labels(ids), reduction="sum")
                (loss / sum(map(len, group))).backward()
            optimizer.step()
    assert_trained_so(make, changes, dict(net.state_dict()))


@pytest.mark.parametrize("method", ["penalty", "gsadmm", "auxnet", "chunked"])
def test_parallel_epochs_gather_too_and_go_on_after_a_stop(tmp_path: Path, method: str) -> None:
    changes: dict[str, Any] = {"data__batch_size": 15, "schedule__epochs": 3, "schedule__ratio": "1:2"}
    changes |= {"checkpoint__every_epochs": 0, "method__name": method, "optim__accumulate": 3, "optim__clip": 0.5}
    changes |= {"method__aux_warmup": 0} if method == "auxnet" else {}
    updates: list[int] = []

    def counted(jobs: list[Job]) -> None:
        optimizer = jobs[1].stage.optimizer
        assert optimizer
        optimizer.register_step_post_hook(lambda *args: updates.append(1))

    whole, parts = Course(tmp_path / "whole", **changes), Course(tmp_path / "parts", **changes)
    assert whole.start(CUTS[3], prepare=counted)
    if method != "chunked":  # which passes some of the mini-batches
        assert len(updates) == 3 * 3
    for place in [(0, 1), (1, 0), (2, 1)]:
        assert not parts.start(CUTS[3], stop=place)
    assert parts.start(CUTS[3])
    assert learned(parts) == learned(whole)


# ------------------------------------------------------------------------------------------------ mixing


MIXED = {"optim__mixup": 0.4, "optim__cutmix": 1.0}


def test_mixed_samples_are_those_of_one_process(make: Make) -> None:
    """The reference mixes whole mini-batches and takes the losses of both labels apart."""
    changes = {**MIXED, "optim__lr_schedule": "constant"}
    setting = Setting(config(1, **EXACT, **changes))
    net, data = setting.network(), setting.data
    source, optimizer = setting.source(data, data.train, torch.device("cpu")), sgd(net)
    mixing = Mixing(0.4, 1.0, (3, 32, 32), 0)
    for epoch in range(2):
        for ids in batches(epoch_order(0, epoch, 100), 32):
            y = mixing.targets(source.labels(ids), ids, epoch, 10)
            logits = net(mixing.images(source.images(ids, epoch=epoch, augment=True), ids, epoch))
            optimizer.zero_grad()
            (-(y * logits.log_softmax(1)).sum() / len(ids)).backward()
            optimizer.step()
    assert_trained_so(make, changes, dict(net.state_dict()))


@pytest.mark.parametrize(
    ("method", "ratio", "acts"),
    [("penalty", "1:3", "S"), ("delayed", "1:3", "SP"), ("auxnet", "1:3", "SP"), ("chunked", "1:3", "SP")],
)
def test_epochs_in_which_samples_are_mixed(make: Make, method: str, ratio: str, acts: str) -> None:
    jobs = make(3, None, method, **MIXED, method__name=method, schedule__epochs=4, schedule__ratio=ratio)
    seen: list[tuple[str, bool]] = []
    last = jobs[-1]
    batch = last.batch

    def noted(ids: Any, **view: Any) -> Any:
        result = batch(ids, **view)
        if "mix" in view:
            seen.append((view["phase"][0].upper(), result.y.is_floating_point()))
        return result

    last.batch = noted  # type: ignore[method-assign]
    lockstep.run([rank_program(job) for job in jobs])
    assert {phase for phase, _ in seen} == {"S", "P"}
    assert {phase for phase, mixed in seen if mixed} == set(acts)
    assert all(mixed == (phase in acts) for phase, mixed in seen)


@pytest.mark.parametrize("method", ["penalty", "delayed"])
def test_mixed_samples_come_again_after_a_stop(tmp_path: Path, method: str) -> None:
    shape = {"data__batch_size": 15, "schedule__epochs": 3, "schedule__ratio": "1:1", "checkpoint__every_epochs": 0}
    changes = {**shape, **MIXED, "method__name": method, "schedule__microbatches": 2}
    whole, parts = Course(tmp_path / "whole", **changes), Course(tmp_path / "parts", **changes)
    assert whole.start(CUTS[3])
    for place in [(0, 1), (1, 1)]:
        assert not parts.start(CUTS[3], stop=place)
    assert parts.start(CUTS[3])
    assert learned(parts) == learned(whole)


# ------------------------------------------------------------------------------------------------ losses


WEIGHTS = [1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 0.25]
LOSSES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "smoothed": (
        {"optim__label_smoothing": 0.1},
        lambda outputs, y: F.cross_entropy(outputs, y, label_smoothing=0.1),
    ),
    "weighed": (
        {"model__class_weights": WEIGHTS},
        lambda outputs, y: F.cross_entropy(outputs, y, torch.tensor(WEIGHTS), reduction="sum") / len(y),
    ),
    "squares": ({"model__loss": "mse"}, lambda outputs, y: F.mse_loss(outputs, F.one_hot(y, 10).float())),
    "a user's": (
        {"model__loss": "tests.tasks.mylosses:focal"},
        lambda outputs, y: mylosses.focal()(outputs, y).mean(),
    ),
    "regression": (
        {"model__task": "regression", "model__name": "tests.engine.recipenets:one_number", "optim__lr": 0.001},
        lambda outputs, y: F.mse_loss(outputs[:, 0], y.float()),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_descends_its_loss(make: Make, name: str) -> None:
    changes, loss = LOSSES[name]
    changes = {"optim__lr_schedule": "constant", **changes}
    lr = changes.get("optim__lr", 0.05)
    plain = trained_plainly(
        changes, lambda net: SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4), loss=loss
    )
    assert_trained_so(make, changes, plain)


def last_record(make: Make, stages: int, **changes: Any) -> tuple[EpochRecord, list[Job]]:
    jobs, noted = make(stages, None, str(stages), **changes), list[EpochRecord]()
    jobs[0].observer.epoch_done = noted.append  # type: ignore[method-assign,assignment]
    lockstep.run([rank_program(job) for job in jobs])
    return noted[-1], jobs


def test_what_is_reported_is_the_plain_cross_entropy_and_the_top_five(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "MANY", 9)
    changes = {"optim__label_smoothing": 0.3, "model__class_weights": WEIGHTS}
    record, (job,) = last_record(make, 1, **EXACT, **changes)
    ids = torch.arange(60).numpy()
    with torch.no_grad():
        logits, labels = job.stage.blocks.eval()(job.test.images(ids)), job.test.labels(ids)
    assert record.test_loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    places = logits.argsort(1, descending=True)
    assert record.test_accuracy_top5 == float((places[:, :5] == labels[:, None]).any(1).double().mean())
    assert (record.test_perplexity, record.test_r2) == (None, None)


@pytest.mark.parametrize("method", ["penalty", "delayed", "backprop"])
def test_a_regression_reports_no_accuracy_but_r2(make: Make, method: str) -> None:
    changes = {"model__task": "regression", "model__name": "tests.engine.recipenets:one_number", "optim__lr": 0.001}
    changes |= {"method__name": method, "schedule__ratio": "1:1", "schedule__epochs": 2}
    found = [last_record(make, stages, **changes) for stages in ((1, 2, 3) if method == "backprop" else (3,))]
    assert len({record.weights_sha256 for record, _ in found}) == 1
    record, jobs = found[-1]
    ids, x = torch.arange(60).numpy(), jobs[0].test.images(torch.arange(60).numpy())
    with torch.no_grad():
        for job in jobs:
            x = job.stage.blocks.eval()(x)
    y = jobs[-1].test.labels(ids).double()
    error = (x[:, 0].double() - y).square()
    assert record.test_loss == pytest.approx(float(error.mean()), rel=1e-4)
    assert record.test_r2 == pytest.approx(1 - float(error.sum() / (y - y.mean()).square().sum()), abs=1e-4)
    assert (record.test_accuracy, record.train_accuracy, record.test_accuracy_bn) == (None, None, None)


class Sequences:
    """Images, and five tokens in the place of a label."""

    def __init__(self, images: Any) -> None:
        self.images = images.images
        self._labels = images.labels

    def labels(self, ids: Any, **view: Any) -> Tensor:
        labels: Tensor = self._labels(ids)
        return (labels[:, None] + torch.arange(5)) % 10


@pytest.mark.parametrize("method", ["penalty", "delayed", "backprop"])
def test_a_language_model_reports_nats_a_token_and_its_perplexity(make: Make, method: str) -> None:
    changes: dict[str, Any] = {"model__task": "language", "model__name": "tests.engine.recipenets:five_tokens"}
    changes |= {"method__name": method, "schedule__ratio": "1:1", "schedule__epochs": 2, "optim__label_smoothing": 0.1}
    hashes = set()
    for stages in (1, 2, 3) if method == "backprop" else (3,):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Setting, "target_shape", (5,))
            jobs, noted = make(stages, None, str(stages), **changes), list[EpochRecord]()
        for job in jobs:
            job.train, job.test = Sequences(job.train), Sequences(job.test)
        jobs[0].observer.epoch_done = noted.append  # type: ignore[method-assign,assignment]
        lockstep.run([rank_program(job) for job in jobs])
        hashes.add(noted[-1].weights_sha256)
    assert len(hashes) == 1
    ids = torch.arange(60).numpy()
    x, y = jobs[0].test.images(ids), jobs[-1].test.labels(ids)
    with torch.no_grad():
        for job in jobs:
            x = job.stage.blocks.eval()(x)
    nats = float(F.cross_entropy(x.flatten(0, 1), y.flatten()))
    assert noted[-1].test_loss == pytest.approx(nats, rel=1e-4)
    assert noted[-1].test_perplexity == pytest.approx(math.exp(nats), rel=1e-3)
    assert noted[-1].test_accuracy == pytest.approx(float((x.argmax(2) == y).double().mean()))


def test_a_users_loss_that_fails_in_training_ends_it_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write_toml(tmp_path / "c.toml", 1, **EXACT, model__loss="tests.tasks.mylosses:later")
    assert train_here(toml, tmp_path / "run") == 65
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert 'model.loss = "tests.tasks.mylosses:later" fails for outputs of shape (32, 10)' in err
    assert "ValueError: too many samples, mylosses.py line 61); correct it" in err


@pytest.mark.parametrize(("command", "refused"), [("evaluate", True), ("plan", True), ("report", False)])
def test_a_loss_is_not_run_on_the_word_of_a_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, refused: bool
) -> None:
    loss = "tests.tasks.mylosses:focal"
    toml = write_toml(tmp_path / "c.toml", 1, **EXACT, model__loss=loss, model__name="resnet8")
    run_dir = tmp_path / "run"
    assert train_here(toml, run_dir) == 0
    capsys.readouterr()
    inside = [str(run_dir / "config.toml") if command == "plan" else str(run_dir)]
    page = ["--out", str(tmp_path / "page.html")] if command == "report" else []
    code, said = cli.main([command, *inside, *page]), capsys.readouterr()
    if refused:
        assert code == 65
        assert f'model.loss = "{loss}" in {run_dir / "config.toml"} names code to be run' in said.err
    else:
        assert code == 0
        assert "is code of the user" in (tmp_path / "page.html").read_text()
    if command == "evaluate":
        assert cli.main([command, *inside, "--config", str(toml)]) == 0
        assert f"test loss{records(run_dir)[-1]['test_loss']:>42.4f}" in capsys.readouterr().out
        other = write_toml(tmp_path / "other.toml", 1, **EXACT, model__name="resnet8")
        assert cli.main([command, *inside, "--config", str(other)]) == 65
        assert 'other.toml has model.loss = ""' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"optim": {"nesterov": True, "name": "adam"}}, r"nesterov = true looks ahead along sgd's momentum"),
        ({"optim": {"nesterov": True, "momentum": 0}}, r"Take sgd with a momentum, or leave nesterov out"),
        ({"optim": {"nesterov": True}, "method": {"name": "delayed", "predict": True}}, r"leave one of them out"),
        ({"optim": {"nesterov": True}, "method": {"name": "delayed", "spike": True}}, r"leave one of them out"),
        ({"optim": {"accumulate": 2}, "method": {"name": "delayed"}}, r"as many method\.microbatches"),
        (
            {"optim": {"accumulate": 2}, "method": {"name": "pdadmm"}, "model": {"name": "mlp"}, **FULL},
            r"pdadmm moves weights once an iteration over all samples; leave it out",
        ),
        (
            {"optim": {"accumulate": 2}, "data": {"batch_size": 0}},
            r"an epoch has one mini-batch; leave one of them out",
        ),
        ({"optim": {"mixup": 1.0}, "model": {"task": "regression"}}, r'mix classes, and model\.task is "regression"'),
        (
            {"optim": {"cutmix": 1.0}, "schedule": {"ratio": "0:1", "warmup": 0}},
            r"act in exact epochs, since penalty keeps variables of every sample, and there is none; set schedule",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve(tree)
