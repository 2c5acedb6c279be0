"""The reference runner: what it answers, and what it says when the programs of two stages do not fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from hpcsplit.wire import lockstep
from hpcsplit.wire.port import NEXT, PREV, Meter, Program, Recv, Send, Share, Verb, agree_lag
from tests.wire import programs


def run(program: Callable[[int, int], Program], size: int) -> list[Any]:
    return lockstep.run([program(rank, size) for rank in range(size)])


def talk(*verbs: Verb) -> Program:
    """A program that yields these verbs and returns the answers of all but the sends."""
    answers = []
    for verb in verbs:
        answer = yield verb
        if not isinstance(verb, Send):
            answers.append(answer)
    return answers


X = torch.ones(2)


def test_a_message_passes_all_stages_and_comes_back() -> None:
    assert run(programs.relay, 3) == [[3.0, 3.0]] * 3


def test_order_holds_within_a_name_only() -> None:
    forward = [float(i) for i in range(10)]
    assert run(programs.two_queues, 2)[1] == [-i for i in forward] + forward


LAGS = {1: 2, 2: 2, 3: 3, 4: 4, 6: 6}


@pytest.mark.parametrize("size", LAGS)
def test_an_answer_comes_so_many_calls_later(size: int) -> None:
    """As many as there are stages: nobody waits then for a stage that is as far behind as the pipeline is long."""
    assert agree_lag(size) == LAGS[size]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_stages_learn_the_highest_level_at_the_same_call(size: int) -> None:
    expected = [0] * 12
    for rank in range(size):
        expected[2 * rank + LAGS[size]] = rank + 1
    assert run(programs.agreed_levels, size) == [expected] * size


def test_a_received_tensor_belongs_to_the_receiver() -> None:
    assert run(programs.changed_after_sending, 2) == [[7.0, 7.0], [-1.0, 1.0, 7.0]]


def test_every_stage_gets_all_shared_values_by_rank() -> None:
    first, second, seen = run(programs.shared_values, 3)[2]
    assert first == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ü"}, {"rank": 2, "text": "üü"}]
    assert second == [None] * 3
    assert seen == [1]


def test_payload_bytes_are_counted_by_side() -> None:
    assert run(programs.counted_bytes, 3) == [[0, 48, 1], [10, 48, 2], [10, 0, 1]]


def test_tensors_arrive_as_they_were_sent() -> None:
    expected = [
        [str(t.dtype), repr(t.tolist()), t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)]
        for t in programs.TENSORS
    ]
    assert run(programs.kinds_of_tensors, 2)[1] == expected


def test_a_sent_tensor_carries_no_graph() -> None:
    [_, [got]] = lockstep.run(
        [talk(Send(NEXT, "x", torch.ones(2, requires_grad=True) * 2)), talk(Recv(PREV, "x", (2,)))]
    )
    assert not got.requires_grad


def test_one_stage_alone_shares_with_itself() -> None:
    assert lockstep.run([talk(Share(5))]) == [[[5]]]


@pytest.mark.parametrize(
    ("verbs", "sentence"),
    [
        (
            ([Recv(NEXT, "g", (2,))], [Recv(PREV, "x", (2,))]),
            "stage 0 waits for 'g' from stage 1; stage 1 waits for 'x' from stage 0",
        ),
        (([Send(NEXT, "lam", X)], [Recv(PREV, "x", (2,))]), "stage 1 waits for 'x' from stage 0, got 'lam'"),
        (([Share(1)], []), "stage 0 waits for all stages to share; stage 1 has ended"),
        (([], [Recv(PREV, "x", (2,))]), "stage 0 has ended; stage 1 waits for 'x' from stage 0"),
    ],
)
def test_a_deadlock_says_what_every_stage_waits_for(verbs: Sequence[list[Verb]], sentence: str) -> None:
    with pytest.raises(lockstep.Deadlock) as caught:
        lockstep.run([talk(*v) for v in verbs])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("sent", "wanted", "sentence"),
    [
        (
            Send(NEXT, "x", X),
            Recv(PREV, "x", (3,)),
            "stage 1 waits for 'x' of shape (3,) (torch.float32) from stage 0, got (2,) (torch.float32)",
        ),
        (
            Send(NEXT, "x", X.double()),
            Recv(PREV, "x", (2,)),
            "stage 1 waits for 'x' of shape (2,) (torch.float32) from stage 0, got (2,) (torch.float64)",
        ),
        (
            Send(NEXT, "x", X, 3),
            Recv(PREV, "x", (2,), index=4),
            "stage 1 waits for 'x' number 4 from stage 0, got number 3",
        ),
    ],
)
def test_a_wrong_message_is_named(sent: Send, wanted: Recv, sentence: str) -> None:
    with pytest.raises(lockstep.WrongMessage) as caught:
        lockstep.run([talk(sent), talk(wanted)])
    assert str(caught.value) == sentence


def test_a_message_that_nobody_takes_is_named() -> None:
    with pytest.raises(lockstep.WrongMessage, match="sent but never received: 'x' from stage 0 to stage 1"):
        lockstep.run([talk(Send(NEXT, "x", X)), talk()])


@pytest.mark.parametrize(
    ("verb", "side"), [(Send(PREV, "x", X), "-1"), (Recv(PREV, "x", (2,)), "-1"), (Send(NEXT, "x", X), r"\+1")]
)
def test_the_ends_of_the_row_have_no_neighbour(verb: Verb, side: str) -> None:
    with pytest.raises(lockstep.WrongMessage, match=f"stage 0 has no neighbour on side {side}"):
        lockstep.run([talk(verb)])


def test_a_failing_stage_closes_the_others() -> None:
    closed = []

    def failing() -> Program:
        yield Share()
        raise OSError("disk")

    def waiting() -> Program:
        try:
            yield Share()
            yield Share()
        finally:
            closed.append(True)

    with pytest.raises(OSError, match="disk"):
        lockstep.run([waiting(), failing()])
    assert closed


def test_a_turn_is_the_time_in_which_a_stage_has_the_process() -> None:
    """The first stage takes two naps, the second one none; each has its own time alone."""

    def program(naps: int) -> Program:
        for _ in range(naps):
            time.sleep(0.02)
            yield Share()
        return (yield Meter()).turn_s

    def both(naps: int) -> Program:
        for _ in range(2 - naps):
            yield Share()
        return (yield from program(naps))

    slow, quick = lockstep.run([both(2), both(0)])
    assert slow >= 0.04
    assert 0.0 <= quick < 0.04
