from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from kaito_presets import Catalogue, DataFileError, Preset

MACHINE_ERA = {
    # name: access, tag, disk, GPUs, total, per GPU, minutes, world size, distributed
    "falcon-7b": ("public", "0.0.5", "50Gi", 1, "14Gi", "0Gi", 30, None, False),
    "falcon-7b-instruct": ("public", "0.0.5", "50Gi", 1, "14Gi", "0Gi", 30, None, False),
    "falcon-40b": ("public", "0.0.6", "400Gi", 2, "90Gi", "0Gi", 30, None, False),
    "falcon-40b-instruct": ("public", "0.0.6", "400Gi", 2, "90Gi", "0Gi", 30, None, False),
    "llama-2-7b": ("private", None, "34Gi", 1, "14Gi", "14Gi", 10, 1, False),
    "llama-2-7b-chat": ("private", None, "34Gi", 1, "16Gi", "14Gi", 10, 1, False),
    "llama-2-13b": ("private", None, "46Gi", 2, "30Gi", "15Gi", 20, 2, True),
    "llama-2-13b-chat": ("private", None, "46Gi", 2, "30Gi", "15Gi", 20, 2, True),
    "llama-2-70b": ("private", None, "158Gi", 8, "152Gi", "19Gi", 30, 8, True),
    "llama-2-70b-chat": ("private", None, "158Gi", 8, "192Gi", "19Gi", 30, 8, True),
    "mistral-7b": ("public", "0.0.6", "100Gi", 1, "14Gi", "0Gi", 30, None, False),
    "mistral-7b-instruct": ("public", "0.0.6", "100Gi", 1, "16Gi", "0Gi", 30, None, False),
    "phi-2": ("public", "0.0.4", "50Gi", 1, "12Gi", "0Gi", 30, None, False),
    "phi-3-mini-4k-instruct": ("public", "0.0.1", "50Gi", 1, "9Gi", "0Gi", 30, None, False),
    "phi-3-mini-128k-instruct": ("public", "0.0.1", "50Gi", 1, "9Gi", "0Gi", 30, None, False),
    "phi-3-medium-4k-instruct": ("public", "0.0.1", "50Gi", 1, "28Gi", "0Gi", 30, None, False),
    "phi-3-medium-128k-instruct": ("public", "0.0.1", "50Gi", 1, "28Gi", "0Gi", 30, None, False),
    "phi-3.5-mini-instruct": ("public", "0.0.2", "50Gi", 1, "8Gi", "0Gi", 30, None, False),
    "qwen2.5-coder-7b-instruct": ("public", "0.0.1", "100Gi", 1, "24Gi", "0Gi", 30, None, False),
}

TUNABLE = {
    "falcon-7b": (1, "16Gi", "16Gi"),
    "falcon-40b": (2, "90Gi", "16Gi"),
    "mistral-7b": (1, "16Gi", "16Gi"),
    "phi-2": (1, "16Gi", "16Gi"),
    "phi-3-mini-4k-instruct": (1, "16Gi", "16Gi"),
    "phi-3-mini-128k-instruct": (1, "16Gi", "16Gi"),
    "phi-3-medium-4k-instruct": (1, "13Gi", "13Gi"),
    "phi-3-medium-128k-instruct": (1, "13Gi", "13Gi"),
    "phi-3.5-mini-instruct": (1, "72Gi", "72Gi"),
    "qwen2.5-coder-7b-instruct": (1, "24Gi", "24Gi"),
}


def preset(name: str) -> Preset:
    found = Catalogue.builtin().get(name)
    assert found is not None
    return found


def test_the_catalogue_holds_exactly_the_known_presets() -> None:
    assert set(Catalogue.builtin().names()) == set(MACHINE_ERA)
    assert list(Catalogue.builtin().names()) == sorted(MACHINE_ERA)


@pytest.mark.parametrize("name", MACHINE_ERA)
def test_a_preset_has_its_published_figures(name: str) -> None:
    p = preset(name)
    tag = p.image.tag if p.image else None
    got = (p.access_mode, tag, p.disk, p.gpu_count, p.total_gpu_memory, p.per_gpu_memory)
    assert (*got, p.readiness_timeout_seconds // 60, p.world_size, p.distributed) == MACHINE_ERA[name]


@pytest.mark.parametrize("name", MACHINE_ERA)
def test_only_tunable_presets_have_tuning_figures(name: str) -> None:
    tuning = preset(name).tuning
    got = (tuning.gpu_count, tuning.total_gpu_memory, tuning.per_gpu_memory) if tuning else None
    assert got == TUNABLE.get(name)


@pytest.mark.parametrize("name", MACHINE_ERA)
def test_public_weights_are_pinned_to_a_commit_and_no_preset_runs_remote_code(name: str) -> None:
    p = preset(name)
    assert p.source is not None
    assert (p.source.revision is not None) == (p.access_mode == "public")
    assert not p.trust_remote_code
    assert "trust_remote_code" not in p.run_parameters


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phi-3-mini-4k-instruct", 393216),
        ("phi-3-medium-128k-instruct", 204800),
        ("mistral-7b", 131072),
        ("qwen2.5-coder-7b-instruct", 57344),
    ],
)
def test_the_key_value_cache_follows_from_the_architecture(name: str, expected: int) -> None:
    architecture = preset(name).architecture
    assert architecture is not None
    assert architecture.kv_bytes_per_token() == expected


def test_a_preset_cannot_be_changed() -> None:
    p = preset("phi-2")
    with pytest.raises(ValidationError, match="frozen"):
        p.disk = "1Gi"  # type: ignore[misc]
    with pytest.raises(TypeError):
        p.run_parameters["torch_dtype"] = "float32"  # type: ignore[index]


def test_a_preset_survives_the_trip_through_its_file_format() -> None:
    for p in Catalogue.builtin():
        assert Preset.model_validate(p.to_wire()) == p


def test_unknown_names_are_answered_with_near_ones() -> None:
    catalogue = Catalogue.builtin()
    assert catalogue.get("phi3-mini") is None
    assert catalogue.suggest("phi3-mini")[0] == "phi-3-mini-4k-instruct"
    assert catalogue.suggest("Falcon-7B-instrukt")[0] == "falcon-7b-instruct"
    assert catalogue.suggest("zzzzzz") == ()
    assert catalogue.suggest("") == ()


GOOD = """
family: Mine
presets:
  mine:
    accessMode: public
    image: {repository: mine, tag: "1"}
    disk: 10Gi
    gpuCount: 1
    totalGPUMemory: 8Gi
    readinessTimeoutSeconds: 600
"""


def test_adding_a_model_is_adding_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    mine = Catalogue.load(tmp_path).get("mine")
    assert mine is not None
    assert (mine.family, mine.total_gpu_memory_bytes, mine.per_gpu_memory_bytes) == ("Mine", 8 * 2**30, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("disk: 10Gi", "disk: '400'"), "is the suffix missing"),
        (("gpuCount: 1", "gpuCount: 0"), "mine.yaml: mine: gpuCount: Input should be greater than or equal to 1"),
        (("disk: 10Gi", "disk: 10Gi\n    disk: 20Gi"), "'disk' is given twice"),
        (("disk: 10Gi", "disk: 10Gi\n    dsik: 20Gi"), "dsik: Extra inputs are not permitted"),
        (("totalGPUMemory: 8Gi", "totalGPUMemory: 8GiB"), "is not a quantity"),
        (("    image: {repository: mine, tag: '1'}\n", ""), ""),
        (('    image: {repository: mine, tag: "1"}\n', ""), "a public preset needs an image"),
        (("family: Mine", "famly: Mine"), "expected exactly the keys family and presets"),
        (("disk: 10Gi", "disk: 10Gi\n    trustRemoteCode: true"), "needs a pinned source.revision"),
        (("disk: 10Gi", "disk: 10Gi\n    distributed: true"), "needs a worldSize"),
        (("presets:", "presets: ["), "mine.yaml"),
    ],
)
def test_a_mistake_in_a_file_is_reported_with_file_and_field(
    tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD.replace(*change))
    if not says:
        assert len(Catalogue.load(tmp_path)) == 1
        return
    with pytest.raises(DataFileError) as caught:
        Catalogue.load(tmp_path)
    assert says in str(caught.value)


def test_two_presets_may_not_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD)
    with pytest.raises(DataFileError, match="preset mine is defined twice"):
        Catalogue.load(tmp_path)


def test_importing_the_package_and_sizing_loads_nothing_heavy() -> None:
    script = (
        "import sys, kaito_presets as k\n"
        "assert 'pydantic' not in sys.modules\n"
        "p = k.Catalogue.builtin().get('phi-2'); t = k.SkuTable.builtin()\n"
        "k.size(p, t.get('Standard_NC6'), 1); k.image_for(p); k.serving_command(p)\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'uvicorn', 'tokenizers', 'aiohttp', 'kubernetes_asyncio'}\n"
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_exported_name_resolves() -> None:
    import kaito_presets

    for name in kaito_presets.__all__:
        assert getattr(kaito_presets, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kaito_presets.nothing  # noqa: B018
