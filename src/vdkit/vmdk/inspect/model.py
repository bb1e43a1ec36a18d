"""The dump as plain data. Offsets are bytes in the file, sectors are of 512 bytes.

Source of facts: the modules that fill these in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a header by its name in the specification; ``note`` says what the value means, ``problem``
    what is wrong with it.
    """

    name: str
    offset: int
    size: int
    value: int | str
    note: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A header, a footer, the volatile header: a name, where it begins, its fields."""

    name: str
    offset: int
    fields: tuple[Field, ...]
    problems: tuple[str, ...] = ()

    def value(self, name: str) -> int | None:
        """A number by its field's name; None if the header was cut short before it."""
        found = next((f.value for f in self.fields if f.name == name), None)
        return found if isinstance(found, int) else None


@dataclass(frozen=True, slots=True)
class DescriptorLine:
    """``kind`` is comment, blank, option, database, extent or unreadable."""

    number: int
    kind: str
    text: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DescriptorDump:
    """``offset`` and ``room`` are those of its area in the file."""

    offset: int
    room: int
    encoding: str
    lines: tuple[DescriptorLine, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TableDump:
    """One copy of the directory and its tables.

    ``absent`` and ``present`` count tables; ``seen`` says how many tables were read, and the ``grains_``
    counts are of those. ``lowest`` and ``highest`` are the first sectors of grains.
    """

    name: str
    directory: int
    tables: int
    absent: int
    present: int
    outside: int
    seen: int = 0
    grains_absent: int = 0
    grains_zero: int = 0
    grains_data: int = 0
    grains_outside: int = 0
    lowest: int | None = None
    highest: int | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry of a grain table (or of the directory, then ``entry`` is None) that its two copies disagree
    about.
    """

    table: int
    entry: int | None
    primary: int
    redundant: int


@dataclass(frozen=True, slots=True)
class MarkerDump:
    """``kind`` is grain, GT, GD, FOOTER, PROGRESS, EOS or unknown; ``value`` is the grain's first sector or
    the number of sectors that follow.
    """

    sector: int
    kind: str
    value: int
    size: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StreamDump:
    """The markers from the start of a stream on: the first and the last of each run of grains, all others.
    ``complete`` is False if the walk was ended by damage or by its limit.
    """

    markers: tuple[MarkerDump, ...]
    grains: int
    packed: int
    complete: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtentFile:
    """A file that the descriptor names. ``sectors`` is what the descriptor says, ``size`` in bytes what there
    is, None if it could not be opened.
    """

    name: str
    type: str
    sectors: int
    size: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """``form`` is what the file is: descriptor, sparse, stream, cowd, sesparse or unknown."""

    name: str
    size: int
    form: str
    sections: tuple[Section, ...] = ()
    descriptor: DescriptorDump | None = None
    extents: tuple[ExtentFile, ...] = ()
    tables: tuple[TableDump, ...] = ()
    differences: tuple[Difference, ...] = ()
    differing: int = 0
    stream: StreamDump | None = None
    problems: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Nothing wrong was noticed; that is no check."""
        parts = (self, *self.sections, *self.tables, self.descriptor, self.stream)
        fields = (f for section in self.sections for f in section.fields)
        lines = () if self.descriptor is None else self.descriptor.lines
        return not (
            any(part is not None and part.problems for part in parts)
            or any(f.problem for f in fields)
            or any(line.problem for line in lines)
            or any(extent.problem for extent in self.extents)
            or self.differing
        )
