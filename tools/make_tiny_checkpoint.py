"""Write a tiny random GLM-V checkpoint in the hub's format.

python tools/make_tiny_checkpoint.py OUT [--variant moe|dense] [--style 4.5|4.6|4.1] [--fp8]
                                         [--shards N] [--seed N]
"""

import argparse
from pathlib import Path

from glimt.tiny.checkpoint import make_tiny_checkpoint


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Write a tiny random GLM-V checkpoint.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", choices=["moe", "dense"], default="moe")
    parser.add_argument("--style", choices=["4.5", "4.6", "4.1"], default="4.5")
    parser.add_argument("--fp8", action="store_true", help="compressed-tensors FP8 weights")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    wishes = parser.parse_args()
    try:
        out = make_tiny_checkpoint(**vars(wishes))
    except ValueError as error:
        parser.error(str(error))
    num_bytes = sum(file.stat().st_size for file in out.iterdir())
    print(
        f"{out}: {wishes.variant}, style {wishes.style}, random weights, {num_bytes / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
