"""Servers of measurements that fail in every way, for ``test_benchmarks.py``."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection


def serve(pipe: Connection, small: bool) -> None:
    """Answer a question with itself and a count; "crash", "hang" and "poison" do as they say."""
    count = 0
    while (question := pipe.recv()) is not None:
        if question == "crash":
            os._exit(3)
        if question == "hang":
            time.sleep(60)
        count += 1
        pipe.send(((question, count), question != "poison"))
        if question == "poison":
            return
