"""Logs as lines of JSON on stderr."""

from __future__ import annotations

import json
import logging

_USUAL = logging.makeLogRecord({}).__dict__.keys() | {"message", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """time, level, logger, message, and whatever ``extra`` of the call holds."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _USUAL}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(level: str) -> None:
    """``level`` is that of the server and of uvicorn; debug has a line a request. Other libraries warn, no less."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("qkernels.serve", "uvicorn.error"):
        logging.getLogger(name).setLevel(level.upper())
