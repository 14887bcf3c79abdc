"""A lookout for ranks that are gone: each says that it is there, and on leaving why, so that none waits in vain.

A rank that waits for a sum on a GPU does not notice by itself that another has died, for minutes. A thread of each rank
therefore counts up in the store that `torchrun` keeps, and looks at the others' counts. The thread counts beside
whatever else the rank does; only outside `training`, where a library may hold Python's lock for long while it trains a
tokenizer or packs, the others are more patient.

A count that stops is how a rank is missed that stands still, or whose machine is gone. The end of a process is noticed
at once by the rank before it in the ring of connections (`jepamba.ring`), which tells all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch.distributed as dist

from jepamba.distributed import World
from jepamba.errors import SIGNALS, UserError, in_words
from jepamba.ring import Ring

EVERY = 1.0
"""Seconds between two counts."""
SILENCE = 30.0
"""Seconds without a count after which a rank in `training` is gone."""
ABSENCE = 300.0
"""Seconds without a count after which any rank is."""
GRACE = 10.0
"""Seconds that a rank has to notice by itself, and to end in order, once another is known to have gone."""
_LOST = 2
_EXPECTED = b"!"
"""Ends the count of a rank that is in `training`."""


@contextlib.contextmanager
def watched(ranks: World) -> Iterator[None]:
    """While entered, the end of another rank ends this one: with a `UserError` that says which and why where this one
    notices by itself, else, after `GRACE`, by ending the process with that line and exit code 2."""
    if ranks.world_size == 1:
        yield
        return
    global _posted
    lookout = _posted = _Lookout(ranks)
    try:
        with _signals(lookout):
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        lookout.fail(error)
        raise
    except Exception as error:
        if _broken(error):
            with _undisturbed():
                reason = lookout.missing()
            raise UserError(reason) from error
        lookout.fail(error)
        raise
    else:
        lookout.leave("")
    finally:
        _posted = None
        lookout.close()


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
            if number in SIGNALS and signal.getsignal(number) in (terminate, signal.default_int_handler):
                lookout.leave(SIGNALS[number])
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
def _undisturbed() -> Iterator[None]:
    """While entered, SIGTERM does not end this rank, which is about to end and has something to say before: torchrun
    sends it to all that are left once one has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


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

    def __init__(self, ranks: World) -> None:
        self.rank = ranks.rank
        self.others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        self.stop = threading.Event()
        self._store = self._connected()
        self._count, self._mark = 0, b""
        self._ring, self._after = Ring(os.environ["MASTER_ADDR"]), (self.rank + 1) % ranks.world_size
        self._store.set(self._key("address", self.rank), self._ring.address())
        self._beat()
        # Nobody is missed before it has been there.
        try:
            ranks.barrier(ABSENCE)
        except RuntimeError as error:
            raise UserError(f"the other ranks did not all come within {ABSENCE:.0f} s: start them all anew") from error
        self._ring.join(self._store.get(self._key("address", self._after)).decode())
        self._answered = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name="lookout", daemon=True) for work in (self._watch, self._watch_store)
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

    def fail(self, error: BaseException) -> None:
        """Say that this rank goes because of `error`."""
        self.leave(in_words(error))

    def close(self) -> None:
        """Look out no longer. Whoever left without a word did so since another was gone, and is not to be blamed."""
        self.stop.set()
        self._ring.leave()
        # None of them may be in the middle of a question to the store when Python ends.
        for thread in self._threads:
            thread.join(3 * EVERY)

    def missing(self) -> str:
        """One line on who is gone and why, some seconds after it was noticed that somebody is."""
        deadline, before, reason = time.monotonic() + 3 * EVERY, self._counts(), ""
        # Rank 0 stays to the end of it: with it goes the store, which the others still ask.
        while time.monotonic() < deadline and not (reason and self.rank):
            with contextlib.suppress(RuntimeError):
                reason = reason or self._said()
            time.sleep(0.1)
        if reason:
            return reason
        if not (now := self._counts()):
            return self._store_gone()
        guess = self._gone([rank for rank in self.others if now[rank] == before.get(rank)])
        # What broke here may not have broken elsewhere.
        self.leave(guess)
        return guess

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
        """What a rank said that left in trouble, or which ended without a word; empty: none did."""
        for rank in self.others:
            if self._left(rank):
                reason = self._store.get(self._key("left", rank)).decode()
                if reason != "-":
                    return f"rank {rank} ended: {reason}"
        ended = self._key("ended", 0)
        if self._ring.broken and not self._left(self._after):
            # The first is named; who goes next may do so in consequence.
            self._store.compare_set(ended, "", str(self._after))
        return self._gone([int(self._store.get(ended))]) if self._store.check([ended]) else ""

    def _left(self, rank: int) -> bool:
        return bool(self._store.check([self._key("left", rank)]))

    def _gone(self, ranks: list[int]) -> str:
        listed = ", ".join(map(str, ranks))
        named = f"ranks {listed} are" if len(ranks) > 1 else f"rank {listed} is" if ranks else "another rank is"
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
                silent = [rank for rank, (value, last) in seen.items() if now - last > _limit(value)]
                if silent and not reason:
                    reason = self._gone(silent)
                self._answered = now
            except RuntimeError:
                reason = self._store_gone()
            if reason:
                self._end(reason)

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
            try:
                self._ring.leave()
                print(f"jepamba: {reason}", file=sys.stderr, flush=True)
            finally:
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
