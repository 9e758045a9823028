"""Accuracy on held-out samples: a span counts as right if each of its tokens is the likeliest.

With the right tokens before it given, each token being the likeliest is the same as greedy decoding
producing the span, without decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.network import Batch, Network


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Exactly right spans of a skill."""

    right: int
    spans: int

    @property
    def share(self) -> float:
        """0 … 1."""
        return self.right / self.spans


@torch.no_grad()
def evaluate(network: Network, batches: Sequence[Batch]) -> dict[str, Accuracy]:
    """Skill -> accuracy, in alphabetical order."""
    network.eval()
    counted: dict[str, list[bool]] = {}
    for batch in batches:
        for skill, right in zip(batch.counts.skills, right_spans(network, batch), strict=True):
            counted.setdefault(skill, []).append(right)
    return {skill: Accuracy(sum(counted[skill]), len(counted[skill])) for skill in sorted(counted)}


@torch.no_grad()
def right_spans(network: Network, batch: Batch) -> list[bool]:
    """For each span of the micro-batch."""
    fields = batch.fields
    wrong_M = network(batch).argmax(-1) != fields.targets_M
    wrong = torch.zeros(len(batch.counts.skills), dtype=torch.int64, device=wrong_M.device)
    wrong.index_add_(0, fields.spans_M, wrong_M.long())
    return [number == 0 for number in wrong.tolist()]


def table(accuracies: dict[str, Accuracy]) -> str:
    """For people."""
    width = max(len(skill) for skill in accuracies)
    return "\n".join(
        f"  {skill:<{width}}  {100 * accuracy.share:5.1f} %  of {accuracy.spans}"
        for skill, accuracy in accuracies.items()
    )
