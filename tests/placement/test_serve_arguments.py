"""What a Ray Serve application may be told."""

import re

import pytest

from glimt.errors import BadSettings
from glimt.placement.serve_arguments import Arguments, arguments_of, resources, server_settings


def test_numbers_may_be_text_as_on_a_command_line() -> None:
    found = arguments_of({"command": "m", "max_replicas": "4", "upscale_delay_s": "1.5"})
    assert found == Arguments(command="m", max_replicas=4, upscale_delay_s=1.5)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"model": "m"}, "unknown field `model`"),
        ({"max_replicas": "many"}, "$.max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas <= max_replicas"),
        ({"min_replicas": 0}, "1 <= min_replicas"),
        ({"queued_tokens": 0}, "queued_tokens must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_named(args: dict[str, object], said: str) -> None:
    with pytest.raises(BadSettings, match=re.escape(said)):
        arguments_of(args)


def test_the_command_is_that_of_glimt_serve() -> None:
    settings = server_settings("org/model -tp 2 -dp 2 --max-model-len 64K --api-key 'a b'")
    assert settings.model == "org/model"
    assert settings.models.max_model_len == "64K"
    assert settings.server.api_key == ["a b"]
    assert resources(settings) == {"num_cpus": 1.0, "num_gpus": 4.0}
    assert resources(server_settings("m -tp 2 --device cpu")) == {"num_cpus": 2.0}
    assert server_settings("").model, "the model that comes with Glimt"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("m --max-len 5", "Unknown option"),
        ("m --config a.toml", "--config: give its options as flags"),
        ("m -tp 0", "--tensor-parallel-size 0: must be at least 1"),
        ("m -dp 2 --data-parallel-backend ray", "Ray Serve places whole servers"),
        ("m -tp 2 --nnodes 2", "each server is on one machine"),
        ("m --headless", "each server is on one machine"),
        ("m --uds /tmp/a", "--uds: Ray Serve listens"),
        ("m --ssl-certfile a", "--ssl-certfile: Ray Serve listens"),
    ],
)
def test_flags_that_are_not_for_one_server_are_refused(command: str, said: str) -> None:
    with pytest.raises(BadSettings, match=re.escape(said)):
        server_settings(command)
