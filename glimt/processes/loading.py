"""Where a rank's model lies and what it is made of: its device, its number type, its weights."""

from pathlib import Path

import torch

from glimt.errors import BadSettings
from glimt.models.config import ModelConfig
from glimt.models.dummy import fill_dummy
from glimt.models.glm4v import Glm4v
from glimt.models.names import Share, fp8_modules
from glimt.models.weights import inspect, load
from glimt.parallel.mesh import Mesh
from glimt.processes.control import EngineStart
from glimt.processes.ranks import ALONE, Place


def pick_device(wish: str, place: Place = ALONE) -> torch.device:
    """auto takes GPUs if there are any, the rank's one each. Raises BadSettings."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise BadSettings("--device cuda: torch sees no GPU (driver, CUDA_VISIBLE_DEVICES?)")
    if wish == "cuda" or (wish == "auto" and torch.cuda.is_available()):
        needed, there = place.first_gpu + place.num_here, torch.cuda.device_count()
        if there < needed:
            raise BadSettings(
                f"{needed} GPUs are needed and torch sees {there} (CUDA_VISIBLE_DEVICES?): use a "
                "smaller --tensor-parallel-size or --data-parallel-size"
            )
        torch.cuda.set_device(place.gpu)
        return torch.device("cuda", place.gpu)
    return torch.device("cpu")


def pick_dtype(wish: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """auto: the checkpoint's type on a GPU; float32 on a CPU, which is as fast and exact."""
    names = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if wish == "auto":
        return torch.float32 if device.type == "cpu" else names[config.dtype]
    return names[wish]


def load_weights(
    start: EngineStart,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    mesh: Mesh = Mesh.single(),  # noqa: B008 (a frozen value)
) -> tuple[Glm4v, str]:
    """This rank's part of the model with its weights, and their format. Raises BadCheckpoint, and
    BadSettings where sizes cannot be split over the ranks.
    """
    wants_fp8 = start.quantization == "fp8"
    if start.load_format == "dummy":
        fp8 = fp8_modules(config) if wants_fp8 or config.quantized else frozenset[str]()
        with torch.device("meta"):
            model = Glm4v(config, mesh, fp8=fp8)
        fill_dummy(model, device, dtype, start.seed)
        return model, "random, fp8" if fp8 else "random"
    plan = inspect(
        Path(start.model_path),
        config,
        quantization="fp8" if wants_fp8 else None,
        share=Share.of(mesh),
    )
    with torch.device("meta"):
        model = Glm4v(config, mesh, fp8=plan.fp8)
    load(model, plan, device, dtype, progress=mesh.tp_rank == 0)
    return model, plan.format
