"""The whole model: embed tokens, encode images, decode, logits. Also the list of its parameters.

    layers.N.…      decoder.py       vision.…      vision.py
    embedding, norm, lm_head         here

Build it under torch.device("meta") and give it weights with `weights.py`. Forward passes record no
gradients, for no parameter asks for one.

Letters: T tokens, N rows whose next token is wanted, D width, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from glimt.kernels import Delta
from glimt.layers.attention import KvCache, Step
from glimt.layers.embedding import Embedding
from glimt.layers.linear import Linear, below, plain
from glimt.layers.moe import Moe
from glimt.layers.norm import RmsNorm
from glimt.models.config import ModelConfig
from glimt.models.decoder import DecoderLayer, norm_mesh, text_angles
from glimt.models.vision import Grid, Slices, Vision
from glimt.parallel.exchange import Exchange
from glimt.parallel.mesh import Mesh


class Glm4v(nn.Module):
    """One rank's part of the model. `fp8` names its FP8 modules, e.g. "layers.3.attention.qkv"."""

    def __init__(self, config: ModelConfig, mesh: Mesh, fp8: frozenset[str] = frozenset()) -> None:
        super().__init__()
        text = config.text
        self.config = config
        self.mesh = mesh
        self.embedding = Embedding(text.vocab_size, text.hidden_size, mesh)
        self.layers = nn.ModuleList(
            DecoderLayer(text, index, mesh, below(fp8, f"layers.{index}"))
            for index in range(text.num_layers)
        )
        self.norm = RmsNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = Linear(text.hidden_size, mesh.tp_share(text.vocab_size, "vocab_size"))
        self.vision = Vision(config.vision, mesh.tower)

    @property
    def mixtures(self) -> dict[int, Moe]:
        """The layers' mixtures of experts, by the number of the layer."""
        return {
            index: layer.moe
            for index, layer in enumerate(self.layers)
            if isinstance(layer, DecoderLayer) and layer.is_moe
        }

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """int [T] -> [T, D]. The rows of placeholder tokens are the caller's to overwrite."""
        return self.mesh.tp_sum(self.embedding(token_ids_T))

    def encode_images(
        self, patches: Sequence[Tensor], grids: Sequence[Grid], *, spread: bool = False
    ) -> list[Tensor]:
        """Images and video steps, all at once -> [num_tokens, D] of each.

        `patches[i]`: uint8 [P, 3, frames, side, side] in blocks of merge × merge patches, with 1
        frame (a still) or as many as the tower takes; `grids[i]`: height and width in patches.
        `spread`: over all ranks, which each have the whole tower; all call this with the same.
        """
        images: list[Tensor] = self.vision(patches, grids, self.mesh if spread else Mesh.single())
        return images

    def encode_in_slices(self, patches: Sequence[Tensor], grids: Sequence[Grid]) -> Slices:
        """`encode_images`, with stops."""
        return self.vision.slices(patches, grids, Mesh.single())

    def empty_embeddings(self, num_tokens: int) -> Tensor:
        """[num_tokens, D], uninitialised: room for what another rank's tower gives."""
        return self.embedding.weight.new_empty(num_tokens, self.config.text.hidden_size)

    def decode(self, x_TD: Tensor, step: Step, kv: KvCache) -> Tensor:
        """Embeddings [T, D] -> hidden states [T, D] after the final norm; fills the KV cache."""
        angles = text_angles(self.config.text.rope, step.positions_3T)
        delta_TD: Delta | None = None
        for index, layer in enumerate(self.layers):
            x_TD, delta_TD = layer(x_TD, delta_TD, step, angles, kv.layer(index))
        h, _ = self.norm.add_parts(x_TD, delta_TD, norm_mesh(self.config.text, self.mesh))
        return plain(h)

    def take_part(self, exchange: Exchange) -> None:
        """Compute experts for other replicas in a step in which this one has no tokens."""
        for moe in self.mixtures.values():
            moe.take_part(exchange)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """[N, D] -> float32 [N, V], padding rows of the vocabulary included."""
        return self.mesh.tp_concat(self.logits_share(hidden_ND)).float()

    def logits_share(self, hidden_ND: Tensor) -> Tensor:
        """[N, D] -> [N, V / tp] in the activations' dtype: those of this rank's tokens."""
        logits_NU: Tensor = self.lm_head(hidden_ND)
        return logits_NU
