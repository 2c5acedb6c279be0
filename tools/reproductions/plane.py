"""The plane of accuracy and time (DS-SPH, Figure 5, with the methods that came after), declared.

DS-SPH: Sun et al., "A Practical Layer-Parallel Training Algorithm for Residual Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tools.reproductions.declaring import Claim, Experiment, Plane, Row, Scale, Settings

EXACT: Settings = {"method.name": "backprop"}
PIPELINED: Settings = {**EXACT, "schedule.microbatches": 4}
DELAYED: Settings = {"method.name": "delayed", "schedule.ratio": "0:1", "schedule.warmup": 0}
CORRECTED: Settings = {"method.predict": True, "method.spike": True, "method.lr_anneal": 300}
START: Settings = {**CORRECTED, "schedule.warmup": 2}
LAST: Settings = {"schedule.ratio": "2:13", "schedule.order": "parallel-first"}
TAIL: Settings = {**CORRECTED, **LAST}
PIECES: Settings = {**CORRECTED, "method.microbatches": 2}
PIECES_TAIL: Settings = {**PIECES, **LAST, "schedule.microbatches": 2}
FROZEN: Settings = {"method.frozen": True}
SCHEDULE: Settings = {"schedule.ratio": "1:4", "schedule.order": "parallel-first", "optim.clip": 1.0}
ONE_TO_FOUR: Settings = {"method.beta": 100.0, "method.downsample": 2, **SCHEDULE}
HYBRID: Settings = {**ONE_TO_FOUR, "schedule.microbatches": 4}
SPLITTING: Settings = {**SCHEDULE, "schedule.microbatches": 4}
CHUNKED: Settings = {"method.name": "chunked", **HYBRID, "method.chunk": 8, "method.visits": 2}
DATA_PARALLEL = "tools.reproductions.data_parallel"
CUTS = {2: (3,), 3: (2, 4)}  # of ResNet-14, balanced by measured time
SMALL: Settings = {"model.name": "resnet14", "data.pool": True, "data.eval_train": 500}
SHARES = (0.8, 0.6, 0.4)
VARIANTS: dict[str, tuple[str, Settings]] = {
    "replay": ("forward once more", {"method.weights": "replay"}),
    "stale": ("today's weights, kept activations", {"method.weights": "stale"}),
    "step": ("2(K-1-k) steps old", {"method.timetable": "step"}),
    "predict": ("predicted weights", {"method.predict": True}),
    "spike": ("spike compensation", {"method.spike": True}),
    "compensated": ("compensation 1", {"method.compensation": 1.0}),
    "annealed": ("learning rate annealed over 300 steps", {"method.lr_anneal": 300}),
    "through": ("epochs run through", {"method.epoch_end": "run"}),
}


def exact_rows() -> tuple[Row, ...]:
    rows = [
        Row("exact", "exact, one core", EXACT, exact=True),
        Row("exact-2", "exact, pipelined over 2 ranks, M = 4", PIPELINED, 2, exact=True),
        Row("ddp-2", "exact, data parallel on 2 ranks", EXACT, 2, exact=True, program=DATA_PARALLEL, real=True),
    ]
    return tuple(each for row in rows for each in (row, *shortened(row, SHARES)))


def shortened(row: Row, shares: Sequence[float]) -> tuple[Row, ...]:
    """The same for fewer epochs: points of its early-stopping line."""
    return tuple(
        replace(row, key=f"{row.key}-{share:.1f}", label=f"{row.label}, {share:.0%} of the epochs", share=share)
        for share in shares
    )


def delayed_rows(stages: int) -> tuple[Row, ...]:
    def row(key: str, label: str, settings: Settings) -> Row:
        text = f"delayed, {stages} stages{label}"
        return Row(f"{key}-{stages}", text, {**DELAYED, **settings}, stages)

    return (
        row("delayed", "", {}),
        row("corrected", ", predicted weights, spike compensation and annealed learning rate", CORRECTED),
        row("start", ", the same and an exact start of 2 epochs in 15", START),
        row("tail", ", the same and an exact tail of 2 epochs in 15", TAIL),
        row("pieces", ", corrected, M = 2", PIECES),
        row("pieces-tail", ", corrected, M = 2, and an exact tail of 2 epochs in 15", PIECES_TAIL),
        row("frozen", ", frozen control", FROZEN),
        *(row(key, f", {label}", settings) for key, (label, settings) in VARIANTS.items()),
    )


def claims() -> tuple[Claim, ...]:
    def gap(stages: int, points: float, key: str, text: str) -> Claim:
        return Claim(
            f"{text} in {stages} stages cost at most {points} points of test accuracy",
            f"{key}-{stages}",
            "test_accuracy",
            "exact",
            above=-points,
        )

    measured = [row for row in ROWS if not row.exact and row.stages == 2]
    return (
        *(
            gap(stages, points, key, text)
            for key, text in (
                ("delayed", "delayed gradients"),
                ("corrected", "corrected delayed gradients"),
                ("pieces", "corrected delayed gradients, M = 2,"),
            )
            for stages, points in ((2, 0.5), (3, 1.0))
        ),
        *(
            gap(stages, 0.3, key, text)
            for key, text in (
                ("start", "corrected delayed gradients with an exact start"),
                ("tail", "corrected delayed gradients with an exact tail"),
                ("pieces-tail", "corrected delayed gradients, M = 2, with an exact tail"),
            )
            for stages in (2, 3)
        ),
        *(
            Claim(
                f"delayed gradients teach the stages before the last one: {n} stages are above the frozen control",
                f"delayed-{n}",
                "test_accuracy",
                f"frozen-{n}",
                above=0.0,
            )
            for n in (2, 3)
        ),
        *(
            Claim(f"above the early-stopping line: {row.label}", row.key, "lead_over_line", above=0.0)
            for row in measured
        ),
    )


ROWS = (
    *exact_rows(),
    *delayed_rows(2),
    *delayed_rows(3),
    Row("penalty-2", "1:4 hybrid, penalty, M = 4", {"method.name": "penalty", **HYBRID}, 2),
    Row("penalty-1-1", "1:1 hybrid, penalty, M = 4", {"method.name": "penalty", **HYBRID, "schedule.ratio": "1:1"}, 2),
    Row("al-2", "1:4 hybrid, augmented Lagrangian, M = 4", {"method.name": "al", **HYBRID}, 2),
    Row("gsadmm-2", "1:4 hybrid, gsADMM, M = 4", {"method.name": "gsadmm", **SPLITTING}, 2),
    Row("gsam-2", "1:4 hybrid, gsAM, M = 4", {"method.name": "gsam", **SPLITTING}, 2),
    Row("chunked-2", "1:4 hybrid, penalty on chunks of 8 mini-batches, visited twice, M = 4", CHUNKED, 2),
    Row("auxnet-2", "1:4 hybrid, auxiliary networks, M = 4", {"method.name": "auxnet", **HYBRID}, 2),
    Row("frozen-hybrid-2", "1:4 hybrid, frozen control", {"method.name": "penalty", **HYBRID, **FROZEN}, 2),
)

PLANE = Experiment(
    name="plane",
    config="resnet110",
    title="Test accuracy against training time",
    source="DS-SPH, Figure 5, with delayed gradients",
    says="the hybrid's points lie above the line of exact training that is stopped early.",
    hardware="the paper trains ResNet-110 for 200 epochs on V100 GPUs",
    rows=ROWS,
    claims=claims(),
    small=Scale(
        {
            **SMALL,
            "data.limit_train": 10_000,
            "schedule.epochs": 15,
            "run.evaluate_every": 5,
        },
        seeds=8,
        cuts=CUTS,
    ),
    paper=Scale(seeds=8),
    columns=("test_accuracy", "label_signal", "violation", "seconds", "lead_over_line"),
    base=DELAYED,
    picture=Plane("test_accuracy"),
    judged_by="test_accuracy",
    timed=3,
    notes=(
        "every row is trained to the end of its own learning-rate schedule; the line joins exact training for fewer "
        "epochs on no more ranks",
        "with M = 4 a mini-batch of 128 goes through the stages in four micro-batches: in the exact epochs of exact "
        "training and of hybrids, in all epochs of delayed gradients; BatchNorm normalises over 32 samples then, over "
        "64 with M = 2 and in data parallel",
        "pdADMM and dlADMM train layer by layer, on the multilayer perceptron only: their own tables have them",
        "data parallel is torch's DistributedDataParallel over gloo with the same mini-batches and augmentation",
    ),
)
