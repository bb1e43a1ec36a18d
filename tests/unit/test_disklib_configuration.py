"""VixDiskLib's configuration files, and texts for its error numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdkit.disklib.configuration import MAX_BYTES, parse_configuration, read_configuration
from vdkit.disklib.texts import get_error_text
from vdkit.errors import FormatError, LimitExceeded, NotFound

EXAMPLE = """
# a comment
tmpDirectory = "/var/tmp/#vddk"   # quotes keep the hash
vixDiskLib.nfc.ReadTimeoutsMs=120000
vixDiskLib.transport.san.blacklist = /dev/sdb, /dev/sdc
vixDiskLib.nfcAio.Session.BufSizeIn64KB=16
vixDiskLib.ssl.verifyCertificates=0
vixDiskLib.phoneHome.EnablePhoneHome = 1
vixDiskLib.future.Key = 7
"""


def test_known_keys_are_read_in_every_spelling(tmp_path: Path) -> None:
    path = tmp_path / "vddk.conf"
    path.write_text(EXAMPLE)
    found = read_configuration(path)
    assert found.temporary_folder == "/var/tmp/#vddk"
    assert (found.timeouts.read, found.timeouts.write, found.timeouts.request) == (120.0, 600.0, 180.0)
    assert (found.san_deny, found.san_allow) == (("/dev/sdb", "/dev/sdc"), ())
    assert found.numbers["vixDiskLib.nfcAio.Session.BufCount"] == 4
    # Only what the file says is asked of a host: VixDiskLib's own default would be a slow one.
    assert (found.buffer_size, found.buffer_count) == (1 << 20, None)
    assert len(found.warnings) == 3
    assert "line 7" in found.warnings[0]
    assert "verified all the same" in found.warnings[0]
    assert "nothing is ever sent" in found.warnings[1]
    assert "unknown key 'vixDiskLib.future.Key'" in found.warnings[2]
    assert "vixDiskLib.nfc.ReadTimeoutMs" in found.given


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nonsense", "not name=value"),
        ("=5", "not name=value"),
        ("vixDiskLib.nfc.LogLevel = many", "whole number"),
        ("vixDiskLib.nfc.LogLevel = -1", "whole number"),
        ("vixDiskLib.nfc.ReadTimeoutMs = 99999999999", "whole number"),
        ('tmpDirectory = "open', "quotes"),
        ('tmpDirectory = "a" b', "quotes"),
        ("vixDiskLib.nfcAio.Session.BufCount = 512", "buffers"),
        ("vixDiskLib.nfcAio.Session.BufCount = 0", "no nfcAio buffers"),
        ("vixDiskLib.nfcAio.Session.BufSizeIn64KB = 0", "no nfcAio buffers"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, what: str) -> None:
    with pytest.raises(FormatError, match=what) as caught:
        parse_configuration("\n" + text, "file")
    assert "file" in str(caught.value)


def test_a_key_that_comes_twice_is_told() -> None:
    found = parse_configuration("vixDiskLib.nfc.LogLevel=2\nVIXDISKLIB.NFC.LOGLEVEL=4\n")
    assert found.numbers["vixDiskLib.nfc.LogLevel"] == 4
    assert "given again" in found.warnings[0]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_configuration(tmp_path / "none")
    large = tmp_path / "large"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(LimitExceeded):
        read_configuration(large)
    binary = tmp_path / "binary"
    binary.write_bytes(b"a=\xff\n")
    with pytest.raises(FormatError, match="byte 2"):
        read_configuration(binary)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "The operation was successful"),
        (1, "Unknown error"),
        (6, "The operation is not supported"),
        (16007, "Disk outofrange (VIX_E_DISK_OUTOFRANGE)"),
        ((5 << 32) | (2 << 24) | 13, "You do not have access rights to this file"),
        (31337, "Error 31337"),
    ],
)
def test_error_texts(code: int, text: str) -> None:
    assert get_error_text(code) == text
