"""Ctrl-C during a run: it is heard, and not in the middle of a checkpoint."""

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
    """Send a Ctrl-C again that Python has ignored.

    Python raises KeyboardInterrupt wherever the main thread happens to be. In a destructor, or in a callback of a weak
    reference or of the garbage collector, no exception can be raised: Python reports it and continues.
    """
    report = sys.unraisablehook

    def send_again(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            # From another thread and later: this one is still where nothing can be raised.
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
    """Raise the KeyboardInterrupt of a Ctrl-C after this block; that of a second Ctrl-C at once.

    A handler that the user has installed is left alone.
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
