"""Files that went bad: one change of a file's content, described by a few numbers so that it can be made again."""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = ("truncate", "bits", "noise", "zeros", "splice", "insert", "cut", "append", "exchange")
_EDGE_BYTES = 4096  # metadata lie at the ends of a file, most of the rest are the numbers themselves
_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Mutation:
    """`kind` of damage; everything else about it follows from `seed`."""

    kind: str
    seed: int

    def apply(self, content: bytes, other: bytes) -> bytes:
        """The damaged content; `other` is a file of another kind, for "exchange"."""
        draw = random.Random(f"{self.kind} {self.seed}")
        if self.kind == "exchange" or not content:
            return draw.choice([other, b"", b"no hdf5\n", draw.randbytes(len(content)), content[:8] + other[8:]])
        place, size = _position(draw, len(content)), draw.choice([1, 2, 8, 64, _BLOCK_BYTES])
        block = content[place : place + size]
        match self.kind:
            case "truncate":
                return content[:place]
            case "bits":
                return _flipped(content, draw)
            case "noise":
                return content[:place] + draw.randbytes(len(block)) + content[place + size :]
            case "zeros":
                return content[:place] + bytes([draw.choice([0, 255])]) * len(block) + content[place + size :]
            case "splice":
                to = _position(draw, len(content))
                return (content[:to] + block + content[to + len(block) :])[: len(content)]
            case "insert":
                return content[:place] + draw.randbytes(size) + content[place:]
            case "cut":
                return content[:place] + content[place + size :]
            case "append":
                return content + draw.choice([draw.randbytes(size), bytes(size), content])
        raise ValueError(self.kind)


def damaged(content: bytes, other: bytes, kind: str, seed: int) -> bytes:
    """Content that this kind of damage has really changed."""
    changed = content
    while changed == content:
        changed = Mutation(kind, seed).apply(content, other)
        seed += 1
    return changed


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[_position(draw, len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _position(draw: random.Random, size: int) -> int:
    edge = min(_EDGE_BYTES, size)
    return draw.choice([draw.randrange(size), draw.randrange(edge), size - 1 - draw.randrange(edge)])
