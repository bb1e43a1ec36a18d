"""A sparse bitmap of blocks: what one epoch of change tracking remembers."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Blocks per word. One word of a fully written disk is 512 bytes for 256 MiB.
_WORD = 4096
_RUN = re.compile("1+")


class BlockMap:
    """A set of block numbers, kept as big integers of 4096 bits; unions and runs cost little.

    Not locked: its owner locks.
    """

    __slots__ = ("_words",)

    def __init__(self) -> None:
        self._words: dict[int, int] = {}

    def add(self, first: int, last: int) -> None:
        """Blocks ``first`` to ``last``, both included."""
        while first <= last:
            word, bit = divmod(first, _WORD)
            count = min(last - first + 1, _WORD - bit)
            self._words[word] = self._words.get(word, 0) | ((1 << count) - 1) << bit
            first += count

    def update(self, other: BlockMap) -> None:
        for word, bits in other._words.items():
            self._words[word] = self._words.get(word, 0) | bits

    def __contains__(self, block: int) -> bool:
        word, bit = divmod(block, _WORD)
        return bool(self._words.get(word, 0) >> bit & 1)

    def __bool__(self) -> bool:
        return bool(self._words)

    def count(self) -> int:
        """Number of blocks in the set."""
        return sum(bits.bit_count() for bits in self._words.values())

    def runs(self, first: int = 0) -> Iterator[tuple[int, int]]:
        """``(block, count)`` of every maximal run at or after ``first``, ascending."""
        start = count = 0
        for word in sorted(word for word in self._words if word >= first // _WORD):
            bits = self._words[word]
            if word == first // _WORD:
                bits = bits >> (first % _WORD) << (first % _WORD)
            # Least significant first, so that a match's place is the block's number in the word.
            for match in _RUN.finditer(f"{bits:b}"[::-1]):
                block, length = word * _WORD + match.start(), match.end() - match.start()
                if count and start + count == block:
                    count += length
                    continue
                if count:
                    yield start, count
                start, count = block, length
        if count:
            yield start, count
