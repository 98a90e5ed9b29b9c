"""What a container executes, where its files are, and what it finds in its environment."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from devobjects import pod

from kaito_ctrl.devcluster.environment import ConfigError, container_env, expand
from kaito_ctrl.devcluster.images import ImageError, ImageTable, LocalImage, repository
from kaito_ctrl.devcluster.kinds import Container
from kaito_ctrl.devcluster.volumes import mounts_of, prepare_volumes

TABLE = ImageTable(
    {
        "mcr.microsoft.com/aks/kaito/kaito-*": LocalImage(env={"KAITO_RANDOM_WEIGHTS": "tiny"}),
        "curlimages/curl": LocalImage(("curl",)),
    }
)
PATH = os.environ["PATH"]


class Objects:
    """ConfigMaps and Secrets of the pod's namespace."""

    async def config_map(self, name: str) -> Mapping[str, str] | None:
        return {"cfg": {"mode": "fast", "nested.yaml": "a: 1"}}.get(name)

    async def secret(self, name: str) -> Mapping[str, str] | None:
        return {"pw": {"token": base64.b64encode(b"s3cret").decode()}}.get(name)


def container(**fields: Any) -> Container:
    return Container.model_validate({"name": "main", **fields})


@pytest.mark.parametrize(
    ("image", "name"),
    [("a/b:1", "a/b"), ("reg:5000/a/b", "reg:5000/a/b"), ("reg:5000/a:2@sha256:00", "reg:5000/a"), ("x", "x")],
)
def test_an_image_is_known_by_its_name_without_tag_and_digest(image: str, name: str) -> None:
    assert repository(image) == name


def test_a_known_image_runs_its_entrypoint_or_the_containers_command() -> None:
    launch = TABLE.resolve(container(image="curlimages/curl:8", args=["-s", "x"]), PATH)
    assert launch.argv == ("curl", "-s", "x")
    kaito = container(image="mcr.microsoft.com/aks/kaito/kaito-falcon-7b:0.1", command=["/bin/sh", "-c", "true"])
    assert TABLE.resolve(kaito, PATH).env == {"KAITO_RANDOM_WEIGHTS": "tiny"}
    with pytest.raises(ImageError, match="no command specified"):
        TABLE.resolve(container(image="mcr.microsoft.com/aks/kaito/kaito-x"), PATH)


def test_an_unknown_image_runs_if_its_command_is_here_and_is_explained_otherwise() -> None:
    assert TABLE.resolve(container(image="busybox", command=["sh", "-c", "true"]), PATH).argv[0] == "sh"
    with pytest.raises(ImageError, match="register the image in the cluster's image table") as caught:
        TABLE.resolve(container(image="nginx:1.27"), PATH)
    assert caught.value.reason == "ErrImagePull"
    with pytest.raises(ImageError, match='its command "no-such-thing" is not on the PATH'):
        TABLE.resolve(container(image="nginx", command=["no-such-thing"]), PATH)


def test_an_unknown_images_own_folder_is_not_looked_for_on_this_machine() -> None:
    table = ImageTable({"registry.example/known": LocalImage(paths={"/data": Path("/x")})}, inside=("/data",))
    copy = {"command": ["sh", "-c", "cp -R /data/. out"]}
    with pytest.raises(ImageError, match="its command reads /data, which only the image has") as caught:
        table.resolve(container(image="registry.example/unknown:1", **copy), PATH)
    assert caught.value.reason == "ErrImagePull"
    assert 'failed to pull image "registry.example/unknown:1"' in str(caught.value)
    assert table.resolve(container(image="registry.example/known:1", **copy), PATH).paths == {"/data": Path("/x")}
    mounted = container(image="busybox", **copy, volumeMounts=[{"name": "v", "mountPath": "/data/"}])
    assert table.resolve(mounted, PATH).argv[0] == "sh"
    assert table.resolve(container(image="busybox", command=["ls", "/database", "x/data"]), PATH).argv[0] == "ls"


def test_variables_expand_as_kubernetes_expands_them() -> None:
    assert expand("$(A)-$(B)-$$(A)-$A", {"A": "1"}) == "1-$(B)-$(A)-$A"


async def test_variables_come_from_values_fields_config_maps_and_secrets() -> None:
    subject = pod("p", labels={"app": "web"})
    variables = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)2"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "mode"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "pw", "key": "token"}}},
        {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "x", "optional": True}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ]
    given = container(env=variables, envFrom=[{"prefix": "CFG_", "configMapRef": {"name": "cfg"}}])
    env = await container_env(subject, given, Objects(), pod_ip="127.97.0.1", host_ip="127.0.0.1")
    assert env == {
        "CFG_mode": "fast",
        "CFG_nested.yaml": "a: 1",
        "A": "1",
        "B": "12",
        "POD": "p",
        "LABEL": "web",
        "IP": "127.97.0.1",
        "MODE": "fast",
        "TOKEN": "s3cret",
    }


async def test_a_missing_reference_is_named() -> None:
    async def env(reference: dict[str, Any]) -> None:
        variables = [{"name": "X", "valueFrom": {"configMapKeyRef": reference}}]
        await container_env(pod("p"), container(env=variables), Objects(), pod_ip="", host_ip="")

    with pytest.raises(ConfigError, match='configmap "gone" not found'):
        await env({"name": "gone", "key": "x"})
    with pytest.raises(ConfigError, match="couldn't find key x in ConfigMap default/cfg"):
        await env({"name": "cfg", "key": "x"})


async def test_volumes_are_folders_and_mount_paths_lead_there(tmp_path: Path) -> None:
    subject = pod(
        "p",
        volumes=[
            {"name": "scratch", "emptyDir": {}},
            {"name": "config", "configMap": {"name": "cfg", "items": [{"key": "nested.yaml", "path": "d/n.yaml"}]}},
            {"name": "pw", "secret": {"secretName": "pw"}},
            {"name": "info", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"name": "host", "hostPath": {"path": "/etc"}},
        ],
    )
    folders = await prepare_volumes(subject, tmp_path, Objects(), pod_ip="", host_ip="")
    assert (folders["config"] / "d/n.yaml").read_text() == "a: 1"
    assert (folders["pw"] / "token").read_text() == "s3cret"
    assert (folders["pw"] / "token").stat().st_mode & 0o077 == 0
    assert (folders["info"] / "name").read_text() == "p"
    assert folders["host"] == Path("/etc")
    mounts = mounts_of(
        container(
            volumeMounts=[
                {"name": "scratch", "mountPath": "/mnt"},
                {"name": "config", "mountPath": "/mnt/config/"},
            ]
        ),
        folders,
    )
    assert mounts.rewrite("cat /mnt/config/d/n.yaml") == f"cat {folders['config']}/d/n.yaml"
    assert mounts.rewrite("--out=/mnt,/mnt/x") == f"--out={folders['scratch']},{folders['scratch']}/x"
    for untouched in ("/mntx", "/data/mnt", "./mnt", "x/mnt"):
        assert mounts.rewrite(untouched) == untouched


async def test_a_volume_cannot_write_outside_itself_and_misses_nothing_silently(tmp_path: Path) -> None:
    async def prepare(volume: dict[str, Any]) -> None:
        await prepare_volumes(pod("p", volumes=[{"name": "v", **volume}]), tmp_path, Objects(), pod_ip="", host_ip="")

    with pytest.raises(ConfigError, match="must stay inside"):
        await prepare({"configMap": {"name": "cfg", "items": [{"key": "mode", "path": "../x"}]}})
    with pytest.raises(ConfigError, match='configmap "gone" not found'):
        await prepare({"configMap": {"name": "gone"}})
    with pytest.raises(ConfigError, match="has no storage"):
        await prepare({"persistentVolumeClaim": {"claimName": "c"}})
    await prepare({"configMap": {"name": "gone", "optional": True}})
