"""Small subsets of GLUE as JSON lines: python prepare.py GLUE OUT [ROWS]. Validation rows are drawn from GLUE's training data;
the test rows are from its validation data, as the labels of its test are hidden. ROWS (300): of either."""

import sys
from pathlib import Path

import pandas as pd

COLUMNS = {
    "sst2": ["sentence", "label"],
    "cola": ["sentence", "label"],
    "stsb": ["sentence1", "sentence2", "label"],
}
TRAIN = 2000


def main(glue: Path, out: Path, rows: int = 300) -> None:
    for task, columns in COLUMNS.items():
        train, held_out = (pd.read_parquet(glue / task / f"{split}.parquet") for split in ("train", "validation"))
        drawn = train.sample(TRAIN + rows, random_state=0)
        parts = {"train": drawn[:TRAIN], "validation": drawn[TRAIN:]}
        parts["test"] = held_out.sample(rows, random_state=0)
        (out / task).mkdir(parents=True, exist_ok=True)
        for split, part in parts.items():
            part[columns].to_json(out / task / f"{split}.jsonl", orient="records", lines=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
