"""The history of a workspace."""

from __future__ import annotations

from typing import Any

from kaito_api.apps import ControllerRevision
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.revisions import HISTORY, plan_revisions, revision_hash


def workspace(image: str | None = None, **inference: Any) -> Workspace:
    preset: dict[str, Any] = {"name": "test-model"}
    if image:
        preset["presetOptions"] = {"image": image}
    return Workspace.model_validate(
        {
            "metadata": {"name": "ws", "namespace": "default", "uid": "u1"},
            "resource": {
                "count": 1,
                "instanceType": "Standard_NC12s_v3",
                "labelSelector": {"matchLabels": {"apps": "test"}},
            },
            "inference": {"preset": preset, **inference},
        }
    )


def history(*images: str) -> list[ControllerRevision]:
    known: list[ControllerRevision] = []
    for image in images:
        made = plan_revisions(workspace(image), known)
        known = [each for each in known if each.name != made.current.name and each not in made.expired]
        known.append(made.current)
    return known


def test_the_hash_is_kaitos() -> None:
    # A vector of upstream's own.
    golden = "89ae127050ec264a5ce84db48ef7226574cdf1299e6bd27fe90b927e34cc8adb"
    assert revision_hash(workspace()) == golden


def test_labels_count_in_any_order_and_html_is_escaped_as_go_does() -> None:
    def labelled(labels: dict[str, str]) -> Workspace:
        ws = workspace()
        selector = ws.resource.label_selector.evolve(match_labels=labels)
        return ws.evolve(resource=ws.resource.evolve(label_selector=selector))

    assert revision_hash(labelled({"a": "1", "b": "2"})) == revision_hash(labelled({"b": "2", "a": "1"}))
    assert revision_hash(workspace("a&b")) != revision_hash(workspace("a\\u0026b"))


def test_a_revision_says_what_was_asked_for() -> None:
    made = plan_revisions(workspace(), ())
    current = made.current
    assert (current.name, current.revision) == ("ws-89ae1", 1)
    assert current.metadata.labels == {"workspace.kaito.io/name": "ws"}
    assert current.metadata.annotations == {"workspace.kaito.io/hash": made.hash}
    assert current.data["inference"] == {"preset": {"name": "test-model", "presetOptions": {}}}
    assert current.data["tuning"] is None
    assert made.annotations == {"workspace.kaito.io/hash": made.hash, "workspace.kaito.io/revision": "1"}


def test_each_change_is_a_new_revision_and_going_back_is_none() -> None:
    known = history("a", "b")
    assert [each.revision for each in known] == [1, 2]
    back = plan_revisions(workspace("a"), known)
    assert (back.current.name, back.current.revision) == (known[0].name, 1)
    assert back.expired == ()


def test_ten_are_kept_and_never_the_current_one_is_forgotten() -> None:
    known = history(*(f"image-{number}" for number in range(HISTORY)))
    more = plan_revisions(workspace("another"), known)
    assert [each.revision for each in more.expired] == [1]
    oldest = plan_revisions(workspace("image-0"), [*known, more.current])
    assert oldest.current.revision == 1
    assert [each.revision for each in oldest.expired] == [2]


def test_two_revisions_whose_hashes_begin_alike_get_names_of_their_own() -> None:
    first = plan_revisions(workspace(), ()).current
    foreign = first.evolve(metadata=first.metadata.evolve(annotations={"workspace.kaito.io/hash": "0" * 64}))
    assert plan_revisions(workspace(), [foreign]).current.name == "ws-89ae12"
