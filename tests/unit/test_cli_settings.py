"""Where settings come from, which of them wins, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vdkit.cli.passwords import MAX_PASSWORD_BYTES, ask_password, read_password_descriptor, read_password_file
from vdkit.cli.settings import Settings, split_host_port
from vdkit.errors import UsageError

SHA256 = ":".join(["AB"] * 32)
SHA1 = ":".join(["CD"] * 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("esxi", ("esxi", 443)),
        ("esxi:8443", ("esxi", 8443)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("2001:db8::1", ("2001:db8::1", 443)),
        ("[2001:db8::1]", ("2001:db8::1", 443)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
        ("https://vc.example.org/sdk", ("vc.example.org", 443)),
        ("https://[2001:db8::1]:8443/sdk", ("2001:db8::1", 8443)),
        (" esxi\n", ("esxi", 443)),
        ("fe80::1%eth0", ("fe80::1%eth0", 443)),
        ("https://[fe80::1%25eth0]/sdk", ("fe80::1%eth0", 443)),
    ],
)
def test_hosts_and_ports(text: str, expected: tuple[str, int]) -> None:
    assert split_host_port(text, 443) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("esxi:0", "esxi:65536", "esxi:ssh", "[::1", "[::1]8443", "https:///sdk"),
        # Digits to Python, or more of them than it turns into a number.
        *("esxi:\u00b2", "esxi:\u0663", "esxi:" + "1" * 5000, "https://esxi:\u00b2/"),
        # A path, two words, a port that would become part of the link's name.
        *("esxi/sdk", "esxi 443", "esxi\0", "fe80::1%eth0:443"),
    ],
)
def test_hosts_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        split_host_port(text, 443)


def test_a_flag_wins_over_our_variable_over_govcs_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'host = "file"\nuser = "file-user"\nthumbprint = "{SHA256}"\n')
    environment = {"VDKIT_HOST": "own", "GOVC_URL": "https://govc:8989/sdk", "GOVC_USERNAME": "govc-user"}
    all_of_them = Settings(environment, config)
    assert all_of_them.host(host="flag", user="flag-user").host == "flag"
    assert all_of_them.host().host == "own"
    assert all_of_them.host().user == "govc-user"
    # The port of govc's host says nothing about another host.
    assert all_of_them.host().port == 443
    del environment["VDKIT_HOST"]
    govc = Settings(environment, config).host()
    assert (govc.host, govc.port) == ("govc", 8989)
    only_file = Settings({}, config).host()
    assert (only_file.host, only_file.user, only_file.trust.sha256) == ("file", "file-user", SHA256)


def test_a_url_of_govc_may_hold_all(tmp_path: Path) -> None:
    url = "https://DOM%5cuser:p%40ss%20w@[2001:db8::1]:8989/sdk"
    found = Settings({"GOVC_URL": url, "VDKIT_THUMBPRINT": SHA1}).host()
    assert (found.host, found.port, found.user) == ("2001:db8::1", 8989, "DOM\\user")
    assert found.password is not None
    assert found.password.reveal() == "p@ss w"
    assert found.trust.sha1 == SHA1


def test_a_url_of_govc_speaks_for_its_own_host_only() -> None:
    """Its password is not sent to the host that another setting names."""
    url = {"GOVC_URL": "https://root:canary-4711@esxi/sdk", "VDKIT_THUMBPRINT": SHA1}
    assert Settings(url).host(host="esxi").password is not None
    for more, flag in (({"VDKIT_HOST": "other"}, None), ({}, "other"), ({}, "esxi:8443")):
        with pytest.raises(UsageError, match="no user given"):
            Settings({**url, **more}).host(host=flag)
        found = Settings({**url, **more}).host(host=flag, user="backup")
        assert found.password is None


@pytest.mark.parametrize(
    "url",
    [
        *(f"https://root:canary{sign}4711@esxi/sdk" for sign in "/#?[]"),
        "https://root:canary@[::1",
        "root:canary@esxi:port",
        "https://[canary",
    ],
)
def test_a_url_of_govc_that_is_none_is_not_shown(url: str) -> None:
    """What stands in it may be a password with a character that should have been escaped."""
    with pytest.raises(UsageError) as caught:
        Settings({"GOVC_URL": url, "VDKIT_THUMBPRINT": SHA1}).host()
    error: BaseException | None = caught.value
    while error is not None:
        assert "canary" not in str(error)
        error = error.__cause__


def test_settings_that_are_not_texts_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    for text in ('known_hosts = "a\\u0000b"', "host = ['a']", "port = 1.5"):
        config.write_text(text)
        with pytest.raises(UsageError, match="neither a text"):
            Settings({}, config)
    for port in ("\u00b2", "0", "65536", "1" * 5000, "-1"):
        with pytest.raises(UsageError, match="between 1 and 65535"):
            Settings({"VDKIT_HOST": "esxi", "VDKIT_USER": "root", "VDKIT_PORT": port}).host()


def test_trust_is_never_nothing(tmp_path: Path) -> None:
    base = {"VDKIT_HOST": "esxi", "VDKIT_USER": "root"}
    with pytest.raises(UsageError, match="fingerprint"):
        Settings({**base, "GOVC_INSECURE": "1"}).host()
    known = tmp_path / "known_hosts"
    known.write_text(f"other {SHA1}\nesxi:443 {SHA256}\n")
    assert Settings({**base, "GOVC_TLS_KNOWN_HOSTS": str(known)}).host().trust.sha256 == SHA256
    settings = Settings({**base, "VDKIT_THUMBPRINT": SHA1, "GOVC_INSECURE": "true"})
    settings.host()
    assert len(settings.warnings) == 2


@pytest.mark.parametrize(
    ("text", "words"), [("hots = 1\n", "hots"), ("host = \n", "TOML"), ("#" * (1 << 20) + "\n\n", "larger")]
)
def test_a_bad_configuration_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        Settings({}, config)
    assert str(config) in str(caught.value)


def test_missing_settings_are_named() -> None:
    with pytest.raises(UsageError, match="--host"):
        Settings({}).host()
    with pytest.raises(UsageError, match="--user"):
        Settings({"VDKIT_HOST": "esxi"}).host()


def test_password_files_are_private(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pässword\r\nsecond line\n", encoding="utf-8")
    secret.chmod(0o600)
    assert read_password_file(secret).reveal() == "pässword"
    for mode in (0o640, 0o604, 0o660):
        secret.chmod(mode)
        with pytest.raises(UsageError, match="chmod 600"):
            read_password_file(secret)
    secret.chmod(0o600)
    for content in (b"", b"\n", b"\xff\xfe\n", b"x" * (MAX_PASSWORD_BYTES + 2)):
        secret.write_bytes(content)
        with pytest.raises(UsageError):
            read_password_file(secret)
    with pytest.raises(UsageError, match="not a regular file"):
        read_password_file(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        read_password_file(tmp_path / "gone")


def test_a_password_from_a_descriptor() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"secret\n")
    os.close(writing)
    try:
        assert read_password_descriptor(reading).reveal() == "secret"
    finally:
        os.close(reading)
    with pytest.raises(UsageError, match="descriptor"):
        read_password_descriptor(reading)


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(UsageError, match="--password-file"):
            ask_password("root", "esxi")
