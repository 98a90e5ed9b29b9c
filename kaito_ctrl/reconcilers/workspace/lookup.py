"""What belongs to a workspace, found in the cache without going through everything: a thousand workspaces have a
thousand nodes, and each is looked at whenever something happens to the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kaito_api.core import Node, Pod
from kaito_api.karpenter import NodeRequest
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import RESERVED_LABEL_DOMAINS, WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL
from kaito_ctrl.reconcilers.workspace.nodes import required_labels
from kaito_ctrl.reconcilers.workspace.services import HEADLESS
from kaito_ctrl.runtime import ObjectKey, Reader, key_of
from kaito_ctrl.runtime.store import Indexer

__all__ = [
    "CLAIM_INDEXES",
    "NODE_INDEXES",
    "POD_INDEXES",
    "WORKSPACE_INDEXES",
    "claims_of",
    "namesake",
    "nodes_for",
    "pods_of",
    "workspaces_of",
]


def _label_pairs(labels: Mapping[str, str]) -> Iterable[str]:
    """The labels that a selector may ask for."""
    return (
        f"{key}={value}"
        for key, value in sorted(labels.items())
        if not any(f"{key.rpartition('/')[0]}/".endswith(reserved) for reserved in RESERVED_LABEL_DOMAINS)
    )


def _first_wanted(ws: Workspace) -> tuple[str, ...]:
    """One of the labels that a node of *ws* must have."""
    return tuple(_label_pairs(required_labels(ws.resource)))[:1]


def _workspace(obj: Resource) -> tuple[str, ...]:
    labels = obj.metadata.labels
    if WORKSPACE_LABEL not in labels:
        return ()
    return (f"{labels.get(WORKSPACE_NAMESPACE_LABEL, '')}/{labels[WORKSPACE_LABEL]}",)


def _of_namespace(pod: Pod) -> tuple[str, ...]:
    labels = pod.metadata.labels
    return (f"{pod.namespace}/{labels[WORKSPACE_LABEL]}",) if WORKSPACE_LABEL in labels else ()


NODE_INDEXES: dict[str, Indexer[Any]] = {"label": lambda node: _label_pairs(node.metadata.labels)}
WORKSPACE_INDEXES: dict[str, Indexer[Any]] = {
    # Without a label to go by, a workspace has to be asked about every node.
    "wants": lambda ws: _first_wanted(ws) or ("",),
    "uses": lambda ws: ws.status.worker_nodes,
}
CLAIM_INDEXES: dict[str, Indexer[Any]] = {"workspace": _workspace}
POD_INDEXES: dict[str, Indexer[Any]] = {"workspace": _of_namespace}


def nodes_for(ws: Workspace, claims: Iterable[NodeRequest], cache: Reader) -> Sequence[Node]:
    """The nodes that *ws* may use, those that its *claims* name, and perhaps others."""
    wanted = _first_wanted(ws)
    if not wanted:
        return cache.list(Node)
    found = {node.name: node for node in cache.list(Node, index=("label", wanted[0]))}
    for claim in claims:
        name = claim.status.node_name
        if name and name not in found and (node := cache.get(Node, name)) is not None:
            found[name] = node
    return tuple(found.values())


def claims_of(kind: type[NodeRequest], key: ObjectKey, cache: Reader) -> tuple[NodeRequest, ...]:
    """The claims of that *kind* of the workspace of that key."""
    return cache.list(kind, index=("workspace", f"{key.namespace}/{key.name}"))


def pods_of(key: ObjectKey, cache: Reader) -> tuple[Pod, ...]:
    """The pods of the workspace of that key."""
    return cache.list(Pod, index=("workspace", f"{key.namespace}/{key.name}"))


def namesake(part: Resource, cache: Reader) -> Iterable[ObjectKey]:
    """The workspace, if there is one, whose own object would have the name of *part*."""
    names = dict.fromkeys((part.name, part.name.removesuffix(HEADLESS)))
    keys = [ObjectKey(part.namespace or "", name) for name in names]
    return [key for key in keys if cache.get(Workspace, key.name, key.namespace) is not None]


def workspaces_of(node: Node, cache: Reader) -> Iterable[ObjectKey]:
    """Whose selector matches *node*, and who uses it."""
    found: dict[ObjectKey, None] = {}
    for ws in cache.list(Workspace, index=("uses", node.name)):
        found[key_of(ws)] = None
    for wanted in (*_label_pairs(node.metadata.labels), ""):
        for ws in cache.list(Workspace, index=("wants", wanted)):
            if ws.resource.label_selector.matches(node.metadata.labels):
                found[key_of(ws)] = None
    return found
