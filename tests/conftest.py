"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # A shell that starts something in the background has it ignore Ctrl-C, and its children with it: then those of our
    # programs that are to end by one would not.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
