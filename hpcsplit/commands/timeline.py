"""Pictures of a simulation: what each rank does in a few steps, and how speed-up grows with the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcsplit.plan.simulate.machine import Span
from hpcsplit.plan.simulate.study import Row
from hpcsplit.report.figure import save

KINDS = {  # of work: its colour and name
    "forward": ("#4c72b0", "forward"),
    "backward": ("#dd8452", "backward"),
    "weights": ("#e7ab87", "weight gradients that waited"),
    "update": ("#8c613c", "weight step"),
    "variables": ("#55a868", "variables (ψ, λ, κ)"),
    "messages": ("#937860", "packing messages"),
    "data": ("#64b5cd", "data"),
    "link": ("#c44e52", "waiting for a link"),
    "store": ("#8172b3", "waiting for the store"),
    "wait": ("#eeeeee", "waiting for a rank"),
}
CURVES = (
    ("parallel epochs", "parallel_speed_up", "o", "#55a868"),
    ("exact epochs, pipelined", "exact_speed_up", "s", "#4c72b0"),
    ("whole schedule", "hybrid_speed_up", "^", "#dd8452"),
)


def draw(rows: Sequence[Row], timelines: Mapping[str, Sequence[Span]], path: Path, title: str) -> None:
    """Write a PNG: a panel for each timeline, one below the other, and the scaling curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.9 * len(timelines) + 5.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    heights = [*([1.0] * len(timelines)), 1.8]
    *panels, curves = figure.subplots(len(heights), 1, height_ratios=heights)
    for panel, (name, spans) in zip(panels, timelines.items(), strict=True):
        _timeline(panel, name, spans)
    _curves(curves, rows)
    save(figure, path)


def _timeline(panel: Any, name: str, spans: Sequence[Span]) -> None:
    from matplotlib.patches import Patch

    ranks, shown = 1 + max(span.rank for span in spans), []
    for kind, (colour, words) in KINDS.items():
        for rank in range(ranks):
            bars = [(1000 * s.start, 1000 * (s.end - s.start)) for s in spans if (s.kind, s.rank) == (kind, rank)]
            panel.broken_barh(bars, (rank - 0.42, 0.84), facecolors=colour)
        if any(span.kind == kind for span in spans):
            shown.append(Patch(color=colour, label=words))
    panel.legend(handles=shown, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    panel.set(title=f"{name}, {ranks} ranks", xlabel="time (ms)", ylabel="rank", ylim=(ranks - 0.5, -0.5))
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.set_xlim(left=0)


def _curves(panel: Any, rows: Sequence[Row]) -> None:
    ranks = [row.ranks for row in rows]
    panel.plot(ranks, ranks, color="0.7", linewidth=1, label="as many times as ranks")
    for label, name, mark, colour in CURVES:
        for deeper, face, style, more in ((False, colour, "-", ""), (True, "white", "--", ", deeper networks")):
            if points := [(row.ranks, getattr(row, name)) for row in rows if (row.deeper > 1) == deeper]:
                look = {"color": colour, "marker": mark, "markerfacecolor": face, "linestyle": style}
                panel.plot(*zip(*points, strict=True), label=label + more, **look)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks(ranks, [str(rank) for rank in ranks])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set(title="Speed-up over one rank's exact steps", xlabel="ranks", ylabel="times as fast")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
