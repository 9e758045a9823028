"""The flags of `python -m training.train`."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from training.export import TEMPLATE, TOKENIZER
from training.packing import Budget
from training.shape import PRESETS
from training.trainer import Recipe


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is told."""

    preset: str
    out: Path
    minutes: float
    steps: int | None  # in place of minutes
    resume: bool
    init: Path | None  # weights to begin with
    begin: float  # share of the schedule that they have behind them
    stop_after_s: float
    source: str
    tokenizer: Path
    template: Path
    workers: int
    budget: Budget
    micro_batches: int
    replay_bytes: int
    max_reuse: int
    eval_every_s: float
    eval_samples: int
    checkpoint_every_s: float
    log_every_s: float
    compiled: bool
    smoke: bool
    device: torch.device
    recipe: Recipe


def read_options(arguments: list[str] | None = None) -> Options:
    """Parse the command line; argparse ends the program with a message if it is wrong."""
    given = _parser().parse_args(arguments)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    replay_gb = given.replay_gb or (20.0 if device.type == "cuda" else 0.5)
    recipe = Recipe(
        learning_rate=given.learning_rate,
        betas=(0.9, given.beta2),
        weight_decay=given.weight_decay,
        max_norm=given.clip,
        average_decay=given.average_decay,
        balance_rate=given.balance_rate,
        seed=given.seed,
        # A new optimizer knows no scale yet, and the sight's head is not among exported weights.
        ramp_steps=0 if given.init is None else 100,
        sight=1.0 if given.init is None else 0.0,
    )
    return Options(
        preset=given.preset,
        out=given.out,
        minutes=given.minutes,
        steps=given.steps,
        resume=given.resume,
        init=given.init,
        begin=given.begin,
        stop_after_s=given.stop_after_s,
        source=given.source,
        tokenizer=given.tokenizer,
        template=given.template,
        workers=given.workers,
        budget=_budget(device, given.tokens, given.patches),
        micro_batches=given.micro_batches,
        replay_bytes=int(replay_gb * 1e9),
        max_reuse=given.max_reuse,
        eval_every_s=given.eval_every_s,
        eval_samples=given.eval_samples,
        checkpoint_every_s=given.checkpoint_every_s,
        log_every_s=given.log_every_s,
        compiled=device.type == "cuda" if given.compile is None else given.compile,
        smoke=given.smoke,
        device=device,
        recipe=recipe,
    )


def _budget(device: torch.device, tokens: int | None, patches: int | None) -> Budget:
    """Micro-batches so large that a GPU computes longer than it takes to launch its kernels."""
    on_cuda = device.type == "cuda"
    return Budget(tokens or (65536 if on_cuda else 8192), patches or (98304 if on_cuda else 24576))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train the built-in model from nothing, under a budget of wall-clock time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), default="full", help="size of the network")
    add("--out", type=Path, default=Path("build/training"), help="folder of everything written")
    _add_run(parser)
    _add_data(parser)
    _add_recipe(parser)
    add("--device", default=None, help="cuda or cpu; None: cuda if there is one")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="torch.compile the blocks; None: on CUDA",
    )
    add("--smoke", action="store_true", help="measure throughput for a minute and write nothing")
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("length of the run").add_argument
    add("--minutes", type=float, default=23.0, help="budget of training, start-up not counted")
    add("--steps", type=int, default=None, help="a number of steps in place of a time")
    add("--resume", action="store_true", help="go on with the checkpoint in the folder")
    add("--init", type=Path, default=None, help="an exported model, to go on with its weights")
    add("--begin", type=float, default=0.0, help="share of the schedule that --init is past")
    add("--stop-after-s", type=float, default=math.inf, help="end this invocation after so long")
    add("--eval-every-s", type=float, default=120.0)
    add("--eval-samples", type=int, default=2048, help="size of the held-out set")
    add("--checkpoint-every-s", type=float, default=60.0)
    add("--log-every-s", type=float, default=10.0)


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--source", default="training.source:make_source", help="module:function of the Source")
    add("--tokenizer", type=Path, default=TOKENIZER)
    add("--template", type=Path, default=TEMPLATE, help="chat template of the exported model")
    add("--workers", type=int, default=14, help="processes that draw; 0: none, all in this one")
    add("--tokens", type=int, help="most tokens of a micro-batch; None: 65536 on CUDA, else 8192")
    add(
        "--patches", type=int, help="most patches of a micro-batch; None: 98304 on CUDA, else 24576"
    )
    add("--micro-batches", type=int, default=1, help="micro-batches of a step")
    add("--replay-gb", type=float, default=None, help="None: 20 on CUDA, 0.5 on CPU")
    add("--max-reuse", type=int, default=4, help="uses of a micro-batch, the first included")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add, recipe = parser.add_argument_group("recipe").add_argument, Recipe()
    add("--learning-rate", type=float, default=recipe.learning_rate, help="at its peak")
    add("--beta2", type=float, default=recipe.betas[1])
    add("--weight-decay", type=float, default=recipe.weight_decay)
    add("--clip", type=float, default=recipe.max_norm, help="largest norm of the gradient")
    add("--average-decay", type=float, default=recipe.average_decay, help="of the weights' average")
    add("--balance-rate", type=float, default=recipe.balance_rate, help="of the routers' biases")
    add("--seed", type=int, default=recipe.seed, help="of the initial weights")
