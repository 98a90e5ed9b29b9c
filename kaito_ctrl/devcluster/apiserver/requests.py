"""What a request asks for: its path, its options, and the form of answer it wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from kaito_ctrl.devcluster.apiserver.errors import FieldError, GoValue, StatusError, bad_request, invalid
from kaito_ctrl.devcluster.apiserver.identity import User

__all__ = ["Accept", "Call", "Query", "Target", "parse_accept", "parse_path", "parse_rv"]


@dataclass(frozen=True, slots=True)
class Target:
    """A path under ``/api`` or ``/apis``, taken apart."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    tail: str = ""
    """What follows a subresource: the path of a proxy request."""
    watch: bool = False
    """The old ``/watch/`` prefix."""


def parse_path(path: str) -> Target | None:
    """The target of *path*, or ``None`` when it names no resource."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    watch = rest[0] == "watch" and len(rest) > 1
    if watch:
        rest = rest[1:]
    namespace = ""
    # /namespaces/x and its own subresources are the namespace itself; anything longer lies in it.
    if rest[0] == "namespaces" and len(rest) >= 3 and not (len(rest) == 3 and rest[2] in {"status", "finalize"}):
        namespace, rest = rest[1], rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    return Target(group, version, rest[0], namespace, name, subresource, "/".join(rest[3:]), watch)


class Query:
    """The query string; the first value of a key counts, as in Go."""

    __slots__ = ("_first", "pairs")

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs
        self._first: dict[str, str] = {}
        for key, value in pairs:
            self._first.setdefault(key, value)

    def __contains__(self, key: str) -> bool:
        return key in self._first

    def get(self, key: str, default: str = "") -> str:
        return self._first.get(key, default)

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.pairs if name == key]

    def flag(self, key: str) -> bool:
        return self._first.get(key, "") not in {"", "false", "0", "f", "F", "False", "FALSE"}

    def number(self, key: str) -> int | None:
        """An integer option. Raises a 400 for anything else."""
        text = self._first.get(key, "")
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def parse_rv(text: str) -> int:
    """A resourceVersion from a query. Raises the 500 of a real server for what is no number."""
    if not text.isascii() or not text.isdigit():
        why = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise StatusError(500, "", why)
    return int(text)


APPLY = "application/apply-patch+yaml"
MANAGER_LIMIT = 128

Form = Literal["object", "table", "partial", "partial-list"]


@dataclass(frozen=True, slots=True)
class Accept:
    """The form of the answer. ``version`` is that of ``meta.k8s.io`` for tables and partial objects."""

    form: Form = "object"
    version: str = "v1"
    yaml: bool = False


def parse_accept(header: str) -> Accept | None:
    """The first acceptable form that *header* names; ``None`` when it names none we have."""
    if not header:
        return Accept()
    for clause in header.split(","):
        media, *parameters = (part.strip() for part in clause.split(";"))
        options = dict(part.split("=", 1) for part in parameters if "=" in part)
        if media in {"application/yaml", "text/yaml"}:
            return Accept(yaml=True)
        if media not in {"application/json", "*/*", "application/*", "text/plain", "text/html"}:
            continue
        kind = options.get("as", "")
        if not kind:
            return Accept()
        if options.get("g") != "meta.k8s.io" or options.get("v") not in {"v1", "v1beta1"}:
            continue
        if kind == "Table":
            return Accept("table", options["v"])
        if kind == "PartialObjectMetadata":
            return Accept("partial", options["v"])
        if kind == "PartialObjectMetadataList":
            return Accept("partial-list", options["v"])
    return None


_OPTIONS = {"POST": "CreateOptions", "PUT": "UpdateOptions", "PATCH": "PatchOptions", "DELETE": "DeleteOptions"}
_VALIDATIONS = {"": "Warn", "Ignore": "Ignore", "Warn": "Warn", "Strict": "Strict"}


@dataclass(slots=True)
class Call:
    """One request to one resource, with the options that every write shares."""

    method: str
    target: Target
    query: Query
    headers: Mapping[str, str]
    body: bytes | None
    user: User
    accept: Accept
    warnings: list[str] = field(default_factory=list)
    known: Callable[[str, str], bool] = lambda api_version, kind: True
    """Whether anything of that version and kind is served."""

    @property
    def dry_run(self) -> bool:
        """Raises a 422 for any value but ``All``."""
        values = self.query.all("dryRun")
        if values and any(value != "All" for value in values):
            shown = GoValue("[]string{" + ", ".join(f'"{value}"' for value in values) + "}")
            error = FieldError.unsupported("dryRun", shown, ["All"])
            raise invalid("meta.k8s.io", _OPTIONS.get(self.method, "CreateOptions"), "", [error])
        return bool(values)

    @property
    def field_validation(self) -> str:
        text = self.query.get("fieldValidation")
        if text not in _VALIDATIONS:
            error = FieldError.unsupported("fieldValidation", text, ["", "Ignore", "Strict", "Warn"])
            raise invalid("meta.k8s.io", "CreateOptions", "", [error])
        return _VALIDATIONS[text]

    @property
    def strict_body(self) -> bool:
        """Whether duplicate keys of the body are looked for; only when asked, it costs a slower parser."""
        return self.query.get("fieldValidation") in {"Warn", "Strict"}

    @property
    def field_manager(self) -> str:
        """Who is recorded in managedFields: the option, else the program's name in the User-Agent."""
        given = self.query.get("fieldManager")
        if given:
            return given
        agent = self.headers.get("user-agent", "").split("/")[0].split(" ")[0]
        return agent[:128] or self.user.name.rpartition(":")[2] or "unknown"

    def check_options(self) -> None:
        """Raises a 422 for options of a write that cannot be."""
        kind = _OPTIONS.get(self.method)
        if kind is None or kind == "DeleteOptions":
            return
        errors = []
        manager = self.query.get("fieldManager")
        if len(manager.encode()) > MANAGER_LIMIT:
            errors.append(
                FieldError("FieldValueTooLong", "fieldManager", detail=f"may not be more than {MANAGER_LIMIT} bytes")
            )
        for position, letter in enumerate(manager):
            if not letter.isprintable():
                why = f"invalid character U+{ord(letter):04X} (at position {position})"
                errors.append(FieldError.invalid("fieldManager", manager, why))
                break
        if kind == "PatchOptions" and "force" in self.query and not self.content_type.startswith(APPLY):
            errors.append(FieldError.forbidden("force", "may not be specified for non-apply patch"))
        if errors:
            raise invalid("meta.k8s.io", kind, "", errors)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    def option_list(self) -> dict[str, Any]:
        """The options as an admission review shows them."""
        found: dict[str, Any] = {}
        if self.query.get("fieldManager"):
            found["fieldManager"] = self.query.get("fieldManager")
        if self.dry_run:
            found["dryRun"] = ["All"]
        if self.query.get("fieldValidation"):
            found["fieldValidation"] = self.query.get("fieldValidation")
        return found
