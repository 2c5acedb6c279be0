"""HDF5 files made to do harm: each is refused in a sentence, within little time and memory."""

from __future__ import annotations

import resource
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcsplit.errors import CheckpointError
from hpcsplit.files import hdf5_format
from hpcsplit.files.hdf5 import Header, Stored, read_attributes, read_tensors, rows_layout, write_tensors

SECRET = b"nobody is to read this"
MADE: dict[str, tuple[Callable[[Path], object], str]] = {}


def made(reason: str, **options: object) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """A file by what the function does to an open one with a tensor in it, refused for this reason."""

    def note(fill: Callable[..., object]) -> Callable[..., object]:
        def make(path: Path) -> None:
            (path.parent / "secret").write_bytes(SECRET)
            with h5py.File(path, "w", **options) as file:
                file["w"] = np.zeros(3, np.float32)
                fill(file, path.parent)

        MADE[fill.__name__] = (make, reason)
        return fill

    return note


@made("cut off")
def claims_a_petabyte(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (10**15,), np.uint8)


@made("filters")
def compressed(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=np.zeros((1 << 24,), np.uint8), compression="gzip")


@made("filters")
def scale_offset(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=np.zeros(100, np.int32), chunks=(100,), scaleoffset=0)


@made("in pieces")
def chunked(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=np.zeros(100), chunks=(10,), maxshape=(None,))


@made("in pieces")
def compact(file: h5py.File, _: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3,)), plan)


@made("data in another file")
def external_data(file: h5py.File, folder: Path) -> None:
    file.create_dataset("x", (len(SECRET),), np.uint8, external=[(str(folder / "secret"), 0, len(SECRET))])


@made("in pieces|message of kind|newer kind")
def virtual_data(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.arange(5.0)
    layout = h5py.VirtualLayout((5,), np.float64)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (5,))
    file.create_virtual_dataset("x", layout)


@made("newer kind|links by name")
def external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.arange(5.0)
    file["x"] = h5py.ExternalLink(str(folder / "other.h5"), "x")


@made("links by name")
def soft_link(file: h5py.File, _: Path) -> None:
    file["x"] = h5py.SoftLink("/w")


@made("same place")
def hard_link(file: h5py.File, _: Path) -> None:
    file["x"] = file["w"]


@made("same place")
def circle(file: h5py.File, _: Path) -> None:
    file.create_group("a/b")
    file["a/b/c"] = file["a"]


@made("same place")
def circle_at_the_root(file: h5py.File, _: Path) -> None:
    file["again"] = file["/"]


@made("over 32 levels")
def deep(file: h5py.File, _: Path) -> None:
    file["/".join("g" * 200)] = 1.0


@made("of a type that this program does not write")
def text_of_variable_length(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=["a" * 100] * 10, dtype=h5py.string_dtype())


@made("of a type that this program does not write")
def references(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=np.array([file["w"].ref], dtype=h5py.ref_dtype))


@made("is of a type that this program does not write")
def reference_in_an_attribute(file: h5py.File, _: Path) -> None:
    file.attrs["x"] = file["w"].ref


@made("of a type that this program does not write")
def compound_of_1000_fields(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (2,), np.dtype([(f"f{k}", "f8") for k in range(1000)]))


@made("of a type that this program does not write")
def array_type(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (2,), np.dtype(("f8", (1000, 1000))))


@made("of a type that this program does not write")
def other_byte_order(file: h5py.File, _: Path) -> None:
    file["x"] = np.zeros(3, ">f4")


@made("types that are shared")
def committed_type(file: h5py.File, _: Path) -> None:
    file["type"] = np.dtype("f8")
    file.create_dataset("a", (3,), dtype=file["type"])


@made("more than 1000 attributes")
def attributes_without_number(file: h5py.File, _: Path) -> None:
    for k in range(3000):
        file.attrs.create(f"a{k}", k)


@made("superblock is of another kind", libver="latest")
def dense_attributes(file: h5py.File, _: Path) -> None:
    for k in range(3000):
        file.attrs.create(f"a{k}", k)


@made("newer kind|object header", libver=("earliest", "v110"), track_order=True)
def newer_links(file: h5py.File, _: Path) -> None:
    file.create_group("g", track_order=True)["x"] = 1


@made("attribute of several values")
def large_attribute(file: h5py.File, _: Path) -> None:
    file.attrs["x"] = np.zeros(5000)


@made("does not begin as", userblock_size=512)
def user_block(file: h5py.File, _: Path) -> None:
    file["x"] = 1.0


@made("the shape of something")
def nothing_at_all(file: h5py.File, _: Path) -> None:
    file["x"] = h5py.Empty("f4")


@pytest.mark.parametrize("name", MADE)
def test_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    path, (make, reason) = tmp_path / "stage-000.h5", MADE[name]
    make(path)
    for read in (read_tensors, rows_layout):
        tracemalloc.start()
        before, files = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError, match=rf"stage-000\.h5 cannot be read .*({reason})") as caught:
            read(path)
        assert time.process_time() - before < 2
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - files < 50_000  # KiB
        tracemalloc.stop()
        assert "\n" not in str(caught.value)
        assert SECRET.decode() not in str(caught.value)


def test_text_of_variable_length_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "manifest.h5"
    with h5py.File(path, "w") as file:
        file.attrs["config"] = "text" * 100
    with pytest.raises(CheckpointError, match="'config' is text of variable length"):
        read_attributes(path)


def test_a_mark_of_older_files_says_enough_by_being_there(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.array([0x3F80, 0xC000], np.uint16)
        file["w"].attrs["torch_dtype"] = "bfloat16"
    assert torch.equal(read_tensors(path)[0]["w"], torch.tensor([1.0, -2.0], dtype=torch.bfloat16))


def patched(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1, content.count(old)
    path.write_bytes(content.replace(old, new))


def test_two_tensors_cannot_share_their_bytes(tmp_path: Path) -> None:
    """Else a file of 1 MB could be as many tensors of 1 MB as it has room for headers."""
    path = tmp_path / "a.h5"
    write_tensors(path, {"a": torch.zeros(1000), "b": torch.ones(1000)}, {})
    with h5py.File(path) as file:
        here, there = (struct.pack("<2Q", file[key].id.get_offset(), 4000) for key in "ab")
    patched(path, there, here)
    with pytest.raises(CheckpointError, match="two of its arrays overlap"):
        read_tensors(path)


def test_a_size_that_is_not_of_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_tensors(path, {"a": torch.zeros(1000)}, {})
    with h5py.File(path) as file:
        offset = file["a"].id.get_offset()
    patched(path, struct.pack("<2Q", offset, 4000), struct.pack("<2Q", offset, 400))
    with pytest.raises(CheckpointError, match=r"an array of shape \(1000,\) in it has 400 bytes"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("limit", "most", "reason"),
    [
        ("MOST_OBJECTS", 40, "more than 40 objects"),
        ("MOST_MESSAGES", 100, "more than 100 messages"),
        ("MOST_BYTES", 3000, "more than 3000 bytes"),
        ("MOST_NAME", 5, "a name in it is damaged"),
    ],
)
def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int, reason: str) -> None:
    path = tmp_path / "a.h5"
    write_tensors(path, {f"weights/layer{k}": torch.zeros(2) for k in range(60)}, {})
    assert len(read_tensors(path)[0]) == 60
    monkeypatch.setattr(hdf5_format, limit, most)
    with pytest.raises(CheckpointError, match=reason):
        read_tensors(path)


def test_headers_and_attributes_are_known_before_a_tensor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_tensors(path, {"a/b": torch.ones(2, 3), "c": torch.tensor(7)}, {"step": 3, "text": "κ" * 100_000})
    stored = Stored(path.read_bytes(), path)
    assert stored.headers == {"a/b": Header((2, 3), torch.float32), "c": Header((), torch.int64)}
    assert stored.attributes == {"step": 3, "text": "κ" * 100_000}
    assert torch.equal(stored.tensor("a/b"), torch.ones(2, 3))
    assert stored.tensor("c") == 7
