"""What a run leaves behind and lets others see: no flood of log lines, no file, no listening port."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from job_helpers import Guest, Listener, new_repository, session_of
from simulated_login import logged_in, the_machine

from vdkit.disklib.connection import connection_of
from vdkit.jobs.backup import backup_machine
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import DISK_BYTES

MIB = 1 << 20
BLOCK = 4096
#: Log records that opening and closing a disk may make, whatever is read in between.
FEW = 20


# -- row E3 --------------------------------------------------------------------------------------


def records_of_a_read(host: SimulatedHost, requests: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the library, not the simulated host, logs at the most while a disk is read and mapped."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="vdkit"), logged_in(host) as session:
        vm = the_machine(session)
        with connection_of(session, vm).open(vm.disks[0].file) as disk:
            for number in range(requests):
                disk.read_into(number * BLOCK, bytearray(BLOCK))
            assert len(list(disk.extents(0, DISK_BYTES))) >= 1
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("vdkit") and not record.name.startswith(("vdkit.sim", "vdkit.net.listener"))
    ]


def test_row_e3_log_lines_do_not_grow_with_requests_or_regions(
    simulated_host: SimulatedHost, caplog: pytest.LogCaptureFixture
) -> None:
    """VDDK wrote a line for each region of a thin disk that it mapped: gigabytes of log for one backup."""
    simulated_host.power_on_all()
    guest = Guest(simulated_host)
    # Every second mebibyte is data: the map has many regions.
    for offset in range(0, DISK_BYTES, 2 * MIB):
        guest.write(offset, b"region!!" * 512)
    simulated_host.machine("vm1").power_off()
    few = records_of_a_read(simulated_host, 10, caplog)
    many = records_of_a_read(simulated_host, 3000, caplog)
    assert len(many) <= max(len(few), 1) + 2, many[:50]
    assert len(many) <= FEW, many[:50]


def test_row_e3_a_backup_logs_by_the_disk(
    simulated_host: SimulatedHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulated_host.power_on_all()
    Guest(simulated_host).scribble(200)
    listener = Listener()
    with caplog.at_level(logging.DEBUG, logger="vdkit"), session_of(simulated_host) as session:
        backup_machine(session, "vm1", new_repository(tmp_path / "repo"), listener)
    ours = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("vdkit") and not record.name.startswith(("vdkit.sim", "vdkit.net.listener"))
    ]
    assert len(ours) + len(listener.notes) + len(listener.steps) + len(listener.warnings) <= 2 * FEW


# -- row E15 -------------------------------------------------------------------------------------


@contextmanager
def simulated(folder: Path, env: dict[str, str]) -> Iterator[dict[str, str]]:
    """``vdkit sim`` in a process of its own; the settings that it prints, and its end by an interrupt."""
    command = [sys.executable, "-m", "vdkit", "sim", "--datastore", str(folder), "--power-on"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        settings: dict[str, str] = {}
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("# ready"):
                break
            key, equals, value = line.strip().partition("=")
            if equals:
                settings[key] = value
        yield settings
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_row_e15_nothing_is_left_in_the_temporary_folder(tmp_path: Path) -> None:
    """VDDK left log files in /tmp for each run, until it was full."""
    temporary, home, work = (tmp_path / name for name in ("tmp", "home", "work"))
    for folder in (temporary, home, work):
        folder.mkdir()
    env = {**os.environ, "HOME": str(home), "COLUMNS": "100"}
    env |= dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))
    for key in [key for key in env if key.startswith(("VDKIT_", "GOVC_", "XDG_"))]:
        del env[key]

    def vdkit(*arguments: str, more: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "vdkit", *arguments],
            env=env | (more or {}),
            cwd=work,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    store = work / "store"
    (store / "vm1").mkdir(parents=True)
    vdkit("create", "store/vm1/vm1.vmdk", "16M", "-t", "vmfs")
    (store / "vm1" / "vm1.vmx").write_text(
        '.encoding = "UTF-8"\nconfig.version = "8"\nvirtualHW.version = "19"\ndisplayName = "vm1"\n'
        'guestOS = "other-64"\nmemSize = "1024"\nscsi0.present = "TRUE"\nscsi0.virtualDev = "lsilogic"\n'
        'scsi0:0.present = "TRUE"\nscsi0:0.fileName = "vm1.vmdk"\n'
    )
    with simulated(store, env) as settings:
        vdkit("backup", "vm1", "--to", "repo", more=settings)
        vdkit("restore", "repo", "latest", "--to", "back", "--verify", more=settings)
        vdkit("restore", "repo", "latest", "--to-file", "back.vmdk", more=settings)
    vdkit("convert", "back.vmdk", "stream.vmdk", "-O", "streamOptimized")
    assert sorted(temporary.rglob("*")) == []
    assert sorted(home.rglob("*")) == []
    assert sorted(path.name for path in work.iterdir()) == ["back.vmdk", "repo", "store", "stream.vmdk"]


# -- row C6 --------------------------------------------------------------------------------------

LISTENING = """
import os, sys
from pathlib import Path

def listening():
    mine = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            mine.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            # 0A is LISTEN; a UDP socket that is not connected (07) can be sent to by anybody.
            if fields[9] in mine and fields[3] in ("0A", "07"):
                found.append((table, fields[1]))
    return found

seen = []
class Watch:
    def step(self, text): seen.extend(listening())
    def note(self, text): seen.extend(listening())
    def warning(self, text): seen.extend(listening())
    def progress(self, what, done, total): seen.extend(listening())

import vdkit, vdkit.disklib.connection, vdkit.jobs.backup, vdkit.jobs.restore, vdkit.cli.main
seen.extend(listening())
from vdkit.backup import Repository
from vdkit.block.local import FolderStore
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.vsphere.session import Session

host, port, user, pin, folder = sys.argv[1:]
password = Secret(sys.stdin.read())
Path(folder).mkdir()
with Session.login(host, int(port), user, password, Trust(sha256=pin)) as session:
    repository = Repository.create(FolderStore(Path(folder)))
    done = vdkit.jobs.backup.backup_machine(session, "vm1", repository, Watch())
    vdkit.jobs.restore.restore_machine(session, repository, done.point, "back", Watch(), verify=True)
seen.extend(listening())
print(seen)
"""


def test_row_c6_nothing_of_ours_listens(simulated_host: SimulatedHost, tmp_path: Path) -> None:
    """Import, backup and restore open no port: a proxy needs none to be open towards it."""
    simulated_host.power_on_all()
    Guest(simulated_host).scribble()
    host = simulated_host
    where = [host.host, str(host.port), host.user, host.thumbprint_sha256, str(tmp_path / "repo")]
    done = subprocess.run(
        [sys.executable, "-c", LISTENING, *where],
        input=host.password.reveal(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
