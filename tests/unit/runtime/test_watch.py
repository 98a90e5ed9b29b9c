"""The watch's state machine, transition by transition."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_ctrl.runtime.codec import ListHead
from kaito_ctrl.runtime.errors import ApiError, TransportError
from kaito_ctrl.runtime.watch import (
    Advance,
    Backoff,
    BeginReplace,
    Closed,
    EndReplace,
    Failed,
    Frame,
    Input,
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


def test_a_watch_begins_with_a_list_that_memory_may_serve() -> None:
    assert initial(streaming=False) == Listing("0")
    assert initial(streaming=True) == Streaming()


def test_pages_are_taken_in_until_the_last_and_only_then_the_store_is_synced() -> None:
    state, effects = step(Listing("0"), Page(ListHead("7", "more"), (b"a",)))
    assert effects == (BeginReplace(), Upsert(b"a", initial=True))
    assert isinstance(state, Listing)
    assert state.token == "more"
    state, effects = step(state, Page(ListHead("7"), (b"b",)))
    assert effects == (Upsert(b"b", initial=True), EndReplace("7"))
    assert state == Watching("7")


def test_an_expired_page_token_starts_the_list_anew_by_quorum_read() -> None:
    state, effects = step(Listing("0", token="more"), GONE)
    assert effects == ()
    assert isinstance(state, Listing)
    assert (state.version, state.token) == ("", "")


def test_a_list_whose_start_has_expired_backs_off_instead_of_spinning() -> None:
    state, _ = step(Listing("5"), GONE)
    assert isinstance(state, Waiting)
    assert isinstance(state.then, Listing)
    assert state.then.version == ""


def test_events_move_the_version_and_reach_the_store() -> None:
    state, effects = step(Watching("1"), Frame("ADDED", b"x", "2"))
    assert (state, effects) == (Watching("2"), (Upsert(b"x"),))
    state, effects = step(state, Frame("DELETED", b"x", "3"))
    assert (state, effects) == (Watching("3"), (Remove(b"x"),))
    state, effects = step(state, Frame("BOOKMARK", b"{}", "9"))
    assert (state, effects) == (Watching("9"), (Advance("9"),))


def test_an_event_of_a_type_nobody_has_defined_changes_nothing() -> None:
    assert step(Watching("1"), Frame("RENAMED", b"x", "2")) == (Watching("1"), ())


def test_the_end_of_a_stream_goes_on_at_once_from_where_it_was() -> None:
    assert step(Watching("4", attempt=3), Closed(frames=10, seconds=300)) == (Watching("4"), ())


def test_a_stream_that_ends_at_once_and_empty_backs_off() -> None:
    state, _ = step(Watching("4"), Closed(frames=0, seconds=0.2))
    assert isinstance(state, Waiting)
    assert isinstance(state.then, Watching)
    assert state.then.version == "4"


def test_silence_presumes_a_dead_connection_and_opens_another() -> None:
    assert step(Watching("4"), Silence()) == (Watching("4"), ())


def test_an_expired_version_relists_by_quorum_read_without_clearing_the_store() -> None:
    state, effects = step(Watching("4"), GONE)
    assert isinstance(state, Listing)
    assert state.version == ""
    assert effects == ()


def test_too_many_requests_waits_as_long_as_the_server_says() -> None:
    state, _ = step(Watching("4"), Failed(ApiError.of(429, retry_after=7)))
    assert isinstance(state, Waiting)
    assert state.seconds == 7
    assert 7 <= Backoff().seconds(state, random.Random(1)) < 8


@pytest.mark.parametrize("code", [403, 404])
def test_a_kind_that_is_missing_or_forbidden_is_waited_for(code: int) -> None:
    state, _ = step(Listing("0"), Failed(ApiError.of(code)))
    assert isinstance(state, Waiting)
    assert state.suspended
    assert Backoff().seconds(state, random.Random(1)) == 10


@pytest.mark.parametrize("code", [400, 404, 405, 415, 422])
def test_a_server_without_streaming_lists_is_listed(code: int) -> None:
    assert step(Streaming(), Failed(ApiError.of(code))) == (Listing("0"), ())


def test_initial_events_end_with_the_bookmark_that_says_so() -> None:
    state, effects = step(Streaming(), Frame("ADDED", b"a", "3"))
    assert (state, effects) == (Streaming(), (Upsert(b"a", initial=True),))
    assert step(state, Frame("BOOKMARK", b"{}", "4")) == (state, ())
    state, effects = step(state, Frame("BOOKMARK", b"{}", "5", ends_initial=True))
    assert (state, effects) == (Watching("5", streaming=True), (EndReplace("5"),))


@pytest.mark.parametrize("state", [Listing("0"), Streaming(), Watching("4")])
def test_a_broken_connection_backs_off_and_tries_the_same_again(state: Listing | Streaming | Watching) -> None:
    after, effects = step(state, BROKEN)
    assert isinstance(after, Waiting)
    assert effects == ()
    assert type(after.then) is type(state)
    assert step(after, Woke())[0] == after.then


def test_an_input_that_the_state_cannot_have_asked_for_is_a_bug() -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        step(Watching("1"), Page(ListHead("1"), ()))


@given(st.integers(1, 500), st.randoms())
def test_waits_grow_and_stay_within_their_bounds(attempt: int, rng: random.Random) -> None:
    backoff = Backoff()
    assert 0.4 <= backoff.seconds(Waiting(Watching("1"), attempt), rng) <= backoff.cap
    assert 10 <= backoff.seconds(Waiting(Listing(), attempt, suspended=True), rng) <= backoff.suspended_cap


def test_a_version_that_expires_again_before_anything_came_backs_off() -> None:
    state, _ = step(Watching("4"), GONE)
    state, _ = step(state, Page(ListHead("9"), ()))
    state, _ = step(state, GONE)
    assert isinstance(state, Waiting)
    assert isinstance(state.then, Listing)


def test_a_page_that_expires_again_and_again_backs_off() -> None:
    state, _ = step(Listing(""), Page(ListHead("9", "more"), ()))
    state, _ = step(state, GONE)
    assert isinstance(state, Listing)
    state, _ = step(state, Page(ListHead("9", "more"), ()))
    state, _ = step(state, GONE)
    assert isinstance(state, Waiting)


def test_a_streaming_list_that_expires_again_backs_off() -> None:
    state, _ = step(Streaming(), GONE)
    assert isinstance(state, Streaming)
    state, _ = step(state, GONE)
    assert isinstance(state, Waiting)
    assert isinstance(state.then, Streaming)


def test_a_server_that_streams_lists_is_asked_to_after_an_expired_version() -> None:
    state, _ = step(Watching("4", streaming=True), GONE)
    assert isinstance(state, Streaming)


def test_a_first_event_ends_the_back_off() -> None:
    state, _ = step(Watching("4", attempt=5, refusals=2), Frame("BOOKMARK", b"{}", "5"))
    assert state == Watching("5")


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


def test_a_wait_of_no_seconds_is_no_leave_to_spin() -> None:
    state, _ = step(Watching("4"), Failed(ApiError.of(429, retry_after=0)))
    assert isinstance(state, Waiting)
    assert Backoff().seconds(state, random.Random(1)) > 0.1


failures = st.sampled_from([400, 401, 403, 404, 405, 409, 410, 415, 422, 429, 500, 503, 504]).map(
    lambda code: Failed(ApiError.of(code))
)
frames = st.builds(
    Frame,
    st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ODD"]),
    st.just(b"{}"),
    st.integers(1, 99).map(str),
    st.booleans(),
)
any_end = st.one_of(failures, st.just(BROKEN))


@given(st.booleans(), st.data())
def test_nothing_that_a_server_answers_ends_a_watch(streaming: bool, data: st.DataObject) -> None:
    state = initial(streaming=streaming)
    for _ in range(40):
        match state:
            case Waiting():
                seen = Woke()
            case Listing():
                page = st.builds(Page, st.builds(ListHead, st.just("9"), st.sampled_from(["", "t"])), st.just(()))
                seen = data.draw(st.one_of(any_end, page))
            case _:
                closed = st.builds(Closed, st.integers(0, 3), st.floats(0, 9))
                seen = data.draw(st.one_of(any_end, frames, closed, st.just(Silence())))
        state, _ = step(state, seen)
    assert isinstance(state, Listing | Streaming | Watching | Waiting)


pages = st.sampled_from([Page(ListHead("9"), ()), Page(ListHead("9", "t"), ())])
habits = st.tuples(st.one_of(any_end, pages), st.sampled_from([GONE, BROKEN, Failed(ApiError.of(400)), Closed(0, 0.1)]))


@given(st.booleans(), st.lists(habits, min_size=1, max_size=3))
def test_answers_without_an_event_cause_but_a_few_requests_at_once(
    streaming: bool, habits: list[tuple[Input, Input]]
) -> None:
    state, requests = initial(streaming=streaming), 0
    for turn in range(50):
        to_list, to_watch = habits[turn % len(habits)]
        match state:
            case Waiting():
                seen, requests = Woke(), -1
            case Listing(token=token):
                # A list that never ends is no matter of retries.
                seen = Page(ListHead("9"), ()) if token and isinstance(to_list, Page) else to_list
            case _:
                seen = to_watch
        state, _ = step(state, seen)
        requests += 1
        assert requests <= 8
