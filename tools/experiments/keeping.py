"""docs/results.md: every table that tools/reproduce has printed, with its picture and, packed, the runs behind it: a
long study goes on from them on another day or machine."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

from hpcsplit.config import load
from hpcsplit.config.sections import DataSection
from hpcsplit.run.folder import RunDir
from hpcsplit.run.provenance import starts
from hpcsplit.run.records import Records
from tools.experiments.declaring import Experiment
from tools.experiments.running import ALONE
from tools.program import sections

HEAD = """# Results

Printed by `tools/reproduce NAME --data DIR` and put together by `tools/reproduce --page`; every section says on what
hardware, with which versions and how many runs.  A difference under one percent point is claimed only from 8 seeds on,
by its 95 % interval; what has failed stands beside what holds.  The runs behind a section, without their weights, are
beside its picture: `tools/reproduce NAME --kept --show` prints it again, and without `--show` runs what is missing.
Earlier tables are in [reproduced](reproduced).
"""
PICTURE = re.compile(r"\((?:[^()]*/)?([^()/]+)\.png\)\s*\Z")  # the last line of a section
OF_A_START = ("time", "hpcsplit", "git", "python", "packages", "mpi")
OF_A_RANK = ("device", "gpu", "cpu")


def write_page(runs: Path, page: Path, experiments: list[Experiment]) -> list[str]:
    """Write the page with the sections of runs/reproduce-* in place of those of the same names; the names of these."""
    texts = {picture[1]: part for part in sections(page) if (picture := PICTURE.search(part))}
    names, found = [experiment.name for experiment in experiments], []
    for experiment in experiments:
        for table in sorted(runs.glob(f"reproduce-{experiment.name}-*/{experiment.name}.md")):
            name = table.parent.name.removeprefix("reproduce-")
            archive = archive_of(page, name)
            archive.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(table.with_suffix(".png"), archive.with_name(f"{name}.png"))
            pack(table.parent, archive)
            demoted = re.sub("^#", "##", table.read_text(encoding="utf-8"), flags=re.MULTILINE).rstrip("\n")
            texts[name] = f"{demoted}\n\n![{experiment.title}]({page.stem}/{name}.png)\n"
            found.append(name)
    if found:
        order = sorted(texts, key=lambda name: (_place(name, names), name))
        page.write_text("\n".join([HEAD, *(texts[name] for name in order)]), encoding="utf-8")
    return found


def _place(name: str, experiments: list[str]) -> int:
    """The number of the experiment that a section is of: the longest name that it begins with."""
    of = max((one for one in experiments if name.startswith(f"{one}-")), key=len, default="")
    return experiments.index(of) if of else len(experiments)


def archive_of(page: Path, name: str) -> Path:
    """The archive beside the page that shows an experiment's tables; `name` has its scale."""
    return page.parent / page.stem / f"{name}.tar.xz"


def pack(runs: Path, archive: Path) -> None:
    """Put what tables are made of into an archive: records, configuration and versions of every finished run in a
    folder, without its checkpoints and places of the machine.  The same runs make the same bytes."""
    with tarfile.open(archive, "w:xz") as tar:
        for run in map(RunDir, sorted(runs.iterdir())):
            for name, text in _kept(run).items():
                entry = tarfile.TarInfo(f"{run.path.name}/{name}")
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))


def unpack(archive: Path, runs: Path) -> list[str]:
    """Put the runs that are not in the folder yet back into it; their names."""
    before = {folder.name for folder in runs.glob("*")}
    with tarfile.open(archive) as tar:
        entries = [entry for entry in tar if Path(entry.name).parent.name not in before]
        for entry in entries:  # a file of a run's folder each; extractall is safe from Python 3.11.4 on only
            folder, name = Path(entry.name).parts
            content = tar.extractfile(entry)
            assert content
            assert folder != ".."
            (runs / folder).mkdir(parents=True, exist_ok=True)
            (runs / folder / name).write_bytes(content.read())
    return list(dict.fromkeys(Path(entry.name).parent.name for entry in entries))


def _kept(run: RunDir) -> dict[str, str]:
    """The files of a run by their names; none of one that is not finished."""
    if not run.config.exists() or len(Records(run.records).load()) != (config := load(run.config)).schedule.epochs:
        return {}
    config = replace(config, data=replace(config.data, root=DataSection().root))
    start = starts(run.provenance)[-1]
    kept = {key: start[key] for key in OF_A_START if key in start}
    kept["ranks"] = [{key: rank[key] for key in OF_A_RANK if key in rank} for rank in start.get("ranks", ())]
    files = {
        run.config.name: config.to_toml(origins=False),
        run.records.name: run.records.read_text(encoding="utf-8"),
        run.provenance.name: json.dumps({"starts": [kept]}, indent=1) + "\n",
    }
    return files | ({ALONE: ""} if (run.path / ALONE).exists() else {})
