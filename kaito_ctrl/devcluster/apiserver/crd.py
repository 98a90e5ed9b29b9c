"""CustomResourceDefinitions: their own rules, and the resources they add.

A definition is served from the moment it is created: its names are accepted at once unless another definition of its
group has them. Deleting it deletes its objects first; the cleanup finalizer holds it until they are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kaito_api.meta import rfc3339
from kaito_ctrl.devcluster.apiserver import cel_rules
from kaito_ctrl.devcluster.apiserver.conversion import Conversion
from kaito_ctrl.devcluster.apiserver.crd_conversion import conversion_errors, stored_version_errors
from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.jsonpath import JSONPathError, compile_path
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Resource, Scale, Strategy, metadata_fields
from kaito_ctrl.devcluster.apiserver.meta import is_dns1035, is_dns1123_subdomain
from kaito_ctrl.devcluster.apiserver.schema import ANY, OBJECT_META, Schema, from_openapi
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.structural import compile_pattern, fill_defaults, prune, validate
from kaito_ctrl.devcluster.apiserver.table import CustomPrinter

__all__ = ["CLEANUP", "CrdStrategy", "CustomStrategy", "CustomVersion", "build_resources", "compile_versions"]

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
_TYPES = ("array", "boolean", "integer", "number", "object", "string")


class CustomVersion:
    """One version of a definition, compiled."""

    def __init__(self, declared: Mapping[str, Any]) -> None:
        self.name: str = declared["name"]
        source = (declared.get("schema") or {}).get("openAPIV3Schema") or {}
        self.source: Mapping[str, Any] = source
        self.schema: Schema = from_openapi(source) if source else ANY
        # Everything but metadata counts as spec, for the generation and for the status subresource.
        self.schema.properties["apiVersion"] = Schema("string")
        self.schema.properties["kind"] = Schema("string")
        self.schema.properties["metadata"] = OBJECT_META
        self.metadata_schema = from_openapi((source.get("properties") or {}).get("metadata") or {})
        self.rules = cel_rules.compile_rules(source)

    def prune(self, obj: Obj) -> list[str]:
        return prune(obj, self.schema)

    def default(self, obj: Obj) -> None:
        fill_defaults(obj, self.schema)

    def validate(self, obj: Obj, old: Obj | None) -> Iterator[FieldError]:
        """Schema first; rules only over what the schema accepts, as the real server does."""
        body = {key: value for key, value in obj.items() if key not in {"apiVersion", "kind", "metadata"}}
        errors = list(validate(body, self.schema))
        meta = {key: obj["metadata"][key] for key in ("name", "generateName") if obj["metadata"].get(key)}
        errors += validate(meta, self.metadata_schema, "metadata")
        yield from errors
        if not errors:
            yield from self.rules.check(obj, old)


class CustomStrategy(Strategy):
    """The rules of a custom resource: those of its schema."""

    unconditional_update = False

    def __init__(self, version: CustomVersion, *, status: bool) -> None:
        self.version = version
        self._status = status

    def default(self, obj: Obj) -> None:
        self.version.default(obj)

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        if self._status:
            obj.pop("status", None)
            self.version.default(obj)

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        yield from self.version.validate(obj, None)

    def spec_changed(self, new: Obj, old: Obj) -> bool:
        ignored = {"apiVersion", "kind", "metadata"} | ({"status"} if self._status else set())
        keys = (new.keys() | old.keys()) - ignored
        return any(new.get(key) != old.get(key) for key in keys)


def _dotted(path: str) -> str:
    return path if path.startswith(".") else "." + path


def compile_versions(spec: Mapping[str, Any]) -> dict[str, CustomVersion]:
    """Every version of a definition, served or not."""
    return {declared["name"]: CustomVersion(declared) for declared in spec["versions"]}


def build_resources(
    crd: Mapping[str, Any], versions: Mapping[str, CustomVersion], conversion: Conversion
) -> Iterator[Resource]:
    """One resource per served version of *crd*, which has been defaulted and validated."""
    spec = crd["spec"]
    names = crd["status"]["acceptedNames"]
    storage_version = next(v["name"] for v in spec["versions"] if v.get("storage"))
    for declared in spec["versions"]:
        if not declared.get("served"):
            continue
        compiled = versions[declared["name"]]
        subresources = declared.get("subresources") or {}
        scale = subresources.get("scale")
        status = subresources.get("status") is not None
        selectable = {_dotted(f["jsonPath"])[1:]: f["jsonPath"] for f in declared.get("selectableFields") or ()}
        warning = ""
        if declared.get("deprecated"):
            api = f"{spec['group']}/{declared['name']} {names['kind']}"
            warning = declared.get("deprecationWarning") or f"{api} is deprecated"
        yield Resource(
            group=spec["group"],
            version=declared["name"],
            kind=names["kind"],
            plural=names["plural"],
            singular=names["singular"],
            list_kind=names["listKind"],
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            printer=CustomPrinter(declared.get("additionalPrinterColumns") or ()),
            schema=compiled.schema,
            strategy=CustomStrategy(compiled, status=status),
            status=status,
            scale=Scale(scale["specReplicasPath"], scale["statusReplicasPath"], scale.get("labelSelectorPath", ""))
            if scale
            else None,
            fields=_field_reader(selectable),
            selectable=frozenset(selectable),
            storage_version=storage_version,
            conversion=conversion if len(versions) > 1 else None,
            custom=compiled,
            deprecated_warning=warning,
        )


def _field_reader(selectable: Mapping[str, str]) -> Any:
    if not selectable:
        return metadata_fields
    compiled = {name: compile_path(path) for name, path in selectable.items()}

    def read(obj: Mapping[str, Any]) -> dict[str, str]:
        fields = metadata_fields(obj)
        for name, path in compiled.items():
            found = path(obj)
            value = found[0] if found else ""
            fields[name] = ("true" if value else "false") if isinstance(value, bool) else str(value)
        return fields

    return read


class CrdStrategy(Strategy):
    """``apiextensions.k8s.io/v1 CustomResourceDefinition``."""

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        names = spec.setdefault("names", {})
        kind = names.get("kind") or ""
        names["singular"] = names.get("singular") or kind.lower()
        names["listKind"] = names.get("listKind") or (f"{kind}List" if kind else "")
        spec.setdefault("conversion", {"strategy": "None"})
        service = ((spec["conversion"].get("webhook") or {}).get("clientConfig") or {}).get("service")
        if service is not None:
            service.setdefault("port", 443)

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {}
        self._accept(obj, None, env)
        metadata = obj["metadata"]
        metadata["finalizers"] = [*(f for f in metadata.get("finalizers") or () if f != CLEANUP), CLEANUP]

    def prepare_update(self, new: Obj, old: Obj, env: Environment) -> None:
        new["status"] = dict(old.get("status") or {})
        if new["spec"] != old.get("spec"):
            self._accept(new, old, env)

    def _accept(self, obj: Obj, old: Obj | None, env: Environment) -> None:
        """Names, conditions and stored versions: what the real server's controllers write a moment later."""
        spec, status = obj["spec"], obj["status"]
        now = rfc3339(env.clock.now())
        clash = self._clash(obj, env)
        before = {c["type"]: c for c in (old or {}).get("status", {}).get("conditions") or ()}

        def condition(kind: str, good: bool, reason: str, message: str) -> Obj:
            value = "True" if good else "False"
            have = before.get(kind)
            since = have["lastTransitionTime"] if have is not None and have["status"] == value else now
            return {"type": kind, "status": value, "lastTransitionTime": since, "reason": reason, "message": message}

        if clash:
            status["conditions"] = [
                condition("NamesAccepted", False, *clash),
                condition("Established", False, "NotAccepted", "not all names are accepted"),
            ]
            status.setdefault("acceptedNames", {"kind": "", "plural": ""})
        else:
            status["conditions"] = [
                condition("NamesAccepted", True, "NoConflicts", "no conflicts found"),
                condition("Established", True, "InitialNamesAccepted", "the initial names have been accepted"),
            ]
            status["acceptedNames"] = dict(spec.get("names") or {})
        stored = list(status.get("storedVersions") or ())
        current = next((v.get("name") for v in spec.get("versions") or () if v.get("storage")), None)
        if current and current not in stored:
            stored.append(current)
        status["storedVersions"] = stored

    def _clash(self, obj: Obj, env: Environment) -> tuple[str, str] | None:
        """Reason and message when a name belongs to another definition of the group; the last one found counts."""
        names, group = obj["spec"].get("names") or {}, obj["spec"].get("group")
        words: set[Any] = set()
        kinds: set[Any] = set()
        for stored in env.store.bucket("apiextensions.k8s.io", "customresourcedefinitions").items.values():
            other = stored.obj
            if other["metadata"]["name"] == obj["metadata"].get("name") or other["spec"]["group"] != group:
                continue
            taken = (other.get("status") or {}).get("acceptedNames") or {}
            words |= {taken.get("plural"), taken.get("singular"), *(taken.get("shortNames") or ())}
            kinds |= {taken.get("kind"), taken.get("listKind")}
        found = None
        for key, reason, used in (
            ("plural", "PluralConflict", words),
            ("singular", "SingularConflict", words),
            ("shortNames", "ShortNamesConflict", words),
            ("kind", "KindConflict", kinds),
            ("listKind", "ListKindConflict", kinds),
        ):
            value = names.get(key) or ""
            for name in value if isinstance(value, list) else [value]:
                if name and name in used:
                    found = (reason, f'"{name}" is already in use')
        return found

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        spec, name = obj["spec"], obj["metadata"].get("name") or ""
        names, group = spec["names"], spec.get("group") or ""
        plural = names.get("plural") or ""
        if name != f"{plural}.{group}":
            yield FieldError.invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
        if not group:
            yield FieldError.required("spec.group")
        else:
            for text in is_dns1123_subdomain(group):
                yield FieldError.invalid("spec.group", group, text)
            if "." not in group:
                yield FieldError.invalid("spec.group", group, "should be a domain with at least one dot")
        if spec.get("scope") not in {"Cluster", "Namespaced"}:
            yield FieldError.unsupported("spec.scope", spec.get("scope", ""), ["Cluster", "Namespaced"])
        for key in ("plural", "singular", "kind", "listKind"):
            value = names.get(key) or ""
            if not value:
                yield FieldError.required(f"spec.names.{key}")
            else:
                for text in is_dns1035(value.lower()):
                    yield FieldError.invalid(f"spec.names.{key}", value, text)
        yield from self._versions(spec)
        yield from conversion_errors(spec["conversion"])
        yield from stored_version_errors(obj["status"].get("storedVersions") or (), spec.get("versions") or ())

    def _versions(self, spec: Obj) -> Iterator[FieldError]:
        versions = spec.get("versions") or []
        if not versions:
            yield FieldError.required("spec.versions", "must have exactly one version marked as storage version")
            return
        if sum(bool(v.get("storage")) for v in versions) != 1:
            yield FieldError.invalid(
                "spec.versions", versions, "must have exactly one version marked as storage version"
            )
        seen: set[str] = set()
        for index, version in enumerate(versions):
            path = f"spec.versions[{index}]"
            if version.get("name") in seen:
                yield FieldError.duplicate(f"{path}.name", version.get("name"))
            seen.add(version.get("name") or "")
            source = (version.get("schema") or {}).get("openAPIV3Schema")
            if source is None:
                yield FieldError.required(f"{path}.schema.openAPIV3Schema", "schemas are required")
                continue
            here = f"{path}.schema.openAPIV3Schema"
            if source.get("type") != "object":
                yield FieldError.invalid(f"{here}.type", source.get("type", ""), "must be object at the root")
            yield from _structural_errors(source, here, root=True)
            yield from cel_rules.rule_errors(source, here)
            for number, column in enumerate(version.get("additionalPrinterColumns") or ()):
                where = f"{path}.additionalPrinterColumns[{number}]"
                for key in ("name", "type", "jsonPath"):
                    if not column.get(key):
                        yield FieldError.required(f"{where}.{key}")
                yield from _column_errors(column, where)
                if column.get("jsonPath"):
                    try:
                        compile_path(column["jsonPath"])
                    except JSONPathError as error:
                        yield FieldError.invalid(f"{where}.jsonPath", column["jsonPath"], str(error))


_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")


def _column_errors(column: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """What is wrong with a printer column, but for what is missing from it."""
    for key, allowed in (("type", _COLUMN_TYPES), ("format", _COLUMN_FORMATS)):
        value = column.get(key) or ""
        if value and value not in allowed:
            yield FieldError.invalid(f"{path}.{key}", value, f"must be one of {','.join(allowed)}")
    where = column.get("jsonPath") or ""
    if where and not where.startswith("."):
        yield FieldError.invalid(f"{path}.jsonPath", where, "must be a simple json path starting with .")


def _structural_errors(source: Mapping[str, Any], path: str, *, root: bool = False) -> Iterator[FieldError]:
    """What makes a schema not structural."""
    kind = source.get("type") or ""
    free = source.get("x-kubernetes-int-or-string") or source.get("x-kubernetes-preserve-unknown-fields")
    if not kind and not free:
        yield FieldError.required(f"{path}.type", "must not be empty for specified object fields")
    elif kind and kind not in _TYPES:
        yield FieldError.unsupported(f"{path}.type", kind, _TYPES)
    if source.get("pattern"):
        try:
            compile_pattern(source["pattern"])
        except re.error as error:
            yield FieldError.invalid(
                f"{path}.pattern", source["pattern"], f"must be a valid regular expression, but isn't: {error}"
            )
    if source.get("properties") and isinstance(source.get("additionalProperties"), (dict, bool)):
        yield FieldError.forbidden(
            f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive"
        )
    if source.get("uniqueItems"):
        yield FieldError.forbidden(
            f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        )
    if kind == "array" and not isinstance(source.get("items"), Mapping):
        yield FieldError.required(f"{path}.items", "must be specified")
    if source.get("x-kubernetes-list-type") == "map" and not source.get("x-kubernetes-list-map-keys"):
        yield FieldError.required(
            f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map"
        )
    if "default" in source and not root:
        probe = from_openapi(source)
        if not source.get("nullable") or source["default"] is not None:
            for problem in validate(source["default"], probe, ""):
                yield FieldError.invalid(f"{path}.default", source["default"], problem.detail or problem.body)
    for key, child in (source.get("properties") or {}).items():
        if root and key in {"apiVersion", "kind", "metadata"}:
            continue
        yield from _structural_errors(child, f"{path}.properties[{key}]")
    if isinstance(source.get("items"), Mapping):
        yield from _structural_errors(source["items"], f"{path}.items")
    if isinstance(source.get("additionalProperties"), Mapping):
        yield from _structural_errors(source["additionalProperties"], f"{path}.additionalProperties")
