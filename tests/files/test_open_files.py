"""A system that opens no more files for a process refuses the process: no file is damaged or absent for that."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hpcsplit.errors import CheckpointError, LaunchError, StoreError
from hpcsplit.files import nofollow
from hpcsplit.files.atomic import write_failure, write_in_words
from hpcsplit.files.hdf5 import create_rows, read_attributes, read_tensors, rows_layout, write_tensors
from hpcsplit.files.nofollow import too_many

LAST = 3  # descriptors that a process always has

Act = Callable[[Path], object]
ACTS: dict[str, Act] = {
    "read": nofollow.read_bytes,
    "write": lambda path: write_in_words(path, "new"),
    "state": nofollow.state,
    "names": lambda path: nofollow.names(path.parent),
    "replace": lambda path: nofollow.replace(path, path.with_name("other")),
    "remove": nofollow.remove,
    "tensors": read_tensors,
    "attributes": read_attributes,
    "new tensors": lambda path: write_tensors(path.with_name("new"), {"x": torch.ones(3)}, {}),
    "layout": lambda path: rows_layout(path.with_name("rows.h5")),
}


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LAST, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
def test_it_is_the_process_that_is_refused(tmp_path: Path, act: Act) -> None:
    path = tmp_path / "a.h5"
    write_tensors(path, {"x": torch.ones(3)}, {})
    create_rows(tmp_path / "rows.h5", 4, (2,), torch.float32, {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with no_more_files(), pytest.raises(LaunchError, match=f"only {LAST} files open; raise the hard limit"):
        act(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_it_is_said_whatever_has_been_made_of_it(tmp_path: Path) -> None:
    def write() -> None:
        try:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        except OSError as error:
            raise write_failure(tmp_path, error) from None

    with pytest.raises(StoreError) as caught:
        write()
    assert "files open" in str(too_many(caught.value))
    assert "fs.file-max" in str(too_many(OSError(errno.ENFILE, os.strerror(errno.ENFILE))))
    assert too_many(CheckpointError("damaged")) is None


def test_reasons_that_go_in_a_circle_are_looked_at_once() -> None:
    first, second = ValueError("first"), CheckpointError("second")
    second.__cause__, first.__context__ = first, second
    assert too_many(second) is None
