"""Whether an object already is as wanted: every field that we set is there with our value.

Fields that we do not set are the server's or somebody else's. Lists are compared element by element, so a list that
somebody added to differs.
"""

from __future__ import annotations

from typing import Any

from kaito_api.meta import Resource

__all__ = ["covers", "is_applied"]


def covers(live: Any, wanted: Any) -> bool:
    """Whether *live* (plain JSON) holds everything that *wanted* does."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(key in live and covers(live[key], value) for key, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(have, want) for have, want in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def is_applied(live: dict[str, Any], wanted: Resource, owner: Resource | None) -> bool:
    """Whether applying *wanted* over the object *live* would change nothing that we own."""
    wire = wanted.to_wire()
    if owner is not None:
        uid = owner.uid
        references = live.get("metadata", {}).get("ownerReferences", ())
        if not any(each.get("uid") == uid and each.get("controller") for each in references):
            return False
    return covers(live, wire)
