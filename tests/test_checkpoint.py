"""The files around the weights: what is read, what is refused, and with which words."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimt.checkpoint import checkpoint_file, read_checkpoint, read_json
from glimt.errors import BadCheckpoint
from glimt.tiny.checkpoint import make_tiny_checkpoint


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy without weights, free to be damaged."""
    out = tmp_path / "model"
    shutil.copytree(original, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    return out


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


def test_a_whole_checkpoint_is_read_without_notes(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.notes == ()
    assert checkpoint.config["model_type"] == "glm4v_moe"
    assert checkpoint.generation_config["top_k"] == 1
    assert checkpoint.chat_template == (folder / "chat_template.jinja").read_text()
    assert checkpoint.tokenizer_path == folder / "tokenizer.json"
    assert (checkpoint.image.min_pixels, checkpoint.image.max_pixels) == (12544, 2 * 64 * 784)
    assert checkpoint.video.max_pixels == 2 * 256 * 784
    assert checkpoint.image.sampler == checkpoint.video.sampler == "glm4v"


def test_the_processor_class_chooses_the_rules_for_frames(folder: Path) -> None:
    edit(
        folder / "video_preprocessor_config.json",
        video_processor_type="Glm46VVideoProcessor",
        processor_class="Glm46VProcessor",
    )
    assert read_checkpoint(folder).video.sampler == "glm46v"


def test_without_preprocessor_files_the_familys_numbers_hold_and_are_noted(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    (folder / "video_preprocessor_config.json").unlink()
    checkpoint = read_checkpoint(folder)
    assert checkpoint.image.max_pixels == 9_633_792
    assert checkpoint.video.max_pixels == 47_040_000
    assert len(checkpoint.notes) == 3


def test_a_processor_config_of_newer_tools_is_understood(folder: Path) -> None:
    images = json.loads((folder / "preprocessor_config.json").read_text())
    videos = json.loads((folder / "video_preprocessor_config.json").read_text())
    before = read_checkpoint(folder)
    (folder / "preprocessor_config.json").unlink()
    (folder / "video_preprocessor_config.json").unlink()
    both = {"image_processor": images, "video_processor": videos, "processor_class": "Glm4vProc"}
    (folder / "processor_config.json").write_text(json.dumps(both))
    after = read_checkpoint(folder)
    assert (after.image, after.video, after.notes) == (before.image, before.video, ())


@pytest.mark.parametrize("shape", ["string", "list"])
def test_a_chat_template_may_lie_in_tokenizer_config(folder: Path, shape: str) -> None:
    (folder / "chat_template.jinja").unlink()
    assert read_checkpoint(folder).chat_template is None
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    edit(folder / "tokenizer_config.json", chat_template="yes" if shape == "string" else named)
    assert read_checkpoint(folder).chat_template == "yes"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named_with_the_cure(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadCheckpoint, match=rf"{name} is missing; copy it"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": NaN}', b"[1, 2]", b"\xff\xfe\x00", b"[" * 200_000, b"null"],
    ids=["empty", "cut", "nan", "list", "not-text", "deep", "null"],
)
def test_a_damaged_json_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "generation_config.json").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json"):
        read_checkpoint(folder)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.dictionaries(
        st.sampled_from(
            ["size", "patch_size", "merge_size", "fps", "resample", "rescale_factor", "do_resize"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.just("longest_edge"), inner),
            max_leaves=3,
        ),
    )
)
def test_any_preprocessor_file_is_used_or_refused_with_a_message(
    folder: Path, values: dict[str, Any]
) -> None:
    text = json.dumps(values).replace("Infinity", "1e999")  # legal JSON, read as infinity
    (folder / "video_preprocessor_config.json").write_text(text)
    try:
        checkpoint = read_checkpoint(folder)
    except BadCheckpoint:
        return
    assert 0 < checkpoint.video.min_pixels <= checkpoint.video.max_pixels
    assert checkpoint.video.patch_size == 14
    assert checkpoint.video.fps > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": {"shortest_edge": 10, "longest_edge": 9}}, "shortest_edge is larger"),
        ({"size": {"longest_edge": "big"}}, "longest_edge must be a number"),
        ({"patch_size": 16}, "patch_size is 16 for the preprocessor, 14 in vision_config"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"resample": 2}, "not bicubic"),
        ({"rescale_factor": 1.0}, "not 1/255"),
    ],
)
def test_a_preprocessor_that_would_give_other_pixels_is_refused(
    folder: Path, change: dict[str, Any], words: str
) -> None:
    edit(folder / "preprocessor_config.json", **change)
    with pytest.raises(BadCheckpoint, match=words):
        read_checkpoint(folder)


def test_overrides_lie_over_the_config_object_by_object(folder: Path) -> None:
    before = read_checkpoint(folder).config
    after = read_checkpoint(folder, {"text_config": {"num_hidden_layers": 1}, "new": 2}).config
    assert after["text_config"].pop("num_hidden_layers") == 1
    assert before["text_config"].pop("num_hidden_layers") == 3
    assert after == {**before, "new": 2}


# ------------------------------------------------------------------------------ path safety


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/etc/hosts", "a/b.json", "a\nb", "a\0b", "", ".", "..", ".hidden", "ä"],
)
def test_a_name_that_is_not_a_plain_file_name_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(BadCheckpoint, match="not the name of a file"):
        checkpoint_file(folder, name)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(secret)
    with pytest.raises(BadCheckpoint, match="leads out of the folder"):
        read_checkpoint(folder)


def test_a_dangling_link_is_refused_even_for_an_optional_file(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("nowhere")
    with pytest.raises(BadCheckpoint, match="link to nothing"):
        read_checkpoint(folder)


def test_links_into_the_hub_caches_blobs_are_followed(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"hash{number}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    assert read_checkpoint(snapshot).image == read_checkpoint(folder).image


def test_a_pipe_is_refused_without_opening_it(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(BadCheckpoint, match="not a regular file"):
        read_checkpoint(folder)


def test_reading_a_missing_json_names_it(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"nothing\.json is missing"):
        read_json(tmp_path / "nothing.json")
