"""The layers of the design hold, and each contract that says so breaks when somebody crosses it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
NAMES = {contract["id"]: contract["name"] for contract in CONFIG["contracts"]}

#: Contract, the module that is planted, and the forbidden line in it.
PLANTS = [
    ("layers", "errors", "import vdkit.block"),
    ("layers", "block", "import vdkit.vmdk"),
    ("layers", "block", "import vdkit.net"),
    ("layers", "wire", "import vdkit.net"),
    ("layers", "net", "import vdkit.wire"),
    ("layers", "net", "import vdkit.transports"),
    ("layers", "vmdk", "import vdkit.transports"),
    ("layers", "transports", "import vdkit.vmdk"),
    ("layers", "transports", "import vdkit.vsphere"),
    ("layers", "vsphere", "import vdkit.vmdk"),
    ("layers", "vmdk", "import vdkit.disklib"),
    ("layers", "disklib", "import vdkit.backup"),
    ("layers", "backup", "import vdkit.disklib"),
    ("layers", "disklib", "import vdkit.jobs"),
    ("layers", "jobs", "import vdkit.sim"),
    ("layers", "sim", "import vdkit.jobs"),
    ("layers", "jobs", "import vdkit.cli"),
    ("layers", "testing", "import vdkit.cli"),
    ("layers", "newcomer", "import vdkit.errors"),
    ("sim-is-no-client", "sim", "import vdkit.vsphere"),
    ("sim-is-no-client", "sim", "import vdkit.transports"),
    ("sim-is-no-client", "sim", "import vdkit.disklib"),
    ("sim-is-no-client", "sim", "import vdkit.backup"),
    ("backup-knows-devices-only", "backup", "import vdkit.vsphere"),
    ("backup-knows-devices-only", "backup", "import vdkit.transports"),
    ("backup-knows-devices-only", "backup", "from pyVmomi import vim"),
    ("wire-does-no-io", "wire", "import socket"),
    ("wire-does-no-io", "wire", "import ssl"),
    ("wire-does-no-io", "wire", "import threading"),
    ("wire-does-no-io", "wire", "import urllib.request"),
    ("only-net-opens-sockets", "transports", "import socket"),
    ("only-net-opens-sockets", "cli", "import ssl"),
    ("no-witness-in-the-package", "vmdk", "import dissect.hypervisor"),
]


class Copy:
    """The package as it stands, in a folder of its own, with the project's own contracts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "src" / "vdkit", folder / "vdkit", ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def lint(self, *arguments: str) -> tuple[int, str]:
        # The linter finds the package by importing it: the copy has to come before the one that is installed.
        program = Path(sys.executable).with_name("lint-imports")
        done = subprocess.run(
            [program, "--no-cache", "--no-logo", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    def plant(self, package: str, line: str) -> Path:
        path = self.folder / "vdkit" / package / "planted.py"
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        if package == "errors":
            shutil.rmtree(path.parent)
            path = self.folder / "vdkit" / "errors.py"
            path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
        else:
            path.write_text(f"{line}\n", encoding="utf-8")
        return path


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_contracts_hold(copy: Copy) -> None:
    status, said = copy.lint()
    assert status == 0, said
    for name in NAMES.values():
        assert f"{name} KEPT" in said


@pytest.mark.parametrize(("contract", "package", "line"), PLANTS)
def test_forbidden_import_is_seen(copy: Copy, contract: str, package: str, line: str) -> None:
    copy.plant(package, line)
    status, said = copy.lint("--contract", contract)
    assert status == 1, said
    assert f"{NAMES[contract]} BROKEN" in said


def test_every_contract_has_a_plant() -> None:
    assert {contract for contract, _, _ in PLANTS} == set(NAMES)
