"""The collector is kept out of what the caches hold, and only for as long as the program runs."""

from __future__ import annotations

import asyncio
import gc

from kaito_ctrl.runtime.heap import SettledHeap
from kaito_ctrl.runtime.lifetime import Lifetime


async def test_what_is_alive_is_exempt_until_the_end() -> None:
    lifetime = Lifetime()
    content: list[dict[str, object]] = [{} for _ in range(1000)]
    for each in content:
        each["self"] = content  # so that the collector tracks it
    frozen = gc.get_freeze_count()
    task = asyncio.create_task(SettledHeap().run(lifetime))
    await lifetime.wait_started()
    assert gc.get_freeze_count() >= frozen + 1000
    lifetime.stop()
    await task
    assert gc.get_freeze_count() == 0
    for each in content:
        each.clear()


async def test_a_cancelled_one_leaves_nothing_exempt() -> None:
    lifetime = Lifetime()
    task = asyncio.create_task(SettledHeap().run(lifetime))
    await lifetime.wait_started()
    task.cancel()
    await asyncio.wait([task])
    assert gc.get_freeze_count() == 0
