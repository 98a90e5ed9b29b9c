"""What a CustomResourceDefinition may say about the conversion of its versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.meta import is_dns1035

__all__ = ["conversion_errors", "stored_version_errors"]

_PATH = "spec.conversion"
_KNOWN = ("v1", "v1beta1")
_FORM = "; desired format: https://host[/path]"


def conversion_errors(conversion: Mapping[str, Any]) -> Iterator[FieldError]:
    """What is wrong with ``spec.conversion``. The paths are those of the real server's internal form."""
    strategy = conversion.get("strategy") or ""
    webhook = conversion.get("webhook")
    if not strategy:
        yield FieldError.required(f"{_PATH}.strategy")
    elif strategy not in {"None", "Webhook"}:
        yield FieldError.unsupported(f"{_PATH}.strategy", strategy, ["None", "Webhook"])
    if strategy != "Webhook":
        why = "should not be set when strategy is not set to Webhook"
        if (webhook or {}).get("clientConfig") is not None:
            yield FieldError.forbidden(f"{_PATH}.webhookClientConfig", why)
        if (webhook or {}).get("conversionReviewVersions"):
            yield FieldError.forbidden(f"{_PATH}.conversionReviewVersions", why)
        return
    config = (webhook or {}).get("clientConfig")
    path = f"{_PATH}.webhookClientConfig"
    if config is None:
        yield FieldError.required(path, "required when strategy is set to Webhook")
    elif (config.get("url") is None) == (config.get("service") is None):
        yield FieldError.required(path, "exactly one of url or service is required")
    elif config.get("url") is not None:
        yield from _url_errors(config["url"], f"{path}.url")
    else:
        for key in ("name", "namespace"):
            if not config["service"].get(key):
                yield FieldError.required(f"{path}.service.{key}", f"service {key} is required")
    yield from _review_errors(
        (webhook or {}).get("conversionReviewVersions") or (), f"{_PATH}.conversionReviewVersions"
    )


def _url_errors(url: str, path: str) -> Iterator[FieldError]:
    parts = urlsplit(url)
    if parts.scheme != "https":
        yield FieldError.invalid(path, parts.scheme, f"'https' is the only allowed URL scheme{_FORM}")
    if not parts.netloc:
        yield FieldError.invalid(path, "", f"host must be provided{_FORM}")
    if parts.query:
        yield FieldError.invalid(path, parts.query, "query parameters are not permitted in the URL")
    if parts.fragment:
        yield FieldError.invalid(path, parts.fragment, "fragments are not permitted in the URL")


def _review_errors(versions: Sequence[str], path: str) -> Iterator[FieldError]:
    if not versions:
        yield FieldError.required(path)
        return
    for index, version in enumerate(versions):
        if version in versions[:index]:
            yield FieldError.invalid(f"{path}[{index}]", version, "duplicate version")
            continue
        for text in is_dns1035(version):
            yield FieldError.invalid(f"{path}[{index}]", version, text)
    if not set(versions) & set(_KNOWN):
        yield FieldError.invalid(path, list(versions), f"must include at least one of {', '.join(_KNOWN)}")


def stored_version_errors(stored: Sequence[str], versions: Sequence[Mapping[str, Any]]) -> Iterator[FieldError]:
    """A version that something may still be stored in cannot be taken away."""
    declared = {version.get("name") for version in versions}
    for index, name in enumerate(stored):
        if name not in declared:
            yield FieldError.invalid(f"status.storedVersions[{index}]", name, "must appear in spec.versions")
