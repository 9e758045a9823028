"""Profiler: records what an engine does, operator by operator and kernel by kernel.

The traces are read by chrome://tracing and Perfetto.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from glimt.errors import EngineFailed, InvalidRequest, Unsupported
from glimt.processes.control import ProfilerSettings


class Profiler:
    """Start and stop it in the thread that it is to watch. Without settings it cannot start."""

    def __init__(self, settings: ProfilerSettings | None, name: str = "engine") -> None:
        self._settings = settings
        self._name = name
        self._profile: profile | None = None

    @property
    def is_on(self) -> bool:
        """It records."""
        return self._profile is not None

    def start(self) -> str:
        """Record from now on; gives the folder.

        Raises Unsupported, InvalidRequest, EngineFailed.
        """
        settings = self._settings
        if settings is None:
            raise Unsupported(
                "profiling needs a server started with --profiler-config "
                '\'{"profiler": "torch", "torch_profiler_dir": "/a/folder"}\''
            )
        if self._profile is not None:
            raise InvalidRequest("a profile is being recorded; POST /stop_profile ends it")
        try:
            Path(settings.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineFailed(f"no profile into {settings.folder}: {error.strerror}") from None
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            with_stack=settings.with_stack,
            with_flops=settings.with_flops,
            record_shapes=settings.record_shapes,
            profile_memory=settings.with_memory,
        )
        self._profile.start()
        return settings.folder

    def stop(self) -> Callable[[], str]:
        """Record no more; gives what writes the trace and tells its file. Raises InvalidRequest."""
        settings, recorded = self._settings, self._profile
        if settings is None or recorded is None:
            raise InvalidRequest("no profile is being recorded; POST /start_profile begins one")
        self._profile = None
        recorded.stop()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        suffix = ".json.gz" if settings.gzip else ".json"
        file = Path(settings.folder) / f"{self._name}-{os.getpid()}-{stamp}.pt.trace{suffix}"

        def write() -> str:
            try:
                recorded.export_chrome_trace(str(file))
            except OSError as error:
                raise EngineFailed(f"cannot write {file}: {error.strerror}") from None
            return str(file)

        return write
