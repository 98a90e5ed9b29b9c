"""``python3 -m kaito_presets.inference``: exit status 0 after SIGTERM, 1 if the model cannot be served, 2 if the
configuration is wrong, there are no weights, or an adapter is not complete."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from kaito_ctrl.runtime.clock import SystemClock, system_random
from kaito_presets.inference import logs
from kaito_presets.inference.adapters import Adapter, find_adapters
from kaito_presets.inference.config import Config, ConfigError, parse
from kaito_presets.inference.engine import Engine
from kaito_presets.inference.weights import HubWeights, Weights, locate

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit status."""
    try:
        config = parse(sys.argv[1:] if argv is None else argv, os.environ)
        logs.configure(config.log_format, config.log_level)
        adapters = find_adapters(config.adapters_dir, os.environ)
        weights = locate(config)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    log = structlog.get_logger("kaito_presets.inference")
    if config.without_effect:
        log.warning("flags without effect", flags=list(config.without_effect))
    if not adapters and Path(config.adapters_dir).is_dir():
        log.warning("no adapters to apply: the directory is empty", directory=config.adapters_dir)
    _quiet_libraries(weights)
    return _run(config, weights, adapters)


def _run(config: Config, weights: Weights, adapters: tuple[Adapter, ...]) -> int:
    from kaito_presets.inference.process import EXIT_FAILED, serve

    rng = system_random()

    def make_engine() -> Engine:
        from kaito_presets.inference.transformers_engine import TransformersEngine

        return TransformersEngine(config, weights, rng, adapters)

    try:
        outcome = asyncio.run(serve(config, make_engine, clock=SystemClock(), rng=rng))
    except OSError as error:
        sys.stderr.write(f"error: cannot listen on {config.host} port {config.port}: {error.strerror or error}\n")
        return EXIT_FAILED
    if outcome.reason:
        # The last line: it is what becomes of a container's end in its pod's status.
        sys.stderr.write(f"error: {outcome.reason}\n")
    if outcome.stuck:
        # A thread is inside native code: taking the interpreter down under it could crash, and waiting could take long.
        logging.shutdown()
        os._exit(outcome.status)
    return outcome.status


def _quiet_libraries(weights: Weights) -> None:
    """Keep the libraries from the network and from advertising; they read their environment when imported."""
    if not isinstance(weights, HubWeights):
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    sys.exit(main())
