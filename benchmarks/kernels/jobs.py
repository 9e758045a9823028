"""What is tuned: products of the models' sizes, each run as a decode step runs it.

Weights lie in more memory than the L2 cache holds and come in turn. QKV has a bias; O of up to 16
rows quantises them itself, and its time includes one GPU's norm, which adds its parts (the norm of
several GPUs does so too), or in the dense model the launch that adds them. Experts' tiles are timed
within both of their products. The one dense layer of a model with experts is left out: a step has
45 others.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.kernels.candidates import expert_candidates, linear_candidates
from benchmarks.kernels.cases import Inputs, all_cases
from benchmarks.kernels.compilers import NoInputs
from benchmarks.kernels.measure import MAX_SETS, ROTATED_BYTES
from benchmarks.kernels.shapes import Shape, linear_products, shape_of
from glimt.kernels import choice, tiles
from glimt.kernels.attention import MAX_MEASURED_ROWS

try:
    from glimt.kernels import triton_experts, triton_linear, triton_rows
except ImportError:  # no Triton for this system
    triton_experts = triton_linear = triton_rows = None  # type: ignore[assignment]

MODELS = ("106b:1", "106b:2", "9b:1", "106b:4")
BUCKETS = (1, 16, 64, 32)  # rows, in the order of what they are worth
EXPERT_SETS = 8  # of the same weights, with other experts

Run = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """One product of one size with so many rows."""

    product: str
    size: str
    rows: int
    rule: Any  # the tile that is used where the table has none
    candidates: Sequence[Any]
    run_with: Callable[[Any], Run]
    make: Callable[[int], tuple[Any, ...]]  # the n-th set of inputs
    num_sets: int
    num_bytes: int  # of weights that are read
    within: str = ""  # what else is timed

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.product} {self.size} {self.rows}"

    @property
    def tiles(self) -> list[Any]:
        """All to try, the rule's first."""
        return list(dict.fromkeys([self.rule, *self.candidates]))


def all_jobs(
    models: Sequence[str] | None,
    rows: Sequence[int] | None,
    only: Sequence[str] | None,
    inputs: Inputs,
    is_quick: bool = False,
) -> list[Job]:
    """The products of `models`, what is worth most first. `only`: parts of a job's name.

    Raises SystemExit without Triton.
    """
    if triton_linear is None:
        raise SystemExit("Triton is not there, so there is nothing to tune")
    found: dict[str, Job] = {}
    for number, model in enumerate(models or MODELS):
        shape = shape_of(model)
        for count in rows or BUCKETS:
            limit = _num_candidates(number, count) // (2 if is_quick else 1)
            for job in (
                *_linear_jobs(inputs, shape, count, limit),
                *_expert_jobs(inputs, shape, count, limit),
            ):
                if not only or any(part in job.name for part in only):
                    found.setdefault(job.name, job)
    return list(found.values())


def jobs_to_compile(options: Any) -> list[Job]:
    """`all_jobs`, of tensors without memory."""
    return all_jobs(options.models, options.rows, options.only, NoInputs(), options.quick)


def _num_candidates(model: int, rows: int) -> int:
    """More where they are worth more."""
    if model == 0:
        return 30 if rows == 1 else 14
    return 15 if rows == 1 else 8


def _linear_jobs(inputs: Inputs, shape: Shape, rows: int, limit: int) -> Iterator[Job]:
    products = linear_products(shape)
    for name in ("qkv", "o") if shape.num_experts else ("qkv", "o", "gate_up", "down"):
        yield _linear_job(inputs, shape, rows, limit, name, *products[name])


def _linear_job(
    inputs: Inputs, shape: Shape, rows: int, limit: int, name: str, num_out: int, num_in: int
) -> Job:
    measured = name == "o" and rows <= MAX_MEASURED_ROWS
    deferred = name == "o" and shape.num_experts > 0  # the dense model norms the branch itself

    def make(n: int) -> tuple[Any, ...]:
        weight, scale = inputs.fp8(n, num_out, num_in)
        bias = inputs.randn(n + 7, num_out) if name == "qkv" else None
        x = inputs.randn(n, rows, num_in)
        if measured:
            parts = x.view(rows, shape.heads, shape.head_dim)
            given: Any = choice.MeasuredRows(x, parts.float().abs().amax(-1).contiguous())
        else:
            given = choice.QuantizedRows(x, *triton_rows.quantize_rows(x))
        return given, weight, scale, bias, *_norm_inputs(inputs, n, rows, num_out)

    def run_with(tile: tiles.LinearTile) -> Run:
        def run(
            given: Any, weight: Tensor, scale: Tensor, bias: Tensor | None, x: Tensor, norm: Tensor
        ) -> Any:
            y = triton_linear.fp8_linear(given, weight, scale, bias, tile, defers=deferred)
            return triton_rows.add_rms_norm_quantize(x, y, norm, 1e-5) if deferred else y

        return run

    found = linear_candidates(num_out, num_in, rows, limit, measured=measured, deferred=deferred)
    return Job(
        product="fp8_linear",
        size=f"{num_out}x{num_in}",
        rows=rows,
        rule=tiles.linear_rule(num_out, num_in),
        candidates=found,
        run_with=run_with,
        make=make,
        num_sets=max(2, min(MAX_SETS, -(-ROTATED_BYTES // (num_out * num_in)))),
        num_bytes=num_out * num_in,
        within="with the norm that follows" if deferred else "",
    )


def _norm_inputs(inputs: Inputs, n: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    return inputs.randn(n + 13, rows, width), inputs.randn(n + 17, width)


def _expert_jobs(inputs: Inputs, shape: Shape, rows: int, limit: int) -> Iterator[Job]:
    """Both products, each timed within both, shared expert included, sums left to a norm."""
    if not shape.num_experts:
        return
    case = next(case for case in all_cases(shape, rows, inputs) if case.op == "fp8_moe")

    def make(n: int) -> tuple[Any, ...]:
        x, *others = case.make(n)
        return choice.QuantizedRows(x, *triton_rows.quantize_rows(x)), *others

    width, hidden = shape.expert_width, shape.hidden
    rules = {
        "gate_up": ((width, hidden), tiles.gate_up_rule(rows)),
        "down": ((hidden, width), tiles.down_rule(rows)),
    }
    share = shape.experts_per_token / shape.num_experts
    slots = 1 + shape.num_experts * (1 - (1 - share) ** rows)
    for product, (size, rule) in rules.items():

        def run_with(tile: tiles.ExpertTile, product: str = product) -> Run:
            chosen = {f"{product}_by": tile}
            return lambda *given: triton_experts.fp8_experts(*given, **chosen, defers=True)

        yield Job(
            product=product,
            size=f"{size[0]}x{size[1]}",
            rows=rows,
            rule=rule,
            candidates=expert_candidates(product, *size, slots, 16, min(limit, 14)),
            run_with=run_with,
            make=make,
            num_sets=EXPERT_SETS,
            num_bytes=int(slots * 3 * width * hidden),
            within="both products of the experts",
        )
