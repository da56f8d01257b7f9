"""``python -m cortado``: the command line."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line; ``cortado`` is this function."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    from cortado.tools.cli import main

    main()


def interrupted(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, as ever, but within an import the end of the process: a module that imports
    others may pass over the exception, and go on with halves of them."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
