"""The variational auto-encoder with a residual encoder: shapes, what it draws, and what it learns in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.data.dataset import load
from hpcsplit.data.source import Source
from hpcsplit.nets.catalog import build
from hpcsplit.nets.resnet_vae import LATENT
from hpcsplit.nets.shapes import trace
from hpcsplit.stage.stage import may_draw
from hpcsplit.tasks.generation import Generation
from tests.engine.small import records, train_here, weights, write_toml

VAE = {
    "model__name": "resnet8-vae",
    "model__task": "generation",
    "data__name": "digits",
    "data__augment": False,
    "optim__name": "adam",
    "optim__lr": 0.003,
    "optim__clip": 1.0,
    "data__pool": True,
    "data__limit_train": 320,
}


@pytest.mark.parametrize("image", [(1, 28, 28), (1, 14, 14), (3, 32, 32), (1, 8, 8), (1, 9, 13)])
@pytest.mark.parametrize("block", ["post", "pre"])
def test_it_ends_in_an_image_and_moments(image: tuple[int, int, int], block: str) -> None:
    values = image[0] * image[1] * image[2]
    with torch.device("meta"):
        net = build("resnet8-vae", image, 10, block=block)
    assert list(net._modules)[-2:] == ["latent", "decoder"]
    assert [each.out_shape for each in trace(net, image)][-2:] == [(3 * LATENT,), (values + 2 * LATENT,)]
    assert len(net) == len(build("resnet8", image, 10)) + 1


def test_the_encoder_is_the_residual_network() -> None:
    torch.manual_seed(1)
    vae = build("resnet14-vae", (1, 28, 28), 10)
    torch.manual_seed(1)
    plain = build("resnet14", (1, 28, 28), 1)
    for (name, mine), theirs in zip(list(vae.named_children())[:-2], plain, strict=False):
        for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_the_moments_are_those_of_what_it_draws() -> None:
    torch.manual_seed(0)
    net: Any = build("resnet8-vae", (1, 8, 8), 10)
    features = torch.randn(1, 64, 2, 2).expand(20_000, -1, -1, -1)
    drawn = net.latent(features)
    z, mean, log_variance = drawn.split(LATENT, dim=1)
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), (0.5 * log_variance[0]).exp(), atol=0.03, rtol=0)
    net.eval()
    assert torch.equal(net.latent(features)[:, :LATENT], mean)
    assert may_draw(net.latent)
    assert not may_draw(net.stem)


def test_in_pieces_it_learns_the_same_bits(tmp_path: Path) -> None:
    """What the latent values are drawn from does not depend on the cuts."""
    ends = []
    for stages, cuts in ((1, []), (3, [2, 3])):
        run = tmp_path / str(stages)
        changes = {**VAE, "method__name": "backprop", "schedule__epochs": 2, "split__cuts": cuts, "optim__clip": 0.0}
        assert train_here(write_toml(tmp_path / f"{stages}.toml", stages, **changes), run) == 0
        ends.append(weights(run))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("method", ["penalty", "al", "delayed"])
def test_parallel_epochs_learn_to_reconstruct(tmp_path: Path, method: str) -> None:
    changes = {**VAE, "method__name": method, "schedule__epochs": 6, "split__cuts": [2, 3]}
    assert train_here(write_toml(tmp_path / "c.toml", 3, **changes), tmp_path / "run") == 0
    found = records(tmp_path / "run")
    assert all(record["test_accuracy"] is None and record["train_accuracy"] is None for record in found)
    losses = [record["test_loss"] for record in found]
    assert losses[-1] < 0.8 * losses[0]
    assert all(s["label_signal"] is not None for r in found if r["phase"] == "parallel" for s in r["stages"])
    said = (tmp_path / "run" / "summary.txt").read_text(encoding="utf-8")
    assert f"test loss: last {losses[-1]:.4f} (epoch 6), best {min(losses):.4f}" in said


def test_a_mean_image_has_a_loss_of_about_one() -> None:
    """The unit in which reconstructions are reported."""
    data = load("digits", "", download=False, limit_train=0, limit_test=0, pool=False)
    source = Source(data.train, data.mean, data.std, seed=0, flip=False, channels_last=False, device="cpu")
    targets = Generation().targets(source, torch.arange(len(data.train)).numpy())
    outputs = torch.cat([torch.zeros_like(targets), torch.zeros(len(targets), 2 * LATENT)], dim=1)
    assert float(Generation().score(outputs, targets).mean()) == pytest.approx(1.0, abs=0.01)
