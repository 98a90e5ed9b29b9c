"""Turns, the bound, cancellation and the end; with an engine whose every step the test decides."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

import pytest

from kaito_presets.inference.engine import Completion, Generation, ModelInfo, RequestError
from kaito_presets.inference.errors import BadRequest, QueueFull, ShuttingDown
from kaito_presets.inference.metrics import Metrics
from kaito_presets.inference.scheduler import Scheduler


class GatedEngine:
    """Emits its prompt letter by letter; ``hold`` waits at every letter until cancelled or released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()
        self.inside = 0
        self.most_inside = 0
        self.order: list[str] = []

    def load(self) -> ModelInfo:
        return ModelInfo("gated", "Gated", 0, 100, "none", "cpu", "random")

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "".join(message["content"] for message in messages)

    def generate(
        self,
        request: Generation,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        text = str(request.prompt)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.order.append(text)
        self.entered.set()
        try:
            if text == "refuse":
                raise RequestError("no", "why")
            while text == "hold" and not cancelled() and not self.released.wait(0.001):
                pass
            if cancelled():
                return Completion(("",), 1, 0, "cancelled")
            for letter in text:
                if on_text is not None:
                    on_text(letter)
            return Completion((text,), 1, len(text), "stop")
        finally:
            self.inside -= 1


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


def scheduler(engine: GatedEngine, max_waiting: int = 8) -> Scheduler:
    return Scheduler(engine, Metrics(), max_waiting=max_waiting)


async def ask(on: Scheduler, prompt: str) -> str:
    async with on.turn() as turn:
        return (await turn.generate(Generation(prompt))).texts[0]


async def entered(engine: GatedEngine) -> None:
    assert await asyncio.to_thread(engine.entered.wait, 10)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_at_a_time_in_order_of_arrival(engine: GatedEngine) -> None:
    on = scheduler(engine)
    prompts = [f"p{i}" for i in range(8)]
    assert await asyncio.gather(*(ask(on, prompt) for prompt in prompts)) == prompts
    assert engine.order == prompts
    assert engine.most_inside == 1
    assert await on.drain(1)


async def test_beyond_the_bound_is_refused_and_a_place_that_is_left_is_free_again(engine: GatedEngine) -> None:
    on = scheduler(engine, max_waiting=1)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(ask(on, "hold"))
        await entered(engine)
        waiting = group.create_task(ask(on, "left"))
        await settled()
        with pytest.raises(QueueFull):
            await ask(on, "refused")
        waiting.cancel()
        await settled()
        served = group.create_task(ask(on, "served"))
        await settled()
        engine.released.set()
    assert (running.result(), served.result()) == ("hold", "served")
    assert engine.order == ["hold", "served"]


async def test_cancelling_the_running_request_stops_it_before_the_next_begins(engine: GatedEngine) -> None:
    on = scheduler(engine)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(ask(on, "hold"))
        await entered(engine)
        following = group.create_task(ask(on, "next"))
        await settled()
        running.cancel()
    assert running.cancelled()
    assert following.result() == "next"
    assert engine.most_inside == 1


async def test_a_turn_that_comes_in_the_moment_of_cancellation_is_handed_on(engine: GatedEngine) -> None:
    on = scheduler(engine)
    async with asyncio.TaskGroup() as group:
        async with on.turn():
            unlucky = group.create_task(ask(on, "unlucky"))
            lucky = group.create_task(ask(on, "lucky"))
            await settled()
        unlucky.cancel()  # its turn has been given to it, and it has not run since
    assert unlucky.cancelled()
    assert lucky.result() == "lucky"
    assert engine.order == ["lucky"]
    assert on.idle


async def test_a_stream_yields_pieces_and_then_the_completion(engine: GatedEngine) -> None:
    on = scheduler(engine)
    async with on.turn() as turn:
        got = [piece async for piece in turn.stream(Generation("abc"))]
    assert got == ["a", "b", "c", Completion(("abc",), 1, 3, "stop")]


async def test_refusals_of_the_engine_are_the_clients_fault_and_free_the_turn(engine: GatedEngine) -> None:
    on = scheduler(engine)
    with pytest.raises(BadRequest) as caught:
        await ask(on, "refuse")
    assert (caught.value.message, caught.value.code) == ("no", "why")
    async with on.turn() as turn:
        with pytest.raises(BadRequest):
            _ = [piece async for piece in turn.stream(Generation("refuse"))]
    assert await ask(on, "fine") == "fine"


async def test_the_end_refuses_who_waits_and_stops_who_runs_after_the_grace(engine: GatedEngine) -> None:
    on = scheduler(engine)
    running = asyncio.ensure_future(ask(on, "hold"))
    await entered(engine)
    waiting = asyncio.ensure_future(ask(on, "waiting"))
    await settled()
    assert await on.drain(0.01)
    for task in (running, waiting):
        with pytest.raises(ShuttingDown):
            await task
    with pytest.raises(ShuttingDown):
        await ask(on, "late")
    assert engine.order == ["hold"]
