"""What one pass writes down on its claim: at once what the next process must know, at its end what people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kaito_api.karpenter import NodeRequest
from kaito_api.meta import Condition
from kaito_ctrl.reconcilers.machine.conditions import Verdict, conclude
from kaito_ctrl.reconcilers.machine.salvage import salvage
from kaito_ctrl.runtime import Context
from kaito_ctrl.runtime.errors import Forbidden, Invalid, NotFound

__all__ = ["ClaimRecord"]


class ClaimRecord:
    """A claim that was read live, and what is written to it.

    Nothing is written that is there already, and each write holds for the claim as it is known here: it raises
    ``Conflict`` when somebody else has written meanwhile.
    """

    def __init__(self, claim: NodeRequest, ctx: Context) -> None:
        self.claim = claim
        """As it is after what has been written."""
        self._ctx = ctx
        self._verdicts: list[Verdict] = []

    def say(self, kind: str, word: Literal["True", "False", "Waiting"], reason: str = "", message: str = "") -> None:
        """A condition, to be written at the end."""
        self._verdicts.append(Verdict(kind, word, reason, message))

    async def annotate(self, key: str, value: str) -> None:
        """Have it carry that annotation; with an empty value, carry it no more."""
        if self.claim.metadata.annotations.get(key, "") != value:
            await self._patch({"annotations": {key: value or None}})

    async def set_provider_id(self, provider_id: str) -> None:
        """Have its status say which instance is its own."""
        if self.claim.status.provider_id != provider_id:
            await self._patch({}, {"providerID": provider_id})

    async def write(self) -> None:
        """Write the conditions that were said, if they are news. What cannot be said must not keep what costs money:
        a claim that refuses it, or is gone, is no error."""
        claim = self.claim
        conditions = conclude(claim, self._verdicts, self._ctx.now()) if self._verdicts else claim.status.conditions
        if conditions == claim.status.conditions:
            return
        try:
            await self._patch({}, {"conditions": [_wire(each) for each in conditions]})
        except NotFound:
            pass
        except (Invalid, Forbidden) as error:
            self._ctx.log.warning("the status cannot be written", error=str(error))

    async def _patch(self, metadata: Mapping[str, Any], status: Mapping[str, Any] | None = None) -> None:
        kind, known = type(self.claim), self.claim.metadata
        patch: dict[str, Any] = {"metadata": {**metadata, "uid": known.uid, "resourceVersion": known.resource_version}}
        if status is not None:
            patch["status"] = status
        subresource = "status" if status is not None else None
        raw = await self._ctx.client.patch_raw(kind, self._ctx.key, patch, subresource=subresource)
        self.claim = salvage(kind, raw)


def _wire(condition: Condition) -> dict[str, Any]:
    # There are API servers (1.20, built with Go 1.16 or later) that take an empty string for a null, and refuse it.
    return {key: value for key, value in condition.to_wire().items() if value != ""}
