"""Signals to stop: the first is caught, the second ends the process, handlers come back."""

import signal
import threading

import pytest

from vdiff.training.signals import SIGNALS, Interrupted, catch_signals, interruptible


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_caught_and_handlers_are_restored(number):
    before = handlers()
    with catch_signals() as caught:
        assert caught() == 0
        signal.raise_signal(number)
        assert caught() == number
        assert all(handler is signal.SIG_DFL for handler in handlers())  # the next one ends it
    assert handlers() == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_the_block(number):
    before = handlers()
    with pytest.raises(Interrupted) as error, interruptible():
        signal.raise_signal(number)
    assert error.value.number == number
    assert handlers() == before


def test_an_ignored_signal_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with catch_signals() as caught:
            signal.raise_signal(signal.SIGTERM)
            assert caught() == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_changes_no_handler():
    seen: list[bool] = []

    def work() -> None:
        before = handlers()
        with catch_signals():
            seen.append(handlers() == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
