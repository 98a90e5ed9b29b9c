"""Whatever goes wrong in the middle of a claim's end, and whenever: it ends, in order, and nothing is left."""

from __future__ import annotations

import asyncio
import functools
import random

import pytest

from kaito_api.karpenter import TERMINATION_FINALIZER, Machine, NodeClaim, NodeRequest
from kaito_ctrl.testing import FixedPlan, RandomPlan, Recording, Spot, single_faults
from kaito_provisioner import Throttled, Unavailable
from tests.scenarios.ending import NAME, SHUTDOWN, Scene, play
from tests.scenarios.kubelet import GRACE

KINDS = (Machine, NodeClaim)
FAULTS = ("crash", "crash-after", "lost", "conflict", "error", "unavailable")
SPARE = 60.0
"""Seconds that a fault may cost: a restart, a watch that has to begin again, back-off."""


async def _begin(scene: Scene) -> None:
    spec = {"terminationGracePeriod": "1h"} if scene.kind is NodeClaim else {}
    await scene.up(spec=spec)
    await scene.pod("web")


async def _end(scene: Scene) -> None:
    await _begin(scene)
    await scene.delete()
    await scene.until_gone(GRACE + SHUTDOWN + SPARE)
    _judge(scene)


def _judge(scene: Scene) -> None:
    for step in scene.steps:
        if step.verb == "CLOUD":
            assert "web" not in step.left, "the pods go before the instance"
        if _lets_go(step.body):
            assert step.left == (), f"{step}: let go before the instance was gone"
    assert [step.what for step in scene.steps].index(f"nodes/{NAME}") == min(
        index for index, step in enumerate(scene.steps) if not step.what.startswith(scene.kind.plural)
    ), "the node is closed first"


def _lets_go(body: object) -> bool:
    metadata = body.get("metadata") if isinstance(body, dict) else None
    finalizers = metadata.get("finalizers") if isinstance(metadata, dict) else None
    return finalizers is not None and TERMINATION_FINALIZER not in finalizers


@functools.cache
def _spots(kind: type[NodeRequest]) -> tuple[Spot, ...]:
    """The calls that the controller makes from the deletion on."""
    recording, began = Recording(), 0.0

    async def life(scene: Scene) -> None:
        nonlocal began
        await _begin(scene)
        began = scene.now
        await scene.delete()
        await scene.until_gone(GRACE + SHUTDOWN + SPARE)

    play(life, kind=kind, plan=recording)
    spots = [spot for spot in recording.spots if spot.now >= began and spot.kind not in ("watch", "chunk")]
    # The polls in the middle are all alike.
    return (*spots[:30], *spots[-12:]) if len(spots) > 42 else tuple(spots)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_call_to_the_api_server_costs_time_and_nothing_else(kind: type[NodeRequest], fault: str) -> None:
    faults = single_faults(_spots(kind), [fault])
    assert len(faults) >= 5
    for each in faults:
        try:
            play(_end, kind=kind, plan=FixedPlan([each]))
        except AssertionError as error:
            raise AssertionError(f"{each}: {error}") from error


@pytest.mark.parametrize("moment", ["before", "after", "lost"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_call_to_the_cloud_it_goes_on_where_it_was(kind: type[NodeRequest], moment: str) -> None:
    for number in range(6):

        async def life(scene: Scene, number: int = number) -> None:
            calls = 0

            def strike(call: str, _: str) -> Exception | None:
                nonlocal calls
                if call not in ("find", "delete"):
                    return None
                calls += 1
                if calls != number + 1:
                    return None
                if moment != "lost":
                    scene.kill(down=3.0)
                return None if moment == "after" else Unavailable("connection reset")

            if moment == "lost":
                scene.cloud.lost = strike
            else:
                scene.cloud.fault = strike
            await _end(scene)
            assert scene.host.runs == (1 if moment == "lost" else 2)

        play(life, kind=kind)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_in_any_weather_it_ends_in_order(kind: type[NodeRequest], seed: int) -> None:
    """Everything at once: a stormy network, a cloud that refuses and loses answers, and a process that is killed."""
    rng = random.Random(seed)
    refusing, losing = rng.random() * 0.3, rng.random() * 0.3
    kills = [(rng.random() * 20, rng.random() * 5) for _ in range(rng.randrange(4))]

    def refuse(_: str, __: str) -> Exception | None:
        if rng.random() >= refusing:
            return None
        return rng.choice([Unavailable("nobody answers"), Throttled("too many", retry_after=rng.random() * 20)])

    async def life(scene: Scene) -> None:
        await _begin(scene)
        await scene.budget("web", 0)
        scene.cloud.fault = refuse
        scene.cloud.lost = lambda *_: Unavailable("connection reset") if rng.random() < losing else None
        await scene.delete()
        for pause, down in kills:
            await asyncio.sleep(pause)
            scene.kill(down)
        await asyncio.sleep(10)
        await scene.budget("web", 1)
        await scene.until_gone(900.0)
        _judge(scene)

    play(
        life,
        kind=kind,
        plan=RandomPlan(seed, until=300.0),
        lag=rng.choice([0.0, 5.0]),
        provider_ids=rng.choice(["at once", "when running", "never"]),
    )
