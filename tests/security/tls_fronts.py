"""Ends TLS in front of a server that was built without it, as stunnel does for Redis and PgBouncer for PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import threading
from collections.abc import Iterator

#: What a client of PostgreSQL sends before its startup message to ask for TLS: length and code.
_SSL_REQUEST = struct.pack("!II", 8, 80877103)


@contextlib.contextmanager
def tls_front(target_port: int, context: ssl.SSLContext, *, speaks_postgresql: bool = False) -> Iterator[int]:
    """Listens on 127.0.0.1 and gives its port; whoever speaks no TLS there is hung up on."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tls-front")
    thread.start()
    front = _Front(target_port, context, speaks_postgresql)
    try:
        yield asyncio.run_coroutine_threadsafe(front.listen(), loop).result(60)
    finally:
        asyncio.run_coroutine_threadsafe(front.close(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Front:
    def __init__(self, target_port: int, context: ssl.SSLContext, speaks_postgresql: bool) -> None:
        self._target_port = target_port
        self._context = context
        self._speaks_postgresql = speaks_postgresql
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> int:
        context = None if self._speaks_postgresql else self._context
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if not self._speaks_postgresql or await self._start_tls(reader, writer):
                await self._relay(reader, writer)
        writer.close()
        self._tasks.discard(task)

    async def _start_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if await reader.readexactly(8) != _SSL_REQUEST:
            return False
        writer.write(b"S")
        await writer.start_tls(self._context)
        return True

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))
        finally:
            target_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
