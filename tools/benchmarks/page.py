"""docs/performance.md: what the benchmarks have printed last, table by table.

    tools/bench page [--runs runs]

Takes runs/bench-NAME/NAME.txt of every benchmark that has been run here, and those of bench-NAME-…, written by --out;
what the page has of the others stays.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tools.program import ROOT, sections
from tools.timing.table import options

NAMES = ("step", "serial", "hybrid", "language", "folder", "store", "wire", "scale", "start", "forecast")
HEAD = """# Performance

What `tools/bench` printed; each section begins with its command. Absolute times depend on the machine and on the hour,
ratios are taken within one round of one run.
"""


def main() -> None:
    args = options(__doc__, "page", runs=ROOT / "runs", out=ROOT / "docs" / "performance.md")
    found = [name for name in NAMES if texts_of(args.runs, name)]
    if not found:
        raise SystemExit(f"tools/bench page: no table in {args.runs}/bench-*; run tools/bench NAME first")
    there = {part.removeprefix("## ").partition(":")[0]: part for part in sections(args.out)}
    texts = there | {name: section(args.runs, name) for name in found}
    args.out.write_text("\n".join([HEAD, *(texts[name] for name in NAMES if name in texts)]), encoding="utf-8")
    print(f"{args.out}: {', '.join(found)}")


def texts_of(runs: Path, name: str) -> list[Path]:
    folders = [runs / f"bench-{name}", *sorted(runs.glob(f"bench-{name}-*"))]
    return [folder / f"{name}.txt" for folder in folders if (folder / f"{name}.txt").exists()]


def section(runs: Path, name: str) -> str:
    """A benchmark's first sentence, its explanations, and what it printed."""
    paragraphs = (importlib.import_module(f"tools.benchmarks.{name}").__doc__ or "").strip().split("\n\n")
    explained = [text for text in paragraphs[1:] if not text.startswith("    ")]
    said = [f"```\n{path.read_text(encoding='utf-8').rstrip()}\n```" for path in texts_of(runs, name)]
    return "\n\n".join([f"## {name}: {paragraphs[0].rstrip('.')}", *explained, *said]) + "\n"
