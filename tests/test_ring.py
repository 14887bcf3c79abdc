"""The ring of connections between ranks: who ended without a farewell, and who merely seems to have."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from jepamba import ring
from jepamba.ring import Ring

RANK = """
from jepamba.ring import Ring
place = Ring("127.0.0.1")
print(place.address(), flush=True)
place.join(input())
input()
place.leave()
"""


class Neighbour:
    """The other of two ranks, as a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@contextmanager
def neighbour() -> Iterator[Neighbour]:
    with subprocess.Popen([sys.executable, "-c", RANK], stdin=-1, stdout=-1, text=True) as process:
        try:
            yield Neighbour(process)
        finally:
            process.kill()


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def met(place: Ring) -> bool:
    """Whether it knows both its neighbours."""
    return soon(lambda: place._before is not None and place._after is not None)


def ended() -> bool:
    """Whether no thread of a ring is left."""
    return soon(lambda: all(thread.name != "ring" for thread in threading.enumerate()))


@contextmanager
def pair() -> Iterator[tuple[Ring, Neighbour]]:
    """This rank and the other, once they have met."""
    with neighbour() as other:
        place = Ring("127.0.0.1")
        other.tell(place.address())
        place.join(other.address)
        assert met(place)
        yield place, other
        place.leave()
    assert ended()


def test_a_process_that_is_killed_is_noticed() -> None:
    with pair() as (place, other):
        assert not place.broken
        other.process.kill()
        assert soon(lambda: place.broken)


def test_one_that_stands_still_or_says_farewell_is_not_taken_for_dead() -> None:
    with pair() as (place, other):
        other.process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert not place.broken
        other.process.send_signal(signal.SIGCONT)
        other.tell()
        assert other.process.wait(5) == 0
        assert soon(lambda: place._after is not None and place._after.fileno() == -1)
        assert not place.broken


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_all_meet_and_part(size: int, host: str) -> None:
    places = [Ring(host) for _ in range(size)]
    for rank, place in enumerate(places):
        place.join(places[(rank + 1) % size].address())
    assert all(met(place) for place in places)
    for place in places:
        place.leave()
    assert ended()
    assert not any(place.broken for place in places)


def test_the_first_to_part_ends_its_own_threads_alone() -> None:
    places = [Ring("127.0.0.1"), Ring("127.0.0.1")]
    for place, other in zip(places, reversed(places), strict=True):
        place.join(other.address())
    assert all(met(place) for place in places)
    places[0].leave()
    assert ended()
    places[1].leave()
    assert not places[0].broken
    assert not places[1].broken


def test_a_stranger_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "MANNERS", 0.1)
    first, second = Ring("127.0.0.1"), Ring("127.0.0.1")
    host, port, _, answer = first.address().split()
    strangers = [socket.create_connection((host, int(port))) for _ in range(3)]
    strangers[0].sendall(bytes(1000))
    strangers[1].sendall(bytes.fromhex(answer))
    first.join(second.address())
    # It is closed, and the real neighbour still gets in.
    for stranger in strangers:
        stranger.settimeout(5)
        with stranger, suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    second.join(first.address())
    assert met(first)
    assert met(second)
    first.leave()
    second.leave()
    assert ended()


def test_who_answers_wrongly_and_goes_is_not_taken_for_a_rank() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        place = Ring("127.0.0.1")
        place.join(f"127.0.0.1 {stranger.getsockname()[1]} {'00' * 16} {'11' * 16}")
        guest, _ = stranger.accept()
        guest.sendall(bytes(16))
        guest.close()
        place.leave()
    assert ended()
    assert not place.broken


@pytest.mark.parametrize("address", ["", "127.0.0.1 9 00 11", "words", "127.0.0.1 port 00 11", "127.0.0.1 9 no hex"])
def test_a_rank_that_cannot_be_reached_is_done_without(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "PATIENCE", 0.2)
    place = Ring("127.0.0.1")
    place.join(address)
    # Nor does anybody come.
    assert ended()
    assert not place.broken
    place.leave()


def test_a_host_without_an_address_makes_no_ring() -> None:
    place = Ring("no-such-host.invalid")
    assert place.address() == ""
    place.join("")
    place.leave()
    assert ended()
