"""A ring of connections, from each rank to the next, by which the end of a process is noticed at once.

The system closes the connections of a process that ends, however it ends; one that ends in order says farewell first.
A process that merely stands still keeps them open. Where a connection cannot be made (a firewall), the ring does
without it.

These are Python's own sockets: a thread that still waits in one when Python ends is harmless, where one that waits in
PyTorch's C++ ends the process by SIGABRT.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from hmac import compare_digest

PATIENCE = 10.0
"""Seconds in which a connection must have been made."""
MANNERS = 1.0
"""Seconds that who knocks has to say who it is."""
_BYTES = 16
_FAREWELL = b"!"


class Ring:
    """This rank's place in it, once it has been published where the rank before finds it, and `join` was called.

    Argument: `host`, a machine that all ranks reach; this one listens on the address by which it reaches that.
    """

    def __init__(self, host: str) -> None:
        self.broken = False
        """Whether the process of the rank after has ended without a farewell."""
        # The rank before shows the one and is shown the other: neither takes a stranger for its neighbour.
        self._question, self._answer = secrets.token_bytes(_BYTES), secrets.token_bytes(_BYTES)
        self._door = _door(host)
        self._before: socket.socket | None = None
        self._after: socket.socket | None = None
        self._left = False
        self._lock = threading.Lock()

    def address(self) -> str:
        """What the rank before has to know; empty if this rank cannot be reached."""
        if self._door is None:
            return ""
        host, port = self._door.getsockname()[:2]
        return f"{host} {port} {self._question.hex()} {self._answer.hex()}"

    def join(self, after: str) -> None:
        """Wait for the rank before, and listen to the rank whose `address` is `after`, in threads that `leave` ends."""
        for work in (self._let_in, lambda: self._listen(after)):
            threading.Thread(target=work, name="ring", daemon=True).start()

    def leave(self) -> None:
        """Say farewell to the rank before, and listen no longer."""
        with self._lock:
            self._left = True
            if self._before is not None:
                with contextlib.suppress(OSError):
                    self._before.sendall(_FAREWELL)
                self._before.close()
            # Each is closed by the thread that waits in it.
            for waiting in (self._door, self._after):
                if waiting is not None:
                    with contextlib.suppress(OSError):
                        waiting.shutdown(socket.SHUT_RDWR)

    def _let_in(self) -> None:
        """Wait for the rank before."""
        if self._door is None:
            return
        until = time.monotonic() + PATIENCE
        with self._door, contextlib.suppress(OSError):
            while self._before is None and not self._left:
                self._door.settimeout(max(1e-3, until - time.monotonic()))
                self._meet(self._door.accept()[0])

    def _meet(self, guest: socket.socket) -> None:
        """Keep the connection if it is from the rank before."""
        with contextlib.suppress(OSError):
            if compare_digest(_read(guest, MANNERS), self._question):
                with self._lock:
                    if not self._left:
                        guest.sendall(self._answer)
                        self._before = guest
                        return
        guest.close()

    def _listen(self, address: str) -> None:
        """Find the rank after, and wait for its farewell."""
        with contextlib.suppress(OSError, ValueError):
            host, port, question, answer = address.split()
            with socket.create_connection((host, int(port)), PATIENCE) as after:
                after.sendall(bytes.fromhex(question))
                if not compare_digest(_read(after, PATIENCE), bytes.fromhex(answer)):
                    return
                with self._lock:
                    if self._left:
                        return
                    self._after = after
                after.settimeout(None)
                try:
                    word = after.recv(1)
                except ConnectionResetError:
                    word = b""
                # A connection that timed out (`OSError`) says nothing of the process.
                self.broken = not word and not self._left


def _door(host: str) -> socket.socket | None:
    """A listening socket on the address by which this machine reaches `host`; None if there is no way."""
    with contextlib.suppress(OSError):
        for family, _, _, _, there in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError):
                with socket.socket(family, socket.SOCK_DGRAM) as way:
                    # Nothing is sent: the system chooses the address alone.
                    way.connect(there)
                    here = way.getsockname()
                return socket.create_server((here[0], 0, *here[2:]), family=family)
    return None


def _read(connection: socket.socket, seconds: float) -> bytes:
    """The first words of a connection, which must come within so many seconds; fewer bytes if it ends before."""
    until, words = time.monotonic() + seconds, b""
    while len(words) < _BYTES:
        # Never 0, which would be no timeout but a socket that does not wait.
        connection.settimeout(max(1e-3, until - time.monotonic()))
        if not (more := connection.recv(_BYTES - len(words))):
            break
        words += more
        if time.monotonic() > until:
            break
    return words
