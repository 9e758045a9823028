"""`python -m training.plot`: the curves of a run, from its log.jsonl to SVG or PNG files."""

import argparse
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from training.logbook import Record, read_log

matplotlib.use("Agg")  # no window: it shall run where there is no screen


def draw_loss(records: list[Record]) -> Figure:
    """Loss over time, logarithmic, with the learning rate behind it."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    minutes = [record["elapsed_s"] / 60 for record in records]
    rates = axes.twinx()
    rates.plot(minutes, [record["lr"] for record in records], color="0.8")
    rates.set_ylabel("learning rate", color="0.5")
    axes.set_zorder(rates.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(minutes, [record["loss"] for record in records], linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("minutes")
    axes.set_ylabel("loss of the targets (nats per token)")
    axes.set_title(f"Loss, {records[-1]['step']} steps")
    axes.grid(alpha=0.3)
    return figure


def draw_accuracy(records: list[Record]) -> Figure:
    """Exact matches of each skill over time, on held-out samples."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    skills = sorted({skill for record in records for skill in record["skills"]})
    colours = matplotlib.colormaps["tab20"]
    for index, skill in enumerate(skills):
        points = [
            (
                record["elapsed_s"] / 60,
                100 * record["skills"][skill][0] / record["skills"][skill][1],
            )
            for record in records
            if skill in record["skills"]
        ]
        style = "-" if index < 20 else "--"
        axes.plot(*zip(*points, strict=True), style, color=colours(index % 20), label=skill)
    axes.set_xlabel("minutes")
    axes.set_ylabel("exactly right, %")
    axes.set_ylim(0, 101)
    axes.set_title("Held-out accuracy, averaged weights")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def plot(run: Path, out: Path, suffix: str) -> list[Path]:
    """Draw the curves of the run in folder `run` into folder `out`; returns the files."""
    records = read_log(run / "log.jsonl")
    figures = {"loss": draw_loss(records["steps"])}
    if records["accuracy"]:
        figures["accuracy"] = draw_accuracy(records["accuracy"])
    out.mkdir(parents=True, exist_ok=True)
    files = []
    # A fixed salt and no date: the same log gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "glimt"}):
        for name, figure in figures.items():
            files.append(out / f"{name}.{suffix}")
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(files[-1], metadata=metadata, dpi=120)
    return files


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.plot", description=__doc__)
    parser.add_argument("run", type=Path, help="folder with log.jsonl")
    parser.add_argument("--out", type=Path, default=None, help="folder of the files; default: run")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args(arguments)
    try:
        files = plot(options.run, options.out or options.run, options.format)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
