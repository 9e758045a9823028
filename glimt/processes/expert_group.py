"""Which ranks share the experts of a model, and which of them has which."""

from pathlib import Path

from glimt.checkpoint import Checkpoint
from glimt.config import ParallelSettings
from glimt.copies import expert_copies
from glimt.experts.placement import Placement, by_strategy, check_fits, read_placement
from glimt.models.config import TextConfig
from glimt.models.config_json import read_config


def shares_experts(parallel: ParallelSettings, checkpoint: Checkpoint) -> bool:
    """Whether replicas compute experts for each other."""
    return len(expert_copies(parallel)) > 1 and _text(checkpoint).moe is not None


def expert_placement(parallel: ParallelSettings, checkpoint: Checkpoint) -> Placement | None:
    """The table that the flags ask for; None: experts in order. Raises BadSettings."""
    text = _text(checkpoint)
    if not parallel.enable_expert_parallel or text.moe is None:
        return None
    num_ranks = parallel.tensor_parallel_size * max(1, len(expert_copies(parallel)))
    layers = [layer for layer in range(text.num_layers) if text.is_moe_layer(layer)]
    if parallel.expert_placement is not None:
        placement = read_placement(Path(parallel.expert_placement))
        check_fits(placement, layers, text.moe.num_experts, num_ranks)
        return placement
    strategy = parallel.expert_placement_strategy
    placement = by_strategy(strategy, layers, text.moe.num_experts, num_ranks)
    return None if strategy == "linear" or num_ranks == 1 else placement


def _text(checkpoint: Checkpoint) -> TextConfig:
    return read_config(checkpoint.config, checkpoint.preprocessor_config).text
