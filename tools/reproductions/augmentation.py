"""What augmentation by copies buys parallel epochs (DS-SPH, Figure 4), declared.

ρ_DA is the number of synthetic images for each real one: `data.copies` - 1.
"""

from __future__ import annotations

from tools.reproductions.declaring import Claim, Curves, Experiment, Row, Scale, Settings
from tools.reproductions.plane import CUTS, EXACT, ONE_TO_FOUR, PLANE, SMALL

PENALTY: Settings = {"method.name": "penalty", **ONE_TO_FOUR, "schedule.order": "alternate"}
COPIES = (1, 2, 4, 8)


def hybrid(copies: int) -> Row:
    """After as many samples, whatever the number of copies: an epoch visits all of them."""
    settings = {**PENALTY, "data.copies": copies}
    return Row(f"penalty-{copies}", f"1:4 hybrid, penalty, ρ_DA = {copies - 1}", settings, 2, share=1 / copies)


FIGURE_4 = Experiment(
    name="sph-figure-4",
    config="resnet110",
    title="Test accuracy by the ratio of synthetic to real images",
    source="DS-SPH, section 3.2 and Figure 4",
    says="with a larger ρ_DA the gap between parallel and serial training closes; the variables of all synthetic "
    "images need memory that is not affordable.",
    hardware=PLANE.hardware,
    rows=(
        Row(
            "exact",
            "exact, another crop and flip in every epoch (ρ_DA = ∞)",
            {**EXACT, "data.copies": 1},
            exact=True,
        ),
        *(hybrid(copies) for copies in COPIES),
    ),
    claims=(
        *(
            Claim(
                f"ρ_DA = {copies - 1} is above ρ_DA = 0 after as many samples",
                f"penalty-{copies}",
                "test_accuracy",
                "penalty-1",
                above=0.0,
            )
            for copies in COPIES[1:]
        ),
        Claim("ρ_DA = 7 is not a point below exact training", "penalty-8", "test_accuracy", "exact", above=-1.0),
    ),
    small=Scale(
        {**SMALL, "data.limit_train": 2_000, "data.limit_test": 5_000, "schedule.epochs": 40},
        seeds=3,
        cuts=CUTS,
    ),
    paper=Scale({"schedule.epochs": 200}, seeds=3),
    columns=("train_accuracy", "test_accuracy", "label_signal", "violation", "seconds"),
    base={"data.copies": 4, "schedule.epochs": 50},
    picture=Curves(("test_accuracy",)),
    judged_by="test_accuracy",
    notes=(
        "an epoch visits all copies: with c of them λ is c times as many steps old, and there are 1/c as many epochs",
    ),
)
