"""The file of known hosts: one entry per host however it is written, replaced only when it is said."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.errors import DeadlineExceeded, FormatError, LimitExceeded, StoreError, TrustError, UsageError
from vdkit.net.knownhosts import MAX_BYTES, KnownHosts, address_key

A, B = ":".join(["AA"] * 32), ":".join(["BB"] * 32)


def test_one_host_has_one_entry_however_it_is_written(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "new/folder/known_hosts")
    assert known.find("vc", 443) is None
    for host, same in (
        ("[2001:DB8::0:1]", ("2001:db8::1", "[2001:db8:0::1]", "2001:0DB8:0:0:0:0:0:1")),
        ("VC.Example.org.", ("vc.example.org",)),
        ("192.0.2.7", ("192.0.2.7",)),
        ("fe80::1%eth0", ("[FE80::1%eth0]",)),
    ):
        assert known.remember(host, 443, A) == "added"
        for other in same:
            assert known.remember(other, 443, A.lower().replace(":", "")) == "unchanged"
            found = known.find(other, 443)
            assert found is not None
            assert "[" not in found.host
            assert known.find(other, 8443) is None
    assert known.find("fe80::1%eth1", 443) is None
    assert len(known.path.read_text().splitlines()) == 4
    assert stat.S_IMODE(known.path.stat().st_mode) == 0o600


def test_another_certificate_shows_both_and_needs_a_word(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"# ours\n\nother 443 {B} # kept\nvc 443 {A}\n")
    file.chmod(0o644)
    known = KnownHosts(file)
    with pytest.raises(TrustError) as caught:
        known.remember("vc", 443, B)
    for part in (str(file), "line 4", A, B, "--replace"):
        assert part in str(caught.value)
    assert known.remember("vc", 443, B, replace=True) == "replaced"
    assert file.read_text() == f"# ours\n\nother 443 {B} # kept\nvc 443 {B}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    trust = known.trust("vc", 443)
    assert trust is not None
    with pytest.raises(TrustError, match="line 4") as differs:
        trust.check(b"some certificate", "vc:443")
    assert "--trust --replace" in str(differs.value)


@pytest.mark.parametrize(
    "line",
    [
        "vc 443",
        f"vc port {A}",
        f"vc 0 {A}",
        f"vc 65536 {A}",
        f"vc 443 {A[:59]}",
        "vc 443 zz",
        f"vc 443 {A} x",
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"# first\n{line}\n")
    with pytest.raises(FormatError, match="line 2"):
        KnownHosts(file).find("vc", 443)
    with pytest.raises(FormatError):
        KnownHosts(file).remember("vc", 443, A, replace=True)
    assert file.read_text() == f"# first\n{line}\n"


def test_bounds_and_what_is_no_host(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    for host in ("", "two words", "a#b", "line\nbreak"):
        with pytest.raises(UsageError):
            KnownHosts(file).remember(host, 443, A)
    with pytest.raises(UsageError, match="SHA-256"):
        KnownHosts(file).remember("vc", 443, "AA" * 20)
    assert not file.exists()
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(LimitExceeded):
        KnownHosts(file).find("vc", 443)
    file.write_bytes(b"\xff\n")
    with pytest.raises(FormatError, match="UTF-8"):
        KnownHosts(file).find("vc", 443)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"

    def add(number: int) -> None:
        KnownHosts(file).remember(f"host{number}", 443, A)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read_text().splitlines()) == 16
    assert [path.name for path in tmp_path.iterdir()] == ["known_hosts"]


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_key_is_stable(text: str) -> None:
    assert address_key(address_key(text)) == address_key(text)


def test_a_file_that_says_nothing_about_trust(tmp_path: Path) -> None:
    """One that everybody may write to, or that is no file: a pipe would be waited for without an end."""
    file = tmp_path / "known_hosts"
    known = KnownHosts(file)
    known.remember("vc", 443, A)
    file.chmod(0o666)
    for act in (lambda: known.find("vc", 443), lambda: known.remember("vc", 443, B, replace=True)):
        with pytest.raises(TrustError, match="chmod o-w"):
            act()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(FormatError, match="regular file"):
        known.find("vc", 443)
    file.unlink()
    file.mkdir()
    with pytest.raises(StoreError, match="directory"):
        known.find("vc", 443)


def test_a_folder_that_somebody_keeps_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdkit.net.knownhosts._LOCK_SECONDS", 0.1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(DeadlineExceeded, match="locked"):
            KnownHosts(tmp_path / "known_hosts").remember("vc", 443, A)
    finally:
        os.close(descriptor)
    assert KnownHosts(tmp_path / "known_hosts").remember("vc", 443, A) == "added"


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    """As with configurations that are kept in one place and linked from where they are looked for."""
    (tmp_path / "kept").mkdir()
    link = tmp_path / "known_hosts"
    link.symlink_to("kept/hosts")
    known = KnownHosts(link)
    assert known.remember("vc", 443, A) == "added"
    assert known.remember("vc", 443, B, replace=True) == "replaced"
    assert link.is_symlink()
    assert (tmp_path / "kept/hosts").read_text() == f"vc 443 {B}\n"
    assert sorted(one.name for one in (tmp_path / "kept").iterdir()) == ["hosts"]
