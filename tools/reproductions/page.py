"""docs/results.md: every table that tools/reproduce has printed, with its picture and the runs behind it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tools.pages import sections
from tools.reproductions.declaring import Experiment
from tools.reproductions.keeping import archive_of, pack

HEAD = """# Results

Printed by `tools/reproduce NAME --data DIR` and put together by `tools/reproduce --page`; every section says on what
hardware, with which versions and how many runs.  A difference under one percent point is claimed only from 8 seeds on,
by its 95 % interval; what has failed stands beside what holds.  The runs behind a section, without their weights, are
beside its picture: `tools/reproduce NAME --kept --show` prints it again, and without `--show` runs what is missing.
Earlier tables are in [reproduced](reproduced).
"""
PICTURE = re.compile(r"\((?:[^()]*/)?([^()/]+)\.png\)\s*\Z")  # the last line of a section


def write_page(runs: Path, page: Path, experiments: list[Experiment]) -> list[str]:
    """Write the page with the sections of runs/reproduce-* in place of those of the same names; the names of these."""
    texts, found = _sections(page), []
    pictures = page.parent / page.stem
    for experiment in experiments:
        for table in sorted(runs.glob(f"reproduce-{experiment.name}-*/{experiment.name}.md")):
            name = table.parent.name.removeprefix("reproduce-")
            pictures.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(table.with_suffix(".png"), pictures / f"{name}.png")
            pack(table.parent, archive_of(page, name))
            text = table.read_text(encoding="utf-8")
            demoted = "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())
            texts[name] = f"{demoted}\n\n![{experiment.title}]({page.stem}/{name}.png)\n"
            found.append(name)
    if found:
        names = [experiment.name for experiment in experiments]
        order = sorted(texts, key=lambda name: (_place(name, names), name))
        page.write_text("\n".join([HEAD, *(texts[name] for name in order)]), encoding="utf-8")
    return found


def _sections(page: Path) -> dict[str, str]:
    """What the page has already, by the names of the pictures at the sections' ends."""
    return {picture[1]: part for part in sections(page) if (picture := PICTURE.search(part))}


def _place(name: str, experiments: list[str]) -> int:
    """The number of the experiment that a section is of: the longest name that it begins with."""
    of = max((one for one in experiments if name.startswith(f"{one}-")), key=len, default="")
    return experiments.index(of) if of else len(experiments)
