from __future__ import annotations

import pytest

from kaito_presets import Catalogue, SkuTable, image_for, serving_command
from kaito_presets.preset import Preset


def preset(name: str) -> Preset:
    found = Catalogue.builtin().get(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("cloud", "name", "gpus", "total", "per_gpu", "model"),
    [
        ("azure", "Standard_NC6", 1, 12, 12, "NVIDIA K80"),
        ("azure", "Standard_NC6s_v3", 1, 16, 16, "NVIDIA V100"),
        ("azure", "Standard_NC64as_T4_v3", 4, 64, 16, "NVIDIA T4"),
        ("azure", "Standard_NV6ads_A10_v5", 1, 4, 4, "NVIDIA A10"),
        ("azure", "Standard_ND96asr_v4", 8, 320, 40, "NVIDIA A100"),
        ("azure", "Standard_ND96asr_A100_v4", 8, 320, 40, "NVIDIA A100"),
        ("azure", "Standard_ND96amsr_A100_v4", 8, 640, 80, "NVIDIA A100"),
        ("azure", "Standard_ND96isr_H200_v5", 8, 1128, 141, "NVIDIA H200"),
        ("aws", "p5.48xlarge", 8, 640, 80, "NVIDIA H100"),
        ("aws", "trn1.32xlarge", 16, 512, 32, "AWS Trainium"),
        ("arc", "Standard_NC32_A2", 2, 32, 16, "NVIDIA A2"),
    ],
)
def test_instance_types_have_their_gpus(cloud: str, name: str, gpus: int, total: int, per_gpu: int, model: str) -> None:
    found = SkuTable.builtin(cloud).get(name)
    assert found is not None
    assert (found.gpu_count, found.total_gpu_memory_gib, found.gpu_model) == (gpus, total, model)
    assert found.per_gpu_memory_bytes == per_gpu * 2**30
    assert found.cloud == cloud


def test_the_tables_are_complete() -> None:
    assert {cloud: len(SkuTable.builtin(cloud)) for cloud in SkuTable.clouds()} == {"azure": 46, "aws": 35, "arc": 8}
    assert all(s.vendor is not None for cloud in SkuTable.clouds() for s in SkuTable.builtin(cloud))


def test_a_cloud_without_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="unsupported cloud 'gcp': supported are arc, aws, azure"):
        SkuTable.builtin("gcp")


def test_mistyped_instance_types_are_answered_with_near_ones() -> None:
    table = SkuTable.builtin()
    assert table.suggest("standard_nc6s_V3")[0] == "Standard_NC6s_v3"
    assert table.suggest("Standard-NC24ads-A100-v4")[0] == "Standard_NC24ads_A100_v4"
    assert table.get("standard_nc6s_v3") is None


def test_public_images_come_from_the_registry() -> None:
    assert (
        image_for(preset("phi-3-mini-4k-instruct")) == "mcr.microsoft.com/aks/kaito/kaito-phi-3-mini-4k-instruct:0.0.1"
    )
    assert image_for(preset("phi-2"), "reg.example/x/") == "reg.example/x/kaito-phi-2:0.0.4"


def test_private_images_are_the_users() -> None:
    assert image_for(preset("llama-2-7b"), private_image="mine.example/llama:1") == "mine.example/llama:1"
    assert image_for(preset("phi-2"), private_image="mine.example/phi:1") == "mine.example/phi:1"
    with pytest.raises(ValueError, match="an image must be provided"):
        image_for(preset("llama-2-7b"))


def test_the_serving_command_is_an_argument_vector_in_a_fixed_order() -> None:
    assert serving_command(preset("phi-3-mini-4k-instruct")) == (
        "python3",
        "/workspace/tfs/inference_api.py",
        "--pipeline=text-generation",
        "--torch_dtype=auto",
    )
    assert serving_command(preset("phi-2"), extra={"torch_dtype": "float32", "allow_remote_files": ""})[2:] == (
        "--allow_remote_files",
        "--pipeline=text-generation",
        "--torch_dtype=float32",
    )
