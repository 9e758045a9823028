"""Which ranks of a machine share the experts of a model, and which of them has which."""

from pathlib import Path

from glimt.checkpoint import Checkpoint
from glimt.config import ParallelSettings
from glimt.experts.placement import Placement, by_strategy, check_fits, read_placement
from glimt.models.config_json import read_config


def expert_placement(parallel: ParallelSettings, checkpoint: Checkpoint) -> Placement | None:
    """The table that the flags ask for; None: experts in order. Raises BadSettings."""
    text = read_config(checkpoint.config, checkpoint.preprocessor_config).text
    num_ranks = parallel.tensor_parallel_size
    if not parallel.enable_expert_parallel or text.moe is None:
        return None
    layers = [layer for layer in range(text.num_layers) if text.is_moe_layer(layer)]
    if parallel.expert_placement is not None:
        placement = read_placement(Path(parallel.expert_placement))
        check_fits(placement, layers, text.moe.num_experts, num_ranks)
        return placement
    if parallel.expert_placement_strategy == "linear" or num_ranks == 1:
        return None
    return by_strategy("round_robin", layers, text.moe.num_experts, num_ranks)
