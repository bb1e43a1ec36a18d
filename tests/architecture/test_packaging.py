"""What a user gets from ``pip install``: the package, its types, its licence, and nothing else."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import vdkit
from vdkit.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built once from a copy that holds only what a build may look at."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "dist"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    return zipfile.ZipFile(path)


def _dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"vdkit-{VERSION}.dist-info/{name}").decode()


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "src"
    expected = {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "vdkit/py.typed" in held


def test_wheel_carries_licence_and_notice(wheel: zipfile.ZipFile) -> None:
    for name in ("LICENSE", "NOTICE"):
        assert _dist_info(wheel, f"licenses/{name}") == (ROOT / name).read_text(encoding="utf-8")
    metadata = message_from_string(_dist_info(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_wheel_declares_its_entry_points(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(_dist_info(wheel, "entry_points.txt"))
    assert points["console_scripts"]["vdkit"] == PROJECT["scripts"]["vdkit"]
    assert points["pytest11"]["vdkit"] == PROJECT["entry-points"]["pytest11"]["vdkit"]


def test_version_is_the_package_s_own(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_string(_dist_info(wheel, "METADATA"))
    assert metadata["Version"] == vdkit.__version__ == VERSION


def test_row_c4_row_e10_no_library_is_brought_along(wheel: zipfile.ZipFile) -> None:
    """VDDK shadowed the system's C++, SSL and glib with its own, which broke programs beside it."""
    kinds = {Path(name).suffix for name in wheel.namelist() if ".dist-info/" not in name}
    assert kinds <= {".py", ".typed"}
    assert _dist_info(wheel, "WHEEL").count("Root-Is-Purelib: true") == 1


def test_row_e28_installing_writes_its_own_files_and_nothing_else(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """Removing VDDK needed a reboot: here nothing outside of two folders and a script is ever made."""
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run(
        [*pip, "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel.filename)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    if "No module named pip" in done.stderr:
        pytest.skip("there is no pip in this environment")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"site"}
    assert {path.name for path in target.iterdir()} == {"vdkit", f"vdkit-{VERSION}.dist-info", "bin"}
    assert [path.name for path in (target / "bin").iterdir()] == ["vdkit"]
