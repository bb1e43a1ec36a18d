"""The scripts are strict, executable, clean to shellcheck, and run from any folder."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [path for path in sorted([*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]) if not path.suffix]
SCRIPTS = [path for path in SCRIPTS if path.is_file()]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_script_is_strict_and_executable(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.witness("shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_script_is_clean(script: Path) -> None:
    # SC1091: files that a script sources are made by the script itself.
    done = subprocess.run(
        ["shellcheck", "--exclude=SC1091", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_every_witness_can_be_installed() -> None:
    """What a test asks for is in the list of packages, in the development extra, or on every system."""
    table = (ROOT / "scripts" / "system-packages").read_text(encoding="utf-8")
    probes = set(re.findall(r"^([\w./-]+)\|[\w.-]+\|", table, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {re.split(r"[>=<]", name)[0] for name in project["optional-dependencies"]["dev"]}
    # A distribution that is imported by another name.
    renamed = {"libvmdk-python": "pyvmdk", "pyfastlz": "fastlz"}
    modules |= {module for name, module in renamed.items() if name in modules}
    everywhere = {"bash", "sha256sum", "govmomi", "VMDKstream"}
    marks = (
        re.findall(r"mark\.witness\(([^)]*)\)", path.read_text(encoding="utf-8"))
        for path in (ROOT / "tests").rglob("test_*.py")
    )
    asked = {tool for found in marks for mark in found for tool in re.findall(r'"([^"]+)"', mark)}
    assert asked - probes - modules - everywhere == set()


def test_bench_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for arguments, said in ((["nonsense"], "no benchmark nonsense"), (["--fast"], "unknown option --fast")):
        done = subprocess.run(
            [ROOT / "scripts" / "bench", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert said in done.stderr


def test_missing_packages_are_named_for_an_ordinary_user(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    # A system on which nothing is installed, seen by somebody who is not root.
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")
    (tools / "id").chmod(0o755)
    text = (ROOT / "scripts" / "system-packages").read_text(encoding="utf-8")
    bare = tmp_path / "system-packages"
    bare.write_text(text.replace("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin", f"PATH={tools}"))
    done = subprocess.run(
        ["/bin/bash", bare, "nbdkit", "e2fsprogs"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nbdkit is missing" in done.stderr
    assert "apt-get install --no-install-recommends e2fsprogs nbdkit" in done.stderr
