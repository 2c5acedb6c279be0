"""What is known of every data set before it is read: sizes, shape, classes, where it comes from.

The one list of data sets: a new one is an entry here, and a file with its reader where torchvision does not know it.
Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcsplit.errors import DataError


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
    """A data set as published."""

    name: str
    train: int  # samples
    test: int
    shape: tuple[int, int, int]  # (channels, height, width) in pixels
    classes: int  # of labels 0 .. classes-1
    flip: bool  # a mirrored image keeps its label (a mirrored digit does not)
    target_shape: tuple[int, ...] = ()  # of a sample's target; () is a class, or one number
    endless: bool = False  # made by the program, with as many samples as are asked for, at least `train` and `test`
    names: tuple[str, ...] = ()  # of the classes, for people; empty where a label says all
    # "module:function", called with (spec, root, download), see dataset.load: it returns training and test part.
    reader: str = "hpcsplit.data.vision:read"
    layout: Layout | None = None  # for the reader of torchvision's files

    def input_shape(self, pool: bool = False) -> tuple[int, int, int]:
        """(C, H, W) of one sample as the network sees it; `pool` halves height and width."""
        channels, height, width = self.shape
        return (channels, height // 2, width // 2) if pool else self.shape


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


def lookup(name: str) -> Spec:
    """The Spec called `name`; DataError lists the known names when there is none."""
    if name not in SPECS:
        raise DataError(f'data.name = "{name}" is no known data set; choose one of {", ".join(SPECS)}')
    return SPECS[name]
