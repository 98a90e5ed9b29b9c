"""The workspace's rules as webhooks.

They are asked twice, under the two names that the API server knows. Before the schema, so that one answer names
every problem, those that the schema would refuse with a shorter list included; and after it, when nothing changes
any more.
"""

from __future__ import annotations

from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.validation import Rules, describe
from kaito_ctrl.runtime.admission import AdmissionRequest, AdmissionResponse, AdmissionWebhook

__all__ = ["workspace_webhooks"]


def workspace_webhooks(rules: Rules) -> tuple[AdmissionWebhook, ...]:
    """The webhooks for Workspaces under *rules*."""

    def handle(request: AdmissionRequest) -> AdmissionResponse:
        if request.object is None:
            return AdmissionResponse(True)
        problems = rules.check(request.object, request.old)
        if problems:
            return AdmissionResponse(False, describe(problems), 400, "BadRequest")
        return AdmissionResponse(True)

    # One name for both, KAITO's: it is what users see in a refusal, and what they search for.
    name = "validation.workspace.kaito.sh"
    return (
        AdmissionWebhook(name, Workspace, handle, "/default/workspace.kaito.sh", mutating=True),
        AdmissionWebhook(name, Workspace, handle, "/validate/workspace.kaito.sh"),
    )
