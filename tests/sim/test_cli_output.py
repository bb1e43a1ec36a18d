"""What is printed where: any letter on any terminal, a full or a closed output, no password ever."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import pytest

from vdkit.sim.controllers import DiskOptions
from vdkit.sim.host import SimulatedHost
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory

NAME = "Büro Server 1"
SECRET = "hunter2-c4nary"


def vdkit(
    host: SimulatedHost | None,
    folder: Path,
    *arguments: str,
    stdout: int | IO[str] = subprocess.PIPE,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("GOVC_", "VDKIT_"))}
    own = {} if host is None else host.environment()
    return subprocess.run(
        [sys.executable, "-m", "vdkit", *arguments],
        env={**settings, **own, "HOME": str(folder), **environment},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )


@pytest.fixture
def host(simulated_host_factory: HostFactory) -> SimulatedHost:
    host = simulated_host_factory(machines=0)
    host.inventory.create_machine(NAME, "datastore1", [DiskSpec(1 << 20)])
    host.power_on_all()
    return host


def test_letters_that_the_terminal_lacks(host: SimulatedHost, tmp_path: Path) -> None:
    shown = vdkit(host, tmp_path, "vms", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0
    assert "B\\xfcro Server 1" in shown.stdout
    # JSON stays JSON, whatever the output is encoded in.
    for encoding in ("ascii", "latin-1", "utf-8"):
        listed = subprocess.run(
            [sys.executable, "-m", "vdkit", "vms", "--json"],
            env={**os.environ, **host.environment(), "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
        assert json.loads(listed.decode("utf-8"))["machines"][0]["name"] == NAME


def test_a_name_with_blanks_and_umlauts_goes_all_the_way(host: SimulatedHost, tmp_path: Path) -> None:
    assert vdkit(host, tmp_path, "backup", NAME, "--to", "Sicherung für morgen").returncode == 0
    done = vdkit(host, tmp_path, "restore", "Sicherung für morgen", "latest", "--to", "Büro neu ß")
    assert done.returncode == 0, done.stderr
    assert "Büro neu ß" in vdkit(host, tmp_path, "vms").stdout


@pytest.mark.parametrize("arguments", [("--version",), ("points", "nowhere", "--json"), ("vms",)])
def test_a_full_output_is_told(host: SimulatedHost, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = vdkit(host, tmp_path, *arguments, stdout=full)
    assert done.returncode == (10 if "points" in arguments else 6)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("vdkit: ")


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """``vdkit map DISK | head -1``: no complaint, whatever is left to print."""
    with (tmp_path / "d.raw").open("wb") as file:
        for block in range(6000):
            file.seek(block * 8192)
            file.write(b"x" * 4096)
    done = subprocess.run(
        ["bash", "-c", '"$0" -m vdkit map d.raw | head -1', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["offset", "length", "kind"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("vms", f"--password={SECRET}"),
        ("vms", "--password", SECRET),
        ("vms", "--host", f"https://root:{SECRET}@127.0.0.1/sdk"),
        ("vms", "--host", f"root:{SECRET}@127.0.0.1"),
        ("fingerprint", f"root:{SECRET}@127.0.0.1"),
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(
    host: SimulatedHost, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = vdkit(host, tmp_path, *arguments)
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr


def test_a_disk_that_no_snapshot_holds_has_an_exit_code_of_its_own(
    host: SimulatedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two is independent."""
    from vdkit.cli import main

    independent = DiskSpec(1 << 20, options=DiskOptions(mode="independent_persistent"))
    host.inventory.create_machine("two", "datastore1", [DiskSpec(1 << 20), independent]).power_on()
    for key, value in host.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main.run(["backup", "two", "--to", str(tmp_path / "repo"), "--json"])
    assert ended.value.code == 3


def test_a_machine_that_cannot_run_does_not_stop_the_host(tmp_path: Path) -> None:
    (tmp_path / "ds" / "stream").mkdir(parents=True)
    (tmp_path / "d.raw").write_bytes(b"x" * 65536)
    made = vdkit(None, tmp_path, "convert", "d.raw", "ds/stream/stream.vmdk", "-O", "streamOptimized")
    assert made.returncode == 0, made.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "vdkit", "sim", "--datastore", "ds", "--listen", "127.0.0.1:0", "--power-on"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = iter(process.stdout.readline, "")
        assert any("ready" in line for line in lines)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "warning: stream stays off" in said
    assert "cannot be changed in place" in said


def test_an_empty_repository_is_not_well(host: SimulatedHost, tmp_path: Path) -> None:
    """It is what a wrong path or a first run that failed leaves."""
    missing = vdkit(host, tmp_path, "backup", "nobody", "--to", "repo")
    assert missing.returncode == 9
    for arguments in (("verify", "repo"), ("restore", "repo", "latest", "--to-file", "d.vmdk")):
        done = vdkit(host, tmp_path, *arguments)
        assert done.returncode == 1
        assert "no restore point yet" in done.stderr


def test_the_guest_of_a_disk_that_is_not_there(host: SimulatedHost, tmp_path: Path) -> None:
    done = vdkit(host, tmp_path, "sim", "guest", NAME, "--disk", "7", "--sha256")
    assert done.returncode == 2
    assert "one of 2000" in done.stderr


def test_a_terminal_asks_for_the_password_and_draws_bars(host: SimulatedHost, tmp_path: Path) -> None:
    """All three streams are a terminal of the command's own; nothing typed is echoed."""
    master, slave = pty.openpty()
    environment = {k: v for k, v in host.environment().items() if "PASSWORD" not in k}
    with subprocess.Popen(
        [sys.executable, "-m", "vdkit", "backup", NAME, "--to", "repo"],
        env={
            **{k: v for k, v in os.environ.items() if k != "VDKIT_PASSWORD"},
            **environment,
            "TERM": "xterm",
        },
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(slave)
        said, typed = b"", False
        # The other end is gone (EIO) when the command has ended.
        with contextlib.suppress(OSError):
            while piece := os.read(master, 65536):
                said += piece
                if not typed and b"assword" in said:
                    typed = True
                    os.write(master, host.password.reveal().encode() + b"\n")
        assert process.wait(timeout=60) == 0, said
    os.close(master)
    assert typed
    assert host.password.reveal().encode() not in said
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}".encode() in said
    assert b"full" in said
