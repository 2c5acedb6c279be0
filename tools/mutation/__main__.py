"""tools/mutate: change the code in one place at a time and see whether a test notices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tools.mutation.mutants import ROOMS, drawn, equivalents
from tools.mutation.trying import Results, table, try_all
from tools.program import FAILED, ROOT, Parser, continuable

COUNT, TARGET = 40, 0.95
EQUIVALENT = Path(__file__).with_name("equivalent.txt")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = Parser(prog="tools/mutate", description=__doc__)
    parser.add_argument("--room", default=",".join(ROOMS), help=f"with commas (default: {','.join(ROOMS)})")
    parser.add_argument("--seed", type=int, default=0, help="which mutants (default: 0)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"of a room (default: {COUNT})")
    parser.add_argument("--jobs", type=int, default=2, help="at once (default: 2)")
    parser.add_argument("--near", action="store_true", help="let the room's own tests alone try to notice: quicker")
    parser.add_argument("--only", default="", help="ids of mutants, with commas: these are tried, known or not")
    parser.add_argument("--list", action="store_true", help="say which they are and what is known of them; try none")
    parser.add_argument("--show", default="", metavar="ID", help="the change of one mutant, and who noticed")
    parser.add_argument("--out", type=Path, help="default: runs/mutate")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.room.split(",")) - ROOMS.keys()):
        parser.error(f"--room {unknown[0]}: the rooms are {', '.join(ROOMS)}")
    if min(args.count, args.jobs) < 1:
        parser.error("--count and --jobs must be at least 1")
    out = (args.out or root / "runs" / "mutate").resolve()
    out.mkdir(parents=True, exist_ok=True)
    wanted = {*args.only.split(","), args.show} - {""}
    rooms = ROOMS if wanted else args.room.split(",")
    mutants = [each for room in rooms for each in drawn(root, room, args.seed, None if wanted else args.count)]
    if absent := sorted(wanted - {mutant.id for mutant in mutants}):
        parser.error(f"{absent[0]}: there is no such mutant (see --list)")
    mutants = [mutant for mutant in mutants if not wanted or mutant.id in wanted]
    results, same = Results(root, out, mutants, args.near), equivalents(EQUIVALENT)
    if args.list or args.show:
        for mutant in mutants:
            found = results.of(mutant, old=True) or {}
            known = {key: found[key] for key in ("noticed", "late", "by", "tried", "seconds") if found}
            reason = f"the same program: {same[mutant.id]}" if mutant.id in same else ""
            print(mutant, reason or (json.dumps(known) if known else "not tried"), sep="\n    ")
        return 0

    asked = [mutant for mutant in mutants if mutant.id not in same]
    with continuable(f"table and results: {out}/table.txt, results.jsonl"):
        try_all(root, out, asked, results, args.jobs, near=args.near, again=bool(args.only))
        text, score = table(mutants, results, same)
        (out / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(text)
    return 0 if score >= TARGET else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
