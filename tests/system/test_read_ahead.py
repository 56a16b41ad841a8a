"""Reads that are begun before they are asked for: in order, within bounds, and their errors in their place."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from featcache.system.read_ahead import ReadAhead


def test_every_read_is_done_once_and_answers_its_own_place() -> None:
    """By several takers, with some that fail."""
    calls: list[int] = []

    def read(index: int) -> bytes:
        calls.append(index)
        time.sleep(0.001 * (index % 3))
        if index % 50 == 7:
            raise ValueError(str(index))
        return str(index).encode()

    def take(index: int) -> str:
        try:
            return ahead.take(index).decode()
        except ValueError as error:
            return f"failed {error}"

    with ReadAhead(read, 300, size=len, threads=16) as ahead, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(take, range(300)))
    assert answers == [f"failed {i}" if i % 50 == 7 else str(i) for i in range(300)]
    assert sorted(calls) == list(range(300))


def test_who_takes_one_costs_few() -> None:
    """Reads ahead grow with what is taken."""
    calls: list[int] = []
    with ReadAhead(lambda index: calls.append(index) or b"x", 10_000, size=len) as ahead:
        ahead.take(0)
        time.sleep(0.05)
        assert len(calls) <= 16
        for index in range(1, 20):
            ahead.take(index)
        time.sleep(0.1)
        assert 200 < len(calls) <= 20 + 256


def test_what_waits_to_be_taken_stays_within_its_bytes() -> None:
    """A thousand images of 1 MB, 20 MB at most: whatever their number allows."""
    held, most, lock = 0, 0, threading.Lock()

    def read(index: int) -> bytes:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return bytes(1 << 20)

    with ReadAhead(read, 200, size=len, threads=8, most_bytes=20 << 20) as ahead:
        for index in range(200):
            ahead.take(index)
            with lock:
                held -= 1
            time.sleep(0.001)
    assert most <= 20 + 9


def test_a_closed_one_begins_no_further_read() -> None:
    calls: list[int] = []
    with ReadAhead(lambda index: calls.append(index) or time.sleep(0.01) or b"", 1000, size=len, threads=2) as ahead:
        for index in range(8):
            ahead.take(index)
    time.sleep(0.1)
    before = len(calls)
    time.sleep(0.1)
    assert len(calls) == before < 1000
    with pytest.raises(RuntimeError):
        ahead.take(999)
