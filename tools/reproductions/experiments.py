"""The experiments of the papers, declared: rows, scales, claims.  What a row does not say is in the file in jobs/.

TSSM: Wang et al., "Tunable Subnetwork Splitting for Model-parallelism of Neural Network Training", 2020.
pdADMM slides: Wang et al., "Toward Model Parallelism for Deep Neural Network based on Gradient-free ADMM Framework",
ICDM 2020.
"""

from __future__ import annotations

from typing import Any

from tools.reproductions.augmentation import FIGURE_4
from tools.reproductions.auto import AUTO
from tools.reproductions.declaring import Against, Claim, Curves, Experiment, Row, Scale, Settings
from tools.reproductions.plane import PLANE
from tools.reproductions.sph import SPH
from tools.reproductions.steps import STEPS

# ------------------------------------------------------------------------------------------------ what is trained

SGD: Settings = {"method.name": "backprop", "optim.name": "sgd", "optim.lr": 0.01}
ADAM: Settings = {"method.name": "backprop", "optim.name": "adam", "optim.lr": 0.001}
IN_PIECES: Settings = {"schedule.microbatches": 4}
PIPELINED: Settings = {**ADAM, **IN_PIECES}
GSADMM: Settings = {"method.name": "gsadmm"}
GSAM: Settings = {"method.name": "gsam"}
FROZEN: Settings = {"method.frozen": True}
PRINTED: Settings = {
    **GSADMM,
    "method.scaling": "paper",
    "method.backtracking": False,
    "method.alpha": 1.0,
    "method.rho": 1.0,
    "method.tau_2": 100.0,
}
WHOLE_SET: Settings = {"method.update": "set"}
HYBRID: Settings = {"schedule.ratio": "1:3", "schedule.warmup": 1}
DLADMM: Settings = {"method.name": "dladmm", "method.rho": 1e-6, "data.batch_size": 0}
PDADMM: Settings = {"method.name": "pdadmm"}


def full_batch(optimizer: str, lr: float) -> dict[str, Any]:
    """Exact gradients of all samples at once, as the pdADMM slides compare with."""
    return {"method.name": "backprop", "optim.name": optimizer, "optim.lr": lr, "data.batch_size": 0}


ACCURACY_COLUMNS = ("train_accuracy", "test_accuracy", "exact_in_time", "label_signal", "violation")
TIME_COLUMNS = ("seconds", "epoch_seconds")

TSSM_HARDWARE = "the paper has a Xeon CPU and a GTX 1080 Ti GPU"
SLIDES_HARDWARE = "the slides do not say"

# ------------------------------------------------------------------------------------------------ TSSM, Figure 1

FEED_FORWARD: Settings = {"model.name": "mlp"}
CNN: Settings = {"model.name": "cnn", "schedule.epochs": 200}
FIGURE_1: dict[str, Settings] = {
    "mnist": {**FEED_FORWARD, "data.name": "mnist", "data.limit_train": 55_000},
    "fashion_mnist": {**FEED_FORWARD, "data.name": "fashion_mnist"},
    "kmnist": {**FEED_FORWARD, "data.name": "kmnist"},
    "cifar10": {**CNN, "data.name": "cifar10"},
    "cifar100": {**CNN, "data.name": "cifar100"},
}


def figure_1_rows(data: str) -> tuple[Row, ...]:
    def row(key: str, label: str, settings: Settings, stages: int = 1, exact: bool = False, paper: str = "") -> Row:
        return Row(f"{data}-{key}", label, {**FIGURE_1[data], **settings}, stages, data, exact, paper=paper)

    return (
        row("sgd", "SGD 0.01", SGD, exact=True, paper="almost 100 %"),
        row("adam", "Adam 0.001", ADAM, exact=True, paper="almost 100 %"),
        row("adam-2", "Adam 0.001, pipelined over 2 ranks", PIPELINED, 2, exact=True),
        row("gsadmm", "gsADMM, per sample", GSADMM, 2, paper="almost 100 %"),
        row("gsam", "gsAM, per sample", GSAM, 2, paper='"almost identical" to gsADMM'),
        row("printed", "gsADMM with the printed 1/M, α = ρ = 1, τ₂ = 100, Adam", PRINTED, 2, paper="almost 100 %"),
        row("printed-sgd", "the same, SGD with τ₁ = 100", {**PRINTED, "optim.name": "sgd", "optim.lr": 0.01}, 2),
        row("printed-set", "the same, Adam, p, q, u of all samples after an epoch", {**PRINTED, **WHOLE_SET}, 2),
        row("frozen", "gsADMM, frozen control", {**GSADMM, **FROZEN}, 2),
        row("printed-frozen", "gsADMM with the printed 1/M, frozen control", {**PRINTED, **FROZEN}, 2),
        row("dladmm", "dlADMM, ρ = 1e-6, full batch", {**DLADMM, **FEED_FORWARD}, paper="the lowest"),
    )


def figure_1_claims(data: str) -> tuple[Claim, ...]:
    def claim(text: str, row: str, rival: str = "", *, above: float | None = None, below: float | None = None) -> Claim:
        name = f"{data}-{rival}" if rival else ""
        return Claim(f"{data}: {text}", f"{data}-{row}", "train_accuracy", name, above, below)

    return (
        claim("gsADMM reaches 99 % training accuracy", "gsadmm", above=99.0),
        claim("gsADMM is not a point below SGD", "gsadmm", "sgd", above=-1.0),
        claim("gsADMM is not a point below Adam", "gsadmm", "adam", above=-1.0),
        claim("gsAM is within a point of gsADMM", "gsam", "gsadmm", above=-1.0, below=1.0),
        claim("dlADMM is below SGD", "dladmm", "sgd", below=0.0),
        claim("dlADMM is below gsADMM", "dladmm", "gsadmm", below=0.0),
        claim("(ours) gsADMM teaches the first stage: it is above its frozen control", "gsadmm", "frozen", above=0.0),
        claim("(ours) so does gsADMM with the printed 1/M", "printed", "printed-frozen", above=0.0),
        Claim(
            f"{data}: (ours) gsADMM is above exact training stopped at the same time",
            f"{data}-gsadmm",
            "lead_in_time",
            above=0.0,
        ),
    )


TSSM_FIGURE_1 = Experiment(
    name="tssm-figure-1",
    config="tssm",
    title="Training accuracy with two subnetworks on five data sets",
    source="TSSM, Figure 1 and section 3.2.1",
    says="TSSM with two subnetworks reaches almost 100 % training accuracy on every data set, as SGD and Adam do; gsAM "
    "is almost identical to gsADMM; dlADMM is the lowest everywhere. The figure prints no numbers.",
    hardware=TSSM_HARDWARE,
    rows=tuple(row for data in FIGURE_1 for row in figure_1_rows(data)),
    claims=tuple(claim for data in FIGURE_1 for claim in figure_1_claims(data)),
    small=Scale({"schedule.epochs": 12, "data.limit_train": 10_000}, seeds=3, groups=("fashion_mnist",)),
    paper=Scale(),
    columns=(*ACCURACY_COLUMNS, *TIME_COLUMNS),
    notes=(
        "per sample: α = ρ = τ₂ = 0.1, and the variables of a sample follow its own loss, not 1/M of it",
        "the CIFAR sets have 50,000 training images, the paper says 60,000",
        "on the CIFAR sets dlADMM, which knows fully connected layers only, trains the feed-forward network",
        "the feed-forward network starts from N(0, 2 / fan-in)",
    ),
)

# ------------------------------------------------------------------------------------------------ TSSM, stages

STAGES = (2, 3, 4)


def stage_rows(paper: dict[str, str]) -> tuple[Row, ...]:
    """gsADMM, its frozen control and gsAM in two, three and four stages."""
    return tuple(
        Row(f"{key}-{stages}", f"{label}, {stages} stages", settings, stages, paper=paper.get(f"{key}-{stages}", ""))
        for key, label, settings in (
            ("gsadmm", "gsADMM", GSADMM),
            ("gsam", "gsAM", GSAM),
            ("printed", "gsADMM with the printed 1/M, α = ρ = 1, τ₂ = 100", PRINTED),
            ("frozen", "gsADMM, frozen control", {**GSADMM, **FROZEN}),
            ("printed-frozen", "gsADMM with the printed 1/M, frozen control", {**PRINTED, **FROZEN}),
        )
        for stages in STAGES
    )


def stage_claims() -> tuple[Claim, ...]:
    def claim(text: str, row: str, rival: str = "", *, above: float) -> Claim:
        return Claim(text, row, "train_accuracy", rival, above)

    return tuple(
        each
        for stages in STAGES
        for each in (
            claim(f"gsADMM in {stages} stages reaches 99 % training accuracy", f"gsadmm-{stages}", above=99.0),
            claim(f"gsAM in {stages} stages reaches 99 % training accuracy", f"gsam-{stages}", above=99.0),
            claim(
                f"(ours) gsADMM in {stages} stages is above its frozen control",
                f"gsadmm-{stages}",
                f"frozen-{stages}",
                above=0.0,
            ),
        )
    )


TSSM_STAGES = Experiment(
    name="tssm-stages",
    config="tssm",
    title="Training accuracy of the feed-forward network in two, three and four stages",
    source="TSSM, section 3.2 and Theorem 1",
    says="Nearly 100 % training accuracy for two, three and four subnetworks (said of the ResNet-like network); by "
    "Theorem 1 more subnetworks relax more and cost accuracy.",
    hardware=TSSM_HARDWARE,
    rows=(
        Row("adam", "Adam 0.001", ADAM, exact=True, paper="almost 100 %"),
        Row("adam-2", "Adam 0.001, pipelined over 2 ranks", PIPELINED, 2, exact=True),
        *stage_rows(
            {f"{method}-{stages}": "nearly 100 %" for method in ("gsadmm", "gsam", "printed") for stages in STAGES}
        ),
        *(
            Row(f"hybrid-{n}", f"(ours) gsADMM, {n} stages, one exact epoch for three", {**GSADMM, **HYBRID}, n)
            for n in STAGES
        ),
    ),
    claims=(
        *stage_claims(),
        *(
            Claim(
                f"{name} in {stages} stages is not a point below Adam",
                f"{key}-{stages}",
                "train_accuracy",
                "adam",
                -1.0,
            )
            for key, name in (
                ("gsadmm", "gsADMM"),
                ("gsam", "gsAM"),
                ("printed", "gsADMM with the printed 1/M"),
                ("hybrid", "(ours) the hybrid"),
            )
            for stages in STAGES
        ),
        Claim("gsADMM in 4 stages is below gsADMM in 2", "gsadmm-4", "train_accuracy", "gsadmm-2", below=0.0),
    ),
    small=Scale({"schedule.epochs": 9}),
    paper=Scale(),
    columns=(*ACCURACY_COLUMNS, *TIME_COLUMNS),
    base={"data.name": "mnist"},
    notes=(
        "the paper varies the number of stages of its ResNet-like network only; here it is the network of Figure 1",
    ),
)

# ------------------------------------------------------------------------------------------------ TSSM, Figure 2

TSSM_FIGURE_2 = Experiment(
    name="tssm-figure-2",
    config="tssm-resnet",
    title="Training accuracy and seconds an epoch of the ResNet-like network in two, three and four stages",
    source="TSSM, Figure 2 and section 3.2.2",
    says="TSSM reaches nearly 100 % training accuracy with two, three and four subnetworks, Adam stays below 90 %. An "
    "epoch takes SGD and Adam at least 40 s, TSSM with two subnetworks 25 s, with more up to 50 % less than SGD.",
    hardware=TSSM_HARDWARE,
    rows=(
        Row("sgd", "SGD 0.01", SGD, exact=True, paper="nearly 100 %, ≥ 40 s"),
        Row("adam", "Adam 0.001", ADAM, exact=True, paper="below 90 %, ≥ 40 s"),
        Row("adam-2", "Adam 0.001, pipelined over 2 ranks", PIPELINED, 2, exact=True),
        *stage_rows(
            {
                "gsadmm-2": "nearly 100 %, 25 s",
                "gsadmm-3": "nearly 100 %",
                "gsadmm-4": "nearly 100 %, down to half of SGD's time",
            }
        ),
    ),
    claims=(
        *stage_claims(),
        Claim("Adam stays below 90 % training accuracy", "adam", "train_accuracy", below=90.0),
        Claim("gsADMM in 2 stages is above Adam", "gsadmm-2", "train_accuracy", "adam", above=0.0),
        *(
            Claim(
                f"an epoch of {method} in {stages} stages takes {share} less time than one of SGD",
                f"{key}-{stages}",
                "epoch_seconds",
                "sgd",
                below=bound,
                relative=True,
            )
            for key, method in (("gsadmm", "gsADMM"), ("gsam", "gsAM"))
            for stages, share, bound in ((2, "37.5 %", -37.5), (4, "50 %", -50.0))
        ),
    ),
    small=Scale({"schedule.epochs": 10, "data.limit_train": 1_500, "data.limit_test": 1_000}),
    paper=Scale(),
    columns=("train_accuracy", "test_accuracy", "test_accuracy_bn", *ACCURACY_COLUMNS[2:], *TIME_COLUMNS),
    notes=(
        "the paper leaves filters and padding of the network open; hpcsplit/nets/tssm_resnet.py says what is taken",
        "micro-batches of the pipelined row normalise over 30 samples",
    ),
)

# ------------------------------------------------------------------------------------------------ pdADMM, convergence

SLIDES_DATA: dict[str, Settings] = {
    "mnist": {"data.name": "mnist", "data.limit_train": 55_000},
    "fashion_mnist": {"data.name": "fashion_mnist", "data.limit_train": 60_000},
    "kmnist": {"data.name": "kmnist", "data.limit_train": 60_000},
    "svhn": {"data.name": "svhn", "data.limit_train": 24_446, "data.limit_test": 9_248},
    "cifar10": {"data.name": "cifar10", "data.limit_train": 12_000, "data.limit_test": 2_000},
    "cifar100": {"data.name": "cifar100", "data.limit_train": 5_000, "data.limit_test": 1_000},
}
SLIDES_NOTE = "layers, neurons, ρ, ν and iterations are not in the slides; jobs/pdadmm.toml says what is taken"


def convergence_claims(data: str) -> tuple[Claim, ...]:
    def claim(text: str, measure: str, below: float) -> Claim:
        return Claim(f"{data}: {text}", f"{data}-pdadmm", measure, below=below)

    return (
        claim("the augmented Lagrangian never rises (iterations in which it does)", "objective_rises", 0.5),
        claim("the residual falls below a tenth of its largest value", "residual_left", 0.1),
        claim("k times the squared step falls: o(1/k) (median, last over first quarter)", "rate", 1.0),
    )


PDADMM_CONVERGENCE = Experiment(
    name="pdadmm-convergence",
    config="pdadmm",
    title="Augmented Lagrangian, residual and squared step of pdADMM over the iterations",
    source="pdADMM slides, Lemma 1, Theorems 2 and 3, and the convergence experiment",
    says="The augmented Lagrangian is decreasing and convergent, the residuals converge to 0, at a rate of o(1/k), for "
    "a ρ that is large enough. The plots have no numbers.",
    hardware=SLIDES_HARDWARE,
    rows=tuple(
        Row(f"{data}-pdadmm", "pdADMM, 2 ranks", {**PDADMM, **settings}, 2, data, paper="decreasing; → 0; o(1/k)")
        for data, settings in SLIDES_DATA.items()
    ),
    claims=tuple(claim for data in SLIDES_DATA for claim in convergence_claims(data)),
    small=Scale(
        {"schedule.epochs": 60, "data.limit_train": 2_000, "data.batch_size": 500, "model.width": 100},
        seeds=3,
        groups=("mnist", "fashion_mnist"),
    ),
    paper=Scale(),
    columns=("objective", "objective_rises", "residual", "residual_left", "rate", "train_accuracy", *TIME_COLUMNS),
    base={"method.rho": 0.001},  # = ν: monotone, and small enough for a residual above float32's rounding
    picture=Curves(("objective", "residual", "rate")),
    notes=(SLIDES_NOTE,),
)

# ------------------------------------------------------------------------------------------------ pdADMM, accuracy


def accuracy_rows(data: str) -> tuple[Row, ...]:
    def row(key: str, label: str, settings: Settings, stages: int = 1, exact: bool = False) -> Row:
        return Row(f"{data}-{key}", label, {**SLIDES_DATA[data], **settings}, stages, data, exact)

    return (
        row("gd", "gradient descent 0.1", full_batch("sgd", 0.1), exact=True),
        row("adadelta", "Adadelta 1", full_batch("adadelta", 1.0), exact=True),
        row("adagrad", "Adagrad 0.01", full_batch("adagrad", 0.01), exact=True),
        row("adam", "Adam 0.001", full_batch("adam", 0.001), exact=True),
        row("adam-2", "Adam 0.001, pipelined over 2 ranks", {**full_batch("adam", 0.001), **IN_PIECES}, 2, exact=True),
        row("adam-120", "(ours) Adam 0.001, mini-batches of 120", {**ADAM, "data.batch_size": 120}, exact=True),
        row("dladmm", "dlADMM, ρ = 1e-6", DLADMM),
        row("pdadmm", "pdADMM, 2 ranks", PDADMM, 2),
        row("grown", "pdADMM, grown from 5 layers to 10", {**PDADMM, "method.grow": [4, 9]}, 2),
    )


def accuracy_claims(data: str) -> tuple[Claim, ...]:
    def claim(text: str, rival: str, bound: float) -> Claim:
        return Claim(f"{data}: {text}", f"{data}-pdadmm", "test_accuracy", f"{data}-{rival}", above=bound)

    return (
        claim("pdADMM is above gradient descent, whose gradients vanish", "gd", 0.0),
        claim("pdADMM is not a point below Adadelta", "adadelta", -1.0),
        claim("pdADMM is not a point below Adagrad", "adagrad", -1.0),
        claim("pdADMM is not a point below Adam", "adam", -1.0),
        claim("pdADMM is above dlADMM", "dladmm", 0.0),
    )


PDADMM_ACCURACY = Experiment(
    name="pdadmm-accuracy",
    config="pdadmm",
    title="Accuracy of pdADMM beside full-batch gradient methods and dlADMM",
    source="pdADMM slides, data sets and performance experiment",
    says="pdADMM performs well among the comparison methods, gradient descent suffers from vanishing gradients; plots "
    "of MNIST, kMNIST and Fashion MNIST without numbers.",
    hardware=SLIDES_HARDWARE,
    rows=tuple(row for data in SLIDES_DATA for row in accuracy_rows(data)),
    claims=tuple(claim for data in SLIDES_DATA for claim in accuracy_claims(data)),
    small=Scale(
        {"schedule.epochs": 60, "data.limit_train": 2_000, "data.limit_test": 2_000, "model.width": 100},
        seeds=3,
        groups=("mnist", "fashion_mnist"),
    ),
    paper=Scale(),
    columns=("train_accuracy", "test_accuracy", "exact_in_time", *TIME_COLUMNS),
    base={"schedule.epochs": 200},
    picture=Curves(("train_accuracy", "test_accuracy")),
    judged_by="test_accuracy",
    notes=(
        SLIDES_NOTE,
        "the first so many samples of each set; the slides do not say which",
    ),
)

# ------------------------------------------------------------------------------------------------ pdADMM, speed

RANKS = (2, 4)
TIMED: Settings = {"model.width": 2000, "data.eval_train": 2000, "schedule.epochs": 10}
SPEED_COLUMNS = ("epoch_seconds", "speedup", "limit", "limit_share")
PAPER_SECONDS: dict[int, tuple[str, str, str]] = {  # neurons: serial s, parallel s, speed-up
    1500: ("237.66", "26.78", "8.87"),
    1600: ("348.70", "31.78", "10.97"),
    1700: ("390.51", "35.79", "10.91"),
    1800: ("475.60", "41.37", "11.50"),
    1900: ("465.57", "45.87", "10.15"),
    2000: ("570.90", "50.70", "11.26"),
    2100: ("570", "54.91", "10.38"),
    2200: ("678.83", "63.59", "10.68"),
    2300: ("710.3", "70.36", "10.10"),
    2400: ("766.82", "62.5", "12.27"),
}


def speed_rows(group: str, settings: Settings, paper: tuple[str, str, str] | None = None) -> tuple[Row, ...]:
    """One rank, K ranks, and K copies of the one rank at once."""
    one = {**PDADMM, **settings}
    alone, together = (f"{paper[0]} s", f"{paper[1]} s, speed-up {paper[2]}") if paper else ("", "")
    serial = f"{group}-serial"
    rows = [Row(serial, "1 rank", one, group=group, paper=alone)]
    for ranks in RANKS:
        copies = f"{group}-copies-{ranks}"
        rows.append(Row(copies, f"{ranks} copies of it at once", one, group=group, copies=ranks))
        rows.append(
            Row(f"{group}-{ranks}", f"{ranks} ranks", one, ranks, group, serial=serial, limit=copies, paper=together)
        )
    return tuple(rows)


SMALL_WIDTHS, DEPTHS = (300, 450, 600), (4, 6, 8, 10, 12, 16, 20)
WIDTHS = (*SMALL_WIDTHS, *PAPER_SECONDS)

PDADMM_WIDTH = Experiment(
    name="pdadmm-width",
    config="pdadmm",
    title="Seconds an iteration of pdADMM over the number of neurons",
    source="pdADMM slides, speed-up table",
    says="The speed-up is more than 10 on MNIST (8.87 to 12.27 in the table), parallel against serial pdADMM.",
    hardware=SLIDES_HARDWARE,
    rows=tuple(
        row for width in WIDTHS for row in speed_rows(str(width), {"model.width": width}, PAPER_SECONDS.get(width))
    ),
    claims=tuple(
        claim
        for width in WIDTHS
        for ranks in RANKS
        for claim in (
            Claim(f"{width} neurons: {ranks} ranks are faster than one", f"{width}-{ranks}", "speedup", above=1.0),
            Claim(
                f"{width} neurons: (ours) {ranks} ranks reach 0.85 of the machine's limit",
                f"{width}-{ranks}",
                "limit_share",
                above=0.85,
            ),
        )
    ),
    small=Scale(
        {"schedule.epochs": 6, "data.limit_train": 3_000, "data.limit_test": 500, "data.batch_size": 1_000},
        seeds=5,
        groups=tuple(map(str, SMALL_WIDTHS)),
    ),
    paper=Scale(seeds=5, groups=tuple(map(str, PAPER_SECONDS))),
    columns=SPEED_COLUMNS,
    base=TIMED,
    picture=Against("neurons in a layer"),
    in_turn=True,
    notes=(
        SLIDES_NOTE,
        "the paper's number of workers is not in the slides; a speed-up here is bounded by the number of ranks",
    ),
)

PDADMM_LAYERS = Experiment(
    name="pdadmm-layers",
    config="pdadmm",
    title="Speed-up of pdADMM over the number of layers",
    source="pdADMM slides, speed-up figure",
    says="The speed-up increases linearly with the number of layers (a plot without numbers).",
    hardware=SLIDES_HARDWARE,
    rows=tuple(row for depth in DEPTHS for row in speed_rows(str(depth), {"model.depth": depth - 1})),
    claims=tuple(
        Claim(
            f"{ranks} ranks gain more on {DEPTHS[-1]} layers than on {DEPTHS[0]}",
            f"{DEPTHS[-1]}-{ranks}",
            "speedup",
            f"{DEPTHS[0]}-{ranks}",
            above=0.0,
        )
        for ranks in RANKS
    ),
    small=Scale(
        {
            "schedule.epochs": 6,
            "data.limit_train": 3_000,
            "data.limit_test": 500,
            "data.batch_size": 1_000,
            "model.width": 300,
        },
        seeds=5,
        groups=("4", "8", "20"),
    ),
    paper=Scale(seeds=5),
    columns=SPEED_COLUMNS,
    base=TIMED,
    picture=Against("layers"),
    in_turn=True,
    notes=(
        SLIDES_NOTE,
        "in the paper the number of workers grows with the layers, here it is the number of ranks of the row",
    ),
)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        TSSM_FIGURE_1,
        TSSM_STAGES,
        TSSM_FIGURE_2,
        PDADMM_CONVERGENCE,
        PDADMM_ACCURACY,
        PDADMM_WIDTH,
        PDADMM_LAYERS,
        *SPH,
        FIGURE_4,
        PLANE,
        STEPS,
        AUTO,
    )
}
