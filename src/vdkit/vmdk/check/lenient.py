"""A descriptor that the parser refuses, line by line: what can be kept of it.

Source of facts: VMware's "Virtual Disk Format 5.0" and the spellings that other products write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vdkit.errors import BadEncoding, FormatError, VixError
from vdkit.vmdk import encoding
from vdkit.vmdk.cid import format_cid, new_cid, parse_cid
from vdkit.vmdk.descriptor import MAX_DESCRIPTOR, SIGNATURE, Descriptor

#: Lines that are dropped before a text is given up.
MAX_DROPPED = 256
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|$)")
#: Keys that may stand once only, if with different values.
_SINGLE = {b"version", b"encoding", b"cid", b"parentcid", b"createtype", b"parentfilenamehint"}
_CANONICAL = re.compile(r"[0-9a-f]{8}")


@dataclass(slots=True)
class Reading:
    """``problems`` are ``(kind, message)``; ``text`` is what a repair would write."""

    descriptor: Descriptor | None
    text: bytes
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def read_leniently(data: bytes, where: str) -> Reading:
    """``data`` up to its first NUL; raises nothing."""
    data = data[:MAX_DESCRIPTOR].partition(b"\0")[0]
    made = Reading(None, data)
    if not _looks_like_any(data):
        return made
    try:
        made.descriptor = Descriptor.parse(data, where)
    except VixError:
        _mend(made, where)
    if made.descriptor is not None:
        _look_at_ids(made, where)
    return made


def _looks_like_any(data: bytes) -> bool:
    """A text that has at least one thing of a descriptor."""
    return (
        re.search(
            rb"(?im)^[ \t]*(#[ \t]*disk[ \t]*descriptor|createType[ \t]*=|(RW|RDONLY|NOACCESS)[ \t]+[0-9])",
            data[: 1 << 16],
        )
        is not None
    )


def _mend(made: Reading, where: str) -> None:
    lines = [(bytes(found[1]), bytes(found[2])) for found in _LINE.finditer(made.text) if found[0]]
    if not any(re.match(rb"(?i)[ \t]*version[ \t]*=[ \t]*[0-9]{1,9}[ \t]*$", raw) for raw, _ in lines):
        made.problems.append(("descriptor-version", "the descriptor has no line that tells its version"))
        lines = [line for line in lines if not re.match(rb"(?i)[ \t]*version\b", line[0])]
        at = 1 if lines and lines[0][0].lstrip().startswith(b"#") else 0
        lines.insert(at, (b"version=1", b"\n"))
    else:
        lines = _version_first(made, lines)
    label = _charset(made, [raw for raw, _ in lines], where)
    kept: list[bytes] = []
    seen: set[bytes] = set()
    dropped = 0
    for number, (raw, end) in enumerate(lines, 1):
        key = raw.partition(b"=")[0].strip().lower() if b"=" in raw else b""
        problem = ""
        if key in _SINGLE and key in seen:
            problem = f"line {number} gives {key.decode()!r} again"
        elif not _parses(raw, label, where):
            problem = f"line {number} cannot be understood: {raw[:60]!r}"
        if problem:
            dropped += 1
            if dropped > MAX_DROPPED:
                return
            made.problems.append(("descriptor-line", problem))
            continue
        seen.add(key)
        kept.append(raw + end)
    text = b"".join(kept)
    try:
        made.descriptor = Descriptor.parse(text, where)
        made.text = text
    except VixError as error:
        made.problems.append(("descriptor-unreadable", error.message))


def _version_first(made: Reading, lines: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Readers tell a descriptor by its first option line."""
    options = [i for i, (raw, _) in enumerate(lines) if raw.strip() and not raw.lstrip().startswith(b"#")]
    at = next(i for i in options if re.match(rb"(?i)[ \t]*version[ \t]*=", lines[i][0]))
    if at == options[0]:
        return lines
    made.problems.append(("descriptor-version", "the version is not the first line of the descriptor"))
    line = lines.pop(at)
    lines.insert(options[0], line)
    return lines


def _charset(made: Reading, lines: list[bytes], where: str) -> bytes:
    """The encoding line to read the others with."""
    label = encoding.declared(lines)
    if label is None:
        return b""
    try:
        for raw in lines:
            encoding.decode(raw, label, where)
        return b"encoding=" + label.encode("ascii", "replace")
    except BadEncoding as error:
        made.problems.append(("descriptor-encoding", error.message.removeprefix(f"{where}: ")))
    return b""


def _parses(raw: bytes, label: bytes, where: str) -> bool:
    if encoding.declared([raw]) is not None and not label:
        return False  # the charset it names is wrong: without it, the usual ones are tried
    if re.match(rb"(?i)[ \t]*version[ \t]*=", raw):
        return True
    try:
        Descriptor.parse(b"version=1\n" + label + b"\n" + raw + b"\n", where)
    except VixError:
        return False
    return True


def _look_at_ids(made: Reading, where: str) -> None:
    descriptor = made.descriptor
    assert descriptor is not None
    for key in ("CID", "parentCID"):
        value = descriptor.get(key)
        if value is None:
            if key == "CID":
                made.problems.append(("cid-missing", "the descriptor has no content id"))
                descriptor.set("CID", format_cid(new_cid()), quoted=False)
            continue
        try:
            cid = parse_cid(value, where)
        except FormatError:
            made.problems.append(("cid-invalid", f"{key} {value[:40]!r} is not a hexadecimal number"))
            # Of a parent's id nothing can be made up: the child would then be a base.
            descriptor.set(key, format_cid(new_cid()), quoted=False)
            continue
        if _CANONICAL.fullmatch(value) is None:
            made.notes.append(
                ("cid-form", f"{key} is written {value!r}, not as eight digits ({format_cid(cid)})")
            )
    if made.problems:
        made.text = descriptor.to_bytes()


def signature_of(data: bytes) -> str | None:
    """A note on a first line that some readers refuse."""
    first = data.lstrip(b"\xef\xbb\xbf").partition(b"\n")[0].strip().decode("latin-1")
    return None if first == SIGNATURE else first[:60]
