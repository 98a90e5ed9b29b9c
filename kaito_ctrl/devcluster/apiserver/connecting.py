"""``pods/exec``, ``attach`` and ``portforward``: requests that become connections, which the pod's kubelet serves.

Here is decided who is meant, and whether that may be; the answer is a 101 whose ``location`` is the kubelet's path and
query for it. Whoever holds the connection hands it over; a caller in memory has none to hand over.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from kaito_ctrl.devcluster.apiserver.admission import Review
from kaito_ctrl.devcluster.apiserver.backend import Backend
from kaito_ctrl.devcluster.apiserver.errors import bad_request, method_not_allowed
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.runtime.transport import Response

__all__ = ["connect", "container_of"]


def container_of(pod: Obj, wanted: str) -> str:
    """The container's name; *wanted* may be empty where there is only one. Raises a 400."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    keys = ("initContainers", "containers", "ephemeralContainers")
    names = [str(container["name"]) for key in keys for container in spec.get(key) or ()]
    if wanted and wanted not in names:
        raise bad_request(f"container {wanted} is not valid for pod {name}")
    if not wanted and len(spec["containers"]) > 1:
        raise bad_request(f"a container name must be specified for pod {name}, choose one of: [{' '.join(names)}]")
    return wanted or str(spec["containers"][0]["name"])


async def connect(backend: Backend, call: Call, pods: Resource) -> Response:
    """Where on the kubelet the connection is served. Raises a 400 for a request that does not ask for one."""
    if call.method not in {"GET", "POST"}:
        raise method_not_allowed()
    target = call.target
    pod = backend.require(pods, target.namespace, target.name)
    container = "" if target.subresource == "portforward" else container_of(pod.obj, call.query.get("container"))
    if not pod.obj["spec"].get("nodeName"):
        raise bad_request(f"pod {target.name} does not have a host assigned")
    await backend.admission.validate(Review("CONNECT", pods, pod.key, call, old=None, subresource=target.subresource))
    if "upgrade" not in call.headers.get("connection", "").lower() or not call.headers.get("upgrade"):
        raise bad_request("Upgrade request required")
    place = f"{quote(target.namespace, safe='')}/{quote(target.name, safe='')}"
    if target.subresource == "portforward":
        location = f"/portForward/{place}?{urlencode([('port', port) for port in call.query.all('ports')])}"
    else:
        location = f"/{target.subresource}/{place}/{quote(container, safe='')}?{urlencode(_streams(call))}"
    return Response(101, {"location": location}, Response.of(101, b"").chunks())


def _streams(call: Call) -> list[tuple[str, str]]:
    """``PodExecOptions`` and ``PodAttachOptions`` as the kubelet spells them."""
    spelt = {"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"}
    wanted = [spelt[name] for name in spelt if call.query.flag(name)]
    if not {"input", "output", "error"} & set(wanted):
        wanted += ["output", "error"]
    return [(name, "1") for name in wanted] + [("command", word) for word in call.query.all("command")]
