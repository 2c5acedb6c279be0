from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from hpcsplit.doctor.limits import Guard, within


def test_within_gives_the_result_or_the_error() -> None:
    assert within(5, lambda: 3) == 3
    assert within(5, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)


def test_within_goes_on_without_the_result() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.2 s"):
        within(0.2, lambda: time.sleep(5))
    assert time.monotonic() - begin < 4


STUCK = """
import ctypes, time
from hpcsplit.doctor.limits import Guard
with Guard("rank 3 on n1") as guard:
    guard.expect("the first part", 30)
    guard.expect("the second part", 0.5)
    ctypes.PyDLL(None).sleep(30)
"""


def test_a_process_stuck_in_c_is_ended_with_a_sentence() -> None:
    begin = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -9
    assert ended.stderr.startswith("hpcsplit: rank 3 on n1: the second part has not ended within 0.5 s")
    assert time.monotonic() - begin < 20


def test_a_process_that_keeps_its_limits_is_left_alone() -> None:
    with Guard("rank 0") as guard:
        guard.expect("a", 0.3)
        guard.expect("b", 60)
        time.sleep(0.6)
        child = guard._pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_watchdog_ends_with_its_process() -> None:
    text = STUCK.replace("ctypes.PyDLL(None).sleep(30)", "print(guard._pid, flush=True); import os; os._exit(5)")
    text = text.replace('"the second part", 0.5', '"the second part", 60')
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 5
    child, end = int(ended.stdout), time.monotonic() + 10
    while os.path.exists(f"/proc/{child}/fd/0") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}/fd/0")
