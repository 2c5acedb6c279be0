"""Test accuracy against training time of every method: `tools/reproduce plane`, with its options.

    tools/bench plane --data DIR [--only ROW,...] [--seeds N] [--set section.key=VALUE]

Runs that are finished are not repeated, so a long study can be continued.
"""

from __future__ import annotations

import sys

from tools.reproductions import __main__ as reproduce


def main() -> int:
    return reproduce.main(["plane", *sys.argv[1:]])
