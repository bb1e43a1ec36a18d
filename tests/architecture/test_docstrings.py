"""Every module says what it is; every format and protocol module also says where its facts come from."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "vdkit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
#: Packages that hold facts about other people's formats and protocols.
FACTUAL = ("vmdk", "wire")
_SOURCE = re.compile(r"\b(sources?|facts|specification|technote|RFC \d+)\b", re.IGNORECASE)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_says_what_it_is(path: Path) -> None:
    assert len(_docstring(path)) > 10, f"{_name(path)} needs a docstring"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.parent != PACKAGE and path.relative_to(PACKAGE).parts[0] in FACTUAL],
    ids=_name,
)
def test_factual_module_names_its_source(path: Path) -> None:
    if path.name == "__init__.py":
        return
    assert _SOURCE.search(_docstring(path)), f"{_name(path)}: the docstring names no source of its facts"
