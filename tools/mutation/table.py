"""The score of every room, and the mutants that no test has noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tools.mutation.mutants import Mutant
from tools.mutation.trying import Results


def table(mutants: Sequence[Mutant], results: Results, same: Mapping[str, str]) -> tuple[str, float]:
    """The table as text, and the share of mutants noticed among those that are another program."""
    rooms = list(dict.fromkeys(mutant.room for mutant in mutants))
    lines = [f"{'room':<12} {'mutants':>8} {'noticed':>8} {'late':>6} {'survived':>9} {'same':>6} {'score':>7}"]
    survivors, share = [], 0.0
    for room in [*rooms, "all"]:
        mine = [mutant for mutant in mutants if room in (mutant.room, "all")]
        judged = [(mutant, found) for mutant in mine if mutant.id not in same and (found := results.of(mutant))]
        noticed = sum(found["noticed"] for _, found in judged)
        late = sum(found["late"] for _, found in judged)
        share = noticed / len(judged) if judged else 0.0
        counts = f"{noticed:>8} {late:>6} {len(judged) - noticed:>9} {sum(m.id in same for m in mine):>6} {share:>7.1%}"
        lines.append(f"{room:<12} {len(mine):>8} {counts}")
        if room != "all":
            survivors += [mutant for mutant, found in judged if not found["noticed"]]
    lines += ["(late: noticed by a time limit, among the noticed; same: the same program after all, not in the score)"]
    return "\n".join([*lines, *(["", "survived:"] if survivors else []), *map(str, survivors)]), share
