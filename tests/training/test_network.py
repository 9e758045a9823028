"""The trainable network is the server's network, and packing changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.parallel.mesh import Mesh
from tests.support.configs import tiny_config
from tests.support.oracle import Oracle
from tests.support.passes import Passes, Work, embed_prompt
from tests.support.token_prompts import IMAGE, Prompt, PromptWriter
from training.attention import padded_attention
from training.network import Batch, Network
from training.packing import pack
from training.sample import Picture, Sample, Span
from training.weights import Weights, initial_state

CPU = torch.device("cpu")
TOLERANCE = 1e-4

PROMPTS: dict[str, Prompt] = {
    "text": PromptWriter(1).text(40).prompt,
    "image": PromptWriter(2).text(3).image(4, 6).text(5).prompt,
    "two images": PromptWriter(3).text(2).image(1, 1).text(1).image(3, 11).text(4).prompt,
    "video": PromptWriter(4).text(4).video(3, 2, 5).text(3).prompt,
    "mixed": PromptWriter(6).image(2, 3).text(1).video(2, 1, 3).text(3).image(5, 1).text(2).prompt,
}


def as_sample(prompt: Prompt, skill: str = "all") -> Sample:
    """Every token but the first is a target."""
    ids = np.array(prompt.token_ids, np.int32)
    pictures, at = [], 0
    for patches, (height, width) in zip(prompt.patches, prompt.grids, strict=True):
        at += int((ids[at:] == IMAGE).argmax())
        pictures.append(Picture(at, height, width, patches.numpy()))
        at += pictures[-1].num_tokens
    return Sample(ids, tuple(pictures), (Span(1, len(ids), skill),))


def as_batch(*samples: Sample) -> Batch:
    packed = pack(samples)
    return Batch(packed.counts, torch.from_numpy(packed.words), torch.from_numpy(packed.pixels))


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(tiny_config("glm4v_moe"), seed=11)


def trainable(oracle: Oracle) -> Network:
    """The network with the oracle's weights."""
    network = Network(read_config(oracle.config), padded_attention)
    network.load_state_dict(oracle.ours().state_dict())  # strict: the names are the server's
    return network.eval()


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_the_servers_and_transformers(oracle: Oracle, name: str) -> None:
    prompt, theirs, model = PROMPTS[name], oracle.run(PROMPTS[name]), oracle.ours()
    work = Work(0, embed_prompt(model, prompt), theirs.positions)
    servers = Passes(model, max_len=prompt.length).run([work])[0]
    with torch.no_grad():
        ours = trainable(oracle)(as_batch(as_sample(prompt)))
    torch.testing.assert_close(ours, theirs.logits[:-1], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours, servers[:-1], atol=TOLERANCE, rtol=0)


def test_a_packed_sample_has_the_logits_it_has_alone(oracle: Oracle) -> None:
    network, samples = trainable(oracle), [as_sample(prompt) for prompt in PROMPTS.values()]
    with torch.no_grad():
        packed = network(as_batch(*samples))
        alone = torch.cat([network(as_batch(sample)) for sample in samples])
    torch.testing.assert_close(packed, alone, atol=TOLERANCE, rtol=0)


def test_targets_are_the_spans_tokens_and_logits_those_of_the_row_before(oracle: Oracle) -> None:
    whole = as_sample(PROMPTS["mixed"])
    spans = (Span(3, 5, "a"), Span(20, 24, "b"))
    part = Sample(whole.token_ids, whole.pictures, spans)
    batch = as_batch(whole, part)
    assert batch.counts.skills == ("all", "a", "b")
    last = batch.fields.targets_M[-6:].tolist()
    assert last == [*whole.token_ids[3:5], *whole.token_ids[20:24]]
    assert batch.fields.spans_M[-6:].tolist() == [1, 1, 2, 2, 2, 2]
    with torch.no_grad():
        logits = trainable(oracle)(batch)
    rows = [2, 3, 19, 20, 21, 22]
    torch.testing.assert_close(logits[-6:], logits[rows], atol=TOLERANCE, rtol=0)


def gradients(network: Network, batch: Batch) -> dict[str, Tensor]:
    loss = torch.nn.functional.cross_entropy(network(batch), batch.fields.targets_M.long())
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "embedding.weight",
        "layers.1.attention.qkv.weight",
        "layers.1.moe.router.weight",
        "layers.2.moe.experts.down",
        "vision.position_embedding",
        "vision.blocks.0.attention.qkv.weight",
        "vision.patch_embed.weight",
    ],
)
def test_gradients_are_slopes(name: str) -> None:
    """With all experts chosen, for a choice that flips is a jump."""
    config = read_config(tiny_config("glm4v_moe", text={"num_experts_per_tok": 8}))
    network = Network(config, padded_attention).eval()
    network.load_state_dict({**network.state_dict(), **initial_state(network, config, 3)})
    batch = as_batch(as_sample(PROMPTS["mixed"]))
    gradient = gradients(network, batch)[name]
    parameter = dict(network.named_parameters())[name]
    step = 3e-3 * gradient / gradient.norm()
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = {**dict(network.named_parameters()), name: parameter + sign * step}
            logits = torch.func.functional_call(network, moved, (batch,))
            losses.append(
                torch.nn.functional.cross_entropy(logits, batch.fields.targets_M.long()).item()
            )
    slope = (losses[0] - losses[1]) / 6e-3
    assert slope == pytest.approx(float(gradient.norm()), rel=0.03)


def test_the_working_weights_are_the_masters_rounded() -> None:
    config = read_config(tiny_config("glm4v_moe"))
    network = Network(config, padded_attention)
    weights = Weights(network, CPU, torch.bfloat16, seed=1)
    parameters = dict(network.named_parameters())
    assert parameters.keys() == weights.masters().keys()
    for name, master in weights.masters().items():
        assert torch.equal(parameters[name], master.bfloat16()), name
    assert network.layers[1].moe.router.bias.dtype == torch.float32


def test_places_weigh_as_much_as_contents_at_the_start() -> None:
    """A tower whose places whisper learns colours, and never where they are."""
    network = Network(read_config(tiny_config("glm4v_moe")), padded_attention)
    Weights(network, CPU, torch.float32, seed=0)
    table = network.vision.position_embedding.detach()
    spread = (table - table.mean(0)).square().mean().sqrt()
    contents = network.vision.norm_in(torch.randn(8, table.shape[1])).detach()
    assert 0.7 < spread / contents.square().mean().sqrt() < 1.5


def test_dense_models_are_refused() -> None:
    with pytest.raises(ValueError, match="glm4v_moe"):
        Network(read_config(tiny_config("glm4v")), padded_attention)


def test_the_servers_model_takes_the_trained_names() -> None:
    config: dict[str, Any] = tiny_config("glm4v_moe")
    with torch.device("meta"):
        model = Glm4v(read_config(config), Mesh.single())
    network = Network(read_config(config), padded_attention)
    assert set(network.state_dict()) == set(model.state_dict())
