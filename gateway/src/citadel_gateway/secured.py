"""TLS for one connection: records from and to the transport below, bytes for the protocol above.

The event loop's own TLS is dearer (docs/decisions/040). What is encrypted goes to the transport below at once: its
buffer is all that the client has not taken yet, and the bounds hold as they do in the clear.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from citadel_gateway.protocol import ClientConnection

_RECORD: Final = 16384  # no record holds more (RFC 8446, 5.1), so one read takes a whole one
_PIECE: Final = 2 * _RECORD  # OpenSSL's buffers stay as large as they once were


class Secured:
    """asyncio.Protocol to what is below, asyncio.Transport to what is above, in all but name: compiled, a class cannot
    inherit from them."""

    def __init__(self, connection: ClientConnection, context: ssl.SSLContext, handshake_timeout: float) -> None:
        self._connection: ClientConnection | None = connection
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._handshake_timeout = handshake_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._transport: Any = None
        self._shaken = False  # hands
        self._ended = False  # nothing more is read or written, but for what is on its way

    # what the event loop calls

    def connection_made(self, transport: Any) -> None:
        """A connection counts from its first packet: one that never ends its handshake holds a place of its address."""
        self._transport = transport
        connection = self._connection
        if connection is None or not connection.admitted(transport):
            self.abort()  # it could only be told after a handshake
        else:
            self._timer = asyncio.get_running_loop().call_later(self._handshake_timeout, self.abort)

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), _PIECE):
            connection = self._connection
            if connection is None or self._ended:
                return
            self._incoming.write(data[at : at + _PIECE])
            if self._shaken or self._shake_hands(connection):
                self._read(connection)
            if not self._ended:
                self._flush()  # a client may have asked for new keys

    def eof_received(self) -> None:
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._stop_timer()
        connection, self._connection = self._connection, None  # they hold each other
        if connection is not None:
            connection.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._connection is not None and self._shaken:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        if self._connection is not None:
            self._connection.resume_writing()

    # what the protocol calls

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), _PIECE):
            if self._ended:
                return
            self._tls.write(data[at : at + _PIECE])
            self._flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._end()
        self._transport.write_eof()

    def close(self) -> None:
        self._end()
        self._transport.close()

    def abort(self) -> None:
        self._ended = True
        self._transport.abort()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return int(self._transport.get_write_buffer_size())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    # records

    def _shake_hands(self, connection: ClientConnection) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._flush()  # an alert tells the client why
            self.close()
            return False
        self._stop_timer()
        self._shaken = True
        connection.connection_made(self)
        return True

    def _read(self, connection: ClientConnection) -> None:
        while self._incoming.pending and not self._ended:
            try:
                content = self._tls.read(_RECORD)
            except ssl.SSLWantReadError:
                return  # the record has not come whole
            except ssl.SSLError:
                self._flush()
                content = b""
            if not content:
                self._leave()
                return
            connection.data_received(content)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def _end(self) -> None:
        """Tell the client that this was all."""
        if self._ended:
            return
        self._ended = True
        if self._shaken:
            with contextlib.suppress(ssl.SSLError):  # the client's own goodbye is not waited for
                self._tls.unwrap()
            self._flush()

    def _leave(self) -> None:
        """The client has ended its half, by TLS or below it, or has broken the rules."""
        if self._connection is not None and self._shaken:
            self._connection.eof_received()
        self.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
