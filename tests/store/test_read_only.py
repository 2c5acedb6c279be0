"""Epochs that read the current generation and leave it as it is: `start(write=False)`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcsplit.store.store import Store
from tests.store.model import DTYPES, KINDS, Make, N, deal, draw, fresh_model, run_epoch, same


def look(store: Store, model: dict[str, torch.Tensor], rng: np.random.Generator, steps: int | None = None) -> None:
    """Begin an epoch that writes nothing, and read some of its batches or all; every read is compared."""
    batches = deal(rng, int(rng.integers(5, 40)))
    store.start(batches, write=False)
    for step, batch in enumerate(batches[:steps]):
        assert same(store.read(step), {name: value[batch] for name, value in model.items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_that_only_reads_leaves_the_generation_as_it_is(make: Make, kind: str, dtype: torch.dtype) -> None:
    store, rng, model = make(kind, dtype), np.random.default_rng(0), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    run_epoch(store, model, rng, 1, ["lam", "kappa"])
    before = store.describe()
    for _ in range(2):
        look(store, model, rng)
        store.finish(7)
        assert store.describe() == before
    assert torch.equal(store.peek(np.arange(N))["lam"], model["lam"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_that_only_reads_refuses_to_write(make: Make, kind: str) -> None:
    store, rng, model = make(kind), np.random.default_rng(0), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    batches = deal(rng)
    store.start(batches, write=False)
    store.read(0)
    with pytest.raises(AssertionError, match="write=False"):
        store.write(0, draw(rng, batches[0], ["lam", "kappa"]))
    store.finish(1)
    assert torch.equal(store.peek(np.arange(N))["lam"], model["lam"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_that_only_reads_needs_something_stored(make: Make, kind: str) -> None:
    with pytest.raises(AssertionError, match="nothing is stored"):
        make(kind).start(deal(np.random.default_rng(0)), write=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [None, 1])
def test_an_epoch_reads_and_writes_as_usual_after_one_that_only_read(make: Make, kind: str, steps: int | None) -> None:
    store, rng, model = make(kind), np.random.default_rng(0), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    for epoch in (1, 2, 3):
        look(store, model, rng, steps)
        store.finish(epoch)
        run_epoch(store, model, rng, epoch, ["lam", "kappa"])
        assert store.epoch == epoch


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_may_read_while_a_checkpoint_refers_to_the_other_slot(make: Make, kind: str) -> None:
    store, rng, model = make(kind), np.random.default_rng(0), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    store.protect(store.describe()["slot"])
    run_epoch(store, model, rng, 1, ["lam", "kappa"])
    look(store, model, rng)
    store.finish(2)
    with pytest.raises(AssertionError, match="a checkpoint refers to slot"):
        store.start(deal(rng))
    store.protect(None)
    run_epoch(store, model, rng, 2, ["lam", "kappa"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_that_only_reads_keeps_constants(make: Make, kind: str) -> None:
    store, rng, model = make(kind), np.random.default_rng(0), fresh_model()
    run_epoch(store, model, rng, 0, ["lam", "kappa"], read=False)
    store.fill("kappa", 0.25)
    model["kappa"].fill_(0.25)
    look(store, model, rng)
    store.finish(1)
    assert store.filled == {"kappa": 0.25}
