"""Keys as they are called elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from hpcsplit.config import option_tree, resolve
from hpcsplit.config.synonyms import _HOMES, _KEYS, _MEANT, _SECTIONS
from hpcsplit.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("optim.warmup", "optim.lr_warmup"),
        ("optim.warmup_epochs", "optim.lr_warmup"),
        ("optim.learning_rate", "optim.lr"),
        ("optim.wd", "optim.weight_decay"),
        ("optim.scheduler", "optim.lr_schedule"),
        ("optim.schedule", "optim.lr_schedule"),
        ("optim.gradient_clip", "optim.clip"),
        ("optim.clip_norm", "optim.clip"),
        ("optim.max_grad_norm", "optim.clip"),
        ("optim.type", "optim.name"),
        ("optim.betas", "optim.beta1 and optim.beta2"),
        ("optim.grad-accum-steps", "optim.accumulate"),
        ("data.batch", "data.batch_size"),
        ("data.path", "data.root"),
        ("data.dir", "data.root"),
        ("data.dataset", "data.name"),
        ("data.Drop_Last", "data.last_batch"),
        ("model.arch", "model.name"),
        ("model.type", "model.name"),
        ("model.num_layers", "model.depth"),
        ("model.hidden_size", "model.width"),
        ("model.criterion", "model.loss"),
        ("run.gpu", "run.device"),
        ("run.amp", "run.precision"),
        ("run.mixed_precision", "run.precision"),
        ("run.random_seed", "run.seed"),
        ("run.epochs", "schedule.epochs"),
        ("schedule.num_epochs", "schedule.epochs"),
        ("schedule.lr", "optim.lr"),
        ("schedule.warmup_epochs", "schedule.warmup, exact epochs at the start, or optim.lr_warmup"),
        ("checkpoint.interval", "checkpoint.every_epochs"),
        ("checkpoint.save_top_k", "checkpoint.keep"),
        ("method.algorithm", "method.name"),
    ],
)
def test_a_key_by_another_name(key: str, wanted: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError) as error:
        resolve({section: {name: 1}})
    assert str(error.value) == f"unknown key {key}; did you mean {wanted}?"
    with pytest.raises(ConfigError) as error:
        resolve({}, [(key, "1")])
    assert str(error.value).endswith(f"did you mean {wanted}?")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"optimizer": {"lr": 0.1}}, "[optimizer]; did you mean optim?"),
        (
            {"optimizer": {"type": "adam", "learning_rate": 0.1, "momentum": 0.9}},
            "[optimizer]; did you mean optim? Write optim.name for optimizer.type, optim.lr for "
            "optimizer.learning_rate",
        ),
        ({"train": {"epochs": 3}}, "[train]; write schedule.epochs for train.epochs"),
        (
            {"training": {"epochs": 3, "batch_size": 4, "zzz": 1}},
            "[training]; write schedule.epochs for training.epochs, data.batch_size for training.batch_size",
        ),
        ({"trainer": {"max_epochs": 3}}, "[trainer]; write schedule.epochs for trainer.max_epochs"),
        ({"Dataset": {"name": "digits"}}, "[Dataset]; did you mean data?"),
        ({"network": {}}, "[network]; did you mean model?"),
        (
            {"scheduler": {"name": "cosine"}},
            "[scheduler]; did you mean optim? Write optim.lr_schedule for scheduler.name",
        ),
        ({"optm": {}}, "[optm]; did you mean optim?"),
        ({"zzz": {}}, "[zzz]; there are data, model, split, method, schedule, optim, store, checkpoint, run"),
    ],
)
def test_a_section_by_another_name(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(tree)
    assert str(error.value) == f"unknown section {said}"


def test_letters_come_second_and_what_is_not_there_is_not_suggested() -> None:
    with pytest.raises(ConfigError, match=r"did you mean optim\.momentum\?"):
        resolve({"optim": {"momentun": 0.9}})
    for absent in ("data.num_workers", "optim.polyak"):
        section, key = absent.split(".")
        with pytest.raises(ConfigError, match=rf"unknown key {section}\.{key}") as error:
            resolve({section: {key: 1}})
        target = _MEANT[key.replace("_", "")].split(".")
        assert (target[1] in option_tree("penalty")[target[0]]) == (".".join(target) in str(error.value))


def test_no_word_has_two_meanings_and_none_is_a_key() -> None:
    words = [word for listed in _KEYS.values() for word in listed.split()]
    assert len(words) == len(set(words))
    assert len(_HOMES) == len(" ".join(_SECTIONS.values()).split())
    tree = option_tree("penalty")
    assert not set(_HOMES) & set(tree)
    for name in words:
        section, _, key = name.rpartition(".")
        assert not section or key not in tree.get(section, ()), name
