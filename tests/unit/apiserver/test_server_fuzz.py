"""Whatever is sent, the server answers with a Status: it never breaks, and never stores what it cannot show again."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
from apihelpers import CM, CRDS, DEPLOY, PODS, SVC, WS, Api, SteppingClock, config_map, deployment, pod, workspace
from apihelpers import workspace_crd as crd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.schema import Schema, builtin

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 70000)
    | st.text(max_size=5)
    | st.sampled_from(["a", "1Gi", "None", "25%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
VERSIONS = {
    PODS: "v1",
    SVC: "v1",
    CM: "v1",
    DEPLOY: "apps/v1",
    WS: "kaito.sh/v1alpha1",
    CRDS: "apiextensions.k8s.io/v1",
}
KINDS = {PODS: "core.Pod", SVC: "core.Service", CM: "core.ConfigMap", DEPLOY: "apps.Deployment"}


def _keys(schema: Schema, depth: int = 0) -> set[str]:
    found = set(schema.properties)
    for child in schema.properties.values():
        if depth < 5:
            found |= _keys(child.items or child, depth + 1)
    return found


NAMES = sorted(set().union(*(_keys(builtin(kind)) for kind in KINDS.values())))


@st.composite
def mutated(draw: st.DrawFn, source: Any) -> Any:
    """*source* with something somewhere replaced by something else, or a known field added."""
    if isinstance(source, dict) and draw(st.integers(0, 5)):
        copy = dict(source)
        if copy and draw(st.booleans()):
            key = draw(st.sampled_from(sorted(copy)))
            copy[key] = draw(mutated(copy[key]))
        else:
            copy[draw(st.sampled_from(NAMES))] = draw(JSON)
        return copy
    if isinstance(source, list) and source and draw(st.integers(0, 5)):
        index = draw(st.integers(0, len(source) - 1))
        return [*source[:index], draw(mutated(source[index])), *source[index + 1 :]]
    return draw(JSON)


SOURCES = {
    PODS: pod(),
    SVC: {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}},
    CM: config_map(),
    DEPLOY: deployment(),
    WS: workspace(),
    CRDS: crd(),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, str, Any]:
    path = draw(st.sampled_from(sorted(SOURCES)))
    source = SOURCES[path]
    name = source["metadata"]["name"]
    body = draw(mutated(source))
    operation = {
        "op": draw(st.sampled_from(["add", "remove", "replace", "test"])),
        "path": "/" + draw(st.sampled_from(NAMES)),
    }
    operation["value"] = draw(JSON)
    patches = [
        ("application/merge-patch+json", body),
        ("application/strategic-merge-patch+json", body),
        ("application/json-patch+json", draw(st.just([operation]) | JSON)),
        ("application/apply-patch+yaml", body),
    ]
    sub = draw(st.sampled_from(["", "", "", "/status", "/scale", "/binding", "/eviction"]))
    method = draw(st.sampled_from(["POST", "PUT", "PATCH", "PATCH", "DELETE"]))
    if method == "POST":
        return method, f"{path}/{name}{sub}" if sub else path, "application/json", body
    if method == "PATCH":
        media, value = draw(st.sampled_from(patches))
        return method, f"{path}/{name}{sub}?fieldManager=fuzz&force=true", media, value
    return method, f"{path}/{name}{sub}", "application/json", draw(st.just(body) | JSON)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(requests(), min_size=1, max_size=6))
@example([("PATCH", f"{CM}/a", "application/merge-patch+json", {"metadata": "x"})])
def test_no_request_breaks_the_server(sent: list[tuple[str, str, str, Any]]) -> None:
    async def run() -> None:
        clock = SteppingClock()
        server = ApiServer(clock=clock, rng=random.Random(1))
        api = Api(server, clock)
        for path in sorted(SOURCES):
            await api.post(path, SOURCES[path])
        for method, path, media, body in sent:
            async with await api.send(method, path, body, media=media) as response:
                raw = await response.read()
                answer = msgspec.json.decode(raw) if raw[:1] == b"{" else {}
            # A real server answers 500 to some requests that are merely wrong, but names no reason then.
            assert response.status != 500 or answer.get("reason") != "InternalError", (
                method,
                path,
                body,
                answer,
            )
        for resource in list(server.backend.registry.stored()):
            base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
            await api.get(f"{base}/{resource.plural}", accept="application/json;as=Table;v=v1;g=meta.k8s.io")
        await api.get("/openapi/v2")
        await server.aclose()

    asyncio.run(run())
