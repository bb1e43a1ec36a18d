"""Trust, cookies and old hosts on the command line, as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from simclients import soap_login

from vdkit.cli.settings import Settings, split_host_port
from vdkit.errors import UsageError
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory

CANARY = "c4nary @\\ pässword%41"
Vdkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def host(simulated_host_factory: HostFactory) -> SimulatedHost:
    return simulated_host_factory(password=CANARY, user="DOM\\us er@x")


@pytest.fixture
def vdkit(host: SimulatedHost, tmp_path: Path) -> Vdkit:
    """Runs the command with host, user and password set, and no word on trust but what a test adds."""

    def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "COLUMNS": "100",
            "VDKIT_HOST": f"{host.host}:{host.port}",
            "VDKIT_USER": host.user,
            "VDKIT_PASSWORD": CANARY,
            **env,
        }
        done = subprocess.run(
            [sys.executable, "-m", "vdkit", *map(str, arguments)],
            env=settings,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
        )
        assert CANARY not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_trust_on_first_use_instead_of_a_puzzle(vdkit: Vdkit, host: SimulatedHost, tmp_path: Path) -> None:
    """Row 31 of our users' threads."""
    where = f"{host.host}:{host.port}"
    refused = vdkit("vms")
    assert refused.returncode == 2
    assert f"vdkit fingerprint {where} --trust" in refused.stderr
    shown = vdkit("fingerprint", where, "--data-port", host.nfc_port, "--trust")
    assert shown.returncode == 0, shown.stderr
    assert host.thumbprint_sha256 in shown.stdout
    file = tmp_path / ".config/vdkit/known_hosts"
    assert file.read_text() == f"{host.host} {host.port} {host.thumbprint_sha256}\n"
    assert vdkit("vms").returncode == 0
    assert "trusted already" in vdkit("fingerprint", where, "--trust").stderr


def test_a_certificate_that_changed(vdkit: Vdkit, host: SimulatedHost, tmp_path: Path) -> None:
    where, other = f"{host.host}:{host.port}", ":".join(["AB"] * 32)
    file = tmp_path / "hosts"
    file.write_text(f"# ours\n{host.host} {host.port} {other}\n")
    changed = vdkit("vms", "--known-hosts", file)
    assert changed.returncode == 8
    for part in (f"{file}, line 2", other, host.thumbprint_sha256, "--trust --replace"):
        assert part in changed.stderr
    kept = vdkit("fingerprint", where, "--trust", "--known-hosts", file)
    assert kept.returncode == 8
    assert other in kept.stderr
    assert host.thumbprint_sha256 in kept.stderr
    assert other in file.read_text()
    replaced = vdkit("fingerprint", where, "--trust", "--replace", "--json", "--known-hosts", file)
    assert replaced.returncode == 0, replaced.stderr
    assert json.loads(replaced.stdout)["known_hosts"] == {"file": str(file), "done": "replaced"}
    assert other in replaced.stderr
    assert vdkit("vms", VDKIT_KNOWN_HOSTS=str(file)).returncode == 0
    assert vdkit("fingerprint", where, "--replace").returncode == 2


def test_the_cookie_of_an_open_session(vdkit: Vdkit, host: SimulatedHost, tmp_path: Path) -> None:
    pin = {"VDKIT_THUMBPRINT": host.thumbprint_sha256, "VDKIT_PASSWORD": "", "VDKIT_USER": ""}
    cookie = soap_login(host)
    secret = cookie.partition("=")[2].strip('"')
    file = tmp_path / "cookie"
    file.write_text(f"{cookie}\n")
    file.chmod(0o644)
    assert "others can read it" in vdkit("vms", "--cookie-file", file, **pin).stderr
    file.chmod(0o600)
    for done in (
        vdkit("vms", "--cookie-file", file, **pin),
        vdkit("vms", **pin, VDKIT_COOKIE=secret),
        vdkit("vms", **pin, VDKIT_COOKIE_FILE=str(file)),
    ):
        assert done.returncode == 0, done.stderr
        assert "vm1" in done.stdout
        assert secret not in done.stdout + done.stderr
    host.expire_sessions()
    ended = vdkit("vms", "--cookie-file", file, **pin)
    assert ended.returncode == 9
    assert "get a new cookie" in ended.stderr
    assert secret not in ended.stdout + ended.stderr


def test_an_old_host_is_warned_about_each_time(vdkit: Vdkit, host: SimulatedHost) -> None:
    pin = {"VDKIT_THUMBPRINT": host.thumbprint_sha256}
    for done in (vdkit("vms", "--legacy-tls", **pin), vdkit("vms", VDKIT_LEGACY_TLS="yes", **pin)):
        assert done.returncode == 0, done.stderr
        assert "TLS 1.0 and 1.1" in done.stderr
    assert vdkit("vms", VDKIT_LEGACY_TLS="maybe", **pin).returncode == 2


def test_which_word_on_trust_wins(tmp_path: Path) -> None:
    a, b = ":".join(["AA"] * 32), ":".join(["BB"] * 32)
    file = tmp_path / "known_hosts"
    file.write_text(f"2001:db8::1 443 {a}\nvc 8443 {a}\n")
    base = {"VDKIT_USER": "root", "VDKIT_KNOWN_HOSTS": str(file), "VDKIT_PASSWORD": "x"}
    for text in ("2001:db8::1", "[2001:DB8:0::1]", "[2001:db8::1]:443", "https://[2001:db8::1]/sdk"):
        assert Settings({**base, "VDKIT_HOST": text}).host().trust.sha256 == a
    assert Settings({**base, "VDKIT_HOST": "vc:8443"}).host().trust.sha256 == a
    # A CA file for all hosts does not make a known one unknown; a flag does, and so does a thumbprint.
    everywhere = {**base, "VDKIT_HOST": "VC:8443", "VDKIT_CA_FILE": "/ca.pem"}
    assert Settings(everywhere).host().trust.sha256 == a
    assert Settings(everywhere).host(ca_file="system").trust.ca_file == "system"
    assert Settings(everywhere).host(thumbprint=b).trust.sha256 == b
    assert Settings({**everywhere, "VDKIT_HOST": "other"}).host().trust.ca_file == "/ca.pem"
    with pytest.raises(UsageError, match="fingerprint \\[2001:db8::2\\]:443 --trust"):
        Settings({**base, "VDKIT_HOST": "2001:db8::2"}).host()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fe80::1%eth0", ("fe80::1%eth0", 443)),
        ("[fe80::1%eth0]:8443", ("fe80::1%eth0", 8443)),
        ("https://[fe80::1%25eth0]:8443/sdk", ("fe80::1%eth0", 8443)),
    ],
)
def test_link_local_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_host_port(text, 443) == expected


def test_a_cookie_of_the_environment_yields_to_a_user_that_is_named() -> None:
    environment = {"VDKIT_HOST": "vc", "VDKIT_COOKIE": "abc", "VDKIT_THUMBPRINT": "AA" * 32}
    assert Settings(environment).host().cookie is not None
    assert Settings(environment).host(user="root").cookie is None


def test_a_password_from_a_file_is_not_printed_by_the_simulated_host(tmp_path: Path) -> None:
    """One that it makes is; one that somebody keeps in a file may be a real one, and outputs are kept."""
    secret = tmp_path / "secret"
    secret.write_text("canary-4711\n")
    secret.chmod(0o600)
    (tmp_path / "ds").mkdir()
    command = [sys.executable, "-m", "vdkit", "sim", "--datastore", "ds", "--listen", "127.0.0.1:0"]
    for more, printed in (((), True), (("--password-file", "secret"), False)):
        process = subprocess.Popen(
            [*command, *more], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("# ready"):
                break
        process.terminate()
        rest, errors = process.communicate(timeout=30)
        text = "".join(lines) + rest + errors
        assert "# ready" in text
        assert "canary-4711" not in text
        assert ("\nVDKIT_PASSWORD=" in text) is ("\nGOVC_PASSWORD=" in text) is printed
        assert (f"VDKIT_PASSWORD_FILE={secret}" in text.replace("'", "")) is not printed
