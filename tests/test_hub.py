"""Finding a checkpoint: folders as they are, and downloads from a hub that runs in the test."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from glimt.errors import BadCheckpoint
from glimt.hub import locate

FILES = {
    "config.json": b"{}",
    "chat_template.jinja": b"hi",
    "model.safetensors": b"weights",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"other weights",
    "README.md": b"# hello",
}
COMMIT = "0123456789012345678901234567890123456789"


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers that huggingface_hub asks for. `asked` collects paths."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        headers: dict[str, str] = {}
        status, body = 404, b"{}"
        if path.startswith("/api/models/them/secret"):
            status, headers = 401, {"X-Error-Code": "GatedRepo"}
        elif path.startswith("/api/models/us/tiny/") and "nowhere" in path:
            headers = {"X-Error-Code": "RevisionNotFound"}
        elif path.startswith("/api/models/us/tiny/tree"):
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in FILES.items()
            ]
            status, body = 200, json.dumps(listing).encode()
        elif path.startswith("/api/models/us/tiny"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "us/tiny", "sha": COMMIT, "siblings": siblings}
            status, body = 200, json.dumps(info).encode()
        elif path.startswith("/api/models/"):
            headers = {"X-Error-Code": "RepoNotFound"}
        elif path.startswith(f"/us/tiny/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/us/tiny/resolve/{COMMIT}/")
            status, body = 200, FILES[name]
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Hub,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys, json
from glimt.errors import BadCheckpoint
from glimt.hub import locate
for request in json.loads(sys.argv[1]):
    try:
        print(json.dumps(str(locate(**request))))
    except BadCheckpoint as error:
        print(json.dumps(error.message))
"""


def ask(endpoint: str, cache: Path, *requests: dict[str, object], **env: str) -> list[str]:
    """What `locate` answers in a process with this environment, which is read once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(requests)],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "*", **env},
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_download_takes_data_and_never_code(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    folder, light, gated, missing, revision = ask(
        endpoint,
        tmp_path,
        {"model": "us/tiny"},
        {"model": "us/tiny", "download_dir": str(tmp_path / "elsewhere"), "weights": False},
        {"model": "them/secret"},
        {"model": "us/nothing"},
        {"model": "us/tiny", "revision": "nowhere"},
    )
    names = {"config.json", "chat_template.jinja", "model.safetensors"}
    assert {path.name for path in Path(folder).iterdir()} == names
    assert {path.name for path in Path(light).iterdir()} == names - {"model.safetensors"}
    assert Path(light).is_relative_to(tmp_path / "elsewhere")
    assert not any(path.endswith((".py", ".bin", ".md")) for path in asked)
    assert "gated" in gated
    assert "no repository of that name" in missing
    assert "no revision 'nowhere'" in revision
    # And again without the network.
    cached, absent = ask(
        endpoint, tmp_path, {"model": "us/tiny"}, {"model": "us/other"}, HF_HUB_OFFLINE="1"
    )
    assert cached == folder
    assert "not in the local cache, and HF_HUB_OFFLINE is set" in absent


def test_one_file_can_be_all_that_is_fetched(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    alone, whole = ask(
        endpoint, tmp_path, {"model": "us/tiny", "only": "config.json"}, {"model": "us/tiny"}
    )
    assert alone == whole
    fetched = [path.rpartition("/")[2] for path in asked if "/resolve/" in path]
    assert fetched[0] == "config.json"
    assert "model.safetensors" in fetched[1:], "the rest comes when it is asked for"


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    (answer,) = ask("http://127.0.0.1:9", tmp_path, {"model": "us/tiny"})
    assert "http://127.0.0.1:9 cannot be reached" in answer


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert locate(str(tmp_path / "a")) == tmp_path / "a"
    monkeypatch.chdir(tmp_path)
    assert locate("a/b") == Path("a/b")  # a folder comes before a repository of that name


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./nothing", "~/nothing/at/all", "", "one", "a/b/c"]
)
def test_what_is_neither_folder_nor_repository_is_refused(model: str) -> None:
    with pytest.raises(BadCheckpoint, match="there is no folder"):
        locate(model)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(BadCheckpoint, match="is a file"):
        locate(str(tmp_path / "model.gguf"))
