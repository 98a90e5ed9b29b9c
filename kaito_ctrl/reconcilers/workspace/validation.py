"""Whether a Workspace makes sense: one pure function for the webhook, the reconciler and the command line.

It reports every problem at once, each with the field's path and what to do about it, and it never raises, whatever
it is given. On an update, a problem that the old object had too does not count, so an old object can always be
edited, and a deleting one is never held up.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kaito_api.meta import LabelSelector
from kaito_api.workspace import AdapterSpec, DataSource, PresetSpec, ResourceSpec, TuningSpec, Workspace
from kaito_ctrl.reconcilers.names import ACCELERATOR_LABEL, RESERVED_LABEL_DOMAINS
from kaito_presets.catalogue import Catalogue
from kaito_presets.preset import Preset
from kaito_presets.sizing import Workload, fitting_skus, size
from kaito_presets.skus import SkuTable

__all__ = ["Problem", "Rules", "describe"]

MAX_ADAPTERS = 10
MAX_NAME = 54
"""A label has 63 characters, and the headless Service of a workspace is named after it with nine more."""
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_IMAGE = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?::\d+)?)/(?P<path>[^:@]+)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong: where, what, and what to do about it."""

    field: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" + (f" ({self.fix})" if self.fix else "")


def describe(problems: Iterable[Problem]) -> str:
    """All problems as one text for people."""
    return "validation failed:\n" + "\n".join(f"- {problem}" for problem in problems)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules, and what they need to know."""

    catalogue: Catalogue
    skus: SkuTable

    def check(self, raw: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> tuple[Problem, ...]:
        """Every problem of *raw*, ordered by field; with *old*, of changing that into it. Both are plain JSON."""
        if isinstance(raw.get("metadata"), Mapping) and raw["metadata"].get("deletionTimestamp"):
            return ()
        problems = set(self._problems(raw))
        if old is not None:
            problems -= set(self._problems(old))
            before, after = _read(old)[0], _read(raw)[0]
            if before is not None and after is not None:
                problems |= set(_changes(before, after))
        return tuple(sorted(problems))

    def _problems(self, raw: Mapping[str, Any]) -> Iterator[Problem]:
        workspace, misfits = _read(raw)
        yield from misfits
        if workspace is None:
            return
        reported = tuple(problem.field for problem in misfits)
        for problem in self._rules(workspace):
            if not any(_covers(field, problem.field) for field in reported):
                yield problem

    def _rules(self, ws: Workspace) -> Iterator[Problem]:
        inference, tuning = ws.inference, ws.tuning
        if ws.name and (len(ws.name) > MAX_NAME or not _LABEL.fullmatch(ws.name)):
            yield Problem(
                "metadata.name",
                f"{ws.name!r} cannot be the name of a Service, which the workspace gets",
                f"use at most {MAX_NAME} lower-case letters, digits and -, beginning with a letter",
            )
        if inference is None and tuning is None:
            yield Problem("inference", "either inference or tuning must be specified, not neither")
        if inference is not None and tuning is not None:
            yield Problem("inference", "either inference or tuning must be specified, but not both", "remove one")
        yield from _selector(ws.resource.label_selector)
        yield from self._instance_type(ws)
        if inference is not None:
            if inference.preset is None and inference.template is None:
                yield Problem("inference", "preset or template must be specified")
            if inference.preset is not None and inference.template is not None:
                yield Problem("inference", "preset and template cannot be set at the same time", "remove one")
            if inference.preset is not None:
                yield from self._preset(inference.preset, ws.resource, "inference")
            yield from _adapters(inference.adapters or ())
        if tuning is not None:
            yield from self._tuning(tuning, ws.resource)

    def _instance_type(self, ws: Workspace) -> Iterator[Problem]:
        name = ws.resource.instance_type
        if self.skus.get(name) is not None:
            return
        # Azure adds sizes faster than any table: an unknown N or D size is let through, and measured on its node.
        if self.skus.cloud == "azure" and name.startswith(("Standard_N", "Standard_D")) and not self._near(name):
            return
        fix = _did_you_mean(self.skus.suggest(name)) or f"for example {', '.join(self._examples(ws))}"
        yield Problem("resource.instanceType", f"unsupported instance type {name}", fix)

    def _examples(self, ws: Workspace) -> list[str]:
        """A few instance types that would do: those that the preset fits on, the smallest first."""
        spec = ws.inference.preset if ws.inference is not None else ws.tuning.preset if ws.tuning is not None else None
        preset = self.catalogue.get(spec.name) if spec is not None else None
        fitting = fitting_skus(preset, self.skus, ws.resource.count) if preset is not None else tuple(self.skus)
        return [sku.name for sku in fitting[:5]]

    def _near(self, name: str) -> bool:
        """Whether *name* is a known type but for its case, which clouds do not forgive."""
        return any(name != known and name.lower() == known.lower() for known in self.skus.names())

    def _preset(self, spec: PresetSpec, resource: ResourceSpec, workload: Workload) -> Iterator[Problem]:
        field = f"{workload}.preset"
        preset = self.catalogue.get(spec.name)
        options = spec.preset_options
        image = options.image if options is not None else None
        if preset is None:
            yield Problem(
                f"{field}.name",
                f"unsupported {workload} preset name {spec.name}",
                _did_you_mean(self.catalogue.suggest(spec.name)) or f"known: {', '.join(self.catalogue.names())}",
            )
        elif preset.access_mode == "private" and spec.access_mode != "private":
            yield Problem(
                f"{field}.accessMode",
                f"preset {spec.name} only supports private access",
                "set accessMode: private and presetOptions.image",
            )
        if spec.access_mode == "private" and not image:
            yield Problem(
                f"{field}.presetOptions.image",
                "when accessMode is private, an image must be provided",
                "name the image that holds the model",
            )
        if image:
            yield from _image(image, f"{field}.presetOptions.image")
        if preset is not None:
            yield from self._fit(preset, resource, workload)

    def _fit(self, preset: Preset, resource: ResourceSpec, workload: Workload) -> Iterator[Problem]:
        if workload == "tuning" and preset.tuning is None:
            tunable = ", ".join(each.name for each in self.catalogue if each.tuning is not None)
            yield Problem("tuning.preset.name", f"preset {preset.name} does not support tuning", f"tunable: {tunable}")
            return
        sku = self.skus.get(resource.instance_type)
        if sku is None:
            return
        fits = size(preset, sku, resource.count, workload=workload)
        if not fits.ok:
            others = [each.name for each in fitting_skus(preset, self.skus, resource.count, workload=workload)]
            fix = f"large enough: {', '.join(others[:5])}" if others else "ask for more nodes with resource.count"
            for text in fits.problems:
                yield Problem("resource.instanceType", text, fix)

    def _tuning(self, tuning: TuningSpec, resource: ResourceSpec) -> Iterator[Problem]:
        if resource.count > 1:
            yield Problem("resource.count", "tuning does not support more than one node", "set count: 1")
        if (tuning.method or "").lower() not in ("lora", "qlora"):
            yield Problem("tuning.method", f"unsupported method {tuning.method or '(none)'}", "use lora or qlora")
        if tuning.preset is None:
            yield Problem("tuning.preset", "a preset must be specified")
        else:
            yield from self._preset(tuning.preset, resource, "tuning")
        yield from _source(tuning.input, "tuning.input")
        output = tuning.output
        if output.volume_source is not None:
            yield Problem("tuning.output.volumeSource", "volumes are not supported yet", "use image")
        elif not output.image:
            yield Problem("tuning.output", "a destination must be specified", "set image and imagePushSecret")
        if output.image:
            yield from _image(output.image, "tuning.output.image")
            if not output.image_push_secret:
                yield Problem("tuning.output.imagePushSecret", "must be specified with a destination image")
        if output.image_push_secret:
            yield from _secret(output.image_push_secret, "tuning.output.imagePushSecret")


def _covers(reported: str, field: str) -> bool:
    return field == reported or field.startswith((f"{reported}.", f"{reported}[")) or reported.startswith(f"{field}.")


def _did_you_mean(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"did you mean {listed}?" if listed else ""


def _selector(selector: LabelSelector) -> Iterator[Problem]:
    field = "resource.labelSelector"
    if not selector.match_labels and not selector.match_expressions:
        yield Problem(field, "must select by at least one label", "set matchLabels, for example apps: my-model")
    for index, term in enumerate(selector.match_expressions):
        if term.operator != "In" or len(term.values) != 1:
            yield Problem(
                f"{field}.matchExpressions[{index}]",
                "only matchLabels, or operator In with exactly one value, can be given to new nodes",
                "use matchLabels",
            )
    for key in (*selector.match_labels, *(term.key for term in selector.match_expressions)):
        if key == ACCELERATOR_LABEL and selector.match_labels.get(key) != "nvidia":
            yield Problem(
                f"{field}.matchLabels", f"{key} is a label that every new node gets as nvidia", "leave it out"
            )
        domain = key.rpartition("/")[0]
        if domain and any(f"{domain}/".endswith(reserved) for reserved in RESERVED_LABEL_DOMAINS):
            yield Problem(
                f"{field}.matchLabels",
                f"the label {key} belongs to the system and could select others' nodes",
                "select by a label of your own",
            )


def _adapters(adapters: Iterable[AdapterSpec]) -> Iterator[Problem]:
    names: set[str] = set()
    count = 0
    for index, adapter in enumerate(adapters):
        count += 1
        field = f"inference.adapters[{index}]"
        source = adapter.source
        if source is None:
            yield Problem(f"{field}.source", "must be specified")
            continue
        if not source.name:
            yield Problem(f"{field}.source.name", "must be specified: the adapter is known by it")
        else:
            if not _SUBDOMAIN.fullmatch(source.name) or len(source.name) > 63 or "." in source.name:
                yield Problem(f"{field}.source.name", f"{source.name!r} is not a DNS label", "use a-z, 0-9 and -")
            if source.name in names:
                yield Problem(f"{field}.source.name", f"duplicate adapter source name {source.name}")
            names.add(source.name)
        if not source.image:
            yield Problem(f"{field}.source.image", "must be specified: the image that holds the adapter")
        yield from _source(source, f"{field}.source")
        yield from _strength(adapter, field)
    if count > MAX_ADAPTERS:
        yield Problem("inference.adapters", f"{count} adapters exceed the maximum of {MAX_ADAPTERS}")


def _strength(adapter: AdapterSpec, field: str) -> Iterator[Problem]:
    if adapter.strength is None:
        return
    try:
        value = float(adapter.strength)
    except ValueError:
        value = math.nan
    if math.isnan(value) or not 0 <= value <= 1:
        yield Problem(f"{field}.strength", f"{adapter.strength!r} is not a number from 0 to 1", 'for example "0.5"')


def _source(source: DataSource, field: str) -> Iterator[Problem]:
    if source.volume_source is not None:
        yield Problem(f"{field}.volumeSource", "volumes are not supported yet", "use image or urls")
    given = [bool(source.urls), source.volume_source is not None, bool(source.image)]
    if sum(given) != 1 and not field.startswith("inference.adapters"):
        yield Problem(field, "exactly one of urls, volumeSource or image must be specified")
    if field.startswith("inference.adapters") and source.urls:
        yield Problem(f"{field}.urls", "an adapter comes from an image", "use image")
    if source.image:
        yield from _image(source.image, f"{field}.image")
    for index, name in enumerate(source.image_pull_secrets or ()):
        yield from _secret(name, f"{field}.imagePullSecrets[{index}]")


def _image(image: str, field: str) -> Iterator[Problem]:
    found = _IMAGE.fullmatch(image)
    if found is None:
        yield Problem(field, f"{image!r} is not a full image reference", "write REGISTRY/REPOSITORY:TAG")
        return
    if not found["tag"] and not found["digest"]:
        yield Problem(field, f"{image!r} names neither a tag nor a digest", "write REGISTRY/REPOSITORY:TAG")
    if "_" in found["host"] or not _REPOSITORY.fullmatch(found["path"]):
        lower = found["path"].lower()
        fix = "replace the placeholder by your own repository"
        yield Problem(
            field,
            f"{image!r}: a repository name is lower-case letters, digits and separators",
            f"{fix}, or write {lower}" if found["path"] != lower else fix,
        )


def _secret(name: str, field: str) -> Iterator[Problem]:
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        yield Problem(
            field,
            f"{name!r} is not the name of a Secret: that is a DNS subdomain",
            "use lower-case letters, digits, - and .",
        )


def _changes(old: Workspace, new: Workspace) -> Iterator[Problem]:
    for section in ("inference", "tuning"):
        if (getattr(old, section) is None) != (getattr(new, section) is None):
            yield Problem(section, "cannot be added or removed once the workspace exists", "create a new workspace")
    frozen: list[tuple[str, object, object]] = [
        ("resource.count", old.resource.count, new.resource.count),
        ("resource.instanceType", old.resource.instance_type, new.resource.instance_type),
        ("resource.labelSelector", old.resource.label_selector, new.resource.label_selector),
    ]
    if old.inference is not None and new.inference is not None:
        frozen.append(("inference.preset", old.inference.preset, new.inference.preset))
        if (old.inference.template is None) != (new.inference.template is None):
            yield Problem("inference.template", "cannot be set or unset once the workspace exists")
    if old.tuning is not None and new.tuning is not None:
        frozen += [
            ("tuning.preset", old.tuning.preset, new.tuning.preset),
            ("tuning.method", (old.tuning.method or "").lower(), (new.tuning.method or "").lower()),
            ("tuning.input", old.tuning.input, new.tuning.input),
            ("tuning.output", old.tuning.output, new.tuning.output),
        ]
    for field, before, after in frozen:
        if before != after:
            yield Problem(field, "field is immutable", "create a new workspace")


def _read(raw: Mapping[str, Any]) -> tuple[Workspace | None, tuple[Problem, ...]]:
    """The workspace, and where *raw* does not fit its model. What does not fit is left out, so that the rules can look
    at the rest; ``None`` when nothing is left to look at."""
    problems: list[Problem] = []
    try:
        rest = copy.deepcopy({key: value for key, value in raw.items() if key != "status"})
    except RecursionError:
        return None, (Problem("", "is nested too deeply"),)
    for _ in range(50):
        try:
            return Workspace.model_validate(rest), tuple(problems)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False):
                problems.append(Problem(_path(detail["loc"]), _says(detail)))
                if not _repair(rest, detail["loc"], missing=detail["type"] == "missing"):
                    return None, tuple(problems)
    return None, tuple(problems)


def _says(detail: Mapping[str, Any]) -> str:
    return "is required" if detail["type"] == "missing" else str(detail["msg"])


def _path(loc: Iterable[int | str]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _repair(raw: Any, loc: tuple[int | str, ...], *, missing: bool) -> bool:
    """Take out what does not fit, or stand something empty in for what is missing. False when that cannot help."""
    if not loc:
        return False
    holder: Any = raw
    for part in loc[:-1]:
        holder = holder[part] if isinstance(holder, dict) and part in holder else None
        if holder is None:
            return _repair(raw, loc[:-1], missing=False) if len(loc) > 1 else False
    last = loc[-1]
    if missing and last in ("resource", "labelSelector", "input", "output") and isinstance(holder, dict):
        holder[last] = {"labelSelector": {}} if last == "resource" else {}
        return True
    if missing:
        return _repair(raw, loc[:-1], missing=False)
    if isinstance(holder, dict) and last in holder:
        del holder[last]
        return True
    return _repair(raw, loc[:-1], missing=False)
