"""The first minutes on a GPU, in one command that is bounded in time: what works there, and how fast.

Each check is a process (or two ranks) of its own; `--device cpu --tiny` is the dry run that the tests make.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tools.gpu_checks import checks, runs
from tools.gpu_checks.checks import Check, Finding, Setting
from tools.program import Parser, Start, text

CHECKS: dict[str, tuple[Check, int, float]] = {  # what, on how many ranks, seconds at most
    "environment": (checks.environment, 1, 30),
    "optimizers": (checks.optimizers, 1, 40),
    "messages": (checks.messages, 2, 40),
    "resume": (runs.resume, 1, 90),
    "tests": (runs.tests, 1, 90),
    "methods": (runs.methods, 1, 110),
    "loops": (checks.loops, 1, 60),
    "alone": (checks.alone, 1, 60),
    "together": (checks.together, 2, 120),
    "costs": (checks.costs, 1, 30),
    "doctor": (runs.doctor, 1, 40),
    "training": (runs.training, 1, 600),
}
_LEAST_S = 10.0


def main() -> int:
    parser = Parser(prog="tools/gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all checks (default 12)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--data", type=Path, help="a folder with cifar-10-batches-py, for the check `training`")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: a dry run")
    parser.add_argument("--child", help="(used by the command itself) make this check in this process")
    parser.add_argument("--until", type=float, default=0.0, help="(used by the command itself)")
    words = parser.parse_args()
    if unknown := [name for name in words.checks if name not in CHECKS]:
        parser.error(f"there is no check {unknown[0]!r}; take some of {', '.join(CHECKS)}")
    if words.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --tiny is a dry run")
    words.out.mkdir(parents=True, exist_ok=True)
    if words.child:
        torch.set_num_threads(1)
        device = torch.device("cuda", 0) if words.device == "cuda" else torch.device("cpu")
        setting = Setting(device, words.tiny, words.out.resolve(), words.data, words.until)
        for finding in CHECKS[words.child][0](setting):
            print(json.dumps(finding), flush=True)
        return 0

    until, failed = time.time() + 60 * words.minutes, 0
    names, results = words.checks or list(CHECKS), words.out / "results.jsonl"
    for name in names:
        left, found = until - time.time(), [{"check": name, "ok": None, "why": "no time left"}]
        if left >= _LEAST_S:
            found = _checked(name, min(left, CHECKS[name][2]), sys.argv[1:], words.out)
        failed += any(finding["ok"] is False for finding in found)
        lines = "".join(json.dumps(finding) + "\n" for finding in found)
        with results.open("a", encoding="utf-8") as file:
            file.write(lines)
        print(lines, end="", flush=True)
    print(f"{failed} of {len(names)} checks found something wrong; {results}")
    return 1 if failed else 0


def _checked(name: str, limit_s: float, shared: list[str], out: Path) -> list[Finding]:
    """What a check finds, in a process of its own that ends in time."""
    mark, began = f"gpu-{name}-{time.time()}", time.time()
    words = ["-m", "tools.gpu_checks", "--child", name, "--until", str(began + limit_s), *shared]
    said, problems = out / f"{name}.jsonl", out / f"{name}.err"
    for earlier in (said, problems):
        earlier.unlink(missing_ok=True)
    with TemporaryDirectory(prefix="gpu-check-") as place:
        check = Start(words, CHECKS[name][1], mark, said, problems, PYTHONUNBUFFERED="1", TMPDIR=place)
        ended = check.end(limit_s)
    found = [{"check": name, **json.loads(line)} for line in text(said).splitlines() if line.startswith('{"ok"')]
    bad = {"check": name, "ok": False}
    if ended.why:
        found.append({**bad, "why": f"not finished within {limit_s:.0f} s"})
    elif ended.code:
        found.append({**bad, "code": ended.code, "said": text(problems).strip().splitlines()[-3:]})
    elif not found:
        found.append({**bad, "why": "it found nothing"})
    found[-1]["seconds"] = round(time.time() - began, 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
