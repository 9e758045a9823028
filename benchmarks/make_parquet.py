"""Write VisionArena's look-alike as parquet in VisionArena-Chat's own columns.

    python benchmarks/make_parquet.py --out build/arena --num-prompts 200 --tokenizer FOLDER

`glimt bench serve` and `vllm bench serve` both read the folder with `--dataset-name hf
--dataset-path build/arena --hf-name lmarena-ai/VisionArena-Chat`, so that they send the same.
"""

import argparse
import base64
from pathlib import Path

import pyarrow
import pyarrow.parquet

from glimt.bench.data.tokens import Tokens
from glimt.bench.data.visionarena_like import visionarena_like_prompts
from glimt.bench.options import DataOptions

MESSAGE = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
SCHEMA = pyarrow.schema(
    [
        ("images", pyarrow.list_(IMAGE)),
        ("conversation_id", pyarrow.string()),
        ("conversation", pyarrow.list_(pyarrow.list_(MESSAGE))),
        ("num_turns", pyarrow.int64()),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json")
    options = parser.parse_args()
    tokens = Tokens(options.tokenizer / "tokenizer.json") if options.tokenizer else None
    rows = []
    for number, prompt in enumerate(
        visionarena_like_prompts(DataOptions(), tokens, options.num_prompts, options.seed)
    ):
        (turn,) = prompt.turns
        encoded = base64.b64decode(turn.images[0].url.partition(",")[2])
        rows.append(
            {
                "images": [{"bytes": encoded, "path": None}],
                "conversation_id": f"{number}",
                "conversation": [
                    [{"role": "user", "content": turn.text}],
                    [{"role": "assistant", "content": ""}],
                ],
                "num_turns": 1,
            }
        )
    file = options.out / "data" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema=SCHEMA), file, row_group_size=64
    )
    print(f"wrote {file}: {len(rows)} rows, {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
