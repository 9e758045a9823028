"""From wishes to a running server: find the checkpoint, bind the port, plan, supervise.

Everything that can be refused is refused here, before any child starts and any weight is read.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glimt import __version__
from glimt.builtin.defaults import with_defaults
from glimt.checkpoint import read_checkpoint
from glimt.config import Settings, parse_object
from glimt.config_check import check
from glimt.copies import copies_of
from glimt.errors import BadSettings
from glimt.hub import locate
from glimt.placement.orders import wants_ray
from glimt.placement.placer import Placer
from glimt.processes.folders import remove_stale_folders
from glimt.processes.media_plan import max_tokens
from glimt.processes.node import serve_node
from glimt.processes.plan import make_plan
from glimt.processes.starting import Plan
from glimt.processes.supervisor import Supervisor


def serve(settings: Settings, say: Callable[[str], None]) -> int:
    """Run `glimt serve`; the exit status. Raises StartupError."""
    settings = with_defaults(settings)
    say(f"glimt {__version__}: {settings.model}")
    check(settings)
    remove_stale_folders()
    parallel = settings.parallel
    if wants_ray(parallel):
        with bind(settings) as listener, Placer(settings, say) as placer:
            return _answer(placer.settings, listener, say)
    if parallel.node_rank or copies_of(parallel).role == "node":
        return _compute(settings, say)
    with bind(settings) as listener:
        return _answer(settings, listener, say)


def _answer(settings: Settings, listener: socket.socket, say: Callable[[str], None]) -> int:
    """Serve HTTP on this machine."""
    for note in check(settings):
        say(f"  note: {note}")
    plan = resolve(settings, say)
    for line in (*describe(settings), f"resolved: {resolved(plan)}"):
        say(f"  {line}")
    return asyncio.run(_supervise(plan, listener, say))


def _compute(settings: Settings, say: Callable[[str], None]) -> int:
    """Work for a machine that has HTTP."""
    for note in check(settings):
        say(f"  note: {note}")
    plan = resolve(settings, say)
    if settings.parallel.node_rank:
        return serve_node(plan.engine, settings.parallel.node_rank, say)
    return asyncio.run(_supervise(plan, None, say))


def resolve(settings: Settings, say: Callable[[str], None]) -> Plan:
    """Find or download the checkpoint and plan. `settings` are checked. Raises StartupError."""
    models = settings.models
    path = locate(
        settings.model,
        revision=models.revision,
        download_dir=models.download_dir,
        weights=models.load_format != "dummy",
    )
    checkpoint = read_checkpoint(path, overrides=parse_object(models.hf_overrides))
    for note in checkpoint.notes:
        say(f"  note: {note}")
    return make_plan(settings, checkpoint)


async def _supervise(plan: Plan, listener: socket.socket | None, say: Callable[[str], None]) -> int:
    return await Supervisor(plan, listener, say).run()


def bind(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything slow happens. Raises BadSettings."""
    server = settings.server
    if server.uds is not None:
        family = socket.AF_UNIX
        if Path(server.uds).is_socket():  # of a server that was killed; never any other file
            Path(server.uds).unlink()
    else:
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if server.uds is None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(server.uds or (server.host, server.port))
    except OSError as error:
        listener.close()
        where = server.uds or f"{server.host}:{server.port}"
        why = str(error.strerror)
        if error.errno == errno.EADDRINUSE:
            flag = "--port" if server.uds is None else "--uds"
            why += f"; stop what is there, or give another {flag}"
        raise BadSettings(f"cannot listen on {where}: {why}") from None
    listener.listen(2048)
    return listener


def describe(settings: Settings) -> list[str]:
    """The settings that are not at their default, one line a group."""
    lines = []
    for name in ("models", "cache", "media", "parallel", "server"):
        group = getattr(settings, name)
        defaults = type(group)()
        changed = [
            f"{field.replace('_', '-')}={_shown(field, getattr(group, field))}"
            for field in group.__dataclass_fields__
            if getattr(group, field) != getattr(defaults, field)
        ]
        if changed:
            lines.append(f"{name}: {', '.join(changed)}")
    return lines


def resolved(plan: Plan) -> str:
    """What the server half made of wishes and checkpoint. The engine says its own half."""
    server = plan.server
    sampling = " ".join(
        f"{name}={value}" for name, value in sorted(server.generation_defaults.items())
    )
    fields = {
        "model_path": server.model_path,
        "media_workers": plan.num_media_workers,
        "media_cache": f"{plan.arena_bytes / 2**30:.2f} GiB",
        "images": f"{server.max_images} of at most {max_tokens(server.image)} tokens",
        "videos": f"{server.max_videos} of at most {max_tokens(server.video)} tokens",
        "frames": f"{server.video.sampler}, {server.video.fps:g} fps",
        "api_keys": len(server.api_keys),
        "admin_keys": len(server.admin_keys),
        "sampling defaults": sampling,
    }
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _shown(field: str, value: Any) -> str:
    return "(hidden)" if field in ("api_key", "admin_key", "master_token") else str(value)
