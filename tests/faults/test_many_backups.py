"""Row E34: many backup processes at once against one host; none crashes and each point is what it must be."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from vdkit.backup import Repository, content_sha256, open_point, verify
from vdkit.block.local import FolderStore
from vdkit.sim.host import SimulatedHost
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory

MIB = 1 << 20
PROCESSES = 16
DISK = 8 * MIB
TWIN = 3
"""This machine is backed up twice at once into one repository: one run has it, the other is told so."""


def start(host: SimulatedHost, machine: str, repository: Path, home: Path) -> subprocess.Popen[str]:
    command = ["backup", machine, "--to", str(repository), "--json"]
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "vdkit", *command],
        env={**os.environ, **host.environment(), "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_row_e34_many_backup_processes_at_once(simulated_host_factory: HostFactory, tmp_path: Path) -> None:
    """VDDK's library crashed when many processes backed up at the same time."""
    host = simulated_host_factory(machines=0)
    content = random.Random(34)
    wanted: dict[str, str] = {}
    for number in range(PROCESSES):
        name = f"many{number}"
        host.inventory.create_machine(name, "datastore1", [DiskSpec(capacity=DISK)])
    host.power_on_all()
    for number in range(PROCESSES):
        guest = host.machine(f"many{number}").disk(2000).guest()
        for _ in range(4):
            guest.write_from(512 * content.randrange(DISK // 512 - 128), content.randbytes(64 << 10))
        wanted[f"many{number}"] = content_sha256(guest)

    running = [(name, start(host, name, tmp_path / name, tmp_path)) for name in wanted]
    twin = start(host, f"many{TWIN}", tmp_path / f"many{TWIN}", tmp_path)
    ended = [
        (name, process, process.communicate(timeout=170)) for name, process in [*running, ("twin", twin)]
    ]

    codes = {name: process.returncode for name, process, _ in ended}
    for name, process, (_, err) in ended:
        assert process.returncode >= 0, f"{name}: {signal.Signals(-process.returncode).name}: {err}"
        assert "Traceback" not in err and "Fatal Python error" not in err, f"{name}: {err}"
    pair = sorted([codes.pop("twin"), codes.pop(f"many{TWIN}")])
    # One of the two got the lock. The other was told (11), or came when the first had finished.
    assert pair in ([0, 11], [0, 0]), [err for name, _, (_, err) in ended if name in ("twin", f"many{TWIN}")]
    assert set(codes.values()) == {0}, [err for _, process, (_, err) in ended if process.returncode]

    for name, _, (out, _) in ended:
        summary = json.loads(out.splitlines()[-1])
        if summary["message_type"] == "summary":
            assert summary["transport_modes"] == {"2000": "nbdssl"}, name
    for name, sha256 in wanted.items():
        repository = Repository.open(FolderStore(tmp_path / name))
        verify(repository).check()
        point = repository.points()[-1]
        with open_point(repository, point, 2000) as device:
            assert content_sha256(device) == sha256, name
        assert list(host.machine(name).snapshots()) == [], name
        left = [path.name for path in (tmp_path / name).rglob("*") if ".partial" in path.name]
        assert left == [], name
