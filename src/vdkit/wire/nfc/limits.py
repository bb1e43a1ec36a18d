"""Bounds on everything that the other side announces, before it is believed.

Sizes are bytes. Facts: our NFC specification, sections 3, 5, 8.1, 8.3 and 13.
"""

from __future__ import annotations

from vdkit.errors import ProtocolError

#: Real greeting lines are below 200; other clients give up at 1024 or 4096.
MAX_GREETING = 4096
#: A line of the ticket dialogue, either direction, LF included.
MAX_LINE = 1024
#: A tag is 1 to 64 printable characters.
MAX_TAG = 64
#: Each of the two names that follow handshake message 54.
MAX_NAME = 256
#: A payload that a record header announces. Known ones have 60 at most; room for longer replies.
MAX_PAYLOAD = 4096
#: Data behind one record that a client accepts. Hosts cut at the HELLO buffer, and we ask for less than this.
MAX_TRAILER = 1 << 20
#: The text of an ERROR record, or of a classic error message.
MAX_ERROR_TEXT = 1 << 16
#: A datastore path, in bytes of UTF-8.
MAX_PATH = 4096
#: Key and value of DDB_GET.
MAX_DDB_KEY = 1024
MAX_DDB_VALUE = 1 << 16
#: One read or write request of a client of ours. VMware documents 1 MiB per stream.
MAX_REQUEST = 1 << 20
#: One read or write request that a server serves: the largest that a client was seen to send.
MAX_SERVED_REQUEST = 32 << 20
#: The largest HELLO buffer that ESXi 8 was seen to accept; 16 MiB is answered with an ERROR.
MAX_HELLO_BUFFER = 2 << 20
#: HELLO buffer size times count.
MAX_HELLO_TOTAL = 16 << 20
#: What a HELLO of zeroes means.
DEFAULT_HELLO_BUFFER = 64 << 10
#: Chunks in one allocation-map request, and so the size of the bitmap (a bit each). The documented API limit.
MAX_MAP_CHUNKS = 512 << 10
#: Chunk of the allocation map.
MAP_CHUNK = 64 << 10
#: Body of one classic FILE_DATA message, headers included.
MAX_FILE_DATA = 256 << 10


def bounded(value: int, limit: int, what: str) -> int:
    """``value`` if it is not above ``limit``; else the refusal that names ``what`` was announced."""
    if value > limit:
        raise ProtocolError(f"the peer announced {what} of {value} bytes, the limit is {limit}")
    return value
