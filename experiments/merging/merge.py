"""Adds the fire and the ice adapter of each seed of `experiment=alpha_sweep` and compares what is left of both styles.

    python train.py -m experiment=alpha_sweep && python experiments/merging/merge.py

Paper sec. 3.5 and Table B.2: two adapters merge well if their updates do not overlap.
"""

import sys
from pathlib import Path

import pandas as pd

from foura.analysis.statistics import compare, correct, mean_interval
from foura.merge import merge_evaluate
from foura.tracking.jobs import sweep_folder

HERE = Path(__file__).resolve().parent
MEASURES = {"kernel after − before": False, "legible": True, "overlap": False}  # name: whether more is better


def main(outputs: Path) -> None:
    sweep = sweep_folder(outputs, "alpha_sweep")
    rows = []
    for adapter in ("lora", "foura"):
        for seed in range(5):
            runs = [
                sweep / f"adapter={adapter},dataset.style={style},experiment=alpha_sweep,seed={seed}"
                for style in ("fire", "ice")
            ]
            found = pd.DataFrame(merge_evaluate(runs, [1.0, 1.0], outputs / "merged" / f"{adapter}-{seed}"))
            together, alone = (found[found["adapters"].str.contains(r"\+") == both] for both in (True, False))
            rows.append(
                {
                    "adapter": adapter,
                    "seed": seed,
                    "kernel alone": alone["test/kernel"].mean(),
                    "kernel merged": together["test/kernel"].mean(),
                    "kernel after − before": together["test/kernel"].mean() - alone["test/kernel"].mean(),
                    "legible alone": alone["test/legible"].mean(),
                    "legible": together["test/legible"].mean(),
                    "overlap": found["overlap"].mean(),
                }
            )
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "runs.csv", index=False, float_format="%.5g")
    lines = []
    for measure, more in MEASURES.items():
        by_seed = {name: part.set_index("seed")[measure].to_dict() for name, part in table.groupby("adapter")}
        (one,) = correct([compare(by_seed["foura"], by_seed["lora"], more)], more)
        means = {name: mean_interval(list(values.values())) for name, values in by_seed.items()}
        lines.append({"measure": measure, **{name: value[0] for name, value in means.items()}, **one.__dict__})
    pd.DataFrame(lines).to_csv(HERE / "comparisons.csv", index=False, float_format="%.5g")
    print(pd.DataFrame(lines).to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs").absolute())
