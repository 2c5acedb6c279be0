"""What one epoch left behind: one JSON line in records.jsonl, never two for the same epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec

from hpcsplit.errors import DataError
from hpcsplit.files.atomic import append_text, write_text
from hpcsplit.files.nofollow import read_bytes, read_text, state

Phase = Literal["serial", "parallel"]
Whole = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Number = Annotated[float, msgspec.Meta(gt=-1e300, lt=1e300)]  # so far from the largest that sums are finite, too


class TheoremRecord(TypedDict):
    """Both sides of the theorem (engine/theorem.py) on one mini-batch."""

    gap: Number | None  # mean over the samples of |R_serial − R_split|, in nats
    bound: Number | None  # mean of the right-hand side; None where a constant is missing
    worst: Number | None  # the largest gap / bound where that is not 0; at most 1 unless an estimate is too low
    residuals: list[Number | None]  # mean ‖r_l‖ at each of the K-1 boundaries
    lipschitz: list[Number | None]  # H_1 … H_{K-1}; None where a layer has no rule
    missing: list[str]  # "stage k: no estimate: <class>" for each None among them


@dataclass(frozen=True)
class StageRecord:
    """One stage in one epoch; what was not measured is None."""

    stage: Whole
    violation: Number | None = None
    label_signal: Number | None = None
    label_ratio: Number | None = None
    penalty_signal: Number | None = None
    rounding: Number | None = None  # what the type of the stored rows rounds away of what they teach, relative
    compute_s: Number | None = None
    exposed_comm_s: Number | None = None
    exposed_io_s: Number | None = None
    exposed_data_s: Number | None = None
    imbalance_s: Number | None = None
    sent_bytes: Whole | None = None
    peak_rss_bytes: Whole | None = None  # the most that its process has had resident so far


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch of the whole network; epochs count from 0, accuracies are fractions."""

    epoch: Whole
    phase: Phase
    loss: Number | None = None
    test_loss: Number | None = None
    train_accuracy: Number | None = None
    test_accuracy: Number | None = None
    test_accuracy_bn: Number | None = None
    test_accuracy_top5: Number | None = None  # among the five most likely; of more than 10 classes
    test_perplexity: Number | None = None  # exp(test_loss) of a language model
    test_r2: Number | None = None  # coefficient of determination of a regression
    test_loss_ema: Number | None = None  # of the moving average of the weights, with their BatchNorm statistics
    test_accuracy_ema: Number | None = None
    validation_loss: Number | None = None  # of training samples held out; BatchNorm re-estimated after parallel epochs
    validation_accuracy: Number | None = None
    wall_s: Number | None = None
    train_s: Number | None = None
    refresh_s: Number | None = None
    checkpoint_s: Number | None = None  # of those since the record before; like the rest, a part of wall_s
    samples_per_s: Number | None = None
    aux_loss: Number | None = None
    # the parts of the method's objective: means over samples, sums over stages
    terms: Mapping[str, Number | None] | None = None
    theorem: TheoremRecord | None = None  # after the last epoch of a parallel phase
    lr: Number | None = None  # of its last step
    beta: Number | None = None
    weights_sha256: str | None = None
    stages: tuple[StageRecord, ...] = ()
    recomputed: bool = False

    def to_json(self) -> str:
        """One line of JSON without its newline; a number that is not finite becomes null."""
        return json.dumps(finite(asdict(self)), allow_nan=False)

    def learned(self) -> dict[str, Any]:
        """All but times and memory, as in JSON: what a run that is repeated, or stopped and continued, has again."""
        values: dict[str, Any] = json.loads(self.to_json())
        for part in (values, *values["stages"]):
            for key in [key for key in part if key.endswith("_s") or key == "peak_rss_bytes"]:
                del part[key]
        return values

    @classmethod
    def from_json(cls, text: str) -> EpochRecord:
        """The record of one line; keys that this version does not know are left out.  DataError where it is none, or a
        value is of another kind, not finite, or of no epoch that there could be."""
        try:
            record = msgspec.json.decode(text, type=cls)
            for name, value in (record.terms or {}).items():
                if name.endswith("_sq") and (value or 0) < 0:
                    raise ValueError(f"terms.{name} is below 0")
            return record
        except (ValueError, RecursionError) as error:
            raise DataError(f"not the record of an epoch: {text[:80]!r} ({str(error)[:200]})") from error


def flat(record: EpochRecord) -> dict[str, Any]:
    """Every value of a record by one name, None where nothing was measured; epochs count from 1, as for the reader.

    Parts have their place in front: terms.phi, theorem.residuals.1 (of a list, from 1), stage0.violation.
    """
    values = _values(record) | {"epoch": record.epoch + 1}
    parts = {"terms": values.pop("terms") or {}, "theorem": values.pop("theorem") or {}}
    parts |= {f"stage{stage.stage}": _values(stage) for stage in values.pop("stages")}
    for place, part in parts.items():
        for name, value in part.items():
            if isinstance(value, list | tuple):
                values |= {f"{place}.{name}.{k}": each for k, each in enumerate(value, 1)}
            elif name != "stage":
                values[f"{place}.{name}"] = value
    return values


def _values(record: EpochRecord | StageRecord) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


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
        content = read_bytes(self.path) if state(self.path) else b""
        if content and not content.endswith(b"}\n"):  # torn by a crash
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
        result = []
        for count, line in enumerate(lines, 1):
            try:
                result.append((EpochRecord.from_json(line), line))
            except DataError as error:
                if count < len(lines):
                    raise DataError(f"{self.path}, record {count} of {len(lines)} is {error}; remove it") from None
        for (before, _), (record, _) in pairwise(result):
            if record.epoch <= before.epoch:
                raise DataError(f"{self.path} has epoch {record.epoch} behind epoch {before.epoch}; remove one of them")
        return result

    def _replace(self, lines: list[str]) -> None:
        write_text(self.path, "".join(line + "\n" for line in lines))


def finite(value: Any) -> Any:
    """Plain values with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
