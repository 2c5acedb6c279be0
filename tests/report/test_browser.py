"""The page in a real browser, as wide as a telephone and as a desk: all is drawn, all can be read, no complaint."""

from __future__ import annotations

import pytest

from hpcsplit.report.page import page
from tests.report import browser
from tests.report.made import run
from tests.report.test_page import CHARTS, shown

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on PATH (apt-get install chromium)"),
]
LEGIBLE = 8.0  # CSS pixels: the size of letters in a drawing
LONG = "a-run-with-a-name-as-long-as-people-make-them-" * 3


@pytest.mark.parametrize(
    ("width", "names"),
    [
        pytest.param(390, ["one"], marks=pytest.mark.weekly),
        pytest.param(1280, ["hybrid", LONG, "exact"], marks=pytest.mark.weekly),
        (390, ["hybrid", LONG, "exact"]),
        (1280, ["one"]),
    ],
)
def test_everything_is_drawn_and_fits(width: int, names: list[str]) -> None:
    phases = ["sppsp", "sppspsp", "sssss"]
    text = page({name: shown(run(p), summary="wide " * 60) for name, p in zip(names, phases, strict=False)})
    seen = browser.look(text, width)
    assert seen.console == []
    assert seen.overflow == 0
    assert len(seen.figures) == len(CHARTS) + 2 * len(names)
    assert min(min(box) for box in [*seen.figures, *seen.drawings]) > 40
    assert max(wide for wide, _ in seen.figures) <= width
    assert len(seen.drawings) >= len(CHARTS) + len(names)
    assert seen.smallest_font >= LEGIBLE
    assert seen.pictures == [4.0] * len(names)


def test_what_is_wrong_would_be_seen() -> None:
    page = (
        '<figure></figure><img src="data:image/png;base64,AAAA"><div style="width:900px">wide</div>'
        '<svg><text style="font-size:5px">small</text></svg>'
        "<script>console.error('no')</script>"
    )
    seen = browser.look(page, 390)
    assert len(seen.console) == 1
    assert seen.overflow > 400
    assert seen.figures[0][1] == 0
    assert seen.smallest_font == 5
    assert seen.pictures == [0]
