"""The workspace's rules as webhooks.

They are asked twice, under the two names that the API server knows. Before the schema, so that one answer names
every problem, those that the schema would refuse with a shorter list included; and after it, when nothing changes
any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaito_api.core import ConfigMap
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.validation import ConfigMaps, Rules, describe
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.admission import AdmissionRequest, AdmissionResponse, AdmissionWebhook
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import KubeError, NotFound

__all__ = ["named_config_maps", "workspace_webhooks"]


async def named_config_maps(raw: Mapping[str, Any], namespace: str, client: Client) -> ConfigMaps | None:
    """The ConfigMap that a Workspace in plain JSON names, read live: none of that name when there is none, and ``None``
    when it names none, or when it cannot be read just now."""
    tuning = raw.get("tuning")
    name = tuning.get("config") if isinstance(tuning, Mapping) else None
    if not isinstance(name, str) or not name or not namespace:
        return None
    try:
        found = decode_json(await client.get_raw(ConfigMap, ObjectKey(namespace, name)))
    except NotFound:
        return {}
    except (KubeError, ValueError):
        return None
    return {name: found.get("data") or {}}


def workspace_webhooks(rules: Rules, client: Client) -> tuple[AdmissionWebhook, ...]:
    """The webhooks for Workspaces under *rules*; *client* reads the ConfigMaps that they name."""

    async def judge(request: AdmissionRequest) -> AdmissionResponse:
        if request.object is None:
            return AdmissionResponse(True)
        maps = await named_config_maps(request.object, request.namespace, client)
        problems = rules.check(request.object, request.old, config_maps=maps)
        if problems:
            return AdmissionResponse(False, describe(problems), 400, "BadRequest")
        return AdmissionResponse(True)

    async def judge_and_warn(request: AdmissionRequest) -> AdmissionResponse:
        response = await judge(request)
        if not response.allowed or request.object is None:
            return response
        return AdmissionResponse(True, warnings=tuple(str(each) for each in rules.warnings(request.object)))

    # One name for both, KAITO's: it is what users see in a refusal, and what they search for.
    name = "validation.workspace.kaito.sh"
    return (
        AdmissionWebhook(name, Workspace, judge, "/default/workspace.kaito.sh", mutating=True),
        AdmissionWebhook(name, Workspace, judge_and_warn, "/validate/workspace.kaito.sh"),
    )
