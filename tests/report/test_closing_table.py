from __future__ import annotations

from hpcsplit.records import EpochRecord, StageRecord
from hpcsplit.report.summary import closing_table, median_rate

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


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_times_and_accuracy() -> None:
    text = closing_table(RUN, stages=STAGES, baseline_samples_per_s=85.0, stage_count=2)
    assert "last 85.00% (epoch 5), best 90.00% (epoch 2)" in text
    table = rows(text)
    assert table["serial epochs"] == ["1", "20.0", "100"]
    assert table["parallel epochs"] == ["4", "40.0", "170"]
    assert table["refresh"] == ["4", "8.0", ""]
    assert table["evaluation and the rest"] == ["", "17.0", ""]
    assert table["whole run"] == ["5", "85.0", ""]


def test_speed_up_says_what_over_what_and_how_many() -> None:
    text = closing_table(RUN, stages=STAGES, baseline_samples_per_s=85.0, stage_count=2)
    assert "one rank alone, whole network, exact steps, measured in this run: 2.00 x = 100% of 2" in text
    assert "over the serial epochs as run: 1.70 x" in text
    assert "170.0 samples/s (n = 3 epochs) / 100.0 samples/s (n = 1 epochs)" in text
    assert "1 epochs have no samples/s and are not in n" in text


def test_each_stage_of_the_last_parallel_epoch() -> None:
    table = rows(closing_table(RUN, stages=STAGES, baseline_samples_per_s=None, stage_count=2))
    assert table["0"] == ["5", "12,345", "40.0%", "6.00", "0.75", "10.0%", "-", "-", "0.00e+00", "0.500", "2.000"]
    assert table["1"] == ["4", "54,321", "60.0%", "8.00", "1.00", "-", "5.0%", "20.0%", "1.25e-03", "1.000", "-"]


def test_a_serial_run_and_no_run_at_all_show_dashes() -> None:
    for records in ([SERIAL], []):
        text = closing_table(records, stages=STAGES, baseline_samples_per_s=None, stage_count=1)
        assert "no parallel epoch was run" in text
        assert "measured in this run: -" in text
        assert rows(text)["0"][3:] == ["-"] * 8


def test_the_text_is_plain() -> None:
    text = closing_table(RUN, stages=STAGES, baseline_samples_per_s=85.0, stage_count=2)
    assert text.isascii()
    assert "\x1b" not in text


def test_the_median_counts_what_has_a_rate() -> None:
    assert median_rate(RUN) == (160.0, 4)
    assert median_rate([]) == (None, 0)
