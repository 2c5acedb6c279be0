"""Random epochs of a store of either kind, compared with a plain dictionary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hpcsplit.store.store import Field, Store

N = 103
FIELDS = [Field("lam", (3, 5), 4), Field("kappa", (7,), 4)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["memory", "hdf5"]
Make = Callable[..., Store]


def deal(rng: np.random.Generator, size: int = 16) -> list[np.ndarray]:
    order = rng.permutation(N)
    return [order[first : first + size] for first in range(0, N, size)]


def draw(rng: np.random.Generator, batch: np.ndarray, names: list[str]) -> dict[str, torch.Tensor]:
    shapes = {field.name: field.shape for field in FIELDS}
    return {n: torch.from_numpy(rng.standard_normal((len(batch), *shapes[n]), np.float32)) for n in names}


def run_epoch(
    store: Store,
    model: dict[str, torch.Tensor],
    rng: np.random.Generator,
    epoch: int,
    names: list[str],
    read: bool = True,
) -> None:
    """One epoch of random values; every read is compared with the model, which is the plain truth."""
    batches = deal(rng, int(rng.integers(5, 40)))
    store.start(batches, read=read)
    changed = {name: value.clone() for name, value in model.items()}
    for step, batch in enumerate(batches):
        if read:
            values = store.read(step)
            assert values.keys() == model.keys()
            for name, value in values.items():
                assert value.dtype == torch.float32
                assert torch.equal(value, model[name][batch]), (name, step)
                value.fill_(-99.0)  # the caller's to keep
        values = draw(rng, batch, names)
        store.write(step, values)
        for name, value in values.items():
            changed[name][batch] = value.to(store.dtype).float()
    store.finish(epoch)
    model.update(changed)


def fresh_model() -> dict[str, torch.Tensor]:
    return {field.name: torch.full((N, *field.shape), torch.nan) for field in FIELDS}


def content(store: Store) -> dict[str, torch.Tensor]:
    """All rows of the current generation by sample, through an epoch that changes nothing."""
    batches = deal(np.random.default_rng(99))
    store.start(batches)
    found = fresh_model()
    for step, batch in enumerate(batches):
        values = store.read(step)
        for name, value in values.items():
            found[name][batch] = value
        store.write(step, values)
    store.finish(0 if store.epoch is None else store.epoch)
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
