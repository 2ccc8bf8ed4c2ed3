"""Ctrl-C during a run: it is not lost, and does not interrupt the writing of a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOMENT = 0.05  # seconds


@contextmanager
def heard() -> Iterator[None]:
    """Repeat a Ctrl-C that Python has ignored.

    Python raises KeyboardInterrupt wherever the main thread is. If that is in a destructor, or in a callback of a weak
    reference or the garbage collector, the exception cannot propagate: Python reports it and continues.
    """
    report = sys.unraisablehook

    def send_again(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            # From another thread and later, because an exception in this thread still cannot propagate.
            again = threading.Timer(_MOMENT, signal.raise_signal, [signal.SIGINT])
            again.daemon = True
            again.start()
        else:
            report(unraisable)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = report


@contextmanager
def postponed() -> Iterator[None]:
    """Delay the KeyboardInterrupt of a Ctrl-C until this block ends. A second Ctrl-C raises immediately.

    A signal handler that the user has installed stays in place.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = 0

    def count(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, count)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
