"""Main of a media worker process: decodes and resizes for one server, in a tight corset."""

import os
import warnings

import torch

from glimt.arena import SharedArena
from glimt.log import set_up
from glimt.media.confine import confine
from glimt.media.worker import MediaWorker
from glimt.processes import child
from glimt.processes.control import (
    MediaWorkerStart,
    Ready,
    Stop,
    ToChild,
)
from glimt.processes.control_line import ControlLine, watch
from glimt.transport import Spoke
from glimt.wire import MediaInbound


def run(start: MediaWorkerStart, line: ControlLine[ToChild]) -> None:
    """Work until the supervisor says stop or is gone."""
    warnings.simplefilter("ignore")  # Pillow's opinions on strangers' files
    torch.set_num_threads(1)  # one worker, one core; there are several workers
    arenas = {start.arena: SharedArena(start.arena_fd, start.arena)}
    spoke: Spoke[MediaInbound] = Spoke(start.hub, start.name, MediaInbound)
    watch(line, _on_message)
    confine()
    line.send(Ready())
    MediaWorker(spoke, arenas, start.number).run()


def _on_message(message: object) -> None:
    if isinstance(message, Stop):
        os._exit(0)  # nothing is lost: an unfinished job ends with the server that wanted it


def main() -> None:
    """Entry point of `python -m glimt.processes.media_worker`."""
    start, line = child.begin(MediaWorkerStart, __doc__)
    set_up(start.log_level, as_json=start.log_json, name=f"media-{start.number}")
    run(start, line)


if __name__ == "__main__":
    main()
