"""Mending a streamOptimized extent, in a patch: from the grains that are really there.

Grains stay where they are. Tables that can be followed are corrected in place; else new ones are written
behind the last grain, with a footer and the end marker, as the specification's one-pass recipe has it.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import replace

from vdkit.vmdk import markers
from vdkit.vmdk.check.context import Context
from vdkit.vmdk.check.mendtables import table_at
from vdkit.vmdk.check.options import Options, Outcome
from vdkit.vmdk.check.patch import Patch
from vdkit.vmdk.check.streamcheck import StreamState, look_at_stream
from vdkit.vmdk.check.streamwalk import Walk, tables_from
from vdkit.vmdk.header import ENTRIES_PER_TABLE, FLAG_REDUNDANT, GD_AT_END, SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import u32_bytes

_NOTHING = array("I", bytes(ENTRIES_PER_TABLE * 4))


def mend_stream(
    ctx: Context, patch: Patch, header: SparseHeader, start: int, options: Options, outcome: Outcome
) -> None:
    state = look_at_stream(ctx, patch, header, start)
    if state.walk.damaged:
        _empty_damaged(patch, state, outcome)
        state = look_at_stream(ctx, patch, header, start)
    wanted = tables_from(state.walk)
    if state.copies and _in_place(patch, state, wanted, outcome):
        _tail(patch, state, options, outcome)
        return
    if not _is_complete(state) and not options.accept_loss:
        outcome.blocked.append(
            f"{patch.name}: the stream breaks off after {len(state.walk.sectors)} grains; taking the rest "
            "for empty needs accept_loss"
        )
        return
    if not _is_complete(state):
        last = max(state.walk.numbers, default=-1) + 1
        if last < state.shape.grains:
            outcome.lose(*state.shape.run(last, state.shape.grains - last))
    _rebuild(patch, state, wanted, outcome)


def _is_complete(state: StreamState) -> bool:
    """Its end was written: a directory up front, or one behind the grains."""
    return not state.at_end or state.walk.finished


def _empty_damaged(patch: Patch, state: StreamState, outcome: Outcome) -> None:
    """A grain that reads as zeroes, as long as the old one, so that what follows stays where it is.

    Where the old one is shorter than even that, markers that mean nothing take its place: no grain is there.
    """
    packed = zlib.compress(bytes(state.header.grain * SECTOR), 9)
    good = set(state.walk.numbers)
    for damage in state.walk.damaged:
        if damage.number not in good:
            outcome.lose(*state.shape.run(damage.number))
        outcome.say(f"{patch.name}: made damaged grains read as zeroes")
        offset = damage.sector * SECTOR
        if len(packed) <= damage.size:
            patch.write_from(offset + markers.GRAIN_HEAD, packed.ljust(damage.size, b"\0"))
        else:
            nothing = markers.metadata(markers.PROGRESS, 0)
            patch.write_from(offset, nothing * markers.record_sectors(damage.size))


def _in_place(patch: Patch, state: StreamState, wanted: dict[int, array[int]], outcome: Outcome) -> bool:
    """Correct the tables where they are; False if one has no place."""
    if any(copy.bad for copy in state.copies):
        return False
    copies = state.copies
    for index in wanted:
        if any(not copy.usable(index) for copy in copies):
            return False
    for index in range(state.shape.tables):
        right = wanted.get(index, _NOTHING)
        for number, copy in enumerate(copies):
            if not copy.usable(index):
                continue
            old = table_at(patch, copy.usable(index), ENTRIES_PER_TABLE)
            made = _corrected(state, index, old, right, outcome if number == 0 else None)
            if made != old:
                patch.write_from(copy.usable(index) * SECTOR, u32_bytes(made))
                outcome.say(f"{patch.name}: entered in the tables where grains really are")
    return True


def _corrected(
    state: StreamState, index: int, old: array[int], right: array[int], outcome: Outcome | None
) -> array[int]:
    made = old[:]
    walk = state.walk
    for i in range(ENTRIES_PER_TABLE):
        entry = old[i]
        if entry == right[i] or (entry == 1 and state.shape.zero_entries and right[i] == 0):
            continue
        at = walk.find(entry) if entry else None
        number = index * ENTRIES_PER_TABLE + i
        if at is not None and walk.numbers[at] == number:
            continue  # an older version of the grain, but what readers have been given
        made[i] = right[i]
        if right[i] == 0 and number < state.shape.grains and outcome is not None:
            outcome.lose(*state.shape.run(number))
    return made


def _tail(patch: Patch, state: StreamState, options: Options, outcome: Outcome) -> None:
    walk: Walk = state.walk
    if (walk.tail_zeroes == 1 and patch.capacity % SECTOR == 0) or not (state.at_end or options.tidy):
        return
    end = (walk.end + 1) * SECTOR
    if end < patch.capacity and walk.first_junk is not None and walk.first_junk >= walk.end:
        return
    patch.resize(walk.end * SECTOR)
    patch.resize(end)
    outcome.say(f"{patch.name}: made the end marker its last sector")


def _rebuild(patch: Patch, state: StreamState, wanted: dict[int, array[int]], outcome: Outcome) -> None:
    header, walk = state.header, state.walk
    position = walk.grains_end
    directory = array("I", bytes(header.tables * 4))
    pieces: list[bytes] = []
    for index in sorted(wanted):
        pieces += [markers.metadata(markers.GT, 4), u32_bytes(wanted[index])]
        directory[index] = position + 1
        position += 5
    pieces.append(markers.metadata(markers.GD, header.directory_sectors))
    place = position + 1
    pieces.append(u32_bytes(directory).ljust(header.directory_sectors * SECTOR, b"\0"))
    flags = header.flags & ~FLAG_REDUNDANT
    front = replace(header, directory=GD_AT_END, redundant_directory=0, flags=flags)
    footer = replace(front, directory=place)
    pieces += [markers.metadata(markers.FOOTER, 1), footer.pack(), markers.metadata(markers.EOS, 0)]
    data = b"".join(pieces)
    patch.resize(walk.grains_end * SECTOR)
    patch.resize(walk.grains_end * SECTOR + len(data))
    patch.write_from(walk.grains_end * SECTOR, data)
    if front != header:
        patch.write_from(0, front.pack())
    outcome.say(f"{patch.name}: wrote new tables, footer and end marker behind the last grain")
    outcome.inferred.append(f"{patch.name}: {len(walk.sectors)} grains found by reading the stream")
