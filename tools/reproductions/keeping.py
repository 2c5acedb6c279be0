"""The runs behind docs/results.md, packed beside it: a long study goes on from them on another day or machine."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

from hpcsplit.config import load
from hpcsplit.config.sections import DataSection
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import Records
from tools.reproductions.running import ALONE

OF_A_START = ("time", "hpcsplit", "git", "python", "packages", "mpi")
OF_A_RANK = ("device", "gpu", "cpu")


def archive_of(page: Path, name: str) -> Path:
    """The archive beside the page that shows an experiment's tables; `name` has its scale."""
    return page.parent / page.stem / f"{name}.tar.xz"


def pack(runs: Path, archive: Path) -> list[str]:
    """Put what tables are made of into an archive: records, configuration and versions of every finished run in a
    folder, without its checkpoints and places of the machine.  The same runs make the same bytes.

    Returns:
        The runs' names.
    """
    found = [folder for folder in sorted(runs.iterdir()) if _finished(folder)]
    with tarfile.open(archive, "w:xz") as tar:
        for folder in found:
            for name, text in _kept(RunDir(folder)).items():
                entry = tarfile.TarInfo(f"{folder.name}/{name}")
                content = text.encode()
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return [folder.name for folder in found]


def unpack(archive: Path, runs: Path) -> list[str]:
    """Put the runs that are not in the folder yet back into it.

    Returns:
        Their names.
    """
    before = {folder.name for folder in runs.glob("*")}
    put_back: dict[str, None] = {}
    with tarfile.open(archive) as tar:
        for entry in tar:
            folder, name = entry.name.split("/")
            content = tar.extractfile(entry)
            if folder in before or content is None:
                continue
            (runs / folder).mkdir(parents=True, exist_ok=True)
            (runs / folder / name).write_bytes(content.read())
            put_back[folder] = None
    return list(put_back)


def _finished(folder: Path) -> bool:
    run = RunDir(folder)
    return run.config.exists() and len(Records(run.records).load()) == load(run.config).schedule.epochs


def _kept(run: RunDir) -> dict[str, str]:
    """The files of a run by their names."""
    config = load(run.config)
    config = replace(config, data=replace(config.data, root=DataSection().root))
    start = run.starts()[-1]
    kept = {key: start[key] for key in OF_A_START if key in start}
    kept["ranks"] = [{key: rank[key] for key in OF_A_RANK if key in rank} for rank in start.get("ranks", ())]
    files = {
        run.config.name: config.to_toml(origins=False),
        run.records.name: run.records.read_text(encoding="utf-8"),
        run.provenance.name: json.dumps({"starts": [kept]}, indent=1) + "\n",
    }
    return files | ({ALONE: ""} if (run.path / ALONE).exists() else {})
