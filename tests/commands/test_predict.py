"""`predict` says of images and arrays what `evaluate` counts, without the data of the run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpcsplit.checkpoint import manifest
from hpcsplit.commands.predict import continued
from hpcsplit.data.dataset import Dataset, InMemory, load
from hpcsplit.data.inputs import Inputs
from hpcsplit.data.source import Source
from hpcsplit.files.hdf5 import set_attributes
from tests.commands.conftest import Run
from tests.commands.damage import sign
from tests.engine.small import records, train_here

USAGE, BAD = 64, 65
Command = Callable[..., tuple[int, str, str]]
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def data() -> Dataset[InMemory]:
    """Of the runs, before the pooling."""
    return load("fake", limit_train=100, limit_test=60)


@pytest.fixture
def images(data: Dataset[InMemory], tmp_path: Path) -> Path:
    """The test images as files, the odd ones in a folder below."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, image in enumerate(data.test.images):
        where = folder / "more" if number % 2 else folder
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(where / f"{number:02d}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def no_data(runs: Callable[[int], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs(2).folder.is_dir()  # trained, with its data
    monkeypatch.setattr("hpcsplit.plan.setting.load", lambda *_, **__: pytest.fail("the data set was read"))


def predicted(hpcsplit: Command, *words: object) -> Rows:
    code, out, err = hpcsplit("predict", *words)
    assert (code, err) == (0, "")
    return list(csv.DictReader(io.StringIO(out)))


def right(rows: Rows, data: Dataset[InMemory]) -> float:
    """The share of right classes; the names end in the sample's number."""
    labels = data.test.labels.tolist()
    found: float = sum(int(row["class"]) == labels[int(Path(row["name"]).stem)] for row in rows) / len(labels)
    return found


@pytest.mark.usefixtures("no_data")
def test_the_accuracy_is_that_of_the_run(
    runs: Callable[[int], Run], hpcsplit: Command, images: Path, data: Dataset[InMemory], tmp_path: Path
) -> None:
    """Images from files, the same as an array, and the same scaled to [0, 1] as floats, pooled or not, in another
    type."""
    folder = runs(2).folder
    rows = predicted(hpcsplit, folder, images)
    assert [row["name"] for row in rows] == [str(path) for path in sorted(images.rglob("*.png"))]
    assert right(rows, data) == pytest.approx(records(folder)[-1]["test_accuracy"])

    by_number = {int(Path(row["name"]).stem): row for row in rows}
    pooled = data.test.pooled().images.numpy()
    for kind, array in {
        "plain.npy": data.test.images.numpy(),
        "pooled.npy": pooled,
        "floats.npy": (pooled / 255).astype(">f8"),
    }.items():
        np.save(tmp_path / kind, array)
        found = predicted(hpcsplit, folder, tmp_path / kind)
        assert [row["name"] for row in found] == [f"{tmp_path / kind}[{n}]" for n in range(60)]
        for number, row in enumerate(found):
            assert row["class"] == by_number[number]["class"]
            assert float(row["probability"]) == pytest.approx(float(by_number[number]["probability"]), abs=2e-6)


def test_samples_are_normalised_as_in_training(data: Dataset[InMemory]) -> None:
    """To the bit."""
    mean, std = (tuple(each.tolist()) for each in (data.mean, data.std))
    kinds = {"seed": 0, "flip": False, "channels_last": False, "device": "cpu"}
    wanted = Source(data.test, data.mean, data.std, **kinds).images(np.arange(60))  # type: ignore[arg-type]
    inputs = Inputs((3, 32, 32), mean, std)
    assert torch.equal(inputs.normalised(data.test.images), wanted)
    assert inputs.normalised(data.test.images.double() / 255).allclose(wanted, atol=1e-5)
    tokens = torch.randint(0, 256, (2, 8), dtype=torch.uint8)
    assert torch.equal(Inputs((8,), kind="tokens").normalised(tokens), tokens.long())
    assert torch.equal(Inputs((8,), kind="numbers").normalised(tokens.double()), tokens.float())


@pytest.mark.usefixtures("no_data")
def test_more_classes_and_their_names(copy: Run, hpcsplit: Command, images: Path, tmp_path: Path) -> None:
    """Likeliest first; all of them add up to one.  A name that a spreadsheet would compute stays a text."""
    out = tmp_path / "out.csv"
    assert hpcsplit("predict", copy.folder, images / "00.png", "--top", 10, "--out", out) == (0, "", "")
    (row,) = csv.DictReader(out.open())
    chances = [float(value) for key, value in row.items() if key.startswith("probability")]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1.0, abs=1e-5)
    assert sorted(row[key] for key in row if key.startswith("class_name")) == [str(n) for n in range(10)]
    name_class(copy, "=cmd", *"bcdefghij")
    found = predicted(hpcsplit, copy.folder, "--top", 10, images / "00.png")[0]
    names = {found[f"class{end}"]: found[f"class_name{end}"] for end in ("", *(f"_{n}" for n in range(2, 11)))}
    assert names == {str(n): "'=cmd" if n == 0 else "abcdefghij"[n] for n in range(10)}
    code, _, err = hpcsplit("predict", copy.folder, images / "00.png", "--top", 11)
    assert (code, err) == (BAD, "hpcsplit: --top 11 is more than the 10 classes\n")


def name_class(run: Run, *names: str) -> None:
    """As if the data set of the run had such names."""
    inputs = manifest.read(run.newest).inputs
    set_attributes(run.newest / "manifest.h5", {"inputs": json.dumps({**inputs, "names": names})})
    sign(run.newest)


def test_a_checkpoint_of_an_older_version_asks_the_data(copy: Run, hpcsplit: Command, images: Path) -> None:
    wanted = predicted(hpcsplit, copy.folder, images)
    set_attributes(copy.newest / "manifest.h5", {"inputs": "{}"})
    sign(copy.newest)
    assert predicted(hpcsplit, copy.folder, images) == wanted
    set_attributes(copy.newest / "manifest.h5", {"inputs": '{"shape": [3, 32, 32], "mean": [0.5], "std": [0]}'})
    sign(copy.newest)
    code, _, err = hpcsplit("predict", copy.folder, images)
    assert code == BAD
    assert "has no mean and standard deviation that go together" in err


@pytest.mark.usefixtures("no_data")
def test_images_of_any_size_and_mode(runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path) -> None:
    """A picture with a frame that is cut off has the class of the one without, in any mode that keeps the colours."""
    folder = tmp_path / "odd"
    folder.mkdir()
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:16] = (255, 0, 0)
    plain = Image.fromarray(colours)
    plain.save(folder / "a.png")
    plain.convert("RGBA").save(folder / "b.png")
    plain.quantize(4).save(folder / "c.gif")
    wide = Image.new("RGB", (64, 32))
    wide.paste(plain, (16, 0))
    wide.save(folder / "d.png")
    plain.resize((320, 320), Image.Resampling.NEAREST).save(folder / "e.png")
    turned, exif = plain.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(folder / "f.png", exif=exif)
    rows = predicted(hpcsplit, runs(2).folder, folder)
    assert len(rows) == 6
    for row in rows:
        assert float(row["probability"]) == pytest.approx(float(rows[0]["probability"]), abs=1e-2)
    Image.fromarray(np.full((40, 40), 60000, np.uint16)).save(folder / "deep.png")
    Image.new("L", (40, 40), 233).save(folder / "grey.png")
    deep, grey = predicted(hpcsplit, runs(2).folder, folder / "deep.png", folder / "grey.png")
    assert deep["probability"] == grey["probability"]


@pytest.mark.usefixtures("no_data")
def test_a_broken_file_is_a_sentence_or_left_out(
    runs: Callable[[int], Run], hpcsplit: Command, images: Path, tmp_path: Path
) -> None:
    folder = runs(2).folder
    content = (images / "00.png").read_bytes()
    (images / "00.png").write_bytes(content[: len(content) // 2])
    (images / "02.png").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((2, 7), np.uint8))
    np.save(tmp_path / "wide.npy", np.zeros((2, 3, 32, 32), np.int64))
    np.save(tmp_path / "text.npy", np.zeros((2, 3, 32, 32), "U1"))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    (tmp_path / "empty").mkdir()
    for name, words in {
        "images/00.png": "00.png cannot be read as an image: ",
        "images/02.png": "02.png cannot be read as an image: the file is empty",
        "absent.png": "absent.png is not there; give an image, a folder",
        "cut.npy": "cut.npy cannot be read as an array (",
        "objects.npy": "objects.npy cannot be read as an array (",
        "flat.npy": "flat.npy has shape (2, 7), the network takes (N, 3, 32, 32) or (N, 3, 16, 16); reshape it",
        "wide.npy": "whole numbers of type int64; give pixels as uint8 from 0 to 255, or as floats",
        "text.npy": "has values of type <U1; give numbers",
        "two.npz": "two.npz has 2 arrays (a, b), none of them called x or images or data",
        "empty": "empty has no file that ends in .jpg",
    }.items():
        code, out, err = hpcsplit("predict", folder, tmp_path / name)
        assert (code, out) == (BAD, ""), name
        assert words in err
        assert err.count("\n") == 1
    code, out, err = hpcsplit("predict", folder, images, "--skip-broken")
    assert (code, len(out.splitlines())) == (0, 1 + 58)
    assert err.startswith("hpcsplit: 2 files left out: ")
    assert err.count("\n") == 1
    code, out, err = hpcsplit("predict", folder, images / "02.png", "--skip-broken")
    assert (code, out) == (BAD, "")
    assert "none of 1 files can be used" in err


def test_a_folder_of_images_without_its_run_s_data(hpcsplit: Command, tmp_path: Path) -> None:
    """Names of classes, shape and normalisation are those of the checkpoint; export has them, too."""
    chance, root = np.random.default_rng(0), tmp_path / "data"
    for part in ("train", "val"):
        for number, name in enumerate(("apple", "pear", "plum")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(8):
                pixels = chance.integers(0, 90, (20, 24, 3), np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(folder / f"{k}.png")
    toml = tmp_path / "c.toml"
    toml.write_text(
        f'[data]\nname = "imagefolder"\nroot = "{root}"\nsize = 16\nbatch_size = 8\nworkers = 0\n'
        '[model]\nname = "mlp"\ndepth = 1\nwidth = 8\n[method]\nname = "backprop"\n[schedule]\nepochs = 3\n'
        "[run]\nbaseline = false\nthreads = 1\n"
    )
    assert train_here(toml, tmp_path / "run") == 0
    accuracy = records(tmp_path / "run")[-1]["test_accuracy"]
    root.rename(tmp_path / "moved")
    rows = predicted(hpcsplit, tmp_path / "run", tmp_path / "moved" / "val")
    assert len(rows) == 24
    assert np.mean([row["class_name"] == Path(row["name"]).parent.name for row in rows]) == pytest.approx(accuracy)
    assert {row["class_name"] for row in rows} <= {"apple", "pear", "plum"}
    assert hpcsplit("export", tmp_path / "run", tmp_path / "net.pt2")[0] == 0
    code, out, err = hpcsplit("evaluate", tmp_path / "run", "--data", tmp_path / "moved", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["test_accuracy"] == pytest.approx(accuracy)


def test_what_is_no_call(runs: Callable[[int], Run], hpcsplit: Command, images: Path, tmp_path: Path) -> None:
    folder = runs(2).folder
    for words in ([], [images, "--text", "a"], [images, "--nonsense"], [images, "--out", tmp_path / "none" / "o.csv"]):
        assert hpcsplit("predict", folder, *words)[0] == USAGE, words
    code, _, err = hpcsplit("predict", folder, "--text", "once upon")
    assert code == BAD
    assert "--text is for networks of text" in err


def test_a_text_goes_on() -> None:
    """A network that knows the byte behind each: alone by argmax, and with a seed by chance; none looks at what stands
    behind the place that is asked for."""

    def next_letter(tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.shape == (1, 4)
        assert tokens.dtype == torch.int64
        return 9.0 * torch.nn.functional.one_hot((tokens + 1) % 256, 256).float()

    assert continued(next_letter, b"abc", 4, 3, temperature=0) == b"def"
    assert continued(next_letter, b"vwxyz", 4, 0) == b""
    drawn = [continued(next_letter, b"a", 4, 30, temperature=2.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert continued(next_letter, b"a", 4, 5, temperature=0.1, seed=3) == b"bcdef"
