"""Three small language tasks: python prepare.py SHAKESPEARE.txt TLDR ARC_EASY OUT.

TLDR and ARC_EASY are folders with train.jsonl and test.jsonl, or the same as .jsonl.gz: pages of tldr with a field "text", and
ARC-easy as LLM-Adapters has it (instruction, output, answer). Validation rows are drawn from the training data; Shakespeare
is cut by its place in the file, so that no passage is in two splits.
"""

import sys
from pathlib import Path

import pandas as pd

COLUMNS = {"tldr": ["text"], "arc_easy": ["instruction", "input", "output", "answer"]}
TRAIN, HELD_OUT = 1500, 300
CUTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}  # shares of the text


def main(shakespeare: Path, tldr: Path, arc_easy: Path, out: Path) -> None:
    text = shakespeare.read_text(encoding="utf-8")
    for split, (begin, end) in CUTS.items():
        folder = out / "shakespeare" / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.txt").write_text(text[int(begin * len(text)) : int(end * len(text))], encoding="utf-8")
    for name, folder in (("tldr", tldr), ("arc_easy", arc_easy)):
        train, test = (_records(folder, split) for split in ("train", "test"))
        drawn = train.sample(TRAIN + HELD_OUT, random_state=0)
        parts = {"train": drawn[:TRAIN], "validation": drawn[TRAIN:], "test": test.sample(HELD_OUT, random_state=0)}
        (out / name).mkdir(parents=True, exist_ok=True)
        for split, part in parts.items():
            part[COLUMNS[name]].to_json(out / name / f"{split}.jsonl", orient="records", lines=True)


def _records(folder: Path, split: str) -> pd.DataFrame:
    (path,) = folder.glob(f"{split}.jsonl*")
    return pd.read_json(path, lines=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
