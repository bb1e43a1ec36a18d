"""The drawing of the error tree, its classes and the reference pages say the same."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vdkit import errors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    path = ROOT / "scripts" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _drawn() -> list[tuple[int, str, int, str]]:
    """``(depth, class, number, name)`` of every line of the drawing."""
    rows = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)\s+(\d+)\s+([A-Z_]+)", line)
        if match:
            rows.append((len(match[1]) // 4, match[2], int(match[3]), match[4]))
    return rows


def test_drawing_is_the_tree(pages: ModuleType) -> None:
    tree = [(depth, kind.__name__, *kind.code) for depth, kind in pages.error_tree()]
    assert _drawn() == tree


def test_every_class_is_in_the_tree(pages: ModuleType) -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert defined == {kind.__name__ for _, kind in pages.error_tree()}


def test_exit_codes_are_the_documented_ones(pages: ModuleType) -> None:
    codes = pages.exit_codes()
    assert len(set(codes.values())) == len(codes)
    for _, kind in pages.error_tree():
        assert kind.exit_code in codes.values()
        assert kind.exit_code != errors.ExitCode.OK


@pytest.mark.parametrize("name", ["errors.md", "limits.md", "commands.md"])
def test_reference_page_is_up_to_date(pages: ModuleType, name: str) -> None:
    page = ROOT / "docs" / "reference" / name
    assert page.read_text(encoding="utf-8") == pages.PAGE_WRITERS[name](), "run scripts/reference"


def test_errors_page_names_every_class(pages: ModuleType) -> None:
    # Read independently of the generator: a row lost there would be lost on both sides of a comparison.
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    _, _, text = page.partition("## Classes")
    for _, kind in pages.error_tree():
        row = next(line for line in text.splitlines() if f"`{kind.__name__}`" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:4] == [str(kind.code.number), f"`VIX_E_{kind.code.name}`", str(kind.exit_code)]


def test_an_error_is_one_line() -> None:
    error = errors.NotFound("disk\n a", remedy="look\nelsewhere")
    assert str(error) == "disk a; look elsewhere"
