from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_presets import Catalogue, Preset, Sku, SkuTable, fitting_skus, size

GIB = 2**30
AZURE = SkuTable.builtin()


def a_preset(gpus: int, per_gpu: str, total: str, *, distributed: bool = False) -> Preset:
    return Preset(
        name="test",
        family="Test",
        access_mode="private",
        disk="10Gi",
        gpu_count=gpus,
        per_gpu_memory=per_gpu,
        total_gpu_memory=total,
        readiness_timeout_seconds=600,
        distributed=distributed,
        world_size=1 if distributed else None,
    )


def sku(name: str) -> Sku:
    found = AZURE.get(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("instance_type", "count", "needs", "problem"),
    [
        ("Standard_ND96asr_v4", 1, (8, "19Gi", "152Gi"), ""),
        ("Standard_NC12s_v3", 1, (1, "16Gi", "16Gi"), ""),
        (
            "Standard_NC6",
            1,
            (1, "0", "14Gi"),
            (
                "Insufficient total GPU memory: Instance type Standard_NC6 has a total of 12Gi (1 x Standard_NC6), "
                "but preset test requires at least 14Gi"
            ),
        ),
        (
            "Standard_NC24ads_A100_v4",
            1,
            (2, "15Gi", "30Gi"),
            (
                "Insufficient number of GPUs: Instance type Standard_NC24ads_A100_v4 provides 1 "
                "(1 x Standard_NC24ads_A100_v4), but preset test requires at least 2"
            ),
        ),
        (
            "Standard_NC6",
            2,
            (1, "15Gi", "15Gi"),
            (
                "Insufficient per GPU memory: Instance type Standard_NC6 provides 12Gi per GPU, "
                "but each replica of preset test requires at least 15Gi per GPU"
            ),
        ),
    ],
)
def test_golden_cases(instance_type: str, count: int, needs: tuple[int, str, str], problem: str) -> None:
    sizing = size(a_preset(*needs), sku(instance_type), count)
    assert sizing.problems[:1] == ((problem,) if problem else ())
    assert sizing.ok == (not problem)


def test_a_replica_holds_the_whole_model_however_many_there_are() -> None:
    # Two replicas of a model of 15 GiB on machines of 12 GiB: neither would ever be ready.
    sizing = size(a_preset(1, "0", "15Gi"), sku("Standard_NC6"), 2)
    assert [c.rule for c in sizing.checks if not c.ok] == ["totalGPUMemory"]
    assert "each replica of preset test requires at least 15Gi" in sizing.problems[0]


@pytest.mark.parametrize(("count", "ok"), [(1, False), (2, True), (3, False), (4, True), (8, True), (16, False)])
def test_a_distributed_model_is_spread_evenly(count: int, ok: bool) -> None:
    preset = Catalogue.builtin().get("llama-2-70b-chat")
    assert preset is not None
    sizing = size(preset, sku("Standard_NC96ads_A100_v4"), count)
    assert sizing.ok == ok
    if count in (3, 16):
        assert [c.rule for c in sizing.checks if not c.ok] == ["processes"]
        assert f"cannot be spread evenly over {count} nodes" in sizing.problems[0]


def test_total_memory_is_not_multiplied_by_the_number_of_gpus() -> None:
    # 2 GPUs with 32 GiB together: counting 32 GiB twice would let 60 GiB pass.
    sizing = size(a_preset(1, "0", "60Gi"), sku("Standard_NC12s_v3"), 1)
    assert [c.rule for c in sizing.checks if not c.ok] == ["totalGPUMemory"]


def test_units_are_not_mixed() -> None:
    # 15.9 GiB is more than 16 decimal gigabytes, and still fits in 16 GiB.
    assert size(a_preset(1, "15.9Gi", "15.9Gi"), sku("Standard_NC6s_v3"), 1).ok
    assert not size(a_preset(1, "16.1Gi", "16.1Gi"), sku("Standard_NC6s_v3"), 1).ok


def test_the_working_is_shown() -> None:
    preset = Catalogue.builtin().get("falcon-40b")
    assert preset is not None
    assert size(preset, sku("Standard_NC48ads_A100_v4"), 1).lines() == (
        "gpuCount: needs 2, has 1 x 2 = 2: ok",
        "perGPUMemory: needs 0Gi, has 160Gi / 2 = 80Gi: ok",
        "totalGPUMemory: needs 90Gi, has 1 x 160Gi = 160Gi: ok",
        "KV cache (16-bit): 120Ki per token, 240Mi for one full context of 2048 tokens",
    )


def test_every_rule_that_fails_is_named_at_once() -> None:
    sizing = size(a_preset(4, "40Gi", "160Gi"), sku("Standard_NC6"), 1)
    assert [c.rule for c in sizing.checks if not c.ok] == ["gpuCount", "perGPUMemory", "totalGPUMemory"]
    assert len(sizing.problems) == 3


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        size(a_preset(1, "0", "1Gi"), sku("Standard_NC6"), count)


def test_tuning_is_sized_by_its_own_figures() -> None:
    catalogue = Catalogue.builtin()
    mini, chat = catalogue.get("phi-3-mini-128k-instruct"), catalogue.get("llama-2-7b-chat")
    assert mini is not None
    assert chat is not None
    assert size(mini, sku("Standard_NC6s_v3"), 1, workload="tuning").ok
    assert not size(mini, sku("Standard_NC6"), 1, workload="tuning").ok
    assert size(mini, sku("Standard_NC6"), 1).ok
    with pytest.raises(ValueError, match="llama-2-7b-chat does not support tuning"):
        size(chat, sku("Standard_NC6"), 1, workload="tuning")


def test_accelerators_that_the_pods_do_not_ask_for_are_pointed_out_and_never_proposed() -> None:
    radeon = sku("Standard_NG32ads_V620_v1")
    preset = a_preset(1, "0", "8Gi")
    assert "nvidia.com/gpu" in size(preset, radeon, 1).notes[-1]
    assert radeon not in fitting_skus(preset, AZURE, 1)


def test_the_quick_starts_instance_type_fits() -> None:
    for name in ("phi-3-mini-4k-instruct", "phi-3-mini-128k-instruct"):
        preset = Catalogue.builtin().get(name)
        assert preset is not None
        assert sku("Standard_NC6s_v3") in fitting_skus(preset, AZURE, 1)
        assert sku("Standard_NC6s_v3") in fitting_skus(preset, AZURE, 1, workload="tuning")


gib = st.integers(0, 1200).map(lambda n: f"{n}Gi")
presets = st.builds(a_preset, st.integers(1, 16), gib, gib)
spread = st.builds(a_preset, st.integers(1, 16), gib, gib, distributed=st.just(True))
skus = st.builds(
    lambda gpus, memory: Sku(name="x", cloud="azure", gpu_count=gpus, total_gpu_memory_gib=memory),
    st.integers(1, 16),
    st.integers(1, 1200),
)
counts = st.integers(1, 64)


@given(presets | spread, skus, counts)
def test_ok_exactly_when_every_inequality_holds(preset: Preset, machine: Sku, count: int) -> None:
    instances = count if preset.distributed else 1
    enough = (
        instances * machine.gpu_count >= preset.gpu_count
        and machine.total_gpu_memory_gib * GIB // machine.gpu_count >= preset.per_gpu_memory_bytes
        and instances * machine.total_gpu_memory_gib * GIB >= preset.total_gpu_memory_bytes
        and (count == 1 or not preset.distributed)
    )
    sizing = size(preset, machine, count)
    assert sizing.ok == enough == (not sizing.problems)


@given(presets, skus, counts)
def test_more_instances_never_hurt(preset: Preset, machine: Sku, count: int) -> None:
    if size(preset, machine, count).ok:
        assert size(preset, machine, count + 1).ok


@given(presets, skus, counts)
def test_sizing_is_deterministic_and_mentions_the_preset_in_every_problem(
    preset: Preset, machine: Sku, count: int
) -> None:
    sizing = size(preset, machine, count)
    assert sizing == size(preset, machine, count)
    assert all("preset test" in problem for problem in sizing.problems)


@given(presets, st.integers(1, 4))
def test_fitting_types_fit_are_complete_and_ordered(preset: Preset, count: int) -> None:
    fitting = fitting_skus(preset, AZURE, count)
    assert list(fitting) == sorted(fitting, key=lambda s: (s.total_gpu_memory_gib, s.name))
    assert set(fitting) == {s for s in AZURE if s.vendor == "nvidia" and size(preset, s, count).ok}
