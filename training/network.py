"""The trainable network: `glimt.models.glm4v` (mixture of experts) with gradients.

Same parameters under the same names, same arithmetic; in place of the paged cache, whole samples
one after another. tests/training compares its logits with the server's own model.

Letters: T tokens of all samples, M targets, D width, V vocabulary, N heads, G key-value heads,
H head dim, E experts, K experts of a token, I expert width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from glimt.kernels.reference import inverse_frequencies
from glimt.models.config import ModelConfig, MoeConfig, RopeConfig, TextConfig
from training.attention import Attend, Segments
from training.modules import Angles, Mlp, RmsNorm, silu_mul
from training.packing import Counts
from training.sample import NUM_LABELS
from training.sight import Sight
from training.tower import Tower


class Fields(NamedTuple):
    """The arrays in a micro-batch's `words`, in the order of `Counts.word_sizes`."""

    token_ids_T: Tensor
    positions_3T: Tensor
    sample_starts: Tensor
    places_P4: Tensor
    picture_starts: Tensor
    image_rows: Tensor  # of each picture's tokens, in the order of the patches
    labels_BL: Tensor  # what these tokens show
    target_rows_M: Tensor  # the row that a target is read from: the one before it
    targets_M: Tensor
    spans_M: Tensor  # number of the span


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch on the device; see `training.packing`."""

    counts: Counts
    words: Tensor  # int32
    pixels: Tensor  # uint8

    @property
    def nbytes(self) -> int:
        """Device memory that it takes."""
        return self.words.nbytes + self.pixels.nbytes

    @property
    def fields(self) -> Fields:
        """Views of `words`."""
        fields = Fields(*torch.split(self.words, self.counts.word_sizes))
        return fields._replace(
            positions_3T=fields.positions_3T.view(3, -1),
            places_P4=fields.places_P4.view(-1, 4),
            labels_BL=fields.labels_BL.view(-1, NUM_LABELS),
        )

    @property
    def stills(self) -> Tensor:
        """uint8 [P, 3, 1, 14, 14]."""
        part = self.pixels[: self.counts.still_patches * 3 * 14 * 14]
        return part.view(-1, 3, 1, 14, 14)

    @property
    def steps(self) -> Tensor:
        """uint8 [P, 3, 2, 14, 14]."""
        part = self.pixels[self.counts.still_patches * 3 * 14 * 14 :]
        return part.view(-1, 3, 2, 14, 14)


class Network(nn.Module):
    """Tower, decoder and head. Parameters are uninitialised: see `training.weights`.

    `sees` adds what only training needs: the tower's own telling of what its rows show.
    """

    def __init__(self, config: ModelConfig, attend: Attend, *, sees: bool = False) -> None:
        super().__init__()
        text = config.text
        if text.sandwich or text.rope.interleaved:
            raise ValueError("only the architecture glm4v_moe can be trained")
        self.config = config
        self.embedding = nn.Embedding(text.vocab_size, text.hidden_size)
        self.layers = nn.ModuleList(Layer(text, n, attend) for n in range(text.num_layers))
        self.norm = RmsNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.vision = Tower(config.vision, attend)
        if sees:
            self.sight = Sight(config.vision.out_hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Float32 logits [M, V] from which the targets are to be read."""
        return self.decode(batch, self.encode(batch))

    def encode(self, batch: Batch) -> Tensor | None:
        """[B, D], one row for each image token; None without pictures."""
        counts, fields = batch.counts, batch.fields
        if not counts.pictures:
            return None
        pictures = Segments.of(fields.picture_starts, counts.patches, counts.largest_picture)
        images: Tensor = self.vision(batch.stills, batch.steps, fields.places_P4, pictures)
        return images

    def decode(self, batch: Batch, images_BD: Tensor | None) -> Tensor:
        """Logits, given the encoded pictures."""
        counts, fields = batch.counts, batch.fields
        x_TD = self.embedding(fields.token_ids_T)
        if images_BD is not None:
            x_TD = x_TD.index_copy(0, fields.image_rows.long(), images_BD)
        samples = Segments.of(fields.sample_starts, counts.tokens, counts.longest_sample)
        angles = text_angles(self.config.text.rope, fields.positions_3T)
        for layer in self.layers:
            x_TD = layer(x_TD, angles, samples)
        hidden_MD = self.norm(x_TD.index_select(0, fields.target_rows_M))
        logits_MV: Tensor = self.lm_head(hidden_MD)
        return logits_MV.float()


class Layer(nn.Module):
    """x += Attention(norm(x)); x += FeedForward(norm(x)), dense `mlp` or `moe`."""

    def __init__(self, config: TextConfig, index: int, attend: Attend) -> None:
        super().__init__()
        self.norm_1 = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_2 = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, attend)
        self.is_moe = config.is_moe_layer(index)
        if config.moe is not None and self.is_moe:
            self.moe = Moe(config.hidden_size, config.moe)
        else:
            self.mlp = Mlp(config.hidden_size, config.intermediate_size)

    def forward(self, x_TD: Tensor, angles: Angles, samples: Segments) -> Tensor:
        """[T, D] -> [T, D]."""
        x_TD = x_TD + self.attention(self.norm_1(x_TD), angles, samples)
        h_TD = self.norm_2(x_TD)
        branch_TD: Tensor = self.moe(h_TD) if self.is_moe else self.mlp(h_TD)
        return x_TD + branch_TD


class Attention(nn.Module):
    """o(softmax(q k^T / sqrt H, causal) v), grouped queries, partial rotary embedding."""

    def __init__(self, config: TextConfig, attend: Attend) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.attend = attend
        width = (self.num_heads + 2 * self.num_kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
        self.o = nn.Linear(self.num_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor, angles: Angles, samples: Segments) -> Tensor:
        """[T, D] -> [T, D]."""
        num_turned = self.num_heads + self.num_kv_heads
        heads = self.qkv(x_TD).unflatten(-1, (num_turned + self.num_kv_heads, -1))
        qk = angles.turn(heads[:, :num_turned])
        repeats = self.num_heads // self.num_kv_heads
        k_TNH, v_TNH = (
            part[:, :, None].expand(-1, -1, repeats, -1).flatten(1, 2)
            for part in (qk[:, self.num_heads :], heads[:, num_turned:])
        )
        out_TNH = self.attend(qk[:, : self.num_heads], k_TNH, v_TNH, samples, True)
        y_TD: Tensor = self.o(out_TNH.flatten(1))
        return y_TD


class Moe(nn.Module):
    """y = Σ w_e · Expert_e(x) + Shared(x)."""

    def __init__(self, hidden_size: int, config: MoeConfig) -> None:
        super().__init__()
        self.router = Router(hidden_size, config)
        self.experts = Experts(hidden_size, config.intermediate_size, config.num_experts)
        self.shared = Mlp(hidden_size, config.shared_intermediate_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        routed_TD: Tensor = self.experts(x_TD, self.router(x_TD))
        shared_TD: Tensor = self.shared(x_TD)
        return routed_TD + shared_TD


class Router(nn.Module):
    """Sigmoid scores in float32; the bias selects and does not weigh.

    The bias learns nothing by gradient: `training.balance` moves it by the load of the experts,
    which is counted here.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, hidden_size: int, config: MoeConfig) -> None:
        super().__init__()
        if config.num_groups != 1:
            raise ValueError(f"n_group is {config.num_groups}; only 1 can be trained")
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        self.register_buffer("bias", torch.zeros(config.num_experts, dtype=torch.float32))
        self.register_buffer("load", torch.zeros(config.num_experts), persistent=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Float32 [T, E]: each token's weights, zero for the experts it did not choose."""
        scores_TE = functional.linear(x_TD.float(), self.weight.float()).sigmoid()
        with torch.no_grad():
            chosen_TK = (scores_TE + self.bias).topk(self.config.num_experts_per_token).indices
            mask_TE = torch.zeros_like(scores_TE).scatter_(1, chosen_TK, 1.0)
            if self.training:
                self.load += mask_TE.sum(0)
        weights_TE = scores_TE * mask_TE
        if self.config.norm_topk_prob:
            weights_TE = weights_TE / (weights_TE.sum(-1, keepdim=True) + 1e-20)
        return weights_TE * self.config.routed_scaling_factor


class Experts(nn.Module):
    """gate_up [E, 2I, D] and down [E, D, I], as one wide feed-forward with weights in its middle.

    Σ_e w_e · down_e(h_e) = [down_0 … down_E] [w_0 h_0; …; w_E h_E]: all experts see all tokens and
    most of what they say is multiplied by zero. At this size three large products are faster than
    sorting tokens for the few that are needed, and they are the same code everywhere.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def forward(self, x_TD: Tensor, weights_TE: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        gate_up = functional.linear(x_TD, self.gate_up.flatten(0, 1))
        h_TEI = silu_mul(gate_up.view(x_TD.shape[0], self.gate_up.shape[0], -1))
        h_TEI = h_TEI * weights_TE.to(x_TD.dtype)[..., None]
        return h_TEI.flatten(1) @ self.down.transpose(1, 2).flatten(0, 1)


def text_angles(rope: RopeConfig, positions_3T: Tensor) -> Angles:
    """M-RoPE: runs of rotary pairs follow the temporal, height and width position."""
    inverse = inverse_frequencies(rope.theta, rope.rotary_dim, positions_3T.device)
    parts = torch.split(inverse, list(rope.sections))
    angles = [axis_T[:, None] * part for axis_T, part in zip(positions_3T, parts, strict=True)]
    return Angles(torch.cat(angles, dim=-1))
