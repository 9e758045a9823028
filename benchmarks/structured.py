"""Tokens per second of a batch under a grammar against the same batch without one.

    python benchmarks/structured.py [--batch 16] [--tokens 64] [--vocab 151552] [--device cuda]

The whole engine (loop, scheduler, executor) runs a random model; every answer of the constrained
batch is JSON under a schema. Both kinds take turns, and the best of some rounds counts, since other
work on the machine only ever slows a round down. On a CPU the process's own seconds are counted,
on a GPU those of the clock on the wall. The aim is at least 0.9 of the free batch.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cpu_decode import model_parser, random_model

from glimt.engine.constraint import Constraint
from glimt.engine.limits import SchedulerLimits
from glimt.engine.loop import EngineLoop
from glimt.engine.scheduler import Scheduler
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.source import json_schema_grammar
from glimt.grammar.vocabulary import Vocabulary
from glimt.models.glm4v import Glm4v
from glimt.runner.build import ExecutorSizes, build_executor, kv_layout
from glimt.tiny.tokenizer import make_tokenizer
from glimt.wire import EngineInbound, Grammar, Outputs, SamplingParams, Submit

PAGE_SIZE = 16
SCHEMA = {
    "type": "array",
    "minItems": 1000,  # nobody is done before the others
    "items": {
        "type": "object",
        "properties": {
            "label": {"type": "string", "maxLength": 24},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "box": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
            "kind": {"enum": ["cat", "dog", "neither of them"]},
        },
        "required": ["label", "count", "box", "kind"],
        "additionalProperties": False,
    },
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    model = random_model(arguments, getattr(torch, arguments.dtype)).to(device)
    vocabulary = make_vocabulary(arguments.vocab)
    grammar = Grammar(text=json_schema_grammar(SCHEMA))
    best = {"free": 0.0, "constrained": 0.0}
    for number in range(arguments.rounds + 1):
        for kind in best:
            wanted = grammar if kind == "constrained" else None
            speed = tokens_per_s(model, vocabulary, wanted, arguments)
            if number > 0:  # the first round warms up
                best[kind] = max(best[kind], speed)
    print(
        f"structured: {arguments.vocab:,} tokens of vocabulary, batch {arguments.batch}, {device}, "
        f"{arguments.threads} threads: free {best['free']:,.0f} tokens/s "
        f"({1e3 * arguments.batch / best['free']:.2f} ms per step), under a schema "
        f"{best['constrained']:,.0f} tokens/s: {best['constrained'] / best['free']:.3f} of it; "
        f"{host_us(vocabulary, grammar):.0f} µs of the host for each token"
    )


def parse_arguments() -> argparse.Namespace:
    parser = model_parser(__doc__, batch=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def make_vocabulary(size: int) -> Vocabulary:
    """The tiny vocabulary, with random longer tokens up to `size`."""
    rng = random.Random(0)
    file = json.loads(make_tokenizer("4.5").to_str())
    model, added = file["model"], file["added_tokens"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    letters = [token for token in tokens if token.isascii() and token.isalpha()]
    known = set(tokens)
    while len(tokens) + len(added) < size:
        pair = [rng.choice(tokens), rng.choice(letters)]
        token = "".join(pair)
        if token not in known and len(token) < 16:
            known.add(token)
            tokens.append(token)
            model["merges"].append(pair)
    model["vocab"] = {token: place for place, token in enumerate(tokens)}
    for place, token in enumerate(added):
        token["id"] = len(tokens) + place
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(file))
        return Vocabulary.read(path, size)


class Post:
    """Brings all requests at once, counts the tokens of the answers."""

    def __init__(self, submits: Sequence[Submit]) -> None:
        self.waiting: list[EngineInbound] = [*submits]
        self.num_open = len(submits)
        self.num_tokens = 0
        self.began_s = 0.0  # when all had their first token

    def receive(self, timeout_s: float) -> list[EngineInbound]:
        """All of them, once."""
        taken, self.waiting = self.waiting, []
        return taken

    def send(self, server: int, outputs: Outputs) -> None:
        """Count."""
        for output in outputs.outputs:
            if output.error is not None:
                raise SystemExit(output.error.message)
            self.num_tokens += len(output.token_ids)
            self.num_open -= output.finish_reason is not None


def tokens_per_s(
    model: Glm4v, vocabulary: Vocabulary, grammar: Grammar | None, arguments: argparse.Namespace
) -> float:
    """Of decoding, once every answer has begun."""
    batch, length = arguments.batch, 32 + arguments.tokens + 1
    num_pages = batch * -(-(length + 1) // PAGE_SIZE)
    device = model.embedding.weight.device
    layout = kv_layout(model, PAGE_SIZE, model.embedding.weight.dtype, "auto")
    sizes = ExecutorSizes(
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        max_num_seqs=batch,
        max_model_len=length,
        max_patches=4096,
    )
    limits = SchedulerLimits(
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        max_num_seqs=batch,
        max_num_batched_tokens=batch * 32,
        max_model_len=length,
        image_budget=0,
        image_cache_tokens=0,
        prefix_caching=False,
        vocab_size=vocabulary.size,
    )
    scheduler = Scheduler(limits, compiler=GrammarCompiler(vocabulary))
    executor = build_executor(model, layout, sizes, [], device)
    post = Post([request(number, arguments, grammar) for number in range(batch)])
    loop = EngineLoop(scheduler, executor, post, overlap=device.type != "cpu")
    while post.num_tokens < batch:
        loop.turn()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began_s, before = clock(), post.num_tokens
    while post.num_open:
        loop.turn()
    seconds = clock() - began_s
    scheduler.close()
    return (post.num_tokens - before) / seconds


def host_us(vocabulary: Vocabulary, grammar: Grammar) -> float:
    """Median microseconds of one token's mask and its reading, over one random answer."""
    compiler = GrammarCompiler(vocabulary)
    constraint = Constraint(grammar, compiler.start(grammar.text).result(), ())
    compiler.close()
    bits_W = np.empty(constraint.num_words, np.uint32)
    rng = np.random.default_rng(0)
    times_s: list[float] = []
    for _ in range(500):
        began_s = time.perf_counter()
        constraint.fill(bits_W)
        filled_s = time.perf_counter() - began_s
        allowed = np.flatnonzero(np.unpackbits(bits_W.view(np.uint8), bitorder="little"))
        token_id = int(rng.choice(allowed))
        began_s = time.perf_counter()
        constraint.advance(token_id)
        times_s.append(filled_s + time.perf_counter() - began_s)
    return 1e6 * statistics.median(times_s)


def request(number: int, arguments: argparse.Namespace, grammar: Grammar | None) -> Submit:
    token_ids = np.random.default_rng(number).integers(0, 256, 32).astype(np.int32)
    sampling = SamplingParams(
        max_tokens=arguments.tokens, temperature=1.0, seed=number, grammar=grammar
    )
    return Submit(request_id=number, server=0, token_ids=token_ids.tobytes(), sampling=sampling)


if __name__ == "__main__":
    main()
