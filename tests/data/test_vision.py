from __future__ import annotations

import gzip
import pickle
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcsplit.data import vision
from hpcsplit.data.catalog import SPECS, Spec
from hpcsplit.data.dataset import load
from hpcsplit.errors import ConfigError, DataError

TRAIN, TEST = 6, 4
LAYOUTS = {name: spec.layout for name, spec in SPECS.items() if spec.layout}
GREY = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts in a folder without data, no variable set and no package installed."""
    monkeypatch.delenv("HPCSPLIT_DATA", raising=False)
    monkeypatch.setattr(vision, "PACKAGED", {})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _shrink(monkeypatch: pytest.MonkeyPatch, name: str) -> Spec:
    """The same data set with a handful of samples, and torchvision without checksums."""
    from torchvision import datasets

    published = SPECS[name]
    spec = replace(published, train=TRAIN, test=TEST)
    monkeypatch.setitem(SPECS, name, spec)
    kind = getattr(datasets, LAYOUTS[name].kind)
    if name == "svhn":
        splits = {split: (url, file, None) for split, (url, file, _) in kind.split_list.items()}
        monkeypatch.setattr(kind, "split_list", splits)
    elif name.startswith("cifar"):
        for files in ("train_list", "test_list"):
            monkeypatch.setattr(kind, files, [(file, None) for file, _ in getattr(kind, files)])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    return spec


def _samples(spec: Spec, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(size)
    return rng.integers(0, 256, (size, *spec.shape), dtype=np.uint8), np.arange(size) * 7 % spec.classes


def _idx(array: np.ndarray) -> bytes:
    return np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes() + array.astype(np.uint8).tobytes()


def _write_idx(folder: Path, spec: Spec, compress: bool = False) -> None:
    folder.mkdir(parents=True)
    for prefix, size in (("train", TRAIN), ("t10k", TEST)):
        images, labels = _samples(spec, size)
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            content = gzip.compress(_idx(array)) if compress else _idx(array)
            (folder / f"{prefix}-{kind}-ubyte{'.gz' if compress else ''}").write_bytes(content)


def _write_cifar(root: Path, spec: Spec) -> None:
    from torchvision import datasets

    kind = getattr(datasets, LAYOUTS[spec.name].kind)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if spec.name == "cifar10" else "fine_labels"
    for files, size in ((kind.train_list, TRAIN), (kind.test_list, TEST)):
        images, labels = _samples(spec, size)
        pieces = np.array_split(np.arange(size), len(files))
        for (file, _), rows in zip(files, pieces, strict=True):
            entry = {"data": images[rows].reshape(len(rows), -1), key: labels[rows].tolist()}
            (folder / file).write_bytes(pickle.dumps(entry))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: []}))


def _write_svhn(root: Path, spec: Spec) -> None:
    from scipy.io import savemat

    for split, size in (("train", TRAIN), ("test", TEST)):
        images, labels = _samples(spec, size)
        labels = np.where(labels == 0, 10, labels)[:, None]  # the files call the digit 0 "10"
        savemat(root / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})


def _write(root: Path, spec: Spec) -> None:
    if spec.name in GREY:
        _write_idx(root / GREY[spec.name] / "raw", spec)
    elif spec.name == "svhn":
        _write_svhn(root, spec)
    else:
        _write_cifar(root, spec)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_reads_torchvisions_layout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = _shrink(monkeypatch, name)
    _write(tmp_path, spec)
    data = load(name, str(tmp_path))
    for part, size in ((data.train, TRAIN), (data.test, TEST)):
        images, labels = _samples(spec, size)
        assert np.array_equal(part.images.numpy(), images)
        assert np.array_equal(part.labels.numpy(), labels)
    assert capsys.readouterr().out == ""


def test_root_is_the_argument_or_the_variable_or_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _shrink(monkeypatch, "mnist")
    assert vision.folder_of("") == Path("data")
    _write(tmp_path / "data", spec)
    assert len(load("mnist").train) == TRAIN
    monkeypatch.setenv("HPCSPLIT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="elsewhere"):
        load("mnist")
    assert len(load("mnist", str(tmp_path / "data")).train) == TRAIN
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert len(load("mnist", "$PLACE/data").train) == TRAIN
    assert vision.folder_of("~/x") == Path.home() / "x"


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_absent_says_where_it_looked_and_both_ways_out(name: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        load(name, str(tmp_path / "nowhere"))
    assert time.perf_counter() - started < 2
    message = str(caught.value)
    for part in (name, str(tmp_path / "nowhere"), "data.root", "data.download = true"):
        assert part in message
    assert "\n" not in message
    assert not (tmp_path / "nowhere").exists()


def test_absent_is_found_out_without_torchvision() -> None:
    code = (
        "import sys\nfrom hpcsplit.data.dataset import load\nfrom hpcsplit.errors import DataError\n"
        "load('fake')\n"
        "try:\n    load('mnist', '/nonexistent')\nexcept DataError:\n"
        "    print({'torchvision', 'scipy'} & set(sys.modules))"
    )
    project = Path(vision.__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_download_without_a_network(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torchvision  # noqa: F401  (its import is not what is timed)

    started = time.perf_counter()
    with pytest.raises(DataError, match=f"{name} could not be downloaded to .*Name or service not known") as caught:
        load(name, str(tmp_path), download=True)
    assert time.perf_counter() - started < 2
    assert "data.root" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("offline")
def test_download_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, _shrink(monkeypatch, "kmnist"))
    assert len(load("kmnist", str(tmp_path), download=True).test) == TEST


def test_stdout_stays_clean_and_the_network_gets_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision import datasets

    def chatty(self: object) -> None:
        print("Downloading: 50%")
        raise TimeoutError(f"no answer in {socket.getdefaulttimeout()} s")

    monkeypatch.setattr(datasets.MNIST, "download", chatty)
    with pytest.raises(DataError, match=r"no answer in 10\.0 s"):
        load("mnist", str(tmp_path), download=True)
    assert capsys.readouterr() == ("", "Downloading: 50%\n")


@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_damaged_files(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, _shrink(monkeypatch, "mnist"))
    images = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    if damage == "gone":
        images.unlink()
    else:
        images.write_bytes(images.read_bytes()[:1000] if damage == "cut" else b"")
    with pytest.raises(DataError, match=r"mnist in .* is incomplete or damaged"):
        load("mnist", str(tmp_path))


def test_files_of_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, _shrink(monkeypatch, "mnist"))
    monkeypatch.setitem(SPECS, "mnist", replace(SPECS["mnist"], train=TRAIN + 1))
    with pytest.raises(DataError, match=r"shape \(6, 1, 28, 28\), expected \(7, 1, 28, 28\)"):
        load("mnist", str(tmp_path))


def test_package_is_used_when_no_root_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _shrink(monkeypatch, "fashion_mnist")
    package = tmp_path / "package"
    _write_idx(package, spec, compress=True)
    monkeypatch.setattr(vision, "PACKAGED", {"fashion_mnist": package})
    data = load("fashion_mnist")
    for part, size in ((data.train, TRAIN), (data.test, TEST)):
        images, labels = _samples(spec, size)
        assert np.array_equal(part.images.numpy(), images)
        assert np.array_equal(part.labels.numpy(), labels)
    with pytest.raises(DataError, match="fashion_mnist is not there"):
        load("fashion_mnist", str(tmp_path / "given"))
    image_file = package / "train-images-idx3-ubyte.gz"
    for content in (image_file.read_bytes()[:200], b"no gzip", gzip.compress(_idx(np.zeros((2, 3))))):
        image_file.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            load("fashion_mnist")
    monkeypatch.setattr(vision, "PACKAGED", {"fashion_mnist": tmp_path / "not-installed"})
    with pytest.raises(DataError, match=r"nor in .*not-installed"):
        load("fashion_mnist")


def test_files_in_the_folder_come_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "data", _shrink(monkeypatch, "fashion_mnist"))
    broken = tmp_path / "package"
    broken.mkdir()
    monkeypatch.setattr(vision, "PACKAGED", {"fashion_mnist": broken})
    assert len(load("fashion_mnist").train) == TRAIN


def test_real_mnist(mnist_root: Path) -> None:
    data = load("mnist", str(mnist_root), limit_test=500, pool=True)
    assert (len(data.train), len(data.test), data.train.images.shape[1:]) == (60000, 500, (1, 14, 14))
    assert data.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    full = load("mnist", str(mnist_root))
    assert full.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    torch.testing.assert_close(full.mean, torch.tensor([0.1307]), rtol=0, atol=5e-5)
    torch.testing.assert_close(full.std, torch.tensor([0.3081]), rtol=0, atol=5e-5)


def test_real_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path("/usr/share/datasets/fashion-mnist")
    if not package.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(vision, "PACKAGED", {"fashion_mnist": package})
    data = load("fashion_mnist")
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    torch.testing.assert_close(data.mean, torch.tensor([0.2860]), rtol=0, atol=5e-5)
    torch.testing.assert_close(data.std, torch.tensor([0.3530]), rtol=0, atol=5e-5)


# ------------------------------------------------------------------------------------------------ as downloaded


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", ""])
@pytest.mark.parametrize("form", ["gz", "plain", "dotted gz"])
def test_idx_files_as_they_are_downloaded(
    place: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, root = _shrink(monkeypatch, "mnist"), tmp_path / "here"
    _write_idx(root / place, spec, compress="gz" in form)
    if "dotted" in form:
        for path in (root / place).iterdir():
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    data = load("mnist", str(root))
    images, labels = _samples(spec, TEST)
    assert np.array_equal(data.test.images.numpy(), images)
    assert np.array_equal(data.test.labels.numpy(), labels)


def test_a_folder_named_after_another_set_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_idx(tmp_path / "MNIST" / "raw", _shrink(monkeypatch, "mnist"))
    for root in (tmp_path / "MNIST" / "raw", tmp_path / "MNIST", tmp_path):
        assert len(load("mnist", str(root)).train) == TRAIN
        with pytest.raises(DataError, match="fashion_mnist is not there"):
            load("fashion_mnist", str(root))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("place", [".", "cifar-10-batches-py", "cifar-100-python", ".."])
def test_an_archive_of_cifar_is_read_where_it_is(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, root = _shrink(monkeypatch, name), tmp_path / "root"
    layout = LAYOUTS[name]
    if place.startswith("cifar"):
        place = layout.folder
    root.mkdir()
    (root / place).mkdir(exist_ok=True)
    _write_cifar(tmp_path / "made", spec)
    with tarfile.open(root / place / layout.archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / layout.folder, layout.folder)
    data = load(name, str(root))
    for part, size in ((data.train, TRAIN), (data.test, TEST)):
        images, labels = _samples(spec, size)
        assert np.array_equal(part.images.numpy(), images)
        assert np.array_equal(part.labels.numpy(), labels)
    assert not list(root.rglob("data_batch_*"))


@pytest.mark.parametrize("damage", ["cut", "longer", "no gzip", "more labels", "negative"])
def test_damage_in_packed_files_is_one_sentence(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _shrink(monkeypatch, "mnist")
    _write_idx(tmp_path / "MNIST" / "raw", spec, compress=True)
    path = tmp_path / "MNIST" / "raw" / f"t10k-{'labels-idx1' if damage == 'more labels' else 'images-idx3'}-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(
        {
            "cut": path.read_bytes()[:-20],
            "longer": gzip.compress(content + b"x"),
            "no gzip": content,
            "more labels": gzip.compress(_idx(np.zeros(TEST + 1))),
            "negative": gzip.compress(content[:4] + b"\xff" * 4 + content[8:]),
        }[damage]
    )
    with pytest.raises(DataError, match=r"mnist in .* is incomplete or damaged") as caught:
        load("mnist", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_what_is_packed_in_another_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "archive.zip").touch()
    with pytest.raises(DataError, match=r"archive\.zip cannot be read: unpack it there"):
        load("mnist", str(tmp_path))


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    for root in ("$NOWHERE/data", "${NOWHERE}/data"):
        with pytest.raises(ConfigError, match=r"data\.root = .*NOWHERE\}? is not set"):
            load("mnist", root)
