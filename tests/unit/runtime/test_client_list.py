"""Live lists, and objects in them that do not fit their model."""

from __future__ import annotations

import pytest

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.codec import decode_header
from kaito_ctrl.runtime.errors import DecodeError


class Numbers(ConfigMap):
    """A ConfigMap whose values are numbers."""

    data: dict[str, int] = {}  # type: ignore[assignment]  # noqa: RUF012


async def filled(server: ApiServer) -> Client:
    client = Client(server.transport(), "test")
    for name, value in (("a", "1"), ("b", "word"), ("c", "3")):
        await client.create(ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data={"k": value}))
    return client


async def test_one_misfit_fails_a_list_that_has_no_place_for_it(server: ApiServer) -> None:
    client = await filled(server)
    with pytest.raises(DecodeError, match="does not fit"):
        await client.list(Numbers, "default")


async def test_misfits_are_set_aside_with_their_bytes_and_the_others_are_listed(server: ApiServer) -> None:
    client = await filled(server)
    misfits: list[DecodeError] = []
    found = await client.list(Numbers, "default", misfits=misfits)
    assert [each.data["k"] for each in found if each.name != "kube-root-ca.crt"] == [1, 3]
    assert [decode_header(each.raw).name for each in misfits] == ["b"]
