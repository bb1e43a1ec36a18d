"""Character sets of descriptors: the names VMware products write, and the codecs behind them.

Source of facts: VMware's "Virtual Disk Format 5.0" and descriptors of localised hosts as reported publicly
(GBK, Big5 and Shift_JIS in libvmdk's and dissect's issue trackers). Only stateless, ASCII-transparent
charsets are listed, so that a descriptor may be cut into lines before it is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vdkit.errors import BadEncoding

#: What a descriptor without ``encoding=`` is tried as, in this order.
DEFAULT = "UTF-8"
FALLBACK = "windows-1252"

_CODECS = {
    "utf8": "utf-8",
    "usascii": "ascii",
    "ascii": "ascii",
    "gbk": "gbk",
    "gb2312": "gbk",
    "gb18030": "gb18030",
    "windows936": "gbk",
    "big5": "cp950",
    "windows950": "cp950",
    "big5hkscs": "big5hkscs",
    "shiftjis": "cp932",
    "sjis": "cp932",
    "windows31j": "cp932",
    "windows932": "cp932",
    "eucjp": "euc_jp",
    "euckr": "euc_kr",
    "windows949": "cp949",
    "windows874": "cp874",
    "koi8r": "koi8_r",
    **{f"windows{page}": f"cp{page}" for page in range(1250, 1259)},
    **{f"iso8859{part}": f"iso8859_{part}" for part in (*range(1, 12), 13, 14, 15, 16)},
}

_ENCODING_LINE = re.compile(rb'[ \t]*encoding[ \t]*=[ \t]*"?([^"]*)"?[ \t]*', re.IGNORECASE)


def codec(label: str, where: str) -> str:
    """Name of the Python codec for a charset label; ``where`` names the file in the error."""
    key = re.sub(r"[-_ ]", "", label).casefold()
    if key.startswith("cp") and key[2:].isdigit():
        key = "windows" + key[2:]
    found = _CODECS.get(key)
    if found is None:
        raise BadEncoding(
            f"{where}: unknown character set {label!r}",
            remedy='correct the "encoding" line of the descriptor',
        )
    return found


def declared(lines: Iterable[bytes]) -> str | None:
    """The charset label in the descriptor's own ``encoding`` line, if it has one."""
    for line in lines:
        found = _ENCODING_LINE.fullmatch(line)
        if found is not None:
            return found.group(1).decode("ascii", "backslashreplace")
    return None


def detect(lines: Sequence[bytes]) -> str:
    """Label of the charset of a descriptor: what it declares, else UTF-8, else windows-1252."""
    label = declared(lines)
    if label is not None:
        return label
    try:
        for line in lines:
            line.decode("utf-8")
    except UnicodeDecodeError:
        return FALLBACK
    return DEFAULT


def decode(data: bytes, label: str, where: str) -> str:
    try:
        return data.decode(codec(label, where))
    except UnicodeDecodeError as error:
        raise BadEncoding(
            f"{where}: byte {error.start} of the descriptor is not {label}",
            remedy='correct the "encoding" line of the descriptor',
        ) from error


def encode(text: str, label: str, where: str) -> bytes:
    try:
        return text.encode(codec(label, where))
    except UnicodeEncodeError as error:
        raise BadEncoding(
            f"{where}: {text[error.start : error.end]!r} cannot be written in {label}",
            remedy="choose a name in the disk's character set",
        ) from error
