"""The pages of release notes and of users' threads: every row, every state, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGES = TESTS.parent / "docs" / "explanation"
PAGE = PAGES / "release-notes.md"
THREADS = PAGES / "users-threads.md"
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


def test_every_thread_is_there_once_and_names_its_tests() -> None:
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in THREADS.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d", line)
    ]
    assert [row[0] for row in found] == [str(number) for number in range(8, 32)]
    for row in found:
        assert len(row) == 5 and re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", row[1]), row
        # What is measured is no test's business.
        assert row[4] or row[3].startswith("[measured]"), row


@pytest.mark.parametrize("page", [PAGE, THREADS], ids=lambda page: page.stem)
def test_every_linked_test_exists(page: Path) -> None:
    links = re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    assert len(links) > 30
    known: dict[str, set[str]] = {}
    for path, name in links:
        if path not in known:
            known[path] = functions_of(TESTS / path)
        assert name in known[path], f"{path}::{name}"
