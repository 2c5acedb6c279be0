"""How pdADMM goes on: convergence, the end of a run, messages of fewer bits, growing networks, the frozen control."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

from hpcsplit.methods.pdadmm import PdAdmm
from hpcsplit.stage.carry import Carry
from hpcsplit.terms.quantise import rounded
from hpcsplit.wire.port import NEXT, PREV, Recv, Send
from tests.methods.layered import Network

RHO, NU = 0.7, 0.3
METHOD = PdAdmm(rho=RHO, nu=NU)


# ------------------------------------------------------------------------------------------------ convergence


@pytest.fixture(scope="module")
def descent() -> list[dict[str, float]]:
    """The terms of 200 iterations with ρ = 10 ν."""
    torch.set_num_threads(1)
    return Network(PdAdmm(rho=1.0, nu=0.1, tolerance=1e-10, fista_steps=5000), 2).start().iterate(200).terms


def test_the_objective_falls_in_every_iteration(descent: list[dict[str, float]]) -> None:
    """0.36 at first, 0.011 after 10 iterations, 0.0016 after 200."""
    objective = [terms["objective"] for terms in descent]
    assert all(later < sooner for sooner, later in pairwise(objective))
    assert objective[9] < 0.05 * objective[0]
    assert 0 < objective[-1] < 0.01 * objective[0]


def test_the_residual_goes_to_zero(descent: list[dict[str, float]]) -> None:
    """5e-5 in the second iteration, 3e-9 in the last."""
    residual = [terms["residual_sq"] for terms in descent]
    assert max(residual) < 1e-4
    assert max(residual[150:]) < 1e-8


def test_k_times_the_least_squared_step_so_far_goes_down(descent: list[dict[str, float]]) -> None:
    """The o(1/k) of the paper: 45, 0.14, 0.009 and 0.008 after 1, 10, 100 and 200 iterations."""
    steps = [terms["step_sq"] + terms["weights_step_sq"] for terms in descent]
    k_times_least = [k * min(steps[:k]) for k in (1, 3, 10, 30, 100, 200)]
    assert all(later < sooner for sooner, later in pairwise(k_times_least))
    assert k_times_least[-1] < 0.1 * k_times_least[2]


def test_with_a_rho_far_below_nu_it_rises() -> None:
    """Seen with ρ ≤ ν/10 here, in no iteration with ρ ≥ ν/5; from the fifth iteration on with ν/100."""
    network = Network(PdAdmm(rho=0.01, nu=1.0, tolerance=1e-8, fista_steps=5000), 2).start().iterate(20)
    objective = [terms["objective"] for terms in network.terms]
    assert any(later > sooner for sooner, later in pairwise(objective))


# ------------------------------------------------------------------------------------------------ the end of a run


def verdicts(method: PdAdmm, objectives: list[float]) -> list[str | None]:
    stage = Network(method).stages[0]
    return [method.verdict(stage, {"objective": value}) for value in objectives]


def test_as_many_rises_in_a_row_as_patience_end_the_run() -> None:
    """A fall and a standstill begin the count anew."""
    assert [bool(v) for v in verdicts(PdAdmm(patience=2), [3, 4, 5])] == [False, False, True]
    assert [bool(v) for v in verdicts(PdAdmm(patience=1), [3, 2, 2.5])] == [False, False, True]
    assert not any(verdicts(PdAdmm(patience=2), [3, 4, 3.5, 5, 5, 6, 1, 7]))
    sentence = verdicts(PdAdmm(rho=1e-3, nu=10.0, patience=3), [1, 2, 3, 4.5])[-1]
    assert sentence == (
        "the augmented Lagrangian has risen 3 times in a row, to 4.5 a sample: "
        "raise method.rho = 0.001 or lower method.nu = 10 (method.patience = 3)"
    )


def test_the_count_of_rises_is_carried() -> None:
    method, stages = PdAdmm(patience=2), Network(PdAdmm(), 2).stages
    assert method.verdict(stages[0], {"objective": 1.0}) is None
    assert method.verdict(stages[0], {"objective": 2.0}) is None
    stages[1].carry = Carry(dict(stages[0].carry))
    assert method.verdict(stages[1], {"objective": 3.0})


def test_variables_that_start_anew_are_not_compared_with_the_old_ones() -> None:
    method, network = PdAdmm(patience=1), Network(PdAdmm())
    (stage,) = network.stages
    assert method.verdict(stage, {"objective": 1.0}) is None
    network.start()
    assert method.verdict(stage, {"objective": 2.0}) is None
    assert method.verdict(stage, {"objective": 3.0})


# ------------------------------------------------------------------------------------------------ in fewer bits


@pytest.mark.parametrize(
    ("exchange", "kinds"),
    [
        ("float32", {"p0": torch.float32, "q0": torch.float32}),
        ("float16", {"p0": torch.float16, "q0": torch.float16}),
        ("int8", {"p0": torch.int8, "p1": torch.bfloat16, "q0": torch.int8, "q1": torch.bfloat16}),
    ],
)
def test_messages_have_the_type_of_the_exchange(exchange: str, kinds: dict[str, torch.dtype]) -> None:
    network = Network(PdAdmm(exchange=exchange), 3, dtype=torch.float32).start().iterate()
    sent = {(verb.side, verb.name): verb.tensor.dtype for verb in network.heard if isinstance(verb, Send)}
    assert sent == {(PREV if name[0] == "p" else NEXT, name): kind for name, kind in kinds.items()} | {
        (NEXT, "u"): torch.float32
    }
    assert {verb.name: verb.dtype for verb in network.heard if isinstance(verb, Recv)} == kinds | {"u": torch.float32}


@pytest.mark.parametrize("exchange", ["float16", "int8"])
def test_p_and_q_are_what_a_message_can_hold(exchange: str) -> None:
    network = Network(PdAdmm(rho=RHO, nu=NU, exchange=exchange), 2, dtype=torch.float32).start()
    for _ in range(3):
        rows = {name: t for name, t in network.everything().items() if name[0] in "pq"}
        assert len(rows) == 6
        for name, t in rows.items():
            assert torch.equal(rounded(t, exchange), t), name
        network.iterate()


@pytest.mark.parametrize("exchange", ["float32", "float16", "int8"])
def test_it_starts_with_every_constraint_met(exchange: str) -> None:
    v = Network(PdAdmm(exchange=exchange), 2, dtype=torch.float32).start().point()
    for j in range(4):
        assert v.residual(j).abs().max() < 1e-6
    torch.testing.assert_close(v.p[1:], v.q, rtol=0, atol=0)
    assert not any(u.any() for u in v.u)


def test_fewer_bits_still_learn() -> None:
    """From 0.3585 to 0.00448 in 30 iterations; 0.00448 in float16 and 0.00456 in int8."""
    ends = {}
    for exchange in ("float32", "float16", "int8"):
        network = Network(PdAdmm(rho=1.0, nu=0.1, exchange=exchange), 2, dtype=torch.float32).start().iterate(30)
        ends[exchange] = network.terms[-1]["objective"]
        assert ends[exchange] < 0.02 * network.terms[0]["objective"]
    assert ends["float16"] == pytest.approx(ends["float32"], rel=0.02)
    assert ends["int8"] == pytest.approx(ends["float32"], rel=0.1)
    assert len(set(ends.values())) == 3


# ------------------------------------------------------------------------------------------------ growing


GROWING = PdAdmm(rho=RHO, nu=NU, grow=(1, 2, 3), grow_every=4)


def shallow(network: Network, hidden: int) -> list[nn.Sequential]:
    """The network without its absent layers, in one stage."""
    blocks = [block for stage in network.stages for block in stage.blocks]
    copies = copy.deepcopy([*blocks[:hidden], blocks[-1]])
    for block in copies:
        block._forward_hooks.clear()
    return [nn.Sequential(*copies)]


def test_layers_begin_to_train_phase_by_phase() -> None:
    network = Network(GROWING, 3)
    for epoch, hidden in ((0, 1), (3, 1), (4, 2), (7, 2), (8, 3), (100, 3)):
        taking_part = [part for stage in network.stages for part in GROWING.at(epoch).in_training(stage)]
        assert taking_part == [True] * hidden + [False] * (3 - hidden) + [True]


def test_variables_start_anew_where_layers_are_added() -> None:
    assert [k for k in range(30) if GROWING.restarts(k)] == [4, 8]
    assert not any(METHOD.restarts(k) for k in range(100))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_absent_layers_are_the_identity_and_the_network_a_shallow_one(stages: int) -> None:
    network = Network(GROWING, stages, blocks=2, dtype=torch.float32).start().iterate(4)
    first, second, third, _ = network.layers()
    for absent in (second, third):
        assert torch.equal(absent.weight, torch.eye(4))
        assert not absent.bias.any()
    assert not torch.equal(first.weight, Network(GROWING).layers()[0].weight.float())
    whole = copy.deepcopy(nn.Sequential(*(block for stage in network.stages for block in stage.blocks)))
    assert torch.equal(whole(network.x), shallow(network, 1)[0](network.x))
    network.iterate(5)
    assert all(not torch.equal(layer.weight, torch.eye(4)) for layer in network.layers()[1:3])


@pytest.mark.parametrize("exchange", ["float32", "int8"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("hidden", [1, 2])
def test_layers_in_training_move_as_in_the_shallow_network(hidden: int, stages: int, exchange: str) -> None:
    """Bit for bit, with absent layers at the end and at the beginning of a stage and on whole stages."""
    growing = dataclasses.replace(GROWING, exchange=exchange)
    network = Network(growing, stages, blocks=2, dtype=torch.float32).start().iterate(4 * (hidden - 1))
    plain = dataclasses.replace(growing, grow=())
    alone = Network(plain, parts=shallow(network, hidden), blocks=2, dtype=torch.float32).start()
    network.start().iterate(4)
    alone.iterate(4)
    numbers = [*range(hidden), 3]
    small, deep = alone.everything(), network.everything()
    for n, j in enumerate(numbers):
        torch.testing.assert_close(network.layers()[j].state_dict(), alone.layers()[n].state_dict(), rtol=0, atol=0)
        for name in "pzqu":
            assert (f"{name}{n}" in small) == (f"{name}{j}" in deep)
            if f"{name}{n}" in small:
                assert torch.equal(deep[f"{name}{j}"], small[f"{name}{n}"]), name
    assert network.terms[-4:] == [pytest.approx(terms, rel=1e-6) for terms in alone.terms]


# ------------------------------------------------------------------------------------------------ frozen


def test_frozen_leaves_all_weights_but_those_of_the_last_stage() -> None:
    network = Network(METHOD, 3, blocks=2, frozen=True).start()
    before = network.weights()
    network.iterate(2)
    moved = [not torch.equal(now, old) for now, old in zip(network.weights(), before, strict=True)]
    assert moved == [False] * 6 + [True] * 2
    assert all(not stage.carry for stage in network.stages)


def test_a_step_leaves_the_weights_to_the_end_of_the_pass() -> None:
    network = Network(METHOD, 2, blocks=1).randomise()
    before = network.weights()
    network.visit(METHOD)
    assert all(torch.equal(now, old) for now, old in zip(network.weights(), before, strict=True))
    assert all(stage.carry for stage in network.stages)
    network.iterate()
    assert not any(torch.equal(now, old) for now, old in zip(network.weights(), before, strict=True))
    assert not any(stage.carry for stage in network.stages)
