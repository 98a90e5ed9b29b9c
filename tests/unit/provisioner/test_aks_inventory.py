"""The list that everybody shares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from kaito_ctrl.testing.virtualtime import run_virtual
from kaito_provisioner.aks.inventory import Inventory
from kaito_provisioner.aks.pools import Pool
from kaito_provisioner.cloud import CloudError, Throttled


def pool(name: str, uid: str = "1", state: str = "Succeeded") -> Pool:
    return Pool(name, {"provisioningState": state, "tags": {"kaito.sh_claim-uid": uid}})


class Service:
    """Answers after a second with what there was when it was asked."""

    def __init__(self, *pools: Pool) -> None:
        self.pools: list[Pool] = list(pools)
        self.error: CloudError | None = None
        self.asked = 0

    async def __call__(self) -> Sequence[Pool]:
        self.asked += 1
        seen, error = list(self.pools), self.error
        await asyncio.sleep(1)
        if error is not None:
            raise error
        return seen


def trying(test: Callable[[Service, Inventory], Awaitable[None]], *pools: Pool) -> None:
    async def main() -> None:
        service = Service(*pools)
        await test(service, Inventory(service, asyncio.get_running_loop().time))

    run_virtual(main())


def test_those_who_ask_at_the_same_time_share_one_request() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        found = await asyncio.gather(*(inventory.pools(5) for _ in range(50)))
        assert all(set(each) == {"a"} for each in found)
        assert service.asked == 1
        await inventory.pools(5)
        assert service.asked == 1
        await asyncio.sleep(10)
        await inventory.pools(5)
        assert service.asked == 2

    trying(test, pool("a"))


def test_whoever_needs_a_newer_one_does_not_take_the_one_that_is_on_its_way() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        async with asyncio.TaskGroup() as group:
            early = group.create_task(inventory.pools())
            await asyncio.sleep(0.5)
            service.pools.append(pool("b"))
            late = [group.create_task(inventory.pools()) for _ in range(10)]
        assert set(early.result()) == {"a"}
        assert all(set(each.result()) == {"a", "b"} for each in late)
        assert service.asked == 2

    trying(test, pool("a"))


def test_a_failure_is_everybodys_who_waited_and_nobodys_afterwards() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        service.error = CloudError("no")
        results = await asyncio.gather(*(inventory.pools() for _ in range(3)), return_exceptions=True)
        assert all(isinstance(each, CloudError) for each in results)
        service.error = None
        assert set(await inventory.pools()) == {"a"}
        assert service.asked == 2

    trying(test, pool("a"))


def test_who_asked_first_may_give_up_without_taking_the_others_along() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(inventory.pools())
            await asyncio.sleep(0.5)
            second = group.create_task(inventory.pools(5))
            await asyncio.sleep(0.1)
            first.cancel()
        assert set(second.result()) == {"a"}

    trying(test, pool("a"))


def test_a_throttled_service_is_left_alone_for_as_long_as_it_said() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        service.error = Throttled("slower", retry_after=30)
        for _ in range(5):
            with pytest.raises(Throttled):
                await inventory.pools()
        assert service.asked == 1
        service.error = None
        await asyncio.sleep(30)
        assert set(await inventory.pools()) == {"a"}

    trying(test, pool("a"))


def test_what_we_made_is_there_until_the_list_has_had_time_to_show_it() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        inventory.created(pool("a", state="Creating"))
        assert inventory.just_created("a", "1")
        assert not inventory.just_created("a", "2")
        assert (await inventory.pools())["a"].provisioning_state == "Creating"
        await asyncio.sleep(61)
        assert not inventory.just_created("a", "1")
        assert await inventory.pools() == {}

    trying(test)


def test_what_the_list_shows_is_newer_than_what_we_made() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        inventory.created(pool("a", state="Creating"))
        await asyncio.sleep(1)
        service.pools.append(pool("a"))
        assert (await inventory.pools())["a"].provisioning_state == "Succeeded"
        service.pools.clear()
        assert await inventory.pools() == {}

    trying(test)


def test_what_we_are_deleting_goes_even_if_the_list_shows_it_unharmed() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        inventory.deleting(pool("a"))
        await asyncio.sleep(1)
        assert (await inventory.pools())["a"].provisioning_state == "Deleting"
        # But a deletion that comes to nothing is seen in the end.
        await asyncio.sleep(61)
        assert (await inventory.pools())["a"].provisioning_state == "Succeeded"

    trying(test, pool("a"))


def test_a_name_that_has_been_taken_over_is_shown_as_it_is() -> None:
    async def test(service: Service, inventory: Inventory) -> None:
        inventory.deleting(pool("a"))
        await asyncio.sleep(1)
        service.pools[:] = [pool("a", uid="2")]
        assert (await inventory.pools())["a"].claim_uid == "2"

    trying(test, pool("a"))
