"""`--smoke`: how fast this machine trains, and where the time goes. Writes nothing."""

import time
from collections.abc import Callable, Sequence

import torch

from training.batches import Feed, open_feed
from training.network import Batch
from training.options import Options
from training.replay import Replay
from training.shape import make_shape, read_tokenizer
from training.supply import Supply, to_device
from training.trainer import Trainer, both_losses

COUNTS = (1, 2, 4, 8)  # micro-batches of a step
DATA_S, STEPS_S = 15.0, 8.0


def smoke(options: Options) -> None:
    """Measure data alone, steps of several sizes with data, and the parts of a step."""
    shape = make_shape(options.preset, read_tokenizer(options.tokenizer))
    feed = open_feed(options.source, options.budget, options.workers, 0, {})
    try:
        trainer = Trainer(shape.config, options.device, options.recipe, compiled=options.compiled)
        print(f"device: {trainer.device}, {trainer.dtype}; {trainer.attention}", flush=True)
        batches = _data(feed, options.device)
        for count in COUNTS:
            _steps(trainer, feed, options, count)
        _parts(trainer, batches)
    finally:
        feed.close()


def _data(feed: Feed, device: torch.device) -> list[Batch]:
    """Print the rate of data alone; returns some of it."""
    batches: list[Batch] = []
    first = feed.take(0.5, block=True)  # starting the workers is not counted
    if first is not None:
        batches.append(to_device(first.packed, device))
    started = time.perf_counter()
    arrivals = samples = tokens = patches = 0
    while time.perf_counter() - started < DATA_S:
        arrival = feed.take(0.5, block=True)
        if arrival is None:
            continue
        counts = arrival.packed.counts
        arrivals, samples = arrivals + 1, samples + counts.samples
        tokens, patches = tokens + counts.tokens, patches + counts.patches
        if len(batches) < max(COUNTS):
            batches.append(to_device(arrival.packed, device))
    seconds = time.perf_counter() - started
    print(
        f"data alone: {arrivals / seconds:.1f} micro-batches/s, {samples / seconds:.0f} samples/s; "
        f"a micro-batch has {samples / max(arrivals, 1):.0f} samples, "
        f"{tokens / max(arrivals, 1):.0f} tokens, {patches / max(arrivals, 1):.0f} patches",
        flush=True,
    )
    return batches


def _steps(trainer: Trainer, feed: Feed, options: Options, count: int) -> None:
    """Print the rate of steps of `count` micro-batches, data included."""
    replay = Replay[Batch](options.replay_bytes, options.max_reuse)
    supply = Supply(feed, replay, options.device, 0)
    for _ in range(2):
        trainer.train(supply.draw(count, 0.5), 0.0)
    before = supply.tally.samples, supply.tally.fresh, supply.tally.used, supply.tally.wait_s
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < STEPS_S:
        trainer.train(supply.draw(count, 0.5), 0.0)
        steps += 1
    seconds, tally = time.perf_counter() - started, supply.tally
    used = max(tally.used - before[2], 1)
    memory = torch.cuda.max_memory_allocated() / 1e9 if options.device.type == "cuda" else 0.0
    print(
        f"{count} micro-batches a step: {steps / seconds:.2f} steps/s, "
        f"{(tally.samples - before[0]) / seconds:.0f} samples/s, fresh "
        f"{100 * (tally.fresh - before[1]) / used:.0f} %, waiting for data "
        f"{100 * (tally.wait_s - before[3]) / seconds:.0f} %, memory {memory:.1f} GB",
        flush=True,
    )


def _parts(trainer: Trainer, batches: Sequence[Batch]) -> None:
    """Print the time of tower, decoder and optimizer for one micro-batch, each by itself."""
    network = trainer.network.train()
    batch = next((b for b in batches if b.counts.pictures), batches[0])

    def tower() -> None:
        images = network.encode(batch)
        if images is not None:
            images.float().square().mean().backward()  # type: ignore[no-untyped-call]

    def decoder() -> None:
        hidden = trainer.network.config.text.hidden_size
        rows = batch.counts.patches // 4
        images = torch.zeros(rows, hidden, device=trainer.device, dtype=trainer.dtype)
        loss = network.decode(batch, images if rows else None).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]

    def collect() -> None:
        trainer.weights.collect_gradients()

    def optimizer() -> None:
        trainer.optimizer.step()
        trainer.weights.update_average(0.999)
        trainer.weights.publish()

    def whole() -> None:
        sum(both_losses(network, batch)).backward()  # type: ignore[union-attr]

    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    parts: dict[str, Callable[[], None]] = {
        "tower": tower,
        "decoder": decoder,
        "both with loss": whole,
        "gradients to float32": collect,
        "optimizer and averages": optimizer,
    }
    counts = batch.counts
    print(f"one micro-batch ({counts.tokens} tokens, {counts.patches} patches):")
    for name, part in parts.items():
        launched, finished = _timed(part, trainer.device)
        print(f"  {name:<24} {1e3 * finished:7.2f} ms, of which launching {1e3 * launched:.2f} ms")


def _timed(part: Callable[[], None], device: torch.device, repeats: int = 5) -> tuple[float, float]:
    """(seconds until the call returned, until the device was done), the mean of some calls."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    part()
    launched = finished = 0.0
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        part()
        launched += time.perf_counter() - started
        wait()
        finished += time.perf_counter() - started
    return launched / repeats, finished / repeats
