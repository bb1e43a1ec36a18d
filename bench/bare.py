"""The yardstick of the network benchmarks: what a plain Python loop moves over loopback, in clear and in TLS.

Server and client keep one buffer of a mebibyte each and do nothing but send and receive. Run as a program it
is the server: it prints its port and serves one connection after the other until its standard input ends. A
connection begins with the number of bytes and whether the server sends or takes them.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUFFER = 1 << 20
HOST = "127.0.0.1"
#: A stuck peer ends the benchmark instead of hanging it.
TIMEOUT = 120.0
#: Bytes to move, and who sends them.
_REQUEST = struct.Struct("<QB")
_SEND, _TAKE = 1, 2
_DONE = b"."


def receive(port: int, total: int, context: ssl.SSLContext | None) -> float:
    """Seconds from the request to the last of ``total`` bytes; connecting and handshakes do not count."""
    with _connected(port, context) as connection:
        started = time.perf_counter()
        connection.sendall(_REQUEST.pack(total, _SEND))
        _take(connection, total)
        return time.perf_counter() - started


def send(port: int, total: int, context: ssl.SSLContext | None) -> float:
    """Seconds until the server says that it has ``total`` bytes; connecting and handshakes do not count."""
    with _connected(port, context) as connection:
        started = time.perf_counter()
        connection.sendall(_REQUEST.pack(total, _TAKE))
        _give(connection, total)
        if connection.recv(1) != _DONE:
            raise SystemExit("the bare server hung up")
        return time.perf_counter() - started


@contextmanager
def _connected(port: int, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, port), timeout=TIMEOUT) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is None:
            yield plain
        else:
            with context.wrap_socket(plain, server_hostname=HOST) as secure:
                yield secure


def _take(connection: socket.socket, total: int) -> None:
    view = memoryview(bytearray(BUFFER))
    while total:
        wanted = min(BUFFER, total)
        filled = 0
        while filled < wanted:
            count = connection.recv_into(view[filled:wanted])
            if count == 0:
                raise SystemExit("the bare peer hung up")
            filled += count
        total -= wanted


def _give(connection: socket.socket, total: int) -> None:
    # Not zeroes: the content must not matter, and this way nobody needs to wonder.
    view = memoryview(bytes(range(256)) * (BUFFER // 256))
    while total:
        step = min(BUFFER, total)
        connection.sendall(view[:step])
        total -= step


def _answer(connection: socket.socket) -> None:
    # A few bytes in one segment of loopback come as one.
    total, wish = _REQUEST.unpack(connection.recv(_REQUEST.size))
    if wish == _SEND:
        _give(connection, total)
    else:
        _take(connection, total)
        connection.sendall(_DONE)


def server_context(certificate: Path) -> ssl.SSLContext:
    """TLS as the data port speaks it: version 1.2, an AES-GCM suite."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate)
    return context


def client_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificate)
    return context


def serve(context: ssl.SSLContext | None) -> None:
    # Standard input is the leash: when the benchmark ends, however it ends, so does this process.
    threading.Thread(target=_end_with_input, daemon=True).start()
    with socket.create_server((HOST, 0)) as listener:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        while True:
            plain, _ = listener.accept()
            with plain:
                plain.settimeout(TIMEOUT)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if context is None:
                    _answer(plain)
                else:
                    with context.wrap_socket(plain, server_side=True) as secure:
                        _answer(secure)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    serve(server_context(Path(sys.argv[1])) if len(sys.argv) > 1 else None)
