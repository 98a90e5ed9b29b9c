"""A kind of one's own: a Website becomes a ConfigMap with its pages, a Deployment that serves them, and a Service.

Try it::

    kubectl apply -f - <<EOF
    apiVersion: example.org/v1
    kind: Website
    metadata: {name: hello}
    spec: {title: "Hello, world", replicas: 1}
    EOF
    kubectl wait --for=jsonpath='{.status.ready}'=true website/hello
    kubectl get website hello

The finalizer stands for what an operator has to undo outside of the cluster: here it only says goodbye in the log. What
is inside goes by itself, because the Website owns it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from kaito_api.apps import Deployment, DeploymentSpec
from kaito_api.core import (
    ConfigMap,
    Container,
    EnvVar,
    PodSpec,
    PodTemplate,
    Service,
    ServicePort,
    ServiceSpec,
    TemplateMeta,
)
from kaito_api.meta import LabelSelector, Model, ObjectMeta, Resource
from kaito_ctrl import Client, Cluster, Context, Controller, Manager, Result, owns


class WebsiteSpec(Model):
    title: str
    replicas: int = 1


class WebsiteStatus(Model):
    ready: bool = False
    address: str = ""


class Website(Resource):
    """A page that is served."""

    group, version, kind, plural = "example.org", "v1", "Website", "websites"

    spec: WebsiteSpec
    status: WebsiteStatus = WebsiteStatus()


CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "websites.example.org"},
    "spec": {
        "group": "example.org",
        "scope": "Namespaced",
        "names": {"kind": "Website", "listKind": "WebsiteList", "plural": "websites", "singular": "website"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Ready", "type": "boolean", "jsonPath": ".status.ready"},
                    {"name": "Address", "type": "string", "jsonPath": ".status.address"},
                ],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["title"],
                                "properties": {
                                    "title": {"type": "string", "minLength": 1},
                                    "replicas": {"type": "integer", "minimum": 0, "default": 1},
                                },
                            },
                            "status": {
                                "type": "object",
                                "properties": {"ready": {"type": "boolean"}, "address": {"type": "string"}},
                            },
                        },
                    }
                },
            }
        ],
    },
}

SERVER = """
import http.server, os
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["PAGE"].encode())
http.server.ThreadingHTTPServer((os.environ.get("KAITO_HOST", "0.0.0.0"), 8000), Page).serve_forever()
"""


def children(site: Website) -> tuple[ConfigMap, Deployment, Service]:
    """What a Website consists of: a pure function of its spec."""
    metadata = ObjectMeta(name=site.name, namespace=site.namespace, labels={"website": site.name})
    page = {"configMapKeyRef": {"name": site.name, "key": "page"}}
    container = Container(
        name="server",
        image="python:3.11-slim",
        command=("python3", "-c", SERVER),
        env=(EnvVar(name="PAGE", value_from=page), EnvVar(name="TITLE", value=site.spec.title)),
    )
    return (
        ConfigMap(metadata=metadata, data={"page": f"<h1>{site.spec.title}</h1>"}),
        Deployment(
            metadata=metadata,
            spec=DeploymentSpec(
                replicas=site.spec.replicas,
                selector=LabelSelector(match_labels={"website": site.name}),
                template=PodTemplate(
                    metadata=TemplateMeta(labels={"website": site.name}), spec=PodSpec(containers=(container,))
                ),
            ),
        ),
        Service(
            metadata=metadata,
            # The protocol would be TCP anyway; but servers before 1.21 want it said, to tell ports apart.
            spec=ServiceSpec(
                selector={"website": site.name}, ports=(ServicePort(port=80, target_port=8000, protocol="TCP"),)
            ),
        ),
    )


class WebsiteController(Controller[Website]):
    """Brings one Website where its spec says."""

    name = "website"
    kind = Website
    finalizer = "example.org/website"
    sources = (owns(ConfigMap), owns(Deployment), owns(Service))

    async def reconcile(self, site: Website, ctx: Context) -> Result:
        for child in children(site):
            present = ctx.cache.get(type(child), child.name, child.namespace)
            if present is None or not _same(present.to_wire(), child.to_wire()):
                await ctx.client.apply(child, owner=site)
        deployment = ctx.cache.get(Deployment, site.name, site.namespace)
        service = ctx.cache.get(Service, site.name, site.namespace)
        status = WebsiteStatus(
            ready=deployment is not None and deployment.status.ready_replicas >= site.spec.replicas,
            address=service.spec.cluster_ip if service is not None else "",
        )
        if status != site.status:
            await ctx.client.patch(Website, ctx.key, {"status": status.to_wire()}, subresource="status")
        return Result.done()

    async def cleanup(self, site: Website, ctx: Context) -> Result:
        ctx.log.info("goodbye", title=site.spec.title)
        return Result.done()


def _same(present: Any, wanted: Any) -> bool:
    """Whether everything that is wanted is there; the API server adds defaults of its own."""
    if isinstance(wanted, dict):
        return isinstance(present, dict) and all(_same(present.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(present, list) and len(present) == len(wanted) and all(map(_same, present, wanted))
    return bool(present == wanted)


async def install(client: Client) -> None:
    """Bring the kind to the cluster; safe to repeat."""
    await client.request(
        "PATCH",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/websites.example.org",
        query=(("fieldManager", "website"), ("force", "true")),
        body=CRD,
        headers={"content-type": "application/apply-patch+yaml"},
    )


async def main(kubeconfig: str | None = None) -> None:
    async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
        await install(cluster.client)
        manager = Manager(cluster)
        manager.add(WebsiteController())
        await manager.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
