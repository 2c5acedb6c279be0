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


def wire_that(answers: bool, device: str = "cpu") -> Any:
    """A wire; `carried` is what MPI has been given."""
    request, carried = SimpleNamespace(Test=lambda: answers), []

    def carry(values: Any, peer: int, tag: int) -> Any:
        carried.append(values)
        return request

    comm = SimpleNamespace(Isend=carry, Irecv=carry)
    return SimpleNamespace(comm=comm, rank=1, host="n7", device=torch.device(device), carried=carried)


def test_mpi_alone_carries_a_program_to_its_end_or_says_who_does_not_answer() -> None:
    program = one_way_times(NEXT, torch.zeros(8, dtype=torch.uint8), 3, measures=True)
    assert len(directly(wire_that(answers=True), program, 0.0)) == 3
    program = one_way_times(PREV, torch.zeros(8, dtype=torch.uint8), 3, measures=False)
    sentence = "rank 1 on n7 has waited 0 s for a message of 8 bytes from or to rank 0: look at firewalls"
    with pytest.raises(LaunchError, match=sentence):
        directly(wire_that(answers=False), program, 0.0)


def test_mpi_alone_is_given_what_lies_on_a_device_as_it_is() -> None:
    wire, message = wire_that(answers=True, device="meta"), torch.zeros(3, 2, device="meta")
    directly(wire, one_way_times(NEXT, message, 1, measures=True), 0.0)
    sent, received = wire.carried
    assert sent is message
    assert (received.device.type, received.shape, received.dtype) == ("meta", (3, 2), torch.float32)
