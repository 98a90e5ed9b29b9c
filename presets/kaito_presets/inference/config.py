"""The server's command line and environment, as one frozen value.

The flags are those of KAITO's server, so that a pod written for it starts ours; ``-`` and ``_`` are the same in a flag.
A flag that nobody knows is an error, never a surprise at generation time.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from kaito_presets.catalogue import Catalogue
from kaito_presets.nearest import nearest
from kaito_presets.preset import Preset

__all__ = ["CombinationType", "Config", "ConfigError", "parse"]

CombinationType = Literal["svd", "linear", "cat"]
"""How several adapters become one. peft has more ways; those need a density, which KAITO has no setting for."""

DEFAULT_WEIGHTS = "/workspace/tfs/weights"
DEFAULT_ADAPTERS = "/mnt/adapter"
DEFAULT_PORT = 5000

# Flags of KAITO's server that mean nothing here: accepted, so that its command lines work, and named in the log.
WITHOUT_EFFECT = (
    "force_download",
    "from_tf",
    "low_cpu_mem_usage",
    "max_batch_size",
    "output_loading_info",
    "proxies",
    "resume_download",
    "state_dict",
)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class ConfigError(Exception):
    """The server cannot be started like this; the message says what to do. The process exits with status 2."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was said at start.

    ``weights`` is a directory, or a Hugging Face repository if ``allow_remote_files``; ``max_model_len`` caps prompt
    plus continuation, in tokens; ``max_waiting`` counts requests that wait while one is served; ``shutdown_grace`` is
    for how many seconds a generation may go on after SIGTERM.
    """

    weights: str
    host: str
    port: int
    served_model_name: str
    preset: Preset | None = None
    pipeline: Literal["text-generation", "conversational"] = "text-generation"
    torch_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    chat_template: str | None = None
    allow_remote_files: bool = False
    trust_remote_code: bool = False
    random_weights: Literal["tiny"] | None = None
    adapters_dir: str = DEFAULT_ADAPTERS
    combination_type: CombinationType = "svd"
    max_model_len: int | None = None
    max_waiting: int = 64
    max_body_bytes: int = 8 * 2**20
    shutdown_grace: float = 3.0
    log_format: Literal["json", "text"] = "json"
    log_level: str = "info"
    without_effect: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(argv: Sequence[str], env: Mapping[str, str], catalogue: Catalogue | None = None) -> Config:
    """The configuration that *argv* and *env* ask for. Raises :class:`ConfigError`; ``--help`` exits."""
    parser = _build_parser()
    known, unknown = parser.parse_known_args([_canonical(argument) for argument in argv])
    if unknown:
        raise ConfigError(_unknown_flags(parser, unknown))
    given: dict[str, Any] = {name: value for name, value in vars(known).items() if value is not None}
    preset = _preset(given.pop("preset", env.get("KAITO_PRESET") or None), catalogue or Catalogue.builtin())
    ignored = tuple(f"--{name}" for name in WITHOUT_EFFECT if given.pop(name, None) is not None)
    for name in ("load_in_4bit", "load_in_8bit"):
        if given.pop(name, False):
            raise ConfigError(f"--{name}: this server does not quantise weights while loading them")

    rank = _integer(env.get("LOCAL_RANK") or "0", "LOCAL_RANK")
    given.setdefault("host", env.get("KAITO_HOST") or "0.0.0.0")  # noqa: S104
    given.setdefault("port", DEFAULT_PORT + rank)
    given.setdefault("weights", DEFAULT_WEIGHTS)
    given.setdefault("served_model_name", preset.served_name if preset else "model")
    given.setdefault("adapters_dir", env.get("KAITO_ADAPTERS_DIR") or DEFAULT_ADAPTERS)
    given.setdefault("random_weights", env.get("KAITO_RANDOM_WEIGHTS") or None)
    if given["random_weights"] not in (None, "tiny"):
        raise ConfigError(f"random weights come in one size, 'tiny', not {given['random_weights']!r}")
    if given.get("trust_remote_code") and preset is not None and not preset.trust_remote_code:
        # The catalogue decides for its own models; a flag left over from an older command line must not widen that.
        given["trust_remote_code"] = False
        ignored += ("--trust_remote_code",)
    elif preset is not None and preset.trust_remote_code:
        given.setdefault("trust_remote_code", True)
    return Config(preset=preset, without_effect=ignored, **given)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python3 -m kaito_presets.inference", allow_abbrev=False, description=__doc__)
    add = parser.add_argument
    add(
        "--preset", metavar="NAME", help="entry of the model catalogue: gives names and defaults; default $KAITO_PRESET"
    )
    add("--pretrained_model_name_or_path", dest="weights", metavar="DIR", help=f"default {DEFAULT_WEIGHTS}")
    add("--served_model_name", metavar="NAME", help="how OpenAI clients call the model; default: the preset's name")
    add("--host", help="address to listen on; default $KAITO_HOST, else every address")
    add("--port", type=_between("port", 0, 65535), help=f"default {DEFAULT_PORT} + $LOCAL_RANK; 0 picks a free one")
    add("--pipeline", choices=("text-generation", "conversational"), help="what POST /chat takes")
    add("--torch_dtype", choices=("auto", "float32", "float16", "bfloat16"), help="half types mean float32 on a CPU")
    add("--device", "--device_map", dest="device", type=_device, help="auto, cpu, cuda, cuda:N, balanced, sequential")
    add("--revision", metavar="COMMIT", help="revision of a remote repository")
    add("--cache_dir", metavar="DIR", help="where downloads are kept")
    add("--chat_template", metavar="FILE", help="a Jinja chat template instead of the tokenizer's own")
    _switch(parser, "--allow_remote_files", "download the weights if they are not a local directory")
    _switch(parser, "--trust_remote_code", "run Python code that comes with the weights")
    add("--random_weights", choices=("tiny",), help="if there are no weights, serve a tiny model with random ones")
    add("--adapters_dir", metavar="DIR", help=f"default $KAITO_ADAPTERS_DIR, else {DEFAULT_ADAPTERS}")
    add("--combination_type", choices=get_args(CombinationType), help="how several adapters are combined; default svd")
    add("--max_model_len", "--max_seq_len", dest="max_model_len", type=_between("max_model_len", 1, 2**31 - 1))
    add("--max_waiting", type=_between("max_waiting", 0, 2**20), help="requests that may wait; more get 429")
    add("--max_body_bytes", type=_between("max_body_bytes", 1, 2**40), help="larger requests get 413")
    add("--shutdown_grace", type=float, metavar="SECONDS")
    add("--log_format", choices=("json", "text"))
    add("--log_level", choices=("debug", "info", "warning", "error"))
    for name in WITHOUT_EFFECT:
        add(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    _switch(parser, "--load_in_4bit", argparse.SUPPRESS)
    _switch(parser, "--load_in_8bit", argparse.SUPPRESS)
    return parser


def _switch(parser: argparse.ArgumentParser, flag: str, help_text: str) -> None:
    parser.add_argument(flag, nargs="?", const=True, type=_boolean, metavar="BOOL", help=help_text)


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _device(text: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?|balanced|balanced_low_0|sequential", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:N, balanced, sequential")
    return text


def _between(name: str, low: int, high: int) -> Any:
    def convert(text: str) -> int:
        number = _integer(text, name)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} is not between {low} and {high}")
        return number

    return convert


def _integer(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is not a whole number") from None


def _canonical(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}"


def _unknown_flags(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("--")]
    if not flags:
        return f"unexpected argument {unknown[0]!r}"
    known = [flag for action in parser._actions for flag in action.option_strings if action.help != argparse.SUPPRESS]
    said = []
    for flag in flags:
        near = nearest(flag, known)
        said.append(f"unknown flag {flag}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    return "; ".join(said)


def _preset(name: str | None, catalogue: Catalogue) -> Preset | None:
    if name is None:
        return None
    found = catalogue.get(name)
    if found is None:
        near = catalogue.suggest(name)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(catalogue.names())}"
        raise ConfigError(f"unknown preset {name!r}: {hint}")
    return found
