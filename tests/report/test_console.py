from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcsplit.errors import UsageError
from hpcsplit.report.console import Console, shows_live
from hpcsplit.run.records import EpochRecord

ROOT = Path(__file__).parents[2]

SESSION = """
from itertools import count
from hpcsplit.run.records import EpochRecord
from hpcsplit.report.console import Console
console = Console(2, clock=count().__next__)  # every step is due
console.say("hpcsplit [bold]")
for epoch in range(2):
    for step in range(4):
        console.progress(epoch, "parallel", step, 4, 0.5, 1234.0)
    console.epoch_done(EpochRecord(epoch, "parallel", loss=0.25, test_accuracy=0.9), 5.0)
console.close()
console.say("the end")
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown_under_pty(command: list[str], **environment: str) -> str:
    """What a terminal receives from a command."""
    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "HPCSPLIT_PROGRESS", "FORCE_COLOR")}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**keep, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    received = b""
    try:
        while chunk := os.read(ours, 65536):
            received += chunk
    except OSError:  # Linux reports the closed other side as an input/output error
        pass
    os.close(ours)
    assert process.wait(timeout=20) == 0, received.decode()
    return received.decode()


def test_the_epoch_line_reads_as_documented() -> None:
    stream = io.StringIO()
    record = EpochRecord(
        2,
        "parallel",
        loss=0.42123,
        test_accuracy=0.912,
        test_accuracy_bn=0.914,
        samples_per_s=1234.4,
        wall_s=12.31,
    )
    Console(20, stream=stream).epoch_done(record, 192.0)
    line = "epoch  3/20 parallel  loss 0.4212  test 91.20 %  (bn 91.40 %)  1234 samples/s   12.3 s  ETA 00:03:12\n"
    assert stream.getvalue() == line


def shown(record: EpochRecord) -> str:
    stream = io.StringIO()
    Console(20, stream=stream).epoch_done(record, 192.0)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("objective", "text"),
    [(0.0123456, " 0.01235"), (8.3e-05, "  8.3e-05"), (-0.00054321, "-0.0005432"), (0.0, "        0")],
)
def test_a_method_with_an_objective_shows_it_behind_the_loss(objective: float, text: str) -> None:
    line = shown(EpochRecord(2, "parallel", loss=0.5, test_accuracy=0.9, terms={"objective": objective, "phi": 1.0}))
    assert f"loss 0.5000  L {text:>9}  test 90.00 %" in line


@pytest.mark.parametrize("terms", [None, {}, {"phi": 1.0}])
def test_a_method_without_one_shows_none(terms: dict[str, float] | None) -> None:
    line = shown(EpochRecord(2, "parallel", loss=0.5, test_accuracy=0.9, terms=terms))
    assert "loss 0.5000  test 90.00 %" in line


def test_an_accuracy_that_re_estimation_has_not_changed_is_said_once() -> None:
    assert "bn" not in shown(EpochRecord(2, "parallel", test_accuracy=0.9, test_accuracy_bn=0.9))


def test_epoch_lines_of_both_phases_are_aligned_and_survive_missing_numbers() -> None:
    stream = io.StringIO()
    console = Console(10, stream=stream)
    console.epoch_done(EpochRecord(0, "serial", loss=0.5, test_accuracy=0.5, samples_per_s=10.0, wall_s=1.0), 1.0)
    console.epoch_done(EpochRecord(9, "parallel", test_accuracy=0.5), None)
    first, second = stream.getvalue().splitlines()
    assert first.index("ETA") == second.index("ETA")
    assert "loss      -" in second
    assert second.endswith("ETA -")


def test_plain_output_has_at_most_one_progress_line_an_interval() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(2, stream=stream, interval_s=30.0, clock=clock)
    for step in range(1000):
        clock.now = step / 10  # 100 s in all
        console.progress(0, "serial", step, 1000, 0.5, 100.0)
    console.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("step")[1].split("/")[0].strip() for line in lines] == ["300", "600", "900"]
    assert lines[0].endswith("ETA 00:02:50")  # 30 s for 300 of 2000 steps leave 170 s
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_an_epoch_line_counts_as_a_sign_of_life_and_its_eta_runs_down() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(9, stream=stream, interval_s=30.0, clock=clock)
    clock.now = 29.0
    console.epoch_done(EpochRecord(0, "serial"), 100.0)
    clock.now = 31.0
    console.progress(1, "serial", 1, 10, None, None)
    assert len(stream.getvalue().splitlines()) == 1
    clock.now = 60.0
    console.progress(1, "serial", 5, 10, None, None)
    assert stream.getvalue().splitlines()[1].endswith("ETA 00:01:09")


def test_a_terminal_gets_a_live_row_and_keeps_the_epoch_lines() -> None:
    text = shown_under_pty([sys.executable, "-c", SESSION])
    assert "\x1b[" in text
    assert all(f"{step}/4" in text for step in range(5))
    assert text.count("loss 0.2500") == 2
    assert "hpcsplit [bold]" in text
    assert text.endswith("the end\r\n")
    assert text.count("\x1b[?25h") >= text.count("\x1b[?25l") > 0


@pytest.mark.parametrize(("columns", "accuracy"), [(80, False), (120, True)])
def test_the_live_row_fits_the_width_of_the_terminal(columns: int, accuracy: bool) -> None:
    script = f'stty cols {columns} <&1; exec "$0" -c "$1"'
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown_under_pty(["sh", "-c", script, sys.executable, SESSION]))
    rows = [row for row in re.split(r"[\r\n]+", text) if "/4 loss" in row]
    assert rows
    assert {len(row) for row in rows} == {columns}
    assert any("test 90.00 %" in row for row in rows) is accuracy


def test_no_color_keeps_the_live_row_and_a_dumb_terminal_does_not() -> None:
    colourless = shown_under_pty([sys.executable, "-c", SESSION], NO_COLOR="1")
    assert "\x1b[38;" not in colourless
    assert "\x1b[2K" in colourless
    assert "\x1b" not in shown_under_pty([sys.executable, "-c", SESSION], TERM="dumb")


@pytest.mark.parametrize("shown", [True, False])
def test_under_mpirun_the_launchers_terminal_decides(tmp_path: Path, shown: bool) -> None:
    """A launcher that relays its rank's output through a pipe, on a terminal and into a file."""
    mpirun = tmp_path / "mpirun"
    mpirun.write_text('#!/bin/sh\n"$@" | cat\n:\n')
    mpirun.chmod(0o755)
    redirect = "" if shown else f"> {tmp_path}/log"
    shell = f'"{mpirun}" "{sys.executable}" -c "$0" {redirect}; exit $?'
    text = shown_under_pty(["sh", "-c", shell, SESSION])
    text = text if shown else (tmp_path / "log").read_text()
    assert ("\x1b[" in text) is shown
    assert text.count("loss 0.2500") == 2


def test_the_environment_overrides_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for wish, live in (("live", True), ("plain", False)):
        monkeypatch.setenv("HPCSPLIT_PROGRESS", wish)
        assert shows_live(io.StringIO()) is live
    monkeypatch.setenv("HPCSPLIT_PROGRESS", "fancy")
    with pytest.raises(UsageError, match="fancy"):
        shows_live(io.StringIO())
