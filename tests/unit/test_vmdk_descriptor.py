"""Descriptors: what is read, what an edit leaves alone, what is refused."""

from __future__ import annotations

import pytest

from vdkit.errors import BadEncoding, FormatError, LimitExceeded, NotADisk, UsageError, VixError
from vdkit.vmdk.descriptor import MAX_DESCRIPTOR, MAX_EXTENTS, MAX_LINE, Descriptor
from vdkit.vmdk.extentline import Access, ExtentLine

PLAIN = b"""# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=59b560f
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 204800 VMFS "disk-flat.vmdk"

# Change Tracking File
changeTrackPath="disk-ctk.vmdk"

# The Disk Data Base\x20
#DDB

ddb.adapterType = "lsilogic"
ddb.longContentID = "0123456789abcdef01234567059b560f"
ddb.myOwnKey = "kept"
"""


def parse(data: bytes) -> Descriptor:
    return Descriptor.parse(data, "disk.vmdk")


def test_reads_what_vmware_writes() -> None:
    made = parse(PLAIN)
    assert (made.version, made.cid, made.create_type) == (1, 0x059B560F, "vmfs")
    assert made.parent_cid == 0xFFFFFFFF and made.parent_hint is None
    assert made.extents == (ExtentLine(Access.RW, 204800, "VMFS", "disk-flat.vmdk"),)
    assert made.get("DDB.ADAPTERTYPE") == "lsilogic"
    assert dict(made.items("ddb."))["ddb.myOwnKey"] == "kept"
    assert made.sectors == 204800


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("tail", [b"", b"\0" * 300])
def test_untouched_is_unchanged(ends: bytes, tail: bytes) -> None:
    data = PLAIN.replace(b"\n", ends)
    assert parse(data + tail).to_bytes() == data


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_a_new_content_id_changes_two_lines_only(ends: bytes) -> None:
    made = parse(PLAIN.replace(b"\n", ends))
    made.set_cid(0xAB)
    expected = PLAIN.replace(b"CID=59b560f", b"CID=000000ab", 1).replace(b"67059b560f", b"67000000ab")
    assert made.to_bytes() == expected.replace(b"\n", ends)


def test_edits_add_where_they_belong() -> None:
    made = parse(PLAIN)
    made.set("parentFileNameHint", "base.vmdk")
    made.set("ddb.comment", "hello")
    made.set("ddb.adapterType", "ide")
    made.remove("changeTrackPath")
    text = made.to_bytes().decode()
    again = parse(text.encode())
    assert again.parent_hint == "base.vmdk"
    assert text.index("parentFileNameHint") < text.index("# Extent description")
    assert text.rstrip().endswith('ddb.comment = "hello"')
    assert 'ddb.adapterType = "ide"' in text
    assert again.get("changeTrackPath") is None
    made.replace_extents([ExtentLine(Access.RW, 10, "FLAT", "x.vmdk", 3)])
    assert 'RW 10 FLAT "x.vmdk" 3' in made.to_bytes().decode()


def test_lenient_forms() -> None:
    data = (
        b"\xef\xbb\xbf#Disk Descriptor File\n\n  VERSION = 1\ncid=ABCDEF\nParentCID=FFFFFFFF\n"
        b'CREATETYPE = "monolithicFlat"\n\trw\t 63   flat "a b.vmdk"\t126 partitionUUID xyz\nddb.x="y"\n'
    )
    made = parse(data)
    assert (made.cid, made.parent_cid) == (0xABCDEF, 0xFFFFFFFF)
    assert made.extents == (ExtentLine(Access.RW, 63, "FLAT", "a b.vmdk", 126, "partitionUUID xyz"),)
    assert made.get("ddb.x") == "y"
    assert made.to_bytes() == data
    assert parse(b"version=1\nCID=4294967295\n").cid == 0x94967295


@pytest.mark.parametrize(
    ("label", "codec", "name"),
    [
        ("UTF-8", "utf-8", "диск-磁盘.vmdk"),
        ("windows-1251", "cp1251", "диск.vmdk"),
        ("windows-1252", "cp1252", "Größe.vmdk"),
        ("GBK", "gbk", "虚拟磁盘.vmdk"),
        ("Big5", "big5", "虛擬功能.vmdk"),
        ("Shift_JIS", "shift_jis", "仮想ソ表.vmdk"),
        ("windows-949", "cp949", "가상.vmdk"),
    ],
)
def test_character_sets(label: str, codec: str, name: str) -> None:
    text = PLAIN.decode().replace("UTF-8", label).replace("disk-flat.vmdk", name)
    made = parse(text.encode(codec))
    assert made.encoding == label
    assert made.extents[0].file_name == name
    made.set("ddb.comment", name)
    assert parse(made.to_bytes()).get("ddb.comment") == name
    assert name.encode(codec) in made.to_bytes()


def test_undeclared_character_set_falls_back() -> None:
    data = PLAIN.replace(b'encoding="UTF-8"\n', b"").replace(b"disk-flat", "größe".encode("cp1252"))
    assert parse(data).extents[0].file_name == "größe.vmdk"
    assert parse(data).to_bytes() == data


def test_bad_character_sets() -> None:
    with pytest.raises(BadEncoding, match="unknown character set 'klingon'"):
        parse(PLAIN.replace(b"UTF-8", b"klingon"))
    for trick in (b"utf-16", b"rot13", b"idna", b"unicode_escape", b"utf-7"):
        with pytest.raises(BadEncoding):
            parse(PLAIN.replace(b"UTF-8", trick))
    with pytest.raises(BadEncoding, match="is not UTF-8"):
        parse(PLAIN.replace(b"disk-flat", b"\xff\xfe"))
    made = parse(PLAIN.replace(b"UTF-8", b"windows-1251"))
    with pytest.raises(BadEncoding, match="cannot be written in windows-1251"):
        made.set("ddb.comment", "磁盘")


@pytest.mark.parametrize(
    "name", ['a".vmdk', "a\nRW 1 FLAT x", "a\rb", "a\0b", "a\x85b", "a\x1bb", "a\u2028b", "a\ud800b"]
)
def test_names_cannot_inject_lines(name: str) -> None:
    with pytest.raises(UsageError, match="cannot express"):
        str(ExtentLine(Access.RW, 1, "FLAT", name))
    made = parse(PLAIN)
    with pytest.raises(UsageError):
        made.set("parentFileNameHint", name)
    with pytest.raises(UsageError):
        made.set(f"ddb.{name}", "x")
    assert made.to_bytes() == PLAIN


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"# Disk DescriptorFile\n",
        b"[general]\nversion=1\n",
        b"version=one\n",
        b"\0version=1\n",
        b"createType=x\nversion=1\n",
    ],
)
def test_what_is_no_descriptor(data: bytes) -> None:
    with pytest.raises(NotADisk):
        parse(data)


@pytest.mark.parametrize(
    "line",
    [
        b'RWX 100 FLAT "a" 0',
        b'RW -5 FLAT "a" 0',
        b'RW 0x10 FLAT "a" 0',
        b'RW FLAT "a"',
        b'RW 99999999999999999999999 FLAT "a"',
        b'RW 10 FLAT "a',
        b'RW 10 FLAT "" 0',
        b"just words",
        b"=x",
        b"CID=12345678",
        b'CREATETYPE="custom"',
        b'RW \xd9\xa1 FLAT "a"',
    ],
)
def test_lines_that_are_not_understood(line: bytes) -> None:
    with pytest.raises(FormatError):
        parse(PLAIN + line + b"\n")


def test_bad_content_id() -> None:
    with pytest.raises(FormatError, match="not a hexadecimal"):
        _ = parse(PLAIN.replace(b"CID=59b560f", b"CID=hello")).cid


def test_limits() -> None:
    with pytest.raises(LimitExceeded):
        parse(PLAIN + b"#" * MAX_DESCRIPTOR)
    with pytest.raises(LimitExceeded):
        parse(PLAIN + b"#" * (MAX_LINE + 1))
    assert parse(PLAIN + b"#" * MAX_LINE).version == 1
    many = b"version=1\n" + b"RW 1 ZERO\n" * MAX_EXTENTS
    assert len(parse(many).extents) == MAX_EXTENTS
    with pytest.raises(LimitExceeded):
        parse(many + b"RW 1 ZERO\n")
    made = parse(PLAIN)
    with pytest.raises(LimitExceeded):
        made.set("ddb.comment", "x" * (MAX_LINE + 1))


def test_errors_are_one_line_and_name_the_place() -> None:
    with pytest.raises(VixError) as caught:
        parse(PLAIN + b"nonsense\n")
    assert "disk.vmdk, line 21" in str(caught.value)
    assert "\n" not in str(caught.value)
