"""A network of any forward as blocks: the same numbers and gradients, cut where little passes; or a sentence."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.errors import ConfigError
from hpcsplit.nets.chain import chain
from hpcsplit.nets.shapes import trace
from tests.methods import tiny

IMAGE, CLASSES = (3, 16, 16), 5


class Double(nn.Module):
    """Two convolutions with BatchNorm."""

    def __init__(self, before: int, filters: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(before, filters, 3, padding=1), nn.Conv2d(filters, filters, 3, padding=1)
        self.norm_one, self.norm_two = nn.BatchNorm2d(filters), nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm_one(self.one(x)), inplace=True)
        return F.relu(self.norm_two(self.two(x)), inplace=True)


class UNet(nn.Module):
    """Long skips: below the second level three tensors are needed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3, self.bottom = Double(3, 4), Double(4, 8), Double(8, 16), Double(16, 32)
        self.up3, self.up2, self.up1 = Double(48, 16), Double(24, 8), Double(12, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.down3(F.max_pool2d(two, 2))
        x = self.bottom(F.max_pool2d(three, 2))
        x = self.up3(torch.cat([F.interpolate(x, scale_factor=2), three], 1))
        x = self.up2(torch.cat([F.interpolate(x, size=two.shape[2:]), two], dim=1))
        x = self.up1(torch.cat((F.interpolate(x, size=one.shape[-2:]), one), 1))
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([Double(3, 4), Double(4, 8), Double(8, 16)])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for number, level in enumerate(self.levels):
            x = level(x if number == 0 else F.avg_pool2d(x, 2))
            found.append(x)
        return found


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([Double(24, 8), Double(12, CLASSES)])

    def forward(self, found: list[Tensor]) -> Any:
        x = found[-1]
        for step, skip in zip(self.steps, found[-2::-1], strict=True):
            x = step(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        return x


class TwoHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.encoder(x)).flatten(2).mean(-1)


class Residual(nn.Module):
    """Short skips, written out, with functions alone; the number of samples is looked at from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.right = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        samples = x.size(0)
        x = F.relu(self.stem(x))
        for left, right in zip(self.left, self.right, strict=True):
            x = x + F.dropout(right(F.relu(left(x))), 0.3, self.training)
        x = F.avg_pool2d(x * self.scale, 2)
        assert x.shape[1] == 8
        return self.head(x.view(samples, -1))


class Functional(nn.Module):
    """Weights without layers, sizes that are worked out, a module made on the way, an argument with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3) * 0.2)
        self.shift, self.secret = (
            nn.Buffer(torch.linspace(-1, 1, 6).view(1, 6, 1, 1)),
            nn.Buffer(torch.ones(6), persistent=False),
        )
        self.code = nn.Linear(6, 9)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        b, c, h, w = x.shape
        x = F.conv2d(x, self.kernel, padding=1) + self.shift
        x = nn.GELU()(x) if mask is None else x * mask
        if h > 4 and c == 3:
            x = x.reshape(b, 6, h * w).transpose(1, 2)
        x = torch.tanh(self.code(x)) * self.secret.sum()
        x = x + torch.arange(h * w, device=x.device).view(1, -1, 1) / 100
        return self.head(x.mean(1))


class TimeFirst(nn.Module):
    """The samples are in the second dimension on the way, and an LSTM gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.lstm, self.mix = nn.Linear(48, 12), nn.LSTM(12, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x.flatten(1).unflatten(1, (-1, 48))).transpose(0, 1)
        y, (last, _) = self.lstm(x)
        y = self.mix(y) + last
        return self.head(y[-1])


class Wrapped(nn.Module):
    """One layer of layers does nearly everything."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Residual()

    def forward(self, x: Tensor) -> Any:
        return self.body(x) * 2


class Recurrent(nn.Module):
    """A cell that is used at every step, which no cut may divide, and a state of so many samples."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.cell, self.head = nn.Linear(48, 8), nn.GRUCell(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x.flatten(1).unflatten(1, (-1, 48)))
        state = torch.zeros(x.size(0), 8, dtype=x.dtype, device=x.device)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state)


class Encoded(nn.Module):
    """torch's own stack of layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
        self.enter, self.layers = nn.Linear(48, 16), nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layers(self.enter(x.flatten(1).unflatten(1, (-1, 48))))[:, 0])


NETWORKS: list[type[nn.Module]] = [UNet, TwoHalves, Residual, Functional, TimeFirst, Wrapped, Recurrent, Encoded]


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(1)
    made: nn.Module = request.param().double()
    return made


def outcome(act: nn.Module, owner: nn.Module, x: Tensor) -> list[Tensor]:
    """What a network answers and the gradients of `owner`'s parameters and of the samples."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    owner.zero_grad()
    y = act(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in owner.parameters() if p.grad is not None)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("samples", [1, 4])
def test_the_same_numbers_and_gradients(net: nn.Module, training: bool, samples: int) -> None:
    x = torch.randn(samples, *IMAGE, dtype=torch.float64)
    blocks = chain(net, IMAGE)
    net.train(training), blocks.train(training)
    for a, b in zip(outcome(net, net, x), outcome(blocks, net, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_parameters_and_buffers_are_those_of_the_network(net: nn.Module) -> None:
    blocks = chain(net, IMAGE)
    assert {id(p) for p in blocks.parameters()} == {id(p) for p in net.parameters()}
    assert {id(b) for b in blocks.buffers()} >= {id(b) for b in net.buffers()}
    kept = {t.data_ptr() for t in net.state_dict().values()}
    assert {t.data_ptr() for t in blocks.state_dict().values()} == kept  # and the buffers that are not kept are not


def test_following_changes_nothing(net: nn.Module) -> None:
    before, state, mode = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state(), net.training
    zeros = torch.zeros
    chain(net, IMAGE)
    assert torch.equal(state, torch.get_rng_state())
    assert net.training is mode
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.zeros is zeros
    with torch.device("meta"):
        assert torch.zeros(1).is_meta


@pytest.mark.parametrize(
    ("make", "names", "shapes"),
    [
        (
            UNet,
            ["down1", "down2", "down3", "bottom", "up3", "up2", "up1", "head"],
            [(4, 16, 16), (1536,), (1792,), (1920,), (1792,), (12, 16, 16), (4,), (CLASSES,)],
        ),
        (Residual, ["stem", "left_0", "left_1", "left_2", "head"], [(8, 16, 16)] * 3 + [(512,), (CLASSES,)]),
        (Wrapped, ["body_stem", "body_left_0", "body_left_1", "body_left_2", "body_head"], None),
        (Functional, ["conv2d", "code", "head"], [(256, 6), (9,), (CLASSES,)]),
        (TimeFirst, ["enter", "lstm", "mix", "head"], None),
        (Recurrent, ["enter", "cell", "head"], [(16, 8), (8,), (CLASSES,)]),
        (Encoded, ["enter", "layers_layers_0", "layers_layers_1", "layers_layers_2", "head"], None),
        (
            TwoHalves,
            [
                "encoder_levels_0",
                "encoder_levels_1",
                "encoder_levels_2",
                *(f"decoder_steps_{n}" for n in ("0_one", "0_two", "1_one", "1_two")),
            ],
            None,
        ),
    ],
)
def test_where_it_is_cut(make: Callable[[], nn.Module], names: list[str], shapes: list[tuple[int, ...]] | None) -> None:
    blocks = chain(make(), IMAGE)
    assert list(blocks._modules) == names
    assert shapes is None or [each.out_shape for each in trace(blocks, IMAGE)] == shapes


class Tokens(nn.Module):
    """As people write a transformer: the number of tokens is checked, positions and mask are made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.drop = nn.Embedding(11, 8), nn.Embedding(6, 8), nn.Dropout(0.2)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        _, t = ids.size()
        assert t <= 6, f"{t} tokens"
        x = self.drop(self.words(ids) + self.places(torch.arange(0, t, dtype=torch.long, device=ids.device)))
        mask = torch.triu(torch.full((t, t), float("-inf"), device=ids.device), diagonal=1)
        for layer in self.layers:
            x = layer(x, mask)
        if targets is not None:
            raise NotImplementedError
        return self.head(self.norm(x))


@pytest.mark.parametrize("training", [True, False])
def test_tokens(training: bool) -> None:
    net = Tokens()
    blocks = chain(net, (6,), torch.int64).train(training)
    net.train(training)
    assert list(blocks._modules) == ["words", "layers_0", "layers_1", "layers_2", "head"]
    assert [each.out_shape for each in trace(blocks, (6,), torch.int64)] == [(6, 8)] * 4 + [(6, 11)]
    assert blocks.state_dict().keys() >= {"words.words.weight", "words.places.weight", "head.weight"}
    ids = torch.randint(11, (3, 6))
    answers = []
    for act in (net, blocks):
        torch.manual_seed(3)
        answers.append(act(ids))
    assert torch.equal(*answers)


@pytest.mark.parametrize("cuts", [(), (2,), (1, 3)])
@pytest.mark.parametrize("make", [UNet, TwoHalves, Functional, TimeFirst, Recurrent])
def test_stages_train_as_autograd_on_the_whole(make: Callable[[], nn.Module], cuts: tuple[int, ...]) -> None:
    """Three steps of SGD with momentum, by Backprop on 1, 2 and 3 stages and by plain torch."""
    torch.manual_seed(5)
    whole = make().double()
    net = chain(copy.deepcopy(whole), IMAGE)
    images, labels = tiny.batch_of(IMAGE)
    cuts = cuts if len(net) > 3 else cuts[:1]
    stages = tiny.trained_beside(whole, net, cuts, images, labels)
    trained = sorted(float(p.detach().sum()) for stage in stages for p in stage.parameters)
    assert trained == pytest.approx(sorted(float(p.detach().sum()) for p in whole.parameters()), rel=1e-9, abs=1e-12)
    assert trained != pytest.approx(sorted(float(p.detach().sum()) for p in chain(make(), IMAGE).parameters()))


# ------------------------------------------------------------------------------------------------ refused


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        if x.mean() > 0:
            x = -x
        return self.two(x)


class EachSample(Looks):
    def forward(self, x: Tensor) -> Any:
        return torch.stack([self.two(self.one(row)) for row in x])


class OneSample(Looks):
    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        return self.two(x.squeeze(0) if x.shape[0] == 1 else x)


class OtherInTraining(Looks):
    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        if self.training:
            x = x + torch.randn_like(x)
        return self.two(x)


class KeepsMask(Looks):
    def forward(self, x: Tensor) -> Any:
        mask = x > 0
        return self.two(self.one(x)) * mask


class WrongSize(Looks):
    def forward(self, x: Tensor) -> Any:
        return self.two(self.one(x)[:, 1:])


class Writes(Looks):
    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        x[:, 0] = 0
        return self.two(x)


class NoGradient(Looks):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.one(x)
        return self.two(x)


class Autocast(Looks):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.one(x)
        return self.two(x.float())


class Tied(Looks):
    def forward(self, x: Tensor) -> Any:
        return self.one(self.two(self.one(x)))


class Dropped(Looks):
    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        return self.two(x if random.random() < 0.5 else -x)


class DroppedByTorch(Looks):
    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        return self.two(x * torch.rand(1))


class NoSamples(Looks):
    def forward(self) -> Any:  # type: ignore[override]
        return self.two.weight


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            Looks,
            r"forward of Looks cannot be followed \(TraceError: symbolically .*, test_chain.py line \d+\)$",
        ),
        (
            EachSample,
            r"EachSample cannot be followed \(TraceError: the number of samples decides .*, test_chain.py line \d+",
        ),
        (OneSample, r"OneSample cannot be followed \(TraceError: .*, test_chain.py line \d+"),
        (OtherInTraining, r"something else in training than in evaluation \(test_chain.py line \d+\)$"),
        (
            KeepsMask,
            r"can nowhere be cut: behind one later layers need gt \(torch.bool of shape \(2, 8\), test_chain.py line",
        ),
        (WrongSize, r"WrongSize does not take samples of shape \(8,\) \(RuntimeError: .*, test_chain.py line \d+\)$"),
        (Writes, r"Writes cannot be followed \(TypeError: .*item assignment, test_chain.py line \d+"),
        (NoGradient, r"NoGradient cannot be followed \(TraceError: no_grad and autocast .*, test_chain.py line \d+"),
        (Autocast, r"Autocast cannot be followed \(TraceError: no_grad and autocast .*, test_chain.py line \d+"),
        (Dropped, r"Dropped cannot be followed \(TraceError: random numbers are drawn once"),
        (DroppedByTorch, r"DroppedByTorch cannot be followed \(TraceError: random numbers are drawn once"),
        (Tied, "Tied can nowhere be cut: behind one later layers share parameters with those before"),
        (NoSamples, r"NoSamples cannot be followed \(TypeError: "),
    ],
)
def test_what_leaves_the_chain_is_named(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chain(make(), (8,))


class Inner(nn.Module):
    """Has two layers of layers, of which one looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(Looks(), Looks(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Any:
        return self.stack(x)


class Filled(nn.Module):
    """A tensor of so many samples that is changed before it is needed, on both sides of a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        gate = torch.empty(x.shape[0], 8)
        gate.view(-1).fill_(0.5)
        noise = torch.rand(x.shape[0], 8)
        x = self.one(x) * gate + noise
        return self.three(self.two(x) * gate + noise)


def test_what_is_changed_or_drawn_is_not_made_anew() -> None:
    net = Filled()
    blocks = chain(net, (8,))
    assert [each.out_shape for each in trace(blocks, (8,))] == [(24,), (8,), (8,)]
    x = torch.randn(3, 8)
    torch.manual_seed(2)
    expected = net(x)
    torch.manual_seed(2)
    assert torch.equal(blocks(x), expected)


def test_a_layer_that_cannot_be_followed_stays_whole() -> None:
    net = Inner()
    blocks = chain(net, (8,))
    assert [type(block) for block in blocks] == [Looks, Looks, nn.Linear]
    x = torch.randn(3, 8)
    assert torch.equal(blocks(x), net(x))
