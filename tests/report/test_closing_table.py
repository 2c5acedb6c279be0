from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from hpcsplit.report.summary import closing_table, median_rate
from hpcsplit.run.records import EpochRecord, StageRecord, TheoremRecord

STAGES = [
    {"stage": 0, "blocks": 5, "params": 12345, "share": 0.4},
    {"stage": 1, "blocks": 4, "params": 54321, "share": 0.6},
]


def parallel(epoch: int, rate: float | None, accuracy: float) -> EpochRecord:
    stages = (
        StageRecord(0, violation=0.0, label_signal=0.5, label_ratio=2.0, compute_s=6.0, exposed_comm_s=1.0),
        StageRecord(1, violation=0.00125, label_signal=1.0, compute_s=8.0, exposed_io_s=0.5, imbalance_s=2.0),
    )
    return EpochRecord(
        epoch,
        "parallel",
        test_accuracy=accuracy,
        wall_s=15.0,
        train_s=10.0,
        refresh_s=2.0,
        samples_per_s=rate,
        stages=stages,
    )


SERIAL = EpochRecord(0, "serial", test_accuracy=0.5, wall_s=25.0, train_s=20.0, samples_per_s=100.0)
RUN = [SERIAL, parallel(1, 150.0, 0.9), parallel(2, 170.0, 0.8), parallel(3, 300.0, 0.85), parallel(4, None, 0.85)]


THEOREM: TheoremRecord = {
    "gap": 0.02431,
    "bound": 0.50541,
    "worst": 0.21765,
    "residuals": [0.011279, 2.5],
    "lipschitz": [44.808, 3.0],
    "missing": [],
}


def iterations(*objectives: float, restart: int | None = None, **terms: list[float]) -> list[EpochRecord]:
    """Parallel epochs of a full-batch method; before epoch `restart`, counted from 0, its variables start anew."""
    return [
        EpochRecord(
            epoch,
            "parallel",
            samples_per_s=100.0,
            refresh_s=0.5 if epoch in (0, restart) else 0.0,
            terms={"objective": objective} | {name: values[epoch] for name, values in terms.items()},
        )
        for epoch, objective in enumerate(objectives)
    ]


def table(records: Sequence[EpochRecord], baseline: float | None = None, stages: int = 2) -> str:
    return closing_table(records, STAGES[:stages], baseline)


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_times_and_accuracy() -> None:
    text = closing_table(RUN, STAGES, 85.0)
    assert "last 85.00% (epoch 5), best 90.00% (epoch 2)" in text
    table = rows(text)
    assert table["serial epochs"] == ["1", "20.0", "100"]
    assert table["parallel epochs"] == ["4", "40.0", "170"]
    assert table["refresh"] == ["4", "8.0", ""]
    assert table["evaluation and the rest"] == ["", "17.0", ""]
    assert table["whole run"] == ["5", "85.0", ""]


def test_speed_up_says_what_over_what_and_how_many() -> None:
    text = closing_table(RUN, STAGES, 85.0)
    assert "one rank alone, whole network, exact steps, measured in this run: 2.00 x = 100% of 2" in text
    assert "over the serial epochs as run: 1.70 x" in text
    assert "170.0 samples/s (n = 3 epochs) / 100.0 samples/s (n = 1 epochs)" in text
    assert "1 epochs have no samples/s and are not in n" in text


def test_each_stage_of_the_last_parallel_epoch() -> None:
    table = rows(closing_table(RUN, STAGES))
    assert table["0"] == ["5", "12,345", "40.0%", "6.00", "0.75", "10.0%", "-", "-", "0.00e+00", "0.500", "2.000"]
    assert table["1"] == ["4", "54,321", "60.0%", "8.00", "1.00", "-", "5.0%", "20.0%", "1.25e-03", "1.000", "-"]


def test_a_serial_run_and_no_run_at_all_have_no_speed_up() -> None:
    for records in ([SERIAL], []):
        text = table(records, baseline=85.0, stages=1)
        assert "no parallel epoch was run" in text
        assert "speed-up" not in text
        assert rows(text)["0"][3:] == ["-"] * 8


def test_a_speed_up_over_what_was_not_measured_is_not_mentioned() -> None:
    text = table(RUN)
    assert "over the serial epochs as run: 1.70 x" in text
    assert "one rank alone" not in text
    text = table(RUN[1:], baseline=85.0)
    assert "measured in this run: 2.00 x = 100% of 2" in text
    assert "over the serial epochs" not in text


def test_with_nothing_to_compare_only_the_speed_itself_is_said() -> None:
    text = table(RUN[1:])
    assert "\nparallel epochs with 2 stages: 170.0 samples/s (median of n = 3 epochs, training alone)\n" in text
    assert "speed-up" not in text
    assert "parallel epochs with 1 stage:" in table(RUN[1:], stages=1)


def test_an_iteration_is_not_taken_for_an_exact_epoch() -> None:
    text = table(iterations(2.0, 1.0), baseline=50.0)
    assert "measured in this run: 2.00 x\n" in text
    assert "an epoch of this method is one iteration over all samples" in text
    assert "iteration" not in table(RUN, baseline=50.0)


def test_a_small_label_ratio_keeps_its_digits() -> None:
    stages = (StageRecord(0, label_ratio=4.91e-5), StageRecord(1, label_ratio=0.0))
    text = table([dataclasses.replace(RUN[1], stages=stages)])
    assert rows(text)["0"][-1] == "4.9e-05"
    assert rows(text)["1"][-1] == "0.000"


# ------------------------------------------------------------------------------------------------ BatchNorm


def test_an_accuracy_that_re_estimation_never_changes_is_left_out() -> None:
    same = [dataclasses.replace(record, test_accuracy_bn=record.test_accuracy) for record in RUN]
    assert "BatchNorm" not in table(same)
    one_differs = [*same[:-1], dataclasses.replace(same[-1], test_accuracy_bn=0.95)]
    assert "with BatchNorm re-estimated: last 95.00% (epoch 5), best 95.00% (epoch 5)" in table(one_differs)


# ------------------------------------------------------------------------------------------------ the objective


def test_the_objective_and_how_often_it_fell() -> None:
    text = table(iterations(0.5, 0.25, 0.25, 0.375, 0.12345678))
    assert "objective (augmented Lagrangian a sample): 0.5 -> 0.1235\n" in text
    assert "falling in 2 of 4 iterations after the first" in text


def test_one_iteration_has_neither_risen_nor_fallen() -> None:
    text = table(iterations(0.5))
    assert "objective (augmented Lagrangian a sample): 0.5\n" in text
    assert "falling" not in text


def test_the_residual_is_the_root_of_its_square() -> None:
    text = table(iterations(3.0, 2.0, 1.0, residual_sq=[0.0, 0.25, 0.0009]))
    assert "residual: largest 0.5 (epoch 2), last 0.03" in text


def test_squared_steps_are_weighed_by_their_iteration() -> None:
    """k times (step of the variables + step of the weights): 1 to 8 times 10 + k / k."""
    steps = [9.0 / k for k in range(1, 9)]
    text = table(iterations(*[1.0] * 8, step_sq=[10.0] * 8, weights_step_sq=steps))
    assert "k * squared step of iteration k: 24 in the first quarter -> 84 in the last (medians)" in text


def test_a_method_that_counts_no_steps_has_no_line_of_them() -> None:
    text = table(iterations(*[1.0] * 8))
    assert "objective" in text
    assert "squared step" not in text


def test_convergence_counts_from_where_the_variables_last_started_anew() -> None:
    records = iterations(
        9.0, 1.0, 5.0, 4.0, 3.0, 2.0, restart=2, residual_sq=[4.0, 4.0, 0.04, 0.01, 0.01, 0.01], step_sq=[10.0] * 6
    )
    text = table(records)
    assert "5 -> 2, since the variables started anew before epoch 3" in text
    assert "falling in 3 of 3" in text
    assert "residual: largest 0.2 (epoch 3), last 0.1" in text
    assert "10 in the first quarter -> 40 in the last" in text


def test_other_methods_have_no_objective() -> None:
    with_terms = [dataclasses.replace(record, terms={"phi": 1.0}) for record in RUN]
    assert "objective" not in table(with_terms)


# ------------------------------------------------------------------------------------------------ Theorem 1


def test_both_sides_of_the_theorem() -> None:
    lines = table([RUN[0], dataclasses.replace(RUN[1], theorem=THEOREM), RUN[2]]).splitlines()
    assert lines[lines.index("Theorem 1 of TSSM after epoch 2, means over one mini-batch") :][1:] == [
        "  |R_serial - R_split| = 0.0243, its bound 0.505; largest gap / bound of a sample 0.218",
        "  residual at the input of stages 1 to 2: 0.0113, 2.5",
        "  Lipschitz constant of stages 1 to 2, the loss included, estimated: 44.8, 3",
    ]


@pytest.mark.parametrize("stages", [1, 2])
def test_a_missing_constant_is_explained(stages: int) -> None:
    sentence = "stage 1: no estimate: Softsign"
    lost: TheoremRecord = {**THEOREM, "bound": None, "worst": None, "missing": [sentence]}
    lost |= {"residuals": THEOREM["residuals"][:stages], "lipschitz": [None, 3.0][:stages]}
    text = table([dataclasses.replace(RUN[1], theorem=lost)])
    assert "|R_serial - R_split| = 0.0243, its bound -\n" in text
    assert ("estimated: -\n" if stages == 1 else "estimated: -, 3\n") in text
    assert text.endswith("\n  " + sentence)


def test_the_last_phase_that_has_one_gives_the_theorem() -> None:
    phases = [dataclasses.replace(RUN[1], theorem=THEOREM), dataclasses.replace(RUN[2], theorem=THEOREM | {"gap": 7.0})]
    text = table([*phases, RUN[3]])
    assert text.count("Theorem 1") == 1
    assert "after epoch 3" in text
    assert "= 7, its bound" in text
    assert "Theorem" not in table(RUN)


def test_the_text_is_plain() -> None:
    last = dataclasses.replace(RUN[-1], terms={"objective": 1.0, "residual_sq": 1.0, "step_sq": 1.0}, theorem=THEOREM)
    text = table([*RUN[:-1], last], baseline=85.0)
    assert text.isascii()
    assert "\x1b" not in text


def test_the_median_counts_what_has_a_rate() -> None:
    assert median_rate(RUN) == (160.0, 4)
    assert median_rate([]) == (None, 0)
