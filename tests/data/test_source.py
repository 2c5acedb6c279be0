from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcsplit.data.dataset import InMemory, Part
from hpcsplit.data.source import Source, crop_flip

IDS = np.array([4, 0, 19, 7, 7])


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return name


def _part(channels: int) -> InMemory:
    pixels = np.random.default_rng(1).integers(0, 256, (20, channels, 8, 8), dtype=np.uint8)
    return Part.of(pixels, np.arange(20) % 10)


def _source(channels: int, device: str, channels_last: bool = False, flip: bool = True) -> Source:
    mean, std = torch.linspace(0.3, 0.6, channels), torch.linspace(0.2, 0.4, channels)
    return Source(_part(channels), mean, std, seed=6, flip=flip, channels_last=channels_last, device=device)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    channels = images.shape[1]
    mean, std = torch.linspace(0.3, 0.6, channels), torch.linspace(0.2, 0.4, channels)
    return (images.float() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_picked_and_normalised(channels: int, channels_last: bool, device: str) -> None:
    got = _source(channels, device, channels_last).images(IDS)
    assert (got.dtype, got.device.type) == (torch.float32, device)
    torch.testing.assert_close(got.cpu(), _normalised(_part(channels).images[IDS]), rtol=1e-5, atol=1e-5)


def test_augmented_images_are_cropped_before_they_are_normalised(device: str) -> None:
    for flip in (False, True):
        got = _source(3, device, flip=flip).images(IDS, epoch=2, augment=True)
        cropped = crop_flip(_part(3).images[IDS], IDS, seed=6, epoch=2, flip=flip)
        torch.testing.assert_close(got.cpu(), _normalised(cropped), rtol=1e-5, atol=1e-5)


def test_epoch_changes_augmented_images_only(device: str) -> None:
    source = _source(3, device)
    assert torch.equal(source.images(IDS, epoch=0), source.images(IDS, epoch=1))
    assert not torch.equal(source.images(IDS, epoch=0, augment=True), source.images(IDS, epoch=1, augment=True))
    assert torch.equal(source.images(IDS, epoch=1, augment=True), source.images(IDS, epoch=1, augment=True))


@pytest.mark.parametrize("augment", [False, True])
def test_memory_format(augment: bool, device: str) -> None:
    plain = _source(3, device).images(IDS, augment=augment)
    last = _source(3, device, channels_last=True).images(IDS, augment=augment)
    grey = _source(1, device, channels_last=True).images(IDS, augment=augment)
    assert plain.stride() == (3 * 64, 64, 8, 1)
    assert last.stride() == (3 * 64, 1, 8 * 3, 3)
    assert grey.stride() == (64, 64, 8, 1)
    assert torch.equal(plain, last)


def test_the_stored_images_stay_as_they_are() -> None:
    part = _part(3)
    before = part.images.clone()
    source = Source(part, torch.zeros(3), torch.ones(3), seed=0, flip=True, channels_last=False, device="cpu")
    source.images(np.arange(20)).zero_()
    source.images(np.arange(20), augment=True).zero_()
    assert torch.equal(part.images, before)


def test_labels_and_length(device: str) -> None:
    source = _source(1, device)
    for ids in (IDS, torch.from_numpy(IDS)):
        labels = source.labels(ids)
        assert (labels.dtype, labels.tolist()) == (torch.int64, [4, 0, 9, 7, 7])
    assert len(source) == 20


def test_a_copy_has_its_own_crop_and_flip_for_ever(device: str) -> None:
    part, ids = _part(3), np.array([3, 23, 43, 4, 59])
    mean, std = torch.linspace(0.3, 0.6, 3), torch.linspace(0.2, 0.4, 3)
    source = Source(part, mean, std, seed=6, flip=True, copies=3, channels_last=False, device=device)
    got = source.images(ids).cpu()
    assert torch.equal(source.images(ids, epoch=7).cpu(), got)
    assert torch.equal(source.images(ids[::-1].copy()).cpu().flip(0), got)
    plain = _normalised(part.images[ids % 20])
    for number in (0, 3):
        torch.testing.assert_close(got[number], plain[number], rtol=1e-5, atol=1e-5)
    for number in (1, 2, 4):
        assert not torch.allclose(got[number], plain[number])
    assert not torch.allclose(got[1], got[2])
    assert source.labels(ids).tolist() == [3, 3, 3, 4, 9]
    anew = source.images(ids, epoch=7, augment=True).cpu()
    cropped = crop_flip(part.images[ids % 20], ids, seed=6, epoch=7, flip=True)
    torch.testing.assert_close(anew, _normalised(cropped), rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="sample 60 of 20"):
        source.images(np.array([60]))
