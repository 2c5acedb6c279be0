"""Round trips of a message: as many as asked for, whoever carries them, and a sentence where there is no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpcsplit.errors import LaunchError
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import NEXT, PREV, Recv, Send
from hpcsplit.wire.timing import directly, one_way_times


def test_both_neighbours_make_all_round_trips() -> None:
    there, back = torch.zeros(2, 3), torch.ones(2, 3)
    first, second = lockstep.run(
        [one_way_times(NEXT, there, 4, measures=True), one_way_times(PREV, back, 4, measures=False)]
    )
    assert len(first) == len(second) == 4
    assert min(first) > 0


def test_the_one_that_measures_sends_first_and_waits() -> None:
    verbs = one_way_times(NEXT, torch.zeros(5), 2, measures=True)
    assert [type(next(verbs)), type(verbs.send(None)), type(verbs.send(None))] == [Send, Recv, Send]
    assert isinstance(next(one_way_times(PREV, torch.zeros(5), 2, measures=False)), Recv)


def wire_that(answers: bool) -> Any:
    request = SimpleNamespace(Test=lambda: answers)
    comm = SimpleNamespace(Isend=lambda *_, **__: request, Irecv=lambda *_, **__: request)
    return SimpleNamespace(comm=comm, rank=1, host="n7")


def test_mpi_alone_carries_a_program_to_its_end_or_says_who_does_not_answer() -> None:
    program = one_way_times(NEXT, torch.zeros(8, dtype=torch.uint8), 3, measures=True)
    assert len(directly(wire_that(answers=True), program, 0.0)) == 3
    program = one_way_times(PREV, torch.zeros(8, dtype=torch.uint8), 3, measures=False)
    sentence = "rank 1 on n7 has waited 0 s for a message of 8 bytes from or to rank 0: look at firewalls"
    with pytest.raises(LaunchError, match=sentence):
        directly(wire_that(answers=False), program, 0.0)
