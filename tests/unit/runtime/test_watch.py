"""The watch's state machine, transition by transition."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_ctrl.runtime.codec import Header, ListHead, Record
from kaito_ctrl.runtime.errors import ApiError, TransportError
from kaito_ctrl.runtime.watchstate import (
    Advance,
    Backoff,
    Closed,
    Effect,
    EndReplace,
    Failed,
    Frame,
    Input,
    Items,
    Listing,
    Page,
    Remove,
    Silence,
    State,
    Streaming,
    Upsert,
    Waiting,
    Watching,
    Woke,
    initial,
    step,
)

GONE = Failed(ApiError.of(410, "Expired", "too old resource version"))
BROKEN = Failed(TransportError("connection reset"))


def record(version: str = "") -> Record:
    return Record(Header(name="a", resource_version=version), b"{}")


def frame(event: str, version: str, *, ends_initial: bool = False) -> Frame:
    return Frame(event, record(version), ends_initial)


A, B = record("2"), record("3")
END = frame("BOOKMARK", "5", ends_initial=True)
UNDEFINED = frame("RENAMED", "2")


def refused(code: int) -> Failed:
    return Failed(ApiError.of(code, f"R{code}"))


def waiting(then: Listing | Streaming | Watching, attempt: int, reason: str, **more: Any) -> Waiting:
    return Waiting(then, attempt, reason=reason, **more)


TABLE: list[tuple[State, Input, State, tuple[Effect, ...]]] = [
    # A list, page by page; only its end syncs.
    (Listing("0"), Items((A, B)), Listing("0"), (Upsert(A, initial=True), Upsert(B, initial=True))),
    (Listing("0"), Page(ListHead("7", "more")), Listing("0", token="more"), ()),
    (Listing("0", token="more"), Page(ListHead("7")), Watching("7"), (EndReplace("7"),)),
    (Listing("", attempt=2, gone=1), Page(ListHead("7")), Watching("7", attempt=2, gone=1), (EndReplace("7"),)),
    (Listing("0", token="more"), GONE, Listing("", attempt=1, gone=1), ()),
    (Listing("", token="more", gone=1), GONE, waiting(Listing("", attempt=2, gone=2), 2, "Gone"), ()),
    (Listing("5"), GONE, waiting(Listing("", attempt=1, gone=1), 1, "Gone"), ()),
    (Listing("0"), refused(403), waiting(Listing("", attempt=1), 1, "R403", suspended=True), ()),
    (Listing("0"), refused(404), waiting(Listing("", attempt=1), 1, "R404", suspended=True), ()),
    (Listing("0"), refused(401), waiting(Listing("0", attempt=1), 1, "R401"), ()),
    (Listing("0", token="more"), refused(503), waiting(Listing("0", attempt=1), 1, "R503"), ()),
    (Listing("0", token="more"), BROKEN, waiting(Listing("0", attempt=1), 1, "connection reset"), ()),
    # Initial events.
    (Streaming(), frame("ADDED", "2"), Streaming(), (Upsert(A, initial=True),)),
    (Streaming(), frame("MODIFIED", "2"), Streaming(), (Upsert(A, initial=True),)),
    (Streaming(), frame("DELETED", "2"), Streaming(), (Remove(A),)),
    (Streaming(), END, Watching("5", streaming=True), (EndReplace("5"),)),
    (Streaming(3, 1), END, Watching("5", attempt=3, streaming=True, gone=1), (EndReplace("5"),)),
    (Streaming(), UNDEFINED, Streaming(), ()),
    (Streaming(), Closed(3, 9.0), waiting(Streaming(1), 1, "the initial events broke off"), ()),
    (Streaming(), GONE, Streaming(1, 1), ()),
    (Streaming(1, 1), GONE, waiting(Streaming(2, 2), 2, "Gone"), ()),
    (Streaming(), refused(403), waiting(Streaming(1), 1, "R403", suspended=True), ()),
    (Streaming(), refused(404), waiting(Streaming(1), 1, "R404", suspended=True), ()),
    (Streaming(), refused(401), waiting(Streaming(1), 1, "R401"), ()),
    (Streaming(), refused(500), waiting(Streaming(1), 1, "R500"), ()),
    (Streaming(), BROKEN, waiting(Streaming(1), 1, "connection reset"), ()),
    # A server that does not stream lists: by refusing, by a bookmark that ends nothing, by silence, by closing twice.
    *((Streaming(), refused(code), Listing("0"), ()) for code in (400, 405, 406, 415, 422)),
    (Streaming(2), refused(422), Listing("", attempt=2), ()),
    (Streaming(), frame("BOOKMARK", "5"), Listing("0"), ()),
    (Streaming(), Silence(), Listing("0"), ()),
    (Streaming(1), Silence(), Listing("", attempt=1), ()),
    (Streaming(1), Closed(0, 9.0), waiting(Listing("", attempt=1), 2, "the initial events broke off"), ()),
    # Events.
    (Watching("1", attempt=3, gone=1), frame("ADDED", "2"), Watching("2"), (Upsert(A),)),
    (Watching("1", refusals=2), frame("MODIFIED", "2"), Watching("2"), (Upsert(A),)),
    (Watching("1", streaming=True), frame("DELETED", "2"), Watching("2", streaming=True), (Remove(A),)),
    (Watching("1", attempt=5), frame("BOOKMARK", "2"), Watching("2"), (Advance("2"),)),
    (Watching("1"), frame("ADDED", ""), Watching("1"), (Upsert(record("")),)),
    (Watching("1"), UNDEFINED, Watching("1"), ()),
    # Ends of a watch.
    (Watching("4", attempt=3), Closed(10, 300), Watching("4"), ()),
    (Watching("4"), Closed(0, 300), Watching("4"), ()),
    (Watching("4"), Closed(0, 0.2), waiting(Watching("4", attempt=1), 1, "the watch closed at once"), ()),
    (Watching("4"), Silence(), Watching("4"), ()),
    (Watching("4"), GONE, Listing("", attempt=1, gone=1), ()),
    (Watching("4", streaming=True), GONE, Streaming(1, 1), ()),
    (Watching("4", gone=1), GONE, waiting(Listing("", attempt=2, gone=2), 2, "Gone"), ()),
    (Watching("4"), refused(403), waiting(Listing("", attempt=1), 1, "R403", suspended=True), ()),
    (Watching("4", streaming=True), refused(404), waiting(Streaming(1), 1, "R404", suspended=True), ()),
    (Watching("4"), refused(401), waiting(Watching("4", attempt=1), 1, "R401"), ()),
    (Watching("4"), refused(500), waiting(Watching("4", attempt=1, refusals=1), 1, "R500"), ()),
    (Watching("4", refusals=2), refused(400), waiting(Listing("", attempt=1), 1, "R400"), ()),
    (Watching("4", refusals=2, streaming=True), refused(504), waiting(Streaming(1), 1, "R504"), ()),
    (Watching("4", refusals=2), refused(401), waiting(Watching("4", attempt=1, refusals=2), 1, "R401"), ()),
    (Watching("4"), BROKEN, waiting(Watching("4", attempt=1), 1, "connection reset"), ()),
]


@pytest.mark.parametrize(("state", "seen", "then", "effects"), TABLE)
def test_transitions(state: State, seen: Input, then: State, effects: tuple[Effect, ...]) -> None:
    assert step(state, seen) == (then, effects)


@pytest.mark.parametrize("state", [Listing("0", token="t"), Streaming(), Watching("4")])
def test_too_many_requests_waits_as_long_as_the_server_says(state: Listing | Streaming | Watching) -> None:
    after, effects = step(state, Failed(ApiError.of(429, retry_after=7)))
    assert isinstance(after, Waiting)
    assert (after.seconds, effects, type(after.then)) == (7, (), type(state))
    assert 7 <= Backoff().seconds(after, random.Random(1)) < 8


@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_no_server_makes_a_watch_wait_for_good(seconds: float) -> None:
    after, _ = step(Watching("4"), Failed(ApiError.of(429, retry_after=seconds)))
    assert isinstance(after, Waiting)
    assert 300 <= Backoff().seconds(after, random.Random(1)) <= 330


def test_every_state_answers_every_input_or_calls_it_a_bug() -> None:
    asked: dict[type, set[type]] = {
        Listing: {Items, Page, Failed},
        Streaming: {Frame, Closed, Silence, Failed},
        Watching: {Frame, Closed, Silence, Failed},
        Waiting: {Woke},
    }
    states: list[State] = [Listing(), Streaming(), Watching("1"), Waiting(Listing(), 1)]
    inputs: list[Input] = [Items(()), Page(ListHead("1")), frame("ADDED", "2"), Closed(0, 0), Silence(), BROKEN, Woke()]
    for state in states:
        for seen in inputs:
            if type(seen) in asked[type(state)]:
                step(state, seen)
            else:
                with pytest.raises(ValueError, match="cannot follow"):
                    step(state, seen)
    assert {(type(state), type(seen)) for state, seen, _, _ in TABLE} == {
        (state, seen) for state, seen_by in asked.items() for seen in seen_by if state is not Waiting
    }


def test_a_watch_begins_with_a_stream_or_with_a_list_that_memory_may_serve() -> None:
    assert initial() == Streaming()
    assert initial(streaming=False) == Listing("0")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_version_that_has_expired_in_an_outage_is_listed_anew_at_once_however_long_that_was(streaming: bool) -> None:
    state: State = Watching("5", streaming=streaming)
    for _ in range(10):
        state, _effects = step(state, BROKEN)
        state, _effects = step(state, Woke())
    state, _effects = step(state, GONE)
    assert isinstance(state, Listing | Streaming)
    # And a second 410, before anything has come, is the first failure of another kind.
    state, _effects = step(Watching("6", gone=state.gone), GONE)
    assert isinstance(state, Waiting)
    assert state.attempt == 2


def test_a_suspended_kind_is_asked_for_again_after_ten_seconds() -> None:
    state, _ = step(Listing("0"), refused(404))
    assert isinstance(state, Waiting)
    assert Backoff().seconds(state, random.Random(1)) == 10


@pytest.mark.parametrize("then", [Listing("0"), Streaming(), Watching("4")])
def test_what_was_waited_for_comes_after_the_wait(then: Listing | Streaming | Watching) -> None:
    assert step(Waiting(then, 1), Woke()) == (then, ())


@given(st.integers(1, 500), st.randoms())
def test_waits_grow_and_stay_within_their_bounds(attempt: int, rng: random.Random) -> None:
    backoff = Backoff()
    assert 0.4 <= backoff.seconds(Waiting(Watching("1"), attempt), rng) <= backoff.cap
    assert 10 <= backoff.seconds(Waiting(Listing(), attempt, suspended=True), rng) <= backoff.suspended_cap


@pytest.mark.parametrize("code", [400, 500, 504])
def test_a_version_that_is_refused_three_times_is_given_up_for_a_list(code: int) -> None:
    state: State = Watching("5")
    for _ in range(2):
        state, _effects = step(state, Failed(ApiError.of(code)))
        assert isinstance(state, Waiting)
        assert isinstance(state.then, Watching)
        state, _effects = step(state, Woke())
    state, _effects = step(state, Failed(ApiError.of(code)))
    assert isinstance(state, Waiting)
    assert isinstance(state.then, Listing)


@pytest.mark.parametrize("failure", [BROKEN, Failed(ApiError.of(401)), Failed(ApiError.of(429))])
def test_what_is_not_about_the_version_never_gives_it_up(failure: Failed) -> None:
    state: State = Watching("5")
    for _ in range(10):
        state, _effects = step(state, failure)
        assert isinstance(state, Waiting)
        assert isinstance(state.then, Watching)
        state, _effects = step(state, Woke())


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan")])
def test_a_wait_of_no_seconds_is_no_leave_to_spin(seconds: float) -> None:
    state, _ = step(Watching("4"), Failed(ApiError.of(429, retry_after=seconds)))
    assert isinstance(state, Waiting)
    assert Backoff().seconds(state, random.Random(1)) > 0.1


failures = st.sampled_from([400, 401, 403, 404, 405, 409, 410, 415, 422, 429, 500, 503, 504]).map(
    lambda code: Failed(ApiError.of(code))
)
frames = st.builds(
    Frame,
    st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ODD"]),
    st.integers(1, 99).map(str).map(record),
    st.booleans(),
)
any_end = st.one_of(failures, st.just(BROKEN))


@given(st.booleans(), st.data())
def test_nothing_that_a_server_answers_ends_a_watch(streaming: bool, data: st.DataObject) -> None:
    state = initial(streaming=streaming)
    seen: Input
    for _ in range(40):
        match state:
            case Waiting():
                seen = Woke()
            case Listing():
                page = st.builds(Page, st.builds(ListHead, st.just("9"), st.sampled_from(["", "t"])))
                seen = data.draw(st.one_of(any_end, page, st.just(Items((A,)))))
            case _:
                closed = st.builds(Closed, st.integers(0, 3), st.floats(0, 9))
                seen = data.draw(st.one_of(any_end, frames, closed, st.just(Silence())))
        state, _ = step(state, seen)
    assert isinstance(state, Listing | Streaming | Watching | Waiting)


pages = st.sampled_from([Page(ListHead("9")), Page(ListHead("9", "t"))])
habits = st.tuples(st.one_of(any_end, pages), st.sampled_from([GONE, BROKEN, Failed(ApiError.of(400)), Closed(0, 0.1)]))


@given(st.booleans(), st.lists(habits, min_size=1, max_size=3))
def test_answers_without_an_event_cause_but_a_few_requests_at_once(
    streaming: bool, habits: list[tuple[Input, Input]]
) -> None:
    state, requests = initial(streaming=streaming), 0
    seen: Input
    for turn in range(50):
        to_list, to_watch = habits[turn % len(habits)]
        match state:
            case Waiting():
                seen, requests = Woke(), -1
            case Listing(token=token):
                # A list that never ends is no matter of retries.
                seen = Page(ListHead("9")) if token and isinstance(to_list, Page) else to_list
            case _:
                seen = to_watch
        state, _ = step(state, seen)
        requests += 1
        assert requests <= 8
