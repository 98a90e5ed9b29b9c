"""The API server: one entry point, :meth:`ApiServer.handle`, behind both the transport in memory and TCP."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from email.utils import format_datetime
from typing import Any

import msgspec
import yaml
from aiohttp import web

from kaito_ctrl.devcluster.apiserver import creating, deleting, patching, reviews, subresources, updating
from kaito_ctrl.devcluster.apiserver.access import Access, attributes_of
from kaito_ctrl.devcluster.apiserver.addresses import ServiceAddresses
from kaito_ctrl.devcluster.apiserver.admission import Admission, Review
from kaito_ctrl.devcluster.apiserver.backend import Backend, prepare_views, view
from kaito_ctrl.devcluster.apiserver.bootstrap import bootstrap
from kaito_ctrl.devcluster.apiserver.builtin import register_builtins
from kaito_ctrl.devcluster.apiserver.connecting import connect, container_of
from kaito_ctrl.devcluster.apiserver.crds import CrdServing
from kaito_ctrl.devcluster.apiserver.discovery import Discovery
from kaito_ctrl.devcluster.apiserver.errors import (
    StatusError,
    internal,
    method_not_allowed,
    not_acceptable,
    page_not_found,
    success,
    too_large_resource_version,
)
from kaito_ctrl.devcluster.apiserver.identity import User
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Registry, Resource
from kaito_ctrl.devcluster.apiserver.listing import Filter, list_page
from kaito_ctrl.devcluster.apiserver.rbac import Authorizer, Rbac
from kaito_ctrl.devcluster.apiserver.relay import Relay
from kaito_ctrl.devcluster.apiserver.requests import Accept, Call, Query, parse_accept, parse_path, parse_rv
from kaito_ctrl.devcluster.apiserver.store import Obj, Store, Stored, encode
from kaito_ctrl.devcluster.apiserver.table import partial, table
from kaito_ctrl.devcluster.apiserver.tokens import Tokens
from kaito_ctrl.devcluster.apiserver.watching import WatchOptions, watch
from kaito_ctrl.devcluster.apiserver.webhook_client import (
    HttpsWebhookClient,
    ServiceResolver,
    WebhookCaller,
    WebhookClient,
)
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random, uid_source
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport

__all__ = ["ApiServer", "LogOptions", "LogSource"]

_log = logging.getLogger(__name__)
_OFFERS = "application/json, application/yaml, application/vnd.kubernetes.protobuf"

LogOptions = Mapping[str, str]
"""The query of a log request: ``follow``, ``tailLines``, ``timestamps``, ``previous``, ``sinceSeconds``, ..."""
LogSource = Callable[[str, str, str, LogOptions], Awaitable[AsyncIterator[bytes]]]
"""Namespace, pod, container ("" for the only one) and options to the log's bytes. May raise ``StatusError``."""
ConnectionHandler = Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]]


class ApiServer:
    """An embedded Kubernetes API server. It lives in one event loop and keeps everything in memory.

    *history* bounds the changes kept per kind: a watch from before them has expired. With *rbac*, roles and bindings
    decide who may do what, and who has no credentials is ``system:anonymous``; without, everybody authenticated may do
    everything.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        service_cidr: str = "127.96.0.0/16",
        history: int = 10_000,
        webhooks: WebhookClient | None = None,
        rbac: bool = False,
    ) -> None:
        rng = rng if rng is not None else system_random()
        store, registry = Store(history), Registry()
        environment = Environment(
            clock if clock is not None else SystemClock(),
            rng,
            uid_source(rng),
            store,
            ServiceAddresses(service_cidr, rng),
        )
        caller = WebhookCaller(webhooks if webhooks is not None else HttpsWebhookClient())
        self.tokens = Tokens(store, environment.clock, environment.uids)
        access = Access(self.tokens, Rbac(store) if rbac else Authorizer(), anonymous=rbac)
        admission = Admission(store, environment.uids, caller)
        self.backend = Backend(store, registry, environment, admission, access, caller)
        register_builtins(registry)
        CrdServing(self.backend).start()
        self._discovery = Discovery(registry)
        self._logs: LogSource | None = None
        self.kubelet: ConnectionHandler | None = None
        """What serves the connections of ``exec``, ``attach`` and ``portforward``: a kubelet's HTTP API."""
        self._relay = Relay(self.backend)
        bootstrap(self.backend, rbac=rbac)

    @property
    def store(self) -> Store:
        """The storage, for components that live in the server's process (the garbage collector)."""
        return self.backend.store

    def transport(self, *, user: User | str = "system:admin") -> Transport:
        """A transport into this server, without sockets, for *user*; a name alone is that of an administrator.

        A request that brings a bearer token of its own comes from the token's owner.
        """
        return _InMemory(self, User.administrator(user) if isinstance(user, str) else user)

    def set_log_source(self, source: LogSource) -> None:
        """Where ``pods/log`` gets its bytes from."""
        self._logs = source

    def resolve_service(self, resolver: ServiceResolver) -> None:
        """How webhooks that are configured by service are reached."""
        self.backend.webhooks.resolve = resolver

    def compact(self, rv: int | None = None) -> None:
        """Forget history up to *rv* (default: all of it): older watches and continue tokens expire."""
        for bucket in self.store.buckets():
            bucket.compact(self.store.rv if rv is None else rv)
            bucket.wake()

    async def aclose(self) -> None:
        """End every watch and close the webhooks' connections."""
        self.backend.closing = True
        for bucket in self.store.buckets():
            bucket.wake()
        for callback in self.backend.on_close:
            callback()
        await self.backend.webhooks.aclose()
        await self._relay.aclose()

    async def handle(self, request: Request, *, user: User | None = None) -> Response:
        """Answer one request. Failures are ``Status`` answers, never exceptions.

        It comes from the owner of its bearer token; without one from *user*, or from nobody known.
        """
        headers = {key.lower(): value for key, value in request.headers.items()}
        try:
            response = await self._route(request, headers, user)
        except StatusError as error:
            response = Response.of(error.code, encode(error.status()), error.headers)
        except Exception as error:  # noqa: BLE001 -- a server answers whatever happens in it
            _log.exception("%s %s failed", request.method, request.path)
            response = Response.of(500, encode(internal(f"{type(error).__name__}: {error}").status()))
        moment = self.backend.clock.now()
        response.headers = {"date": format_datetime(moment, usegmt=True), **response.headers}
        return response

    async def _route(self, request: Request, headers: Mapping[str, str], sender: User | None) -> Response:
        target, query, access = parse_path(request.path), Query(request.query), self.backend.access
        user = access.identify(request.path, headers, sender)
        if "impersonate-user" in headers:  # said and done: nobody behind is to hear of it
            headers = {key: value for key, value in headers.items() if not key.startswith("impersonate-")}
        access.check(user, attributes_of(request.method, request.path, query, target))
        if target is None:
            found = self._discovery.answer(request.method, request.path, headers)
            if found is None:
                raise page_not_found()
            code, body, extra = found
            return Response.of(code, body, extra)
        accept = parse_accept(headers.get("accept", ""))
        resource = self.backend.registry.find(target.group, target.version, target.plural)
        if resource is None:
            if target.version not in self.backend.registry.groups().get(target.group, {}):
                return Response.of(404, b"404 page not found\n", {"content-type": "text/plain; charset=utf-8"})
            raise page_not_found()
        if accept is None and target.subresource != "proxy":
            raise not_acceptable(_OFFERS if resource.custom is not None else "")
        call = Call(request.method, target, query, headers, request.body, user, accept or Accept())
        call.known = lambda api_version, kind: self.backend.registry.of_kind(api_version, kind) is not None
        if resource.deprecated_warning:
            call.warnings.append(resource.deprecated_warning)
        if resource.namespaced and not target.namespace and target.name:
            raise page_not_found()
        call.check_options()
        response = await self._dispatch(call, resource)
        if call.warnings:
            # A header that repeats: the transport's mapping holds them as one list, which HTTP allows.
            shown = ", ".join(f'299 - "{_escape(text)}"' for text in dict.fromkeys(call.warnings))
            response.headers = {**response.headers, "warning": shown}
        return response

    async def _dispatch(self, call: Call, resource: Resource) -> Response:
        target = call.target
        if target.subresource:
            return await self._subresource(call, resource)
        if not target.name:
            return await self._collection(call, resource)
        backend, name = self.backend, target.name
        match call.method:
            case "GET" if target.watch or call.query.flag("watch"):
                return self._watch(call, resource)
            case "GET":
                self._check_version(call)
                return await self._object(call, resource, backend.require(resource, target.namespace, name))
            case "PUT":
                stored, created = await updating.replace(backend, call, resource, name, "")
                return await self._object(call, resource, stored, 201 if created else 200)
            case "PATCH":
                stored, created = await patching.patch(backend, call, resource, name, "")
                return await self._object(call, resource, stored, 201 if created else 200)
            case "DELETE":
                return await self._delete(call, resource)
            case _:
                raise method_not_allowed()

    async def _collection(self, call: Call, resource: Resource) -> Response:
        backend, target = self.backend, call.target
        if resource.virtual:
            if call.method != "POST":
                raise method_not_allowed()
            if resource.kind == "Binding":
                raise method_not_allowed()
            return Response.of(201, encode(reviews.review(backend, call, resource)))
        match call.method:
            case "GET" if target.watch or call.query.flag("watch"):
                return self._watch(call, resource)
            case "GET":
                return await self._list(call, resource)
            case "POST":
                if resource.namespaced and not target.namespace:
                    raise method_not_allowed()
                return await self._object(call, resource, await creating.create(backend, call, resource), 201)
            case "DELETE" if "deletecollection" in resource.verbs:
                return await self._delete_collection(call, resource)
            case _:
                raise method_not_allowed()

    async def _subresource(self, call: Call, resource: Resource) -> Response:
        backend, target, name = self.backend, call.target, call.target.name
        match target.subresource:
            case "status" if resource.status:
                if call.method == "GET":
                    return await self._object(call, resource, backend.require(resource, target.namespace, name))
                if call.method == "PUT":
                    stored, _ = await updating.replace(backend, call, resource, name, "status")
                elif call.method == "PATCH":
                    stored, _ = await patching.patch(backend, call, resource, name, "status")
                else:
                    raise method_not_allowed()
                return await self._object(call, resource, stored)
            case "scale" if resource.scale is not None:
                return Response.of(200, encode(await subresources.scale(backend, call, resource, name)))
            case "log" if "log" in resource.subresources and call.method == "GET":
                return await self._log(call)
            case "exec" | "attach" | "portforward" if target.subresource in resource.subresources:
                if self.kubelet is None:
                    raise StatusError(501, "NotImplemented", "this API server has no kubelet to connect to")
                return await connect(backend, call, resource)
            case "proxy" if "proxy" in resource.subresources:
                return await self._relay.send(call, resource)
            case "binding" if "binding" in resource.subresources and call.method == "POST":
                return Response.of(201, encode(await subresources.bind(backend, call, resource, name)))
            case "eviction" if "eviction" in resource.subresources and call.method == "POST":
                return Response.of(201, encode(await subresources.evict(backend, call, resource, name)))
            case "token" if "token" in resource.subresources and call.method == "POST":
                return Response.of(201, encode(subresources.create_token(backend, call, resource, name)))
            case "finalize" if "finalize" in resource.subresources and call.method == "PUT":
                return await self._object(call, resource, await subresources.finalize(backend, call, resource, name))
            case _:
                raise page_not_found()

    def _check_version(self, call: Call) -> None:
        """A read "not older than" a version that does not exist yet cannot be answered."""
        text = call.query.get("resourceVersion")
        if text and (wanted := parse_rv(text)) > self.store.rv:
            raise too_large_resource_version(wanted, self.store.rv)

    async def _object(self, call: Call, resource: Resource, stored: Stored, code: int = 200) -> Response:
        await prepare_views(resource, [stored])
        obj, raw = view(resource, stored)
        accept = call.accept
        if accept.yaml:
            return Response.of(
                code, yaml.safe_dump(obj, sort_keys=False).encode(), {"content-type": "application/yaml"}
            )
        if accept.form == "object":
            return Response.of(code, raw)
        return Response.of(code, encode(self._shaped(call, resource, [obj], obj["metadata"], single=True)))

    def _shaped(
        self, call: Call, resource: Resource, items: list[Obj], metadata: Mapping[str, Any], *, single: bool
    ) -> Obj:
        accept: Accept = call.accept
        if accept.form == "table":
            kept = {k: v for k, v in metadata.items() if k in {"resourceVersion", "continue", "remainingItemCount"}}
            include = call.query.get("includeObject", "Metadata")
            return table(resource.printer, items, kept, self.backend.clock, include=include, version=accept.version)
        if single:
            return partial(items[0], accept.version)
        return {
            "kind": "PartialObjectMetadataList",
            "apiVersion": f"meta.k8s.io/{accept.version}",
            "metadata": dict(metadata),
            "items": [partial(obj, accept.version) for obj in items],
        }

    async def _list(self, call: Call, resource: Resource) -> Response:
        page = list_page(self.backend, call, resource, Filter.of(call, resource))
        await prepare_views(resource, page.items)
        metadata: Obj = {"resourceVersion": str(page.rv)}
        if page.token:
            metadata["continue"] = page.token
            if page.remaining is not None:
                metadata["remainingItemCount"] = page.remaining
        if call.accept.form != "object":
            items = [view(resource, stored)[0] for stored in page.items]
            return Response.of(200, encode(self._shaped(call, resource, items, metadata, single=False)))
        head = {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": metadata}
        if resource.converts:
            raws = [view(resource, stored)[1] for stored in page.items]
        else:
            raws = [stored.raw for stored in page.items]
        body = b"".join((encode(head)[:-1], b',"items":[', b",".join(raws), b"]}"))
        if call.accept.yaml:
            text = yaml.safe_dump(msgspec.json.decode(body), sort_keys=False).encode()
            return Response.of(200, text, {"content-type": "application/yaml"})
        return Response.of(200, body)

    def _watch(self, call: Call, resource: Resource) -> Response:
        options = WatchOptions.of(self.backend, call)
        stream = watch(self.backend, call, resource, Filter.of(call, resource), options)
        return Response(200, {"content-type": "application/json;stream=watch"}, stream)

    async def _delete(self, call: Call, resource: Resource) -> Response:
        target = call.target
        options = deleting.read_delete_options(call)
        stored, gone = await deleting.delete(self.backend, call, resource, target.namespace, target.name, options)
        if gone and resource.storage not in {("", "pods"), ("", "services")}:
            done = success(name=target.name, group=resource.group, kind=resource.plural, uid=stored.uid)
            return Response.of(200, encode(done))
        return await self._object(call, resource, stored)

    async def _delete_collection(self, call: Call, resource: Resource) -> Response:
        options = deleting.read_delete_options(call)
        page = list_page(self.backend, call, resource, Filter.of(call, resource))
        deleted = []
        for stored in page.items:
            namespace, name = stored.key
            try:
                last, _gone = await deleting.delete(self.backend, call, resource, namespace, name, options)
            except StatusError as error:
                if error.code != 404:
                    raise
                continue
            deleted.append(last)
        await prepare_views(resource, deleted)
        return Response.of(
            200,
            encode(
                {
                    "kind": resource.list_kind,
                    "apiVersion": resource.api_version,
                    "metadata": {"resourceVersion": str(self.store.rv)},
                    "items": [view(resource, last)[0] for last in deleted],
                }
            ),
        )

    async def _log(self, call: Call) -> Response:
        target = call.target
        pods = self.backend.registry.find("", "v1", "pods")
        assert pods is not None
        pod = self.backend.require(pods, target.namespace, target.name)
        wanted = container_of(pod.obj, call.query.get("container"))
        if self._logs is None:
            raise StatusError(501, "NotImplemented", "this API server has no source of pod logs")
        review = Review("CONNECT", pods, pod.key, call, old=None, subresource="log")
        await self.backend.admission.validate(review)
        stream = await self._logs(target.namespace, target.name, wanted, dict(call.query.pairs))
        return Response(200, {"content-type": "text/plain"}, stream)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


class _InMemory:
    """The server as a transport. Closing it refuses further requests; the server lives on."""

    def __init__(self, server: ApiServer, user: User) -> None:
        self._server = server
        self._user = user
        self._closed = False

    async def send(self, request: Request) -> Response:
        if self._closed or self._server.backend.closing:
            raise TransportError("the transport is closed")
        return await self._server.handle(request, user=self._user)

    async def aclose(self) -> None:
        self._closed = True
