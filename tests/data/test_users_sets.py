"""Data sets that users bring, each against what was written into its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hpcsplit.data import stream
from hpcsplit.data.dataset import (
    AS_IT_IS,
    DataOptions,
    Dataset,
    InMemory,
    Opened,
    Part,
    cut_to_size,
    fingerprint,
    open_set,
)
from hpcsplit.data.stream import Streamed
from hpcsplit.errors import ConfigError, DataError

RNG = np.random.default_rng(3)


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _every(part: Part, epoch: int = AS_IT_IS) -> tuple[Tensor, Tensor]:
    ids = np.arange(len(part))
    return part.inputs(ids, epoch), part.targets(ids, epoch)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# ------------------------------------------------------------------------------------------------ folders

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """folder(part, each): 2 classes of so many images of 6 x 8 pixels; image n of class c has only pixels 20 c + n."""

    def make(part: str = "", each: int = 5, root: str = "set") -> Path:
        for label, name in enumerate(("ant", "bee")):
            place = tmp_path / root / part / name
            place.mkdir(parents=True)
            for number in range(each):
                pixels = np.full((6, 8, 3), 20 * label + number, np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
        return tmp_path / root

    return make


def test_a_folder_has_its_images_with_the_numbers_of_their_classes(folder: Folder) -> None:
    folder("train")
    opened = open_set(DataOptions("imagefolder", str(folder("val", 3))))
    spec = opened.spec
    assert (spec.train, spec.test, spec.shape, spec.classes, spec.names) == (10, 6, (3, 6, 8), 2, ("ant", "bee"))
    for part in (opened.train, opened.test):
        assert part
        x, y = _every(part)
        assert torch.equal(x[:, 0, 0, 0] // 20, y)
        assert sorted((x[:, 0, 0, 0] % 20).tolist()) == sorted(2 * list(range(len(part) // 2)))


def test_the_first_samples_of_a_folder_are_of_all_classes(folder: Folder) -> None:
    opened = open_set(DataOptions("imagefolder", str(folder(each=50)), validation=20))
    for part in (opened.train.first(20), cut_to_size(opened, validation=20).test):
        assert 5 <= int(part.targets(np.arange(20)).sum()) <= 15


def test_moments_are_those_of_the_training_images(folder: Folder) -> None:
    folder("train")
    opened = open_set(DataOptions("imagefolder", str(folder("test"))))
    x = _every(opened.train)[0].double() / 255
    data = cut_to_size(opened)
    torch.testing.assert_close(data.mean, x.mean((0, 2, 3)).float())
    torch.testing.assert_close(data.std, x.std((0, 2, 3), correction=0).float())


def test_images_are_looked_into_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = DataOptions("imagefolder", str(folder()), validation=2)
    first = open_set(asked)
    monkeypatch.setattr("hpcsplit.data.folder.pixel_counts", None)
    assert first.known
    again = open_set(asked).known
    assert again
    assert torch.equal(torch.stack(again), torch.stack(first.known))
    (Path(asked.root) / "ant" / "1.png").write_bytes((Path(asked.root) / "bee" / "1.png").read_bytes())
    with pytest.raises(TypeError):
        open_set(asked)


def test_without_test_images_those_held_out_are_the_test_set(folder: Folder) -> None:
    with pytest.raises(DataError, match=r"no test samples: say with data\.validation how many of its 10"):
        open_set(DataOptions("imagefolder", str(folder())))
    opened = open_set(DataOptions("imagefolder", str(folder(root="other")), validation=3))
    data = cut_to_size(opened, validation=3)
    assert data.validation
    assert (len(data.train), len(data.test)) == (7, 3)
    assert torch.equal(_every(data.test)[0], _every(data.validation)[0])


def test_broken_images_are_named_or_left_out(folder: Folder) -> None:
    root = folder()
    (root / "bee" / "2.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bee/2\.png cannot be read as an image: it is of no known format"):
        open_set(DataOptions("imagefolder", str(root), validation=2))
    opened = open_set(DataOptions("imagefolder", str(root), validation=2, skip_broken=True))
    assert opened.notes == (f"note: 1 of 10 files are broken and skipped, such as {root}/bee/2.png",)
    assert sorted(_every(opened.train)[0][:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 20, 21, 23, 24]


def test_a_thread_reads_ahead_the_same_images(folder: Folder) -> None:
    opened = [open_set(DataOptions("imagefolder", str(folder(root=name)), validation=2)) for name in ("a", "b")]
    alone, ahead = (each.train for each in opened)
    order = [np.array(ids) for ids in ([5, 1, 2], [0, 9], [8, 7, 6])]
    for _ in range(2):
        ahead.expect(order)
        for ids in order:
            assert torch.equal(ahead.inputs(ids), alone.inputs(ids))
    assert isinstance(ahead, Streamed)
    assert ahead._thread is not None


def test_a_thread_that_meets_a_broken_image_says_so(folder: Folder) -> None:
    root = folder()
    part = open_set(DataOptions("imagefolder", str(root), validation=2)).train
    for path in root.glob("*/*.png"):
        path.write_bytes(b"nothing")
    part.expect([np.array([0]), np.array([1])])
    with pytest.raises(DataError, match="of no known format"):
        part.inputs(np.array([0]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: Image.new("RGB", (9, 9)).save(root / "ant" / "9.png"), "several sizes.*set data.size"),
        (lambda root: _remove(root / "bee", "*"), "bee has no images"),
        (lambda root: _remove(root, "*/*"), "has no images; their names end in .jpg"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(spoil: Callable[[Path], Any], said: str, folder: Folder) -> None:
    root = folder()
    spoil(root)
    with pytest.raises(DataError, match=said):
        open_set(DataOptions("imagefolder", str(root), validation=2))


def test_a_class_that_only_the_test_images_have_is_refused(folder: Folder, tmp_path: Path) -> None:
    folder("train")
    root = folder("val")
    (root / "val" / "cow").mkdir()
    with pytest.raises(DataError, match=r"val/cow is of a class that the training images do not have: ant, bee"):
        open_set(DataOptions("imagefolder", str(root)))


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (5, 5), number).save(tmp_path / name / f"{number}.png")
    assert open_set(DataOptions("imagefolder", str(tmp_path), validation=1)).spec.shape == (1, 5, 5)
    Image.new("RGB", (5, 5)).save(tmp_path / "ant" / "colour.png")
    assert open_set(DataOptions("imagefolder", str(tmp_path), validation=1)).spec.shape == (3, 5, 5)


# ------------------------------------------------------------------------------------------------ torchvision


def test_a_set_of_torchvision_by_the_name_of_its_class(tmp_path: Path) -> None:
    """EuroSAT, which has one part."""
    for label, name in enumerate(("Forest", "River")):
        place = tmp_path / "eurosat" / "2750" / name
        place.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (64, 64), (40 * label + number, 0, 0)).save(place / f"{name}_{number}.jpg", quality=100)
    opened = open_set(DataOptions("torchvision:EuroSAT", str(tmp_path), validation=2))
    assert (opened.spec.train, opened.spec.test, opened.spec.names) == (8, 0, ("Forest", "River"))
    assert (opened.spec.shape, opened.spec.flip, opened.spec.padding) == ((3, 64, 64), True, 8)
    x, y = _every(opened.train)
    assert torch.equal(x[:, 0, 0, 0].int() // 20, 2 * y.int())
    with pytest.raises(DataError, match=r"Flowers102 in .* cannot be read .*data\.download = true"):
        open_set(DataOptions("torchvision:Flowers102", str(tmp_path)))
    with pytest.raises(DataError, match="torchvision has no data set Nothing"):
        open_set(DataOptions("torchvision:Nothing", str(tmp_path)))


# ------------------------------------------------------------------------------------------------ arrays


def _arrays(kind: str, place: Path, **arrays: np.ndarray) -> Path:
    if kind == "npz":
        np.savez(place / "a.npz", **arrays)  # type: ignore[arg-type]
        return place / "a.npz"
    if kind.startswith("h5"):
        with h5py.File(place / "a.h5", "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip" if kind == "h5-packed" else None)
        return place / "a.h5"
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return place


@pytest.mark.parametrize("kind", ["npz", "npy", "h5", "h5-packed"])
@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int32])
def test_arrays_come_back_from_every_kind_of_file(kind: str, dtype: Any, tmp_path: Path) -> None:
    x, z = ((100 * RNG.random((size, 3, 4, 5))).astype(dtype) for size in (12, 6))
    y, w = RNG.integers(0, 4, 12), RNG.integers(0, 4, 6)
    path = _arrays(kind, tmp_path, x_train=x, y_train=y, x_test=z, y_test=w)
    opened = open_set(DataOptions("arrays", str(path)))
    assert opened.test
    for part, (inputs, targets) in ((opened.train, (x, y)), (opened.test, (z, w))):
        got, labels = _every(part)
        assert got.dtype == {np.float64: torch.float32, np.uint8: torch.uint8, np.int32: torch.int64}[dtype]
        np.testing.assert_array_equal(got.numpy(), inputs.astype(got.numpy().dtype))
        np.testing.assert_array_equal(labels.numpy(), targets)
    assert (opened.spec.classes, opened.spec.in_memory) == (
        max(y.max(), w.max()) + 1,  # tokens have no part in how many classes there are
        kind in ("npz", "h5-packed"),
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((3, 2))}, "has x; it needs x_train, y_train, x_test, y_test, or x and y"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, "has 3 x and 2 y"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, -1, 1])}, "outside 0 .. 1, the first is -1"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "b", "c"])}, "y of .* are <U1, not numbers"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        open_set(DataOptions("arrays", str(_arrays("npz", tmp_path, **arrays)), validation=1))


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], object), y=np.zeros(1))
    with pytest.raises(DataError, match="cannot be read as arrays: Object arrays cannot be loaded"):
        open_set(DataOptions("arrays", str(tmp_path / "a.npz"), validation=1))


def test_numbers_are_normalised_on_request(tmp_path: Path) -> None:
    x, y = RNG.normal(3, 5, (40, 2)).astype(np.float32), np.arange(40) % 2
    path = str(_arrays("npz", tmp_path, x=x, y=y))
    data = {
        word: cut_to_size(open_set(DataOptions("arrays", path, normalise=word, validation=4)), validation=4)
        for word in ("all", "none")
    }
    assert not data["none"].normalise
    left = _every(data["all"].train)[0].double()
    torch.testing.assert_close(data["all"].mean, left.mean(0).float())
    torch.testing.assert_close(data["all"].std, left.std(0, correction=0).float())


# ------------------------------------------------------------------------------------------------ texts


def test_a_text_is_cut_into_samples_with_the_bytes_that_follow(tmp_path: Path) -> None:
    text = bytes(RNG.integers(0, 256, 1000, dtype=np.uint8))
    (tmp_path / "a.txt").write_bytes(text)
    opened = open_set(DataOptions("text", str(tmp_path / "a.txt"), context=8))
    assert (opened.spec.train, opened.spec.test, opened.spec.classes) == (112, 12, 256)
    assert opened.test
    x, y = _every(opened.train)
    assert x.flatten().tolist() == list(text[: 112 * 8])
    assert y.flatten().tolist() == list(text[1 : 112 * 8 + 1])
    assert _every(opened.test)[1].flatten().tolist() == list(text[901 : 901 + 12 * 8])


def test_samples_of_a_text_are_shifted_in_each_epoch_and_stay_in_their_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(np.arange(30_000, dtype="<u2").astype(np.uint8).tobytes())
    part = open_set(DataOptions("text", str(tmp_path / "a.txt"), context=50)).train.between(100, 200)
    plain, first, second = (_every(part, epoch)[0] for epoch in (AS_IT_IS, 1, 2))
    assert torch.equal(first, _every(part, 1)[0])
    assert not torch.equal(first, second)
    shifts = (first[:, 0] - plain[:, 0]) % 256
    assert int(shifts.max()) <= 50
    assert len(set(shifts.tolist())) > 20
    assert torch.equal(_every(part, 1)[1][:, :-1], first[:, 1:])


@pytest.mark.parametrize("size", [0, 5])
def test_too_little_text_is_refused(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * size)
    with pytest.raises(DataError, match=r"a sample of data\.context = 8 needs 9"):
        open_set(DataOptions("text", str(tmp_path / "a.txt"), context=8))


# ------------------------------------------------------------------------------------------------ their own code


def _open(name: str, **options: Any) -> Opened:
    return open_set(DataOptions(f"tests.data.factories:{name}", **options))


def test_a_sample_is_drawn_from_seed_epoch_and_id_alone() -> None:
    part = _open("noisy", seed=5).train
    ids = np.array([7, 3, 11])
    at_once, alone = part.inputs(ids, 2), [part.inputs(ids[k : k + 1], 2)[0] for k in (2, 0, 1)]
    assert torch.equal(at_once[[2, 0, 1]], torch.stack(alone))
    assert at_once[:, 0].tolist() == [7.0, 3.0, 11.0]
    others = [part.inputs(ids, 3), part.inputs(ids), _open("noisy", seed=6).train.inputs(ids, 2)]
    for other in others:
        assert (other[:, 1:] != at_once[:, 1:]).all()
    assert part.inputs(ids + 20)[:, 0].tolist() == [7.0, 3.0, 11.0]  # copies
    assert (part.inputs(ids + 20)[:, 1:] != part.inputs(ids)[:, 1:]).all()


def test_reading_draws_nothing_from_the_computation() -> None:
    part = _open("noisy").train
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    part.inputs(np.arange(4), 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_processes_that_read_ahead_read_the_same() -> None:
    alone, ahead = (_open("noisy", workers=workers).train for workers in (0, 2))
    for epoch in (0, 1):
        order = [np.array(ids) for ids in ([5, 1, 2], [0, 19], [8, 7, 6])]
        ahead.expect(order, epoch)
        for ids in order[: 3 - epoch]:
            assert torch.equal(ahead.inputs(ids, epoch), alone.inputs(ids, epoch))
            assert ahead.targets(ids, epoch).tolist() == (ids % 2).tolist()
    assert isinstance(ahead, Streamed)
    assert ahead._loader is not None
    lost = _open("broken", workers=1, classes=2).train
    lost.expect([np.array([12]), np.array([13])], 0)
    lost.inputs(np.array([12]), 0)
    with pytest.raises(DataError, match=r"sample 13 cannot be read \(KeyError: 'lost', factories\.py line"):
        lost.inputs(np.array([13]), 0)


def test_what_a_factory_says_of_its_classes_is_taken() -> None:
    spec = _open("noisy").spec
    assert (spec.classes, spec.names, spec.shape, spec.kind, spec.in_memory) == (
        2,
        ("even", "odd"),
        (4,),
        "numbers",
        False,
    )


def test_a_factory_may_return_arrays_and_take_all_keywords() -> None:
    opened = _open("of_arrays")
    assert isinstance(opened.train, InMemory)
    assert torch.equal(opened.train.images, torch.eye(4))
    assert opened.spec.classes == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", r"sample 13 cannot be read \(KeyError: 'lost', factories\.py line \d+\)"),
        ("ragged", r"sample 4 is x torch\.float32 \(3,\), y .*, and sample 0 is x torch\.float32 \(2,\)"),
        ("one_part", r"the factory returned Noisy; it must return two parts, \(train, test\)"),
        ("absent", r"has no function absent; define it there"),
    ],
)
def test_a_factory_with_a_bug_is_told_in_a_sentence(name: str, said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        _every(_open(name).train)


def test_the_fingerprint_follows_the_samples(folder: Folder) -> None:
    def mark(opened: Opened) -> str:
        data: Dataset[Part] = cut_to_size(opened, validation=2)
        return fingerprint(data)

    root = folder()
    marks = {mark(_open("noisy")), mark(_open("noisy", seed=1)), mark(_open("of_arrays"))}
    marks |= {mark(open_set(DataOptions("imagefolder", str(root), validation=2)))}
    assert len(marks) == 3  # the seed is another part of a run's identity
    os.remove(root / "ant" / "1.png")
    assert mark(open_set(DataOptions("imagefolder", str(root), validation=2))) not in marks


def test_images_that_have_been_decoded_stay_in_memory(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    part = open_set(DataOptions("imagefolder", str(folder()), validation=2)).train
    before = _every(part)[0]
    monkeypatch.setattr("hpcsplit.data.folder.read_image", None)
    assert torch.equal(_every(part)[0], before)
    monkeypatch.undo()
    monkeypatch.setattr(stream, "memory_available_bytes", lambda: 1000)
    few = part.between(0, 5)
    _every(few)
    monkeypatch.setattr("hpcsplit.data.folder.read_image", None)
    with pytest.raises(TypeError):
        few.inputs(np.arange(4))
