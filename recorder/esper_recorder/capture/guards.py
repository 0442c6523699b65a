"""How a call of the recorder is made.

Covers:
- what a call raises is counted, logged once and stored as a gap, and not raised into the trainer;
- calls from several threads take turns, so that none finds an update half recorded;
- a signal, such as Ctrl-C, is handled when the call is over. For most calls its handler is put off; for those that a
  loop makes hundreds of times an update that costs too much, and what is left of an interrupted call is done first.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from esper_recorder.arguments import BadCall, wrong_arguments
from esper_recorder.capture.open_update import OpenUpdate
from esper_recorder.storage.interrupts import signals_deferred

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="Guarded")


class Guarded:
    """What the guards of a call need of its object."""

    _open: OpenUpdate
    _recording: bool
    _turn: threading.RLock
    """Held during a call."""
    _alarms: Collection[object] = ()
    """What `_deliver_alarms` is for; it is called outside of the turn, as it calls the trainer's function."""

    def _deliver_alarms(self) -> None:
        return


def guarded(method: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
    """Report what a call raises instead of raising it. The call does nothing if nothing is recorded."""

    @functools.wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._recording:
            with signals_deferred, self._turn:
                try:
                    method(self, *args, **kwargs)
                except Exception as error:
                    self._open.failures.report(method.__name__, _misuse(method, self, *args, **kwargs) or error)
            if self._alarms:
                self._deliver_alarms()

    return call


def quick(method: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
    """Guard a call as `guarded` does, at a smaller price; it must do no harm to make it twice."""

    @functools.wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._recording:
            with self._turn:
                try:
                    method(self, *args, **kwargs)
                except Exception as error:
                    self._open.failures.report(method.__name__, _misuse(method, self, *args, **kwargs) or error)
                except BaseException:
                    with signals_deferred, self._open.failures.guarded(method.__name__):
                        method(self, *args, **kwargs)
                    raise
            if self._alarms:
                self._deliver_alarms()

    return call


def passed_to(
    body: Callable[[OpenUpdate, Mapping[str, Any]], None],
    again: Callable[[OpenUpdate, Mapping[str, Any], int], None] | None = None,
) -> Callable[[Callable[Concatenate[T, P], None]], Callable[Concatenate[T, P], None]]:
    """Guard a call that passes its keywords on as one mapping: to bind 19 of them twice costs as much as the copy.

    Args:
        body: what the call does.
        again: does what is left of a call that a signal interrupted, given how many minibatches there were before it.
            Without it signals are put off.
    """

    def decorate(method: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
        if again is not None:

            @functools.wraps(method)
            def quick_call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
                if self._recording:
                    with self._turn:
                        update = self._open
                        before, grad_enabled = update.minibatches, torch.is_grad_enabled()
                        try:
                            if args:
                                raise TypeError("all arguments are keywords")
                            body(update, kwargs)
                        except Exception as error:
                            update.failures.report(method.__name__, _misuse(method, self, *args, **kwargs) or error)
                        except BaseException:
                            with signals_deferred, update.failures.guarded(method.__name__):
                                torch.set_grad_enabled(grad_enabled)  # as the call found it
                                again(update, kwargs, before)
                            raise
                    if self._alarms:
                        self._deliver_alarms()

            return quick_call

        @functools.wraps(method)
        def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
            if self._recording:
                with signals_deferred, self._turn:
                    try:
                        if args:
                            raise TypeError("all arguments are keywords")
                        body(self._open, kwargs)
                    except Exception as error:
                        self._open.failures.report(method.__name__, _misuse(method, self, *args, **kwargs) or error)
                if self._alarms:
                    self._deliver_alarms()

        return call

    return decorate


def lenient(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Report arguments that a call does not have and leave them out: it does its work whatever it is given."""
    names = inspect.signature(method).parameters

    @functools.wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with signals_deferred:
            try:
                result = method(self, *args, **kwargs)
            except TypeError:
                misuse = _misuse(method, self, *args, **kwargs)
                if misuse is None:
                    raise
                self._open.failures.report(method.__name__, misuse)
                loosely: Callable[..., R] = method
                result = loosely(self, **{name: value for name, value in kwargs.items() if name in names})
        if self._alarms:
            self._deliver_alarms()
        return result

    return call


def _misuse(method: Callable[..., Any], *args: Any, **kwargs: Any) -> BadCall | None:
    """The error for arguments that a method's signature does not have; None if it has them."""
    try:
        inspect.signature(method).bind(*args, **kwargs)
    except TypeError as error:
        return wrong_arguments(method, error, kwargs)
    return None
