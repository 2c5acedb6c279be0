"""What one epoch left behind: one JSON line in records.jsonl, never two for the same epoch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from hpcsplit.errors import DataError
from hpcsplit.files.atomic import append_text, write_text
from hpcsplit.files.nofollow import read_bytes, read_text, state

Phase = Literal["serial", "parallel"]


@dataclass(frozen=True)
class StageRecord:
    """One stage in one epoch; what was not measured is None."""

    stage: int
    violation: float | None = None
    label_signal: float | None = None
    label_ratio: float | None = None
    penalty_signal: float | None = None
    compute_s: float | None = None
    exposed_comm_s: float | None = None
    exposed_io_s: float | None = None
    imbalance_s: float | None = None
    sent_bytes: int | None = None
    peak_rss_bytes: int | None = None  # the most that its process has had resident so far


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch of the whole network; epochs count from 0, accuracies are fractions."""

    epoch: int
    phase: Phase
    loss: float | None = None
    test_loss: float | None = None
    train_accuracy: float | None = None
    test_accuracy: float | None = None
    test_accuracy_bn: float | None = None
    validation_loss: float | None = None  # of training samples held out; BatchNorm re-estimated after parallel epochs
    validation_accuracy: float | None = None
    wall_s: float | None = None
    train_s: float | None = None
    refresh_s: float | None = None
    checkpoint_s: float | None = None  # of those since the record before; like the rest, a part of wall_s
    samples_per_s: float | None = None
    aux_loss: float | None = None
    terms: dict[str, float] | None = None  # the parts of the method's objective: means over samples, sums over stages
    theorem: dict[str, Any] | None = None  # engine/theorem.py's Bound, after the last epoch of a parallel phase
    lr: float | None = None
    beta: float | None = None
    weights_sha256: str | None = None
    stages: tuple[StageRecord, ...] = ()
    recomputed: bool = False

    def to_json(self) -> str:
        """One line of JSON without its newline; a number that is not finite becomes null."""
        return json.dumps(_finite(dataclasses.asdict(self)), allow_nan=False)

    def learned(self) -> dict[str, Any]:
        """All but times and memory, as in JSON: what a run that is repeated, or stopped and continued, has again."""
        values: dict[str, Any] = json.loads(self.to_json())
        for part in (values, *values["stages"]):
            for key in [key for key in part if key.endswith("_s") or key == "peak_rss_bytes"]:
                del part[key]
        return values

    @classmethod
    def from_json(cls, text: str) -> EpochRecord:
        """The record of one line; keys that this version does not know are left out.

        Raises:
            DataError: it is none, or a value is of another kind, not finite, or of no epoch that there could be.
        """
        try:
            values = json.loads(text)
            stages = tuple(StageRecord(**_known(StageRecord, stage)) for stage in values.get("stages", ()))
            return cls(**{**_known(cls, values), "stages": stages})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"not the record of an epoch: {text[:80]!r} ({str(error)[:200]})") from error


def flat(record: EpochRecord) -> dict[str, Any]:
    """Every value of a record by one name, None where nothing was measured; epochs count from 1, as for the reader.

    Parts have their place in front: terms.phi, theorem.residuals.1 (of a list, from 1), stage0.violation.
    """
    values = vars(record) | {"epoch": record.epoch + 1}
    parts = {"terms": values.pop("terms") or {}, "theorem": values.pop("theorem") or {}}
    parts |= {f"stage{stage.stage}": vars(stage) for stage in values.pop("stages")}
    for place, part in parts.items():
        for name, value in part.items():
            several = {f".{k}": each for k, each in enumerate(value, 1)} if isinstance(value, list) else {"": value}
            values |= {f"{place}.{name}{k}": each for k, each in several.items() if name != "stage"}
    return values


def known(records: Iterable[EpochRecord], name: str) -> list[tuple[float, int]]:
    """One value of flat(record) in every epoch that has it, and the epoch, from 1."""
    values = [(flat(record).get(name), record.epoch + 1) for record in records]
    return [(value, epoch) for value, epoch in values if value is not None]


class Records:
    """The file records.jsonl of a run directory; a line counts once it is on the disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def load(self) -> list[EpochRecord]:
        """All records in file order; a last line torn by a crash is dropped, any other damage is a DataError."""
        return [record for record, _ in self._read()]

    def append(self, record: EpochRecord) -> None:
        """Add the line of a finished epoch and wait until the disk has it."""
        past = self._read()
        assert all(old.epoch != record.epoch for old, _ in past), f"epoch {record.epoch} is already in {self.path}"
        if self._torn():
            self._replace([line for _, line in past])
        append_text(self.path, record.to_json() + "\n")

    def truncate(self, before_epoch: int) -> None:
        """Atomically drop every record with epoch >= before_epoch: a resumed run writes these again."""
        if state(self.path):
            self._replace([line for record, line in self._read() if record.epoch < before_epoch])

    def _read(self) -> list[tuple[EpochRecord, str]]:
        if not state(self.path):
            return []
        lines = [line for line in read_text(self.path).split("\n") if line.strip()]
        found = []
        for count, line in enumerate(lines, 1):
            try:
                found.append((EpochRecord.from_json(line), line))
            except DataError as error:
                if count < len(lines):
                    raise DataError(f"{self.path}, record {count} of {len(lines)} is {error}; remove it") from None
        for (before, _), (record, _) in pairwise(found):
            if record.epoch <= before.epoch:
                raise DataError(f"{self.path} has epoch {record.epoch} behind epoch {before.epoch}; remove one of them")
        return found

    def _torn(self) -> bool:
        content = read_bytes(self.path) if state(self.path) else b""
        return bool(content) and not content.endswith(b"}\n")

    def _replace(self, lines: list[str]) -> None:
        write_text(self.path, "".join(line + "\n" for line in lines))


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of fields that this version knows; TypeError where one is of another kind."""
    known = {}
    for field in dataclasses.fields(cls):
        if field.name in values and field.name != "stages":
            value = known[field.name] = values[field.name]
            kind, _, optional = str(field.type).partition(" | ")
            if not _KINDS[kind](value) and not (value is None and optional):
                raise TypeError(f"{field.name} = {value!r}")
    return known


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_number(value: Any) -> bool:
    """Whether it is finite, and so far from the largest number that sums are, too."""
    return type(value) in (int, float) and abs(value) < 1e300


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_term(name: str, value: Any) -> bool:
    return value is None or (_is_number(value) and (value >= 0 or not name.endswith("_sq")))


def _is_theorem(value: Any) -> bool:
    """Whether it has what engine/theorem.py writes."""
    return (
        isinstance(value, dict)
        and all(_is_number_or_none(value[key]) for key in ("gap", "bound", "worst"))
        and all(isinstance(value[key], list) for key in ("residuals", "lipschitz", "missing"))
        and all(_is_number_or_none(each) for key in ("residuals", "lipschitz") for each in value[key])
        and all(isinstance(each, str) for each in value["missing"])
    )


_KINDS: dict[str, Callable[[Any], bool]] = {
    "int": _is_whole,
    "float": _is_number,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "Phase": lambda value: value in get_args(Phase),
    "dict[str, float]": lambda value: isinstance(value, dict) and all(_is_term(*each) for each in value.items()),
    "dict[str, Any]": _is_theorem,
}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
