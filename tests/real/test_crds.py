"""The CRDs are taken by a real API server, and let through it what others write, whole."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from kaito_api.crd import all_crds
from kaito_api.karpenter import NODE_REQUESTS
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.errors import Invalid
from kaito_ctrl.runtime.meta import collection_path
from kaito_ctrl.testing.controlplane import ControlPlane
from kaito_ctrl.testing.envtest import envtest
from tests.claims import KAITO_MACHINE, KAITO_NODECLAIM, KARPENTER_NODECLAIM, WHOLE_MACHINE


@pytest.mark.parametrize(
    "raw",
    [KAITO_MACHINE, WHOLE_MACHINE, KAITO_NODECLAIM, KARPENTER_NODECLAIM],
    ids=["kaito's machine", "every field of a machine", "kaito's claim", "karpenter's claim"],
)
async def test_what_others_write_passes_through_it_whole(plane: ControlPlane, raw: dict[str, Any]) -> None:
    kind = NODE_REQUESTS[raw["kind"].lower()]
    async with envtest(plane, crds=all_crds()) as env:
        stored = json.loads(await env.client.request("POST", collection_path(kind, None), body=copy.deepcopy(raw)))
        added = {"expireAfter": "720h"} if raw["kind"] == "NodeClaim" else {}
        assert stored["spec"] == {**added, **raw["spec"]}
        await env.client.delete(kind, ObjectKey("", raw["metadata"]["name"]))


async def test_it_keeps_to_patterns_bounds_and_enumerations(plane: ControlPlane) -> None:
    wrong: list[tuple[str, Any]] = [
        ("expireAfter", "forever"),
        ("requirements", [{"key": "-a", "operator": "In"}]),
        ("requirements", [{"key": "a", "operator": "Near"}]),
        ("nodeClassRef", {"group": "kaito.sh", "kind": "KaitoNodeClass"}),
        ("taints", [{"key": "", "effect": "NoSchedule"}]),
    ]
    async with envtest(plane, crds=all_crds()) as env:
        for name, value in wrong:
            raw = {**KAITO_NODECLAIM, "spec": {**KAITO_NODECLAIM["spec"], name: value}}
            with pytest.raises(Invalid, match=f"spec.{name}"):
                await env.client.request("POST", collection_path(NODE_REQUESTS["nodeclaim"], None), body=raw)
