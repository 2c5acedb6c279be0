"""The tables and figures of DS-SPH on image classification, declared.

Sun et al., "A Practical Layer-Parallel Training Algorithm for Residual Networks".  A cell of the paper is "test
accuracy @ speed-up"; its memory is what `hpcsplit plan` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from tools.reproductions.declaring import Claim, Curves, Experiment, Row, Scale, Settings
from tools.reproductions.plane import EXACT, FROZEN

PARALLEL: Settings = {"schedule.ratio": "0:1", "schedule.warmup": 1, "schedule.order": "parallel-first"}
HYBRID: Settings = {**PARALLEL, "schedule.ratio": "1:4"}
FULL: Settings = {"method.downsample": 1}
DOWN: Settings = {"method.downsample": 2}
SELDOM: Settings = {"run.evaluate_every": 5}  # exact training, which is stopped early, has an accuracy for every epoch
METHODS = {"p": "penalty", "al": "al"}
HARDWARE = "the paper has one V100 a stage"
COLUMNS = ("test_accuracy", "label_signal", "violation", "seconds", "run_speedup")
NOTES = (
    "the paper's speed-ups are those of its formula (11), without refresh; ours are timings, with it",
    "the first epoch of every row is exact, the start of λ needs weights that have seen something",
)
R110_CUTS: dict[int, tuple[int, ...]] = {
    1: (),
    2: (28,),
    3: (19, 37),
}  # in the middle of the second group; after the first and the second
WRN_CUTS: dict[int, tuple[int, ...]] = {1: (), 3: (7, 13)}
SMALL: Settings = {
    "data.name": "cifar10",
    "data.pool": True,
    "data.limit_train": 2_000,
    "data.limit_test": 2_000,
    "data.eval_train": 500,
    "schedule.epochs": 15,
    "optim.clip": 1.0,
}
SMALL_RESNET = Scale({**SMALL, "model.name": "resnet8"}, seeds=3, cuts={1: (), 2: (2,), 3: (2, 3)})
SMALL_WRN = Scale({**SMALL, "model.name": "wrn-10-2"}, seeds=3, cuts={1: (), 3: (2, 3)})
SHORT_WRN = replace(SMALL_WRN, settings={**SMALL_WRN.settings, "schedule.epochs": 10})


def serial(augment: bool, paper: str) -> Row:
    key, text = ("serial", "with") if augment else ("serial-plain", "without")
    settings = {**EXACT, "data.augment": augment}
    return Row(key, f"exact, one core, {text} augmentation", settings, exact=True, paper=paper)


VARIANTS: dict[str, Settings] = {
    "": {**PARALLEL, **FULL, **SELDOM},
    "ds-": {**PARALLEL, **DOWN, **SELDOM},
    "sph-": {**HYBRID, **FULL, **SELDOM},
    "ds-sph-": {**HYBRID, **DOWN, **SELDOM},
}


def variants(papers: Mapping[str, tuple[str, str]], stages: int) -> Iterable[Row]:
    """Rows of Table 1, 2 or 5, from the paper's cells (penalty, AL) by "", "ds-", "sph-" and "ds-sph-"."""
    for prefix, by_method in papers.items():
        for method, paper in zip(METHODS, by_method, strict=True):
            yield Row(
                f"{prefix}{method}-{stages}",
                f"{prefix.upper()}{method.upper()}, {stages} stages",
                {"method.name": METHODS[method], **VARIANTS[prefix]},
                stages,
                serial="serial",
                paper=paper,
            )


def frozen(stages: int) -> Row:
    settings = {"method.name": "penalty", **VARIANTS["ds-sph-"], **FROZEN}
    return Row(f"frozen-{stages}", f"DS-SPH-P, {stages} stages, frozen control", settings, stages, serial="serial")


def above(row: str, rival: str, text: str, by: float = 0.0) -> Claim:
    return Claim(text, row, "test_accuracy", rival, above=by)


def experiment(
    what: str,
    config: str,
    title: str,
    says: str,
    rows: Iterable[Row],
    claims: Sequence[Claim],
    small: Scale,
    cuts: Mapping[int, tuple[int, ...]],
    *,
    columns: tuple[str, ...] = COLUMNS,
    base: Settings = MappingProxyType({}),
    curves: tuple[str, ...] = ("test_accuracy",),
    notes: tuple[str, ...] = NOTES,
) -> Experiment:
    """`what` is "table-1", "figure-8" …; `cuts` are the paper's."""
    return Experiment(
        name=f"sph-{what}",
        config=f"sph-{config}",
        title=title,
        source=f"DS-SPH, {what.replace('-', ' ').capitalize()}",
        says=says,
        hardware=HARDWARE,
        rows=tuple(rows),
        claims=tuple(claims),
        small=small,
        paper=Scale(seeds=3, cuts=cuts),
        columns=columns,
        base=base,
        picture=Curves(curves),
        judged_by="test_accuracy",
        notes=notes,
    )


# ------------------------------------------------------------------------------------------------ Tables 1 and 2


def table_claims(stages: tuple[int, ...]) -> tuple[Claim, ...]:
    claims = [above("serial", "serial-plain", "augmentation pays in exact training")]
    for k in stages:
        for method in METHODS:
            name = method.upper()
            claims += [
                above("serial-plain", f"{method}-{k}", f"{name} in {k} stages is below exact training"),
                above(f"sph-{method}-{k}", f"{method}-{k}", f"the hybrid is above {name} alone in {k} stages"),
                above(f"{method}-{k}", f"ds-{method}-{k}", f"downsampling costs {name} accuracy in {k} stages"),
                above(
                    f"ds-sph-{method}-{k}",
                    f"sph-{method}-{k}",
                    f"downsampling costs the {name} hybrid at most a point in {k} stages",
                    by=-1.0,
                ),
            ]
        claims += [
            above(
                f"sph-al-{k}", f"sph-p-{k}", f"the AL hybrid is not a point below the penalty one in {k} stages", -1.0
            ),
            above(f"ds-sph-p-{k}", f"frozen-{k}", f"(ours) DS-SPH-P teaches the first stages: {k} stages"),
        ]
    return tuple(claims)


TABLE_1 = experiment(
    "table-1",
    "resnet110",
    "ResNet-110 on CIFAR-10 in two and three stages",
    "alone the methods lose 8 points, in a 1:4 hybrid 2; downsampling costs less than a point.",
    [
        serial(False, "86.4"),
        serial(True, "93.7"),
        *variants(
            {
                "": ("85.0 @ 1.41", "85.7 @ 1.36"),
                "ds-": ("84.2 @ 1.53", "84.1 @ 1.42"),
                "sph-": ("91.8 @ 1.30", "91.8 @ 1.27"),
                "ds-sph-": ("91.8 @ 1.38", "91.6 @ 1.31"),
            },
            2,
        ),
        frozen(2),
        *variants(
            {
                "": ("84.5 @ 1.56", "85.2 @ 1.49"),
                "ds-": ("83.7 @ 1.69", "83.7 @ 1.58"),
                "sph-": ("91.3 @ 1.40", "91.4 @ 1.35"),
                "ds-sph-": ("91.8 @ 1.48", "91.5 @ 1.41"),
            },
            3,
        ),
        frozen(3),
    ],
    table_claims((2, 3)),
    SMALL_RESNET,
    R110_CUTS,
)

TABLE_2 = experiment(
    "table-2",
    "wrn-40-10",
    "WideResNet-40-10 on CIFAR-100 in three stages",
    "alone the methods lose 15 points, in a 1:4 hybrid 4; downsampling makes the hybrid better.",
    [
        serial(False, "66.53"),
        serial(True, "80.71"),
        *variants(
            {
                "": ("64.91 @ 1.89", "64.80 @ 1.67"),
                "ds-": ("61.06 @ 2.19", "60.84 @ 1.92"),
                "sph-": ("75.25 @ 1.52", "76.25 @ 1.42"),
                "ds-sph-": ("76.23 @ 1.76", "76.84 @ 1.62"),
            },
            3,
        ),
        frozen(3),
    ],
    table_claims((3,)),
    SHORT_WRN,
    WRN_CUTS,
)

# ------------------------------------------------------------------------------------------------ Tables 3 and 4


def ratio_rows(papers: Mapping[str, Mapping[str, tuple[str, str]]]) -> Iterable[Row]:
    """{"sph-": {"1:4": (penalty, AL), …}, "ds-sph-": …} in three stages."""
    for prefix, by_ratio in papers.items():
        for ratio, by_method in by_ratio.items():
            for method, paper in zip(METHODS, by_method, strict=True):
                yield Row(
                    f"{prefix}{method}-{ratio.replace(':', '-')}",
                    f"{prefix.upper()}{method.upper()}, {ratio}",
                    {"method.name": METHODS[method], **VARIANTS[prefix], "schedule.ratio": ratio},
                    3,
                    serial="serial",
                    paper=paper,
                )


def ratio_claims() -> tuple[Claim, ...]:
    claims = []
    for prefix in ("sph-", "ds-sph-"):
        for method in METHODS:
            name = f"{prefix}{method}"
            claims += [
                above(f"{name}-4-1", f"{name}-1-4", f"{name.upper()}: more exact epochs, more accuracy (4:1 over 1:4)"),
                above(f"{name}-4-1", "serial", f"{name.upper()} 4:1 is not a point below exact training", -1.0),
                Claim(
                    f"{name.upper()}: fewer exact epochs, less time (1:4 before 4:1)",
                    f"{name}-1-4",
                    "seconds",
                    f"{name}-4-1",
                    below=0.0,
                    relative=True,
                ),
            ]
    return tuple(claims)


TABLE_3 = experiment(
    "table-3",
    "resnet110",
    "ResNet-110 on CIFAR-10: the hybrid ratio",
    "a larger share of exact epochs closes the gap and costs speed.",
    [
        serial(True, "93.70"),
        *ratio_rows(
            {
                "sph-": {
                    "1:4": ("91.25 @ 1.40", "91.38 @ 1.35"),
                    "2:3": ("92.36 @ 1.27", "92.64 @ 1.24"),
                    "3:2": ("92.85 @ 1.16", "93.13 @ 1.14"),
                    "4:1": ("93.18 @ 1.07", "93.75 @ 1.07"),
                },
                "ds-sph-": {
                    "1:4": ("91.75 @ 1.48", "91.54 @ 1.41"),
                    "2:3": ("92.79 @ 1.32", "92.58 @ 1.28"),
                    "3:2": ("93.58 @ 1.19", "93.11 @ 1.17"),
                    "4:1": ("93.62 @ 1.08", "93.66 @ 1.08"),
                },
            }
        ),
    ],
    ratio_claims(),
    SMALL_RESNET,
    R110_CUTS,
)

TABLE_4 = experiment(
    "table-4",
    "wrn-40-10",
    "WideResNet-40-10 on CIFAR-100: the hybrid ratio",
    TABLE_3.says,
    [
        serial(True, "80.70"),
        *ratio_rows(
            {
                "sph-": {
                    "1:4": ("75.25 @ 1.52", "76.25 @ 1.42"),
                    "2:3": ("78.02 @ 1.34", "78.32 @ 1.28"),
                    "3:2": ("79.40 @ 1.21", "79.63 @ 1.17"),
                    "4:1": ("80.00 @ 1.09", "80.67 @ 1.08"),
                },
                "ds-sph-": {
                    "1:4": ("76.23 @ 1.76", "76.84 @ 1.62"),
                    "2:3": ("78.34 @ 1.48", "78.08 @ 1.40"),
                    "3:2": ("80.22 @ 1.28", "79.97 @ 1.24"),
                    "4:1": ("80.69 @ 1.12", "80.37 @ 1.11"),
                },
            }
        ),
    ],
    ratio_claims(),
    SHORT_WRN,
    WRN_CUTS,
)

# ------------------------------------------------------------------------------------------------ Figures 8 and 9


def learning_curves(
    number: int, config: str, network: str, order: str, words: str, small: Scale, cuts: Mapping[int, tuple[int, ...]]
) -> Experiment:
    names = {"p": "penalty", "al": "augmented Lagrangian"}
    settings = {**HYBRID, **FULL, "schedule.order": order}
    return experiment(
        f"figure-{number}",
        config,
        f"Losses and violation of {network} in three stages, {words}",
        "the violation is larger for the penalty method than for AL with the same β, and jumps where exact epochs "
        "begin.",
        [
            serial(True, "-"),
            *(
                Row(key, f"1:4 hybrid, {text}", {"method.name": METHODS[key], **settings}, 3, serial="serial")
                for key, text in names.items()
            ),
        ],
        [
            Claim("AL violates the constraints less than the penalty method", "al", "violation", "p", below=0.0),
            above("al", "p", "AL is not a point below the penalty method", -1.0),
        ],
        small,
        cuts,
        base={"schedule.order": order},
        curves=("loss", "test_loss", "violation"),
    )


FIGURE_8 = learning_curves(
    8,
    "resnet110",
    "ResNet-110 on CIFAR-10",
    "alternate",
    "serial and parallel epochs alternating",
    SMALL_RESNET,
    R110_CUTS,
)
FIGURE_9 = learning_curves(
    9, "wrn-40-10", "WideResNet-40-10 on CIFAR-100", "parallel-first", "all parallel epochs first", SMALL_WRN, WRN_CUTS
)

# ------------------------------------------------------------------------------------------------ Table 5


def loss_below(row: str, rival: str, text: str, share: float = 0.0) -> Claim:
    """The test loss is below the rival's, or above it by no more than `share` percent."""
    return Claim(text, row, "test_loss", rival, below=share, relative=True)


TABLE_5 = experiment(
    "table-5",
    "vae",
    "ResNet-VAE on MNIST: reconstruction in three stages",
    "downsampling costs about 7 % of reconstruction loss, the hybrid regains it; no augmentation is needed.",
    [
        Row("serial", "exact, one core", EXACT, exact=True, paper="0.126"),
        *variants(
            {
                "": ("0.149 @ 2.33", "0.129 @ 2.18"),
                "ds-": ("0.160 @ 2.41", "0.137 @ 2.25"),
                "ds-sph-": ("0.127 @ 1.88", "0.128 @ 1.80"),
            },
            3,
        ),
        frozen(3),
    ],
    [
        loss_below("serial", "p-3", "the penalty method alone is behind exact training"),
        loss_below("al-3", "p-3", "AL is ahead of the penalty method"),
        loss_below("p-3", "ds-p-3", "downsampling costs the penalty method"),
        loss_below("ds-sph-p-3", "ds-p-3", "the hybrid is ahead of the penalty method alone"),
        loss_below("ds-sph-p-3", "serial", "the DS-SPH-P hybrid is within 5 % of exact training", 5.0),
        loss_below("ds-sph-al-3", "serial", "the DS-SPH-AL hybrid is within 5 % of exact training", 5.0),
        loss_below("ds-sph-p-3", "frozen-3", "(ours) DS-SPH-P teaches the first stages"),
    ],
    Scale(
        {
            "model.name": "resnet8-vae",
            "data.limit_train": 3_000,
            "data.limit_test": 1_000,
            "data.eval_train": 500,
            "schedule.epochs": 10,
            "optim.clip": 1.0,
        },
        seeds=3,
        cuts={1: (), 3: (2, 3)},
    ),
    {1: (), 3: (19, 37)},
    columns=("test_loss", "label_signal", "violation", "seconds", "run_speedup"),
    curves=("test_loss", "violation"),
    notes=(*NOTES, "the loss is the mean square error of normalised pixels; the paper does not say its unit"),
)

SPH = (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, FIGURE_8, FIGURE_9)
