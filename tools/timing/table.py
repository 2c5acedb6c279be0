"""The command line of every benchmark, what it says beside its numbers, and how it writes them down."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

from hpcsplit.run.provenance import processor
from tools.program import ROOT


def options(doc: str | None, name: str, **known: Any) -> argparse.Namespace:
    """What the command line says: of each option its default and perhaps a sentence, or what argparse is told."""
    known.setdefault("out", ROOT / "runs" / f"bench-{name}")
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, what in known.items():
        default, *sentence = what if isinstance(what, tuple) else (what,)
        told = {"default": default, "type": type(default), "help": "".join(sentence) or None}
        parser.add_argument(f"--{option.replace('_', '-')}", **(what if isinstance(what, dict) else told))
    return parser.parse_args()


def ratio(theirs: Sequence[float], own: Sequence[float]) -> float:
    """The median of the ratios within one round."""
    return statistics.median(a / b for a, b in zip(theirs, own, strict=True))


def interval(theirs: Sequence[float], own: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of `ratio`: percentile bootstrap over rounds.  One round says nothing of the others."""
    ratios = np.asarray(theirs) / np.asarray(own)
    if len(ratios) < 2:
        return 0.0, math.inf
    found = bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def publish(folder: Path, name: str, lines: Sequence[str], values: Any) -> None:
    """Print a benchmark's table, and write it down."""
    print(*lines, sep="\n")
    print(f"\n{write(folder, name, lines, values)}; table and values: {folder}")


def write(folder: Path, name: str, lines: Sequence[str], values: Any) -> str:
    """Write NAME.txt, with the command before the table and the hardware behind it, and the values as NAME.json; the
    last line: hardware and versions, and how busy the machine is."""
    known = {
        "hardware": f"{os.cpu_count()} x {processor()}",
        "load": f"{os.getloadavg()[0]:.1f} (1 min), {os.getloadavg()[2]:.1f} (15 min)",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    said = ", ".join(f"{key} {value}" for key, value in known.items())
    command = " ".join(["tools/bench", name, *sys.argv[1:]])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("\n".join([command, *lines, "", said]) + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps({"facts": known, "values": values}, indent=1) + "\n", "utf-8")
    return said
