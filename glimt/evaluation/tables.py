"""Results as text for a terminal."""

from collections.abc import Iterator, Sequence

from glimt.evaluation.comparison import Comparison
from glimt.evaluation.results import Share, Side, SkillResult, Summary

_MAX_WIDTH = 32


def summary_table(side: Side) -> str:
    """Accuracy by skill, then form, failures and speed."""
    return "\n".join(_lines(side.summary))


def comparison_table(comparison: Comparison, names: Sequence[str]) -> str:
    """Accuracy of both by skill, then how alike their answers and distributions are."""
    return "\n".join(_comparison_lines(comparison, names))


def percent(share: float) -> str:
    """0.957 -> 95.7 %"""
    return f"{100 * share:.1f} %"


def interval(share: Share) -> str:
    """The interval's ends in per cent."""
    return f"{100 * share.low:.1f} – {100 * share.high:.1f} %"


def _lines(summary: Summary) -> Iterator[str]:
    names = [result.skill for result in (*summary.skills, summary.overall)]
    width = min(_MAX_WIDTH, max(map(len, [*names, "skill"])))
    yield f"{'skill':<{width}}" + "      n  right  accuracy    95 % interval  score"
    for result in summary.skills:
        yield _row(result, width)
    yield _row(summary.overall, width)
    if summary.in_format.n:
        yield _share_row("format", summary.in_format, width)
    yield ""
    if summary.failures:
        yield "failed requests, counted as wrong: " + ", ".join(
            f"{name} {count}" for name, count in summary.failures.items()
        )
    if cut := summary.finish_reasons.get("length"):
        yield f"answers cut off by --max-tokens: {cut}"
    yield (
        f"{summary.prompt_tokens:,} prompt tokens, {summary.completion_tokens:,} answer tokens "
        f"in {summary.seconds:.1f} s: {summary.tokens_per_s:,.1f} answer tokens/s"
    )


def _comparison_lines(comparison: Comparison, names: Sequence[str]) -> Iterator[str]:
    results = [*comparison.skills, comparison.overall]
    width = min(_MAX_WIDTH, max(len(result.skill) for result in results))
    yield f"A: {names[0]}"
    yield f"B: {names[1]}"
    yield (
        f"{'skill':<{width}}      n        A        B    B - A    95 % interval  "
        "only A right  only B right  McNemar p"
    )
    for result in results:
        low, high = (100 * end for end in result.interval)
        name = _cut(result.skill, width)
        yield (
            f"{name:<{width}}  {result.n:>5}  {percent(result.accuracy_a):>7}  "
            f"{percent(result.accuracy_b):>7}  {100 * result.difference:>+5.1f} %  "
            f"{f'{low:+.1f} – {high:+.1f} %':>15}  {result.only_a:>12}  {result.only_b:>12}  "
            f"{result.p_value:>9.3f}"
        )
    yield ""
    yield from likeness_lines(comparison)


def likeness_lines(comparison: Comparison) -> Iterator[str]:
    """How alike answers and distributions are."""
    same = comparison.same_answer
    yield f"the same answer to the letter: {percent(same.share)} ({same.num} of {same.n})"
    divergence = comparison.divergence
    if divergence is None:
        yield f"logits: not compared, {comparison.divergence_note}"
        return
    spread = ", ".join(f"{name} {kl:.2e}" for name, kl in divergence.kl_quantiles.items())
    yield f"KL(A || B): {divergence.mean_kl:.2e} nats on average; quantiles {spread}"
    yield f"top-1 agreement: {100 * divergence.same_top.share:.2f} %"
    yield (
        f"perplexity of A's answers: A {divergence.perplexity_a:.4f}, "
        f"B {divergence.perplexity_b:.4f}, ratio {divergence.perplexity_ratio:.4f}"
    )
    yield (
        f"over {divergence.num_places:,} tokens of {divergence.num_answers:,} answers; "
        f"{comparison.divergence_note}"
    )


def _row(result: SkillResult, width: int) -> str:
    failed = f"  ({result.num_failed} failed)" if result.num_failed else ""
    row = _share_row(result.skill, result.accuracy, width)
    return f"{row}  {result.mean_score:.3f}{failed}"


def _share_row(name: str, share: Share, width: int) -> str:
    return (
        f"{_cut(name, width):<{width}}  {share.n:>5}  {share.num:>5}  {percent(share.share):>8}  "
        f"{interval(share):>15}"
    )


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
