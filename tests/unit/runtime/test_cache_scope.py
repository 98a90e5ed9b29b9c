"""What a scope says is watched and kept, is."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest
from structlog.testing import capture_logs

from kaito_api.core import ConfigMap, Node
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Cluster
from kaito_ctrl.runtime.codec import LAST_APPLIED, Record, decode_record
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.store import Change, Store

SPEC = {"nodeName": "n", "containers": [{"name": "x", "env": [{"name": "A"}]}, {"name": "y", "env": []}]}


def record(name: str = "a", version: int = 5, *, namespace: str = "ns", **more: Any) -> Record:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": str(version)}
    metadata |= more.pop("metadata", {})
    return decode_record(json.dumps({"kind": "ConfigMap", "metadata": metadata, **more}).encode())


def kept(scope: Scope, seen: Record) -> Any:
    """What is kept of an object, without its identity."""
    entry = Store(ConfigMap, scope).form.entry(seen)
    body = json.loads(entry.raw)
    for name in ("name", "namespace", "uid", "resourceVersion"):
        del body["metadata"][name]
    return body


def test_everything_but_managed_fields_is_kept_by_default() -> None:
    seen = record(spec=SPEC, metadata={"managedFields": [{"manager": "m"}], "labels": {"a": "b"}})
    assert kept(Scope(), seen) == {"kind": "ConfigMap", "metadata": {"labels": {"a": "b"}}, "spec": SPEC}


def test_named_fields_are_kept_and_paths_go_through_lists() -> None:
    found = kept(Scope(keep=("spec.containers.name", "data")), record(spec=SPEC, status={"phase": "x"}))
    assert found == {"kind": "ConfigMap", "metadata": {}, "spec": {"containers": [{"name": "x"}, {"name": "y"}]}}


def test_a_shorter_path_keeps_all_that_is_below_it() -> None:
    assert kept(Scope(keep=("spec", "spec.nodeName")), record(spec=SPEC))["spec"] == SPEC


def test_named_fields_are_dropped() -> None:
    found = kept(Scope(drop=("spec.containers.env", "status")), record(spec=SPEC, status={"phase": "x"}))
    assert found == {
        "kind": "ConfigMap",
        "metadata": {},
        "spec": {"nodeName": "n", "containers": [{"name": "x"}, {"name": "y"}]},
    }


def test_what_is_dropped_of_metadata_is_in_no_header_either() -> None:
    entry = Store(ConfigMap, Scope(drop=("metadata.annotations",))).form.entry(
        record(metadata={"annotations": {"a": "b"}, "labels": {"c": "d"}})
    )
    assert entry.header.annotations is None
    assert entry.header.labels == {"c": "d"}


def test_only_metadata_is_kept_even_of_a_whole_object() -> None:
    assert kept(Scope(metadata_only=True), record(spec=SPEC)) == {"kind": "ConfigMap", "metadata": {}}


def test_a_transform_comes_last() -> None:
    def upper(raw: bytes) -> bytes:
        body = json.loads(raw)
        body["metadata"]["labels"] = {"status": str("status" in body)}
        return json.dumps({**body, "data": {"k": body["data"]["k"].upper()}}).encode()

    found = kept(Scope(drop=("status",), transform=upper), record(data={"k": "v"}, status={}))
    assert found == {"kind": "ConfigMap", "metadata": {"labels": {"status": "False"}}, "data": {"k": "V"}}


@pytest.mark.parametrize("result", [b"", b"{}", b'{"metadata":{"name":"other"}}', None])
def test_a_transform_that_fails_or_loses_the_object_leaves_its_metadata_alone(result: bytes | None) -> None:
    def transform(_: bytes) -> bytes:
        if result is None:
            raise RuntimeError("not this one")
        return result

    with capture_logs() as logs:
        found = kept(Scope(transform=transform), record(data={"secret": "x"}))
    assert found == {"kind": "ConfigMap", "metadata": {}}
    assert [line["event"] for line in logs] == ["transform failed; only metadata is kept"]


def test_the_copy_that_kubectl_leaves_is_in_no_header_but_in_the_view() -> None:
    entry = Store(ConfigMap).form.entry(record(metadata={"annotations": {LAST_APPLIED: "x" * 99, "a": "b"}}))
    assert entry.header.annotations == {"a": "b"}
    assert entry.view().metadata.annotations[LAST_APPLIED] == "x" * 99


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ({"namespace": "a", "namespaces": ("b",)}, "not both"),
        ({"namespaces": "abc"}, "tuple of names"),
        ({"namespaces": ("a", "")}, "empty"),
        ({"keep": ("spec..x",)}, "keep is a tuple"),
        ({"drop": "status"}, "drop is a tuple"),
        ({"drop": ("metadata",)}, "cannot be dropped"),
        ({"drop": ("metadata.uid",)}, "metadata.uid cannot be dropped"),
        ({"metadata_only": True, "keep": ("spec",)}, "metadata_only"),
    ],
)
def test_a_scope_that_contradicts_itself_is_refused(declaration: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Scope(**declaration)


def test_the_order_in_which_namespaces_and_fields_are_named_does_not_matter() -> None:
    assert Scope(namespaces=("b", "a"), drop=("y", "x")) == Scope(namespaces=("a", "b", "a"), drop=("x", "y"))


def synced(*namespaces: str) -> Store[ConfigMap]:
    store = Store(ConfigMap, Scope(namespaces=namespaces))
    for namespace in namespaces:
        store.feed(namespace).begin_replace()
        store.feed(namespace).end_replace("1")
    return store


def test_a_store_is_synced_when_all_its_namespaces_are() -> None:
    store, synced = Store(ConfigMap, Scope(namespaces=("a", "b"))), []
    for namespace, version in (("a", "3"), ("b", "2")):
        store.feed(namespace).begin_replace()
        store.feed(namespace).end_replace(version)
        synced.append(store.synced)
    assert synced == [False, True]
    assert store.version == "2"


def test_a_relist_of_one_namespace_sweeps_that_namespace_alone() -> None:
    store = synced("a", "b")
    for namespace in ("a", "b"):
        store.feed(namespace).upsert(record("x", namespace=namespace), initial=False)
    store.feed("a").begin_replace()
    store.feed("a").end_replace("9")
    assert [entry.key for entry in store.entries()] == [ObjectKey("b", "x")]


def test_a_write_is_weighed_against_the_watch_of_its_own_namespace() -> None:
    store = synced("a", "b")
    store.feed("a").advance("100")
    store.wrote(record("x", 50, namespace="b").raw)
    store.wrote(record("x", 50, namespace="a").raw)
    store.wrote(record("x", 150, namespace="c").raw)
    assert [entry.key for entry in store.entries()] == [ObjectKey("b", "x")]


def test_a_kind_without_namespaces_is_watched_as_a_whole() -> None:
    assert Scope(namespaces=("a", "b")).places(Node) == (None,)


def test_compact_objects_read_as_others_do_and_take_a_fraction() -> None:
    plain, compact = Store(ConfigMap), Store(ConfigMap, Scope(compact=True))
    draw = random.Random(1)
    for index in range(100):
        data = {f"key-{n}": "".join(draw.choices(string.ascii_letters, k=8)) + "x" * 80 for n in range(40)}
        seen = record(f"a{index:03}", index + 1, data=data, metadata={"labels": {"i": str(index)}, "finalizers": ["f"]})
        for store in (plain, compact):
            store.feed().upsert(seen, initial=False)
    assert compact.bytes < plain.bytes / 5
    assert compact.select() == plain.select()
    assert compact.select(labels={"i": "7"})[0].name == "a007"
    for entry in plain.entries():
        other = compact.entry(entry.key)
        assert other is not None
        assert (other.raw, other.header, other.uid, other.version) == (
            entry.raw,
            entry.header,
            entry.uid,
            entry.version,
        )


def test_bytes_are_what_the_present_entries_take() -> None:
    store = synced("ns")
    store.feed("ns").upsert(record("a", data={"k": "x" * 100}), initial=False)
    store.feed("ns").upsert(record("b"), initial=False)
    store.feed("ns").upsert(record("a", 6, data={"k": "x" * 200}), initial=False)
    assert store.bytes == sum(len(entry.raw) for entry in store.entries())
    store.feed("ns").remove(record("a", 7))
    store.feed("ns").remove(record("b", 8))
    assert store.bytes == 0


@pytest.mark.parametrize("scope", [Scope(views=3), Scope(views=3, compact=True), Scope(views=0)])
def test_no_more_views_stay_decoded_than_the_scope_says(scope: Scope) -> None:
    store = Store(ConfigMap, scope)
    for index in range(10):
        store.feed().upsert(record(f"a{index}", index + 1), initial=False)
    assert len(store.select()) == 10
    assert sum(entry._view is not None for entry in store.entries()) <= scope.views


def test_an_entry_that_is_replaced_makes_room_for_another_decoded_view() -> None:
    store = Store(ConfigMap, Scope(views=1))
    for name in ("a", "b"):
        store.feed().upsert(record(name), initial=False)
    first, second = store.entries()
    assert first.view() is first.view()
    assert second.view() is not second.view()
    store.feed().upsert(record("a", 6), initial=False)
    assert second.view() is second.view()
    assert first.view() is first.view()


def test_what_repeats_itself_is_held_once() -> None:
    store = Store(ConfigMap)
    owner = {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}], "labels": {"a": "b"}}
    first, second = (store.form.entry(record(name, metadata=owner)) for name in ("a", "b"))
    assert first.header.labels is second.header.labels
    assert first.header.owner_references is second.header.owner_references
    assert first.owners is second.owners
    assert first.key.namespace is second.key.namespace


def test_an_index_over_more_objects_than_are_kept_decoded_keeps_none_of_them_decoded() -> None:
    store = Store(ConfigMap, Scope(views=2))
    store.add_index("v", lambda each: [each.data["v"]])
    changes: list[Change[ConfigMap]] = []
    store.listen(changes.append)
    for index in range(6):
        store.feed().upsert(record(f"a{index}", index + 1, data={"v": str(index % 2)}), initial=False)
    assert [each.name for each in store.select(index=("v", "1"))] == ["a1", "a3", "a5"]
    assert sum(entry._view is not None for entry in store.entries()) <= 2


class Declaring:
    """A cache that is not running, to declare kinds in."""

    def __init__(self) -> None:
        self.cache = Cluster(ApiServer(rng=random.Random(1)).transport(), rng=random.Random(1)).cache


def test_two_declarations_of_a_kind_must_agree() -> None:
    cache = Declaring().cache
    cache.declare(ConfigMap, scope=Scope(namespaces=("a", "b")))
    cache.declare(ConfigMap, scope=Scope(namespaces=("b", "a")))
    with pytest.raises(ValueError, match="ConfigMap is declared with two scopes"):
        cache.declare(ConfigMap, scope=Scope(compact=True))


@pytest.mark.parametrize("scopes", [(None, Scope(namespace="a")), (Scope(namespace="a"), None)])
def test_who_declares_no_scope_takes_that_of_others(scopes: tuple[Scope | None, Scope | None]) -> None:
    cache = Declaring().cache
    stores = [cache.declare(ConfigMap, scope=scope) for scope in scopes]
    assert stores[0] is stores[1]
    assert stores[0].scope == Scope(namespace="a")
    with pytest.raises(ValueError, match="two scopes"):
        cache.declare(ConfigMap, scope=Scope())
