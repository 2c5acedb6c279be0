"""The `report` command: finished or running runs side by side, as a table, a picture, a page or numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpcsplit.config import Config
from hpcsplit.errors import DataError, HpcsplitError, UsageError
from hpcsplit.files.atomic import write_failure, write_text
from hpcsplit.files.nofollow import read_text
from hpcsplit.host.printable import printable
from hpcsplit.report import picture
from hpcsplit.report.examples import Mistakes, Reconstructions
from hpcsplit.report.lines import table
from hpcsplit.report.page import Shown, page
from hpcsplit.report.summary import EXPLAINED, beside, columns, csv_text, overview
from hpcsplit.run.folder import RunDir
from hpcsplit.run.provenance import starts
from hpcsplit.run.records import EpochRecord, Records


def report_command(run_dirs: Sequence[RunDir], out: Path | None, data_root: str = "", *, mistakes: bool = True) -> int:
    """Print one line for each run directory, and write `out`, whose suffix says what; the exit code.

    Args:
        data_root: the folder of the data sets; empty: see vision.folder_of.
        mistakes: let the page pass the test set through the network of each run's newest checkpoint.
    """
    if out:
        _check_out(out)
    result = _named(run_dirs)
    records = {name: _records(run) for name, run in result.items()}
    configs = {name: _config(run) for name, run in result.items()}
    _check_data(configs)
    print(table(columns(records), overview(records)))
    print(EXPLAINED)
    forecasts = {name: forecast for name, run in result.items() if (forecast := run.load_forecast())}
    if lines := beside({name * (len(result) > 1): (each, records[name]) for name, each in forecasts.items()}):
        print("\n".join(["", *lines]))
    if out is None:
        return 0
    try:
        if out.suffix == ".html":
            what, root = "page", data_root if mistakes else None
            runs = {name: _run(name, run, records[name], configs[name], root) for name, run in result.items()}
            write_text(out, page(runs))
        elif out.suffix == ".csv":
            what = "numbers"
            write_text(out, csv_text(records))
        else:
            what = "curves"
            picture.draw(records, out, " and ".join(records))
    except OSError as error:
        raise write_failure(out, error) from None
    print(printable(f"{what}: {out}"))
    return 0


def _check_out(out: Path) -> None:
    *others, last = (f".{kind}" for kind in ("html", "csv", *picture.FORMATS))
    if out.suffix not in (*others, last):
        raise UsageError(f"--out {out} must end in {', '.join(others)} or {last}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; give the name of a file")


def _named(runs: Sequence[RunDir]) -> dict[str, RunDir]:
    """Every run directory once, by as much of the end of its path as tells it from the others."""
    places = {Path(os.path.abspath(run.path)): run for run in runs}
    parts = 1
    while len({place.parts[-parts:] for place in places}) < len(places):
        parts += 1
    return {printable("/".join(place.parts[-parts:]), keep=""): run for place, run in places.items()}


def _records(run: RunDir) -> list[EpochRecord]:
    path, folder = run.records, run.path
    try:
        records = Records(path).load()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; is {folder} a run directory?") from None
    if not records:
        raise DataError(f"{folder} is no run directory with a finished epoch: its records.jsonl is absent or empty")
    return records


def _config(run: RunDir) -> Config | str:
    """The configuration of a run, or why it has none."""
    try:
        return run.load_config()
    except HpcsplitError as error:
        return f"{error}."


def _check_data(configs: Mapping[str, Config | str]) -> None:
    """Refuse to put runs side by side that were not tested on the same images."""
    tested: dict[tuple[object, ...], str] = {}
    for name, config in configs.items():
        if isinstance(config, Config):
            tested.setdefault((config.data.name, config.data.limit_test), name)
    if len(tested) > 1:
        listed = "; ".join(
            f"{name} on {data}{f' (the first {limit} test samples)' if limit else ''}"
            for (data, limit), name in tested.items()
        )
        raise DataError(f"these runs have different test sets: {listed}. Report them apart: accuracies do not compare")


# ------------------------------------------------------------------------------------------------ the page


def _run(
    name: str, run_dir: RunDir, records: Sequence[EpochRecord], config: Config | str, data_root: str | None
) -> Shown:
    summary = ""
    with suppress(OSError):
        summary = read_text(run_dir.summary).rstrip()
    wrong = "Left out by --no-mistakes." if data_root is None else _mistakes(name, run_dir, config, data_root)
    return Shown(str(run_dir.path), records, config, starts(run_dir.provenance), summary, wrong)


def _mistakes(name: str, run_dir: RunDir, config: Config | str, data_root: str) -> Mistakes | Reconstructions | str:
    """What the newest checkpoint gets wrong, or why nobody knows."""
    from hpcsplit.commands.evaluate import examples_of

    if isinstance(config, Config):
        for key, value in config.code().items():
            if key != "optim.name":
                return f'Not known: {key} = "{value}" is code of the user\'s, which a report does not run.'
        if config.model.task in ("regression", "language"):
            return f'Nothing to show: model.task = "{config.model.task}" has neither classes nor images.'
    print(f"{name}: test set through the network (--no-mistakes leaves it out)", flush=True)
    try:
        return examples_of(run_dir, data_root)
    except HpcsplitError as error:
        return f"Not known, since the network of a checkpoint would be needed: {error}."
