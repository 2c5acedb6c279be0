"""The methods and their hyper-parameters, read from the text of methods/*.py.

A method is one file; its options stand beside its mathematics.  The files import torch, so they are parsed here instead
of imported: `--help` and every configuration error answer at once.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpcsplit.config.option import Option

METHODS_DIR = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True)
class Facts:
    """What `@method("name", …)` says of a class (methods/contract.py).

    With `full_batch` an epoch is an iteration over all samples in their own order, no mini-batch moves the weights; its
    variables go on from iteration to iteration, so exact epochs can only come before all of them.  A method that
    `augments` keeps nothing of a sample from epoch to epoch, so its parallel epochs augment as exact ones do.
    """

    parallel: bool = True  # False says that its every epoch is exact back-propagation
    full_batch: bool = False
    one_batch: bool = False  # a step needs all samples together
    augments: bool = False
    in_flight: bool = False  # several mini-batches are under way between two steps
    images: bool = False  # every stage computes with the images in parallel epochs, not only the first one
    network: str = ""  # the only `model.name` that it trains, or ""
    stages: int = 0  # the largest number of stages; 0 has no limit
    # Options with which `plan` tells the size of its variables, whatever method is planned.
    compared: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeclaredMethod(Facts):
    """A decorated class as its file declares it."""

    name: str
    module: str
    class_name: str
    summary: str
    options: tuple[Option, ...]


@cache
def declared_methods() -> dict[str, DeclaredMethod]:
    """Every method in methods/*.py by name."""
    result: dict[str, DeclaredMethod] = {}
    classes = {
        node.name: (node, path.stem)
        for path in sorted(METHODS_DIR.glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }

    def options_of(name: str) -> tuple[Option, ...]:
        """Those of the bases, in whatever file, then its own."""
        node, _ = classes[name]
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
        own = _own_options(node)
        return (*(o for base in bases for o in options_of(base) if o.name not in {p.name for p in own}), *own)

    for node, stem in classes.values():
        for mark in node.decorator_list:
            match mark:
                case ast.Call(ast.Name("method"), args, keywords):
                    name = ast.literal_eval(args[0])
                    result[name] = DeclaredMethod(
                        name=name,
                        module=f"hpcsplit.methods.{stem}",
                        class_name=node.name,
                        summary=(ast.get_docstring(node) or name).splitlines()[0],
                        options=options_of(node.name),
                        **{k.arg: ast.literal_eval(k.value) for k in keywords if k.arg},
                    )
    return result


def _own_options(node: ast.ClassDef) -> tuple[Option, ...]:
    options = []
    for item in node.body:
        match item:
            case ast.AnnAssign(ast.Name(name), kind, ast.Call(ast.Name("option"), args, keywords)):
                default, doc = map(ast.literal_eval, args)
                facts = {k.arg: ast.literal_eval(k.value) for k in keywords if k.arg}
                options.append(Option(name, ast.unparse(kind), default, doc, **facts))
    return tuple(options)
