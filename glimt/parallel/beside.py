"""`Beside`: work on a second stream of a GPU, while the first one waits for other GPUs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Tensor]


class Beside:
    """A second stream; on a CPU there is none, and work is done in turn.

    What is begun must be joined before anything else is begun. Then memory needs no further care:
    the first stream frees nothing that the second one reads until it has joined it, and the second
    one uses memory again only after it has waited for the first, which has read the results then.
    """

    def __init__(self, device: torch.device) -> None:
        make: Any = torch.cuda.Stream
        self._stream: Any = make(device) if device.type == "cuda" else None

    def begin(self, work: Work) -> Work:
        """Begin `work` after what the current stream was told so far, and give what joins it: its
        result, which the current stream may read from then on. Both may be recorded into a graph.
        """
        if self._stream is None:
            result = work()
            return lambda: result
        first, second = torch.cuda.current_stream(), self._stream
        second.wait_stream(first)
        with torch.cuda.stream(second):
            result = work()

        def join() -> Tensor:
            first.wait_stream(second)
            return result

        return join
