"""Formulas (9) and (11) against numbers from hand, and the forecast of a step from the stages as they are cut."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hpcsplit.methods.backprop import Backprop
from hpcsplit.plan.blocks import BlockTime
from hpcsplit.plan.forecast import Forecast, forecast, gamma_of, hybrid
from hpcsplit.plan.prepare import expect_together
from hpcsplit.plan.profile import CutCost, Profile
from hpcsplit.run.folder import RunDir

#            forward, backward      whole network: t_f = 10, t_b = 20 + 0.5 for the optimizer, t_d = 1.5
TIMES = ((1.0, 2.0), (4.0, 8.0), (3.0, 6.0), (2.0, 4.0))
PROFILE = Profile(
    blocks=tuple(BlockTime(*times) for times in TIMES),
    pieces=tuple(BlockTime(f / 2, b / 2) for f, b in TIMES),
    microbatches=2,
    cut_costs=(
        CutCost(),
        CutCost(0.25, 0.5, 0.125, 0.25),
        CutCost(0.5, 1.0, 0.25, 0.5),
        CutCost(0.25, 0.25, 0.25, 0.25),
    ),
    params=(10, 20, 10, 10),
    update_s=0.01,
    data_s=1.5,
)


def test_the_formulas_have_the_paper_s_terms_and_not_its_misprint() -> None:
    f = forecast(PROFILE, (2,), gamma=0.25)
    assert (f.t_f, f.t_b, f.t_d) == (10.0, 20.5, 1.5)
    assert (f.t_psi, f.t_lam, f.t_kappa) == (0.5, 1.0 + 0.5, 0.25)  # messages are put together in t_λ
    assert f.t_s == 32.0
    assert f.t_p == 30.5 / 2 + 2.25  # (t_f + t_b) / K, where (11) prints (t_s + t_b) / K
    assert f.rho_k == pytest.approx(32.0 / 17.5)
    assert f.rho_h == pytest.approx(1.25 / (17.5 / 32.0 + 0.25))


def test_one_rank_is_an_exact_step() -> None:
    f = forecast(PROFILE, (), gamma=4.0)
    assert f.parallel_s == f.t_s == f.exact_s  # micro-batches of half a mini-batch take half as long here
    assert f.rho_h == pytest.approx(5 / (30.5 / 32 + 4))  # (9) charges no data loader to parallel epochs


def test_a_parallel_step_is_as_long_as_its_slowest_stage() -> None:
    f = forecast(PROFILE, (2,), gamma=0.25)
    first = 15.0 + 0.3 + 1.5 + 0.5 + 0.25  # blocks, optimizer, data, t_ψ, half of the packing
    second = 15.0 + 0.2 + 1.0 + 0.25 + 0.25
    assert PROFILE.parallel_stage_s((2,)) == pytest.approx([first, second])
    assert f.parallel_s == pytest.approx(first)
    assert f.hybrid_speed_up_one_device == pytest.approx(1.25 / (first / 32 + 0.25))


def test_equal_stages_are_bound_by_the_bubble() -> None:
    blocks = (BlockTime(1.0, 2.0),) * 3
    pieces = (BlockTime(0.25, 0.5),) * 3
    f = forecast(Profile(blocks, pieces, 4, (), (1, 1, 1), 0.0, 0.0), (1, 2), gamma=1.0)
    assert f.exact_s == pytest.approx((3 + 4 - 1) * 0.75)
    assert f.exact_speed_up == pytest.approx(3 * 4 / (3 + 4 - 1))
    assert f.hybrid_speed_up == pytest.approx(2 / (1 / 3 + 1 / 2))


def test_messages_of_an_exact_step_are_put_together() -> None:
    profile = Profile(PROFILE.blocks, PROFILE.pieces, 2, (), PROFILE.params, 0.0, 0.0, packing_s=0.001)
    alone, with_messages = (forecast(profile, (2,), None, bytes_) for bytes_ in ([], [500]))
    # each stage sends 500 bytes a mini-batch; a micro-batch on the way through both, and one more in the slower stage
    assert with_messages.exact_s - alone.exact_s == pytest.approx(0.25 + 0.25 + 0.25)


UNEQUAL = Profile(  # the dearest cut, the longest stage and the largest optimizer step are each in another place
    blocks=tuple(BlockTime(*times) for times in TIMES),
    pieces=tuple(BlockTime(f / 4, b / 8) for f, b in TIMES),
    microbatches=3,
    cut_costs=(CutCost(), CutCost(0.25, 2.0, 0.125, 0.25), CutCost(0.5, 1.0, 0.75, 0.5), CutCost(0.75, 0.5, 0.5, 1.5)),
    params=(40, 5, 10, 10),
    update_s=0.01,
    data_s=1.5,
    packing_s=0.001,
)


def test_the_dearest_cut_counts_of_each_kind() -> None:
    f = forecast(UNEQUAL, (1, 2, 3), 1.0)
    assert (f.t_psi, f.t_lam, f.t_kappa) == (0.75, 2.0 + 1.5, 0.75)
    assert (f.ranks, f.microbatches) == (4, 3)


def test_the_slowest_stage_and_the_largest_optimizer_step_bound_an_exact_step() -> None:
    f = forecast(UNEQUAL, (1, 3), 1.0, [100, 300])
    # pieces: f/4 + b/8; messages: 0.001 s a byte of both edges, a third of them with each micro-batch
    first = 0.25 + 0.25 + 0.1 / 3
    middle = 1.75 + 1.75 + 0.4 / 3
    last = 0.5 + 0.5 + 0.3 / 3
    assert f.exact_s == pytest.approx(1.5 + first + middle + last + 2 * middle + 0.4)


def test_a_schedule_without_parallel_epochs_is_as_fast_as_its_pipeline() -> None:
    assert gamma_of(("serial", "serial")) is None
    assert gamma_of(("serial", "parallel", "parallel", "serial", "parallel")) == pytest.approx(2 / 3)
    assert hybrid(None, 9.0, 1.5) == 1.5
    assert forecast(PROFILE, (2,), None).as_dict()["hybrid_speed_up"] == forecast(PROFILE, (2,), None).exact_speed_up


def test_a_parallel_step_in_micro_batches_takes_their_time() -> None:
    cut = replace(PROFILE, cut=tuple(BlockTime(2 * f, 3 * b) for f, b in TIMES))
    f = forecast(cut, (2,), gamma=0.25)
    assert f.parallel_s == pytest.approx(2 * 5.0 + 3 * 10.0 + 0.3 + 1.5 + 0.5 + 0.25)
    assert f.t_s == forecast(PROFILE, (2,), gamma=0.25).t_s
    assert [block.forward_s for block in cut.deeper(2).parallel] == [2.0, 8.0, 8.0, 6.0, 6.0, 4.0]
    assert [block.backward_s for block in cut.slowed((2,), (1.0, 3.0)).parallel] == [6.0, 24.0, 54.0, 36.0]


@pytest.mark.parametrize("profile", [PROFILE, replace(PROFILE, cut=PROFILE.blocks[::-1])])
def test_a_profile_comes_back_from_json(profile: Profile) -> None:
    assert Profile.from_dict(json.loads(json.dumps(asdict(profile)))) == profile


def test_a_deeper_network_has_each_inner_block_several_times() -> None:
    deep = PROFILE.deeper(2)
    assert deep.params == (10, 20, 20, 10, 10, 10)
    assert [block.forward_s for block in deep.blocks] == [1.0, 4.0, 4.0, 3.0, 3.0, 2.0]
    # a cut before the second of two alike stands at what the first of them returns
    assert deep.cut_costs == tuple(PROFILE.cut_costs[i] for i in (0, 1, 2, 2, 3, 3))


def test_stages_may_take_longer_each_by_its_own_factor() -> None:
    slow = PROFILE.slowed((2,), (1.0, 3.0))
    assert slow.blocks_s((2,)) == pytest.approx([15.0, 45.0])
    assert [piece.forward_s for piece in slow.pieces] == [0.5, 2.0, 4.5, 3.0]
    assert (slow.update_s, slow.data_s) == (0.02, 3.0)  # the mean of both
    assert slow.cut_costs[2] == CutCost(1.0, 2.0, 0.5, 1.0)
    assert PROFILE.slowed((), (1.0,)) == PROFILE


def written(path: Path, profile: Profile) -> tuple[RunDir, Forecast]:
    """A run directory with the forecast that `prepare` has made of a profile, cut before block 2."""
    run, found = RunDir(path), forecast(profile, (2,), 0.25, [0])
    values = {"forecast": found.as_dict(), "cuts": [2], "edge_bytes": [0], "profile": asdict(profile)}
    run.save_forecast({"key": "", "batch_size": 128, "one_rank_samples_per_s": 4.0, **values})
    return run, found


def test_the_forecast_of_a_run_takes_stages_that_compute_at_once(tmp_path: Path) -> None:
    run, before = written(tmp_path, PROFILE)
    together = 2 * 1.5 * (before.exact_s - 0.3)
    expect_together(run, [1.5 * 15, 1.5 * 15], {True: together, False: together + 1.0}, Backprop(2, deferred=True))
    found = run.load_forecast()
    assert found
    assert (found["deferred"], found["exact_s"]) == (True, {"deferred": together, "whole": together + 1.0})
    assert Profile.from_dict(found["profile"]) == PROFILE  # of a rank alone, for simulations of other machines
    # half as long again since they compute at once, twice as long since a whole step has more than its parts
    assert Profile.from_dict(found["profile_together"]).blocks_s((2,)) == pytest.approx([45.0, 45.0])
    assert found["forecast"]["parallel_s"] == pytest.approx(3 * before.parallel_s)
    assert found["forecast"]["exact_s"] == pytest.approx(3 * before.exact_s)
    assert found["forecast"]["t_s"] == before.t_s  # one device has nobody beside it
    assert found["forecast"]["parallel_speed_up"] == pytest.approx(before.parallel_speed_up / 3)


def test_stages_that_could_not_be_timed_at_once_are_as_they_were_alone(tmp_path: Path) -> None:
    run, before = written(tmp_path, PROFILE)
    expect_together(run, [1.5 * 15.0, None], {False: before.exact_s - 0.3}, Backprop(2))
    assert (run.load_forecast() or {})["forecast"] == pytest.approx(before.as_dict())


@pytest.mark.parametrize("waits", [True, False])
def test_the_forecast_is_one_of_the_steps_that_the_run_will_have(tmp_path: Path, waits: bool) -> None:
    """Whether weight gradients wait: parallel steps take as much longer than their parts as exact steps do."""
    alone = replace(PROFILE, late=tuple(replace(piece, weights_s=piece.backward_s / 2) for piece in PROFILE.pieces))
    run, waiting = written(tmp_path, alone)
    gains = {True: waiting, False: forecast(PROFILE, (2,), 0.25, [0])}
    assert gains[True].exact_s < gains[False].exact_s
    exact_s = {way: 2 * (gain.exact_s - 0.3) for way, gain in gains.items()}
    expect_together(run, [None, None], exact_s, Backprop(2, deferred=waits))
    found = run.load_forecast() or {}
    assert found["forecast"]["exact_s"] == pytest.approx(2 * gains[waits].exact_s)
    assert found["forecast"]["parallel_s"] == pytest.approx(2 * gains[waits].parallel_s)
    assert Profile.from_dict(found["profile"]) == (alone if waits else PROFILE)
