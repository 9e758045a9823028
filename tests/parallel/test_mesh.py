"""Collectives over real gloo groups (ranks are threads here), and a model split over two ranks."""

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from glimt.errors import BadSettings
from glimt.experts.placement import Placement
from glimt.layers.moe import Places
from glimt.models.glm4v import Glm4v
from glimt.parallel.group import Meeting, check_devices, gloo
from glimt.parallel.mesh import Mesh
from glimt.processes.ranks import naming_the_cure
from tests.support.configs import tiny_config
from tests.support.oracle import Oracle
from tests.support.passes import Passes, Work, embed_prompt
from tests.support.ranks import on_ranks
from tests.support.token_prompts import PromptWriter


def test_over_one_rank_the_collectives_give_their_argument_back() -> None:
    x = torch.randn(3, 4)
    assert Mesh.single().tp_sum(x) is x
    assert Mesh.single().tp_concat(x) is x
    assert torch.equal(Mesh.single().tp_stack(x), x[None])


def test_a_sum_is_the_same_on_every_rank() -> None:
    sums = on_ranks(3, lambda mesh: mesh.tp_sum(torch.full((2, 2), float(mesh.tp_rank + 1)).t()))
    assert all(torch.equal(total, torch.full((2, 2), 6.0)) for total in sums)


def test_parts_are_joined_in_the_order_of_the_ranks() -> None:
    joined = on_ranks(3, lambda mesh: mesh.tp_concat(torch.full((2, 1), float(mesh.tp_rank))))
    assert all(whole.tolist() == [[0, 1, 2]] * 2 for whole in joined)


def test_ranks_whose_devices_cannot_work_together_are_refused_by_name() -> None:
    store = HashStore()
    store.set("1", "2.28.9|NVIDIA H200")
    cure = r"rank 1 computes on NVIDIA H200 with NCCL 2\.28\.9, rank 0 on a CPU.*nvidia-smi"
    with pytest.raises(BadSettings, match=cure):
        check_devices(store, 0, 2, torch.device("cpu"))
    store.set("1", "|a CPU")
    check_devices(store, 0, 2, torch.device("cpu"))


def test_sizes_that_cannot_be_split_are_refused_by_name() -> None:
    def split(mesh: Mesh) -> str:
        with pytest.raises(BadSettings) as caught:
            mesh.tp_share(7, "num_attention_heads")
        return caught.value.message

    assert on_ranks(2, split) == ["num_attention_heads (7) cannot be split over 2 GPUs"] * 2


def test_a_mesh_without_its_group_is_refused() -> None:
    with pytest.raises(BadSettings, match="no group"):
        Mesh(tp_size=2)
    with pytest.raises(BadSettings, match="experts"):
        Mesh(ep_size=2)


def columns(weight: Tensor, mesh: Mesh) -> Tensor:
    """This rank's inputs."""
    return weight.chunk(mesh.tp_size, -1)[mesh.tp_rank]


def rows(weight: Tensor, mesh: Mesh, dim: int = 0) -> Tensor:
    """This rank's outputs."""
    return weight.chunk(mesh.tp_size, dim)[mesh.tp_rank]


def gate_up_rows(weight: Tensor, mesh: Mesh, dim: int = 0) -> Tensor:
    """This rank's share of gate and of up."""
    return torch.cat([rows(part, mesh, dim) for part in weight.chunk(2, dim)], dim)


def shard(name: str, weight: Tensor, model: Glm4v, mesh: Mesh) -> Tensor:
    """One rank's part of a parameter of the whole model."""
    text, ep = model.config.text, mesh.ep_size > 1
    if name.startswith("vision."):
        return weight
    if ".qkv." in name:
        heads = weight.unflatten(0, (-1, text.head_dim))
        kinds = heads.split([text.num_heads, text.num_kv_heads, text.num_kv_heads])
        return torch.cat([rows(kind, mesh) for kind in kinds]).flatten(0, 1)
    if ep and name.endswith(("experts.gate_up", "experts.down")) and mesh.placement is not None:
        return weight[[*mesh.placement.layers[int(name.split(".")[1])][mesh.ep_rank]]]
    if ep and name.endswith(("experts.gate_up", "experts.down")):
        return weight.chunk(mesh.ep_size)[mesh.ep_rank]
    if name.endswith("experts.gate_up"):
        return gate_up_rows(weight, mesh, 1)
    if name.endswith("experts.down"):
        return columns(weight, mesh)
    if ".gate_up." in name:
        return gate_up_rows(weight, mesh)
    if name.endswith(("attention.o.weight", "down.weight")):
        return columns(weight, mesh)
    if name in ("embedding.weight", "lm_head.weight"):
        return rows(weight, mesh)
    return weight


MIXED = ((6, 1, 3, 0), (7, 4, 2, 5))
COPIED = ((6, 1, 3, 0, 2), (7, 4, 2, 5, 6))  # 2 and 6 on both
PLACED = Placement(num_experts=8, layers={1: MIXED, 2: MIXED[::-1]})
PLACED_TWICE = Placement(num_experts=8, layers={1: COPIED, 2: COPIED[::-1]})


@pytest.mark.parametrize(
    ("kind", "experts", "placement"),
    [
        ("glm4v_moe", False, None),
        ("glm4v_moe", True, None),
        ("glm4v_moe", True, PLACED),
        ("glm4v_moe", True, PLACED_TWICE),
        ("glm4v", False, None),
    ],
    ids=["widths split", "experts in order", "experts placed", "experts copied", "dense"],
)
def test_a_model_split_over_two_ranks_gives_the_whole_models_logits(
    kind: str, experts: bool, placement: Placement | None
) -> None:
    whole = Oracle(tiny_config(kind), seed=4).ours()
    prompt = PromptWriter(2).text(3).image(2, 3).text(5).prompt
    positions = torch.arange(prompt.length).expand(3, -1)
    expected = Passes(whole).run([Work(0, embed_prompt(whole, prompt), positions)])[0]

    def run(mesh: Mesh) -> Tensor:
        with torch.device("meta"):
            part = Glm4v(whole.config, mesh)
        state = {n: shard(n, w, whole, mesh).contiguous() for n, w in whole.state_dict().items()}
        part.load_state_dict(state, assign=True)
        passes = Passes(part, num_kv_heads=1)
        return passes.run([Work(0, embed_prompt(part, prompt), positions)])[0]

    for logits in on_ranks(2, run, experts=experts, placement=placement):
        torch.testing.assert_close(logits, expected, atol=5e-5, rtol=0)


def test_copies_of_an_expert_take_turns() -> None:
    def chosen(mesh: Mesh) -> list[int]:
        return Places(mesh, 1)(torch.full((4, 1), 6)).flatten().tolist()

    assert on_ranks(2, chosen, experts=True, placement=PLACED_TWICE) == [[0, 9, 0, 9]] * 2
    assert on_ranks(2, chosen, experts=True, placement=PLACED) == [[0] * 4] * 2
    assert on_ranks(2, chosen, experts=True) == [[6] * 4] * 2


def test_experts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(BadSettings, match=r"n_routed_experts \(7\) .* over 2 GPUs"):
        on_ranks(2, lambda mesh: mesh.ep_share(7), experts=True)


def test_where_ranks_of_several_machines_cannot_meet_the_cure_is_named() -> None:
    far = Meeting(host="10.0.0.1", port=4321, own_address="10.0.0.2")
    with (
        pytest.raises(RuntimeError, match=r"10.0.0.1:4321 where they meet\): each machine must"),
        naming_the_cure(far),
    ):
        gloo(HashStore(), 0, 1, own_address="192.0.2.1")  # nobody's: RFC 5737
