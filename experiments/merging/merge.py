"""Adds the fire and the ice adapter of each seed of `experiment=merging` and compares what is left of both styles.

    python train.py -m experiment=merging && python experiments/merging/merge.py [SWEEP [OUTPUTS]]

SWEEP may be alpha_sweep too, whose runs are the same with more measured.

Paper sec. 3.5 and Table B.2: two adapters merge well if their updates do not overlap.
"""

import argparse
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from foura.analysis.statistics import compare
from foura.report.style import COLOURS
from foura.run.merge import merge_evaluate
from foura.sweep.plan import sweep_folder

HERE = Path(__file__).resolve().parent
STRENGTHS = (0.5, 1.0)  # of both adapters
MEASURES = {
    "overlap": False,
    "kernel merged": False,
    "legible merged": True,
    "diversity merged": True,
}  # more is better?


def main(name: str, outputs: Path) -> None:
    sweep = sweep_folder(outputs, name)
    rows = []
    for adapter, seed, strength in itertools.product(("lora", "foura"), range(5), STRENGTHS):
        runs = [
            sweep / f"adapter={adapter},dataset.style={style},experiment={name},seed={seed}"
            for style in ("fire", "ice")
        ]
        into = outputs / "merged" / f"{adapter}-{seed}-{strength}"
        found = pd.DataFrame(merge_evaluate(runs, [strength] * 2, into))
        together, alone = (found[found["adapters"].str.contains(r"\+") == both] for both in (True, False))
        row = {"adapter": adapter, "seed": seed, "strength": strength, "overlap": found["overlap"].mean()}
        for measure in ("kernel", "legible", "diversity"):
            row[f"{measure} alone"] = alone[f"test/{measure}"].mean()
            row[f"{measure} merged"] = together[f"test/{measure}"].mean()
        rows.append(row)
        print(row, flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "runs.csv", index=False, float_format="%.5g")
    draw(table, HERE / "merged.svg")
    lines = []
    for measure, more in MEASURES.items():
        for strength, part in table.groupby("strength"):
            by_seed = {name: own.set_index("seed")[measure].to_dict() for name, own in part.groupby("adapter")}
            means = {name: sum(values.values()) / len(values) for name, values in by_seed.items()}
            found = compare(by_seed["foura"], by_seed["lora"], more, tests=len(STRENGTHS))
            lines.append({"measure": measure, "strength": strength, **means, **found.__dict__})
    pd.DataFrame(lines).to_csv(HERE / "comparisons.csv", index=False, float_format="%.5g")
    print(pd.DataFrame(lines).to_string(index=False))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Each measure by strength: a dot a seed, a line through the means."""
    fig, axes = plt.subplots(1, len(MEASURES), figsize=(2.9 * len(MEASURES), 2.8), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        for (adapter, rows), colour, shift in zip(
            table.groupby("adapter", sort=False), COLOURS, (-0.01, 0.01), strict=False
        ):
            axis.scatter(rows["strength"] + shift, rows[measure], s=8, alpha=0.5, color=colour, linewidths=0)
            means = rows.groupby("strength")[measure].mean()
            axis.plot(means.index + shift, means, color=colour, marker="_", label=adapter)
        axis.set_title(measure, fontsize=10)
        axis.set_xlabel("adapter scale of both")
        axis.set_xticks(STRENGTHS)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Merge the styles of a sweep's runs.")
    parser.add_argument("sweep", nargs="?", default="merging")
    parser.add_argument("outputs", nargs="?", default="outputs", type=Path)
    given = parser.parse_args()
    main(given.sweep, given.outputs.absolute())
