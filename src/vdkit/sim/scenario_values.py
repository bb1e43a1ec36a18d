"""Values of a scenario file as the fields of a dataclass want them.

The dataclass is the only list of keys and types: an unknown key, and a value of another type, are refused
with the key's full name, the line, and names that come near.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar

from vdkit.errors import UsageError
from vdkit.sim.certificates import Certificate, make_certificate
from vdkit.sim.faults import ModelFault

T = TypeVar("T")

_TABLE = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*([A-Za-z0-9_.\-"']+)\s*=""")
#: Days of validity, from today, of a certificate that a file asks for.
_CERTIFICATE_KEYS = ("common_name", "from_day", "to_day")


class Source:
    """A file's text, which knows the line of a key. Keys are written ``machine[2].disk[0].size``."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._lines: dict[str, int] = {}
        counts: dict[str, int] = {}
        at = ""
        for number, line in enumerate(text.splitlines(), 1):
            if found := _TABLE.match(line):
                at = self._table(found[2].replace('"', ""), counts, array=found[1] == "[[")
                self._lines.setdefault(at, number)
            elif found := _KEY.match(line):
                key = found[1].replace('"', "").replace("'", "")
                self._lines.setdefault(f"{at}.{key}" if at else key, number)

    @staticmethod
    def _table(dotted: str, counts: dict[str, int], *, array: bool) -> str:
        at = ""
        parts = [part.strip() for part in dotted.split(".")]
        for position, part in enumerate(parts):
            at = f"{at}.{part}" if at else part
            if array and position == len(parts) - 1:
                counts[at] = counts.get(at, -1) + 1
                for below in [key for key in counts if key.startswith(f"{at}[{counts[at]}]")]:
                    del counts[below]
            if at in counts:
                at = f"{at}[{counts[at]}]"
        return at

    def refuse(self, key: str, what: str, remedy: str | None = None) -> UsageError:
        at: str = key
        while at and at not in self._lines:
            at = re.sub(r"(\.?[^.\[\]]+|\[\d+\])$", "", at)
        line = f", line {self._lines[at]}" if at else ""
        return UsageError(f"{self.name}{line}: {key}: {what}", remedy=remedy)


def check_keys(source: Source, at: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UsageError for a key that is not ``known``."""
    names = list(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
            remedy = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(names)}"
            raise source.refuse(f"{at}.{key}" if at else key, "there is no such key", remedy)


def fill(kind: type[T], source: Source, at: str, table: Any, skip: Iterable[str] = ()) -> T:
    """A ``kind`` (a dataclass) of a table; what the table does not name keeps its default."""
    left_out = set(skip)
    wanted = as_table(source, at, table)
    hints = typing.get_type_hints(kind)
    # mypy has no word for "any dataclass".
    names = [one.name for one in fields(kind) if one.name not in left_out]  # type: ignore[arg-type]
    check_keys(source, at, wanted, [*names, *left_out])
    values = {
        key: convert(hints[key], source, f"{at}.{key}", value)
        for key, value in wanted.items()
        if key not in left_out
    }
    try:
        return kind(**values)
    except ModelFault as fault:
        raise source.refuse(at, str(fault)) from fault


def as_table(source: Source, at: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise source.refuse(at, f"a table is wanted, not {_shown(value)}")
    return value


def convert(kind: Any, source: Source, at: str, value: Any) -> Any:
    """``value`` as the type ``kind`` of a field. Raises UsageError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        [inner] = [one for one in arguments if one is not type(None)]
        return convert(inner, source, at, value)
    if origin is Literal:
        if value not in arguments:
            raise source.refuse(at, f"{_shown(value)} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is dict:
        table = as_table(source, at, value)
        return {key: convert(arguments[1], source, f"{at}.{key}", one) for key, one in table.items()}
    if origin in (tuple, frozenset, list):
        return _sequence(origin, arguments, source, at, value)
    if kind is Certificate:
        return certificate(source, at, value)
    if is_dataclass(kind):
        return fill(typing.cast(type[Any], kind), source, at, value)
    return _plain(kind, source, at, value)


def _sequence(origin: Any, arguments: tuple[Any, ...], source: Source, at: str, value: Any) -> Any:
    if not isinstance(value, list):
        raise source.refuse(at, f"an array is wanted, not {_shown(value)}")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise source.refuse(at, f"{len(arguments)} values are wanted, not {len(value)}")
        inner = arguments
    else:
        inner = (arguments[0],) * len(value)
    made = [
        convert(one, source, f"{at}[{number}]", item)
        for number, (one, item) in enumerate(zip(inner, value, strict=True))
    ]
    return origin(made)


def _plain(kind: Any, source: Source, at: str, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind not in (bool, int, float, str):
        raise source.refuse(at, "cannot be set in a file")
    if type(value) is not kind:
        raise source.refuse(at, f"{_NAMES[kind]} is wanted, not {_shown(value)}")
    return value


_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _shown(value: Any) -> str:
    """A value in a message, at most a few words of it."""
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else repr(value)
    return str(text)[:60]


def certificate(source: Source, at: str, value: Any) -> Certificate:
    """``{}`` is a certificate that is made; ``from_day`` and ``to_day`` count from today, and may be past."""
    table = as_table(source, at, value)
    check_keys(source, at, table, _CERTIFICATE_KEYS)
    name = convert(str, source, f"{at}.common_name", table.get("common_name", "localhost"))
    first = convert(int, source, f"{at}.from_day", table.get("from_day", -1))
    last = convert(int, source, f"{at}.to_day", table.get("to_day", 3650))
    if not -40_000 < first < last < 40_000:
        raise source.refuse(at, f"no certificate is valid from day {first} to day {last}")
    return make_certificate(name, from_day=first, to_day=last)


_SIZE = re.compile(r"^\s*(\d{1,15})\s*(B|KiB|MiB|GiB|TiB)\s*$")
_UNITS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}


def size_in_bytes(source: Source, at: str, value: Any) -> int:
    """Bytes, as a number or as a text such as ``64 MiB``."""
    found = _SIZE.match(value) if isinstance(value, str) else None
    size = int(found[1]) << _UNITS[found[2]] if found else value
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0 or size % 512 or size > 62 << 40:
        raise source.refuse(
            at, f"{_shown(value)} is no size of a disk", 'give bytes, or a text such as "64 MiB"'
        )
    return size
