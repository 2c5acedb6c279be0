"""Pages of what the tools have printed, section by section."""

from __future__ import annotations

from pathlib import Path


def sections(page: Path) -> list[str]:
    """The sections ("## ...") that a page has already, in order; none where there is no page."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return [f"## {part.rstrip()}\n" for part in text.split("\n## ")[1:]]
