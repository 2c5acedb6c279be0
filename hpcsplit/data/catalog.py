"""What is known of every data set before it is read: sizes, shape, classes, where it comes from.

The one list of data sets: a new one is an entry here, and a file with its reader where torchvision does not know it.
What users bring is opened by what `OPENERS` names, and is described when it has been looked at.
Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from hpcsplit.errors import ConfigError, DataError


@dataclass(frozen=True)
class Layout:
    """A data set on a disk."""

    kind: str  # torchvision's class
    folder: str  # of the files, below data.root
    names: tuple[str, ...]
    archive: str = ""  # .tar.gz that has that folder
    family: str = ""  # sets of one have files of the same names, so a folder named after another set is not taken


@dataclass(frozen=True)
class Spec:
    """A data set as published, or as it was found."""

    name: str
    train: int  # samples
    test: int  # 0: the training samples that are held out serve as the test set
    shape: tuple[int, ...]  # of a sample: (channels, height, width) in pixels, (features,), (tokens,) ...
    classes: int  # of labels 0 .. classes-1, or tokens of the vocabulary; 0 where targets are numbers
    flip: bool  # a mirrored image keeps its label (a mirrored digit does not)
    kind: str = "images"  # "images" of uint8, "numbers" of floating point, or "tokens": whole numbers below `classes`
    target_shape: tuple[int, ...] = ()  # of a sample's target; () is a class, or one number
    views: bool = True  # of a sample that differ: crops, flips, transforms, shifts
    padding: int = 4  # pixels that crops are moved by at most; 0 where nothing is cropped
    in_memory: bool = True  # all of it, as it is; else samples are read when they are needed
    endless: bool = False  # made by the program, with as many samples as are asked for, at least `train` and `test`
    names: tuple[str, ...] = ()  # of the classes, for people; empty where a label says all
    # "module:function", called with (spec, root, download), see dataset.load: it returns training and test part.
    reader: str = "hpcsplit.data.vision:read"
    layout: Layout | None = None  # for the reader of torchvision's files

    def input_shape(self, pool: bool = False) -> tuple[int, ...]:
        """Of one sample as the network sees it; `pool` halves the height and width of images."""
        if not pool:
            return self.shape
        if self.name not in SPECS:
            raise DataError(
                f"data.pool = true is for the published sets of images, not for {self.name}; set it to false"
            )
        channels, height, width = self.shape
        return (channels, height // 2, width // 2)


_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_MNIST = Layout("MNIST", "MNIST/raw", _IDX, family="idx")
_FASHION = Layout("FashionMNIST", "FashionMNIST/raw", _IDX, family="idx")
_KMNIST = Layout("KMNIST", "KMNIST/raw", _IDX, family="idx")
_SVHN = Layout("SVHN", "", ("train_32x32.mat", "test_32x32.mat"))
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_CIFAR10 = Layout("CIFAR10", "cifar-10-batches-py", _BATCHES, "cifar-10-python.tar.gz")
_CIFAR100 = Layout("CIFAR100", "cifar-100-python", ("train", "test"), "cifar-100-python.tar.gz")

_ALL = (
    Spec("digits", 1437, 360, (1, 32, 32), 10, flip=False, reader="hpcsplit.data.embedded:digits"),
    Spec("mnist", 60000, 10000, (1, 28, 28), 10, flip=False, layout=_MNIST),
    Spec("fashion_mnist", 60000, 10000, (1, 28, 28), 10, flip=True, names=_CLOTHES, layout=_FASHION),
    Spec("kmnist", 60000, 10000, (1, 28, 28), 10, flip=False, layout=_KMNIST),
    Spec("svhn", 73257, 26032, (3, 32, 32), 10, flip=False, layout=_SVHN),
    Spec("cifar10", 50000, 10000, (3, 32, 32), 10, flip=True, names=_THINGS, layout=_CIFAR10),
    Spec("cifar100", 50000, 10000, (3, 32, 32), 100, flip=True, layout=_CIFAR100),
    Spec("fake", 1024, 256, (3, 32, 32), 10, flip=False, endless=True, reader="hpcsplit.data.embedded:fake"),
)

SPECS: dict[str, Spec] = {spec.name: spec for spec in _ALL}
OPENERS = {  # data.name of what users bring -> "module:function" that opens it, see dataset.Opener
    "imagefolder": "hpcsplit.data.folder:open_folder",
    "arrays": "hpcsplit.data.arrays:open_arrays",
    "text": "hpcsplit.data.text:open_text",
    "torchvision:CLASS": "hpcsplit.data.vision:open_class",
    "package.module:factory": "hpcsplit.data.factory:open_factory",
}
_CLASSES = (  # of torchvision.datasets that have a class for each image
    *("Caltech101", "Caltech256", "Country211", "DTD", "EuroSAT", "FGVCAircraft", "FakeData", "Flowers102", "Food101"),
    *("GTSRB", "Imagenette", "LFWPeople", "OxfordIIITPet", "PCAM", "QMNIST", "RenderedSST2", "SEMEION", "STL10"),
    *("SUN397", "StanfordCars", "USPS"),
)
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def opener(name: str) -> str:
    """Which entry of `OPENERS` opens the data set `name`; "" for a published one."""
    if name.startswith("torchvision:"):
        return "torchvision:CLASS"
    return "package.module:factory" if ":" in name else name if name in OPENERS else ""


def known_name(name: str) -> str:
    """The name as this list spells it: case, dashes and underscores do not matter.  ConfigError where it has none."""
    if _FACTORY.fullmatch(name):
        return name
    spellings = {plain(known): f"torchvision:{known}" for known in _CLASSES}
    spellings |= {plain(known): known for known in (*SPECS, *OPENERS) if ":" not in known}
    if plain(name) in spellings:
        return spellings[plain(name)]
    close = difflib.get_close_matches(plain(name), spellings, n=1, cutoff=0.5)
    hint = f"; did you mean {spellings[close[0]]}?" if close else ""
    raise ConfigError(f'data.name = "{name}" is no known data set; choose one of {", ".join((*SPECS, *OPENERS))}{hint}')


def lookup(name: str) -> Spec:
    """The published data set called `name`; DataError lists the known names when there is none."""
    if name not in SPECS:
        raise DataError(f'data.name = "{name}" is no known data set; choose one of {", ".join(SPECS)}')
    return SPECS[name]


def plain(name: str) -> str:
    """A name without what people write in different ways."""
    return name.lower().replace("-", "").replace("_", "")
