"""Stage programs whose answers do not depend on who runs them: lockstep and MPI must agree."""

from __future__ import annotations

import torch

from hpcsplit.wire.port import NEXT, PREV, Agree, Meter, Program, Recv, Send, Share


def relay(rank: int, size: int) -> Program:
    """A number goes to the last stage, each adds 1, and comes back; the answer is what each stage saw then."""
    x = torch.zeros(2) if rank == 0 else (yield Recv(PREV, "x", (2,)))
    x = x + 1
    if rank < size - 1:
        yield Send(NEXT, "x", x)
        x = yield Recv(NEXT, "back", (2,))
    if rank > 0:
        yield Send(PREV, "back", x)
    return x.tolist()


def two_queues(rank: int, size: int) -> Program:
    """Ten messages under each of two names, read name by name: order holds within a name, not between names."""
    if rank < size - 1:
        for i in range(10):
            yield Send(NEXT, "a", torch.tensor([float(i)]), i)
            yield Send(NEXT, "b", torch.tensor([float(-i)]), i)
    found = []
    if rank > 0:
        for name in ("b", "a"):
            for i in range(10):
                found.append(float((yield Recv(PREV, name, (1,), index=i))))
    return found


def changed_after_sending(rank: int, size: int) -> Program:
    """The sender and the receiver each write into their tensor; nobody sees the other's change."""
    if rank == 0:
        t = torch.ones(1000)
        yield Send(NEXT, "t", t)
        yield Send(NEXT, "t", t)
        t.fill_(7.0)
        yield Send(NEXT, "t", t)
        return t.tolist()[:2]
    if rank == 1:
        first = yield Recv(PREV, "t", (1000,))
        first.fill_(-1.0)
        second = yield Recv(PREV, "t", (1000,))
        third = yield Recv(PREV, "t", (1000,))
        return [first[0].item(), second[0].item(), third[0].item()]
    return None


def shared_values(rank: int, size: int) -> Program:
    """Values of different size, twice in a row, with a message under way meanwhile."""
    if rank < size - 1:
        yield Send(NEXT, "meanwhile", torch.tensor([rank]))
    first = yield Share({"rank": rank, "text": "ü" * rank})
    second = yield Share(None)
    seen = (yield Recv(PREV, "meanwhile", (1,), torch.int64)).tolist() if rank else []
    return [first, second, seen]


def counted_bytes(rank: int, size: int) -> Program:
    """Payload bytes and messages: 12 floats forward (48 bytes), 5 bfloat16 backward (10 bytes)."""
    if rank < size - 1:
        yield Send(NEXT, "x", torch.zeros(3, 4))
    if rank > 0:
        yield Send(PREV, "g", torch.zeros(5, dtype=torch.bfloat16))
        yield Recv(PREV, "x", (3, 4))
    if rank < size - 1:
        yield Recv(NEXT, "g", (5,), torch.bfloat16)
    traffic = yield Meter()
    return [traffic.sent_bytes_prev, traffic.sent_bytes_next, traffic.messages]


TENSORS = (
    torch.arange(6, dtype=torch.float32).reshape(2, 3),
    torch.arange(6, dtype=torch.float64),
    torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    torch.tensor([1.5, -2.0], dtype=torch.float16),
    torch.tensor([2**40, -1]),
    torch.tensor([255, 0], dtype=torch.uint8),
    torch.tensor([-5], dtype=torch.int32),
    torch.tensor([[-128, 127], [0, -1]], dtype=torch.int8),
    torch.tensor(3.0),
    torch.zeros(0, 4),
    torch.arange(12.0).reshape(3, 4).t(),
    torch.tensor([float("nan"), float("inf"), -0.0]),
    torch.arange(48.0).reshape(2, 2, 3, 4)[:, :, ::2],
    torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
)


def kinds_of_tensors(rank: int, size: int) -> Program:
    """Every type, empty and scalar tensors, views; the answer tells values, types and memory format."""
    found = []
    for i, t in enumerate(TENSORS):
        if rank == 0:
            yield Send(NEXT, "t", t, i)
        if rank == 1:
            got = yield Recv(PREV, "t", tuple(t.shape), t.dtype, i)
            last = got.dim() == 4 and got.is_contiguous(memory_format=torch.channels_last)
            found.append([str(got.dtype), repr(got.tolist()), last and not got.is_contiguous()])
    return found


def agreed_levels(rank: int, size: int) -> Program:
    """Each rank has a level of its own at another call; all learn the highest one at the same call."""
    answers = []
    for call in range(12):
        answers.append((yield Agree(rank + 1 if call == 2 * rank else 0)))
        if rank == 0 and call % 3 == 0 and size > 1:  # others are not kept in step by anything else
            yield Send(NEXT, "ahead", torch.ones(1), call)
    if rank == 1:
        for call in range(0, 12, 3):
            yield Recv(PREV, "ahead", (1,), index=call)
    return answers


PROGRAMS = (relay, two_queues, changed_after_sending, shared_values, counted_bytes, kinds_of_tensors, agreed_levels)
