"""Label selectors as they stand in a query string, read where an object has to be judged without asking the server."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

__all__ = ["LabelMatcher", "label_matcher"]

LabelMatcher = Callable[[Mapping[str, str]], bool]
"""Whether an object of these labels is selected."""

_REQUIREMENT = re.compile(
    r"""\s*(?:
        !\s*(?P<absent>[^\s=!,()<>]+)
      | (?P<key>[^\s=!,()<>]+)\s*(?:
            (?P<operator>==?|!=)\s*(?P<value>[^\s=!,()<>]*)
          | (?<=\s)(?P<set>in|notin)\s*\((?P<values>\s*[^\s=!()<>][^=!()<>]*)\)
        )?
    )\s*(?:,(?=.)|$)""",
    re.VERBOSE,
)


@lru_cache(maxsize=256)
def label_matcher(selector: str) -> LabelMatcher | None:
    """What *selector* says; ``None`` for what is not understood here (``a > 1``), which only the server can judge."""
    tests: list[LabelMatcher] = []
    at = 0
    while at < len(selector):
        found = _REQUIREMENT.match(selector, at)
        if found is None:
            return None
        tests.append(_test(found))
        at = found.end()
    return lambda labels: all(test(labels) for test in tests)


def _test(found: re.Match[str]) -> LabelMatcher:
    absent, key = found["absent"], found["key"]
    if absent is not None:
        return lambda labels: absent not in labels
    if found["operator"] is None and found["set"] is None:
        return lambda labels: key in labels
    values = {found["value"]} if found["set"] is None else {each.strip() for each in found["values"].split(",")}
    if found["operator"] == "!=" or found["set"] == "notin":
        return lambda labels: labels.get(key) not in values
    return lambda labels: labels.get(key) in values
