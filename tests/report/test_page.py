"""The page: a figure for every quantity that is there, a sentence for what is not, nothing fetched, text escaped."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any

import numpy as np
import pytest

from hpcsplit.config import resolve
from hpcsplit.report.charts import SECTIONS
from hpcsplit.report.examples import Mistakes, Wrong
from hpcsplit.report.figure import Chart, drawn
from hpcsplit.report.page import Shown, page
from hpcsplit.run.records import EpochRecord
from tests.report.made import BARE, run
from tests.report.reading import Reader

CHARTS = [chart for charts in SECTIONS.values() for chart in charts]
EVIL = "<script>alert(1)</script>&amp;$x^$"
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
ANYWAY = ("Phases",)  # where there is an epoch, there is a phase


def shown(records: list[EpochRecord], **changes: Any) -> Shown:
    wrong = Wrong(7, 0, 1, 0.98, 4.5, PIXELS)
    mistakes = Mistakes("checkpoint one", ("cat", "dog"), np.array([[5, 2], [0, 9]]), [wrong])
    start = {"start": 1, "time": "2026-01-01", "argv": ["hpcsplit", "train"], "config": {"run.seed": "elsewhere"}}
    config = resolve({"optim": {"lr": 0.125}}, ())
    return dataclasses.replace(Shown("/runs/one", records, config, [start], "closing", mistakes), **changes)


@pytest.fixture(scope="module")
def three() -> str:
    """The page of three runs, the second with another number of stages, the third of an older version."""
    old = [dataclasses.replace(r, checkpoint_s=None, theorem=None, stages=()) for r in run("sss")]
    return page({"hybrid": shown(run("sppsp")), "deep": shown(run("spps", stages=3)), "exact": shown(old)})


@pytest.fixture(scope="module")
def bare() -> str:
    return page({"one": shown(BARE, examples="No checkpoint.")})


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.heading)
@pytest.mark.parametrize("runs", [{"one": run("sppsp")}, {"a": run("spp"), "b": run("sp"), "c": BARE}])
def test_what_is_there_is_drawn(chart: Chart, runs: dict[str, list[EpochRecord]]) -> None:
    panels, legend = drawn(chart, runs)
    assert panels
    assert all("<svg" in panel and "<path" in panel for panel in panels)
    assert legend


@pytest.mark.parametrize("chart", [c for c in CHARTS if c.heading not in ANYWAY], ids=lambda chart: chart.heading)
def test_what_is_not_there_is_a_sentence(chart: Chart, bare: str) -> None:
    assert drawn(chart, {"one": BARE})[0] == []
    assert html.escape(chart.absent) in bare


def test_a_page_of_nothing_but_one_epoch_has_no_empty_figure(bare: str) -> None:
    reader = Reader(bare)
    assert reader.count("figure") == len(ANYWAY)
    assert "No checkpoint." in reader.text


def test_several_runs_have_a_panel_for_each_stage_and_one_scale(three: str) -> None:
    chart = next(c for c in CHARTS if c.heading == "Label signal")
    runs = {"a": run("spp", stages=3), "b": run("spp", stages=2)}
    panels, legend = drawn(chart, runs)
    assert [found for panel in panels for found in re.findall(r"<title>Label signal (.*?)</title>", panel)] == [
        "stage 0",
        "stage 1",
        "stage 2",
    ]
    assert [sample.label for sample in legend] == ["a", "b", "parallel epochs"]
    ticks = [re.findall(r"<text[^>]*>([^<]*)</text>", panel) for panel in panels]
    assert len({tuple(t for t in each if not t.startswith("stage")) for each in ticks}) == 1


def test_it_is_well_formed(three: str) -> None:
    reader = Reader(three)
    assert reader.count("figure") == len(CHARTS) + 6  # matrix and gallery of each run
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for name, attributes in reader.elements if attributes.get("href", "")[:1] == "#"}
    assert links <= set(ids)
    assert len(three) < 1_000_000


def test_it_asks_no_network_for_anything(three: str) -> None:
    reader = Reader(three)
    for name, attributes in reader.elements:
        assert name not in ("script", "iframe", "object", "embed", "form", "base")
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert attributes.get(key, "#")[:1] == "#" or attributes[key].startswith("data:"), (name, attributes)
    assert "http" not in three
    assert set(re.findall(r"url\((.)", three)) == {"#"}
    assert "@import" not in three


def test_text_of_the_user_is_text() -> None:
    config = resolve({"data": {"root": EVIL}}, ())
    records = [dataclasses.replace(r, terms={EVIL: 1.0, **(r.terms or {})}) for r in run("spp")]
    mistakes = Mistakes(EVIL, (EVIL, "dog"), np.array([[5, 2], [0, 9]]), [Wrong(7, 0, 1, 0.98, 4.5, PIXELS)])
    start = {"start": 1, "cwd": EVIL, EVIL: [EVIL]}
    changes = {"folder": EVIL, "config": config, "summary": EVIL, "starts": [start, start], "examples": mistakes}
    one = Reader(page({EVIL: shown(records, **changes)}))
    two = Reader(page({EVIL: shown(records, **changes), "other": shown(run("s"), config=EVIL, examples=EVIL)}))
    assert one.count("script") == two.count("script") == 0
    for reader in (one, two):
        assert reader.text.count(EVIL) >= 8
        assert "&lt;" not in reader.text


def test_settings_that_somebody_made_and_those_that_differ_come_first() -> None:
    other = resolve({"optim": {"lr": 0.125}, "run": {"seed": 3}, "method": {"name": "backprop"}}, ())
    text = page({"a": shown(run("sp")), "b": shown(run("ss"), config=other)})
    first, all_keys = re.findall(r'<table class="words">(.*?)</table>', text, re.DOTALL)[:2]
    keys, every = (set(re.findall(r'<th scope="row">(.*?)</th>', part)) for part in (first, all_keys))
    of_penalty = {key for key in every if key.startswith("method.")} - {"method.frozen"}
    assert keys == of_penalty | {"data.name", "model.name", "optim.name", "optim.lr", "run.seed"}
    assert "method.beta" in keys
    assert "data.name" in every
    assert "elsewhere" not in text  # provenance's copy of the configuration


def test_the_phases_and_the_exact_runs_are_told_apart() -> None:
    chart = next(c for c in CHARTS if c.heading == "Accuracy and time")
    _, legend = drawn(chart, {"hybrid": run("spp"), "backprop": run("sss")})
    assert [(sample.dashes, sample.label) for sample in legend] == [("none", "hybrid"), ("6 3", "backprop (exact)")]


def test_a_legend_has_lines_marks_and_boxes(three: str) -> None:
    """The sample of each kind before its label; marks are those of single points of one run."""
    one = page({"one": shown(run("sppsp"))})
    assert re.findall(r'<line [^>]*stroke="(.*?)"[^>]*dasharray="(.*?)"/></svg>(through.*?)</li>', one) == [
        ("#009e73", "6 3", "through λ, train")
    ]
    assert '<span style="color:#0072b2">●</span>gap</li>' in one
    assert '<span style="color:#d55e00">▲</span>bound</li>' in one
    assert re.search(r'<rect [^>]*fill="#4c72b0ff"/></svg>parallel epochs</li>', one)
    assert re.findall(r'dasharray="(.*?)"/></svg>exact \(exact\)</li>', three) == ["6 3"]
