"""The first minutes on a GPU, in one command that is bounded in time: what works there, and how fast.

    tools/gpu [--minutes 12] [--device cuda] [--out runs/gpu] [--data DIR] [CHECK …]

Each check is a process (or two ranks) of its own with a time limit, in the order of what matters most; every finding is
a line of JSON in OUT/results.jsonl.  `--device cpu --tiny` is the dry run that the tests make.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tools.gpu_checks import here, ranks, runs
from tools.gpu_checks.setting import Check, Finding, Setting
from tools.program import Parser, Start, text

CHECKS: dict[str, tuple[Check, int, float]] = {  # what, on how many ranks, seconds at most
    "environment": (here.environment, 1, 30),
    "optimizers": (here.optimizers, 1, 40),
    "messages": (ranks.messages, 2, 40),
    "resume": (runs.resume, 1, 90),
    "tests": (runs.tests, 1, 90),
    "methods": (runs.methods, 1, 110),
    "loops": (here.loops, 1, 60),
    "alone": (ranks.alone, 1, 60),
    "together": (ranks.together, 2, 120),
    "costs": (here.costs, 1, 30),
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
        device = torch.device("cuda", 0) if words.device == "cuda" else torch.device("cpu")
        return _child(words.child, Setting(device, words.tiny, words.out.resolve(), words.data, words.until))

    until, failed = time.time() + 60 * words.minutes, 0
    shared = ["--device", words.device, "--out", str(words.out), *(["--tiny"] if words.tiny else [])]
    shared += ["--data", str(words.data)] if words.data else []
    for name in words.checks or CHECKS:
        left = until - time.time()
        if left < _LEAST_S:
            found = [{"check": name, "ok": None, "why": "no time left"}]
        else:
            found = _checked(name, min(left, CHECKS[name][2]), shared, words.out)
        failed += any(finding["ok"] is False for finding in found)
        with open(words.out / "results.jsonl", "a", encoding="utf-8") as results:
            for finding in found:
                print(json.dumps(finding), file=results, flush=True)
                print(json.dumps(finding), flush=True)
    print(f"{failed} of {len(words.checks or CHECKS)} checks found something wrong; {words.out / 'results.jsonl'}")
    return 1 if failed else 0


def _checked(name: str, limit_s: float, shared: list[str], out: Path) -> list[Finding]:
    """What a check finds, in a process of its own that ends in time."""
    mark, began = f"gpu-{name}-{time.time()}", time.time()
    words = ["-m", "tools.gpu_checks", "--child", name, "--until", str(began + limit_s), *shared]
    said, problems = out / f"{name}.jsonl", out / f"{name}.err"
    said.unlink(missing_ok=True)
    problems.unlink(missing_ok=True)
    with TemporaryDirectory(prefix="gpu-check-") as place:
        check = Start(words, CHECKS[name][1], mark, said, problems, PYTHONUNBUFFERED="1", TMPDIR=place)
        ended = check.end(limit_s)
    found = [{"check": name, **json.loads(line)} for line in text(said).splitlines() if line.startswith('{"ok"')]
    if ended.why:
        found.append({"check": name, "ok": False, "why": f"not finished within {limit_s:.0f} s"})
    elif ended.code:
        found.append({"check": name, "ok": False, "code": ended.code, "said": text(problems).strip().splitlines()[-3:]})
    elif not found:
        found.append({"check": name, "ok": False, "why": "it found nothing"})
    found[-1]["seconds"] = round(time.time() - began, 1)
    return found


def _child(name: str, setting: Setting) -> int:
    torch.set_num_threads(1)
    try:
        for finding in CHECKS[name][0](setting):
            print(json.dumps(finding), flush=True)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
