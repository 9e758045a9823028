"""What this program asks of Ray: a cluster, its machines, and places in it."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import ray
from ray.exceptions import AuthenticationError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from glimt.errors import BadSettings
from glimt.placement.layout import Group, RayMachine, Resource
from glimt.placement.seat import Seat

REACH_LIMIT_S = 5.0
REMIND_S = 30.0
HERE_LIMIT_S = 5  # in which Ray gives what is free; Ray takes whole seconds
_QUIET = {"log_to_driver": False, "logging_level": "error", "namespace": "glimt"}
_NODE_ID = "ray.io/node-id"


class Connection(NamedTuple):
    """With which cluster, for people; and whether it was started for this program alone."""

    where: str
    is_own: bool


def connect(num_cpus: int) -> Connection:
    """Join the cluster of RAY_ADDRESS, or the one of this machine; where there is none, start one
    that ends with this process, for `num_cpus` CPU ranks or as many as there are cores.

    Raises BadSettings.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise BadSettings(
            f"RAY_ADDRESS={address}: `glimt serve` must run on a machine of the cluster; there, "
            "leave RAY_ADDRESS out, or set it to the head's own host:port"
        )
    if address not in ("", "auto", "local"):
        _check_reachable(address)
    try:
        if address != "local":
            try:
                ray.init(address=address or "auto", **_QUIET)
                where = f"in the Ray cluster at {ray.get_runtime_context().gcs_address}"
                return Connection(where, is_own=False)
            except ConnectionError:
                if address:
                    raise
        # Else Ray writes one into the user's home, and from then on asks for it everywhere.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        cores = max(num_cpus, os.cpu_count() or 1)
        ray.init(address="local", include_dashboard=False, num_cpus=cores, **_QUIET)
        return Connection("in a Ray cluster of this machine alone, started for it", is_own=True)
    except AuthenticationError:
        raise BadSettings(
            "the Ray cluster asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH unless Ray keeps it in your home"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise BadSettings(f"Ray refuses: {' '.join(str(error).split())}") from None


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_LIMIT_S).close()
    except (OSError, ValueError) as error:
        raise BadSettings(
            f"RAY_ADDRESS={address}: no Ray head answers there ({error}); without RAY_ADDRESS the "
            "cluster of this machine is used, or one is started"
        ) from None


def here() -> str:
    """The id of this machine."""
    return str(ray.get_runtime_context().get_node_id())


def own_address() -> str:
    """The address of this machine that the others know."""
    return str(ray.util.get_node_ip_address())


def has_gpus() -> bool:
    """Whether Ray knows of any."""
    return bool(ray.cluster_resources().get("GPU"))


def machines(resource: Resource) -> list[RayMachine]:
    """Those that are alive."""
    return [
        RayMachine(
            id=node["NodeID"],
            host=_host(node),
            address=node["NodeManagerAddress"],
            total=int(node["Resources"].get(resource, 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def machine_name(node_id: str) -> str:
    """How people call it."""
    for node in ray.nodes():
        if node["NodeID"] == node_id:
            return f"{_host(node)} ({node['NodeManagerAddress']})"
    return node_id


def _host(node: dict[str, Any]) -> str:
    """The name it was started with (`ray start --node-name`), or that of the machine."""
    name, address = str(node.get("NodeName") or ""), node["NodeManagerAddress"]
    return name if name not in ("", address) else str(node["NodeManagerHostname"])


def reserve(group: Group) -> Any:
    """A placement group, which may still be waiting."""
    selectors: list[dict[str, str]] = [{} for _ in group.bundles]
    if group.is_here:
        selectors[0] = {_NODE_ID: here()}
    return placement_group(
        list(group.bundles),
        strategy="STRICT_SPREAD" if len(group.bundles) > 1 else "STRICT_PACK",
        bundle_label_selector=selectors,
    )


def reserve_all(groups: Sequence[Group]) -> list[tuple[Group, Any]]:
    """The placement groups of all copies, as they then are: copies that may move are here only as
    far as there is room now."""
    reserved, has_room = [], True
    for group in groups:
        if group.may_move:
            placed = reserve(group) if has_room else None
            has_room = placed is not None and placed.wait(timeout_seconds=HERE_LIMIT_S)
            if has_room:
                reserved.append((group, placed))
                continue
            if placed is not None:
                remove_placement_group(placed)
            group = replace(group, is_here=False)
        reserved.append((group, reserve(group)))
    return reserved


def wait_for(reserved: Any, group: Group, resource: Resource, say: Callable[[str], None]) -> None:
    """Until Ray has found room, however long it takes."""
    reminded_s = time.monotonic()
    while not reserved.wait(timeout_seconds=1):
        if time.monotonic() - reminded_s > REMIND_S:
            reminded_s = time.monotonic()
            free = ray.available_resources().get(resource, 0)
            have = ", ".join(f"{m.name} has {m.total}" for m in machines(resource))
            each = group.bundles[0][resource]
            say(
                f"waiting for Ray to find {len(group.bundles)} machine(s) with {each:g} free "
                f"{resource}s for copy {group.copy}; {free:g} are free in the cluster, in which "
                f"{have or 'is no machine'}"
            )


def seat(reserved: Any, group: Group, part: int) -> Any:
    """An actor in one of the group's places."""
    bundle = group.bundles[part]
    return Seat.options(
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(reserved, part),
    ).remote()
