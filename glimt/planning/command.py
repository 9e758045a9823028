"""`glimt plan MODEL`, from the arguments to the report."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

from glimt.config import parse_count
from glimt.errors import BadMedia, BadSettings
from glimt.media.sizes import smart_resize
from glimt.models.config import ModelConfig
from glimt.planning.constants import load_constants
from glimt.planning.fit import Room
from glimt.planning.layout import Cluster
from glimt.planning.load import Workload
from glimt.planning.plan import Question, make_plan
from glimt.planning.published import published, published_name
from glimt.planning.report import as_json, print_constants, print_plan
from glimt.planning.serve_line import command_lines, condensed, ray_lines, refusals
from glimt.planning.wishes import PlanWishes
from glimt.wire import ImageSettings

ConfigReader = Callable[[str, str | None], ModelConfig]


def plan(
    model: str, wishes: PlanWishes, read: ConfigReader | None, tell: Callable[[str], None]
) -> int:
    """Do it; the exit status. `read` may be None if the model `is_known`. Raises StartupError."""
    _check(wishes)
    config = published(model) if read is None else read(model, wishes.revision)
    if config is None:
        raise BadSettings(f"the sizes of {model} are not known without its config.json")
    question = _question(config, wishes)
    quantize = wishes.quantization == "fp8" and not config.quantized
    if read is None:
        model = published_name(model) or model  # its owner may have been left out
    made = make_plan(question, model)
    lines = command_lines(made, model, quantize=quantize)
    by_ray = ray_lines(made, model, quantize=quantize)
    refused = refusals(made, model, quantize=quantize)
    if wishes.json:
        tell(json.dumps(as_json(made, model, lines, by_ray, refused), indent=2))
        return 0
    print_plan(made, model, condensed(made, lines), by_ray, refused)
    if wishes.explain:
        print_constants(question.constants, question.gpu.name)
    return 0


def is_known(model: str, wishes: PlanWishes) -> bool:
    """Whether the sizes of `model` are known without reading a file."""
    return wishes.revision is None and not Path(model).is_dir() and published(model) is not None


def _question(config: ModelConfig, wishes: PlanWishes) -> Question:
    constants = load_constants(wishes.constants)
    limit = config.text.max_position_embeddings
    longest = _longest(wishes.max_model_len)
    if longest is not None and longest > limit:
        raise BadSettings(f"--max-model-len {longest:,}: this checkpoint has {limit:,} positions")
    work = Workload(
        input_tokens=wishes.input,
        output_tokens=wishes.output,
        num_images=wishes.images,
        image_tokens=_image_tokens(wishes.image_size),
        chunk=wishes.max_num_batched_tokens,
    )
    if work.request_tokens > (longest or limit):
        raise BadSettings(
            f"a request of {work.request_tokens:,} tokens ({wishes.input:,} of text, "
            f"{work.num_images * work.image_tokens:,} of images, {wishes.output:,} out) is longer "
            f"than {longest or limit:,}"
        )
    return Question(
        config=config,
        gpu=constants.gpu(wishes.gpu),
        cluster=Cluster(wishes.gpus, wishes.nodes),
        work=work,
        room=Room(wishes.gpu_memory_utilization, wishes.max_num_seqs, longest),
        rate=wishes.rate,
        fp8=config.quantized or wishes.quantization == "fp8",
        fp8_kv=wishes.kv_cache_dtype == "fp8",
        constants=constants,
    )


def _check(wishes: PlanWishes) -> None:
    """Raises BadSettings with all problems at once."""
    problems = [
        f"--{name.replace('_', '-')} {getattr(wishes, name)}: must be at least {least}"
        for name, least in (
            ("gpus", 1),
            ("nodes", 1),
            ("input", 1),
            ("output", 1),
            ("images", 0),
            ("max_num_seqs", 1),
            ("max_num_batched_tokens", 1),
        )
        if getattr(wishes, name) < least
    ]
    if wishes.rate is not None and not 0 < wishes.rate < math.inf:
        problems.append(f"--rate {wishes.rate:g}: must be above 0")
    if not 0 < wishes.gpu_memory_utilization <= 1:
        problems.append("--gpu-memory-utilization: must be above 0, at most 1")
    if problems:
        raise BadSettings("these settings cannot be used:", problems)


def _longest(text: str | None) -> int | None:
    if text in (None, "auto", "-1"):
        return None
    try:
        return parse_count(str(text))
    except ValueError as error:
        raise BadSettings(f"--max-model-len: {error}") from None


def _image_tokens(size: str) -> int:
    """Of an image of `size` ("1024x1024"), by the family's preprocessing."""
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", size)
    if match is None or not (int(match[1]) and int(match[2])):
        raise BadSettings(f"--image-size {size}: write width x height, such as 1920x1080")
    settings = ImageSettings()
    try:
        height, width = smart_resize(
            settings.temporal_patch_size, int(match[2]), int(match[1]), settings
        )
    except BadMedia as error:
        raise BadSettings(f"--image-size {size}: {error.message}") from None
    side = settings.patch_size * settings.merge_size
    return (height // side) * (width // side)
