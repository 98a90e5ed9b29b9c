"""Service -> Endpoints and EndpointSlice: where the pods behind a selector can be reached, ready or not."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from typing import Any

from kaito_api.core import EndpointAddress, EndpointPort, Endpoints, EndpointSubset, Service, ServicePort
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.kinds import EndpointSlice, Pod, safe_hash
from kaito_ctrl.devcluster.pods import is_finished, is_ready
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, key_of, owns, watches
from kaito_ctrl.runtime.errors import NotFound

__all__ = ["EndpointsController", "plan_endpoints", "plan_slice"]

_Ports = tuple[tuple[str | None, int, str], ...]


def _target(port: ServicePort, pod: Pod) -> int | None:
    """The number that *port* leads to on *pod*; ``None`` when no container port has that name."""
    target = port.target_port if port.target_port not in (None, "", 0) else port.port
    if isinstance(target, str) and target.isdigit():
        target = int(target)
    if isinstance(target, int):
        return target
    for container in pod.spec.containers:
        for offered in container.ports:
            if offered.name == target and offered.protocol == port.protocol:
                return offered.container_port
    return None


def _ports(service: Service, pod: Pod) -> _Ports:
    ports = ((each.name, _target(each, pod), each.protocol) for each in service.spec.ports)
    return tuple((name, number, protocol) for name, number, protocol in ports if number is not None)


def _behind(service: Service, pods: Collection[Pod]) -> list[Pod]:
    """The pods that can be reached at all."""
    chosen = service.spec.selector.items()
    return [
        pod
        for pod in pods
        if chosen <= pod.metadata.labels.items()
        and pod.status.pod_ip
        and not is_finished(pod)
        and (not pod.deleting or service.spec.publish_not_ready_addresses)
    ]


def _reference(pod: Pod) -> dict[str, str]:
    return {"kind": "Pod", "namespace": pod.namespace or "", "name": pod.name, "uid": pod.uid}


def plan_endpoints(service: Service, pods: Collection[Pod]) -> Endpoints:
    """The Endpoints of *service*: one subset for each set of ports that its names resolve to. Pure."""
    groups: dict[_Ports, tuple[list[EndpointAddress], list[EndpointAddress]]] = {}
    for pod in _behind(service, pods):
        ports = _ports(service, pod)
        if service.spec.ports and not ports:
            continue  # none of its containers has a port of that name
        address = EndpointAddress(
            ip=pod.status.pod_ip,
            node_name=pod.spec.node_name,
            hostname=pod.spec.hostname if pod.spec.subdomain == service.name else None,
            target_ref=_reference(pod),
        )
        ready, waiting = groups.setdefault(ports, ([], []))
        (ready if is_ready(pod) or service.spec.publish_not_ready_addresses else waiting).append(address)
    subsets = [
        EndpointSubset(
            **({"addresses": tuple(sorted(ready, key=lambda each: each.ip))} if ready else {}),
            **({"not_ready_addresses": tuple(sorted(waiting, key=lambda each: each.ip))} if waiting else {}),
            ports=tuple(EndpointPort(name=name, port=number, protocol=protocol) for name, number, protocol in ports),
        )
        for ports, (ready, waiting) in sorted(groups.items(), key=repr)
    ]
    return Endpoints(
        metadata=ObjectMeta(name=service.name, namespace=service.namespace, labels=dict(service.metadata.labels)),
        subsets=tuple(subsets),
    )


def plan_slice(service: Service, pods: Collection[Pod]) -> EndpointSlice:
    """The same as one EndpointSlice; its ports are those of the first pod, as named ports rarely differ. Pure."""
    behind = sorted(_behind(service, pods), key=lambda pod: pod.name)
    ports = _ports(service, behind[0]) if behind else ()
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"{service.name[:57]}-{safe_hash(service.uid, 5)}",
            namespace=service.namespace,
            labels={
                **service.metadata.labels,
                "kubernetes.io/service-name": service.name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            owner_references=(service.owner_reference(),),
        ),
        address_type="IPv4",
        endpoints=tuple(_endpoint(service, pod) for pod in behind if _ports(service, pod) == ports),
        ports=tuple({"name": name or "", "port": number, "protocol": protocol} for name, number, protocol in ports),
    )


def _endpoint(service: Service, pod: Pod) -> dict[str, Any]:
    ready = is_ready(pod)
    return {
        "addresses": [pod.status.pod_ip],
        "conditions": {
            "ready": service.spec.publish_not_ready_addresses or (ready and not pod.deleting),
            "serving": ready,
            "terminating": pod.deleting,
        },
        "nodeName": pod.spec.node_name,
        "targetRef": _reference(pod),
    }


def _selecting(pod: Pod, cache: Reader) -> Iterable[ObjectKey]:
    """The services whose selector matches the pod."""
    labels = pod.metadata.labels.items()
    services = cache.list(Service, pod.namespace)
    return [key_of(each) for each in services if each.spec.selector and each.spec.selector.items() <= labels]


def _namesake(endpoints: Endpoints, _: Reader) -> Iterable[ObjectKey]:
    return (key_of(endpoints),)


class EndpointsController(Controller[Service]):
    """The shell. A service without a selector is somebody else's to fill in."""

    name = "endpoints"
    kind = Service
    sources = (watches(Pod, _selecting), watches(Endpoints, _namesake), owns(EndpointSlice))

    async def reconcile(self, obj: Service, ctx: Context) -> Result:
        if not obj.spec.selector or obj.spec.type == "ExternalName":
            return Result.done()
        pods = ctx.cache.list(Pod, obj.namespace, labels=obj.spec.selector)
        wanted = plan_endpoints(obj, pods)
        known = ctx.cache.get(Endpoints, obj.name, obj.namespace)
        if known is None:
            await ctx.client.create(wanted)
        elif known.subsets != wanted.subsets or known.metadata.labels != wanted.metadata.labels:
            body = wanted.to_wire()
            patch = {"metadata": {"labels": body["metadata"].get("labels")}, "subsets": body.get("subsets")}
            await ctx.client.patch(Endpoints, ctx.key, patch)
        sliced = plan_slice(obj, pods)
        cut = ctx.cache.get(EndpointSlice, sliced.name, obj.namespace)
        if cut is None:
            await ctx.client.create(sliced)
        elif (cut.endpoints, cut.ports) != (sliced.endpoints, sliced.ports):
            body = sliced.to_wire()
            await ctx.client.patch(
                EndpointSlice, key_of(sliced), {"endpoints": body["endpoints"], "ports": body["ports"]}
            )
        return Result.done()

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        # Endpoints have no owner, in Kubernetes either: who made them takes them away.
        known = ctx.cache.get(Endpoints, key.name, key.namespace)
        if known is not None and not known.deleting:
            with contextlib.suppress(NotFound):
                await ctx.client.delete(Endpoints, key, uid=known.uid)
