from __future__ import annotations

import math
import subprocess
import sys

import pytest

from hpcsplit.config.option import options_of
from hpcsplit.config.sections import DataSection
from hpcsplit.data.catalog import OPENERS, SPECS, lookup
from hpcsplit.errors import ConfigError, DataError


def test_every_name_that_the_configuration_allows_is_known() -> None:
    [option] = [option for option in options_of(DataSection) if option.name == "name"]
    assert option.doc.split(" | ") == [*SPECS, *OPENERS]
    assert [option.accept(name, "data.name") for name in SPECS] == list(SPECS)
    other = ("CIFAR-10", "Fashion-MNIST", "ImageFolder", "EuroSAT", "eurosat", "my.data:make")
    known = ["cifar10", "fashion_mnist", "imagefolder", "torchvision:EuroSAT", "torchvision:EuroSAT", "my.data:make"]
    assert [option.accept(name, "data.name") for name in other] == known
    with pytest.raises(ConfigError, match="did you mean cifar100"):
        option.accept("cifar1000", "data.name")
    assert all(name == spec.name for name, spec in SPECS.items())


def test_flips_only_where_a_mirror_image_keeps_its_label() -> None:
    assert {name for name, spec in SPECS.items() if spec.flip} == {"cifar10", "cifar100", "fashion_mnist"}


def test_pooling_halves_the_picture() -> None:
    assert SPECS["mnist"].input_shape() == (1, 28, 28)
    assert SPECS["mnist"].input_shape(pool=True) == (1, 14, 14)


@pytest.mark.parametrize(
    ("name", "features"),
    [("mnist", 196), ("fashion_mnist", 196), ("kmnist", 196), ("svhn", 768), ("cifar10", 768), ("cifar100", 768)],
)
def test_pooled_pictures_have_the_number_of_features_of_the_papers(name: str, features: int) -> None:
    """TSSM, appendix: 196 = 14 x 14 and 768 = 16 x 16 x 3."""
    assert math.prod(lookup(name).input_shape(pool=True)) == features


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r'"cifar11".*cifar10'):
        lookup("cifar11")


def test_imports_nothing_heavy() -> None:
    code = "import sys, hpcsplit.data.catalog; print({'torch', 'numpy', 'torchvision', 'scipy'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
