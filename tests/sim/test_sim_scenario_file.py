"""A scenario file makes the host that it describes, and says what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from simclients import MIB, find_vm, logged_in

from vdkit import vmdk
from vdkit.block.local import FolderStore
from vdkit.errors import UsageError, VixError
from vdkit.sim.certificates import Certificate
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.scenario import Scenario
from vdkit.sim.scenario_file import read_scenario

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "vcenter.toml"
#: A value that is not the default, by field; the others follow from the default's type.
SPECIAL: dict[str, str] = {
    "cbt_error": '"InvalidArgument"',
    "ticket_error": '"NoPermission"',
    "relocating": '["vm1"]',
    "hosts_in_maintenance": '["esx1.localdomain"]',
    "hosts_disconnected": '["esx1.localdomain"]',
    "missing_privileges": '["Global.Licenses"]',
    "call_seconds": "{ CurrentTime = 0.5 }",
    "call_errors": '{ CurrentTime = "NotSupported" }',
    "task_errors": '{ PowerOnVM_Task = "NotSupported" }',
    "task_seconds": "{ PowerOnVM_Task = 2 }",
    "nfc_memory_limits": "{ esx1 = 1048576 }",
    "connection_refusal": '"hang"',
    "unknown_services": '["nfc"]',
    "second_certificate": '{ common_name = "another" }',
    "classic_error_text": '"no"',
    "open_error": '[5, "no"]',
    "read_error": '[5, "no"]',
    "write_error": '[5, "no"]',
    "read_error_ranges": "[[0, 512], [4096, 512]]",
    "write_error_ranges": "[[0, 512]]",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def running(path: Path, **options: Any) -> Iterator[SimulatedHost]:
    with read_scenario(path).build(**options) as host:
        yield host


def other_value(name: str, default: Any) -> str:
    if name in SPECIAL:
        return SPECIAL[name]
    if isinstance(default, bool):
        return json.dumps(not default)
    return "7.5" if isinstance(default, float) else "7"


@pytest.mark.parametrize("kind", [Scenario, NfcFaults])
def test_every_fault_can_be_set_in_a_file(kind: type[Any], tmp_path: Path) -> None:
    healthy = kind()
    names = [one.name for one in fields(kind) if one.name not in ("nfc", "api_version")]
    table = "faults" if kind is Scenario else "faults.nfc"
    lines = [f"{name} = {other_value(name, getattr(healthy, name))}" for name in names]
    found: Any = read_scenario(written(tmp_path, "\n".join([f"[{table}]", *lines]))).faults
    made = found if kind is Scenario else found.nfc
    assert [name for name in names if getattr(made, name) == getattr(healthy, name)] == []
    for name in names:
        value, default = getattr(made, name), getattr(healthy, name)
        assert default is None or isinstance(value, type(default)), name
    if kind is NfcFaults:
        assert made.read_error_ranges == ((0, 512), (4096, 512))
        assert made.read_error == (5, "no")
        assert isinstance(made.second_certificate, Certificate)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[fault]\n", ("line 1", "fault:", "did you mean faults")),
        ("[faults]\n\nslow_read = 1\n", ("line 3", "faults.slow_read", "no such key")),
        ("[faults.nfc]\nslow_read = 1.0\n", ("line 2", "faults.nfc.slow_read", "slow_reads")),
        ('[faults.nfc]\nslow_reads = "1"\n', ("line 2", "faults.nfc.slow_reads", "a number", "'1'")),
        ("[faults]\nlogin_refused = 1\n", ("line 2", "true or false", "1")),
        ("[faults]\nnfc_memory_limit = true\n", ("line 2", "a whole number", "true")),
        ("[faults.nfc]\nread_error = [5]\n", ("line 2", "2 values are wanted, not 1")),
        ("[faults.nfc]\nread_error_ranges = [[1, 2], 3]\n", ("line 2", "read_error_ranges[1]", "an array")),
        ('[faults.nfc]\nconnection_refusal = "shout"\n', ("line 2", "greeting, close, hang")),
        ("[faults.nfc]\nsecond_certificate = { days = 3 }\n", ("second_certificate.days", "no such key")),
        ("[faults]\ncall_seconds = { Login = 'x' }\n", ("faults.call_seconds.Login", "a number")),
        ('[faults]\napi_version = "8.0"\n', ("line 2", "the table host")),
        ('[host]\npersonality = "cloud"\n', ("line 2", "esx, vcenter")),
        ("[[machine]]\ncount = 2\n", ("line 1", "machine[0]", "name is missing")),
        ('[[machine]]\nname = "a"\n[[machine.disk]]\nsize = "1 PB"\n', ("line 4", "machine[0].disk[0].size")),
        (
            '[[machine]]\nname = "a"\n[[machine]]\nname = "b"\n[[machine.disk]]\nthin = 1\n',
            ("line 6", "machine[1].disk[0].thin"),
        ),
        ('[[machine]]\nname = "a"\n[[machine.disk]]\nthin = true\n', ("line 3", "neither size nor copy")),
        ('[machine]\nname = "a"\n', ("machine", "[[machine]]")),
        ('[[machine]]\nname = "a"\ncount = 100000\n', ("100000 machines",)),
        (
            '[[machine]]\nname = "a"\n[[machine.disk]]\nsize = 512\ncontroller = { kind = "usb" }\n',
            ("line 5", "machine[0].disk[0].controller", "there is no controller usb 0"),
        ),
        ("[host\n", ("not TOML", "line 1")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_key_and_line(text: str, said: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_scenario(written(tmp_path, text))
    told = str(caught.value)
    assert "\n" not in told
    for part in ("scenario.toml", *said):
        assert part in told, told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[machine]]\nname = "a"\nhost = "esx9"\n', "no ESXi host 'esx9'"),
        ('[[machine]]\nname = "a"\ndatastore = "none"\n', "[none]"),
        ("[host]\nhosts = 2\n", "only a vCenter has several hosts"),
        ('[host]\npersonality = "vcenter"\nhosts = 0\n', "0 ESXi hosts"),
        ('[[machine]]\nname = "a"\n[[machine.disk]]\ncopy = "none.raw"\n', "none.raw"),
        # A single host has another name, so that this would make nothing go wrong.
        (
            '[host]\npersonality = "vcenter"\n[faults]\nhosts_in_maintenance = ["esx1.localdomain"]\n',
            "no ESXi host 'esx1.localdomain'; those that there are: localhost.localdomain",
        ),
        (
            '[host]\npersonality = "vcenter"\nhosts = 2\n[faults]\nnfc_memory_limits = { esx1 = 4096 }\n',
            "faults.nfc_memory_limits: there is no ESXi host 'esx1'",
        ),
        (
            '[[machine]]\nname = "a"\n[faults]\nrelocating = ["b"]\n',
            "no machine 'b'; those that there are",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(VixError) as caught:
        read_scenario(written(tmp_path, text)).build()
    assert said in str(caught.value)


def test_the_example_of_the_documentation() -> None:
    with running(EXAMPLE) as host, logged_in(host) as service:
        places = host.inventory.places
        names = sorted(machine.name for machine in host.inventory.machines)
        assert names == ["db", "golden", *(f"web-{n:03}" for n in range(1, 21))]
        db = host.machine("db")
        assert (places.host_of(db).name, places.folder_of(db).name) == ("esx2.localdomain", "berlin")
        assert db.powered_on
        assert [snapshot.name for snapshot in db.snapshots()] == ["before the upgrade"]
        assert db.disk(2000).change_id
        assert [disk.capacity for disk in db.disks.values()] == [32 * MIB, 64 * MIB]
        assert db.disk(2000).in_use().total >= 16 * MIB
        assert find_vm(service, "golden").config.template
        assert find_vm(service, "web-007").parent.name == "hamburg"
        assert host.scenario.nfc is not None
        assert host.scenario.nfc.read_error_ranges == ((1048576, 4096),)
        limits = [host.data_port(one.name).ledger.limits.memory for one in places.hosts]
        assert limits == [48 * MIB, 48 * MIB, 32 * MIB]
        thumbprints = {host.data_port(one.name).thumbprint for one in places.hosts}
        assert len(thumbprints | {host.thumbprint_sha1}) == 4
        assert host.user == "backup@vsphere.local"


def test_disks_are_copied_and_patterns_are_the_same_each_time(tmp_path: Path) -> None:
    raw = os.urandom(MIB)
    (tmp_path / "disk.raw").write_bytes(raw)
    here, sparse = FolderStore(str(tmp_path)), vmdk.DiskType.MONOLITHIC_SPARSE
    with vmdk.create_disk(here, "small.vmdk", 2 * MIB, disk_type=sparse) as disk:
        disk.write_from(512, b"from a vmdk")
    path = written(
        tmp_path,
        """
        [[datastore]]
        name = "here"
        folder = "ds"
        [[machine]]
        name = "vm"
        change_tracking = true
        powered_on = true
        [[machine.disk]]
        copy = "disk.raw"
        [[machine.disk]]
        copy = "small.vmdk"
        [[machine.disk]]
        size = "1 MiB"
        content = "pattern"
        """,
    )
    sums = []
    for _ in range(2):
        with running(path) as host:
            contents = []
            for key in (2000, 2001, 2002):
                guest = host.machine("vm").disk(key).guest()
                data = bytearray(guest.capacity)
                guest.read_into(0, data)
                contents.append(bytes(data))
            assert contents[0] == raw
            assert contents[1][512:523] == b"from a vmdk"
            assert any(contents[2][:65536])
            assert not any(contents[2][65536:131072])
            sums.append(hashlib.sha256(contents[2]).hexdigest())
            assert len(host.inventory.machines) == 1
    assert sums[0] == sums[1]
    assert (tmp_path / "ds" / "vm" / "vm.vmx").exists()


def test_the_command_runs_a_scenario(tmp_path: Path) -> None:
    path = written(
        tmp_path, '[host]\nlisten = "::1"\n[[machine]]\nname = "vm1"\n[[machine.disk]]\nsize = 1048576\n'
    )
    command = [sys.executable, "-m", "vdkit", "sim", "--scenario", str(path), "--personality", "vcenter"]
    process = subprocess.Popen(
        [*command, "--hosts", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if "ready" in line:
                break
        settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        assert settings["VDKIT_HOST"].startswith("'[::1]:")
        assert sum("# data port" in line for line in lines) == 2
        listed = subprocess.run(
            [sys.executable, "-m", "vdkit", "vms", "--json"],
            env={**os.environ, **{key: value.strip("'") for key, value in settings.items()}},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert [vm["name"] for vm in json.loads(listed.stdout)["machines"]] == ["vm1"], listed.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in told


def test_the_command_refuses_a_scenario_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "[faults]\nslow = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "vdkit", "sim", "--scenario", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "line 2: faults.slow: there is no such key" in done.stderr
    assert "Traceback" not in done.stderr
