"""A name of a class stands for one thing, and the map of the code in the README is the contract of its imports."""

from __future__ import annotations

import ast
import configparser
import re
from collections import defaultdict
from pathlib import Path

import hpcsplit

PACKAGE = Path(hpcsplit.__file__).parent
ROOT = Path(__file__).parents[1]
FACES = {"__init__", "__main__"}


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_the_map_is_the_contract() -> None:
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    layers = contract["importlinter:contract:layers"]["layers"].replace("hpcsplit.", "").strip().splitlines()
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The code")[2].partition("The idea")[0]
    assert re.findall(r"^    (\w+(?: \| \w+)*)(?:  .*)?$", text, re.MULTILINE) == layers
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} - FACES
    assert rooms == set(re.findall(r"\w+", " ".join(layers)))
    assert len(layers) <= 10


def test_the_files_that_the_architecture_names_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:\w+/)*\w+\.py)`", text)
    assert len(files) > 40
    absent = {file for file in files if not (PACKAGE / file).exists() and not (ROOT / file).exists()}
    assert absent == {"plain.py"}  # of README.md's example
