"""Takes in what the processes of a trial tell: on a Unix socket, or over TCP from other machines too."""

from __future__ import annotations

import contextlib
import secrets
import selectors
import shutil
import socket
import tempfile
import time
from pathlib import Path

from bsfind.errors import UsageError
from bsfind.launch.records import LONGEST_RECORD, RankRecord, read_record

_LONGEST_SOCKET = 100
"""Length of the name of a Unix socket that every system takes (sun_path has 104 bytes or more)."""


class Inbox:
    """Takes in records; those without the key are left out.

    The Unix socket is in a folder that other users cannot enter.

    Args:
        listen: host and port (0: any) of this machine, for a TCP socket; None: a Unix socket.

    Attributes:
        address: the path of the Unix socket, or the host and the port.
        key: what a process must know.
        records: what has come, in its order.

    Raises:
        UsageError: nothing can listen there.
    """

    def __init__(self, listen: tuple[str, int] | None = None) -> None:
        self.key = secrets.token_hex(16)
        self.records: list[RankRecord] = []
        self._held = contextlib.ExitStack()
        self.address: str | tuple[str, int]
        if listen is None:
            self._listener, self.address = self._on_this_machine()
        else:
            self._listener, self.address = _over_tcp(listen)
        self._held.enter_context(self._listener)
        self._listener.setblocking(False)
        self._selector = self._held.enter_context(selectors.DefaultSelector())
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._unread: dict[socket.socket, bytearray] = {}

    def _on_this_machine(self) -> tuple[socket.socket, str]:
        folder = tempfile.mkdtemp(prefix="bsfind-")
        if len(folder) > _LONGEST_SOCKET:
            shutil.rmtree(folder, ignore_errors=True)
            folder = tempfile.mkdtemp(prefix="bsfind-", dir="/tmp")
        self._held.callback(shutil.rmtree, folder, ignore_errors=True)
        address = str(Path(folder, "s"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen()
        return listener, address

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._unread:
            connection.close()
        self._held.close()

    def read_all(self, seconds: float) -> None:
        """Take in what was written by processes that have ended."""
        end = time.monotonic() + seconds
        while self.read(0.0) and time.monotonic() < end:
            pass

    def read(self, seconds: float) -> bool:
        """Wait so long for something to come in, and take it in; tell whether there was something."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            if key.fileobj is self._listener:
                with contextlib.suppress(OSError):
                    connection, _ = self._listener.accept()
                    connection.setblocking(False)
                    self._unread[connection] = bytearray()
                    self._selector.register(connection, selectors.EVENT_READ)
            else:
                self._receive(key.fileobj)  # type: ignore[arg-type]
        return bool(ready)

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        unread = self._unread[connection]
        unread += data
        if not data or len(unread) > LONGEST_RECORD:
            self._selector.unregister(connection)
            connection.close()
            del self._unread[connection]
            return
        if b"\n" not in data:
            return
        *lines, rest = bytes(unread).split(b"\n")
        self._unread[connection] = bytearray(rest)
        for record in (read_record(line, self.key) for line in lines):
            if record is not None:
                self.records.append(record)


def _over_tcp(listen: tuple[str, int]) -> tuple[socket.socket, tuple[str, int]]:
    """Return a socket that listens on an address of this machine, and how ranks reach it."""
    host, port = listen
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"`--listen`: nothing can listen on {host}, port {port or 'any'}: {error.strerror or error}",
            hint="name this machine as the others reach it, or its address in their network",
        ) from None
    return listener, (host, int(listener.getsockname()[1]))
