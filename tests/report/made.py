"""Records made by hand: of a hybrid that has every quantity, and of one epoch that has none."""

from __future__ import annotations

from hpcsplit.run.records import EpochRecord, Phase, StageRecord, TheoremRecord

BARE = [EpochRecord(0, "serial")]


def stage(number: int, epoch: int, phase: Phase, count: int) -> StageRecord:
    parallel, last = phase == "parallel", number + 1 == count
    return StageRecord(
        number,
        violation=(0.1 / (epoch + 1 + number) if number else 0.0) if parallel else None,
        label_signal=1.0 if last or not parallel else 0.3 + epoch / 100,
        label_ratio=1.0 if last else 2.5,
        penalty_signal=1e-3 * (epoch + 1) if parallel and not last else None,
        compute_s=2.0 - 0.25 * number,
        exposed_comm_s=0.125,
        exposed_io_s=0.0625,
        imbalance_s=0.25 * number,
        sent_bytes=4096 * (epoch + 1),
        peak_rss_bytes=(900 + 10 * epoch + number) << 20,
    )


def run(phases: str, stages: int = 2) -> list[EpochRecord]:
    """run("sppsp"): a record for each letter, with every quantity that such an epoch has."""
    found = []
    for epoch, letter in enumerate(phases):
        phase: Phase = "parallel" if letter == "p" else "serial"
        parallel, ends = phase == "parallel", phases[epoch + 1 : epoch + 2] != "p"
        found.append(
            EpochRecord(
                epoch,
                phase,
                loss=1.0 / 3 / (epoch + 1),
                test_loss=1.1 / 3 / (epoch + 1),
                train_accuracy=1 - 0.3 / (epoch + 1),
                test_accuracy=1 - 0.4 / (epoch + 1),
                test_accuracy_bn=1 - 0.35 / (epoch + 1) if parallel else None,
                wall_s=4.0,
                train_s=2.5,
                refresh_s=0.5 if parallel and phases[epoch - 1 : epoch] != "p" else 0.0,
                checkpoint_s=0.25,
                samples_per_s=100.0 + epoch / 7,
                aux_loss=0.2 / (epoch + 1) if parallel else None,
                terms={"objective": 2.0 / (epoch + 1), "residual_sq": 0.01} if parallel else None,
                theorem=theorem(stages) if parallel and ends else None,
                lr=0.1 / (epoch + 1),
                beta=100.0 if parallel else None,
                weights_sha256="ab" * 32,
                stages=tuple(stage(k, epoch, phase, stages) for k in range(stages)),
            )
        )
    return found


def theorem(stages: int) -> TheoremRecord:
    names = [None if k == 1 else 40.0 + k for k in range(1, stages)]
    return {
        "gap": 0.0243,
        "bound": 1.1e4,
        "worst": 5e-6,
        "residuals": [0.1 * k for k in range(1, stages)],
        "lipschitz": names,
        "missing": ["stage 1: no estimate: <Softsign>"],
    }
