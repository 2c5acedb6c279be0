"""What rank 0 finds out before a run: the cuts from the costs that are asked for, the profile, the baseline, the
forecast; on a clock of which every tick is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from hpcsplit.config import Config
from hpcsplit.errors import ConfigError
from hpcsplit.plan import measure, prepare
from hpcsplit.plan.blocks import BlockCost, BlockTime
from hpcsplit.plan.forecast import forecast, gamma_of
from hpcsplit.plan.measure import enough_steps, profile
from hpcsplit.plan.profile import CutCost, Profile
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from tests.engine.small import config

CPU = torch.device("cpu")
TIMED: dict[str, Any] = {"run__baseline": True, "run__runner": "mpi"}


def block(params: int, flops: int) -> BlockCost:
    return replace(BLOCK, params=params, flops=flops)


def with_blocks(cfg: Config, blocks: list[BlockCost]) -> Setting:
    setting = Setting(cfg)
    vars(setting)["blocks"] = blocks
    return setting


BLOCK = Setting(config()).blocks[0]
# By parameters the best cut is before block 1, by FLOPs before 2, by measured seconds before 3.
BLOCKS = [block(90, 10), block(10, 50), block(40, 30), block(40, 30)]
SECONDS = [1.0, 1.0, 1.0, 3.0]
MEASURED = Profile(
    blocks=tuple(BlockTime(s / 4, 3 * s / 4) for s in SECONDS),
    pieces=(),
    microbatches=1,
    cut_costs=(CutCost(), CutCost(psi_s=0.1), CutCost(lam_s=0.1), CutCost(kappa_s=0.2, packing_s=0.2)),
    params=(90, 10, 40, 40),
    update_s=0.0,
    data_s=0.0,
)


@pytest.mark.parametrize(
    ("asked", "measured", "cuts", "costs"),
    [
        ("params", MEASURED, (1,), (90, 10, 40, 40)),
        ("flops", MEASURED, (2,), (10, 50, 30, 30)),
        ("time", None, (2,), (10, 50, 30, 30)),
        ("time", MEASURED, (3,), (1.0, 1.0, 1.2, 3.2)),
        ([1], MEASURED, (1,), (10, 50, 30, 30)),
    ],
)
def test_the_cuts_balance_what_is_asked_for(asked: Any, measured: Profile | None, cuts: Any, costs: Any) -> None:
    found = prepare.choose_cuts(with_blocks(config(split__cuts=asked), BLOCKS), 2, measured)
    assert found[0] == cuts
    assert found[1] == pytest.approx(costs)


def test_cuts_for_another_number_of_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"split\.cuts = \[1\] makes 2 stages, not 3"):
        prepare.choose_cuts(with_blocks(config(split__cuts=[1]), BLOCKS), 3)


def test_a_profile_has_every_part() -> None:
    setting = Setting(config(schedule__microbatches=4))
    net = setting.net
    weights = {name: t.clone() for name, t in net.state_dict().items()}
    found = profile(setting, CPU, repeats=1)
    assert len(found.blocks) == len(found.pieces) == len(found.cut_costs) == len(found.params) == len(net)
    assert found.params == tuple(sum(p.numel() for p in part.parameters()) for part in net)
    assert found.microbatches == 4
    assert (found.own, found.cut) == (1, ())
    assert all(each.forward_s > 0 and each.backward_s > 0 for each in (*found.blocks, *found.pieces))
    assert all(join.psi_s > 0 and join.lam_s > 0 and join.packing_s > 0 for join in found.cut_costs[1:])
    assert min(found.update_s, found.data_s, found.packing_s) > 0
    assert profile(setting, CPU, cuts=False, repeats=1).cut_costs == ()
    assert all(torch.equal(t, weights[name]) for name, t in net.state_dict().items())


def test_a_method_with_micro_batches_of_its_own_is_timed_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of n samples take n and 2n seconds here; half of these are weight gradients where they wait."""

    def times(net: Any, costs: Any, sizes: Any, *, deferred: Sequence[int], **_: Any) -> list[list[BlockTime]]:
        plain = [BlockTime(float(n), 2.0 * n) for n in sizes]
        return [[time] * len(costs) for time in (*plain, *(BlockTime(n, 2.0 * n, n) for n in deferred))]

    monkeypatch.setattr(measure, "block_times", times)
    pieces: dict[str, Any] = {"method__name": "delayed", "method__microbatches": 3, "schedule__microbatches": 2}
    found, late = (
        profile(Setting(config(data__batch_size=36, schedule__deferred=waits, **pieces)), CPU)
        for waits in (False, True)
    )
    assert (found.own, found.microbatches) == (3, 2)
    assert found.blocks[0] == BlockTime(36.0, 72.0)
    assert found.pieces[0] == BlockTime(18.0, 36.0)
    assert found.cut[0] == BlockTime(36.0, 72.0)  # three of 12
    assert found.late == ()
    assert (late.blocks, late.pieces, late.cut) == (found.blocks, found.pieces, found.cut)
    assert late.late[0] == BlockTime(18.0, 36.0, 18.0)


@pytest.mark.parametrize(
    ("seconds", "steps"), [((0.25, 0.25), 2), ((0.05, 0.05), 10), ((0.001,), 20), ((None, 1.0), 2)]
)
def test_a_rehearsal_takes_a_second(seconds: tuple[float | None, ...], steps: int) -> None:
    assert enough_steps(seconds) == steps


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the baseline: its steps take 100, 100, 100 (warm-up), then 4, 2, 8, 2 and 16 s."""
    marks, now = [], 0.0
    for seconds in (100, 100, 100, 4, 2, 8, 2, 16):
        marks += [now, now + seconds]
        now += seconds + 7
    clock = SimpleNamespace(perf_counter=iter(marks).__next__)

    def timed(setting: Setting, device: torch.device) -> float | None:
        with patch.object(measure, "time", clock):
            return measure.one_rank_alone(setting, device)

    monkeypatch.setattr(prepare, "one_rank_alone", timed)


def test_a_first_start_times_itself_and_keeps_what_it_found(tmp_path: Path, ticking: None) -> None:
    cfg, run_dir = config(2, schedule__ratio="1:4", **TIMED), RunDir(tmp_path / "run")
    found = prepare.prepare(Setting(cfg), run_dir, 2, CPU)
    assert found.baseline_samples_per_s == 32 / 4  # the median of the five after the warm-up
    assert found.cuts == (3,)
    assert found.rehearse
    kept = run_dir.load_forecast()
    assert kept is not None
    assert kept["one_rank_samples_per_s"] == 8.0
    assert (kept["batch_size"], kept["cuts"]) == (32, [3])
    measured = Profile.from_dict(json.loads(json.dumps(kept["profile"])))
    assert measured.serial_s == pytest.approx(32 / 8)  # with what is around the blocks
    gamma = gamma_of(Setting(cfg).phases)
    assert kept["forecast"] == forecast(measured, (3,), gamma, kept["edge_bytes"]).as_dict()
    assert kept["edge_bytes"] == [32 * 4 * torch.Size(Setting(cfg).shapes[3]).numel()]


def test_what_was_the_quicker_form_of_an_exact_step_stays(tmp_path: Path, ticking: None) -> None:
    cfg, run_dir = config(2, schedule__ratio="1:4", **TIMED), RunDir(tmp_path / "run")
    assert prepare.prepare(Setting(cfg), run_dir, 2, CPU).deferred
    kept = run_dir.load_forecast() or {}
    run_dir.save_forecast(kept | {"profile_together": kept["profile"], "deferred": False})
    later = RunDir(tmp_path / "run")
    with patch.object(prepare, "one_rank_alone", lambda *_: 8.0):
        again = prepare.prepare(Setting(cfg), later, 2, CPU)
        assert (again.rehearse, again.deferred) == (False, False)
        other = config(2, schedule__ratio="1:4", **TIMED | {"data__batch_size": 16})  # another step
        later.save_forecast(kept | {"key": "", "deferred": False})
        assert prepare.prepare(Setting(other), later, 2, CPU).deferred


def test_cuts_that_were_chosen_once_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, run_dir = config(2, split__cuts="params"), RunDir(tmp_path / "run")
    first = prepare.prepare(Setting(cfg), run_dir, 2, CPU)
    assert (first.baseline_samples_per_s, first.rehearse) == (None, False)
    assert run_dir.load_forecast() is None
    monkeypatch.setattr(prepare, "choose_cuts", lambda *_: pytest.fail("the cuts are known"))
    again = prepare.prepare(Setting(cfg), run_dir, 2, CPU)
    assert (again.cuts, again.costs) == (first.cuts, first.costs)


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    cfg = config(data__batch_size=200)
    with pytest.raises(ConfigError, match=r"data\.batch_size = 200 is more than the 100 training samples; lower it"):
        prepare.prepare(Setting(cfg), RunDir(tmp_path / "run"), 1, CPU)


def test_without_room_for_the_whole_network_there_is_no_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure, "twin", full)
    assert measure.one_rank_alone(Setting(config(**TIMED)), CPU) is None
