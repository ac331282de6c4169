"""Signals are remembered within the block, and only there."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wholegrain.train.preempt import StopRequest

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
# Asked, then stuck in C code: Python's own handlers do not run any more.
STUCK = """
import ctypes, os, signal, sys, time
from wholegrain.train.preempt import StopRequest
with StopRequest(same_s=float(sys.argv[1])) as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.received.name, flush=True)
    libc = ctypes.CDLL(None)
    while True:
        libc.pause()
"""


@BOTH
def test_a_signal_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
    assert signal.getsignal(number) is before


@BOTH
def test_the_same_signal_soon_after_is_the_same_request(number: signal.Signals) -> None:
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.received is number


def test_another_signal_is_a_request_of_its_own() -> None:
    with StopRequest(same_s=0.2) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM


def test_asked_again_later_the_process_ends_even_where_it_is_stuck() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, "0.3"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "SIGTERM\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.6)
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_a_block_that_was_asked_leaves_nothing_behind() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        threads = set(threading.enumerate())
        with StopRequest(same_s=0.1):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert set(threading.enumerate()) <= threads
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before
