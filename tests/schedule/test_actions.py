"""The order of refreshes, epochs, checkpoints and the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcsplit.schedule.actions import Action, Phase, Refresh, Save, Stop, Train, Trained, from_json, to_json
from hpcsplit.schedule.hybrid import SavePolicy, actions, initials, of_initials
from hpcsplit.store.store import Field, MemoryStore

SELDOM = SavePolicy(every_epochs=0, every_minutes=0.0, aux="recompute")
PLANS = st.text("SP", max_size=14)


def plan_of(letters: str) -> tuple[Phase, ...]:
    kinds: dict[str, Phase] = {"S": "serial", "P": "parallel"}
    return tuple(kinds[letter] for letter in letters)


def obeyed(letters: str, save: SavePolicy, pauses: Sequence[Trained] = (), **options: Any) -> Iterator[Action]:
    """The actions, each epoch trained to its end but for the pauses, which come one at each `Train`."""
    decisions, how, ends = actions(plan_of(letters), save, **options), None, iter(pauses)
    while True:
        try:
            action = decisions.send(how)
        except StopIteration:
            return
        yield action
        how = next(ends, Trained()) if isinstance(action, Train) else None


def all_actions(letters: str, save: SavePolicy = SELDOM, **options: Any) -> list[Any]:
    return list(obeyed(letters, save, **options))


def epochs_of(kind: type[Refresh | Train | Save], found: list[Any]) -> list[int]:
    return [a.epoch for a in found if isinstance(a, kind)]


def test_keep_saves_nothing_but_the_end_where_no_parallel_epoch_follows_another() -> None:
    assert epochs_of(Save, all_actions("SPSPSS", SavePolicy(0, 0.0, "keep"))) == [5]


@given(PLANS)
def test_every_epoch_is_trained_once_in_order_in_its_phase(letters: str) -> None:
    """And knows how many parallel epochs came before it, and what follows."""
    trained = [a for a in all_actions(letters) if isinstance(a, Train)]
    assert [a.epoch for a in trained] == list(range(len(letters)))
    assert tuple(a.phase for a in trained) == plan_of(letters)
    for a in trained:
        assert a.parallel_epochs == letters[: a.epoch].count("P")
        assert a.goes_on == (letters[a.epoch : a.epoch + 2] == "PP")
        assert a.last == (a.epoch + 1 == len(letters))


@given(PLANS)
def test_the_run_ends_with_a_checkpoint_and_a_stop(letters: str) -> None:
    found = all_actions(letters)
    assert found[-1] == Stop(True, "all epochs are done")
    assert epochs_of(Save, found) == ([len(letters) - 1] if letters else [])


@given(PLANS, st.integers(1, 5))
def test_every_so_many_epochs_are_saved(letters: str, every: int) -> None:
    found = all_actions(letters, SavePolicy(every, 0.0, "copy"))
    due = {e for e in range(len(letters)) if (e + 1) % every == 0} | ({len(letters) - 1} if letters else set())
    assert epochs_of(Save, found) == sorted(due)


@given(PLANS, st.integers(0, 4))
def test_keep_saves_after_every_parallel_epoch_that_another_follows(letters: str, every: int) -> None:
    saved = epochs_of(Save, all_actions(letters, SavePolicy(every, 0.0, "keep")))
    assert {e for e in range(len(letters)) if letters[e : e + 2] == "PP"} <= set(saved)


def test_the_clock_makes_a_checkpoint_due() -> None:
    minutes = iter(range(0, 1000, 2))
    found = all_actions("SSSSSSS", SavePolicy(0, 5.0, "copy"), clock=lambda: 60.0 * next(minutes))
    assert epochs_of(Save, found)[:-1] == sorted(epochs_of(Save, found)[:-1])
    assert 1 < len(epochs_of(Save, found)) < 7


def test_without_a_limit_the_clock_is_ignored() -> None:
    hours = iter(range(1000))
    assert epochs_of(Save, all_actions("SSSS", clock=lambda: 3600.0 * next(hours))) == [3]


# ------------------------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize("letters", ["SSSS", "SPPP"])
def test_a_reason_to_stop_leads_to_a_checkpoint_and_an_unfinished_end(letters: str) -> None:
    reasons = iter([None, "time is up"])
    found = all_actions(letters, stop_reason=lambda: next(reasons))
    assert found[-2:] == [Save(1, letters[1:3] == "PP"), Stop(False, "time is up")]
    assert epochs_of(Train, found) == [0, 1]


def test_nobody_is_asked_after_the_last_epoch() -> None:
    found = all_actions("S", stop_reason=lambda: pytest.fail("asked"))
    assert found[-1].done


# ------------------------------------------------------------------------------------------------ within an epoch


@pytest.mark.parametrize(("letters", "needs"), [("SS", False), ("PP", True)])
def test_a_pause_is_saved_and_the_epoch_goes_on_from_there(letters: str, needs: bool) -> None:
    found = all_actions(letters, pauses=[Trained(5), Trained(9)])
    trained = [(a.epoch, a.first_step) for a in found if isinstance(a, Train)]
    assert trained == [(0, 0), (0, 5), (0, 9), (1, 0)]
    assert [a for a in found if isinstance(a, Save)][:2] == [Save(0, needs, 5), Save(0, needs, 9)]


def test_a_pause_to_stop_ends_the_run_behind_its_checkpoint() -> None:
    found = all_actions("SPP", pauses=[Trained(), Trained(7, stop=True)], stop_reason=lambda: None)
    assert found[-2:] == [Save(1, True, 7), Stop(False, "another rank has been told to stop")]


def test_a_rank_that_was_told_to_stop_at_an_epochs_end_ends_all() -> None:
    found = all_actions("SSS", pauses=[Trained(0, stop=True)])
    assert found[-2:] == [Save(0, False), Stop(False, "another rank has been told to stop")]


@given(PLANS.filter(bool), st.data())
def test_a_run_resumed_within_an_epoch_does_what_an_unbroken_one_would(letters: str, data: st.DataObject) -> None:
    epoch = data.draw(st.integers(0, len(letters) - 1))
    policy = SavePolicy(1, 0.0, "keep")
    pauses = [Trained()] * epoch + [Trained(3)]
    whole = all_actions(letters, policy, pauses=pauses)
    saved = whole.index(next(a for a in whole if isinstance(a, Save) and a.step))
    rest = all_actions(letters, policy, first_epoch=epoch, first_step=3, have_aux=True)
    assert rest == whole[saved + 1 :]


@pytest.mark.parametrize("epoch", [1, 2])
def test_without_its_variables_it_computes_them_anew_and_says_so(epoch: int) -> None:
    found = all_actions("SPPS", first_epoch=epoch, first_step=3, have_aux=False)
    assert found[:2] == [Refresh(epoch, True), Train(epoch, "parallel", epoch - 1, True, 3, epoch == 1)]


def test_with_a_part_of_them_only_the_others_are_computed() -> None:
    found = all_actions("PPP", first_epoch=1, have_aux=True, missing_aux=True)
    assert found[:2] == [Refresh(1, True, True), Train(1, "parallel", 1, True, goes_on=True)]
    assert len(epochs_of(Refresh, found)) == 1


def test_what_was_recomputed_stays_marked_over_one_more_restart() -> None:
    found = all_actions("PPP", first_epoch=1, have_aux=True, recomputed=True)
    assert [a.recomputed for a in found if isinstance(a, Train)] == [True, True]


@given(PLANS, st.data())
def test_keep_never_overwrites_what_a_checkpoint_within_an_epoch_refers_to(letters: str, data: st.DataObject) -> None:
    """The store refuses to."""
    order, slot, protected = 2, 0, None
    pauses = data.draw(st.lists(st.sampled_from([Trained(), Trained(1)]), max_size=20))
    for a in obeyed(letters, SavePolicy(0, 0.0, "keep"), pauses=pauses):
        if isinstance(a, Refresh) or (isinstance(a, Train) and a.phase == "parallel"):
            assert protected != (slot + 1) % order
            slot = (slot + 1) % order  # a pause makes a generation, too
        elif isinstance(a, Save):
            protected = slot if a.need_aux else None


# ------------------------------------------------------------------------------------------------ resuming


@given(PLANS, st.data())
def test_without_them_it_adds_one_refresh_where_it_starts_inside_a_parallel_phase(
    letters: str, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(letters)))
    with_aux = epochs_of(Refresh, all_actions(letters, first_epoch=first, have_aux=True))
    without = epochs_of(Refresh, all_actions(letters, first_epoch=first, have_aux=False))
    inside = first < len(letters) and letters[max(first - 1, 0) : first + 1] == "PP"
    assert without == ([first] if inside else []) + with_aux


def test_the_rest_of_that_phase_is_marked_as_recomputed_and_nothing_else() -> None:
    found = all_actions("SPPPSPP", first_epoch=2, have_aux=False)
    assert found[0] == Refresh(2, True)
    marks = {a.epoch: a.recomputed for a in found if isinstance(a, Train | Refresh)}
    assert marks == {2: True, 3: True, 4: False, 5: False, 6: False}


# ------------------------------------------------------------------------------------------------ restarts


RESTARTS = st.sets(st.integers(0, 8)).map(lambda chosen: chosen.__contains__)


def anew(letters: str, restarts: Callable[[int], bool]) -> list[int]:
    """Epochs before which the variables start anew, by the words of the method's contract."""
    parallel = [e for e in range(len(letters)) if letters[e] == "P"]
    return [e for n, e in enumerate(parallel) if e == 0 or letters[e - 1] == "S" or restarts(n)]


@pytest.mark.parametrize(
    ("letters", "parallel_epochs", "refreshed"),
    [
        ("PPPP", {2}, [0, 2]),
        ("SSPPPP", {2}, [2, 4]),  # parallel epochs count, not epochs
        ("SPPSPP", {0, 2}, [1, 4]),  # both come with a switch: once each
        ("PPSPP", {3}, [0, 3, 4]),
        ("PPP", {0, 1, 2}, [0, 1, 2]),
    ],
)
def test_a_restart_refreshes_inside_a_parallel_phase(
    letters: str, parallel_epochs: set[int], refreshed: list[int]
) -> None:
    found = all_actions(letters, restarts=parallel_epochs.__contains__)
    assert epochs_of(Refresh, found) == refreshed
    assert not any(a.recomputed for a in found if isinstance(a, Refresh | Train))


@given(PLANS, RESTARTS)
def test_variables_start_anew_at_each_switch_and_restart_and_right_before_their_epoch(
    letters: str, restarts: Callable[[int], bool]
) -> None:
    found = all_actions(letters, restarts=restarts)
    assert epochs_of(Refresh, found) == anew(letters, restarts)
    followed = [b for a, b in pairwise(found) if isinstance(a, Refresh)]
    assert [b.epoch for b in followed if isinstance(b, Train)] == anew(letters, restarts)
    assert epochs_of(Train, found) == list(range(len(letters)))


@given(PLANS, RESTARTS, st.integers(0, 3))
def test_a_checkpoint_before_a_restart_needs_no_variables(
    letters: str, restarts: Callable[[int], bool], every: int
) -> None:
    for a in all_actions(letters, SavePolicy(every, 0.0, "keep"), restarts=restarts):
        if isinstance(a, Save):
            goes_on = letters[a.epoch : a.epoch + 2] == "PP" and a.epoch + 1 not in anew(letters, restarts)
            assert a.need_aux == goes_on


@given(PLANS, RESTARTS, st.integers(0, 4))
def test_keep_lets_go_of_a_generation_before_a_restart_overwrites_it(
    letters: str, restarts: Callable[[int], bool], every: int
) -> None:
    """The store refuses otherwise."""
    order, store = [np.arange(2)], MemoryStore([Field("lam", (1,))], 2, torch.float32)
    for a in obeyed(letters, SavePolicy(every, 0.0, "keep"), restarts=restarts):
        if isinstance(a, Refresh) or (isinstance(a, Train) and a.phase == "parallel"):
            store.start(order, read=isinstance(a, Train))
            store.write(0, {"lam": torch.zeros(2, 1)})
            store.finish(a.epoch)
        elif isinstance(a, Save):
            store.protect(store.slot if a.need_aux else None)


@pytest.mark.parametrize("have_aux", [False, True])
def test_a_run_resumed_right_before_a_restart_refreshes_once(have_aux: bool) -> None:
    found = all_actions("PPPP", first_epoch=2, have_aux=have_aux, restarts={2}.__contains__)
    assert found[:2] == [Refresh(2, False), Train(2, "parallel", 2, False, goes_on=True)]
    assert epochs_of(Refresh, found) == [2]


def test_a_restart_ends_what_was_recomputed() -> None:
    found = all_actions("PPPPP", first_epoch=1, have_aux=False, restarts={3}.__contains__)
    marks = [(type(a).__name__, a.epoch, a.recomputed) for a in found if isinstance(a, Train | Refresh)]
    assert marks == [
        ("Refresh", 1, True),
        ("Train", 1, True),
        ("Train", 2, True),
        ("Refresh", 3, False),
        ("Train", 3, False),
        ("Train", 4, False),
    ]


@given(PLANS, RESTARTS, st.data())
def test_a_run_with_restarts_resumes_as_if_unbroken(
    letters: str, restarts: Callable[[int], bool], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(letters)))
    policy = SavePolicy(1, 0.0, "keep")
    whole = [a for a in all_actions(letters, policy, restarts=restarts) if isinstance(a, Stop) or a.epoch >= first]
    assert all_actions(letters, policy, first_epoch=first, have_aux=True, restarts=restarts) == whole


# ------------------------------------------------------------------------------------------------ decided on the way


def undated(found: list[Any]) -> list[Any]:
    """The actions without what a checkpoint keeps of decisions."""
    return [replace(a, phases="") if isinstance(a, Save) else a for a in found]


@given(PLANS.filter(bool), st.integers(0, 3))
def test_phases_decided_one_epoch_ahead_make_the_same_run(letters: str, known: int) -> None:
    asked = []

    def choose(kinds: Sequence[Phase]) -> Phase:
        asked.append((len(kinds), trained[-1] if trained else -1))
        return plan_of(letters)[len(kinds)]

    trained: list[int] = []
    found = []
    for a in obeyed(letters[:known], SavePolicy(1, 0.0, "keep"), epochs=len(letters), choose=choose):
        found.append(a)
        if isinstance(a, Train):
            trained.append(a.epoch)
    assert undated(found) == all_actions(letters, SavePolicy(1, 0.0, "keep"))
    assert [epoch for epoch, _ in asked] == list(range(min(known, len(letters)), len(letters)))
    assert all(epoch - 2 == last for epoch, last in asked if epoch >= max(known, 2))  # the epoch before is under way


@given(PLANS.filter(lambda letters: len(letters) > 1), st.data())
def test_what_was_decided_is_in_the_checkpoint(letters: str, data: st.DataObject) -> None:
    policy = SavePolicy(1, 0.0, "keep")

    def choose(kinds: Sequence[Phase]) -> Phase:
        return plan_of(letters)[len(kinds)]

    whole = list(obeyed("", policy, epochs=len(letters), choose=choose))
    saves = [a for a in whole if isinstance(a, Save)]
    for a in saves:
        assert a.phases == letters[: a.epoch + 2]
    saved = data.draw(st.sampled_from(saves[:-1]))
    rest = list(
        obeyed(saved.phases, policy, epochs=len(letters), choose=choose, first_epoch=saved.epochs_done, have_aux=True)
    )
    assert rest == whole[whole.index(saved) + 1 :]


@given(PLANS)
def test_initials_can_be_read_back(letters: str) -> None:
    assert tuple(of_initials(letters)) == plan_of(letters)
    assert initials(of_initials(letters)) == letters


# ------------------------------------------------------------------------------------------------ messages


EVERY_KIND = [
    Refresh(3),
    Refresh(4, True),
    Train(0, "serial", 0),
    Train(7, "parallel", 4, True),
    Save(2, True),
    Save(3, False),
    Save(3, True, 17, True),
    Train(7, "parallel", 4, True, 17, True, False),
    Save(3, True, 17, True, "SPPP"),
    Refresh(4, True, True),
    Stop(True, "all epochs are done"),
    Stop(False, "SIGTERM"),
]


@pytest.mark.parametrize("action", EVERY_KIND, ids=str)
def test_an_action_survives_json(action: Action) -> None:
    assert from_json(json.loads(json.dumps(to_json(action)))) == action


def test_actions_print_themselves() -> None:
    assert [str(action) for action in EVERY_KIND] == [
        "refresh the auxiliary variables before epoch 4",
        "refresh the auxiliary variables before epoch 5; the checkpoint has none",
        "train epoch 1, serial",
        "train epoch 8, parallel",
        "save a checkpoint after epoch 3",
        "save a checkpoint after epoch 4",
        "save a checkpoint after step 17 of epoch 4",
        "train epoch 8, parallel, after step 17",
        "save a checkpoint after step 17 of epoch 4",
        "refresh the missing auxiliary variables before epoch 5",
        "stop: all epochs are done",
        "stop: SIGTERM",
    ]
