"""VixDiskLib's configuration file: known keys are read and checked, unknown ones are warned about.

What a key asks for that vdkit does in another way, or never does, is said in a note; nothing is silently
half obeyed.

Source of facts: the published VDDK programming guide and release notes (keys, defaults, spellings).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vdkit.errors import FormatError, LimitExceeded, from_os_error
from vdkit.transports.nfc import Timeouts

#: Bytes of a configuration file; more is not one.
MAX_BYTES: Final = 1 << 20
#: Largest number that a value may be.
MAX_VALUE: Final = 1 << 31

#: Keys with a number, and VixDiskLib's default for each.
NUMBERS: Final = {
    "vixDiskLib.transport.LogLevel": 3,
    "vixDiskLib.nfc.LogLevel": 1,
    "vixDiskLib.disklib.EnableCache": 0,
    "vixDiskLib.ssl.verifyCertificates": 1,
    "vixDiskLib.ssl.enableSslFIPS": 0,
    "vixDiskLib.nfc.AcceptTimeoutMs": 180000,
    "vixDiskLib.nfc.RequestTimeoutMs": 180000,
    "vixDiskLib.nfc.ReadTimeoutMs": 60000,
    "vixDiskLib.nfc.WriteTimeoutMs": 600000,
    "vixDiskLib.nfcFssrvr.TimeoutMs": 0,
    "vixDiskLib.nfcFssrvrWrite.TimeoutMs": 0,
    "vixDiskLib.nfcAio.Session.BufSizeIn64KB": 1,
    "vixDiskLib.nfcAio.Session.BufCount": 4,
    "vixDiskLib.phoneHome.EnablePhoneHome": 0,
    "vixDiskLib.transport.hotadd.NoNfcSession": 0,
    "vixMntapi.cfg.LogLevel": 3,
}
#: Keys with a text.
TEXTS: Final = (
    "tmpDirectory",
    "vixDiskLib.transport.san.denyList",
    "vixDiskLib.transport.san.allowList",
    "vixDiskLib.phoneHome.ProductName",
    "vixDiskLib.phoneHome.ProductVersion",
    "log.fileName",
    "log.fileLevel",
)
#: Other spellings of the same.
_ALIASES: Final = {
    "vixDiskLib.transport.san.blacklist": "vixDiskLib.transport.san.denyList",
    "vixDiskLib.transport.san.whitelist": "vixDiskLib.transport.san.allowList",
    "vixDiskLib.linuxSSL.verifyCertificates": "vixDiskLib.ssl.verifyCertificates",
    "vixDiskLib.nfc.ReadTimeoutsMs": "vixDiskLib.nfc.ReadTimeoutMs",
    "vixDiskLib.nfc.WriteTimeoutsMs": "vixDiskLib.nfc.WriteTimeoutMs",
}
_NOTES: Final = {
    ("vixDiskLib.ssl.verifyCertificates", 0): "certificates are verified all the same",
    ("vixDiskLib.disklib.EnableCache", 1): "there is no block cache that could serve stale data",
    ("vixDiskLib.phoneHome.EnablePhoneHome", 1): "nothing is ever sent",
    ("vixDiskLib.ssl.enableSslFIPS", 1): "TLS is the interpreter's: use one that is built for FIPS",
}
#: VixDiskLib fails to open with more buffers than this, in bytes.
_MAX_BUFFERS: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Configuration:
    """``numbers`` and ``texts`` hold every known key, ``given`` those that the file has, ``warnings`` what
    should be told to the user, a line each.
    """

    numbers: dict[str, int] = field(default_factory=lambda: dict(NUMBERS))
    texts: dict[str, str] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    @property
    def timeouts(self) -> Timeouts:
        """Those of the data port, in seconds."""
        return Timeouts(
            request=self.numbers["vixDiskLib.nfc.RequestTimeoutMs"] / 1000,
            read=self.numbers["vixDiskLib.nfc.ReadTimeoutMs"] / 1000,
            write=self.numbers["vixDiskLib.nfc.WriteTimeoutMs"] / 1000,
        )

    @property
    def buffer_size(self) -> int | None:
        """Bytes of one NFC buffer; None if the file does not say: VixDiskLib's default is a slow one."""
        key = "vixDiskLib.nfcAio.Session.BufSizeIn64KB"
        return self.numbers[key] << 16 if key in self.given else None

    @property
    def buffer_count(self) -> int | None:
        """NFC buffers of a disk; None if the file does not say."""
        key = "vixDiskLib.nfcAio.Session.BufCount"
        return self.numbers[key] if key in self.given else None

    @property
    def temporary_folder(self) -> str | None:
        return self.texts.get("tmpDirectory")

    @property
    def san_allow(self) -> tuple[str, ...]:
        return _devices(self.texts.get("vixDiskLib.transport.san.allowList", ""))

    @property
    def san_deny(self) -> tuple[str, ...]:
        return _devices(self.texts.get("vixDiskLib.transport.san.denyList", ""))


def read_configuration(path: str | Path) -> Configuration:
    """Read a file. Raises NotFound, AccessDenied, LimitExceeded, FormatError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise from_os_error(error, f"{path}: reading the configuration") from error
    if len(data) > MAX_BYTES:
        raise LimitExceeded(f"{path}: a configuration of more than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse_configuration(text, str(path))


def parse_configuration(text: str, where: str = "configuration") -> Configuration:
    """``name=value`` lines; ``#`` begins a comment; quotes keep blanks and ``#``. Raises FormatError."""
    numbers, texts = dict(NUMBERS), dict[str, str]()
    given: set[str] = set()
    warnings: list[str] = []
    known = {name.casefold(): name for name in (*NUMBERS, *TEXTS, *_ALIASES)}
    for count, line in enumerate(text.splitlines(), 1):
        place = f"{where}, line {count}"
        name, value = _split(line, place)
        if not name:
            continue
        found = known.get(name.casefold())
        if found is None:
            warnings.append(f"{place}: unknown key {name[:80]!r} is ignored")
            continue
        key = _ALIASES.get(found, found)
        if key in given:
            warnings.append(f"{place}: {key} is given again; the last one counts")
        given.add(key)
        if key in NUMBERS:
            numbers[key] = _number(value, place, key)
            note = _NOTES.get((key, numbers[key]))
            if note is not None:
                warnings.append(f"{place}: {key}={numbers[key]} has no effect: {note}")
        else:
            texts[key] = value
    size = numbers["vixDiskLib.nfcAio.Session.BufSizeIn64KB"] << 16
    count = numbers["vixDiskLib.nfcAio.Session.BufCount"]
    if not size or not count:
        raise FormatError(f"{where}: no nfcAio buffers at all: BufSizeIn64KB and BufCount are at least 1")
    if size * count > _MAX_BUFFERS:
        raise FormatError(f"{where}: nfcAio buffers of more than {_MAX_BUFFERS} bytes together")
    return Configuration(numbers, texts, frozenset(given), tuple(warnings))


def _split(line: str, place: str) -> tuple[str, str]:
    """Name and value, both empty for an empty line or a comment."""
    text = line.strip()
    if not text or text.startswith("#"):
        return "", ""
    name, equals, rest = text.partition("=")
    if not equals or not name.strip():
        raise FormatError(f"{place}: {text[:80]!r} is not name=value")
    rest = rest.strip()
    if rest.startswith('"'):
        value, quote, behind = rest[1:].partition('"')
        if not quote or (behind.strip() and not behind.strip().startswith("#")):
            raise FormatError(f"{place}: quotes that do not end where the value ends")
        return name.strip(), value
    return name.strip(), rest.partition("#")[0].strip()


def _number(value: str, place: str, key: str) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > 10 or int(value) > MAX_VALUE:
        raise FormatError(f"{place}: {key} needs a whole number, not {value[:40]!r}")
    return int(value)


def _devices(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
