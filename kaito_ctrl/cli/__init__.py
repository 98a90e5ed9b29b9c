"""The command line: ``kaito-ctrl demo | dev | run | crds``."""

from kaito_ctrl.cli.app import main

__all__ = ["main"]
