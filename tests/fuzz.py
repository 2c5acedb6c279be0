"""How many random examples a test tries: a tenth of its whole number, or HPCSPLIT_FUZZ times it ("full": all)."""

from __future__ import annotations

import os

_WISH = os.environ.get("HPCSPLIT_FUZZ", "0.1")
SHARE = 1.0 if _WISH == "full" else float(_WISH)
LEAST = 20


def examples(whole: int) -> int:
    """The number of examples of a test that has so many in all."""
    return max(min(whole, LEAST), round(whole * SHARE))
