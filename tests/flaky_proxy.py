"""A TCP proxy in front of PostgreSQL that loses the answer to one COMMIT, together with the connection; or stalls."""

from __future__ import annotations

import contextlib
import socket
import threading


class FlakyProxy:
    """Listens on `port` of the loopback address. `lose_next_commit` arms it for one COMMIT.

    While `may_answer` is not set, answers are held back, as of a server that hangs.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._is_armed = False
        self.num_lost = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_next_commit(self) -> None:
        self._is_armed = True

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target_port))
                drop = threading.Event()
                threading.Thread(target=self._to_server, args=(client, server, drop), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client, drop), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, drop: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._is_armed and b"COMMIT" in data:
                    self._is_armed = False
                    drop.set()
                server.sendall(data)
        _shut(server)

    def _to_client(self, server: socket.socket, client: socket.socket, drop: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                self.may_answer.wait()
                if drop.is_set():  # committed, but nobody hears of it
                    self.num_lost += 1
                    break
                client.sendall(data)
        _shut(client)
        _shut(server)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
