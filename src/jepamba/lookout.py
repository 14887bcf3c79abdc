"""A lookout for ranks that are gone: each says that it is there, and on leaving why, so that none waits in vain.

A rank that waits for a sum on a GPU does not notice by itself that another has died, for minutes. A thread of each rank
therefore counts up in the store that `torchrun` keeps, and looks at the others' counts. The thread counts beside
whatever else the rank does; only outside `training`, where a library may hold Python's lock for long while it trains a
tokenizer or packs, the others are more patient.

A count that stops is how a rank is missed that stands still, or whose machine is gone. Of a process that ends, the
system closes the connections: another thread of each rank waits for a word of farewell from the next, and tells all if
the connection breaks instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from jepamba.errors import UserError
from jepamba.ranks import Ranks, in_words

EVERY = 1.0
"""Seconds between two counts."""
SILENCE = 30.0
"""Seconds without a count after which a rank in `training` is gone."""
ABSENCE = 300.0
"""Seconds without a count after which any rank is."""
GRACE = 10.0
"""Seconds that a rank has to notice by itself, and to end in order, once another is known to have gone."""
_LOST = 2
_SIGNALS = {signal.SIGINT: "it was interrupted", signal.SIGTERM: "it was sent SIGTERM"}
"""Which signals end a rank, and what it then says."""
_FAREWELL = 1 << 30
"""The tag of a word to the rank before, beside the decisions of the same group, whose barriers count theirs from 0."""
_EXPECTED = b"!"
"""Ends the count of a rank that is in `training`."""


@contextlib.contextmanager
def watched(ranks: Ranks) -> Iterator[None]:
    """While entered, the end of another rank ends this one: with a `UserError` that says which and why where this one
    notices by itself, else, after `GRACE`, by ending the process with that line and exit code 2."""
    if ranks.size == 1:
        yield
        return
    global _posted
    lookout = _posted = _Lookout(ranks)
    try:
        with _signals(lookout):
            yield
    except KeyboardInterrupt:
        lookout.leave(_SIGNALS[signal.SIGINT])
        raise
    except SystemExit:
        lookout.leave(_SIGNALS[signal.SIGTERM])
        raise
    except Exception as error:
        if _broken(error):
            raise UserError(lookout.missing()) from error
        lookout.fail(error)
        raise
    else:
        lookout.part()
    finally:
        lookout.stop.set()
        _posted = None


@contextlib.contextmanager
def _signals(lookout: _Lookout) -> Iterator[None]:
    """While entered, SIGTERM and SIGINT end this rank with a word to the others, unless a handler of the run has them.

    Handlers run between two lines of Python, in the main thread: not while it waits for another rank. A thread of its
    own therefore reads what the system's handler writes, and ends the process where the main thread does not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def listen() -> None:
        while came := os.read(ours, 1):
            number = signal.Signals(came[0])
            if number in _SIGNALS and signal.getsignal(number) in (terminate, signal.default_int_handler):
                lookout.leave(_SIGNALS[number])
                if not lookout.stop.wait(GRACE):
                    os._exit(128 + number)
        os.close(ours)

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    handler, wakeup = signal.signal(signal.SIGTERM, terminate), signal.set_wakeup_fd(theirs)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        os.close(theirs)


@contextlib.contextmanager
def training() -> Iterator[None]:
    """While entered, here and on the others, a sign of life is expected of this rank every moment: in training, and in
    scoring that the ranks share."""
    if _posted is None:
        yield
        return
    lookout = _posted
    lookout.expect(True)
    try:
        yield
    except Exception as error:
        # Before all else that the error ends, such as waiting for a disk.
        if not _broken(error):
            lookout.fail(error)
        raise
    finally:
        lookout.expect(False)


class _Lookout:
    """The threads, and what they know."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.rank = ranks, ranks.rank
        self.others = [rank for rank in range(ranks.size) if rank != ranks.rank]
        self.stop = threading.Event()
        self._store = self._connected()
        self._count, self._mark = 0, b""
        self._beat()
        # Nobody is missed before it has been there.
        try:
            ranks.barrier(ABSENCE)
        except RuntimeError as error:
            raise UserError(f"the other ranks did not all come within {ABSENCE:.0f} s: start them all anew") from error
        self._answered = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name="lookout", daemon=True)
            for work in (self._watch, self._watch_store, self._wait_for_farewell)
        ]
        for thread in self._threads:
            thread.start()

    def expect(self, on: bool) -> None:
        """Whether the others may soon take silence of this rank for its end."""
        self._mark = _EXPECTED if on else b""
        with contextlib.suppress(RuntimeError):
            self._beat()

    def leave(self, reason: str) -> None:
        """Say that this rank goes, and why; nothing if in order."""
        with contextlib.suppress(RuntimeError):
            self._store.set(self._key("left", self.rank), reason or "-")

    def part(self) -> None:
        """Go in order, when all do."""
        self.leave("")
        word, before = torch.zeros(1), (self.rank - 1) % self.ranks.size
        with contextlib.suppress(RuntimeError):
            sent = dist.isend(word, before, self.ranks.decisions, _FAREWELL)
            assert sent is not None
            sent.wait(timedelta(seconds=GRACE))
        self.stop.set()
        for thread in self._threads:
            thread.join(GRACE)

    def fail(self, error: Exception) -> None:
        """Say that this rank goes because of `error`."""
        self.leave(in_words(error))

    def missing(self) -> str:
        """One line on who is gone and why, some seconds after it was noticed that somebody is."""
        deadline, before = time.monotonic() + 3 * EVERY, self._counts()
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                if reason := self._said():
                    return reason
            time.sleep(0.1)
        now = self._counts()
        silent = [rank for rank in self.others if rank not in now or now[rank] == before.get(rank)]
        return self._gone(silent)

    def _connected(self) -> Any:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(host, port, is_master=False)  # type: ignore[attr-defined]

    def _key(self, what: str, rank: int) -> str:
        # Not mixed up with what was said before torchrun started the processes anew.
        return f"lookout/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{what}/{rank}"

    def _beat(self) -> None:
        self._count += 1
        self._store.set(self._key("count", self.rank), str(self._count).encode() + self._mark)

    def _counts(self) -> dict[int, bytes]:
        """The others' counts; none if the store is gone, which lives in torchrun or in rank 0."""
        with contextlib.suppress(RuntimeError):
            return {rank: self._store.get(self._key("count", rank)) for rank in self.others}
        return {}

    def _said(self) -> str:
        """What a rank said that left in trouble; empty: none did."""
        for rank in self.others:
            if self._left(rank):
                reason = self._store.get(self._key("left", rank)).decode()
                if reason != "-":
                    return f"rank {rank} ended: {reason}"
        return ""

    def _left(self, rank: int) -> bool:
        return bool(self._store.check([self._key("left", rank)]))

    def _gone(self, ranks: list[int]) -> str:
        named = f"rank {', '.join(map(str, ranks))} is" if ranks else "another rank is"
        return f"{named} gone without a word (killed, or out of memory?); `jepamba resume` goes on"

    def _watch(self) -> None:
        seen = {rank: (b"", time.monotonic()) for rank in self.others}
        while not self.stop.wait(EVERY):
            try:
                self._beat()
                reason, now = self._said(), time.monotonic()
                for rank, value in self._counts().items():
                    if value != seen[rank][0] or self._left(rank):
                        seen[rank] = value, now
                ended = self._ended()
                silent = [rank for rank, (value, last) in seen.items() if rank == ended or now - last > _limit(value)]
                if silent and not reason:
                    reason = self._gone(silent)
                self._answered = now
            except RuntimeError:
                reason = self._store_gone()
            if reason:
                self._end(reason)

    def _wait_for_farewell(self) -> None:
        """Tell all if the next rank ends without one, and without a reason."""
        following = (self.rank + 1) % self.ranks.size
        try:
            dist.recv(torch.zeros(1), following, self.ranks.decisions, _FAREWELL)
        except RuntimeError:
            with contextlib.suppress(RuntimeError):
                if not self._left(following):
                    self._store.set(self._key("ended", 0), str(following))

    def _ended(self) -> int | None:
        """A rank whose process has ended without a word."""
        key = self._key("ended", 0)
        return int(self._store.get(key)) if self._store.check([key]) else None

    def _watch_store(self) -> None:
        """See to it that the store answers: with its machine gone, asking it takes forever."""
        while not self.stop.wait(EVERY):
            if time.monotonic() - self._answered > _limit(self._mark):
                self._end(self._store_gone())

    def _store_gone(self) -> str:
        return self._gone([0] if self.rank else [])

    def _end(self, reason: str) -> None:
        """Wait for this rank to end by itself; end it if it does not."""
        if not self.stop.wait(GRACE):
            print(f"jepamba: {reason}", file=sys.stderr, flush=True)
            os._exit(_LOST)


def _limit(count: bytes) -> float:
    """Seconds for which a rank with that count may be silent."""
    return SILENCE if count.endswith(_EXPECTED) else ABSENCE


_posted: _Lookout | None = None
"""This process's, as there is one group of ranks in a process."""


def _broken(error: Exception) -> bool:
    """Whether this is what communication raises when a peer is gone."""
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in said or "nccl" in said)
