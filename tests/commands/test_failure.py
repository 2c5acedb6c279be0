"""What a rank says when it cannot go on."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from hpcsplit.commands.failure import Failure, RankLog, in_words
from hpcsplit.errors import INTERNAL, HpcsplitError, StoreError


class GoneError(Exception):
    """Instead of the end of the process."""


def gone(code: int) -> NoReturn:
    raise GoneError(code)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left; free space"),
        (errno.EDQUOT, "the quota is used up; free space"),
        (errno.EFBIG, "too large for its file system; choose"),
        (errno.EIO, "Input/output error; check the disk"),
        (errno.EROFS, "Read-only file system; check the disk"),
    ],
)
def test_a_disk_that_refuses_is_a_sentence(number: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(number, os.strerror(number), "/scratch/file")
    assert Failure(2, "node7", gone).say(error) == StoreError.exit_code
    said = capsys.readouterr().err
    assert said.startswith("hpcsplit: rank 2 (stage 2) on node7, start-up: /scratch/file cannot be written: ")
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_is_a_sentence(error: BaseException) -> None:
    assert "lower data.batch_size" in str(in_words(error))
    assert isinstance(in_words(error), HpcsplitError)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x"), RuntimeError("shape"), ZeroDivisionError("x")])
def test_other_errors_are_shown_whole(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert Failure(0, "here", gone).say(error) == INTERNAL
    said = capsys.readouterr().err
    assert repr(error).split("(")[0] in said.split("hpcsplit: ")[0]
    assert f"hpcsplit: rank 0 (stage 0) on here, start-up: {type(error).__name__}: " in said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_in_a_thread_ends_the_run() -> None:
    codes: list[int] = []
    failure = Failure(0, "here", codes.append)  # type: ignore[arg-type]
    before = threading.excepthook
    with failure.guarding():
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert codes == [INTERNAL]
    assert threading.excepthook is before


def test_a_full_disk_of_the_log_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = RankLog(tmp_path / "rank-000.log")
    record = logging.LogRecord("hpcsplit", logging.INFO, "", 0, "a line", None, None)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    handler.emit(record)
    monkeypatch.setattr(handler, "flush", full)
    with pytest.raises(StoreError, match=r"rank-000\.log cannot be written: no space left .*; free space"):
        handler.emit(record)
    monkeypatch.undo()
    handler.close()
    assert (tmp_path / "rank-000.log").read_text().count("a line") == 2
