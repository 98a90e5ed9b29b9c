"""Deployments and jobs: defaults, and what is refused."""

from __future__ import annotations

from tests.conformance.objects import deployment
from tests.conformance.wire import Api, fails


async def test_a_deployment_gets_its_defaults(api: Api) -> None:
    made = await api.post(api.at("apps/v1/deployments"), deployment())
    spec = made["spec"]
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }


async def test_the_selector_of_a_workload_must_match_its_template(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("apps/v1/deployments"), deployment(selector={"matchLabels": {"other": "x"}}))
    assert "`selector` does not match template `labels`" in caught.value.message
    assert caught.value.fields == ["spec.template.metadata.labels"]


async def test_the_selector_of_a_workload_never_changes(api: Api) -> None:
    made = await api.post(api.at("apps/v1/deployments"), deployment())
    made["spec"]["selector"]["matchLabels"]["x"] = "y"
    made["spec"]["template"]["metadata"]["labels"]["x"] = "y"
    with fails(422, "Invalid") as caught:
        await api.put(api.at("apps/v1/deployments", "d"), made)
    assert caught.value.fields == ["spec.selector"]
    assert "field is immutable" in caught.value.message


async def test_replicas_are_never_negative(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("apps/v1/deployments"), deployment(replicas=-1))
    assert caught.value.fields == ["spec.replicas"]


async def test_a_job_selects_its_own_pods(api: Api) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    made = await api.post(api.at("batch/v1/jobs"), {"metadata": {"name": "j"}, "spec": {"template": template}})
    labels = made["spec"]["template"]["metadata"]["labels"]
    uid = made["metadata"]["uid"]
    assert labels["job-name"] == "j"
    assert made["metadata"]["labels"] == labels
    assert uid in made["spec"]["selector"]["matchLabels"].values()
    assert (made["spec"]["backoffLimit"], made["spec"]["completions"], made["spec"]["parallelism"]) == (6, 1, 1)
    template["spec"]["restartPolicy"] = "Always"
    with fails(422, "Invalid") as caught:
        await api.post(api.at("batch/v1/jobs"), {"metadata": {"name": "k"}, "spec": {"template": template}})
    assert "spec.template.spec.restartPolicy" in caught.value.fields
