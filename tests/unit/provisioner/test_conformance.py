"""The kit passes what keeps the protocol, and each of its cases fails somebody who breaks it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import brokenclouds as broken
import pytest
from prometheus_client import CollectorRegistry

from kaito_ctrl.testing import run_virtual
from kaito_provisioner.cloud import Offering
from kaito_provisioner.conformance import CASES, Bench, Case, Fault, NotApplicable, Shortage, Violation, check
from kaito_provisioner.conformance.__main__ import main
from kaito_provisioner.conformance.sim import SimBench, make_bench
from kaito_provisioner.metered import CloudMetrics, MeteredCloud

BREAKS: list[tuple[str, type[broken.Through], str]] = [
    ("create answers at once", broken.WaitsForTheBoot, "had not answered after 45 s"),
    ("says what it was made for", broken.ForgetsTheKind, "'Machine', 'sim-small'\\) for .*'NodeClaim'"),
    ("says what it was made for", broken.TellsNoAge, "how old it is"),
    ("asked again, create answers", broken.MakesOneEachTime, "2 instances exist"),
    ("a process that has just started is answered", broken.RemembersInMemory, "2 instances exist"),
    ("ask for one claim ten times", broken.LooksBeforeItLeaps, "20 instances exist"),
    ("twenty claims that are asked for at once", broken.KeepsTheRequestInItself, "answered with the instance of claim"),
    ("a name that is taken", broken.AdoptsWhateverHasTheName, "should have refused"),
    ("earlier claim of the same name", broken.DeletesByName, "deleted once more, 0 instances exist"),
    ("the cloud has none of is refused", broken.FailsWithoutSayingWhy, "not InsufficientCapacity"),
    ("the cloud has none of is refused", broken.ForgetsWhichOffering, "without the offering"),
    ("the quota is used up is refused", broken.TakesQuotaForCapacity, "not QuotaExceeded"),
    ("a shortage that comes out late", broken.HidesWhatFailed, "it has no node"),
    ("ends up with the next one", broken.SticksToTheFirstOffering, "still waits after 12 h"),
    ("an instance type that there is not", broken.HopesForUnknownTypes, "raised InsufficientCapacity"),
    ("finds the instance by its claim alone", broken.FindsOnlyItsOwn, "never heard of it"),
    ("resumes the operation", broken.BelievesTheOperation, "which is over, find says Creating"),
    ("an operation that makes no sense", broken.InsistsOnItsOperations, "not one of ours"),
    ("what was never made is not found", broken.CallsAbsenceAnOutage, "raised Unavailable, not NotFound"),
    ("found by the provider id", broken.RemembersWhatIsGone, "get of an instance that is gone answered"),
    ("nodes of different instances", broken.LabelsNodesAlike, "fit the other's node"),
    ("list shows every instance", broken.ListsEverythingAsMachines, "list shows .*and there are"),
    ("list shows every instance", broken.HidesWhatFailed, "it has no node"),
    ("a cloud that shows late what it did neither", broken.LooksBeforeItLeaps, "2 instances exist"),
    ("the catalogue makes sense", broken.ListsOnlyWhatIsToBeHad, "not listed at all"),
    ("nodes are repaired", broken.RepairsAtOnce, "borne for 5 s"),
    ("nodes are repaired", broken.RepairsNothing, "never replaced"),
    ("the backend has a name", broken.HasNoName, "no name for metrics"),
    ("the backend has a name", broken.ServesNonsense, "is no API group"),
    ("delete of what was never made", broken.DeletesWhatIsNot, "answered with"),
    ("NotFound only when nothing is left", broken.TakesAcceptedForGone, "after NotFound, 1 instances exist"),
    ("NotFound only when nothing is left", broken.LooksBeforeItDeletes, "after NotFound, 1 instances exist"),
    ("deleted while it is being made", broken.WaitsForTheCreation, "still there"),
    ("two processes delete ten times", broken.AllowsOneDeletion, "raised InvalidRequest"),
    ("can be given another one", broken.ServesAClaimOnce, "still waits after 12 h"),
    ("not given to its claim as a new one", broken.RevivesWhatGoes, "says Running of an instance that goes"),
    ("a throttled call says when", broken.SleepsWhenThrottled, "had not answered"),
    ("a throttled call says when", broken.AsksAgainWhenThrottled, "1 more requests"),
    ("a throttled call says when", broken.ForgetsWhenToComeBack, "come back after None s"),
    ("whatever goes wrong is a CloudError", broken.RaisesWhatItGets, "ConnectionResetError, which is no CloudError"),
    (
        "whatever goes wrong is a CloudError",
        broken.TakesSilenceForAbsence,
        "it raised NotFound, and",
    ),
    ("whatever goes wrong is a CloudError", broken.TakesSilenceForAnEmptyList, "it answered \\[\\]"),
    ("whatever goes wrong is a CloudError", broken.SaysNothingToDo, "without saying what to do next"),
    ("a creation whose answer was lost", broken.TakesSilenceForRefusal, "as if it had not"),
    ("a call that is cancelled", broken.SharesItsWork, "was cancelled, and nobody cancelled it"),
    ("a call that is cancelled", broken.StaysBusy, "still waits after 12 h"),
    ("any one request of its creation", broken.RemembersWhatItWasAnswered, "2 instances exist"),
    ("any one request of its deletion", broken.GivesUpDeletions, "said that there is no instance, 1 instances exist"),
    ("any two requests of its creation", broken.TakesErrorsForAbsence, "2 instances exist"),
    ("any two requests of its deletion", broken.GivesUpDeletionsSlowly, "said that there is no instance"),
    ("a crash after any one or two steps", broken.RemembersInMemory, "2 instances exist"),
    ("through long outages", broken.LosesPatience, "said that there is no instance"),
    ("gets its next offering", broken.SticksToTheFirstOffering, "still waits after 12 h"),
    ("gets its next offering", broken.KeepsTheVerdict, "still waits after 12 h"),
    ("shows late what it did, whatever", broken.LooksBeforeItLeaps, "2 instances exist"),
    ("at any moment of its creation", broken.FindsOnlyWhatRuns, "said that there is no instance"),
]


def the(fragment: str) -> Case:
    [found] = [each for each in CASES if fragment in str(each)]
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_simulated_cloud_keeps_the_protocol(case: Case) -> None:
    run_virtual(case.run(make_bench))


async def test_the_kit_needs_no_loop_of_its_own() -> None:
    report = await check(make_bench)
    assert report.passed, str(report)
    assert [each for each in report.results if each.outcome == "not tried"] == []


@pytest.mark.parametrize(("fragment", "provider", "said"), BREAKS, ids=lambda each: getattr(each, "__name__", None))
def test_who_breaks_a_promise_is_told_so(fragment: str, provider: type[broken.Through], said: str) -> None:
    with pytest.raises(Exception, match=said) as found:
        run_virtual(the(fragment).run(broken.bench_of(provider)))
    assert not isinstance(found.value, NotApplicable)


def test_there_is_somebody_who_breaks_each_promise() -> None:
    assert {str(the(fragment)) for fragment, _, _ in BREAKS} == {str(case) for case in CASES}


@pytest.mark.parametrize(
    ("fragment", "provider"),
    [
        ("any one request of its creation", broken.TakesErrorsForAbsence),
        ("any one request of its deletion", broken.GivesUpDeletionsSlowly),
    ],
)
def test_pairs_find_what_single_faults_do_not(fragment: str, provider: type[broken.Through]) -> None:
    run_virtual(the(fragment).run(broken.bench_of(provider)))


async def test_a_backend_that_is_measured_is_no_other() -> None:
    metrics = CloudMetrics(CollectorRegistry())

    @asynccontextmanager
    async def measured() -> AsyncIterator[Bench]:
        yield SimBench(lambda cloud: MeteredCloud(cloud, metrics, "lifecycle"))

    report = await check(measured)
    assert report.passed, str(report)


class _Poor(SimBench):
    """A bench that can do little."""

    name = "poor"
    unavailable: Offering | None = None
    faults: Collection[Fault] = ()

    def shortage(self, offering: Offering, what: Shortage | None, *, late: bool = False) -> None:
        raise NotApplicable("this cloud never runs out")

    def lag(self, seconds: float) -> None:
        raise NotApplicable("this cloud shows at once what it does")


@asynccontextmanager
async def poor() -> AsyncIterator[Bench]:
    yield _Poor()


async def test_what_a_bench_cannot_try_is_reported_and_is_no_failure() -> None:
    report = await check(poor)
    assert report.passed, str(report)
    untried = {str(each.case): each.detail for each in report.results if each.outcome == "not tried"}
    assert untried[str(the("the cloud has none of is refused"))] == "this cloud never runs out"
    assert untried[str(the("any two requests of its creation"))] == "the bench knows none of these faults"
    assert str(the("list shows every instance")) not in untried
    assert f"{len(untried)} not tried" in report.verdict


async def test_the_report_says_what_was_broken_and_how() -> None:
    report = await check(broken.bench_of(broken.RepairsNothing))
    assert not report.passed
    [broke] = report.broken
    assert broke.case is the("nodes are repaired")
    text = str(report)
    assert re.search(r"BROKEN  nodes are repaired.*\n +a node that is Ready False is never replaced", text)
    assert text.endswith(f"sim breaks the protocol: {len(CASES) - 1} kept, 1 broken")


async def test_a_life_that_fails_says_where_it_was_struck() -> None:
    with pytest.raises(Violation) as found:
        await the("any one request of its creation").run(broken.bench_of(broken.RemembersWhatItWasAnswered))
    assert f"{Fault.LOST} at request 1 of the creation: 2 instances exist" in str(found.value)


def test_the_command_says_what_it_tries_and_exits_with_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "-k", "repaired"]) == 0
    assert "sim keeps the protocol: 1 kept" in capsys.readouterr().out
    where = f"{__name__}:careless"
    assert main([where, "-k", "repaired", "--run", "kaito_ctrl.testing:run_virtual"]) == 1
    assert "sim breaks the protocol: 1 broken" in capsys.readouterr().out


careless = broken.bench_of(broken.RepairsNothing)


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["no.such:module"], ["sim", "-k", "no such case"], ["asyncio:none"]]
)
def test_the_command_refuses_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
