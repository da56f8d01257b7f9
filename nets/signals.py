"""SIGINT and SIGHUP while training, as the ``caffe`` tool has them: stop, snapshot, or nothing."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from .solver import Action


class Signals:
    """A context in which SIGINT and SIGHUP ask a solver for something, instead of ending the process.

    A solver takes an instance as its ``action``: each call gives one thing that was asked for, a
    snapshot before a stop. Outside the main thread, where Python installs no handlers, nothing is
    caught.
    """

    def __init__(self, sigint: Action = Action.STOP, sighup: Action = Action.SNAPSHOT) -> None:
        self.effects = {signal.SIGINT: sigint}
        if hasattr(signal, "SIGHUP"):  # not on Windows
            self.effects[signal.SIGHUP] = sighup
        self.asked: set[Action] = set()
        self.before: dict[signal.Signals, Any] = {}

    def __call__(self) -> Action:
        for action in (Action.SNAPSHOT, Action.STOP):
            if action in self.asked:
                self.asked.remove(action)
                return action
        return Action.NONE

    def __enter__(self) -> Signals:
        try:
            for number in self.effects:
                self.before[number] = signal.signal(number, self._take)
        except ValueError:  # not the main thread
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not installed by Python
        self.before = {}

    def _take(self, number: int, _: FrameType | None) -> None:
        self.asked.add(self.effects[signal.Signals(number)])
