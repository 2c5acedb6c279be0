"""Images that say which class each of their pixels is of, and targets that must agree with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.data.mixing import Mixing
from hpcsplit.errors import ConfigError

SHAPE, CLASSES = (10, 8, 6), 10
BOTH: dict[str, Any] = {"mixup": 0.4, "cutmix": 1.0}


def mixed(ids: np.ndarray, epoch: int = 0, seed: int = 3, **alphas: float) -> tuple[Tensor, Tensor]:
    """Of samples whose class is the last digit of their id; each pixel of an image is 1 in its class's channel."""
    mixing = Mixing(alphas.get("mixup", 0.0), alphas.get("cutmix", 0.0), SHAPE, seed)
    labels = torch.from_numpy(ids % 10)
    images = F.one_hot(labels, CLASSES).float()[:, :, None, None].expand(len(ids), *SHAPE)
    return mixing.images(images, ids, epoch), mixing.targets(labels, ids, epoch, CLASSES)


@pytest.mark.parametrize("alphas", [{"mixup": 0.2}, {"cutmix": 1.0}, BOTH], ids=str)
@pytest.mark.parametrize("size", [64, 2, 1])
def test_a_target_has_the_shares_of_its_image(alphas: dict[str, Any], size: int) -> None:
    ids = np.random.default_rng(0).permutation(200)[:size]
    images, targets = mixed(ids, **alphas)
    torch.testing.assert_close(images.mean((2, 3)), targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    others = targets.clone()
    others[torch.arange(size), torch.from_numpy(ids % 10)] = 0.0
    assert ((others > 0).sum(1) <= 1).all()  # one partner


def test_boxes_are_boxes_and_the_rest_is_spread_evenly() -> None:
    boxed, even = 0, 0
    for number, image in enumerate(mixed(np.arange(400), **BOTH)[0]):
        partner = torch.cat([image[: number % 10], image[number % 10 + 1 :]]).sum(0)
        if set(partner.unique().tolist()) <= {0.0, 1.0}:
            boxed += 1
            rows, columns = partner.amax(1), partner.amax(0)
            assert torch.equal(partner, rows[:, None] * columns)
            assert max(int(line.diff().abs().sum()) for line in (rows, columns)) <= 2  # in a row
        else:
            even += 1
            assert len(partner.unique()) == 1
    assert 150 < boxed < 280
    assert 120 < even < 250


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_have_the_distribution_of_beta(alpha: float) -> None:
    mixing, ids = Mixing(alpha, 0.0, SHAPE, 0), np.arange(4000)
    labels = torch.zeros(len(ids), dtype=torch.int64)
    labels[::2] = 1
    own = mixing.targets(labels, ids, 0, 2)[torch.arange(len(ids)), labels]
    apart = own < 1  # a partner of the same class shows nothing
    assert kstest(own[apart].double().numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_box_has_the_share_of_beta_where_it_is_not_cut_off() -> None:
    mixing, ids = Mixing(0.0, 1.0, (1, 200, 200), 0), np.arange(600)
    images = torch.zeros(600, 1, 200, 200)
    images[::2] = 1.0
    inside = (mixing.images(images, ids, 0) != images)[:, 0]
    edge = inside[:, 0].any(1) | inside[:, -1].any(1) | inside[:, :, 0].any(1) | inside[:, :, -1].any(1)
    area = inside.double().mean((1, 2))[~edge & inside.any(2).any(1)]
    assert len(area) > 30
    sides = [(int(box.any(1).sum()), int(box.any(0).sum())) for box in inside]
    assert all(abs(height - width) <= 2 for (height, width), cut in zip(sides, edge, strict=True) if not cut)
    kept = 1 - area
    assert 0.5 < float(kept.mean()) < 0.98


def test_nothing_but_seed_epoch_and_ids_decides() -> None:
    ids = np.array([7, 3, 44, 12, 9, 101])
    images, targets = mixed(ids, **BOTH)
    for a, b in zip((images, targets), mixed(ids.copy(), **BOTH), strict=True):
        assert torch.equal(a, b)
    turned = mixed(ids[::-1].copy(), **BOTH)
    assert torch.equal(turned[1].flip(0), targets)  # a sample has its partner wherever it stands
    assert torch.equal(turned[0].flip(0), images)
    for others in (mixed(ids, epoch=1, **BOTH), mixed(ids, seed=4, **BOTH)):
        assert not torch.equal(others[1], targets)


def test_every_sample_is_somebodys_partner_and_nobody_its_own() -> None:
    ids = np.arange(10)
    targets = mixed(ids, mixup=1.0)[1]
    partners = targets.clone()
    partners[torch.arange(10), torch.arange(10)] = 0.0
    assert sorted(partners.argmax(1).tolist()) == list(range(10))


def test_vectors_are_mixed_and_tokens_are_not() -> None:
    mixing, ids = Mixing(1.0, 0.0, (4,), 0), np.arange(3)
    labels = torch.arange(3)
    x = F.one_hot(labels, 4).float()
    torch.testing.assert_close(mixing.images(x, ids, 0)[:, :3], mixing.targets(labels, ids, 0, 3))
    with pytest.raises(ConfigError, match=r"optim\.mixup and optim\.cutmix mix numbers, and samples are int64"):
        mixing.images(x.long(), ids, 0)
