"""Every row of the errors page's table of situations, provoked: exit code, class, one line."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vdkit import errors
from vdkit.block.local import FolderStore
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.vmdk import DiskType, create_child, create_disk

CANARY = "c4nary-s1tuation"
Step = tuple[list[str], dict[str, str]]
OUTSIDE = (
    "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
    'createType="monolithicFlat"\nRW 8 FLAT "/etc/passwd" 0\n'
)


def _pages() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITUATIONS: tuple[tuple[str, type[errors.VixError], str], ...] = _pages().SITUATIONS


class Bench:
    """A folder with what goes wrong in it, and a host; each method provokes one situation."""

    def __init__(self, host: SimulatedHost, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.largest_file = resource.RLIM_INFINITY

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {k: v for k, v in os.environ.items() if not k.startswith(("GOVC_", "VDKIT_"))}
        own = {k: v for k, v in self.host.environment().items() if k.startswith("VDKIT_")}
        return subprocess.run(
            [sys.executable, "-m", "vdkit", *arguments],
            env={**settings, **own, "HOME": str(self.folder), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file,) * 2),
        )

    def backup(self, *more: str) -> Step:
        return ["backup", "vm1", "--to", "repo", *more], {}

    def made(self) -> None:
        command, _ = self.backup()
        done = self.run(*command)
        assert done.returncode == 0, done.stderr

    def child(self) -> str:
        """A disk ``base.vmdk`` and the text of its child's descriptor."""
        store = FolderStore(self.folder)
        create_disk(store, "base.vmdk", 1 << 20, disk_type=DiskType.VMFS_THIN).close()
        create_child(store, "base.vmdk", "child.vmdk")
        return (self.folder / "child.vmdk").read_text()

    # -- the situations, in the order of the page ------------------------------------------------------

    def cut_short(self) -> Step:
        disk = create_disk(FolderStore(self.folder), "d.vmdk", 1 << 30, disk_type=DiskType.MONOLITHIC_SPARSE)
        disk.close()
        os.truncate(self.folder / "d.vmdk", 40000)
        return ["info", "d.vmdk"], {}

    def no_disk(self) -> Step:
        (self.folder / "noise.vmdk").write_bytes(b"\x07" * 4096)
        return ["map", "noise.vmdk"], {}

    def unknown_version(self) -> Step:
        store = FolderStore(self.folder)
        create_disk(store, "d.vmdk", 1 << 30, disk_type=DiskType.MONOLITHIC_SPARSE).close()
        with store.open_writable("d.vmdk") as file:
            file.write_from(4, (9).to_bytes(4, "little"))
        return ["info", "d.vmdk"], {}

    def outside(self) -> Step:
        (self.folder / "d.vmdk").write_text(OUTSIDE)
        return ["convert", "d.vmdk", "stolen.raw", "-O", "raw"], {}

    def loop(self) -> Step:
        (self.folder / "loop.vmdk").write_text(self.child().replace("base.vmdk", "loop.vmdk"))
        return ["info", "loop.vmdk"], {}

    def orphan(self) -> Step:
        (self.folder / "orphan.vmdk").write_text(self.child().replace("base.vmdk", "gone.vmdk"))
        return ["info", "orphan.vmdk"], {}

    def other_parent(self) -> Step:
        self.child()
        base = self.folder / "base.vmdk"
        lines = ["CID=00000007" if x.startswith("CID=") else x for x in base.read_text().splitlines()]
        base.write_text("\n".join(lines) + "\n")
        return ["map", "child.vmdk"], {}

    def full(self) -> Step:
        """A limit on files stands for the end of the disk: it needs no privilege to set up."""
        self.host.machine("vm1").disk(2000).guest().write_from(0, os.urandom(1 << 20))
        self.largest_file = 64 << 10
        return self.backup()

    def wrong_pin(self) -> Step:
        return ["vms"], {"VDKIT_THUMBPRINT": ":".join(["AB"] * 32)}

    def wrong_password(self) -> Step:
        return ["vms"], {"VDKIT_PASSWORD": "another"}

    def no_machine(self) -> Step:
        return ["backup", "Büro Server 1", "--to", "repo"], {}

    def closed_port(self) -> Step:
        self.host.scenario.ticket_port = 1
        return self.backup()

    def no_host(self) -> Step:
        return ["vms", "--host", "esxi.invalid"], {}

    def reset(self) -> Step:
        self.made()
        machine = self.host.machine("vm1")
        for enabled in (False, True):
            machine.set_change_tracking(enabled)
            machine.power_off()
            machine.power_on()
        return self.backup()

    def second_run(self) -> Step:
        self.made()
        (lock,) = (self.folder / "repo").rglob("lock")
        self.held = lock.open("r+")
        fcntl.flock(self.held, fcntl.LOCK_EX)
        return self.backup()

    def no_repository(self) -> Step:
        return ["points", "nowhere"], {}

    def changed_bytes(self) -> Step:
        self.host.machine("vm1").disk(2000).guest().write_from(1 << 20, os.urandom(1 << 20))
        self.made()
        (vmdk,) = (self.folder / "repo").rglob("*.vmdk")
        data = bytearray(vmdk.read_bytes())
        data[len(data) // 2] ^= 1
        vmdk.write_bytes(data)
        return ["verify", "repo"], {}


PROVOKED: list[Callable[[Bench], Step]] = [
    Bench.cut_short,
    Bench.no_disk,
    Bench.unknown_version,
    Bench.outside,
    Bench.loop,
    Bench.orphan,
    Bench.other_parent,
    Bench.full,
    Bench.wrong_pin,
    Bench.wrong_password,
    Bench.no_machine,
    Bench.closed_port,
    Bench.no_host,
    Bench.reset,
    Bench.second_run,
    Bench.no_repository,
    Bench.changed_bytes,
]


@pytest.mark.parametrize(
    ("row", "provoke"),
    list(zip(SITUATIONS, PROVOKED, strict=True)),
    ids=[provoke.__name__ for provoke in PROVOKED],
)
def test_a_situation_is_told_as_the_page_says(
    simulated_host_factory: HostFactory,
    tmp_path: Path,
    row: tuple[str, type[errors.VixError], str],
    provoke: Callable[[Bench], Step],
) -> None:
    host = simulated_host_factory(password=CANARY)
    host.power_on_all()
    bench = Bench(host, tmp_path)
    command, environment = provoke(bench)
    done = bench.run(*command, "--json", **environment)
    told = json.loads(done.stdout.splitlines()[-1])["error"]
    assert issubclass(getattr(errors, told), row[1]), done.stderr
    assert done.returncode == row[1].exit_code
    lines = [line for line in done.stderr.splitlines() if line.startswith("vdkit: ")]
    assert len(lines) == 1, done.stderr
    for words in re.findall(r"`((?:--|vdkit )[a-z-]+)", row[2]):
        assert words in lines[0], "the remedy of the page is that of the message"
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stderr + (done.stdout or "")
    if hasattr(bench, "held"):
        bench.held.close()
