"""A TCP proxy in front of PostgreSQL that drops each session's startup options, as poolers do unless told not to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_PROTOCOL_3 = 3 << 16


@contextlib.contextmanager
def dropping_options(target_port: int) -> Iterator[int]:
    """Listens on the loopback address; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, target_port), daemon=True).start()
        yield int(listener.getsockname()[1])


def _accept(listener: socket.socket, target_port: int) -> None:
    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", target_port))
            threading.Thread(target=_to_server, args=(client, server), daemon=True).start()
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()


def _to_server(client: socket.socket, server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while (message := _first_message(client)) is not None:
            (code,) = struct.unpack("!I", message[:4])
            if code == _PROTOCOL_3:
                message = _without_options(message)
            server.sendall(struct.pack("!I", len(message) + 4) + message)
            if code == _PROTOCOL_3:
                break  # before it came questions for encryption, of the same form
        _copy(client, server)


def _first_message(client: socket.socket) -> bytes | None:
    head = client.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    (length,) = struct.unpack("!I", head)
    return client.recv(length - 4, socket.MSG_WAITALL)


def _without_options(message: bytes) -> bytes:
    """A startup message: the number of the protocol, names and values with a zero after each, and a last zero."""
    fields = message[4:].rstrip(b"\0").split(b"\0")
    kept = [
        name + b"\0" + value + b"\0"
        for name, value in zip(fields[::2], fields[1::2], strict=True)
        if name != b"options"
    ]
    return message[:4] + b"".join(kept) + b"\0"


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
