"""From wishes and a checkpoint to the plan of a server."""

import json
from pathlib import Path

import pytest

from glimt.checkpoint import read_checkpoint
from glimt.config import MediaSettings, ModelSettings, ServerSettings, Settings
from glimt.errors import BadSettings
from glimt.processes.plan import make_plan
from glimt.processes.starting import Plan
from glimt.tiny.checkpoint import make_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def plan_of(model: Path, **groups: object) -> Plan:
    settings = Settings(model=str(model), **groups)  # type: ignore[arg-type]
    return make_plan(settings, read_checkpoint(model))


def rewrite(model: Path, name: str, **changes: object) -> None:
    file = model / name
    content = json.loads(file.read_text())
    for key, value in changes.items():
        content.pop(key, None)
        if value is not None:
            content[key] = value
    file.write_text(json.dumps(content))


def test_every_eos_id_of_both_files_ends_an_answer(tmp_path: Path) -> None:
    model = make_tiny_checkpoint(tmp_path)
    named = json.loads((model / "config.json").read_text())["text_config"]["eos_token_id"]
    rewrite(model, "generation_config.json", eos_token_id=7)
    assert plan_of(model).server.generation_defaults["eos_token_id"] == sorted({7, *named})
    rewrite(model, "generation_config.json", eos_token_id=None)
    assert plan_of(model).server.generation_defaults["eos_token_id"] == sorted(named)


def test_without_sampling_defaults_the_eos_ids_stay(model: Path) -> None:
    plan = plan_of(model, models=ModelSettings(generation_config="vllm"))
    assert list(plan.server.generation_defaults) == ["eos_token_id"]


def test_the_override_lies_over_the_checkpoints_defaults(model: Path) -> None:
    overrides = ModelSettings(override_generation_config='{"temperature": 0.25}')
    defaults = plan_of(model, models=overrides).server.generation_defaults
    assert defaults["temperature"] == 0.25
    assert defaults["top_p"] == plan_of(model).server.generation_defaults["top_p"]


def test_preprocessing_can_be_changed_and_unknown_keys_are_refused(model: Path) -> None:
    smaller = MediaSettings(
        mm_processor_kwargs='{"size": {"longest_edge": 50176}}',
        media_io_kwargs='{"video": {"fps": 1, "num_frames": -1}}',
    )
    plan = plan_of(model, media=smaller)
    assert plan.server.image.max_pixels == 50_176
    assert (plan.server.video.fps, plan.server.video.num_frames) == (1, 0)
    few = MediaSettings(media_io_kwargs='{"video": {"num_frames": 16}}')
    assert plan_of(model, media=few).server.video.num_frames == 16
    for wrong in (
        MediaSettings(mm_processor_kwargs='{"min_pixels": 1}'),
        MediaSettings(mm_processor_kwargs='{"size": {"longest_edge": "big"}}'),
        MediaSettings(media_io_kwargs='{"video": {"num_frames": 0}}'),
        MediaSettings(media_io_kwargs='{"audio": {}}'),
    ):
        with pytest.raises(BadSettings):
            plan_of(model, media=wrong)


def test_media_limits_are_a_number_or_an_object_with_a_count(model: Path) -> None:
    media = MediaSettings(limit_mm_per_prompt='{"image": {"count": 3, "width": 5}, "video": 0}')
    plan = plan_of(model, media=media)
    assert (plan.server.max_images, plan.server.max_videos) == (3, 0)
    with pytest.raises(BadSettings):
        plan_of(model, media=MediaSettings(limit_mm_per_prompt='{"image": "many"}'))


def test_keys_come_from_the_command_line_and_a_file(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("beta\ngamma\n")
    server = ServerSettings(api_key=["alpha"], api_key_file=str(file))
    assert plan_of(model, server=server).server.api_keys == ("alpha", "beta", "gamma")
    file.write_text("\n")
    with pytest.raises(BadSettings):
        plan_of(model, server=server)


def test_a_local_media_folder_must_exist(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSettings):
        plan_of(model, media=MediaSettings(allowed_local_media_path=str(tmp_path / "no")))
