"""A Ray Serve application: whole Glimt servers, as many as their queues of prompt tokens ask for.

    serve run glimt.placement.serve_app:app command="zai-org/GLM-4.5V-FP8 -tp 4" max_replicas=4

Each replica of Ray's is a server of its own on one machine, with `-tp` × `-dp` of its GPUs
(`placement/replica.py`).
"""

from typing import Any

from glimt.placement.orders import encode
from glimt.placement.scaling import wanted_servers
from glimt.placement.serve_arguments import arguments_of, resources, server_settings

try:
    from ray import serve

    from glimt.placement.replica import Replica
except ImportError as error:
    raise ImportError(f"{error}; Ray Serve comes with pip install 'glimt[ray]'") from error

HEALTH_PERIOD_S = 2.0  # Ray asks three times before it replaces a server
_FREE_OF_RAYS_LIMITS = 1_000_000  # requests at one server, which has limits of its own


def app(args: dict[str, Any]) -> Any:
    """The application, for `import_path: glimt.placement.serve_app:app`.

    Raises BadSettings for arguments and flags that cannot be.
    """
    arguments = arguments_of(args)
    settings = server_settings(arguments.command)
    deployment = serve.deployment(
        name="glimt",
        health_check_period_s=HEALTH_PERIOD_S,
        max_ongoing_requests=_FREE_OF_RAYS_LIMITS,
        graceful_shutdown_timeout_s=settings.server.shutdown_timeout + 30.0,
        ray_actor_options=resources(settings),
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "upscale_delay_s": arguments.upscale_delay_s,
            "downscale_delay_s": arguments.downscale_delay_s,
            "look_back_period_s": arguments.look_back_period_s,
            "policy": {"policy_function": f"{wanted_servers.__module__}:{wanted_servers.__name__}"},
        },
    )
    return deployment(Replica).bind(encode(settings), arguments.queued_tokens)
