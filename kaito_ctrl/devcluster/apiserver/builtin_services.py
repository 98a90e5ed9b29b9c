"""Services: ports, families, and the cluster IP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Strategy
from kaito_ctrl.devcluster.apiserver.meta import is_dns1035, is_dns1123_label, validate_labels
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["ServiceStrategy"]


class ServiceStrategy(Strategy):
    """``v1 Service``."""

    generation = False

    def name_errors(self, name: str) -> list[str]:
        return is_dns1035(name)

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("sessionAffinity", "None")
        if spec["sessionAffinity"] == "ClientIP":
            client = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
            client.setdefault("timeoutSeconds", 10800)
        kind = spec.setdefault("type", "ClusterIP")
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in (None, 0, ""):
                port["targetPort"] = port.get("port", 0)
        if kind != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
        if kind in {"NodePort", "LoadBalancer"}:
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if kind == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
        if spec.get("clusterIPs") and not spec.get("clusterIP"):
            spec["clusterIP"] = spec["clusterIPs"][0]
        elif spec.get("clusterIP") and not spec.get("clusterIPs"):
            spec["clusterIPs"] = [spec["clusterIP"]]
        for key in ("clusterIP",):
            if spec.get(key) == "":
                del spec[key]

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"loadBalancer": {}}

    def allocate(self, obj: Obj, env: Environment, old: Obj | None = None) -> Iterator[FieldError]:
        """Give the service its addresses and node ports; runs once everything else is known to be right."""
        spec = obj["spec"]
        if spec["type"] == "ExternalName":
            spec.pop("clusterIPs", None)
            return
        spec.setdefault("ipFamilies", [getattr(env.addresses, "family", "IPv4")])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        if spec.get("clusterIP") != "None" and (old is None or not old["spec"].get("clusterIP")):
            wanted = spec.get("clusterIP") or ""
            try:
                spec["clusterIP"] = env.addresses.take(wanted)
            except ValueError as error:
                yield FieldError.invalid("spec.clusterIPs", [wanted], str(error))
                return
        spec["clusterIPs"] = [spec["clusterIP"]]
        if spec["type"] in {"NodePort", "LoadBalancer"}:
            self._node_ports(spec, env)

    def _node_ports(self, spec: Obj, env: Environment) -> None:
        taken = {
            port.get("nodePort")
            for stored in env.store.bucket("", "services").items.values()
            for port in stored.obj["spec"].get("ports") or ()
        }
        for port in spec.get("ports") or ():
            while not port.get("nodePort"):
                candidate = 30000 + env.rng.randrange(2768)
                if candidate not in taken:
                    port["nodePort"] = candidate
                    taken.add(candidate)

    def prepare_update(self, new: Obj, old: Obj, env: Environment) -> None:
        after, before = new["spec"], old["spec"]
        if after["type"] == "ExternalName" or before.get("type") == "ExternalName":
            return
        # Callers that replace a service without these keep them.
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if not after.get(key) and before.get(key):
                after[key] = before[key]
        if after["type"] in {"NodePort", "LoadBalancer"}:
            known = {(p.get("name", ""), p["port"]): p.get("nodePort") for p in before.get("ports") or ()}
            for port in after.get("ports") or ():
                kept = known.get((port.get("name", ""), port.get("port")))
                if kept and not port.get("nodePort"):
                    port["nodePort"] = kept

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        spec = obj["spec"]
        kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]
        if spec["type"] not in kinds:
            yield FieldError.unsupported("spec.type", spec["type"], kinds)
        if spec["sessionAffinity"] not in {"ClientIP", "None"}:
            yield FieldError.unsupported("spec.sessionAffinity", spec["sessionAffinity"], ["ClientIP", "None"])
        yield from validate_labels(spec.get("selector") or {}, "spec.selector")
        headless = spec.get("clusterIP") == "None"
        ports = spec.get("ports") or []
        if spec["type"] == "ExternalName":
            if not spec.get("externalName"):
                yield FieldError.required("spec.externalName")
            return
        if not ports and not headless:
            yield FieldError.required("spec.ports")
        names: set[str] = set()
        seen: set[tuple[Any, Any]] = set()
        for index, port in enumerate(ports):
            path = f"spec.ports[{index}]"
            name = port.get("name") or ""
            if len(ports) > 1 and not name:
                yield FieldError.required(f"{path}.name")
            if name:
                for text in is_dns1123_label(name):
                    yield FieldError.invalid(f"{path}.name", name, text)
                if name in names:
                    yield FieldError.duplicate(f"{path}.name", name)
                names.add(name)
            number = port.get("port", 0)
            if not 0 < number < 65536:
                yield FieldError.invalid(f"{path}.port", number, "must be between 1 and 65535, inclusive")
            if (number, port["protocol"]) in seen:
                yield FieldError.duplicate(path, {"port": number, "protocol": port["protocol"]})
            seen.add((number, port["protocol"]))
            if port["protocol"] not in {"TCP", "UDP", "SCTP"}:
                yield FieldError.unsupported(f"{path}.protocol", port["protocol"], ["SCTP", "TCP", "UDP"])

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        after, before = new["spec"], old["spec"]
        fixed = before.get("clusterIP")
        external = "ExternalName" in {before.get("type"), after["type"]}
        if fixed and not external and after.get("clusterIP") != fixed:
            yield FieldError.invalid("spec.clusterIPs[0]", [after.get("clusterIP")], "may not change once set")

    def released(self, obj: Obj, env: Environment) -> None:
        address = obj["spec"].get("clusterIP")
        if address and address != "None":
            env.addresses.release(address)
