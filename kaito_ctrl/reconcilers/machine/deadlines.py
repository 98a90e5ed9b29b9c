"""How long a claim may be on its way: a limit for each stage, after which it is given up.

The time of a stage is measured by the monotonic clock, from when this process first saw the claim in it: a wall clock
that is set, ours or the API server's, kills no machine that is booting. A restart of the daemon begins anew, which
costs patience and nothing else. While the nodes as a whole are in trouble no time passes: a stage begins anew then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaito_api.karpenter import NodeRequest
from kaito_api.meta import find_condition, is_true
from kaito_ctrl.runtime import ObjectKey

__all__ = ["LAUNCHING", "LIMITS", "Stage", "Stopwatches", "stage_of"]

Stage = Literal["launch", "registration", "initialization", "absence"]
LIMITS: dict[Stage, float] = {"launch": 1800.0, "registration": 900.0, "initialization": 1800.0, "absence": 900.0}
"""Seconds: for the cloud to make the instance; from then until its node has joined (Karpenter's figure); from then
until it can be used; and for the Node object of a claim that was ready to be away."""
LAUNCHING = "Launching"
"""The reason of a claim that is not launched because the cloud is at work."""


def stage_of(claim: NodeRequest) -> Stage | None:
    """What there is a limit for now. A cloud that refuses may do so for ever: that is no stage."""
    conditions = claim.status.conditions
    if is_true(conditions, claim.initialized):
        return None
    if is_true(conditions, claim.registered):
        return "initialization"
    launched = find_condition(conditions, claim.launched)
    if launched is None:
        return None
    if launched.status == "True":
        return "registration"
    return "launch" if launched.reason == LAUNCHING else None


@dataclass(slots=True)
class _Lap:
    uid: str
    stage: Stage
    began: float


class Stopwatches:
    """One for each claim that is in a stage."""

    def __init__(self) -> None:
        self._laps: dict[ObjectKey, _Lap] = {}

    def left(self, key: ObjectKey, uid: str, stage: Stage | None, now: float, *, paused: bool = False) -> float | None:
        """Seconds until the stage of that claim has lasted too long, ``None`` if it is in none. *now* is monotonic."""
        if stage is None:
            self.forget(key)
            return None
        lap = self._laps.get(key)
        if lap is None or (lap.uid, lap.stage) != (uid, stage) or paused:
            lap = self._laps[key] = _Lap(uid, stage, now)
        return LIMITS[stage] - (now - lap.began)

    def forget(self, key: ObjectKey) -> None:
        """The claim is gone, or in no stage."""
        self._laps.pop(key, None)
