"""What time it is: answers say when they were given, by the clock that stamps the objects."""

from __future__ import annotations

from datetime import timedelta

from kaito_api.core import Namespace
from kaito_ctrl.runtime import Client
from tests.conformance.wire import Api, Target


async def test_the_date_of_an_answer_and_the_timestamps_of_objects_are_of_one_clock(target: Target, api: Api) -> None:
    client = Client(target.transport)
    namespace = await client.get(Namespace, api.namespace)
    created = namespace.metadata.creation_timestamp
    assert created is not None
    assert timedelta(0) <= await client.server_time() - created < timedelta(minutes=1)
