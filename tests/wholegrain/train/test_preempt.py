"""Signals are remembered within the block, and only there."""

import os
import signal

import pytest

from wholegrain.train.preempt import StopRequest

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])


@BOTH
def test_a_signal_is_remembered_and_the_second_one_kills(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        assert signal.getsignal(number) is signal.SIG_DFL
    assert signal.getsignal(number) is before


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before
