"""Files and functions stay small enough to be read at once; names of test files can be told apart."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "bench", "scripts")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70


def _is_source(path: Path) -> bool:
    if not path.is_file() or "__pycache__" in path.parts:
        return False
    if path.suffix in {".py", ".go", ".c", ".sh"}:
        return True
    return path.suffix == "" and path.read_bytes()[:2] == b"#!"


SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if _is_source(path)]
PYTHON = [path for path in SOURCES if path.suffix == ".py"]


def long_functions(text: str, limit: int) -> list[tuple[str, int]]:
    """``(name, lines)`` of the functions with more lines than ``limit``, decorators not counted."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    sizes = [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]
    return [(name, lines) for name, lines in sizes if lines > limit]


def test_sources_are_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(FOLDERS)


def test_files_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_small() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in PYTHON
        for name, lines in long_functions(path.read_text(encoding="utf-8"), MAX_FUNCTION_LINES)
    }
    assert found == {}


@pytest.mark.parametrize(("lines", "expected"), [(70, []), (71, [("f", 71)])])
def test_the_limit_counts_lines(lines: int, expected: list[tuple[str, int]]) -> None:
    text = "class C:\n    def f():\n" + "        pass\n" * (lines - 1)
    assert long_functions(text, MAX_FUNCTION_LINES) == expected


def test_names_of_test_files_are_unique() -> None:
    # pytest imports them by their base name: a second one of the same name would shadow the first.
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []
