"""The results as text: kind x moment, each cell tried / ended in time / continued to the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tools.fault_campaign.moments import ANY_TIME, DAMAGE, MOMENTS
from tools.fault_campaign.striking import DISK, KINDS, STALLS
from tools.fault_campaign.trial import Result

SPEAKING = ("exception", "thread exception", *DISK, *STALLS)


def table(results: Sequence[Result]) -> str:
    """The table, what went wrong, and the slowest ends."""
    moments = [*MOMENTS, ANY_TIME, *(f"{what} between the runs" for what in DAMAGE)]
    moments = [m for m in moments if any(r.fault.moment == m for r in results)]
    kinds = [kind for kind in KINDS if any(r.fault.kind == kind for r in results)]
    rows = [["tried/in time/equal", *kinds, "all"]]
    for moment in moments:
        here = [r for r in results if r.fault.moment == moment]
        rows.append([moment, *(_cell([r for r in here if r.fault.kind == kind]) for kind in kinds), _cell(here)])
    rows.append(["all", *(_cell([r for r in results if r.fault.kind == kind]) for kind in kinds), _cell(results)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    by_stages = {
        k: _cell([r for r in results if r.fault.stages == k]) for k in sorted({r.fault.stages for r in results})
    }
    lines += ["", "by stages: " + ", ".join(f"{k}: {cell}" for k, cell in by_stages.items())]
    speaking = [r for r in results if r.struck and r.fault.kind in SPEAKING]
    if speaking:
        named = sum(r.named for r in speaking)
        lines.append(f"rank named: {named} of {len(speaking)} where a rank can speak ({', '.join(SPEAKING)})")
    missed = sum(not r.struck for r in results)
    if missed:
        lines.append(f"{missed} faults did not come: the run had ended before")
    lines += [f"BAD: {r.fault}: {'; '.join(r.notes)}" for r in results if not r.good]
    return "\n".join([*lines, _slowest(results)])


def _cell(results: Sequence[Result]) -> str:
    if not results:
        return ""
    count: Callable[[Callable[[Result], bool]], int] = lambda test: sum(map(test, results))  # noqa: E731
    return f"{len(results)}/{count(lambda r: r.in_time)}/{count(lambda r: r.equal)}"


def _slowest(results: Sequence[Result]) -> str:
    """The longest time from a fault to the end of all processes, by kind."""
    slowest = {
        kind: max((r.seconds for r in results if r.fault.kind == kind and r.struck), default=None) for kind in KINDS
    }
    return "slowest end (s): " + ", ".join(f"{kind} {s:.1f}" for kind, s in slowest.items() if s is not None)
