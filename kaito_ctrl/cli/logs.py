"""Logging for the commands: JSON for machines, plain lines for people."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, TextIO

import structlog

__all__ = ["LogFormat", "configure_logging"]

LogFormat = Literal["json", "text"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str, form: LogFormat, file: TextIO | Path | None = None) -> None:
    """Set up structlog for this process: one line an event, to standard error, or to *file*."""
    stream = file.open("a", encoding="utf-8") if isinstance(file, Path) else file
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([structlog.processors.dict_tracebacks] if form == "json" else []),
        renderer,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stream) if stream is not None else structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
