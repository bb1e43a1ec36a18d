"""NFC, the protocol of a host's data port (TCP 902), as bytes and state, for both ends and without I/O.

Source of all facts in this package: our own specification of the protocol, written from public material
(``docs/reference/nfc.md`` says what is spoken; the vectors in ``tests/vectors/nfc-vectors.json`` pin it).

* ``greeting``, ``dialogue``: the text part, up to the PROXY reply;
* ``handshake``: the fixed 264-byte messages that open a disk session;
* ``records``: everything after it; ``codecs``: how the data of one chunk is written;
* ``assembly``: which chunks of a read have come; ``replies``: what a client checks in them;
* ``classic``: the older whole-file streaming messages.
"""
