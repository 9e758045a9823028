"""`Passes`: our model on paged rows, driven directly: what the runner does, at its plainest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glimt.layers.attention import KvCache, Step
from glimt.models.glm4v import Glm4v
from tests.support.token_prompts import IMAGE, Prompt


@dataclass
class Work:
    """The next tokens of a row: embeddings [T, D] at positions [3, T]."""

    row: int
    x: Tensor
    positions: Tensor


class Passes:
    """Rows of scattered pages and how far their KV reaches. Fresh pages hold NaN."""

    def __init__(
        self,
        model: Glm4v,
        num_rows: int = 1,
        max_len: int = 512,
        page_size: int = 16,
        dtype: torch.dtype = torch.float32,
        num_kv_heads: int | None = None,
    ) -> None:
        self.model = model
        text = model.config.text
        per_row = -(-max_len // page_size)
        order = torch.randperm(num_rows * per_row, generator=torch.Generator().manual_seed(7))
        self.page_table = order.view(num_rows, per_row).to(torch.int32)
        self.context = [0] * num_rows
        shape = (order.numel(), 2, num_kv_heads or text.num_kv_heads, page_size, text.head_dim)
        layers = tuple(torch.full(shape, torch.nan, dtype=dtype) for _ in range(text.num_layers))
        self.cache = KvCache(layers, None, page_size)

    def make_step(self, works: list[Work]) -> Step:
        """The step of these works; advances the rows."""
        size, slots, starts = self.cache.page_size, [], [0]
        for work in works:
            index = torch.arange(work.x.shape[0]) + self.context[work.row]
            pages = self.page_table[work.row, index // size].long()
            slots.append(pages * size + index % size)
            starts.append(starts[-1] + work.x.shape[0])
            self.context[work.row] += work.x.shape[0]
        lengths = [self.context[work.row] for work in works]
        return Step(
            torch.cat([work.positions for work in works], dim=1),
            torch.cat(slots),
            self.page_table[[work.row for work in works]],
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            max(work.x.shape[0] for work in works),
            max(lengths),
        )

    def run(self, works: list[Work]) -> list[Tensor]:
        """Logits [T, V] of each work's tokens, all computed in one step."""
        step = self.make_step(works)
        hidden = self.model.decode(torch.cat([work.x for work in works]), step, self.cache)
        logits = self.model.logits(hidden)
        return list(torch.split(logits, [work.x.shape[0] for work in works]))


def embed_prompt(model: Glm4v, prompt: Prompt) -> Tensor:
    """[L, D]: token embeddings with the encoded images put in."""
    ids = torch.tensor(prompt.token_ids)
    x = model.embed(ids)
    if prompt.grids:
        x[ids == IMAGE] = torch.cat(model.encode_images(prompt.patches, prompt.grids))
    return x


def greedy(model: Glm4v, prompt: Prompt, positions: Tensor, delta: int, steps: int) -> list[int]:
    """Greedy tokens, one decoding step after another."""
    passes = Passes(model)
    logits = passes.run([Work(0, embed_prompt(model, prompt), positions)])[0][-1:]
    tokens: list[int] = []
    for index in range(prompt.length, prompt.length + steps):
        tokens.append(int(logits[-1].argmax()))
        here = torch.full((3, 1), index + delta)
        logits = passes.run([Work(0, model.embed(torch.tensor(tokens[-1:])), here)])[0]
    return tokens
