"""A child process of another version of Glimt than its parent says so, and nothing else."""

import socket
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from glimt import __version__
from glimt.processes.control import FirstMessage, Refused, Stop, first_message
from glimt.processes.control_line import pair, parent_line

UNKNOWN = msgspec.Raw(msgspec.msgpack.encode({"type": "server_start", "shape": [1, 2]}))
FIRST: list[tuple[Any, str]] = [
    (FirstMessage(glimt="0.0.9", start=UNKNOWN), "of 0.0.9:"),
    # Before versions were told, the start itself was the first message.
    ({"type": "server_start", "index": 0, "inbox": "ipc://x"}, "of an older version:"),
    (FirstMessage(glimt=__version__, start=UNKNOWN), "of another state of its code:"),
    ([1, 2], "of another state of its code:"),
]


def started(line: socket.socket) -> "subprocess.Popen[bytes]":
    """A child that reads this end of its line."""
    return subprocess.Popen(
        [sys.executable, "-m", "glimt.processes.muster", "--control-fd", str(line.fileno())],
        pass_fds=(line.fileno(),),
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(("first", "whose"), FIRST, ids=range(len(FIRST)))
def test_a_child_of_another_version_says_so_plainly(first: Any, whose: str) -> None:
    ours, theirs = pair()
    with theirs:
        child = started(theirs)
    ours.send(msgspec.msgpack.encode(first))
    with child, ours:
        said = parent_line(ours).receive()
        assert child.stderr is not None
        assert (child.stderr.read(), child.wait(10)) == (b"", 2)
    assert isinstance(said, Refused)
    assert said.message.startswith(f"this process is of Glimt {__version__}, the running glimt")
    assert whose in said.message
    assert said.message.endswith("stop glimt serve and start it again")


def test_a_child_whose_parent_is_gone_leaves() -> None:
    ours, theirs = pair()
    ours.close()
    with theirs:
        child = started(theirs)
    with child:
        assert child.stderr is not None
        assert (child.stderr.read(), child.wait(10)) == (b"", 1)


def test_the_form_of_the_first_message_is_that_of_all_versions() -> None:
    """Others must be able to read it, and it theirs: this test is not to be changed."""
    told = msgspec.msgpack.decode(msgspec.msgpack.encode(first_message(Stop())))
    assert told == {"glimt": __version__, "start": {"type": "stop"}}
