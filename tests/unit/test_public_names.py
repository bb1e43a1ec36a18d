"""The public names load, are documented, and cost nothing until they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vdkit


@pytest.mark.parametrize("name", [name for name in vdkit.__all__ if not name.startswith("__")])
def test_every_public_name_loads_and_says_what_it_is(name: str) -> None:
    found = getattr(vdkit, name)
    assert found.__doc__
    assert name in dir(vdkit)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vdkit.nonsense


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'ssl', 'pyVmomi', 'numpy', 'rich', 'typer', 'cryptography'}"
    code = f"import sys, vdkit; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
