"""What a data port can do wrong: one field per fault, healthy by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vdkit.sim.certificates import Certificate


@dataclass(frozen=True, slots=True)
class NfcFaults:
    """Each field is a fault of its own; the default of every field is a healthy host.

    Faults of chunks and records apply to the first read of a connection that they can apply to.
    """

    # -- greeting
    #: How a connection above the limit is turned away: a line in place of the greeting, or the end of the
    #: connection, or nothing at all.
    connection_refusal: Literal["greeting", "close", "hang"] = "greeting"
    greeting_without_sha256: bool = False
    greeting_without_nfcssl: bool = False
    greeting_too_long: bool = False
    greeting_silent: bool = False
    # -- ticket dialogue and TLS
    #: No ticket is known here, as if each had been used or had expired.
    ticket_refused: bool = False
    wrong_announced_sha256: bool = False
    thumbprint_garbled: bool = False
    banner_refused: bool = False
    proxy_refused: bool = False
    proxy_crossed: bool = False
    #: Services that PROXY does not know.
    unknown_services: tuple[str, ...] = ()
    #: The second TLS session presents this certificate.
    second_certificate: Certificate | None = None
    # -- handshake: in place of message 36, 51 or 52
    session_complete_at: int | None = None
    classic_error_at: int | None = None
    classic_error_text: str = "Failed to allocate the requested 262168 bytes"
    # -- session opening
    hello_refused: bool = False
    #: An ERROR record is followed by the normal reply (OPEN always is, on a healthy host too).
    hello_twin: bool = False
    open_status: int = 0
    #: Code and text of an ERROR record to OPEN.
    open_error: tuple[int, str] | None = None
    open_without_twin: bool = False
    open_file_type: int = 2
    open_sector_size: int | None = None
    open_capacity: int | None = None
    # -- records
    bad_magic: bool = False
    wrong_sequence: bool = False
    wrong_opcode: bool = False
    payload_too_long: bool = False
    payload_too_short: bool = False
    error_text_too_long: bool = False
    # -- reads
    #: Code and text of an ERROR record.
    read_error: tuple[int, str] | None = None
    #: Areas of the disk, offset and length in bytes, that the host's storage cannot read.
    read_error_ranges: tuple[tuple[int, int], ...] = ()
    #: The host has no memory for reads of more bytes than this.
    no_memory_over: int | None = None
    #: An ERROR record to a read is followed by the read's normal reply all the same.
    error_twin: bool = False
    #: Seconds that a read waits before it is answered; only every Nth read of a connection does.
    slow_reads: float = 0.0
    slow_reads_every: int = 1
    #: Every Nth read of a connection is never answered; it holds its memory until the connection ends.
    stuck_reads_every: int | None = None
    chunk_status: int = 0
    chunk_out_of_range: bool = False
    chunk_duplicate: bool = False
    chunk_overlap: bool = False
    chunk_empty: bool = False
    chunk_other_offset: bool = False
    chunk_other_total: bool = False
    #: Chunks carry this compression code whatever was asked for.
    chunk_code: int | None = None
    #: Stored chunks repeat the code that was asked for, as some descriptions say.
    stored_code_echoed: bool = False
    #: Added to the announced wire length.
    wire_length_delta: int = 0
    wire_length_huge: bool = False
    zlib_broken: bool = False
    skipz_overrun: bool = False
    skipz_truncated: bool = False
    chunk_cut: bool = False
    chunks_reversed: bool = False
    #: Requests that have come together are answered newest first.
    newest_first: bool = False
    #: The chunks of requests that have come together are sent in an order drawn with this seed.
    chunks_shuffled: int | None = None
    #: Largest chunk, whatever HELLO agreed on.
    chunk_size: int | None = None
    # -- writes
    write_error: tuple[int, str] | None = None
    write_reply_total: int | None = None
    #: Areas of the disk, offset and length in bytes, that the host's storage cannot write.
    write_error_ranges: tuple[tuple[int, int], ...] = ()
    # -- optional records
    map_refused: bool = False
    map_short: bool = False
    # -- connection
    #: Break the connection after this many messages have been sent, greeting included.
    cut_after_messages: int | None = None
    #: Fall silent after this many messages have been sent.
    silent_after_messages: int | None = None
    #: End the sending direction after this many messages, and go on receiving.
    half_close_after_messages: int | None = None
    #: Reset the connection (RST) after this many bytes, in the middle of a message if it falls there.
    reset_after_bytes: int | None = None
    #: Reset the connection before a message, with this chance, drawn with this seed.
    reset_chance: float = 0.0
    reset_seed: int = 0
    #: Seconds before every message.
    delay: float = 0.0
    # -- strictness of the healthy host
    #: Answer message 33 only once 51 has come.
    wait_for_version: bool = False
