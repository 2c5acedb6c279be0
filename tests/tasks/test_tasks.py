"""Losses of the tasks against torch's own distributions, and what a configuration may combine."""

from __future__ import annotations

import pkgutil
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from hpcsplit.config import resolve
from hpcsplit.errors import ConfigError
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.trial import check_network
from hpcsplit.tasks.catalog import LOSSES, TASKS
from hpcsplit.tasks.generation import Generation
from hpcsplit.tasks.language import Language
from hpcsplit.tasks.losses import named, users
from hpcsplit.tasks.regression import Regression
from hpcsplit.tasks.task import Classification, Task
from tests.engine.small import config


def test_every_name_has_its_task() -> None:
    kinds = {name: pkgutil.resolve_name(place) for name, place in TASKS.items()}
    assert kinds == {
        "classification": Classification,
        "regression": Regression,
        "language": Language,
        "generation": Generation,
    }


def test_classification() -> None:
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 3, 2, 1, 1, 0])
    task = Classification()
    chosen = logits.log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(task.loss(logits, labels), -chosen)
    assert torch.equal(task.score(logits, labels), task.loss(logits, labels))
    assert task.correct(logits, labels).tolist() == [
        max(range(4), key=row.__getitem__) == label for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert task.pictures(logits, (1, 2, 2)) is None


def test_its_slope_is_bounded_by_the_constant() -> None:
    logits = (8 * torch.randn(500, 5, dtype=torch.float64)).requires_grad_()
    Classification().loss(logits, torch.arange(500) % 5).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.norm(dim=1).max()) < (Classification().lipschitz or 0.0)
    assert float(logits.grad.norm(dim=1).max()) > 0.95 * (Classification().lipschitz or 0.0)


def test_generation_is_reconstruction_and_divergence() -> None:
    n, latent, task = 12, 3, Generation()
    images, made = torch.randn(5, n, dtype=torch.float64), torch.randn(5, n, dtype=torch.float64)
    mean, log_variance = torch.randn(2, 5, latent, dtype=torch.float64)
    outputs = torch.cat([made, mean, log_variance], dim=1)
    square = torch.stack([F.mse_loss(a, b) for a, b in zip(made, images, strict=True)])
    posterior = Normal(mean, (0.5 * log_variance).exp())
    divergence = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1)
    torch.testing.assert_close(task.loss(outputs, images), square + divergence / n)
    torch.testing.assert_close(task.score(outputs, images), square)
    assert task.correct(outputs, images) is None
    assert torch.equal(task.pictures(outputs, (3, 2, 2)), made.view(5, 3, 2, 2))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"name": "resnet20-vae"}, r"resnet20-vae is made for generation; set model\.task = "),
        ({"name": "resnet20", "task": "generation"}, r"resnet20 is made for classification; .* such as resnet20-vae"),
        ({"name": "resnet21-vae", "task": "generation"}, r"6n\+2 layers"),
        ({"name": "resnet20", "task": "segmentation"}, r"is not one of classification, regression"),
        ({"name": "resnet20", "task": "language"}, r"resnet20 is made for classification; .* such as one of your own"),
        ({"loss": "mae"}, r'model\.loss = "mae" is not one of cross_entropy, mse, .*, nor package\.module:factory'),
        ({"loss": "huberr"}, r"did you mean huber\?"),
        ({"loss": "cross_entropy", "task": "regression"}, r'"cross_entropy" does not fit model\.task = "regression"; '),
        ({"loss": "mse", "task": "generation", "name": "a.b:c"}, r'"mse" does not fit .*; take one of your own$'),
        ({"class_weights": [1.0, 2.0], "loss": "mse"}, r'belong to the cross-entropy; model\.loss = "mse"'),
        ({"class_weights": [1.0, 2.0], "task": "regression"}, r"class_weights .* are for classification and language"),
        ({"class_weights": [0.0, 0.0]}, r"class_weights are all 0"),
        ({"class_weights": [-1.0]}, r"model\.class_weights = -1\.0 is below its smallest value 0"),
        ({"class_weights": ["a"]}, r"model\.class_weights = \['a'\] must hold numbers only"),
    ],
)
def test_networks_and_tasks_that_do_not_fit(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve({"model": model})


# ------------------------------------------------------------------------------------------------ losses


def of_loop(outputs: torch.Tensor, targets: torch.Tensor, loss: Any) -> torch.Tensor:
    """What torch's mean over a single sample says, sample by sample."""
    return torch.stack([loss(o[None], t[None]) for o, t in zip(outputs, targets, strict=True)])


def test_label_smoothing_and_class_weights_are_torchs_of_a_single_sample() -> None:
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 3, 2, 1, 1, 0])
    weights = (0.5, 2.0, 1.0, 3.0)
    plain = F.cross_entropy(logits, labels, reduction="none")
    smooth = Classification(smoothing=0.2)
    wanted = of_loop(logits, labels, lambda o, t: F.cross_entropy(o, t, label_smoothing=0.2))
    torch.testing.assert_close(smooth.loss(logits, labels), wanted)
    weighed = Classification(weights=weights)
    torch.testing.assert_close(weighed.loss(logits, labels), plain * torch.tensor(weights, dtype=torch.float64)[labels])
    both = Classification(smoothing=0.2, weights=weights)
    total = F.cross_entropy(logits, labels, torch.tensor(weights, dtype=torch.float64), label_smoothing=0.2)
    per_sample = both.loss(logits, labels).sum() / torch.tensor(weights, dtype=torch.float64)[labels].sum()
    torch.testing.assert_close(per_sample, total)
    for task in (smooth, weighed, both):
        torch.testing.assert_close(task.score(logits, labels), plain)
    assert both.lipschitz == pytest.approx(3 * 2**0.5)


def test_shares_of_classes_are_the_mean_of_the_labels_losses() -> None:
    """As mixed samples have them, with weights and smoothing too."""
    logits, a, b = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 3, 2]), torch.tensor([1, 3, 0])
    share = torch.tensor([0.3, 0.5, 1.0], dtype=torch.float64)
    mixed = share[:, None] * F.one_hot(a, 4) + (1 - share)[:, None] * F.one_hot(b, 4)
    for task in (Classification(), Classification(smoothing=0.1), Classification(weights=(1.0, 2.0, 3.0, 4.0))):
        apart = share * task.loss(logits, a) + (1 - share) * task.loss(logits, b)
        torch.testing.assert_close(task.loss(logits, mixed), apart)


MODULES = {"mse": "MSELoss", "l1": "L1Loss", "smooth_l1": "SmoothL1Loss", "huber": "HuberLoss"}
MODULES |= {"bce": "BCEWithLogitsLoss", "poisson_nll": "PoissonNLLLoss"}


def test_every_loss_by_name_is_torchs_mean_over_a_sample() -> None:
    assert {"cross_entropy", *MODULES} == set(LOSSES)
    outputs, targets = torch.randn(4, 2, 3, dtype=torch.float64), torch.rand(4, 2, 3)
    for name, module in MODULES.items():
        wanted = of_loop(outputs, targets.double(), getattr(torch.nn, module)())
        torch.testing.assert_close(named(name)(outputs, targets), wanted)


def test_a_class_is_one_where_it_is_right() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    for name in ("mse", "bce"):
        shares = named(name)(logits, F.one_hot(labels, 3).float())
        torch.testing.assert_close(named(name, of_classes=True)(logits, labels), shares)


def test_regression_of_one_number_or_many() -> None:
    task = Regression()
    for shape in ((), (1,), (3,), (2, 4)):
        outputs, targets = torch.randn(5, *(shape or (1,))), torch.randn(5, *shape)
        wanted = of_loop(outputs, targets.view_as(outputs), F.mse_loss)
        torch.testing.assert_close(task.loss(outputs, targets), wanted)
        assert task.wrong_shape(tuple(outputs.shape[1:]), (9,), 0, shape) == ""
    assert task.correct(outputs, targets) is None
    whole = torch.tensor([1, 2, 3])
    torch.testing.assert_close(task.loss(torch.zeros(3, 1), whole), torch.tensor([1.0, 4.0, 9.0]))
    assert task.wrong_shape((3,), (9,), 0, (2, 4)) == "the shape of its targets, (2, 4)"
    assert task.wrong_shape((3,), (9,), 0) == "a vector of one number, as its targets are"


def figures(task: Task, *sets: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """As an evaluation adds them up, batch by batch."""
    sums: dict[str, torch.Tensor] = {}
    for outputs, targets in sets:
        for name, values in task.noted(outputs, targets).items():
            sums[name] = sums.get(name, torch.zeros(())) + values.double().sum(0)
    count = sum(len(targets) for _, targets in sets)
    loss = sum(float(task.score(*each).sum()) for each in sets) / count
    return task.figures(sums, loss, count)


def test_r2_is_one_minus_the_errors_over_the_spread_about_each_mean() -> None:
    y = 3 * torch.randn(40, 2) + torch.tensor([10.0, -5.0])
    guessed = y + 0.5 * torch.randn(40, 2)
    wanted = 1 - float((guessed - y).square().sum() / (y - y.mean(0)).square().sum())
    assert figures(Regression(), (guessed[:30], y[:30]), (guessed[30:], y[30:])) == pytest.approx({"r2": wanted}, 1e-4)
    assert figures(Regression(), (y, y)) == {"r2": 1.0}
    assert figures(Regression(), (torch.ones(3, 1), torch.zeros(3))) == {}


def test_language_is_the_mean_over_tokens() -> None:
    logits, tokens = torch.randn(4, 6, 9, dtype=torch.float64), torch.randint(9, (4, 6))
    for task, smoothing in ((Language(), 0.0), (Language(smoothing=0.1), 0.1)):
        wanted = of_loop(logits, tokens, lambda o, t, s=smoothing: F.cross_entropy(o[0], t[0], label_smoothing=s))
        torch.testing.assert_close(task.loss(logits, tokens), wanted)
    plain = of_loop(logits, tokens, lambda o, t: F.cross_entropy(o[0], t[0]))
    torch.testing.assert_close(Language(smoothing=0.1).score(logits, tokens), plain)
    share = (logits.argmax(2) == tokens).double().mean(1)
    assert torch.equal(Language().correct(logits, tokens), share)
    assert figures(Language(), (logits, tokens)) == pytest.approx({"perplexity": float(plain.mean().exp())})
    assert Language().wrong_shape((6, 9), (6,), 9, (6,)) == ""
    assert Language().wrong_shape((9,), (6,), 9, (6,)) == "(6, 9): a logit for each of 9 tokens at each place"


def test_top_five_of_many_classes() -> None:
    logits, labels = torch.arange(11.0).expand(4, 11), torch.tensor([10, 6, 5, 0])
    assert figures(Classification(), (logits, labels)) == {"accuracy_top5": 0.5}
    assert figures(Classification(), (logits[:, :10], labels[1:2].expand(4))) == {}


# ------------------------------------------------------------------------------------------------ a user's loss


def test_a_users_loss_is_taken_and_scored() -> None:
    logits, labels = torch.randn(6, 10), torch.randint(10, (6,))
    p = logits.softmax(1)[torch.arange(6), labels]
    task = Setting(config(model__loss="tests.tasks.mylosses:focal")).task
    torch.testing.assert_close(task.loss(logits, labels), -((1 - p) ** 2) * p.log())
    assert torch.equal(task.score(logits, labels), task.loss(logits, labels))
    assert task.correct(logits, labels) is not None
    assert task.lipschitz is None
    wanted = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(users("tests.tasks.mylosses:of_a_module")(logits, labels), wanted)


@pytest.mark.parametrize("network", ["tests.engine.tinynet:small", "resnet8"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("misspelt", r"fails for outputs of shape \(\d, 10\) .*NameError.*mylosses\.py line 35"),
        ("mean_of_all", r"returns a tensor of shape \(\) for \d samples.*return the loss of each sample"),
        ("without_gradient", r"gives its outputs no gradient"),
        ("with_weights", r"has weights of its own, which nothing trains"),
        ("no_function", r"the factory returned NoneType"),
        ("fails", r"failed \(RuntimeError: not today\); correct the factory, mylosses\.py line 53"),
        ("absent", r'model\.loss = "tests\.tasks\.mylosses:absent": .* has no function absent'),
    ],
)
def test_a_users_loss_with_a_bug_is_one_sentence(name: str, sentence: str, network: str) -> None:
    cfg = config(model__loss=f"tests.tasks.mylosses:{name}", model__name=network)
    with pytest.raises(ConfigError, match=sentence):
        check_network(Setting(cfg), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__class_weights": [1.0, 2.0]}, r"class_weights has 2 numbers, fake has 10 classes"),
        (
            {"model__task": "language", "model__name": "tests.engine.tinynet:small"},
            r"fake has one label for each sample, no token",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_network(Setting(config(**changes)), torch.device("cpu"))
