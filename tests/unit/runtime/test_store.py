"""The store: never a step backwards, never older than our own writes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from kaito_api.core import ConfigMap, Node
from kaito_ctrl.runtime.codec import Record, decode_record
from kaito_ctrl.runtime.errors import DecodeError, NotCached
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.store import Change, Store


def raw(name: str, version: int, *, uid: str = "", **more: Any) -> bytes:
    metadata = {"name": name, "namespace": "ns", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return json.dumps({"kind": "ConfigMap", "metadata": {**metadata, **more.pop("metadata", {})}, **more}).encode()


def record(name: str, version: int, **more: Any) -> Record:
    return decode_record(raw(name, version, **more))


KEY = ObjectKey("ns", "a")


@pytest.fixture
def store() -> Store[ConfigMap]:
    store = Store(ConfigMap)
    store.feed().begin_replace()
    store.feed().end_replace("1")
    return store


def version(store: Store[ConfigMap]) -> str | None:
    entry = store.entry(KEY)
    return entry.header.resource_version if entry is not None else None


def test_an_older_event_does_not_undo_a_newer_one(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5), initial=False)
    store.feed().upsert(record("a", 4), initial=False)
    assert version(store) == "5"


def test_our_own_write_is_visible_at_once_and_its_echo_changes_nothing(store: Store[ConfigMap]) -> None:
    seen: list[Change[ConfigMap]] = []
    store.listen(seen.append)
    store.wrote(raw("a", 5))
    assert version(store) == "5"
    store.feed().upsert(record("a", 5), initial=False)
    assert len(seen) == 1


def test_an_answer_that_the_watch_has_passed_is_ignored(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5), initial=False)
    store.feed().remove(record("a", 6))
    store.wrote(raw("a", 5))
    assert version(store) is None


def test_events_from_before_our_delete_do_not_raise_the_dead(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5), initial=False)
    store.deleted(KEY, "uid-a")
    store.feed().upsert(record("a", 6), initial=False)
    assert version(store) is None
    store.feed().remove(record("a", 7))
    store.feed().upsert(record("a", 8, uid="second"), initial=False)
    assert version(store) == "8"


def test_a_relist_removes_what_is_gone_but_not_what_we_wrote_since(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5), initial=False)
    store.feed().upsert(record("b", 6), initial=False)
    store.feed().begin_replace()
    store.feed().upsert(record("b", 6), initial=True)
    store.wrote(raw("c", 12))
    store.feed().end_replace("10")
    assert {entry.key.name for entry in store.entries()} == {"b", "c"}


def test_a_relist_tells_nobody_about_what_has_not_changed(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5), initial=False)
    seen: list[Change[ConfigMap]] = []
    stop = store.listen(seen.append)
    seen.clear()
    before = store.entry(KEY)
    store.feed().begin_replace()
    store.feed().upsert(record("a", 5), initial=True)
    store.feed().end_replace("9")
    assert seen == []
    assert store.entry(KEY) is before
    stop()


def test_a_deletion_of_the_predecessor_leaves_the_successor_alone(store: Store[ConfigMap]) -> None:
    store.wrote(raw("a", 9, uid="second"))
    store.feed().remove(record("a", 8, uid="first"))
    assert version(store) == "9"


def test_a_doubtful_write_is_settled_by_what_a_live_read_says(store: Store[ConfigMap]) -> None:
    store.doubt(KEY)
    assert store.uncertain() == {KEY}
    store.settle(store.ask(KEY), raw("a", 7))
    assert version(store) == "7"
    store.doubt(KEY)
    store.settle(store.ask(KEY), None)
    assert version(store) is None
    assert store.uncertain() == frozenset()


def test_a_body_that_fits_no_model_stays_as_an_undecodable_entry(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5, data=["not", "a", "map"]), initial=False)
    entry = store.entry(KEY)
    assert entry is not None
    assert not entry.decodable
    with pytest.raises(DecodeError, match="data"):
        store.get(KEY)
    assert store.select() == ()


def test_an_index_finds_by_value_and_forgets_what_changed(store: Store[ConfigMap]) -> None:
    store.add_index("color", lambda each: (each.data.get("color", ""),))
    store.feed().upsert(record("a", 5, data={"color": "red"}), initial=False)
    assert [each.name for each in store.select(index=("color", "red"))] == ["a"]
    store.feed().upsert(record("a", 6, data={"color": "blue"}), initial=False)
    assert store.select(index=("color", "red")) == ()
    with pytest.raises(NotCached, match="no index"):
        store.select(index=("size", "1"))


def test_objects_are_found_by_owner_and_by_labels(store: Store[ConfigMap]) -> None:
    owner = {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "o", "controller": True}]}
    store.feed().upsert(record("a", 5, metadata={**owner, "labels": {"x": "1"}}), initial=False)
    store.feed().upsert(record("b", 6, metadata=owner), initial=False)
    assert [each.name for each in store.select(owner_uid="o")] == ["a", "b"]
    assert [each.name for each in store.select(owner_uid="o", labels={"x": "1"})] == ["a"]


def test_managed_fields_are_not_kept(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5, metadata={"managedFields": [{"manager": "m"}]}, data={"k": "v"}), initial=False)
    entry = store.entry(KEY)
    assert entry is not None
    assert b"managedFields" not in entry.raw
    assert entry.view().data == {"k": "v"}


def test_a_live_read_from_before_a_new_object_does_not_bury_it(store: Store[ConfigMap]) -> None:
    store.doubt(KEY)
    asked = store.ask(KEY)
    store.wrote(raw("a", 7, uid="new"))
    store.settle(asked, None)
    assert version(store) == "7"
    assert store.uncertain() == frozenset()
    store.feed().upsert(record("a", 8, uid="new"), initial=False)
    assert version(store) == "8"


def test_a_doubt_that_arises_during_a_live_read_outlives_its_answer(store: Store[ConfigMap]) -> None:
    store.doubt(KEY)
    asked = store.ask(KEY)
    store.doubt(KEY)
    store.settle(asked, None)
    assert store.uncertain() == {KEY}


def test_an_index_function_that_fails_finds_nothing_and_hurts_nobody(store: Store[ConfigMap]) -> None:
    store.add_index("picky", lambda each: (each.data["color"],))
    store.add_index("easy", lambda each: (each.name,))
    store.feed().upsert(record("a", 5), initial=False)
    assert store.select(index=("picky", "red")) == ()
    assert [each.name for each in store.select(index=("easy", "a"))] == ["a"]
    store.feed().upsert(record("a", 6, data={"color": "red"}), initial=False)
    assert [each.name for each in store.select(index=("picky", "red"))] == ["a"]


def test_a_server_that_has_gone_back_in_time_is_believed(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5000), initial=False)
    store.feed().upsert(record("b", 4000), initial=False)
    store.feed().upsert(record("c", 4500), initial=False)
    store.feed().begin_replace()
    store.feed().upsert(record("a", 50, uid="restored"), initial=True)
    store.feed().upsert(record("b", 60), initial=True)
    store.feed().end_replace("100")
    assert {entry.key.name: entry.header.resource_version for entry in store.entries()} == {"a": "50", "b": "60"}
    store.feed().upsert(record("a", 101, uid="restored"), initial=False)
    assert version(store) == "101"


def test_what_was_buried_before_a_server_went_back_may_live_again(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5000), initial=False)
    store.deleted(KEY, "uid-a")
    store.feed().begin_replace()
    store.feed().upsert(record("a", 50), initial=True)
    store.feed().end_replace("100")
    assert version(store) == "50"


def test_what_we_wrote_during_the_list_of_a_server_that_went_back_stays(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5000), initial=False)
    store.feed().begin_replace()
    store.wrote(raw("b", 5001))
    store.feed().end_replace("100")
    assert {entry.key.name for entry in store.entries()} == {"b"}


def test_another_object_of_the_same_name_in_a_list_is_believed_whatever_its_version(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5000), initial=False)
    store.feed().begin_replace()
    store.feed().upsert(record("a", 50, uid="other"), initial=True)
    store.feed().end_replace("6000")
    assert version(store) == "50"


def test_a_list_does_not_undo_what_we_wrote_after_it_was_taken(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5), initial=False)
    store.feed().begin_replace()
    store.wrote(raw("a", 12, uid="next"))
    store.feed().upsert(record("a", 5), initial=True)
    store.feed().end_replace("10")
    assert version(store) == "12"


def test_a_streamed_list_that_catches_up_with_us_changes_nothing(store: Store[ConfigMap]) -> None:
    store.wrote(raw("a", 12))
    store.feed().begin_replace()
    store.feed().upsert(record("a", 5), initial=True)
    store.feed().upsert(record("a", 12), initial=True)
    store.feed().end_replace("12")
    assert version(store) == "12"


def test_what_does_not_decode_is_counted_and_said_once_a_version(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5, data=["odd"]), initial=False)
    store.feed().upsert(record("b", 6, data={"k": "v"}), initial=False)
    with capture_logs() as logs:
        for _ in range(3):
            assert [each.name for each in store.select()] == ["b"]
    assert [(line["log_level"], line["key"]) for line in logs] == [("warning", "ns/a")]
    assert store.undecodable == 1
    store.feed().upsert(record("a", 7, data={"k": "v"}), initial=False)
    assert [each.name for each in store.select()] == ["a", "b"]
    assert store.undecodable == 0


def test_a_node_with_swap_decodes() -> None:
    info = {"kubeletVersion": "v1.34.0", "swap": {"capacity": 4294967296}}
    node = Node.model_validate({"metadata": {"name": "n"}, "status": {"nodeInfo": info}})
    assert node.status.node_info["swap"] == {"capacity": 4294967296}


async def test_a_replay_holds_up_nobody_and_leaves_out_nothing(store: Store[ConfigMap]) -> None:
    for index in range(50):
        store.feed().upsert(record(f"a{index:02}", index + 5), initial=False)
    told: list[Change[ConfigMap]] = []

    def slow(change: Change[ConfigMap]) -> None:
        told.append(change)

    replay = asyncio.ensure_future(store.replay(slow, max_slice=0.0))
    await asyncio.sleep(0)
    assert 0 < len(told) < 50
    store.listen(slow, replay=False)
    store.feed().remove(record("a49", 99))
    store.feed().upsert(record("b", 100), initial=False)
    await replay
    live = [change for change in told if not change.initial]
    assert [(change.key.name, change.new is None) for change in live] == [("a49", True), ("b", False)]
    assert [change.key.name for change in told if change.initial] == [f"a{index:02}" for index in range(49)]


def test_what_was_deleted_during_a_list_is_not_raised_by_events_from_before(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5), initial=False)
    store.feed().begin_replace()
    store.feed().upsert(record("a", 5), initial=True)
    store.deleted(KEY, "uid-a")
    store.feed().end_replace("6")
    store.feed().upsert(record("a", 7), initial=False)
    assert version(store) is None
    store.feed().remove(record("a", 8))
    store.feed().upsert(record("a", 9, uid="second"), initial=False)
    assert version(store) == "9"


def test_what_was_deleted_during_the_list_of_a_server_that_went_back_stays_deleted(store: Store[ConfigMap]) -> None:
    store.feed().upsert(record("a", 5000), initial=False)
    store.feed().begin_replace()
    store.deleted(KEY, "uid-a")
    store.feed().upsert(record("a", 50), initial=True)
    store.feed().end_replace("100")
    assert version(store) is None


def test_objects_are_found_by_namespace_as_they_come_and_go(store: Store[ConfigMap]) -> None:
    def found(namespace: str) -> list[str]:
        return [each.name for each in store.select(namespace=namespace)]

    store.feed().upsert(record("a", 5), initial=False)
    assert (found("ns"), found("other")) == (["a"], [])
    store.feed().upsert(record("b", 6, metadata={"namespace": "other"}), initial=False)
    store.feed().upsert(record("a", 7), initial=False)
    assert (found("ns"), found("other")) == (["a"], ["b"])
    store.feed().remove(record("b", 8, metadata={"namespace": "other"}))
    assert (found("ns"), found("other")) == (["a"], [])


def test_a_list_of_one_namespace_looks_at_no_other() -> None:
    scattered = Store(ConfigMap)
    for number in range(1000):
        scattered.feed().upsert(record("a", number + 1, metadata={"namespace": f"ns-{number}"}), initial=False)
    scattered.select(namespace="ns-7")
    looked = 0

    class Watched(dict[ObjectKey, Any]):
        def __iter__(self) -> Any:
            nonlocal looked
            for each in super().__iter__():
                looked += 1
                yield each

    scattered._entries = Watched(scattered._entries)
    assert len(scattered.select(namespace="ns-7")) == 1
    assert looked == 0


@pytest.mark.parametrize("scope", [Scope(), Scope(keep=("spec",)), Scope(drop=("status",)), Scope(compact=True)])
def test_no_depth_of_an_object_ends_the_watch_that_brings_it(scope: Scope) -> None:
    store = Store(ConfigMap, scope)
    for depth in range(1, 1200):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        body = raw("a", depth, metadata={"managedFields": []})[:-1] + b', "spec": ' + nested + b"}"
        try:
            seen = decode_record(body)
        except ValueError:
            continue
        store.feed().upsert(seen, initial=False)
        entry = store.entry(KEY)
        assert entry is not None
        assert entry.header.name == "a"
    assert store.unreadable < 50
