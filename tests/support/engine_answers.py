"""The tokens that an engine answers a fixed set of requests with, in a process that may hang.

    python -m tests.support.engine_answers CHECKPOINT OUT '{"dtype": "float32", "parallel": {…}}'

Says on stderr what it is doing; `answers_of` runs it, within a time.
"""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from glimt.checkpoint import read_checkpoint
from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    Settings,
)
from glimt.grammar.source import regex_grammar
from glimt.offline.engine_thread import EngineThread
from glimt.processes.build import build_engine
from glimt.processes.plan import make_plan
from glimt.wire import Grammar, Outputs
from tests.support.tiny_model import Album, Ask, make_ask

LIMIT_S = 60.0  # of one engine, from its start to its last answer
ANSWERS_LIMIT_S = 30.0  # of requests that run side by side

# All answers of one engine, by the number of the request, in four rounds.
Rounds = list[dict[int, list[int]]]


def make_asks(album: Album) -> list[Ask]:
    """Short and long prompts, images, a video; greedy, drawn, penalised, under a grammar."""
    return [
        make_ask(album, "t", 1, max_tokens=32),
        make_ask(album, "ttttttttttttttttttttttttttt", 2, max_tokens=32),
        make_ask(album, "tititbt", 3, max_tokens=32),
        make_ask(album, "tvt", 4, max_tokens=32, logprobs=2),
        make_ask(album, "ttt", 5, max_tokens=32, temperature=1.0, top_p=0.9, top_k=50),
        make_ask(album, "tbt", 6, max_tokens=32, temperature=0.8, repetition_penalty=1.2),
        make_ask(
            album,
            "tt",
            7,
            max_tokens=12,
            temperature=1.0,
            eos_token_ids=(602,),
            grammar=Grammar(text=regex_grammar("[0-9]{3}-[a-f]{2}")),
        ),
    ]


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


class Answers:
    """Runs an engine and collects what it says."""

    def __init__(self, folder: Path, wishes: Mapping[str, Any]) -> None:
        album = Album()
        self._asks = make_asks(album)
        settings = Settings(
            model=str(folder),
            models=ModelSettings(
                dtype=wishes["dtype"],
                max_model_len="512",
                enforce_eager=wishes.get("eager", False),
            ),
            # Little memory, measured by nobody: others may use the GPUs at the same time.
            cache=CacheSettings(
                device=wishes["device"], kv_cache_memory_bytes="64M", max_num_seqs=8
            ),
            parallel=ParallelSettings(**wishes.get("parallel", {})),
            media=MediaSettings(**wishes.get("media", {})),
        )
        plan = make_plan(settings, read_checkpoint(folder))
        start = msgspec.structs.replace(plan.engine, arena_fds=(album.arena.fd,))
        engine = build_engine(start, [album.arena], say)
        self._tokens: defaultdict[int, list[int]] = defaultdict(list)
        self._ended: set[int] = set()
        self._change = threading.Condition()
        self._is_dead = False
        self._thread = EngineThread(engine, self._take, self._die)

    def all_rounds(self) -> Rounds:
        """Alone, then all together, then again with caches warm."""
        everything = range(len(self._asks))
        return [self.of(0), self.of(6), self.of(*everything), self.of(*everything)]

    def of(self, *numbers: int) -> dict[int, list[int]]:
        """The answers to these requests, which run side by side."""
        say("requests", *numbers)
        self._tokens.clear()
        self._ended.clear()
        for number in numbers:
            self._thread.post(self._asks[number].submit(number))
        with self._change:
            self._change.wait_for(
                lambda: self._is_dead or len(self._ended) == len(numbers), ANSWERS_LIMIT_S
            )
            missing = sorted({*numbers} - self._ended)
        if self._is_dead or missing:
            how = "the engine died" if self._is_dead else f"{ANSWERS_LIMIT_S:.0f} s were over"
            counts = {number: len(tokens) for number, tokens in self._tokens.items()}
            raise SystemExit(f"{how}: requests {missing} have no end; tokens so far: {counts}")
        return dict(self._tokens)

    def _take(self, outputs: Outputs) -> None:
        with self._change:
            for output in outputs.outputs:
                if output.error is not None:
                    say(f"request {output.request_id}: {output.error}")
                    self._is_dead = True
                self._tokens[output.request_id] += output.token_ids
                if output.finish_reason is not None:
                    self._ended.add(output.request_id)
            self._change.notify_all()

    def _die(self) -> None:
        with self._change:
            self._is_dead = True
            self._change.notify_all()


def answers_of(
    checkpoint: Path, folder: Path, *, limit_s: float = LIMIT_S, **wishes: Any
) -> Rounds:
    """What an engine of its own answers. AssertionError, with what it was doing, if it fails or is
    not done within `limit_s`; nothing of it is left then.
    """
    folder.mkdir(parents=True)
    out, log = folder / "answers.json", folder / "log.txt"
    command = [sys.executable, "-m", "tests.support.engine_answers", str(checkpoint), str(out)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, json.dumps({**wishes, "limit_s": limit_s})],
            stderr=output,
            start_new_session=True,
        )
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its peers end with it
        process.wait()
    how = f"not done after {limit_s:.0f} s" if status is None else f"exit status {status}"
    assert status == 0, f"{how}; {wishes}; what it said:\n{log.read_text()[-6000:]}"
    rounds = json.loads(out.read_text())
    return [{int(number): tokens for number, tokens in one.items()} for one in rounds]


def main() -> None:
    """One engine, all rounds."""
    folder, out, wishes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    # Shortly before the end of the time, show where each thread is.
    faulthandler.dump_traceback_later(0.9 * wishes["limit_s"])
    rounds = Answers(folder, wishes).all_rounds()
    out.write_text(json.dumps(rounds))
    say("done")
    os._exit(0)  # its peers end with it; how engines end is tested elsewhere


if __name__ == "__main__":
    main()
