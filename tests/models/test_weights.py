"""Loading: the right numbers in the right places, from every layout, and little memory."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import ProcessGroup

from glimt.experts.placement import Placement
from glimt.models import weights
from glimt.models.glm4v import Glm4v
from glimt.models.names import Share
from glimt.models.quantize import quantize_rows, row_scales
from glimt.models.split import Split
from glimt.models.weights import inspect, load
from glimt.parallel.mesh import Mesh
from glimt.tiny.checkpoint import make_tiny_checkpoint
from glimt.tiny.weights import tensor_shapes
from tests.support.checkpoints import (
    CPU,
    assert_same_parameters,
    config_of,
    loaded,
    one_file,
    store,
    stored_tensors,
)
from tests.support.oracle import our_weights

TEXT = "model.language_model.layers"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("moe"), shards=3)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("dense"), variant="dense", shards=1)


@pytest.fixture(scope="module")
def moe_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("moe-fp8"), fp8=True)


@pytest.fixture(scope="module")
def dense_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("dense-fp8"), variant="dense", fp8=True)


@pytest.fixture
def copy(moe: Path, tmp_path: Path) -> Path:
    return shutil.copytree(moe, tmp_path / "copy")


def parameters_of(model: Glm4v) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------- the right numbers


def test_fused_and_stacked_parameters_hold_the_stored_tensors_in_order(moe: Path) -> None:
    model, plan = loaded(moe)
    ours, stored = parameters_of(model), stored_tensors(moe)
    attention = f"{TEXT}.1.self_attn"
    for kind in ("weight", "bias"):
        qkv = torch.cat([stored[f"{attention}.{x}_proj.{kind}"] for x in "qkv"])
        assert torch.equal(ours[f"layers.1.attention.qkv.{kind}"], qkv.float())
    for expert in range(8):
        parts = [stored[f"{TEXT}.2.mlp.experts.{expert}.{x}_proj.weight"] for x in ("gate", "up")]
        assert torch.equal(ours["layers.2.moe.experts.gate_up"][expert], torch.cat(parts).float())
        down = stored[f"{TEXT}.2.mlp.experts.{expert}.down_proj.weight"]
        assert torch.equal(ours["layers.2.moe.experts.down"][expert], down.float())
    assert plan.format == "bfloat16"
    assert plan.fp8 == plan.quantized_here == frozenset()


def test_convolutions_become_matrices_over_patches(moe: Path) -> None:
    """The same product as the convolution, on the row order of the image processor."""
    ours, stored = parameters_of(loaded(moe)[0]), stored_tensors(moe)
    conv3d = stored["model.visual.patch_embed.proj.weight"].float()
    patch = torch.randn(1, 3, 2, 14, 14)
    product = ours["vision.patch_embed.weight"] @ patch.flatten()
    torch.testing.assert_close(
        product, torch.nn.functional.conv3d(patch, conv3d).flatten(), rtol=1e-4, atol=1e-4
    )
    conv2d = stored["model.visual.downsample.weight"].float()
    block = torch.randn(4, 256)  # (0,0), (0,1), (1,0), (1,1)
    image = block.view(2, 2, 256).permute(2, 0, 1)[None]
    product = ours["vision.downsample.weight"] @ block.flatten()
    torch.testing.assert_close(
        product, torch.nn.functional.conv2d(image, conv2d).flatten(), rtol=1e-4, atol=1e-4
    )


def test_the_type_asked_for_is_the_type_of_all_but_scales_and_router_biases(moe: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for name, tensor in parameters_of(loaded(moe, dtype)[0]).items():
            assert tensor.dtype == (torch.float32 if name.endswith("router.bias") else dtype)


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_what_transformers_saves_is_read_alike(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    names = {"moe": "Glm4vMoeForConditionalGeneration", "dense": "Glm4vForConditionalGeneration"}
    cls = getattr(transformers, names[kind])
    saved = shutil.copytree(folder, tmp_path / "saved", ignore=shutil.ignore_patterns("*.safet*"))
    model, info = cls.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mine = parameters_of(loaded(folder)[0])
    for name, tensor in our_weights(model.state_dict()).items():
        assert torch.equal(mine.pop(name), tensor.float()), name
    assert not mine
    model.save_pretrained(saved, max_shard_size="2MB")
    assert_same_parameters(loaded(saved)[0], loaded(folder)[0])


# ---------------------------------------------------------------------------- every layout


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_the_layout_of_the_files_changes_nothing(
    moe_fp8: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Any tensor in any file, with each of the known prefixes; and each byte is read once."""
    folder = tmp_path / "other"
    if not folder.exists():
        shutil.copytree(moe_fp8, folder)
    tensors = stored_tensors(moe_fp8)
    text, visual = data.draw(
        st.sampled_from(
            [
                ("model.language_model.", "model.visual."),
                ("model.", "visual."),
                ("language_model.model.", "visual."),
            ]
        )
    )
    tensors = {
        name.replace("model.language_model.", text).replace("model.visual.", visual): tensor
        for name, tensor in tensors.items()
    }
    names = data.draw(st.permutations(sorted(tensors)))
    num_files = data.draw(st.integers(1, 4))
    random = data.draw(st.randoms(use_true_random=False))
    files = {name: f"part-{random.randrange(num_files)}.safetensors" for name in names}
    store(folder, {name: tensors[name] for name in names}, files)
    if data.draw(st.booleans()):
        (folder / "model.safetensors.index.json").unlink()
    model, plan = loaded(folder)
    assert_same_parameters(model, loaded(moe_fp8)[0])
    assert plan.num_bytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("fixture", ["moe", "dense", "moe_fp8", "dense_fp8"])
def test_two_ranks_hold_the_halves_of_what_one_holds(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    config = config_of(folder)
    whole = parameters_of(loaded(folder)[0])
    read = 0
    ranks = []
    for rank in range(2):
        mesh = Mesh(tp_size=2, tp_rank=rank, tp_group=cast(ProcessGroup, object()))
        plan = inspect(folder, config, share=Share.of(mesh))
        with torch.device("meta"):
            model = Glm4v(config, mesh, plan.fp8)
        load(model, plan, CPU, torch.float32, progress=False)
        ranks.append(parameters_of(model))
        read += plan.num_bytes
    text = config.text
    heads, kv_heads = text.num_heads, text.num_kv_heads
    for name, full in whole.items():
        for rank in range(2):
            expected = expected_half(name, full.float(), rank, heads, kv_heads, text.head_dim)
            assert torch.equal(ranks[rank][name].float(), expected), name
    assert read < 2 * inspect(folder, config).num_bytes


def expected_half(
    name: str, full: Tensor, rank: int, heads: int, kv_heads: int, head_dim: int
) -> Tensor:
    """Rank `rank`'s half of a parameter of the whole model, said in another way."""

    def half(tensor: Tensor, dim: int = 0) -> Tensor:
        return tensor.chunk(2, dim)[rank]

    kind = name.split(".", 2)[-1] if name.startswith("layers.") else name
    if kind.startswith("attention.qkv"):
        sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        q, k, v = full.split(sizes)
        return torch.cat([half(q), *([half(k), half(v)] if kv_heads > 1 else [k, v])])
    if "experts.gate_up" in kind:
        return torch.cat([half(part, 1) for part in full.chunk(2, 1)], 1)
    if kind.startswith(("mlp.gate_up", "moe.shared.gate_up")):
        return torch.cat([half(part) for part in full.chunk(2)])
    if kind in ("attention.o.weight", "mlp.down.weight", "moe.shared.down.weight"):
        return half(full, 1)
    if kind == "moe.experts.down":
        return half(full, 2)
    if kind in ("embedding.weight", "lm_head.weight"):
        return half(full)
    return full  # norms, router, row-parallel scales, the vision tower


@pytest.mark.parametrize(
    ("placement", "held"),
    [
        (None, [4, 5, 6, 7]),
        (((0, 2, 4, 6), (7, 5, 1, 3)), [7, 5, 1, 3]),
        (((0, 2, 4, 6, 3), (7, 5, 1, 3, 0)), [7, 5, 1, 3, 0]),
    ],
    ids=["in order", "placed", "with copies"],
)
def test_spread_experts_are_whole(
    moe_fp8: Path, placement: tuple[tuple[int, ...], ...] | None, held: list[int]
) -> None:
    config = config_of(moe_fp8)
    whole = parameters_of(loaded(moe_fp8)[0])
    mesh = Mesh(tp_size=2, tp_rank=1, ep_size=2, ep_rank=1, tp_group=cast(ProcessGroup, object()))
    if placement is not None:
        table = dict.fromkeys(range(config.text.num_layers), placement)
        mesh = replace(mesh, placement=Placement(num_experts=8, layers=table))
    plan = inspect(moe_fp8, config, share=Share.of(mesh))
    with torch.device("meta"):
        model = Glm4v(config, mesh, plan.fp8)
    load(model, plan, CPU, torch.float32, progress=False)
    for name, tensor in parameters_of(model).items():
        if ".experts." in name:
            assert torch.equal(tensor.float(), whole[name].float()[held])


# ------------------------------------------------------------------------------------- FP8


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_fp8_made_at_load_equals_the_fp8_checkpoint(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model, plan = loaded(request.getfixturevalue(kind), quantization="fp8")
    stored, stored_plan = loaded(request.getfixturevalue(f"{kind}_fp8"))
    assert_same_parameters(model, stored)
    assert plan.fp8 == stored_plan.fp8 == plan.quantized_here
    assert (plan.format, stored_plan.format) == ("fp8 (made at load)", "fp8")


def test_asking_for_fp8_changes_nothing_in_an_fp8_checkpoint(moe_fp8: Path) -> None:
    model, plan = loaded(moe_fp8, quantization="fp8")
    assert plan.quantized_here == frozenset()
    assert_same_parameters(model, loaded(moe_fp8)[0])


@pytest.mark.parametrize("layout", ["flat", "bfloat16"])
def test_scales_may_be_flat_or_in_bfloat16(moe_fp8: Path, tmp_path: Path, layout: str) -> None:
    folder = shutil.copytree(moe_fp8, tmp_path / "fp8")
    tensors = stored_tensors(moe_fp8)
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            tensors[name] = tensor.flatten() if layout == "flat" else tensor.bfloat16()
    store(folder, tensors, one_file(tensors))
    model, reference = loaded(folder)[0], loaded(moe_fp8)[0]
    for name, tensor in parameters_of(reference).items():
        ours = parameters_of(model)[name]
        rounds = layout == "bfloat16" and name.endswith("_scale")
        assert torch.equal(ours, tensor.bfloat16().float() if rounds else tensor), name
        assert ours.dtype == tensor.dtype


def test_what_is_fp8_is_decided_by_the_tensors_not_by_the_ignore_list(
    moe_fp8: Path, tmp_path: Path
) -> None:
    """One module back in BF16, and everything on the ignore list: nothing is taken for granted."""
    folder = shutil.copytree(moe_fp8, tmp_path / "mixed")
    tensors = stored_tensors(moe_fp8)
    name = f"{TEXT}.1.self_attn.o_proj.weight"
    scale = tensors.pop(f"{name}_scale")
    tensors[name] = (tensors[name].float() * scale).bfloat16()
    store(folder, tensors, one_file(tensors))
    plan = loaded(folder)[1]
    assert loaded(moe_fp8)[1].fp8 - plan.fp8 == {"layers.1.attention.o"}
    remade = loaded(folder, quantization="fp8")[1]
    assert remade.quantized_here == {"layers.1.attention.o"}


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 33))
def test_quantised_rows_are_within_half_a_step(seed: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).bfloat16()
    weight[0] = 0
    scale = row_scales(weight)
    made = quantize_rows(weight, scale)
    assert made.dtype == torch.float8_e4m3fn
    assert made.float().isfinite().all()
    error = (made.float() * scale[:, None] - weight.float()).abs()
    # e4m3 has 3 bits behind the point: half a step is 2^-4 of the value, or 2^-10 near zero.
    assert (error <= weight.float().abs() * 2**-4 + scale[:, None] * 2**-10 * 1.001).all()
    largest = made.float().abs().amax(1)[weight.abs().amax(1) > 0]
    assert (largest == 448).all()


def test_a_slice_of_a_row_parallel_weight_is_quantised_with_the_whole_rows_scale(
    moe: Path,
) -> None:
    config = config_of(moe)
    mesh = Mesh(tp_size=2, tp_rank=1, tp_group=cast(ProcessGroup, object()))
    plan = inspect(moe, config, quantization="fp8", share=Share(Split(1, 2)))
    with torch.device("meta"):
        model = Glm4v(config, mesh, plan.fp8)
    load(model, plan, CPU, torch.float32, progress=False)
    ours, whole = parameters_of(model), parameters_of(loaded(moe, quantization="fp8")[0])
    name = "layers.0.attention.o.weight"
    assert torch.equal(ours[f"{name}_scale"], whole[f"{name}_scale"])
    assert torch.equal(ours[name].float(), whole[name].float().chunk(2, 1)[1])


# ----------------------------------------------------------------------------- the manners


@pytest.mark.parametrize("is_long", [False, True])
def test_the_progress_of_a_long_load_is_told_in_bytes_on_stderr(
    moe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    if is_long:  # from the first moment on
        made = weights.tqdm
        monkeypatch.setattr(weights, "tqdm", lambda **options: made(**{**options, "delay": 0}))
    config = config_of(moe)
    plan = inspect(moe, config)
    with torch.device("meta"):
        model = Glm4v(config, Mesh.single())
    load(model, plan, CPU, torch.float32)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("weights: 100%" in err) is is_long
    assert ("5.34M/5.34M" in err) is is_long


def test_a_model_built_for_another_plan_is_refused(moe: Path) -> None:
    config = config_of(moe)
    plan = inspect(moe, config, quantization="fp8")
    with torch.device("meta"):
        model = Glm4v(config, Mesh.single())  # without plan.fp8
    with pytest.raises(ValueError, match="model and plan differ"):
        load(model, plan, CPU, torch.float32)


BOUNDED = """
import resource, sys
from pathlib import Path
import torch
from glimt.models.glm4v import Glm4v
from glimt.models.weights import inspect, load
from glimt.models import weights
from glimt.parallel.mesh import Mesh
from tests.support.checkpoints import CPU, config_of

torch.set_num_threads(1)
folder = Path(sys.argv[1])
quantization = sys.argv[2] or None
config = config_of(folder)
plan = inspect(folder, config, quantization=quantization)
with torch.device("meta"):
    model = Glm4v(config, Mesh.single(), plan.fp8)
size = {torch.float32: 2, torch.float8_e4m3fn: 1}  # float32 on meta becomes bfloat16
parameters = sum(p.numel() * size[p.dtype] for p in model.parameters())
shard = max(file.stat().st_size for file in plan.tasks)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
used = int(status["VmData"].split()[0]) * 1024
# Two threads: a mapped shard (private, hence counted) and a stack each. And one tensor on its way.
limit = used + parameters + 2 * (shard + 8 * 2**20) + int(sys.argv[3]) * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
load(model, plan, CPU, torch.bfloat16, max_threads=2)
print(len(plan.tasks), sum(task.num_bytes for tasks in plan.tasks.values() for task in tasks))
"""
ROOM_MIB = {"": 32, "fp8": 80}  # fp8: float32 copies of what is being quantised


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["", pytest.param("fp8", marks=pytest.mark.slow)])
def test_host_memory_beyond_the_parameters_is_that_of_the_open_shards(
    quantization: str, tmp_path: Path
) -> None:
    """Of 150 MB in twelve shards, two threads have two open; reading all at once would fail."""
    folder = make_tiny_checkpoint(tmp_path, variant="dense")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= {"num_hidden_layers": 12, "intermediate_size": 8192}
    file.write_text(json.dumps(config))
    shapes = dict(tensor_shapes(config))
    files = {
        name: f"part-{name.split('.')[3] if TEXT in name else 12}.safetensors" for name in shapes
    }
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    store(folder, tensors, files)
    run = subprocess.run(
        [sys.executable, "-c", BOUNDED, folder, quantization, str(ROOM_MIB[quantization])],
        capture_output=True,
        text=True,
        check=False,
        # freed memory goes back at once, so that what counts is what is held
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[0] == "13"
