"""``kaito-ctrl`` with its modules loaded, that begins when it is told to: ``python -m tests.real.sparedaemon run ...``.

Loading takes seconds, in which a test that starts many daemons would wait. A line on the standard input starts it.
"""

from __future__ import annotations

import sys

import kaito_provisioner.aks  # noqa: F401 - what a daemon of this kind will have loaded once it works
from kaito_ctrl.cli import main

if __name__ == "__main__":
    if sys.stdin.readline():
        main()
