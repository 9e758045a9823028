"""Glimt is installed anew below a running server, of which a process then has to start again."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import glimt
from tests.support.processes import processes_running
from tests.support.serving import Serving

openai = pytest.importorskip("openai")


class Installed(Serving):
    """A server of a copy of Glimt, which can be changed while it runs."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.package = folder / "glimt"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(glimt.__file__).parent, self.package, ignore=ignored)
        within = ("env", f"--chdir={folder}", f"PYTHONPATH={folder}")
        super().__init__(model, log=folder / "log.txt", within=within)

    def upgrade(self, version: str) -> None:
        root = self.package / "__init__.py"
        told = re.sub('__version__ = ".*"', f'__version__ = "{version}"', root.read_text())
        root.write_text(told)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["engine", "server", "media_worker"])
def test_who_is_served_is_served_to_the_end_and_the_server_says_why_it_ends(
    checkpoint: Path, tmp_path: Path, module: str
) -> None:
    with Installed(checkpoint, tmp_path) as serving:
        [child] = processes_running(f"processes.{module}", serving.children())
        assert child.cwd() == str(tmp_path)
        serving.upgrade("99.0.0")
        with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none") as client:
            ask: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
            stream = client.chat.completions.create(
                **ask, stream=True, max_tokens=300, extra_body={"ignore_eos": True}
            )
            next(stream)
            os.kill(child.pid, signal.SIGKILL)
            if module == "media_worker":
                chunks = list(stream)
                assert chunks[-1].choices[0].finish_reason == "length"
        assert serving.process.wait(60) == 2
        log = serving.log.read_text()
    cause = "this process is of Glimt 99.0.0, the running glimt serve that starts it of "
    assert f"{cause}{glimt.__version__}: " in log
    assert "Traceback" not in log
