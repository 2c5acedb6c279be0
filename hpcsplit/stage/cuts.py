"""Where the network is cut: stage k owns the blocks from its cut up to the next one.

blocks   0 1 2 3 4 5 6 7       cuts (3, 6)
stages   0 0 0 1 1 1 2 2       a cut is the first block of a stage; stage 0 starts at block 0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from hpcsplit.errors import ConfigError

Split = tuple[float, float, tuple[int, ...]]  # largest stage, sum of squares, cuts


def balanced_cuts(costs: Sequence[float], stages: int, cut_costs: Sequence[float] = ()) -> tuple[int, ...]:
    """The cuts into `stages` parts, none empty, whose most expensive part is as cheap as possible.

    Dynamic programming over all cuts: the best split of the first j blocks into k stages is the best split of some
    first i < j blocks into k - 1, and blocks i to j - 1 in stage k - 1. Of equal candidates the one with the smaller
    sum of squared stage costs is kept, then the one with the earlier cuts, so the answer depends on `costs` alone.
    `costs` are one finite number >= 0 a block, in any unit; `cut_costs`, one a block too, are what a cut before it
    costs each of the two stages that meet there. Raises ConfigError where there are more stages than blocks.
    """
    n = len(costs)
    join = [*cut_costs, 0] if cut_costs else [0] * (n + 1)
    assert stages >= 1
    assert all(0 <= cost < math.inf for cost in costs)
    _check_blocks(n, stages)
    total = list(accumulate(costs, initial=0))
    # best[j]: of the first j blocks, in 1, 2 ... k stages
    best: dict[int, Split] = {j: (total[j] + join[j], (total[j] + join[j]) ** 2, ()) for j in range(1, n + 1)}
    for k in range(2, stages + 1):
        best = {j: _best_last_stage(best, total, join, j, k) for j in range(k, n + 1)}
    return best[n][2]


def _best_last_stage(shorter: dict[int, Split], total: Sequence[float], join: Sequence[float], j: int, k: int) -> Split:
    """The best split of the first j blocks into k stages, from those of fewer blocks into k - 1."""
    result: Split = (math.inf, math.inf, ())
    for i in range(j - 1, k - 2, -1):
        blocks = total[j] - total[i] + join[j]
        if blocks > result[0]:  # and grows as i goes down
            break
        last = blocks + join[i]
        largest, squares, cuts = shorter[i]
        result = min(result, (max(largest, last), squares + last**2, (*cuts, i)))
    return result


def _check_blocks(blocks: int, stages: int) -> None:
    if stages > blocks:
        raise ConfigError(
            f"{stages} stages need at least {stages} blocks, but the network has {blocks}; "
            f"start at most {blocks} ranks (run.stages) or take a deeper model.name"
        )


def quick_cuts(costs: Sequence[float], stages: int, cut_costs: Sequence[float] = ()) -> tuple[int, ...]:
    """Cuts nearly as good as `balanced_cuts` for thousands of blocks, where that one takes minutes.

    Bisection over the cost of the largest stage: each stage takes as many blocks as that allows and leaves at least one
    for each of those that follow.  Raises ConfigError as balanced_cuts.
    """
    n = len(costs)
    _check_blocks(n, stages)
    total, join = list(accumulate(costs, initial=0.0)), [*(cut_costs or [0.0] * n), 0.0]
    low, high, best = 0.0, total[n] + 2 * max(join), _filled(total, join, stages, math.inf)
    for _ in range(60):
        limit = (low + high) / 2
        cuts = _filled(total, join, stages, limit)
        if cuts is None:
            low = limit
        else:
            high, best = limit, cuts
    assert best is not None
    return best


def _filled(total: Sequence[float], join: Sequence[float], stages: int, limit: float) -> tuple[int, ...] | None:
    """The cuts of stages that are filled up to `limit` one after another, or None where blocks are left."""
    n, start, cuts = len(total) - 1, 0, []
    for stage in range(stages):
        end, last = start + 1, n - (stages - 1 - stage)  # of this stage, at least and at most
        spare = limit + total[start] - (join[start] if start else 0.0)
        if total[end] + join[end] > spare:
            return None
        while end < last and total[end + 1] + join[end + 1] <= spare:
            end += 1
        cuts.append(end)
        start = end
    return tuple(cuts[:-1]) if start == n else None


def charged(costs: Sequence[float], cuts: Sequence[int], cut_costs: Sequence[float]) -> tuple[float, ...]:
    """The costs of the blocks with those of the cuts in the blocks beside them."""
    with_joins = list(costs)
    for cut in cuts if cut_costs else ():
        with_joins[cut - 1] += cut_costs[cut]
        with_joins[cut] += cut_costs[cut]
    return tuple(with_joins)


def recut(costs: Sequence[float], cuts: Sequence[int], seconds: Sequence[float]) -> tuple[tuple[int, ...], float]:
    """Other cuts, from what each stage has taken: the blocks of a stage share its `seconds` as they share its cost; and
    how many times as long the slowest stage takes now as it would with them."""
    shares, parts = stage_shares(costs, cuts), ranges(cuts, len(costs))
    known = [
        cost * (second / share if share else 0.0)
        for part, share, second in zip(parts, shares, seconds, strict=True)
        for cost in costs[part.start : part.stop]
    ]
    better = balanced_cuts(known, len(parts))
    return better, max(stage_shares(known, cuts)) / max(stage_shares(known, better))


def ranges(cuts: Sequence[int], n_blocks: int) -> tuple[range, ...]:
    """The block numbers of each stage, for increasing `cuts` of a network of `n_blocks` blocks.  Raises ConfigError for
    a cut behind the last block."""
    if cuts and max(cuts) >= n_blocks:
        raise ConfigError(
            f"split.cuts = {list(cuts)}: the network has {n_blocks} blocks, numbered 0 to {n_blocks - 1}, "
            f"and no stage can start at block {max(cuts)}; the last possible cut is {n_blocks - 1}"
        )
    parts = tuple(range(first, end) for first, end in zip((0, *cuts), (*cuts, n_blocks), strict=True))
    assert all(parts), cuts
    assert [block for part in parts for block in part] == list(range(n_blocks)), (cuts, n_blocks)
    return parts


def stage_shares(costs: Sequence[float], cuts: Sequence[int]) -> tuple[float, ...]:
    """The share of the whole cost that each stage has; they add up to 1, and 1 / stages each is a perfect balance."""
    whole = sum(costs)
    assert whole > 0, "a network of blocks that cost nothing has no shares"
    return tuple(sum(costs[part.start : part.stop]) / whole for part in ranges(cuts, len(costs)))
