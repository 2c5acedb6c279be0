"""Step sizes of DS-SPH's parallel epochs, one changed at a time: which of them make variables that are an epoch old
pay?  And what do younger ones bring, refreshed or in a chunked sample order?"""

from __future__ import annotations

from tools.reproductions.declaring import Claim, Experiment, Plane, Row, Scale, Settings
from tools.reproductions.plane import CUTS, EXACT, FROZEN, ONE_TO_FOUR, PLANE, SMALL

CENTRE: Settings = {
    "method.name": "al",
    "method.eta_lambda": 1.0,
    "method.eta_kappa": 0.02,
    "run.evaluate_every": 5,  # what is stopped early, exact training, has an accuracy for every epoch
    **ONE_TO_FOUR,
}
CHANGES: dict[str, tuple[str, Settings]] = {
    "beta-10": ("β = 10", {"method.beta": 10.0}),
    "beta-1000": ("β = 1000", {"method.beta": 1000.0}),
    "beta-grows": ("β from 10, doubled every parallel epoch", {"method.beta": 10.0, "method.beta_growth": 2.0}),
    "lambda-0.5": ("η_λ = 0.5", {"method.eta_lambda": 0.5}),
    "lambda-0.25": ("η_λ = 0.25", {"method.eta_lambda": 0.25}),
    "kappa-0": ("η_κ = 0: the penalty method", {"method.eta_kappa": 0.0}),
    "kappa-0.005": ("η_κ = 0.005", {"method.eta_kappa": 0.005}),
    "kappa-0.1": ("η_κ = 0.1", {"method.eta_kappa": 0.1}),
    "clip-0.1": ("gradients clipped at 0.1", {"optim.clip": 0.1}),
    "refresh-1": ("λ refreshed before every parallel epoch", {"method.refresh_every": 1}),
    "refresh-2": ("λ refreshed before every second one", {"method.refresh_every": 2}),
    **{
        f"chunk-{chunk}-{visits}": (
            f"penalty on chunks of {chunk} mini-batches, visited {visits} times",
            {"method.name": "chunked", "method.chunk": chunk, "method.visits": visits},
        )
        for chunk, visits in ((2, 2), (8, 2), (8, 3), (8, 8), (32, 2))
    },
}
SLOW: Settings = {"optim.lr": 0.01}

STEPS = Experiment(
    name="steps",
    config="resnet110",
    title="Step sizes of the augmented Lagrangian, one changed at a time",
    source="DS-SPH, section 5",
    says="no study of step sizes; β = 100 or 10, and the gaps of Table 3.",
    hardware=PLANE.hardware,
    rows=(
        Row("exact", "exact, one core", EXACT, exact=True),
        Row("centre", "β = 100, η_λ = 1, η_κ = 0.02, clipped at 1", CENTRE, 2),
        Row("frozen", "the same, frozen control", {**CENTRE, **FROZEN}, 2),
        *(Row(key, label, {**CENTRE, **settings}, 2) for key, (label, settings) in CHANGES.items()),
        Row("slow", "three times as long with a tenth of the learning rate", {**CENTRE, **SLOW}, 2, share=3.0),
        Row("exact-slow", "exact, the same, one core", {**EXACT, **SLOW}, exact=True, share=3.0),
    ),
    claims=(
        *(
            Claim(f"better than the centre: {label}", key, "test_accuracy", "centre", above=0.0)
            for key, (label, _) in CHANGES.items()
        ),
        Claim("the centre is above its frozen control", "centre", "test_accuracy", "frozen", above=0.0),
        Claim("long and slow costs at most a point", "slow", "test_accuracy", "exact-slow", above=-1.0),
    ),
    small=Scale({**SMALL, "data.limit_train": 5000, "schedule.epochs": 10}, seeds=3, cuts=CUTS),
    paper=Scale(seeds=3),
    columns=("test_accuracy", "exact_in_time", "label_signal", "violation", "seconds"),
    base={"method.name": "al"},
    picture=Plane("test_accuracy"),
    judged_by="test_accuracy",
)
