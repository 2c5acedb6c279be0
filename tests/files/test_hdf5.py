from __future__ import annotations

import errno
import io
import math
import os
import resource
import shutil
import subprocess
from fcntl import F_GETFL, fcntl
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcsplit.errors import CheckpointError, StoreError
from hpcsplit.files.atomic import sha256_file
from hpcsplit.files.hdf5 import (
    NUMPY_TYPES,
    create_rows,
    read_attributes,
    read_tensors,
    rows_layout,
    set_attributes,
    write_tensors,
)
from tests.fuzz import examples


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def test_every_type_and_shape_comes_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {}
    for dtype in NUMPY_TYPES:
        for shape in [(), (0, 3), (5,), (2, 3, 4)]:
            tensors[f"{dtype}/{len(shape)}"] = any_values(shape, dtype)
    tensors["special"] = torch.tensor([math.nan, math.inf, -0.0], dtype=torch.bfloat16)
    tensors["conjugate"] = torch.randn(2, 3, dtype=torch.complex64).conj()
    tensors["negative"] = torch.randn(3, dtype=torch.complex64).conj().imag
    tensors["strided"] = torch.randn(4, 6, 2, 2).to(memory_format=torch.channels_last)[:, ::2]
    write_tensors(tmp_path / "a.h5", tensors, {"epoch": 3, "loss": 0.5, "config": "κ = 1", "big": 2**62})
    found, attributes = read_tensors(tmp_path / "a.h5")
    assert attributes == {"epoch": 3, "loss": 0.5, "config": "κ = 1", "big": 2**62}
    assert [type(attributes[key]) for key in ("epoch", "loss", "config")] == [int, float, str]
    assert found.keys() == tensors.keys()
    assert all(equal_bits(found[key], tensors[key]) for key in tensors)


def any_values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random values; where torch cannot make any of this type, random bits."""
    try:
        return (torch.randn(shape) * 3).to(dtype)
    except NotImplementedError:
        return torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8).view(dtype).reshape(shape)


def test_types_of_every_precision_are_among_them() -> None:
    names = ("int8", "int16", "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "complex32")
    floats = ("float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    assert {getattr(torch, name) for name in (*names, *floats)} <= NUMPY_TYPES.keys()


def test_a_mark_that_nobody_knows_is_damage(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.h5", {"x": torch.zeros(2, dtype=torch.bfloat16)}, {})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["x"].attrs.create("torch_dtype", np.bytes_("float9"))
    with pytest.raises(CheckpointError, match="than this torch knows: b'float9'"):
        read_tensors(tmp_path / "a.h5")


def test_a_mark_of_variable_length_is_understood(tmp_path: Path) -> None:
    """As files had it before."""
    ones = torch.ones(2, dtype=torch.bfloat16)
    write_tensors(tmp_path / "a.h5", {"x": ones}, {})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["x"].attrs["torch_dtype"]
        file["x"].attrs["torch_dtype"] = "bfloat16"
    assert equal_bits(read_tensors(tmp_path / "a.h5")[0]["x"], ones)


@settings(max_examples=examples(60), deadline=None)
@given(st.sets(st.text(alphabet="a.b/%-κ\0", max_size=6), max_size=8))
def test_any_key_comes_back(keys: set[str]) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"hpcsplit-keys-{os.getpid()}.h5"
    tensors = {key: torch.tensor(number) for number, key in enumerate(sorted(keys))}
    try:
        write_tensors(path, tensors, {})
        assert read_tensors(path)[0] == tensors
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "half", "bits"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "stage-000.h5"
    write_tensors(path, {"w": torch.zeros(10000)}, {})
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "text": b"no hdf5",
        "half": content[: len(content) // 2],
        "bits": b"\0" * 64 + content[64:],
    }
    path.unlink() if damage == "absent" else path.write_bytes(damaged[damage])
    for read in (read_tensors, read_attributes, rows_layout):
        with pytest.raises(CheckpointError, match=r"stage-000\.h5.*resume"):
            read(path)


def test_no_room_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcsplit.files.hdf5.free_bytes", lambda _: 1000)
    with pytest.raises(StoreError, match=r"a\.h5 cannot be written \(401400 bytes\): no space left"):
        write_tensors(tmp_path / "a.h5", {"w": torch.zeros(100000)}, {})


WRITTEN = {"w": torch.arange(5000.0), "n": torch.tensor(3)}


def write_everything(folder: Path) -> None:
    """All that this module writes, in the order in which a run does."""
    write_tensors(folder / "a.h5", WRITTEN, {"epoch": 3})
    create_rows(folder / "b.h5", 10, (4,), torch.float32, {"complete": 0})
    set_attributes(folder / "b.h5", {"complete": 1, "name": "lam"})


def check_everything(folder: Path) -> None:
    tensors, attributes = read_tensors(folder / "a.h5")
    assert attributes == {"epoch": 3}
    assert all(torch.equal(tensors[name], WRITTEN[name]) for name in WRITTEN)
    assert read_attributes(folder / "b.h5") == {"complete": 1, "name": "lam"}


def test_the_library_is_given_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk refuses it may overlook, or not survive."""
    whole, modes = h5py.File, []

    def opened(name: object, mode: str, **options: object) -> h5py.File:
        modes.append(mode)
        assert mode == "r" or isinstance(name, io.IOBase), f"{name} is opened for writing"
        return whole(name, mode, **options)

    monkeypatch.setattr(h5py, "File", opened)
    write_everything(tmp_path)
    assert sorted(modes) == ["r+", "w", "w"]
    check_everything(tmp_path)


def test_the_checksum_is_of_what_was_made(tmp_path: Path) -> None:
    assert write_tensors(tmp_path / "a.h5", WRITTEN, {}) == sha256_file(tmp_path / "a.h5")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[: max(1, len(content) // 2)]))
    monkeypatch.setattr(os, "pwrite", lambda fd, content, at: pwrite(fd, content[: max(1, len(content) // 2)], at))
    write_everything(tmp_path)
    check_everything(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["open", "write", "pwrite", "fsync", "posix_fallocate", "close"])
def test_what_the_disk_refuses_is_never_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Each call once: the n-th one fails, for n from 1 on, until none is left; of `open` and `close` only those that
    make a file and that have written."""
    whole = getattr(os, call)

    def concerns(first: object, *others: object) -> bool:
        if call == "open":
            return bool(cast(int, others[0]) & os.O_CREAT)
        return call != "close" or fcntl(cast(int, first), F_GETFL) & os.O_ACCMODE != os.O_RDONLY

    for failing in range(1, 100):
        calls = 0

        def once(*args: object, failing: int = failing, **more: object) -> object:
            nonlocal calls
            if not concerns(*args):
                return whole(*args, **more)
            calls += 1
            result = whole(*args, **more) if calls != failing or call == "close" else None
            if calls == failing:
                raise OSError(number, os.strerror(number))
            return result

        (folder := tmp_path / str(failing)).mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(os, call, once)
            if failing == 1:
                with pytest.raises((OSError, StoreError)):
                    write_everything(folder)
                continue
            try:
                write_everything(folder)
            except (OSError, StoreError):
                assert calls >= failing
                continue
        assert calls < failing
        return check_everything(folder)
    raise AssertionError("it never ends")


def test_a_size_limit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "write", too_large)
    for limit, words in ((1000, "a file is 1000 bytes; raise it .ulimit -f"), (-1, "too large for its file system")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        with pytest.raises(StoreError, match=words) as failure:
            write_tensors(tmp_path / "a.h5", WRITTEN, {})
        assert "free space" not in str(failure.value)
        assert failure.value.exit_code == 73


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_reserved_and_aligned(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "stage-001.lam.0.h5"
    layout = create_rows(path, 1000, (3, 5, 5), dtype, {"variable": "lam", "complete": 0})
    assert layout == rows_layout(path)
    assert (layout.rows, layout.row_shape, layout.dtype) == (1000, (3, 5, 5), dtype)
    assert layout.rows_offset % 4096 == layout.index_offset % 4096 == 0
    assert layout.row_bytes == 75 * dtype.itemsize
    state = path.stat()
    assert state.st_blocks * 512 >= layout.size_bytes == state.st_size
    assert state.st_mode & 0o777 == 0o600


def test_attributes_change_in_place_and_the_rows_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    layout = create_rows(path, 10, (4,), torch.float32, {"complete": 0, "checksum": 0, "fill": math.nan, "config": "a"})
    values = np.arange(40, dtype=np.float32)
    with open(path, "r+b") as file:
        file.seek(layout.rows_offset)
        file.write(values.tobytes())
    for number in range(200):
        set_attributes(path, {"complete": 1, "checksum": -(2**63) + number, "fill": 0.5, "config": "a"})
    assert read_attributes(path) == {"complete": 1, "checksum": -(2**63) + 199, "fill": 0.5, "config": "a"}
    assert path.stat().st_size == layout.size_bytes
    assert rows_layout(path) == layout
    assert np.array_equal(np.fromfile(path, np.float32, 40, offset=layout.rows_offset), values)


def test_h5dump_reads_rows_written_without_the_library(tmp_path: Path) -> None:
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump (Debian package hdf5-tools) is not installed")
    path = tmp_path / "a.h5"
    layout = create_rows(path, 3, (2,), torch.float32, {"variable": "lam"})
    with open(path, "r+b") as file:
        file.seek(layout.rows_offset)
        file.write(np.array([1.5, 2.5, 3.5, 4.5, 5.5, 6.5], np.float32).tobytes())
        file.seek(layout.index_offset)
        file.write(np.array([2, 0, 1], np.int64).tobytes())
    set_attributes(path, {"complete": 1})

    def dump(*options: str) -> str:
        return subprocess.run(["h5dump", *options, str(path)], check=True, capture_output=True, text=True).stdout

    assert dump("-y", "-d", "/rows", "-w", "80").split("DATA {")[1].split("}")[0].split() == [
        "1.5,", "2.5,", "3.5,", "4.5,", "5.5,", "6.5",
    ]  # fmt: skip
    assert "2, 0, 1" in dump("-y", "-d", "/index")
    assert '"lam"' in dump("-a", "variable")
    assert "CONTIGUOUS" in dump("-p", "-H", "-d", "/rows")
