"""Steps that an interrupt may come before or after, but not into."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended, even if it raises.

    Other threads than the main one get none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        # None: set by something other than Python, which cannot be put back from here.
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        if held:
            # To whatever takes it now: a handler, or the system's own way.
            signal.raise_signal(signal.SIGINT)
