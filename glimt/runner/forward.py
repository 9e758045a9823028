"""One forward pass over a batch: tokens and image embeddings in, hidden states out."""

import torch
from torch import Tensor

from glimt.layers.attention import KvCache
from glimt.models.glm4v import Glm4v
from glimt.runner.batch import Batch
from glimt.runner.encoder import ImageEncoder


def hidden_states(
    model: Glm4v, batch: Batch, tokens_RL: Tensor, encoder: ImageEncoder, kv: KvCache
) -> Tensor:
    """[T, D] after the final norm; fills the KV cache. Device work only.

    `tokens_RL`: the history of all device rows. The batch's images have been encoded.
    """
    return model.decode(embedded(model, batch, tokens_RL, encoder), batch.step, kv)


def embedded(model: Glm4v, batch: Batch, tokens_RL: Tensor, encoder: ImageEncoder) -> Tensor:
    """[T, D]: the embeddings of the batch's tokens and images."""
    x_TD = model.embed(tokens_RL.view(-1)[batch.token_place_T])
    if batch.image_index_I is not None:
        images_ID = [
            encoder.part(part.span.content_hash, part.low, part.high) for part in batch.image_parts
        ]
        x_TD.index_copy_(0, batch.image_index_I, torch.cat(images_ID).to(x_TD.dtype))
    return x_TD
