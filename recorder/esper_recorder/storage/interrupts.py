"""Signals do not interrupt a call of the recorder: their handlers run when its bookkeeping is done.

A handler written in Python, such as that of Ctrl-C, runs in the main thread between any two of its instructions and may
raise there. Within a call that would lose the update, or leave a lock held, for which the writer's thread then waits
for ever. So the handlers are replaced while a call runs, and called at its end; nothing stays installed in between.

Covers: every signal with a handler written in Python; handlers that raise, exit, or do neither.
Does not cover: signals that end the process without Python (SIGKILL, SIGTERM by default); a signal that arrives in the
few instructions before the handlers are replaced interrupts before the call, which has then not been made.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

try:  # without the conversion to enumerations, which takes ten times as long
    from _signal import getsignal as _get_handler  # type: ignore[import-not-found]
    from _signal import signal as _set_handler
except ImportError:
    from signal import getsignal as _get_handler
    from signal import signal as _set_handler

_SLICE_SECONDS = 0.05
_TRIES = 100
_INTERRUPT = int(signal.SIGINT)
_NUMBERS = tuple(int(number) for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP))


class SignalDeferral:
    """A context in which no signal handler runs; it may be entered within itself. Only the main thread needs it."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._numbers: tuple[int, ...] = (_INTERRUPT,)
        self._handlers: dict[int, Any] = {}  # number -> its handler, before it was replaced
        self._inside = False
        self._depth = 0
        self._pending: list[tuple[int, FrameType | None]] = []
        self._raised: BaseException | None = None
        self._note_handler = self._note  # one object, so that it can be recognised

    def find_handlers(self) -> None:
        """Find the signals that have handlers written in Python; they rarely change, so now and then is enough."""
        if threading.get_ident() == self._main and not self._inside:
            self._numbers = tuple([number for number in _NUMBERS if callable(_get_handler(number))])

    def __enter__(self) -> None:
        if threading.get_ident() != self._main:
            return
        if self._inside and any(_get_handler(number) is self._note_handler for number in self._numbers):
            self._depth += 1
            return
        for _ in range(_TRIES):
            try:
                self._inside = True
                for number in self._numbers:
                    handler = _get_handler(number)
                    if callable(handler) and handler is not self._note_handler:
                        # Kept first: another signal's handler may run before the next line, and raise.
                        self._handlers[number] = handler
                        _set_handler(number, self._note_handler)
                return
            except BaseException as error:  # of a handler that ran before it was replaced: raised after the call
                self._raised = self._raised or error

    def __exit__(self, *exception: object) -> None:
        if threading.get_ident() != self._main:
            return
        if self._depth:
            self._depth -= 1
            return
        for _ in range(_TRIES):
            try:
                for number in self._numbers:
                    if _get_handler(number) is self._note_handler:
                        _set_handler(number, self._handlers[number])
                break
            except BaseException as error:  # of a handler that was restored already
                self._raised = self._raised or error
        self._inside = False
        if self._pending or self._raised is not None:
            pending, self._pending = self._pending, []
            raised, self._raised = self._raised, None
            try:
                _deliver(pending, self._handlers)
            finally:
                if raised is not None:
                    raise raised

    @property
    def waiting(self) -> bool:
        """Whether a signal waits for the end of the context in this thread."""
        return (bool(self._pending) or self._raised is not None) and threading.get_ident() == self._main

    def wait(self, done: Callable[[float], bool], timeout: float | None) -> bool:
        """Wait for `done`, which waits for as many seconds as it is given; give up once a signal waits."""
        left = math.inf if timeout is None else timeout
        while True:
            # Added up, not read from a clock: a trainer may have replaced it, or set it.
            seconds = max(min(_SLICE_SECONDS, left), 0.0)
            if done(seconds):
                return True
            left -= seconds
            if left <= 0 or self.waiting:
                return False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._inside:
            # An exception has left the handler behind: put the real one back, and call it.
            _set_handler(number, self._handlers[number])
            self._handlers[number](number, frame)
        elif all(number != other for other, _ in self._pending):  # as the system does, which counts none either
            self._pending.append((number, frame))

    def _forget_in_child(self) -> None:
        for number, handler in self._handlers.items():
            if threading.current_thread() is threading.main_thread() and _get_handler(number) is self._note_handler:
                _set_handler(number, handler)
        self.__init__()  # type: ignore[misc]


def _deliver(pending: list[tuple[int, FrameType | None]], handlers: dict[int, Any]) -> None:
    """Call the handlers of signals in the order in which these came, all of them whatever each raises."""
    if pending:
        (number, frame), *rest = pending
        try:
            handlers[number](number, frame)
        finally:
            _deliver(rest, handlers)


signals_deferred = SignalDeferral()
os.register_at_fork(after_in_child=signals_deferred._forget_in_child)
