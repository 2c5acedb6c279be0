"""What stands in the files of a run directory reaches no terminal, page or table as a command, and no traceback."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Run
from tests.engine.small import train_here

ESCAPE = "\x1b]0;owned\x07\r\u202e<script>"
SHOWN = "\\x1b]0;owned\\x07\\r\\u202e&lt;script&gt;"
FORMULA = "=cmd|' /C calc'!A0"
THEOREM = {"gap": 1.0, "bound": None, "worst": None, "residuals": [0.5], "lipschitz": [None], "missing": [ESCAPE]}
Command = Callable[..., tuple[int, str, str]]


def change_last(run: Run, **changes: Any) -> None:
    path = run.folder / "records.jsonl"
    *before, last = path.read_text().splitlines()
    path.write_text("\n".join([*before, json.dumps(json.loads(last) | changes)]) + "\n")


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.replace("\t", "").split("\n"))


def test_a_page_and_a_table_of_strange_text(copy: Run, tmp_path: Path, hpcsplit: Command) -> None:
    change_last(copy, theorem=THEOREM, terms={ESCAPE: 1.0, "=x": -2.0}, weights_sha256=FORMULA)
    provenance = copy.folder / "provenance.json"
    starts = json.loads(provenance.read_text())["starts"]
    starts[-1] |= {"ranks": [{"host": ESCAPE}], "user": ESCAPE, ESCAPE: "\ud800", "slurm": FORMULA}
    provenance.write_text(json.dumps({"starts": starts}))
    (copy.folder / "summary.txt").write_text(ESCAPE)
    strange = copy.folder.rename(copy.folder.with_name(f"={ESCAPE[:9]}"))

    code, out, err = hpcsplit("report", strange, "--no-mistakes", "--out", tmp_path / "page.html")
    assert (code, err) == (0, "")
    assert harmless(out)
    page = (tmp_path / "page.html").read_text()
    assert harmless(page)
    assert page.count(SHOWN) >= 3  # summary, user, a key of the provenance; the host is in JSON

    code, out, err = hpcsplit("report", strange, "--out", tmp_path / "numbers.csv")
    assert (code, err) == (0, "")
    text = (tmp_path / "numbers.csv").read_text()
    assert harmless(text)
    last = list(csv.DictReader(io.StringIO(text)))[-1]
    assert last["run"] == f"'={SHOWN[:12]}"
    assert last["weights_sha256"] == f"'{FORMULA}"
    assert last["terms.=x"] == "-2.0"
    assert last["theorem.missing.1"] == ESCAPE.encode("unicode_escape").decode()

    code, out, err = hpcsplit("evaluate", strange)
    assert code == 65  # its weights are not those recorded
    assert harmless(out)
    assert harmless(err)


def test_a_lock_of_a_strange_host(copy: Run, capfd: pytest.CaptureFixture[str]) -> None:
    from hpcsplit.host.process import Process

    owner = {"token": "0123abcd", "host": ESCAPE, "job": "", "restart": 0, "since": ESCAPE, "process": {}}
    owner["process"] = {"machine": Process.this().machine, "pid": 1, "started": 0}  # lives, and is not ours
    (copy.folder / "lock").write_text(json.dumps(owner) + "\n")
    assert train_here(copy.toml, copy.folder) == 77
    said = capfd.readouterr().err
    assert harmless(said)
    assert "another run is at work in" in said


# ------------------------------------------------------------------------------------------------ damage

DEEP = "[" * 400 + "]" * 400
GARBAGE: dict[str, list[str]] = {
    "records.jsonl": [
        '{"epoch": 0, "phase": "serial", "loss": "high"}\n{"epoch": 1, "phase": "serial"}\n',
        '{"epoch": 0, "phase": "serial", "loss": NaN}\n{"epoch": 1, "phase": "serial"}\n',
        '{"epoch": 0, "phase": "serial", "loss": 1' + "0" * 400 + '}\n{"epoch": 1, "phase": "serial"}\n',
        '{"epoch": 0, "phase": "ser\n{"epoch": 1, "phase": "serial"}\n',
        "[" * 100_000 + '\n{"epoch": 1, "phase": "serial"}\n',
        '{"epoch": 1, "phase": "serial"}\n{"epoch": 0, "phase": "serial"}\n',
        "\0" * 5000 + '\n{"epoch": 1, "phase": "serial"}\n',
    ],
    "forecast.json": [
        '{"key": 1, "batch_size": "x", "forecast": [], "one_rank_samples_per_s": 1, "cuts": 3, "profile": null}',
        '{"key": 1, "batch_size": 0, "forecast": {}, "one_rank_samples_per_s": {}, "cuts": 3, "profile": null}',
        '{"key": 1, "batch_size": 1, "forecast": {"exact_s": 0, "parallel_s": NaN}, "one_rank_samples_per_s": 0, '
        '"cuts": [], "profile": null}',
        DEEP,
        '{"key"',
    ],
    "provenance.json": [
        '{"starts": 7}',
        '{"starts": [7]}',
        '{"starts": [{"ranks": [{}]}]}',
        '{"starts": [{"config": [1]}]}',
        f'{{"starts": [{{"a": {DEEP}}}]}}',
        "\0",
        '{"starts": {}}',
    ],
    "split.json": ['{"a": 1}', "[]", DEEP, '{"a": {"split": 3, "sha256": 3}}'],
    "config.toml": ["\0", "[data]\nname = 1e999\n", f"a = {DEEP}", "[run]\nseed = 1" + "0" * 5000],
}
DAMAGE = [(name, k) for name, texts in GARBAGE.items() if name != "split.json" for k in range(len(texts))]


@pytest.mark.parametrize(("name", "number"), DAMAGE)
def test_damaged_files(copy: Run, tmp_path: Path, hpcsplit: Command, name: str, number: int) -> None:
    (copy.folder / name).write_text(GARBAGE[name][number])
    page = ["--out", tmp_path / "page.html"] if name in ("provenance.json", "config.toml") else []
    commands: list[list[object]] = [["report", "--no-mistakes", *page]]
    commands += [["evaluate"]] if name in ("records.jsonl", "config.toml", "provenance.json") else []
    for command, *words in commands:
        code, out, err = hpcsplit(command, copy.folder, *words)
        assert code in (0, 65)
        assert "Traceback" not in out + err
        assert code == 0 or (err.startswith("hpcsplit: ") and err.count("\n") == 1)
        assert (code == 65) == (name == "records.jsonl" or (name, command) == ("config.toml", "evaluate"))


@pytest.mark.parametrize("name", GARBAGE)
def test_a_run_goes_on_over_damage_or_says_what_is_damaged(
    copy: Run, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for text in GARBAGE[name]:
        (copy.folder / name).write_text(text)
        code = train_here(copy.toml, copy.folder)
        err = capfd.readouterr().err
        assert code == (65 if name == "records.jsonl" else 0)
        assert "Traceback" not in err


def test_a_sign_of_another_kind_is_none(tmp_path: Path) -> None:
    from hpcsplit.run.watchdog import beside, heartbeat_of

    log = tmp_path / "rank-000.log"
    whole = {"rank": 0, "pid": 1, "host": "n1", "moves": 3, "at": 1.5, "where": "x", "waits": ""}
    beside(log).write_text(json.dumps(whole))
    assert heartbeat_of(log) is not None
    values: tuple[Any, ...] = (None, [], True, {"a": 1})
    for name in whole:
        for value in values:
            beside(log).write_text(json.dumps(whole | {name: value}))
            assert heartbeat_of(log) is None
