"""tools/mutate: every kind of change is found once, is still Python and another program; survivors are those that no
test notices, and what is known is not tried again."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tools.mutation import __main__ as program
from tools.mutation.mutants import ROOMS, drawn, equivalents, files_of_tests, modules, mutants, own
from tools.program import FAILED, ROOT

SOURCE = '''"""A text of 7 words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Few:
    κ: float = option(0.5, "limit", low=1)
    n: int = 3

    def value(self, a, b=2):
        """Never 5."""
        assert a != 4, "no 4"
        if a < b and not self.ready:
            raise ValueError(f"{a + b} is more than 1")
        self.n = call(a, b)
        self.n += 1
        log(a)
        return (a
                - b) * -a if a in b else None
'''


def changes(source: str) -> set[tuple[str, str, str]]:
    return {(m.kind, m.before, m.after) for m in mutants("records", "few.py", source.encode())}


def test_every_place_that_matters_and_no_other() -> None:
    found = changes(SOURCE)
    whole, last = "return (a - b) * -a if a in b else None", "- b) * -a if a in b else None"
    condition = "if a < b and not self.ready:"
    assert found == {
        ("constant", "n: int = 3", "n: int = 4"),
        ("constant", "def value(self, a, b=2):", "def value(self, a, b=3):"),
        ("condition", condition, "if not (a < b and not self.ready):"),
        ("comparison", condition, "if a <= b and not self.ready:"),
        ("boolean", condition, "if a < b or not self.ready:"),
        ("sign", condition, "if a < b and (self.ready):"),
        ("drop", 'raise ValueError(f"{a + b} is more than 1")', "pass"),
        ("drop", "self.n = call(a, b)", "pass"),
        ("swap", "self.n = call(a, b)", "self.n = call(b, a)"),
        ("drop", "self.n += 1", "pass"),
        ("arithmetic", "self.n += 1", "self.n -= 1"),
        ("constant", "self.n += 1", "self.n += 2"),
        ("drop", "log(a)", "pass"),
        ("return", whole, "return None"),
        ("condition", last, "- b) * -a if (not (a in b)) else None"),
        ("comparison", last, "- b) * -a if a not in b else None"),
        ("arithmetic", last, "+ b) * -a if a in b else None"),
        ("arithmetic", last, "- b) / -a if a in b else None"),
        ("sign", last, "- b) * (a) if a in b else None"),
    }


@pytest.mark.parametrize("room", ["terms", "records", "wire"])
def test_mutants_of_a_room_are_other_programs_with_names_of_their_own(room: str) -> None:
    found = drawn(ROOT, room, 0, 30)
    assert len({mutant.id for mutant in found}) == len(found) == 30
    for mutant in found:
        source = (ROOT / mutant.path).read_bytes()
        changed = mutant.apply(source)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
        assert source[mutant.start : mutant.end] != changed[mutant.start : mutant.start + len(mutant.text.encode())]
    assert drawn(ROOT, room, 0, 30) == found
    assert drawn(ROOT, room, 1, 30) != found
    assert files_of_tests(ROOT, room, True)
    assert modules(ROOT, room)


def test_a_line_that_moves_keeps_the_name_of_its_mutants() -> None:
    before = {mutant.id for mutant in mutants("records", "few.py", SOURCE.encode())}
    after = {
        mutant.id for mutant in mutants("records", "few.py", SOURCE.replace("\nclass", "\n\n# more\nclass").encode())
    }
    assert before == after


def test_an_equivalent_mutant_has_a_reason() -> None:
    known = equivalents(program.EQUIVALENT)
    assert all(len(name) == 8 and len(reason.split()) > 3 for name, reason in known.items())


CODE = """
def area(a, b):
    return a * b


def size(n):
    return n + 1


def idle():
    wait(0)
"""
TESTS = """
from hpcsplit.run.records import area, size


def test_area():
    assert area(2, 1) == 2


def test_size():
    assert size(1) == 2
"""
TREE = {
    "hpcsplit/__init__.py": "",
    "hpcsplit/run/records.py": CODE,
    "tests/__init__.py": "",
    "tests/run/test_records.py": TESTS,
}


def test_the_tests_that_may_notice_are_there() -> None:
    places = {place for _, others in ROOMS.values() for place in others} | {own(room) for room in ROOMS}
    assert [place for place in places if not (ROOT / place).exists()] == []


@pytest.mark.usefixtures("compiler")
def test_survivors_are_what_no_test_notices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in TREE.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    words = ["--room", "records", "--count", "20", "--jobs", "1", "--out", str(tmp_path / "out")]
    assert program.main(words, tmp_path / "tree") == FAILED
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    found = {(one["before"], one["after"]): one for one in map(json.loads, lines)}
    assert {change for change, one in found.items() if not one["noticed"]} == {
        ("return a * b", "return a / b"),
        ("wait(0)", "pass"),
        ("wait(0)", "wait(1)"),
    }
    assert found["return n + 1", "return n - 1"]["by"] == ["FAILED tests/run/test_records.py::test_size"]
    assert found["wait(0)", "pass"]["tried"] == 0
    said = capsys.readouterr().out
    assert "records             7        4      0         3      0   57.1%" in said
    assert "hpcsplit/run/records.py:3 arithmetic\n    - return a * b\n    + return a / b" in said
    again = program.main(words, tmp_path / "tree")
    assert again == FAILED
    assert (tmp_path / "out" / "results.jsonl").read_text().splitlines() == lines
    test = tmp_path / "tree" / "tests" / "run" / "test_records.py"
    test.write_text(test.read_text().replace("area(2, 1) == 2", "area(2, 3) == 6"))
    program.main(words, tmp_path / "tree")
    more = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["noticed"] for line in more[len(lines) :]].count(True) == 1
    assert len(more) == len(lines) + 3  # survivors are tried again, and nothing else
