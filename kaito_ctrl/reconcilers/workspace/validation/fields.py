"""What single fields must look like, whatever the rest of the object says: selectors, images, Secrets, data sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kaito_api.meta import LabelSelector
from kaito_api.workspace import STRENGTH, AdapterSpec, DataSource
from kaito_ctrl.reconcilers.names import ACCELERATOR_LABEL, RESERVED_LABEL_DOMAINS
from kaito_ctrl.reconcilers.workspace.validation.problem import Problem

__all__ = ["MAX_ADAPTERS", "adapters", "image", "object_name", "selector", "source", "template"]

MAX_ADAPTERS = 10
_IMAGE = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?::\d+)?)/(?P<path>[^:@]+)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_ADAPTER = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_URL = re.compile(r"https?://[^/\s?#@]+(?:[/?#]\S*)?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


def selector(wanted: LabelSelector) -> Iterator[Problem]:
    """Only what can be given to a new node as labels, and only labels of the user's own."""
    field = "resource.labelSelector"
    if not wanted.match_labels and not wanted.match_expressions:
        yield Problem(field, "must select by at least one label", "set matchLabels, for example apps: my-model")
    for index, term in enumerate(wanted.match_expressions):
        if term.operator != "In" or len(term.values) != 1:
            yield Problem(
                f"{field}.matchExpressions[{index}]",
                "only matchLabels, or operator In with exactly one value, can be given to new nodes",
                "use matchLabels",
            )
    single = [(term.key, value) for term in wanted.match_expressions for value in term.values]
    for key, value in (*wanted.match_labels.items(), *single):
        if value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
            yield Problem(f"{field}.matchLabels", f"{value!r} cannot be the value of a label", "use a-z, 0-9, - and .")
        if key == ACCELERATOR_LABEL and wanted.match_labels.get(key) != "nvidia":
            yield Problem(
                f"{field}.matchLabels", f"{key} is a label that every new node gets as nvidia", "leave it out"
            )
        domain, _, name = key.rpartition("/")
        if len(name) > 63 or not _QUALIFIED.fullmatch(name) or (domain and not _SUBDOMAIN.fullmatch(domain)):
            yield Problem(f"{field}.matchLabels", f"{key!r} cannot be the name of a label", "for example apps")
        if domain and any(f"{domain}/".endswith(reserved) for reserved in RESERVED_LABEL_DOMAINS):
            yield Problem(
                f"{field}.matchLabels",
                f"the label {key} belongs to the system and could select others' nodes",
                "select by a label of your own",
            )


def adapters(wanted: Iterable[AdapterSpec]) -> Iterator[Problem]:
    """Each adapter has a name of its own, comes from an image, and has a strength from 0 to 1."""
    names: set[str] = set()
    count = 0
    for index, adapter in enumerate(wanted):
        count += 1
        field = f"inference.adapters[{index}]"
        origin = adapter.source
        if origin is None:
            yield Problem(f"{field}.source", "must be specified", "set source.name and source.image")
            continue
        if not origin.name:
            yield Problem(f"{field}.source.name", "must be specified: the adapter is known by it", "give it a name")
        else:
            if not _ADAPTER.fullmatch(origin.name):
                yield Problem(
                    f"{field}.source.name",
                    f"{origin.name!r} is not a DNS label that begins with a letter",
                    "use at most 63 of a-z, 0-9 and -",
                )
            if origin.name in names:
                yield Problem(f"{field}.source.name", f"duplicate adapter source name {origin.name}", "rename one")
            names.add(origin.name)
        if not origin.image:
            yield Problem(
                f"{field}.source.image",
                "must be specified: the image that holds the adapter",
                "write REGISTRY/REPOSITORY:TAG",
            )
        yield from source(origin, f"{field}.source")
        yield from _strength(adapter, field)
    if count > MAX_ADAPTERS:
        yield Problem("inference.adapters", f"{count} adapters exceed the maximum of {MAX_ADAPTERS}", "remove some")


def _strength(adapter: AdapterSpec, field: str) -> Iterator[Problem]:
    if adapter.strength is None:
        return
    if not re.fullmatch(STRENGTH, adapter.strength):
        yield Problem(f"{field}.strength", f"{adapter.strength!r} is not a number from 0 to 1", 'for example "0.5"')


def source(origin: DataSource, field: str) -> Iterator[Problem]:
    """Data comes from exactly one place; an adapter, from an image."""
    if origin.volume_source is not None:
        yield Problem(f"{field}.volumeSource", "volumes are not supported yet", "use image or urls")
    given = [bool(origin.urls), origin.volume_source is not None, bool(origin.image)]
    if sum(given) != 1 and not field.startswith("inference.adapters"):
        yield Problem(field, "exactly one of urls, volumeSource or image must be specified", "set urls or image")
    if field.startswith("inference.adapters") and origin.urls:
        yield Problem(f"{field}.urls", "an adapter comes from an image", "use image")
    if origin.image:
        yield from image(origin.image, f"{field}.image")
    for index, url in enumerate(origin.urls or ()):
        if not _URL.fullmatch(url):
            yield Problem(f"{field}.urls[{index}]", f"{url!r} is no URL to download from", "write https://HOST/PATH")
    for index, name in enumerate(origin.image_pull_secrets or ()):
        yield from object_name(name, f"{field}.imagePullSecrets[{index}]")


def image(reference: str, field: str) -> Iterator[Problem]:
    """A whole reference: registry, repository, and a tag or a digest."""
    found = _IMAGE.fullmatch(reference)
    if found is None:
        yield Problem(field, f"{reference!r} is not a full image reference", "write REGISTRY/REPOSITORY:TAG")
        return
    if not found["tag"] and not found["digest"]:
        yield Problem(field, f"{reference!r} names neither a tag nor a digest", "write REGISTRY/REPOSITORY:TAG")
    if "_" in found["host"] or not _REPOSITORY.fullmatch(found["path"]):
        lower = found["path"].lower()
        fix = "replace the placeholder by your own repository"
        yield Problem(
            field,
            f"{reference!r}: a repository name is lower-case letters, digits and separators",
            f"{fix}, or write {lower}" if found["path"] != lower else fix,
        )


def object_name(name: str, field: str, kind: str = "Secret") -> Iterator[Problem]:
    """A name that an object of *kind* can have at all."""
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        yield Problem(
            field,
            f"{name!r} is not the name of a {kind}: that is a DNS subdomain",
            "use lower-case letters, digits, - and .",
        )


def template(wanted: Mapping[str, Any], field: str) -> Iterator[Problem]:
    """A pod template that can make a pod: the rest is the API server's to check when the workload is made."""
    spec = wanted.get("spec")
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    if not isinstance(containers, list) or not containers:
        yield Problem(f"{field}.spec.containers", "must hold at least one container", "give it a name and an image")
        return
    for index, container in enumerate(containers):
        for key in ("name", "image"):
            if not isinstance(container, Mapping) or not isinstance(container.get(key), str) or not container[key]:
                yield Problem(f"{field}.spec.containers[{index}].{key}", "must be specified", f"give it its {key}")
