"""Who is let in among the machines of a replica, and what strangers learn."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from glimt.errors import BadSettings
from glimt.processes.cluster import Cluster, listen
from glimt.processes.node_link import (
    Answer,
    Challenge,
    Hello,
    LinkLost,
    NodeLink,
    Proof,
    Reached,
    TryReach,
    TurnedAway,
    Welcome,
    introduce,
)
from glimt.processes.preflight import (
    ClusterSettings,
    Facts,
    checkpoint_facts,
    differences,
    together,
)
from glimt.processes.reach import Door, Where, interface_of

TOKEN = "a token of sixteen or more"
FACTS = Facts(
    versions={"Glimt": "1.0", "torch": "2.11.0"},
    checkpoint={"config.json": "sha256 0123", "model.safetensors": "12 bytes"},
    settings={"dtype": "float32"},
)


class Gathering:
    """A machine 0 that waits for machine 1."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        with listen("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]
        settings = ClusterSettings(
            num_nodes=2, host="127.0.0.1", port=self.port, token=TOKEN, facts=FACTS
        )
        self.cluster = Cluster(settings, num_ranks=4, num_arenas=3)
        self.links: list[NodeLink] = []
        self.doors: list[Door] = []
        self.done: Future[None] = pool.submit(self.cluster.gather)

    def connect(self) -> NodeLink:
        self.links.append(NodeLink(socket.create_connection(("127.0.0.1", self.port))))
        return self.links[-1]

    def join(self, rank: int = 1, facts: Facts = FACTS, *, shut: bool = False) -> NodeLink:
        link = self.connect()
        assert introduce(link, TOKEN) is None
        self.doors.append(Door("127.0.0.1"))
        if shut:
            self.doors[-1].close()
        link.send(Hello(rank, "elsewhere", facts, self.doors[-1].port))
        return link

    def knock(self, link: NodeLink, *failed: str) -> tuple[Where, ...]:
        """Answer machine 0's question whom this machine reaches; the doors that it named."""
        asked = link.receive()
        assert isinstance(asked, TryReach)
        link.send(Reached(failed))
        return asked.doors

    def welcomed(self) -> object:
        """What a machine hears at last that comes and reaches the first."""
        link = self.join()
        self.knock(link)
        return link.receive()


@pytest.fixture
def gathering() -> Iterator[Gathering]:
    with ThreadPoolExecutor(1) as pool:
        gathering = Gathering(pool)
        yield gathering
        if not gathering.cluster.nodes:
            gathering.knock(gathering.join())
        gathering.done.result(10)
        gathering.cluster.close()
        for each in (*gathering.links, *gathering.doors):
            each.close()


def test_a_machine_that_agrees_is_let_in_and_told_where_ranks_meet(gathering: Gathering) -> None:
    link = gathering.join()
    (door,) = gathering.knock(link)
    assert door.name == "node 0"
    assert link.receive() == Welcome(gathering.cluster.meeting_port, num_arenas=3)
    gathering.done.result(10)
    (node,) = gathering.cluster.nodes
    assert (node.name, list(node.ranks)) == ("node 1 (elsewhere)", [2, 3])


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"versions": {"Glimt": "0.9", "torch": "2.11.0"}}, "Glimt: 0.9 there, 1.0 on node 0"),
        ({"versions": {"Glimt": "1.0", "torch": "2.10.0"}}, "torch: 2.10.0 there, 2.11.0 on"),
        ({"checkpoint": {"config.json": "sha256 0123"}}, "model.safetensors: missing there, 12"),
        ({"settings": {"dtype": "bfloat16"}}, "--dtype: bfloat16 there, float32 on node 0"),
        ({"variables": {"NCCL_PROTO": "LL"}}, "NCCL_PROTO: LL there, missing on node 0"),
    ],
    ids=["Glimt", "torch", "checkpoint", "flag", "variable"],
)
def test_a_machine_that_differs_is_told_in_what(
    gathering: Gathering, facts: dict[str, dict[str, str]], named: str
) -> None:
    reply = gathering.join(facts=msgspec.structs.replace(FACTS, **facts)).receive()
    assert isinstance(reply, TurnedAway)
    assert reply.reason.startswith("node 1 (elsewhere) differs from node 0: ")
    assert named in reply.reason
    assert not gathering.done.done()


def test_machines_that_do_not_reach_each_other_are_named_until_they_do(
    gathering: Gathering, caplog: pytest.LogCaptureFixture
) -> None:
    link = gathering.join(shut=True)
    gathering.knock(link, "node 0 at 127.0.0.1 (No route to host)")
    assert isinstance(link.receive(), TryReach)  # again
    (warning,) = (r.getMessage() for r in caplog.records if "reach each other" in r.getMessage())
    assert "node 0 cannot reach node 1 (elsewhere) at 127.0.0.1 (Connection refused)" in warning
    assert "node 1 (elsewhere) cannot reach node 0 at 127.0.0.1 (No route to host)" in warning
    link.close()
    assert isinstance(gathering.welcomed(), Welcome)


def test_of_the_environment_counts_what_decides_how_ranks_talk() -> None:
    environment = {"NCCL_PROTO": "LL", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "INFO", "A": "b"}
    assert together(FACTS, environment).variables == {"NCCL_PROTO": "LL"}


def test_the_interface_of_an_address_is_known() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") == ""  # nobody's: RFC 5737


def test_a_number_that_no_machine_has_is_refused(gathering: Gathering) -> None:
    reply = gathering.join(rank=2).receive()
    assert isinstance(reply, TurnedAway)
    assert "--node-rank must be 1 to 1" in reply.reason


def test_who_does_not_know_the_token_gets_in_nowhere(gathering: Gathering) -> None:
    link = gathering.connect()
    reason = introduce(link, TOKEN[::-1])
    assert reason is not None
    assert "--master-token" in reason
    link.send(Hello(1, "elsewhere", FACTS, 0))
    with pytest.raises(LinkLost):
        link.receive()
    assert not gathering.done.done()


def test_a_proof_that_was_overheard_is_worth_nothing(gathering: Gathering) -> None:
    """The number of the other side is another one each time."""
    first = gathering.connect()
    challenge = first.receive()
    assert isinstance(challenge, Challenge)
    first.send(Answer(bytes(32), bytes(32)))
    assert isinstance(first.receive(), TurnedAway)
    second = gathering.connect()
    again = second.receive()
    assert isinstance(again, Challenge)
    assert again.nonce != challenge.nonce
    second.close()


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 8, b""])
def test_noise_hurts_nobody(gathering: Gathering, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", gathering.port)) as stranger:
        stranger.sendall(noise)
    assert isinstance(gathering.welcomed(), Welcome)


def test_a_machine_that_went_away_before_all_were_there_may_come_again(
    gathering: Gathering,
) -> None:
    gathering.join(rank=2).close()
    assert isinstance(gathering.welcomed(), Welcome)


def test_a_false_machine_0_is_told_nothing() -> None:
    ours, theirs = _tcp_pair()
    link, false = NodeLink(ours), NodeLink(theirs)
    false.send(Challenge(bytes(32)))
    false.send(Proof(bytes(32)))
    with pytest.raises(LinkLost, match="does not know"):
        introduce(link, TOKEN)
    assert isinstance(false.receive(), Answer)
    link.close()
    false.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with listen("127.0.0.1", 0) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(BadSettings, match="an address of node 0 itself"):
        listen("192.0.2.1", 0)


def test_equal_checkpoints_have_equal_facts_wherever_they_lie(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"12 bytes ...")
    here, there = (checkpoint_facts(folder) for folder in folders)
    assert here == there
    (folders[1] / "config.json").write_text("{ }")
    facts = [msgspec.structs.replace(FACTS, checkpoint=checkpoint_facts(f)) for f in folders]
    (line,) = differences(*facts)
    assert line.startswith("the checkpoint's config.json: sha256 ")


def test_weights_that_differ_are_told_apart_at_equal_size(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(10**6))
    before = checkpoint_facts(tmp_path)
    file.write_bytes(bytes(10**6 - 1) + b"1")
    assert checkpoint_facts(tmp_path) != before
