"""What both kinds of store promise."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcsplit.errors import CheckpointError, NumericalError
from hpcsplit.files.atomic import sha256_file
from hpcsplit.files.hdf5 import read_tensors
from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.store import generation_bytes
from tests.store.damage import DAMAGES, harm
from tests.store.model import DTYPES, FIELDS, KINDS, Make, N, content, deal, draw, fresh_model, run_epoch, same


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_dictionary(make: Make, kind: str, dtype: torch.dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store, model = make(kind, dtype), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    for epoch in range(1, 12):
        if rng.random() < 0.3:  # a refresh: new λ, κ = 0
            run_epoch(store, model, rng, epoch, ["lam"] if "kappa" in store.filled else ["lam", "kappa"], read=False)
            store.fill("kappa", 0.0)
            model["kappa"] = torch.zeros_like(model["kappa"])
        elif "kappa" in store.filled and rng.random() < 0.5:
            run_epoch(store, model, rng, epoch, ["lam"])
        else:
            run_epoch(store, model, rng, epoch, ["lam", "kappa"])
        store.sync()
    assert same(content(store), model)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_still_on_their_way_to_the_host_are_waited_for(
    make: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(
        values: dict[str, torch.Tensor],
    ) -> tuple[dict[str, torch.Tensor], Callable[[], object]]:  # as from a GPU: the copies are filled later
        here = {name: torch.full_like(value, torch.nan) for name, value in values.items()}
        return here, lambda: [here[name].copy_(value) for name, value in values.items()]

    monkeypatch.setattr("hpcsplit.store.store._host_copies", late)
    store, model = make(kind), fresh_model()
    run_epoch(store, model, np.random.default_rng(0), 0, ["lam", "kappa"], read=False)
    assert same(content(store), model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_of_constants_only(make: Make, tmp_path: Path, kind: str) -> None:
    store = make(kind)
    for field, value in (("lam", 2.0), ("kappa", -1.0)):
        store.fill(field, value)
    store.sync()
    assert store.save(tmp_path) == {}
    other = make(kind, place="other")
    other.restore(tmp_path, store.describe())
    found = content(other)
    assert torch.all(found["lam"] == 2.0)
    assert torch.all(found["kappa"] == -1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_misuse_is_noticed(make: Make, kind: str) -> None:
    store, rng = make(kind), np.random.default_rng(0)
    batches = deal(rng)
    with pytest.raises(AssertionError, match="nothing is stored"):
        store.start(batches)
    with pytest.raises(AssertionError, match="visited once"):
        store.start(batches[:-1], read=False)
    with pytest.raises(AssertionError, match="no epoch"):
        store.read(0)
    store.start(batches, read=False)
    with pytest.raises(AssertionError, match="read=False"):
        store.read(0)
    with pytest.raises(AssertionError, match="no constants"):
        store.write(0, draw(rng, batches[0], ["lam"]))
    with pytest.raises(AssertionError, match="shape"):
        store.write(0, draw(rng, batches[0][1:], ["lam", "kappa"]))
    store.write(0, draw(rng, batches[0], ["lam", "kappa"]))
    with pytest.raises(AssertionError, match="twice"):
        store.write(0, draw(rng, batches[0], ["lam", "kappa"]))
    with pytest.raises(AssertionError, match="not written"):
        store.finish(0)
    for call in (store.describe, store.sync, lambda: store.fill("lam", 0.0), lambda: store.peek(batches[0])):
        with pytest.raises(AssertionError, match="under way"):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_is_written_in_every_batch_or_in_none(make: Make, kind: str) -> None:
    store, rng = make(kind), np.random.default_rng(0)
    store.fill("lam", 0.0)
    store.fill("kappa", 0.0)
    batches = deal(rng)
    store.start(batches)
    store.write(0, draw(rng, batches[0], ["lam"]))
    with pytest.raises(AssertionError, match="in one epoch"):
        store.write(1, draw(rng, batches[1], ["lam", "kappa"]))


@pytest.mark.parametrize("kind", KINDS)
def test_reads_may_leave_out_steps_and_run_ahead_of_writes(make: Make, kind: str) -> None:
    store, rng, model = make(kind), np.random.default_rng(0), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    batches = deal(rng, 4)
    store.start(batches)
    for step in (0, 1, 9, 10, len(batches) - 1):
        assert torch.equal(store.read(step)["lam"], model["lam"][batches[step]])
    with pytest.raises(AssertionError, match="after"):
        store.read(3)
    for step in reversed(range(len(batches))):
        store.write(step, {name: value[batches[step]] + 1 for name, value in model.items()})
    store.finish(1)
    assert same(content(store), {name: value + 1 for name, value in model.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_a_protected_generation_is_not_overwritten(make: Make, kind: str) -> None:
    store, rng, model = make(kind), np.random.default_rng(0), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    store.protect(store.describe()["slot"])
    run_epoch(store, model, rng, 1, ["lam", "kappa"])
    with pytest.raises(AssertionError, match="a checkpoint refers to slot"):
        store.start(deal(rng))
    store.protect(store.describe()["slot"])
    run_epoch(store, model, rng, 2, ["lam", "kappa"])


@pytest.mark.parametrize("kind", KINDS)
def test_peek_gives_the_current_rows_of_any_samples(make: Make, kind: str) -> None:
    store, rng, model = make(kind), np.random.default_rng(0), fresh_model()
    with pytest.raises(AssertionError, match="nothing is stored"):
        store.peek(np.arange(3))
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    store.fill("kappa", 0.5)
    ids = np.array([N - 1, 0, 17, 0])
    assert torch.equal(store.peek(ids)["lam"], model["lam"][ids])
    assert torch.equal(store.peek(ids)["kappa"], torch.full((4, 7), 0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_save_and_restore_between_all_kinds(
    make: Make, tmp_path: Path, source: str, target: str, dtype: torch.dtype
) -> None:
    folder, rng, model = tmp_path / "checkpoint", np.random.default_rng(0), fresh_model()
    folder.mkdir()
    store = make(source, dtype, "a")
    run_epoch(store, model, rng, 3, ["lam", "kappa"], read=False)
    run_epoch(store, model, rng, 4, ["lam", "kappa"])
    sums = store.save(folder)
    assert list(sums) == ["aux-block-004.lam.h5", "aux-block-004.kappa.h5"]
    assert all(sha256_file(folder / name) == digest for name, digest in sums.items())
    description = json.loads(json.dumps(store.describe()))
    tensors, attributes = read_tensors(folder / "aux-block-004.lam.h5")
    rows = tensors["rows"] if dtype != torch.bfloat16 else tensors["rows"].view(torch.bfloat16)
    assert torch.equal(rows.float(), model["lam"][tensors["index"]])
    assert (attributes["epoch"], attributes["complete"], attributes["cut"]) == (4, 1, "1_0")

    other = make(target, dtype, "b")
    other.restore(folder, description)
    assert other.epoch == 4
    assert other.describe()["filled"] == {}
    expected = {name: value.clone() for name, value in model.items()}
    assert same(content(other), expected)
    run_epoch(other, expected, rng, 5, ["lam", "kappa"])


@pytest.mark.parametrize("kind", KINDS)
def test_constants_take_no_file(make: Make, tmp_path: Path, kind: str) -> None:
    folder, rng, model = tmp_path / "checkpoint", np.random.default_rng(0), fresh_model()
    folder.mkdir()
    store = make(kind)
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    store.fill("kappa", 0.25)
    model["kappa"].fill_(0.25)
    assert list(store.save(folder)) == ["aux-block-004.lam.h5"]
    other = make(kind, place="other")
    other.restore(folder, store.describe())
    assert same(content(other), model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_refused(make: Make, tmp_path: Path, kind: str, damage: str) -> None:
    folder, rng = tmp_path / "checkpoint", np.random.default_rng(0)
    folder.mkdir()
    store = make(kind)
    run_epoch(store, fresh_model(), rng, 0, ["lam", "kappa"], read=False)
    store.save(folder)
    harm(folder / "aux-block-004.lam.h5", damage)
    with pytest.raises(CheckpointError, match=r"aux-block-004\.lam\.h5.*resume"):
        make(kind, place="other").restore(folder, store.describe())


def test_another_run_is_refused(make: Make, tmp_path: Path) -> None:
    store, rng = make("hdf5"), np.random.default_rng(0)
    run_epoch(store, fresh_model(), rng, 0, ["lam", "kappa"], read=False)
    store.save(tmp_path)
    description = store.describe()
    with pytest.raises(CheckpointError, match="config is 'c0ffee', 'beef' is wanted"):
        make("memory", config="beef").restore(tmp_path, description)
    with pytest.raises(CheckpointError, match="dtype float32, this run has float16"):
        make("memory", torch.float16).restore(tmp_path, description)
    with pytest.raises(CheckpointError, match="rows 7, this run has 103"):
        make("memory").restore(tmp_path, description | {"rows": 7})


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_a_checkpoint_does_not_have_become_constants(make: Make, tmp_path: Path, kind: str) -> None:
    store, model = make(kind), fresh_model()
    run_epoch(store, model, np.random.default_rng(0), 0, ["lam", "kappa"], read=False)
    store.save(tmp_path)
    description = store.describe()
    del description["checksums"]["kappa"]
    other = make(kind, place="other")
    other.restore(tmp_path, description)
    assert other.filled == {"kappa": 0.0}
    assert same(content(other), model | {"kappa": torch.zeros_like(model["kappa"])})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("done", [0, 1, 4])
def test_an_epoch_that_is_paused_goes_on_where_it_was(make: Make, kind: str, dtype: torch.dtype, done: int) -> None:
    """While it rests it has the new rows of the samples visited; in the end all rows are new, whatever it was."""
    rng, store, model = np.random.default_rng(1), make(kind, dtype), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    store.fill("kappa", 0.5)
    model["kappa"] = torch.full_like(model["kappa"], 0.5)
    batches = deal(rng)
    drawn = [draw(rng, batch, ["lam", "kappa"]) for batch in batches]
    new = [{name: rows.to(dtype).float() for name, rows in values.items()} for values in drawn]

    store.start(batches)
    for step in range(done):
        store.read(step)
        store.write(step, new[step])
    store.read(done)  # as the engine reads ahead
    store.pause(1)
    for step in range(done):
        for name, rows in new[step].items():
            model[name][batches[step]] = rows
    assert same(content(store), model)

    store.start(batches, first=done)
    for step in range(done, len(batches)):
        assert torch.equal(store.read(step)["lam"], model["lam"][batches[step]])
        store.write(step, new[step])
        for name, rows in new[step].items():
            model[name][batches[step]] = rows
    store.finish(1)
    assert same(content(store), model)


def test_sizes(make: Make) -> None:
    for dtype in DTYPES:
        store, size = make("hdf5", dtype, str(dtype)), generation_bytes(FIELDS, N, dtype)
        assert isinstance(store, HdfStore)
        assert size == N * (22 * dtype.itemsize + 16)
        assert 2 * size < sum(file.stat().st_size for file in store.folder.iterdir()) < 2 * size + 4 * (1 << 15)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_beyond_the_type_name_it(make: Make, kind: str) -> None:
    """As infinities they would be blamed on the learning rate an epoch later."""
    store, batch = make(kind, torch.float16), np.arange(N)

    def write(largest: float) -> None:
        store.start([batch], read=False)
        values = draw(np.random.default_rng(0), batch, ["lam", "kappa"])
        values["lam"].view(-1)[3] = largest
        store.write(0, values)
        store.finish(0)

    write(65504.0)
    with pytest.raises(NumericalError, match=r"lam.*a row reaches 7e\+04, its type float16 ends at 65504\. Continue"):
        write(-7e4)
    with contextlib.suppress(NumericalError):
        store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_rows_are_kept_as_they_are(make: Make, kind: str) -> None:
    store, batch = make(kind, torch.float16), np.arange(N)
    store.start([batch], read=False)
    values = draw(np.random.default_rng(0), batch, ["lam", "kappa"])
    values["lam"].view(-1)[3] = math.inf
    store.write(0, values)
    store.finish(0)
    assert int(store.peek(batch)["lam"].isinf().sum()) == 1
