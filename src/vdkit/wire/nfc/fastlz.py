"""FastLZ blocks, levels 1 and 2, as the compression ``fastlz`` of NFC carries them: no length in front.

Source of the format: the block description that the FastLZ project publishes (MIT licence), told here in our
words. A block is a row of instructions; the top three bits of each say what it is, and those of the very
first one (always a literal run) hold the level, 0 for 1 and 1 for 2:

* ``000LLLLL``: a run of L + 1 bytes that follow as they are;
* ``MMMOOOOO`` with M from 1 to 6, then a byte: repeat M + 2 bytes from O * 256 + byte + 1 bytes back;
* ``111OOOOO``: the same with a longer length, of which a byte (level 2: bytes, up to the first below 255)
  comes before the last byte of the distance; it is 9 plus their sum;
* level 2 only: where the distance so far is the largest (8192), two more bytes, high one first, are added.

In Python this is slow, some mebibytes a second: it is there for hosts and files that use it.
"""

from __future__ import annotations

from typing import Final

from vdkit.errors import ProtocolError

#: Hosts use level 2 from this many bytes on, and store what is shorter than :data:`MIN_SIZE`.
LEVEL_2_SIZE: Final = 64 << 10
MIN_SIZE: Final = 16
_MAX_LITERALS = 32
_LONG_MATCH = 9
#: Longest match of level 1, and longest distances.
_MAX_MATCH_1 = _LONG_MATCH + 255
_MAX_NEAR = 8191
_FAR = 8192
_MAX_FAR = _FAR + 0xFFFF
#: Blocks end with a literal run of at least this: the project's own decoder refuses a far match at the end.
_TAIL = 2
#: After 32 misses in a row the search takes a byte more in a step.
_PATIENCE = 5


def decode_into(wire: memoryview, target: memoryview) -> None:
    """Fill all of ``target``. Raises ProtocolError for a block that is damaged or of another size."""
    data, size = bytes(wire), len(target)
    if not data or data[0] >> 5 > 1:
        raise ProtocolError("a fastlz chunk does not begin with level 1 or 2")
    level_2 = data[0] >> 5 == 1
    out = bytearray()
    position, end = 0, len(data)
    control = data[0] & 31
    try:
        while True:
            position += 1
            if control < 32:
                stop = position + control + 1
                if stop > end:
                    raise ProtocolError("a fastlz chunk ends inside a literal run")
                out += data[position:stop]
                position = stop
            else:
                distance = ((control & 31) << 8) + 1
                length = (control >> 5) + 2
                if length == _LONG_MATCH:
                    more = data[position]
                    position += 1
                    length += more
                    while level_2 and more == 255:
                        more = data[position]
                        position += 1
                        length += more
                distance += data[position]
                position += 1
                if level_2 and distance == _FAR:
                    distance += (data[position] << 8) + data[position + 1]
                    position += 2
                _repeat(out, distance, length, size)
            if len(out) > size:
                raise ProtocolError(f"a fastlz chunk holds more than {size} bytes")
            if position == end:
                break
            control = data[position]
    except IndexError:
        raise ProtocolError("a fastlz chunk ends inside an instruction") from None
    if len(out) != size:
        raise ProtocolError(f"a fastlz chunk holds {len(out)} bytes instead of {size}")
    target[:] = out


def _repeat(out: bytearray, distance: int, length: int, size: int) -> None:
    start = len(out) - distance
    if start < 0:
        raise ProtocolError(f"a fastlz match reaches {distance} bytes back, {len(out)} are there")
    if len(out) + length > size:
        raise ProtocolError(f"a fastlz chunk holds more than {size} bytes")
    if distance >= length:
        out += out[start : start + length]
    else:
        # The match overlaps what it makes: its beginning is repeated.
        out += (out[start:] * (length // distance + 1))[:length]


def encode(source: memoryview) -> bytes:
    """A block of ``source`` (at least a byte), of the level that hosts use for its size."""
    data = bytes(source)
    level_2 = len(data) >= LEVEL_2_SIZE
    reach = _MAX_FAR if level_2 else _MAX_NEAR + 1
    longest = len(data) if level_2 else _MAX_MATCH_1
    out = bytearray()
    seen: dict[bytes, int] = {}
    anchor, position, misses = 0, 1, 0
    seen[data[:4]] = 0
    end = len(data) - _TAIL
    last = end - 4
    while position <= last:
        key = data[position : position + 4]
        found = seen.get(key)
        seen[key] = position
        if found is None or position - found > reach:
            misses += 1
            position += 1 + (misses >> _PATIENCE)
            continue
        misses = 0
        length = _match(data, found, position, min(longest, end - position))
        _literals(out, data[anchor:position])
        _emit(out, position - found, length, level_2)
        position += length
        anchor = position
    _literals(out, data[anchor:])
    if level_2:
        out[0] |= 1 << 5
    return bytes(out)


def _match(data: bytes, found: int, position: int, limit: int) -> int:
    """How many bytes at ``position`` are those at ``found``; 4 are known to be."""
    length, step = min(4, limit), 32
    while length < limit:
        count = min(step, limit - length)
        if (
            data[found + length : found + length + count]
            == data[position + length : position + length + count]
        ):
            length += count
            step *= 2
        elif count == 1:
            break
        else:
            step = count // 2
    return length


def _literals(out: bytearray, data: bytes) -> None:
    for start in range(0, len(data), _MAX_LITERALS):
        run = data[start : start + _MAX_LITERALS]
        out.append(len(run) - 1)
        out += run


def _emit(out: bytearray, distance: int, length: int, level_2: bool) -> None:
    far = level_2 and distance >= _FAR
    low = (_FAR if far else distance) - 1
    if length < _LONG_MATCH:
        out.append((length - 2 << 5) | low >> 8)
    else:
        out.append(7 << 5 | low >> 8)
        rest = length - _LONG_MATCH
        if level_2:
            out += b"\xff" * (rest // 255)
            rest %= 255
        out.append(rest)
    out.append(low & 255)
    if far:
        out += (distance - _FAR).to_bytes(2, "big")
