"""What a process does when its terminal goes away: signals, and pipes that nobody reads any more.

It imports little, since it comes before everything else in `python -m ali_jax.main`.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GONE = (errno.EPIPE, errno.EIO)  # errors of writing to a pipe, or to a terminal, that was closed


def set_up() -> None:
    """Make Ctrl-C end the process at once, and make output to a closed pipe or terminal vanish silently.

    Python turns SIGINT into an exception, which libraries that are being imported swallow or turn into
    errors of their own. Until there is something to save, the signal's default action is better. A SIGINT
    that is ignored, as in a background job of a script, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)


class Unbreakable:
    """A text stream that goes on, to nowhere, when the reader of its pipe or its terminal is gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, as a text stream does."""
        with self._to_nowhere_if_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, as a text stream does."""
        with self._to_nowhere_if_gone():
            self._stream.flush()

    @contextlib.contextmanager
    def _to_nowhere_if_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # takes what is still buffered, too
            os.close(nowhere)


@contextlib.contextmanager
def signals_noted(numbers: Sequence[int] = STOP_SIGNALS) -> Iterator[list[int]]:
    """Collect signals in a list, so that a run can save before it stops; a second one ends the process.

    A signal that is ignored stays ignored: SIGHUP, as `nohup` wants it, or SIGINT in a background job of a
    script. Only the main thread can set handlers; in another one, nothing is collected.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    before = [signal.signal(number, note) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
