"""The commands as a person types them: what they print, and the one line and exit code of each failure."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vdkit.block.local import FolderStore
from vdkit.cli.main import COMMANDS
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.testing.fixtures import HostFactory
from vdkit.vmdk import DiskType, create_child, create_disk

CANARY = "c4nary-p@ss wörd\\42"
Vdkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def host(simulated_host_factory: HostFactory) -> SimulatedHost:
    host = simulated_host_factory(machines=2, password=CANARY)
    host.power_on_all()
    disk = host.machine("vm1").disk(2000).guest()
    disk.write_from(1 << 20, os.urandom(3 << 20))
    return host


@pytest.fixture
def vdkit(host: SimulatedHost, tmp_path: Path) -> Vdkit:
    """Runs the command with the host's settings; ``env`` overrides them, None takes one away."""

    def run(
        *arguments: str | Path, env: dict[str, str | None] | None = None, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, **host.environment(), "HOME": str(tmp_path), "COLUMNS": "100"}
        for key in [key for key in settings if key.startswith("GOVC_")]:
            del settings[key]
        for key, value in (env or {}).items():
            settings.pop(key, None)
            if value is not None:
                settings[key] = value
        done = subprocess.run(
            [sys.executable, "-m", "vdkit", *map(str, arguments)],
            env=settings,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            input=text if text is not None else "",
        )
        # Whatever happens, nobody learns the password from what is printed.
        assert CANARY not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def _failed(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with ``code`` and one line on standard error that holds all the words."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("vdkit: ")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_the_whole_way(vdkit: Vdkit, host: SimulatedHost, tmp_path: Path) -> None:
    listed = json.loads(vdkit("vms", "--json").stdout)
    assert [vm["name"] for vm in listed["machines"]] == ["vm1", "vm2"]
    assert "vm1" in vdkit("vms").stdout
    full = vdkit("backup", "vm1", "--to", "repo")
    assert full.returncode == 0, full.stderr
    assert "full" in full.stdout
    host.machine("vm1").disk(2000).guest().write_from(9 << 20, b"changed" * 512)
    lines = [
        json.loads(line) for line in vdkit("backup", "vm1", "--to", "repo", "--json").stdout.splitlines()
    ]
    assert lines[-1]["message_type"] == "summary"
    assert lines[-1]["point"]["kind"] == "incremental"
    assert {line["message_type"] for line in lines} >= {"step", "status", "summary"}
    points = json.loads(vdkit("points", "repo", "--json").stdout)["points"]
    assert [point["kind"] for point in points] == ["full", "incremental"]
    assert vdkit("verify", "repo").returncode == 0
    assert vdkit("verify", "repo", points[0]["id"]).returncode == 0
    to_file = vdkit("restore", "repo", "latest", "--to-file", "back.raw", "-O", "raw")
    assert to_file.returncode == 0, to_file.stderr
    to_vm = vdkit("restore", "repo", "latest", "--to", "back", "--verify")
    assert to_vm.returncode == 0, to_vm.stderr
    seen = vdkit("sim", "guest", "vm1", "--sha256").stdout.strip()
    assert seen == hashlib.sha256((tmp_path / "back.raw").read_bytes()).hexdigest()


def test_every_command_helps_with_an_example(vdkit: Vdkit) -> None:
    for command in [name for names in COMMANDS.values() for name in names]:
        done = vdkit(command, "--help")
        assert done.returncode == 0
        # A group has its examples where its commands are.
        assert f"Example: vdkit {command}" in done.stdout or "Commands:" in done.stdout, command
    for command in ("ls", "stat", "map", "cp"):
        assert f"Example: vdkit vmfs {command}" in vdkit("vmfs", command, "--help").stdout
    assert "Example: vdkit sim --datastore" in vdkit("sim", "--help").stdout


def test_fingerprint_shows_both_ports(vdkit: Vdkit, host: SimulatedHost) -> None:
    done = vdkit("fingerprint", f"127.0.0.1:{host.port}", "--data-port", str(host.nfc_port))
    assert done.returncode == 0
    assert done.stdout.count(host.thumbprint_sha256) == 2
    assert done.stdout.count(host.thumbprint_sha1) == 2


# -- who and where ---------------------------------------------------------------------------------------


def test_a_wrong_thumbprint(vdkit: Vdkit, host: SimulatedHost) -> None:
    wrong = ":".join(["AB"] * 32)
    done = vdkit("vms", "--thumbprint", wrong)
    _failed(done, 8, f"127.0.0.1:{host.port}", wrong, host.thumbprint_sha256, "vdkit fingerprint")


def test_no_thumbprint_at_all(vdkit: Vdkit) -> None:
    _failed(vdkit("vms", env={"VDKIT_THUMBPRINT": None}), 2, "vdkit fingerprint")


def test_a_wrong_password(vdkit: Vdkit, host: SimulatedHost) -> None:
    _failed(vdkit("vms", env={"VDKIT_PASSWORD": "wrong"}), 12, f"127.0.0.1:{host.port}", "root")


def test_passwords_come_from_files_and_descriptors(vdkit: Vdkit, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(CANARY + "\n", encoding="utf-8")
    secret.chmod(0o600)
    gone = {"VDKIT_PASSWORD": None}
    assert vdkit("vms", "--password-file", secret, env=gone).returncode == 0
    assert vdkit("vms", env={**gone, "VDKIT_PASSWORD_FILE": str(secret)}).returncode == 0
    assert vdkit("vms", "--password-fd", "0", env=gone, text=CANARY + "\n").returncode == 0
    secret.chmod(0o644)
    _failed(vdkit("vms", "--password-file", secret, env=gone), 2, str(secret), "chmod 600")
    _failed(vdkit("vms", env=gone), 2, "no password", "--password-file")


def test_govcs_settings_are_understood(vdkit: Vdkit, host: SimulatedHost) -> None:
    own = dict.fromkeys(("VDKIT_HOST", "VDKIT_USER", "VDKIT_PASSWORD", "VDKIT_THUMBPRINT"))
    govc = {key: value for key, value in host.environment().items() if key.startswith("GOVC_")}
    done = vdkit("vms", env={**own, **govc, "GOVC_INSECURE": "1"})
    assert done.returncode == 0, done.stderr
    assert "GOVC_INSECURE has no effect" in done.stderr


def test_a_closed_port_443(vdkit: Vdkit) -> None:
    _failed(vdkit("vms", "--host", "127.0.0.1:1"), 7, "127.0.0.1:1", "refused", "TCP 1")


def test_a_name_that_does_not_resolve(vdkit: Vdkit) -> None:
    _failed(vdkit("vms", "--host", "esxi.invalid"), 7, "esxi.invalid", "does not resolve")


def test_what_a_failed_backup_leaves_is_told(vdkit: Vdkit, host: SimulatedHost) -> None:
    """The error is what the backup died of; that its snapshot is still there must not stay a secret."""
    host.set_data_faults(NfcFaults(read_error=(13, "Input/output error")))
    host.scenario.missing_privileges = frozenset({"VirtualMachine.State.RemoveSnapshot"})
    done = vdkit("backup", "vm1", "--to", "repo", "--json", "--no-enable-tracking")
    _failed(done, 7, "Input/output error")
    (left,) = host.machine("vm1").snapshots()
    (also,) = [line for line in done.stderr.splitlines() if line.startswith("also: ")]
    for word in (left.moref, "could not be removed", "RemoveSnapshot", "vdkit cleanup"):
        assert word in also
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["message_type"] == "exit_error"
    assert [also.removeprefix("also: ")] == last["notes"]


def test_a_closed_port_902(
    simulated_host_factory: HostFactory, vdkit: Vdkit, host: SimulatedHost, tmp_path: Path
) -> None:
    host.scenario.ticket_port = 1
    done = vdkit("backup", "vm1", "--to", "repo")
    _failed(done, 7, "127.0.0.1:1", "refused", "TCP 1", "vm1/vm1.vmdk")
    assert list(host.machine("vm1").snapshots()) == []


def test_an_unknown_machine(vdkit: Vdkit) -> None:
    _failed(vdkit("backup", "vm3", "--to", "repo"), 9, "vm3", "vm1")


# -- repositories ----------------------------------------------------------------------------------------


def test_no_repository(vdkit: Vdkit, tmp_path: Path) -> None:
    _failed(vdkit("points", "nowhere"), 10, "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    _failed(vdkit("backup", "vm1", "--to", "full"), 10, "full")


def test_unknown_points_and_damage(vdkit: Vdkit, tmp_path: Path) -> None:
    assert vdkit("backup", "vm1", "--to", "repo").returncode == 0
    _failed(
        vdkit("restore", "repo", "20200101T000000Z-00000000", "--to", "x"), 1, "20200101T000000Z-00000000"
    )
    _failed(vdkit("restore", "repo", "latest"), 2, "--to")
    _failed(vdkit("points", "repo", "--vm", "vm2"), 1, "vm2", "--vm")
    (vmdk,) = (tmp_path / "repo").rglob("*.vmdk")
    data = bytearray(vmdk.read_bytes())
    data[len(data) // 2] ^= 1
    vmdk.write_bytes(data)
    done = vdkit("verify", "repo")
    _failed(done, 4, vmdk.name, "bytes at offset")


# -- local disks -----------------------------------------------------------------------------------------


def test_local_disks_that_are_not(vdkit: Vdkit, tmp_path: Path) -> None:
    _failed(vdkit("info", "gone.vmdk"), 6, "gone.vmdk")
    (tmp_path / "short.vmdk").write_bytes(b"KDMV" + bytes(60))
    _failed(vdkit("info", "short.vmdk"), 5, "short.vmdk")
    (tmp_path / "noise.vmdk").write_bytes(os.urandom(4096))
    _failed(vdkit("map", "noise.vmdk"), 5, "noise.vmdk")
    (tmp_path / "disk.raw").write_bytes(os.urandom(8192))
    _failed(vdkit("convert", "disk.raw", "disk.vmdk", "-O", "qcow2"), 2, "qcow2", "raw, mono")
    assert vdkit("convert", "disk.raw", "disk.vmdk").returncode == 0
    _failed(vdkit("convert", "disk.raw", "disk.vmdk"), 6, "disk.vmdk", "exists")


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.bin", "/dev/sda"])
def test_descriptors_that_point_outside(vdkit: Vdkit, tmp_path: Path, name: str) -> None:
    (tmp_path / "evil.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 8 FLAT "{name}" 0\n'
    )
    _failed(vdkit("info", "evil.vmdk"), 6, name, "--allow-path")


def test_chains_with_loops_and_without_parents(vdkit: Vdkit, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    create_disk(store, "base.vmdk", 1 << 20, disk_type=DiskType.VMFS_THIN).close()
    create_child(store, "base.vmdk", "child.vmdk")
    child = (tmp_path / "child.vmdk").read_text()
    (tmp_path / "loop.vmdk").write_text(child.replace("base.vmdk", "loop.vmdk"))
    _failed(vdkit("info", "loop.vmdk"), 5, "loop.vmdk")
    (tmp_path / "orphan.vmdk").write_text(child.replace("base.vmdk", "gone.vmdk"))
    _failed(vdkit("info", "orphan.vmdk"), 5, "gone.vmdk")
