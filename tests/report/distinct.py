"""Records in which no two numbers are equal, so that a quantity shown in the place of another one is seen."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

from hpcsplit.run.records import EpochRecord, Phase, StageRecord, TheoremRecord

_TEST = ("", "_bn", "_top5", "_ema")
FRACTIONS = ("train_accuracy", *(f"test_accuracy{end}" for end in _TEST), "validation_accuracy")
TERMS = ("objective", "residual_sq", "step_sq", "weights_step_sq", "phi")


def primes() -> Iterator[int]:
    """Those of three and four digits in any order: neighbours differ in their first digits, which are what is shown."""
    found = [n for n in range(101, 9973, 2) if all(n % k for k in range(3, int(n**0.5) + 1, 2))]
    random.Random(0).shuffle(found)
    return iter(found)


def distinct(phases: str, stages: int) -> list[EpochRecord]:
    """distinct("spp", 2): a record for each letter; every field that holds a number has one of its own.

    An epoch is longer than its parts, and training longer than those of a stage, as in a run.
    """
    fresh = primes()

    def number(name: str, kind: str) -> float | int:
        found = next(fresh)
        if name in FRACTIONS:
            return found / 10007
        if name in ("wall_s", "train_s"):
            return found + {"wall_s": 50_000.5, "train_s": 6000.25}[name]  # no prime
        if name == "samples_per_s":
            return float(found)
        return found << 20 if name.endswith("_bytes") else found if kind.startswith("Whole") else found / 8

    def numbers(cls: type, *given: str) -> dict[str, Any]:
        fields = [field for field in dataclasses.fields(cls) if field.name not in given]
        return {f.name: number(f.name, str(f.type)) for f in fields if str(f.type).startswith(("Whole", "Number"))}

    found = []
    for epoch, letter in enumerate(phases):
        phase: Phase = "parallel" if letter == "p" else "serial"
        parts = tuple(StageRecord(k, **numbers(StageRecord, "stage")) for k in range(stages))
        theorem: TheoremRecord = {
            "gap": next(fresh) / 8,
            "bound": next(fresh) / 8,
            "worst": next(fresh) / 8,
            "residuals": [next(fresh) / 8 for _ in range(1, stages)],
            "lipschitz": [next(fresh) / 8 for _ in range(1, stages)],
            "missing": [],
        }
        terms = {name: next(fresh) / 8 for name in TERMS}
        values = numbers(EpochRecord, "epoch")
        found.append(EpochRecord(epoch, phase, **values, terms=terms, theorem=theorem, stages=parts))
    return found
