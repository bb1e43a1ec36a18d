"""The page of release notes: every row, every state, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "explanation" / "release-notes.md"
ROWS = [
    f"{group}{n}"
    for group, last in (("A", 6), ("B", 6), ("C", 6), ("D", 12), ("E", 34))
    for n in range(1, last + 1)
]


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if re.match(r"\| [A-E]\d", line)
    ]


def functions_of(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_is_there_once() -> None:
    assert [row[0] for row in rows()] == ROWS


def test_what_is_shown_names_its_tests_and_what_is_not_says_so() -> None:
    for row in rows():
        assert len(row) == 5, row
        state, tests = row[3], row[4]
        if state == "shown" or state.startswith("in part"):
            assert tests and row[2], row
        else:
            assert state == "not yet" or state.startswith("open: "), row
            assert not tests, row


def test_every_linked_test_exists() -> None:
    links = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(links) > 30
    known: dict[str, set[str]] = {}
    for path, name in links:
        if path not in known:
            known[path] = functions_of(TESTS / path)
        assert name in known[path], f"{path}::{name}"
