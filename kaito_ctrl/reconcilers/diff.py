"""Whether an object already is as wanted, so that it is not written again.

Two questions. Was this very text applied last? A hash of it in an annotation says so; it is what notices a field
that is no longer wanted. And does the object still hold it? Every field that we set is there with our value, up to
what the API server makes of it: it drops empty values, and writes quantities its own way. Fields that we do not set
are the server's or somebody else's.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

from kaito_api.meta import Resource
from kaito_api.quantity import parse_quantity
from kaito_ctrl.reconcilers.names import APPLIED_HASH_ANNOTATION
from kaito_ctrl.runtime.codec import encode_json

__all__ = ["covers", "is_applied", "is_edited", "stamped"]

R = TypeVar("R", bound=Resource)


def stamped(wanted: R) -> R:
    """*wanted* with the hash of what it says in its annotations."""
    digest = hashlib.sha256(encode_json(wanted.to_wire())).hexdigest()[:16]
    metadata = wanted.metadata
    annotations = {**metadata.annotations, APPLIED_HASH_ANNOTATION: digest}
    return wanted.evolve(metadata=metadata.evolve(annotations=annotations))


def covers(live: Any, wanted: Any) -> bool:
    """Whether *live* (plain JSON) holds everything that *wanted* does."""
    if isinstance(wanted, dict) and wanted:
        return isinstance(live, dict) and all(covers(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list | tuple) and wanted:
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(have, want) for have, want in zip(live, wanted, strict=True))
        )
    if not wanted and not live:
        return True  # empty, zero and absent are the same to the server
    return bool(live == wanted) or _same_quantity(live, wanted)


def _same_quantity(live: Any, wanted: Any) -> bool:
    try:
        return parse_quantity(live) == parse_quantity(wanted)
    except (TypeError, ValueError):
        return False


def is_applied(live: dict[str, Any], wanted: Resource, owner: Resource) -> bool:
    """Whether applying *wanted* (stamped) for *owner* over the object *live* would change nothing that we own."""
    return _owned(live, owner) and covers(live, wanted.to_wire())


def is_edited(live: dict[str, Any], wanted: Resource, owner: Resource) -> bool:
    """Whether somebody has changed the spec of *live* since *wanted* (stamped) was applied to it for *owner*."""
    found = live.get("metadata", {}).get("annotations", {}).get(APPLIED_HASH_ANNOTATION)
    same = found == wanted.metadata.annotations[APPLIED_HASH_ANNOTATION]
    spec = wanted.to_wire().get("spec")
    return same and spec is not None and _owned(live, owner) and not covers(live.get("spec"), spec)


def _owned(live: dict[str, Any], owner: Resource) -> bool:
    references = live.get("metadata", {}).get("ownerReferences", ())
    return any(each.get("uid") == owner.uid and each.get("controller") for each in references)
