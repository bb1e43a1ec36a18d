"""The text of .vmx files: what goes in comes out."""

from __future__ import annotations

import pytest

from vdkit.errors import FormatError, LimitExceeded
from vdkit.sim.vmx import MAX_TEXT_BYTES, VmxText, uuid_from_vmx, uuid_to_vmx

REAL = b"""#!/usr/bin/vmware
.encoding = "UTF-8"
config.version = "8"
displayName = "web |22one|22"
scsi0:0.fileName = "web.vmdk"
uuid.bios = "56 4d 12 34 56 78 9a bc-de f0 12 34 56 78 9a bc"
unknown.key = "kept"

memSize = "2048"
"""


def test_a_file_that_is_not_changed_comes_out_as_it_was() -> None:
    assert VmxText.parse(REAL, "x").render() == REAL


def test_keys_have_no_case_and_values_may_hold_anything() -> None:
    text = VmxText.parse(REAL, "x")
    assert text["DISPLAYNAME"] == 'web "one"'
    text["displayname"] = 'a|b"c#d\n"'
    again = VmxText.parse(text.render(), "x")
    assert again["displayName"] == 'a|b"c#d\n"'
    assert b'displayName = "a|7Cb|22c|23d|0A|22"' in text.render()


def test_a_removed_key_leaves_the_rest() -> None:
    text = VmxText.parse(REAL, "x")
    text.discard("scsi0:")
    assert "scsi0:0.fileName" not in text
    assert text["memsize"] == "2048"
    assert text.number("memSize", 0) == 2048


@pytest.mark.parametrize("line", [b"nonsense", b'a = "b" c', b'a = "b', b'a = "1"\nA = "2"', b'= "x"'])
def test_what_is_no_line_of_such_a_file_is_refused_with_its_place(line: bytes) -> None:
    with pytest.raises(FormatError, match=r"vm\.vmx line \d"):
        VmxText.parse(line, "vm.vmx")


def test_a_file_over_the_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded):
        VmxText.parse(b"#" * (MAX_TEXT_BYTES + 1), "vm.vmx")


def test_uuids_go_both_ways() -> None:
    text = "564d1234-5678-9abc-def0-123456789abc"
    assert uuid_to_vmx(text) == "56 4d 12 34 56 78 9a bc-de f0 12 34 56 78 9a bc"
    assert uuid_from_vmx(uuid_to_vmx(text)) == text
    with pytest.raises(FormatError):
        uuid_from_vmx("56 4d")


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_a_flag_is_true_or_false(value: str) -> None:
    with pytest.raises(FormatError, match="neither"):
        VmxText([("ctkEnabled", value)]).flag("ctkEnabled")
