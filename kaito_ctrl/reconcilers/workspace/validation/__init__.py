"""Whether a Workspace makes sense: one pure function for the webhook, the reconciler and the command line.

``Rules.check`` reports every problem at once, each with the field's path and what to do about it, and it never raises,
whatever it is given. On an update, a problem that the old object had too does not count, so an old object can always
be edited, and a deleting one is never held up.
"""

from kaito_ctrl.reconcilers.workspace.validation.problem import Problem, describe
from kaito_ctrl.reconcilers.workspace.validation.rules import ConfigMaps, Rules

__all__ = ["ConfigMaps", "Problem", "Rules", "describe"]
