# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""SIGTERM, by which clusters and containers ask a process to end: work stops where what is done can be kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ('EXIT_CODE', 'SIGTERM', 'StopRequest')

#: Of a process that stopped because it was asked to: what a shell reports of one that the signal itself has ended.
EXIT_CODE = 128 + signal.SIGTERM


class StopRequest:
    """Counts the signals that came since :meth:`listen`. Who works asks at a good moment, and no step is torn.

    Attributes:
        count: of the signals. From the second on the sender is in a hurry.
    """

    def __init__(self) -> None:
        """Initialize a new StopRequest instance, which does not listen yet."""
        self.count = 0
        self._answer = ''
        self._forward: Callable[[int], None] | None = None

    def __bool__(self) -> bool:
        """Return whether this process was asked to stop, since it listens and as long as it does."""
        return self.count > 0 and self._listens

    @property
    def _listens(self) -> bool:
        """Whether signals are counted."""
        return signal.getsignal(signal.SIGTERM) == self._receive

    def listen(self, answer: str = '', forward: Callable[[int], None] | None = None) -> None:
        """Count signals from now on, in place of any other handler; does nothing in another thread than the main one.

        Args:
            answer: what to print when the first one comes.
            forward: called with the first one's number, for processes that hear of no signal otherwise.
        """
        if threading.current_thread() is not threading.main_thread():  # Python has no handlers there
            return
        if not self._listens:
            self.count, self._answer = 0, ''
            signal.signal(signal.SIGTERM, self._receive)
        self._answer, self._forward = answer or self._answer, forward

    @contextmanager
    def listening(self, answer: str = '') -> Iterator[None]:
        """Listen for a while; afterwards the handler before is back."""
        before = signal.getsignal(signal.SIGTERM)
        self.listen(answer)
        try:
            yield
        finally:
            if self._listens:
                signal.signal(signal.SIGTERM, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Count a signal."""
        self.count += 1
        if self.count == 1:
            if self._answer:
                os.write(2, f'{self._answer}\n'.encode())  # the program may be in the middle of a print
            if self._forward is not None:
                self._forward(number)


#: The request of this process: a signal is for the whole of it.
SIGTERM = StopRequest()
