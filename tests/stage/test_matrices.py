"""Muon and Adam in a rotated basis against singular values, torch's own Muon and plain Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcsplit.stage.matrices import Muon, RotatedAdam, orthogonalised


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (1, 5)])
def test_orthogonalised_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int]) -> None:
    m = normal(*shape)
    u, _, vt = torch.linalg.svd(m, full_matrices=False)
    inside = u.T @ orthogonalised(m) @ vt.T
    values = inside.diagonal()
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    torch.testing.assert_close(inside, torch.diag(values), rtol=0, atol=1e-10)


def steps(optimizer: torch.optim.Optimizer, p: nn.Parameter, gradients: Sequence[Tensor]) -> Tensor:
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    return p.detach().clone()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_orthogonalised_is_five_steps_of_the_quintic_on_each_singular_value(shape: tuple[int, int]) -> None:
    m = normal(*shape, seed=3)
    u, s, vt = torch.linalg.svd(m, full_matrices=False)
    s = s / (m.norm() + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalised(m), u @ torch.diag(s) @ vt)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_muon_is_its_formula(shape: tuple[int, int]) -> None:
    gradients = [normal(*shape, seed=seed) for seed in range(3)]
    p = nn.Parameter(normal(*shape, seed=9))
    w, v = p.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    for g in gradients:
        v = 0.95 * v + g
        along = max(1.0, shape[0] / shape[1]) ** 0.5 * orthogonalised(g + 0.95 * v)
        w = w - 0.02 * (along + 0.3 * w)
    torch.testing.assert_close(steps(Muon([p], weight_decay=0.3), p, gradients), w)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_muon_is_torchs_on_matrices(shape: tuple[int, int]) -> None:
    """torch iterates in bfloat16, and weighs the newest gradient with 1 - μ, which the polar factor does not see."""
    gradients = [normal(*shape, seed=seed).float() for seed in range(4)]
    ends = []
    for kind in (Muon, torch.optim.Muon):
        p = nn.Parameter(normal(*shape, seed=9).float())
        ends.append(steps(kind([p], lr=0.1, momentum=0.9, weight_decay=0.01), p, gradients))
    torch.testing.assert_close(ends[0], ends[1], rtol=0.05, atol=0.02)


def test_muon_takes_a_kernel_as_a_matrix_and_a_vector_as_it_is() -> None:
    gradients = [normal(4, 3, 2, 2, seed=seed) for seed in range(3)]
    kernel, matrix = (nn.Parameter(torch.zeros(*shape, dtype=torch.float64)) for shape in ((4, 3, 2, 2), (4, 12)))
    ends = [steps(Muon([p], lr=0.1), p, [g.reshape(p.shape) for g in gradients]) for p in (kernel, matrix)]
    torch.testing.assert_close(ends[0].flatten(1), ends[1], rtol=0, atol=0)
    vector = nn.Parameter(normal(5))
    expected = vector.detach().clone()
    v = torch.zeros_like(expected)
    for g in gradients:
        g = g.flatten()[:5]
        v = 0.8 * v + g
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (g + 0.8 * v)
    found = steps(Muon([vector], lr=0.1, momentum=0.8, weight_decay=0.5), vector, [g.flatten()[:5] for g in gradients])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4, 3, 2, 2), (5,)])
def test_rotated_adam_goes_with_a_rotation_of_its_matrix(shape: tuple[int, ...]) -> None:
    """Gradients in another basis of the smaller side give the same weights in that basis; plain Adam's are others."""
    gradients = [normal(*shape, seed=seed) for seed in range(8)]
    rows = len(shape) > 1 and shape[0] <= gradients[0].flatten(1).shape[1]
    side = min(gradients[0].flatten(1).shape) if len(shape) > 1 else 1
    turn = torch.linalg.qr(normal(side, side, seed=99)).Q

    def turned(t: Tensor) -> Tensor:
        if len(shape) == 1:
            return t
        there: Tensor = (turn @ t.flatten(1)).reshape(t.shape) if rows else (t.flatten(1) @ turn).reshape(t.shape)
        return there

    def end(kind: type[torch.optim.Optimizer], *, before: bool) -> Tensor:
        p = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))
        options: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.9)} | ({"every": 2} if kind is RotatedAdam else {})
        optimizer = kind([p], **options)
        last = steps(optimizer, p, [turned(g) if before else g for g in gradients])
        return last if before else turned(last)

    torch.testing.assert_close(end(RotatedAdam, before=True), end(RotatedAdam, before=False), rtol=1e-6, atol=1e-8)
    if len(shape) > 1:
        assert float((end(torch.optim.Adam, before=True) - end(torch.optim.Adam, before=False)).abs().max()) > 0.01


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4, 3, 2, 2), (3, 3)])
def test_rotated_adam_is_its_formula(shape: tuple[int, ...]) -> None:
    """By matrices, from one side; the basis is that of the first gradient, and turns every third step."""
    gradients = [normal(*shape, seed=seed) for seed in range(7)]
    p = nn.Parameter(normal(*shape, seed=9))
    found = steps(RotatedAdam([p], weight_decay=0.3, eps=1e-3, every=3), p, gradients)
    flat = [g.flatten(1) for g in gradients]
    tall = flat[0].shape[0] > flat[0].shape[1]
    flat = [g.T if tall else g for g in flat]
    w = normal(*shape, seed=9).flatten(1)
    w = w.T if tall else w
    m, v, gram, q = torch.zeros_like(w), torch.zeros_like(w), torch.zeros(len(w), len(w), dtype=w.dtype), None
    for done, g in enumerate(flat, start=1):
        m, gram = 0.9 * m + 0.1 * g, 0.999 * gram + 0.001 * g @ g.T
        if q is None:
            q = torch.linalg.eigh(g @ g.T).eigenvectors
        elif done % 3 == 0:
            q = torch.linalg.qr(gram @ q).Q
        v = 0.999 * v + 0.001 * (q.T @ g).square()
        along = q @ ((q.T @ m) / (1 - 0.9**done) / ((v / (1 - 0.999**done)).sqrt() + 1e-3))
        w = w - 1e-3 * (along + 0.3 * w)
    torch.testing.assert_close(found, (w.T if tall else w).reshape(shape))


def test_rotated_adam_is_adamw_where_the_basis_is_the_axes() -> None:
    """Gradients of one row each keep g gᵀ diagonal; vectors have no basis at all."""
    gradients = []
    for seed in range(6):
        g = torch.zeros(3, 4, dtype=torch.float64)
        g[seed % 3] = normal(4, seed=seed)
        gradients.append(g)
    ends = []
    for kind in (RotatedAdam, torch.optim.AdamW):
        p = nn.Parameter(normal(3, 4, seed=9))
        ends.append(steps(kind([p], lr=0.1, betas=(0.8, 0.9), weight_decay=0.1), p, gradients))
    torch.testing.assert_close(ends[0], ends[1])


def test_the_basis_follows_the_mean_square_of_the_gradients() -> None:
    """Where it stays the first gradient's, a hundred others of another covariance are far from diagonal in it."""
    root = normal(3, 3, seed=5) @ torch.diag(torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64))
    p = nn.Parameter(torch.zeros(3, 8, dtype=torch.float64))
    optimizer = RotatedAdam([p], betas=(0.9, 0.9), every=2)
    steps(optimizer, p, [normal(3, 8), *(root @ normal(3, 8, seed=seed) for seed in range(100))])
    state = optimizer.state[p]
    inside = state["basis"].T @ state["gram"] @ state["basis"]
    assert float((inside - torch.diag(inside.diagonal())).norm() / inside.norm()) < 0.1
    torch.testing.assert_close(state["basis"].T @ state["basis"], torch.eye(3, dtype=torch.float64))
