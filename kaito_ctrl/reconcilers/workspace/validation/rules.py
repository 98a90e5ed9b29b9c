"""The rules of a Workspace as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_api.workspace import PresetSpec, ResourceSpec, TuningSpec, Workspace
from kaito_ctrl.reconcilers.names import ENABLE_LB_ANNOTATION, RUNTIME_ANNOTATION
from kaito_ctrl.reconcilers.workspace.validation import fields
from kaito_ctrl.reconcilers.workspace.validation.changes import changes
from kaito_ctrl.reconcilers.workspace.validation.problem import Problem, did_you_mean
from kaito_ctrl.reconcilers.workspace.validation.reading import read
from kaito_ctrl.reconcilers.workspace.validation.tuning_config import tuning_config
from kaito_presets.catalogue import Catalogue
from kaito_presets.preset import Preset
from kaito_presets.sizing import Workload, fitting_skus, size
from kaito_presets.skus import SkuTable

__all__ = ["ConfigMaps", "Rules"]

MAX_NAME = 54
"""A label has 63 characters, and the headless Service of a workspace is named after it with nine more."""
_RUNTIMES = ("transformers", "vllm")
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")

ConfigMaps = Mapping[str, Mapping[str, Any]]
"""The ConfigMaps of the workspace's namespace, as far as it names any: ``data`` by name."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules, and what they need to know."""

    catalogue: Catalogue
    skus: SkuTable

    def check(
        self,
        raw: Mapping[str, Any],
        old: Mapping[str, Any] | None = None,
        *,
        config_maps: ConfigMaps | None = None,
    ) -> tuple[Problem, ...]:
        """Every problem of *raw*, ordered by field; with *old*, of changing that into it. Both are plain JSON.

        Without *config_maps*, what a named ConfigMap holds, and whether it is there, is not looked at.
        """
        if isinstance(raw.get("metadata"), Mapping) and raw["metadata"].get("deletionTimestamp"):
            return ()
        problems = set(self._problems(raw, config_maps))
        if old is not None:
            problems -= set(self._problems(old, config_maps))
            before, after = read(old)[0], read(raw)[0]
            if before is not None and after is not None:
                problems |= set(changes(before, after))
        return tuple(sorted(problems))

    def warnings(self, raw: Mapping[str, Any]) -> tuple[Problem, ...]:
        """What is allowed and still not what its author will have meant, ordered by field."""
        workspace, _ = read(raw)
        return tuple(sorted(set(self._warnings(workspace)))) if workspace is not None else ()

    def _warnings(self, ws: Workspace) -> Iterator[Problem]:
        balanced = ws.metadata.annotations.get(ENABLE_LB_ANNOTATION)
        if balanced is not None and balanced != "True" and balanced.lower() == "true":
            yield Problem(
                f"metadata.annotations[{ENABLE_LB_ANNOTATION}]",
                f"{balanced!r} has no effect: only 'True' makes a load balancer",
                'write "True"',
            )
        if ws.metadata.annotations.get(RUNTIME_ANNOTATION) == "vllm":
            yield Problem(
                f"metadata.annotations[{RUNTIME_ANNOTATION}]",
                "no preset of this release is served by vLLM: it is served by transformers",
                "leave it out",
            )
        if "instance_type" not in ws.resource.model_fields_set:
            yield Problem(
                "resource.instanceType", f"not specified: {ws.resource.instance_type} will be used", "write it down"
            )
        if self.skus.get(ws.resource.instance_type) is None and not any(self._instance_type(ws)):
            yield Problem(
                "resource.instanceType",
                f"{ws.resource.instance_type} is not in the table of {self.skus.cloud}: whether the model fits on it "
                "was not checked",
                "see that it has enough GPUs and memory",
            )

    def _problems(self, raw: Mapping[str, Any], config_maps: ConfigMaps | None) -> Iterator[Problem]:
        workspace, misfits = read(raw)
        yield from misfits
        if workspace is None:
            return
        reported = tuple(problem.field for problem in misfits)
        for problem in self._rules(workspace, config_maps):
            if not any(_covers(field, problem.field) for field in reported):
                yield problem

    def _rules(self, ws: Workspace, config_maps: ConfigMaps | None) -> Iterator[Problem]:
        inference, tuning = ws.inference, ws.tuning
        if ws.name and (len(ws.name) > MAX_NAME or not _LABEL.fullmatch(ws.name)):
            yield Problem(
                "metadata.name",
                f"{ws.name!r} cannot be the name of a Service, which the workspace gets",
                f"use at most {MAX_NAME} lower-case letters, digits and -, beginning with a letter",
            )
        runtime = ws.metadata.annotations.get(RUNTIME_ANNOTATION)
        if runtime is not None and runtime not in _RUNTIMES:
            yield Problem(
                f"metadata.annotations[{RUNTIME_ANNOTATION}]",
                f"unsupported runtime {runtime}",
                f"use {' or '.join(_RUNTIMES)}, or leave it out",
            )
        if inference is None and tuning is None:
            yield Problem("inference", "either inference or tuning must be specified, not neither", "add one")
        if inference is not None and tuning is not None:
            yield Problem("inference", "either inference or tuning must be specified, but not both", "remove one")
        yield from fields.selector(ws.resource.label_selector)
        yield from self._instance_type(ws)
        if inference is not None:
            if inference.preset is None and inference.template is None:
                yield Problem("inference", "preset or template must be specified", "name a preset, for example")
            if inference.preset is not None and inference.template is not None:
                yield Problem("inference", "preset and template cannot be set at the same time", "remove one")
            if inference.preset is not None:
                yield from self._preset(inference.preset, ws.resource, "inference")
            if inference.template is not None:
                yield from fields.template(inference.template, "inference.template")
            yield from fields.adapters(inference.adapters or ())
            served = self.catalogue.get(inference.preset.name) if inference.preset is not None else None
            if served is not None and served.runtime == "llama-2" and inference.adapters:
                yield Problem(
                    "inference.adapters",
                    f"the server of preset {served.name} loads no adapters",
                    "leave them out, or use a preset of another family",
                )
        if tuning is not None:
            yield from self._tuning(tuning, ws.resource)
            if tuning.config:
                yield from _config(tuning, config_maps)

    def _instance_type(self, ws: Workspace) -> Iterator[Problem]:
        name = ws.resource.instance_type
        if self.skus.get(name) is not None:
            return
        # Azure adds sizes faster than any table: an unknown N or D size is let through, and measured on its node.
        if self.skus.cloud == "azure" and name.startswith(("Standard_N", "Standard_D")) and not self._near(name):
            return
        fix = did_you_mean(self.skus.suggest(name)) or f"for example {', '.join(self._examples(ws))}"
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
                did_you_mean(self.catalogue.suggest(spec.name)) or f"known: {', '.join(self.catalogue.names())}",
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
            yield from fields.image(image, f"{field}.presetOptions.image")
        for index, name in enumerate((options.image_pull_secrets if options is not None else None) or ()):
            yield from fields.object_name(name, f"{field}.presetOptions.imagePullSecrets[{index}]")
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
            yield Problem("tuning.preset", "a preset must be specified", "name the model to tune")
        else:
            yield from self._preset(tuning.preset, resource, "tuning")
        yield from fields.source(tuning.input, "tuning.input")
        output = tuning.output
        if output.volume_source is not None:
            yield Problem("tuning.output.volumeSource", "volumes are not supported yet", "use image")
        elif not output.image:
            yield Problem("tuning.output", "a destination must be specified", "set image and imagePushSecret")
        if output.image:
            yield from fields.image(output.image, "tuning.output.image")
            if not output.image_push_secret:
                yield Problem(
                    "tuning.output.imagePushSecret",
                    "must be specified with a destination image",
                    "name a Secret of this namespace that may push",
                )
        if output.image_push_secret:
            yield from fields.object_name(output.image_push_secret, "tuning.output.imagePushSecret")


def _config(tuning: TuningSpec, config_maps: ConfigMaps | None) -> Iterator[Problem]:
    assert tuning.config is not None
    wrong = tuple(fields.object_name(tuning.config, "tuning.config", "ConfigMap"))
    yield from wrong
    if wrong or config_maps is None:
        return
    data = config_maps.get(tuning.config)
    if data is None:
        yield Problem("tuning.config", f"ConfigMap {tuning.config} was not found in this namespace", "create it first")
    else:
        yield from tuning_config(tuning.config, data, tuning.method or "")


def _covers(reported: str, field: str) -> bool:
    return field == reported or field.startswith((f"{reported}.", f"{reported}[")) or reported.startswith(f"{field}.")
