"""The prefix of glog's lines, by which public scripts read Caffe's logs (``parse_log.py``)."""

from __future__ import annotations

import logging
import threading
from datetime import datetime


def prefix(file: str, line: int, level: str = "I", seconds: float | None = None) -> str:
    """``I1127 11:49:03.123456  4242 solver.py:239] ``: level, month and day, time, thread, place."""
    time = datetime.now() if seconds is None else datetime.fromtimestamp(seconds)
    return f"{level}{time:%m%d %H:%M:%S.%f} {threading.get_native_id():5d} {file}:{line}] "


class Formatter(logging.Formatter):
    """Records of logging as glog's lines."""

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname[0]
        return prefix(record.filename, record.lineno, level, record.created) + super().format(record)
