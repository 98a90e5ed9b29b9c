"""What a Job does next."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from devobjects import NOW, pod, template

from kaito_api.meta import is_true
from kaito_ctrl.devcluster.job import plan_job
from kaito_ctrl.devcluster.kinds import Job


def job(**spec: Any) -> Job:
    return Job.model_validate(
        {"metadata": {"name": "tune", "namespace": "default", "uid": "j-1"}, "spec": {"template": template(), **spec}}
    )


def test_pods_are_made_up_to_parallelism_and_never_beyond_completions() -> None:
    assert len(plan_job(job(), [], NOW).create) == 1
    assert len(plan_job(job(completions=5, parallelism=3), [], NOW).create) == 3
    subject = job(completions=3, parallelism=3)
    done = [pod("a", subject, phase="Succeeded"), pod("b", subject, phase="Succeeded")]
    plan = plan_job(subject, done, NOW)
    assert len(plan.create) == 1
    assert plan.create[0].metadata.labels["job-name"] == "tune"


def test_enough_successes_complete_it() -> None:
    subject = job()
    plan = plan_job(subject, [pod("a", subject, phase="Succeeded")], NOW)
    assert is_true(plan.status.conditions, "Complete")
    assert (plan.status.succeeded, plan.status.active) == (1, 0)
    assert plan.status.completion_time == NOW
    again = plan_job(subject.evolve(status=plan.status), [pod("a", subject, phase="Succeeded")], NOW)
    assert again.status == plan.status
    assert not again.create


def test_a_failure_is_followed_by_a_growing_wait() -> None:
    subject = job()
    one = [pod("a", subject, phase="Failed", age=4)]
    waiting = plan_job(subject, one, NOW, backoff=10)
    assert not waiting.create
    assert waiting.after == 6
    assert len(plan_job(subject, one, NOW + timedelta(seconds=6), backoff=10).create) == 1
    two = [*one, pod("b", subject, phase="Failed", age=4)]
    assert plan_job(subject, two, NOW, backoff=10).after == 16


def test_too_many_failures_fail_it() -> None:
    subject = job(backoffLimit=1)
    failed = [pod("a", subject, phase="Failed"), pod("b", subject, phase="Failed")]
    plan = plan_job(subject, failed, NOW)
    assert is_true(plan.status.conditions, "Failed")
    assert plan.status.conditions[-1].reason == "BackoffLimitExceeded"
    assert not plan.create


def test_the_deadline_ends_it_and_its_pods() -> None:
    subject = job(activeDeadlineSeconds=30)
    subject = subject.evolve(status=subject.status.evolve(start_time=NOW - timedelta(seconds=31)))
    plan = plan_job(subject, [pod("a", subject)], NOW)
    assert plan.status.conditions[-1].reason == "DeadlineExceeded"
    assert [each.name for each in plan.delete] == ["a"]


def test_a_suspended_job_has_no_pods() -> None:
    subject = job(suspend=True)
    plan = plan_job(subject, [pod("a", subject)], NOW)
    assert [each.name for each in plan.delete] == ["a"]
    assert is_true(plan.status.conditions, "Suspended")
    assert plan.status.start_time is None
