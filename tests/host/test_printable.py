from __future__ import annotations

import csv
import io

import pytest

from hpcsplit.host.printable import cell, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("λ, 東京, ü, é, 👍 and \\x1b", "λ, 東京, ü, é, 👍 and \\x1b"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\rb\x08\x7f\x9b31m", "a\\rb\\x08\\x7f\\x9b31m"),
        ("two\nlines\tand", "two\nlines\tand"),
        ("admin\u202etxt.exe\u2066\ufeff", "admin\\u202etxt.exe\\u2066\\ufeff"),
        ("a\u2028b\u0085c", "a\\u2028b\\x85c"),
        ("half \ud800 and bytes \udcff", "half \\ud800 and bytes \\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected
    printable(text).encode()


def test_nothing_is_kept_where_a_line_is_a_line() -> None:
    assert printable("a\nb\t", keep="") == "a\\nb\\t"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "  =1", "＝1"])
def test_text_in_a_cell_is_no_formula(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, -3, None, True, 1e-9, "ab", "", "3", "a=b"])
def test_numbers_and_words_stay(value: object) -> None:
    assert cell(value) == value


def test_a_tab_does_not_begin_a_cell() -> None:
    text = io.StringIO()
    csv.writer(text).writerow([cell("\t=1"), cell("\r=1"), cell("\n=1")])
    assert text.getvalue() == "\\t=1,\\r=1,\\n=1\r\n"
