"""A schedule that decides on the way beside fixed ratios, at equal time."""

from __future__ import annotations

from tools.reproductions.declaring import Claim, Experiment, Plane, Row, Scale, Settings
from tools.reproductions.plane import CORRECTED, CUTS, HYBRID, PIPELINED, PLANE, SMALL, shortened

METHODS: dict[str, tuple[str, Settings]] = {
    "delayed": (
        "delayed gradients, corrected",
        {"method.name": "delayed", **CORRECTED, "schedule.order": "parallel-first", "schedule.microbatches": 4},
    ),
    "penalty": ("penalty", {"method.name": "penalty", **HYBRID}),
}
RATIOS = ("1:1", "1:4", "0:1")


def rows() -> tuple[Row, ...]:
    exact = Row("exact", "exact, pipelined, M = 4", PIPELINED, 2, exact=True)
    found = [exact, *shortened(exact, (0.8, 0.6))]
    for method, (name, settings) in METHODS.items():
        for ratio in (*RATIOS, "auto"):
            label = f"{name}, {'decided on the way' if ratio == 'auto' else f'{ratio} fixed'}"
            key, own = f"{method}-{ratio.replace(':', '-')}", {**settings, "schedule.ratio": ratio}
            found.append(Row(key, label, own, 2, real=ratio == "auto"))
    return tuple(found)


AUTO = Experiment(
    name="auto",
    config="resnet110",
    title="Exact or parallel, decided on the way",
    source="the ratios of DS-SPH's tables",
    says="nothing; its ratios are fixed.",
    hardware=PLANE.hardware,
    rows=rows(),
    claims=tuple(
        Claim(
            f"{name}: at most 0.5 points below the best fixed ratio that takes no longer",
            f"{method}-auto",
            "lead_over_ratios",
            above=-0.5,
        )
        for method, (name, _) in METHODS.items()
    ),
    small=Scale(
        {**SMALL, "data.limit_train": 11_000, "data.validation": 1000, "schedule.epochs": 15}, seeds=8, cuts=CUTS
    ),
    paper=Scale(seeds=8),
    columns=("test_accuracy", "parallel_epochs", "label_signal", "seconds", "lead_over_ratios"),
    base={"method.name": "delayed", "data.validation": 5000, "schedule.ratio": "auto", "schedule.warmup": 2},
    picture=Plane("test_accuracy"),
    judged_by="test_accuracy",
    timed=3,
)
