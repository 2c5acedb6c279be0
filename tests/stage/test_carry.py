"""What is carried belongs to a block, to a stage with its cuts, or to the run; a view shows its own part."""

from __future__ import annotations

import pytest
import torch

from hpcsplit.stage.carry import Carry, block_of, of_cuts


def test_every_scope_has_its_name_in_a_checkpoint() -> None:
    carry, one = Carry(), torch.ones(1)
    carry["objective"] = one
    carry.block(3)["slope"] = one
    carry.stage["flights"] = one
    carry.stage.below("chunk/").update(visited=one)
    assert list(carry) == ["objective", "3.slope", "stage/flights", "stage/chunk/visited"]


def test_a_view_has_its_own_part_only() -> None:
    carry = Carry(
        {"1.a": torch.ones(1), "11.a": torch.ones(2), "stage/w/1.b": torch.ones(3), "stage/v/1.b": torch.ones(4)}
    )
    assert list(carry.block(1)) == ["a"]
    assert len(carry.block(1)["a"]) == 1
    weights = carry.stage.below("w/")
    assert (list(weights), len(weights), len(carry.stage)) == (["1.b"], 1, 2)
    weights.clear()
    assert list(carry) == ["1.a", "11.a", "stage/v/1.b"]
    assert not weights
    assert carry.block(11).pop("a").tolist() == [1.0, 1.0]
    assert "11.a" not in carry


@pytest.mark.parametrize(
    ("name", "block", "lost"),
    [("objective", None, False), ("3.slope", 3, False), ("stage/probe.p3", None, True), ("stage/3.a", None, True)],
)
def test_what_a_name_belongs_to(name: str, block: int | None, lost: bool) -> None:
    assert (block_of(name), of_cuts(name)) == (block, lost)
