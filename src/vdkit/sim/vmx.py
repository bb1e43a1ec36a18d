"""The text of ``.vmx`` and ``.vmsd`` files: ``key = "value"`` lines, keys without case.

A value keeps bytes that would break the line as ``|`` and two hex digits (``|22`` is a double quote,
``|7C`` the bar itself), as VMware's own files do. Unknown keys, comments and order are kept: a file that
goes in and out unchanged is the same file. Source of facts: vmx files in public repositories and the
documented keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from vdkit.errors import BadEncoding, FormatError, LimitExceeded

#: Largest text read, in bytes: real files are a few KiB; a bound before it is believed.
MAX_TEXT_BYTES = 1 << 20
#: Most lines read.
MAX_LINES = 1 << 14

_LINE = re.compile(
    r"""^\s*(?P<key>[A-Za-z0-9_.:\-]+)\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^"\s#]\S*))\s*$"""
)
_KEY = re.compile(r"^[A-Za-z0-9_.:\-]+$")
_ESCAPE = re.compile(r"\|([0-9A-Fa-f]{2})")
_MUST_ESCAPE = re.compile(r'["|#\x00-\x1f\x7f]')
_TRUE = frozenset({"true", "yes", "1"})
_FALSE = frozenset({"false", "no", "0"})


class VmxText:
    """One file as an ordered dictionary of text, without case of the keys."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        # Either ("", raw line) for what is kept but not understood, or (key as written, value).
        self._lines: list[tuple[str, str]] = []
        self._index: dict[str, int] = {}
        for key, value in pairs:
            self[key] = value

    @classmethod
    def parse(cls, data: bytes, name: str) -> VmxText:
        """``name`` is used in messages. Raises FormatError, BadEncoding or LimitExceeded."""
        if len(data) > MAX_TEXT_BYTES:
            raise LimitExceeded(f"{name}: {len(data)} bytes; such a file has at most {MAX_TEXT_BYTES}")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadEncoding(f"{name}: byte {error.start} is not UTF-8") from error
        lines = text.splitlines()
        if len(lines) > MAX_LINES:
            raise LimitExceeded(f"{name}: {len(lines)} lines; such a file has at most {MAX_LINES}")
        made = cls()
        for number, line in enumerate(lines, 1):
            made._take(line, f"{name} line {number}")
        return made

    def _take(self, line: str, place: str) -> None:
        if not line.strip() or line.lstrip().startswith("#"):
            self._lines.append(("", line))
            return
        match = _LINE.match(line)
        if match is None:
            raise FormatError(f'{place}: not of the form key = "value"')
        key = match["key"]
        if key.lower() in self._index:
            raise FormatError(f"{place}: the key {key} is there twice")
        raw = match["quoted"] if match["quoted"] is not None else match["bare"]
        self[key] = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), raw)

    # -- as a dictionary -------------------------------------------------------------------------

    def __getitem__(self, key: str) -> str:
        return self._lines[self._index[key.lower()]][1]

    def __setitem__(self, key: str, value: str) -> None:
        if not _KEY.match(key):
            raise FormatError(f"{key!r} cannot be a key of a vmx file")
        at = self._index.get(key.lower())
        if at is None:
            self._index[key.lower()] = len(self._lines)
            self._lines.append((key, value))
        else:
            self._lines[at] = (self._lines[at][0], value)

    def __delitem__(self, key: str) -> None:
        at = self._index.pop(key.lower())
        del self._lines[at]
        self._index = {name: i - (i > at) for name, i in self._index.items()}

    def __contains__(self, key: str) -> bool:
        return key.lower() in self._index

    def __iter__(self) -> Iterator[str]:
        """The keys as written, in order."""
        return (key for key, _ in self._lines if key)

    def get(self, key: str, default: str = "") -> str:
        at = self._index.get(key.lower())
        return default if at is None else self._lines[at][1]

    def discard(self, prefix: str) -> None:
        """Remove every key that starts with ``prefix``."""
        for key in [key for key in self if key.lower().startswith(prefix.lower())]:
            del self[key]

    # -- typed -----------------------------------------------------------------------------------

    def flag(self, key: str, default: bool = False) -> bool:
        text = self.get(key).strip().lower()
        if not text:
            return default
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise FormatError(f"{key}: {text!r} is neither TRUE nor FALSE")

    def number(self, key: str, default: int, *, low: int = 0, high: int = 1 << 62) -> int:
        text = self.get(key).strip()
        if not text:
            return default
        try:
            value = int(text)
        except ValueError as error:
            raise FormatError(f"{key}: {text!r} is not a whole number") from error
        if not low <= value <= high:
            raise FormatError(f"{key}: {value} is not between {low} and {high}")
        return value

    def set_flag(self, key: str, value: bool) -> None:
        self[key] = "TRUE" if value else "FALSE"

    def render(self) -> bytes:
        """The file."""
        return "".join(
            f'{key} = "{escape(value)}"\n' if key else f"{value}\n" for key, value in self._lines
        ).encode()


def escape(value: str) -> str:
    return _MUST_ESCAPE.sub(lambda found: f"|{ord(found[0]):02X}", value)


def uuid_to_vmx(text: str) -> str:
    """``564d...`` with dashes, as the API shows it, to ``56 4d .. ..-.. ..`` as a vmx file holds it."""
    digits = text.replace("-", "")
    pairs = [digits[i : i + 2] for i in range(0, 32, 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def uuid_from_vmx(text: str) -> str:
    """The other way. Raises FormatError for what is not 16 bytes of hex."""
    digits = re.sub(r"[\s-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise FormatError(f"{text!r} is not a UUID")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
