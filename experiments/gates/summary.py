"""Tables of the screen by the criteria of README.md, from screen.csv: `python experiments/gates/summary.py [CSV]`.

Prints Markdown, and writes conditions.csv: a line per setting, means over seeds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
CONDITION = ["backbone", "rank", "form", "scope", "gate_rate", "price"]
SHARE = 0.05  # of the rank: criteria (a) and (b)
LAYERS = 0.25  # of the layers: criterion (a)
TENTH = 0.1  # of a gain: criteria (c) and (d)


def conditions(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per gated setting with the criteria; losses are differences within a seed, so seeds that lack a control drop."""
    base = runs[runs["form"] == "base"].set_index(["backbone", "seed"])["val_loss"]
    ungated = runs[runs["form"] == "none"]
    by_rate = ungated.groupby(["backbone", "rank", "rate"])["val_loss"].mean().reset_index()
    best = by_rate.loc[by_rate.groupby(["backbone", "rank"])["val_loss"].idxmin()]
    ungated = ungated.merge(best[["backbone", "rank", "rate"]]).set_index(["backbone", "rank", "seed"])["val_loss"]
    gated = runs[~runs["form"].isin(["base", "none"])].copy()
    gated["base"] = [base.get(key, np.nan) for key in zip(gated["backbone"], gated["seed"], strict=True)]
    gated["ungated"] = [
        ungated.get(key, np.nan) for key in zip(gated["backbone"], gated["rank"], gated["seed"], strict=True)
    ]
    gated["gain"] = gated["base"] - gated["val_loss"]
    gated["worse"] = (gated["val_loss"] - gated["ungated"]) / (gated["base"] - gated["ungated"])
    gated["freezing"] = (gated["frozen_val_loss"] - gated["val_loss"]) / gated["gain"]
    gated["over_layers"] = gated["open_over_layers"] / gated["rank"]
    gated["by_step"] = [_fall(steps) for steps in gated["by_step"]]
    gated["fall"] = gated["by_step"] / gated["rank"]
    gated["diverged"] = gated["val_loss"].isna() & gated["ungated"].notna()
    columns = [
        "val_loss",
        "val_acc",
        "worse",
        "open",
        "over_layers",
        "selective_layers",
        "fall",
        "freezing",
        "frozen_open",
    ]
    found = gated.groupby(CONDITION)[[*columns, "frozen_kb"]].mean()
    found["seeds"], found["diverged"] = gated.groupby(CONDITION).size(), gated.groupby(CONDITION)["diverged"].sum()
    found["a"] = (found["selective_layers"] >= LAYERS) & (found["over_layers"] > SHARE)
    found["b"] = found["fall"].abs() > SHARE
    found["c"], found["d"], found["e"] = found["worse"] <= TENTH, found["freezing"] < TENTH, found["diverged"] == 0
    return found.reset_index()


def _fall(steps: object) -> float:
    """Open ranks in the first third of the denoising steps minus those in the last."""
    if not isinstance(steps, str):
        return np.nan
    values = json.loads(steps)
    third = len(values) // 3
    return float(np.mean(values[:third]) - np.mean(values[-third:]))


def table(found: pd.DataFrame, columns: list[str]) -> str:
    shown = found[columns].round(3).astype(object)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in shown.itertuples(index=False):
        lines.append("| " + " | ".join("" if pd.isna(value) else f"{value}" for value in row) + " |")
    return "\n".join(lines)


def best_of_each(found: pd.DataFrame) -> pd.DataFrame:
    """Of each backbone, rank, form and scope: the setting that meets most criteria, then the one with the lowest loss."""
    asked = found.assign(met=found[["a", "c", "d", "e"]].sum(axis=1))
    order = asked.sort_values(["met", "val_loss"], ascending=[False, True])
    return (
        order.groupby(["backbone", "rank", "form", "scope"]).head(1).sort_values(["backbone", "rank", "form", "scope"])
    )


def by_price(found: pd.DataFrame) -> pd.DataFrame:
    """Open ranks by λ at the gate's rate 16, one line per backbone, rank, form and scope."""
    some = found[found["gate_rate"] == 16]
    return (
        some.pivot_table(index=["backbone", "rank", "form", "scope"], columns="price", values="open")
        .rename(columns=str)
        .reset_index()
    )


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "screen.csv"
    runs = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"], dtype={"scope": str})
    runs["scope"] = runs["scope"].fillna("")
    found = conditions(runs)
    found.to_csv(HERE / "conditions.csv", index=False, float_format="%.5g")
    controls = runs[runs["form"].isin(["base", "none"])].groupby(["backbone", "form", "rank", "rate"])
    print(
        table(
            controls[["val_loss", "val_acc"]].mean().reset_index(),
            ["backbone", "form", "rank", "rate", "val_loss", "val_acc"],
        )
    )
    counts = found.assign(all=found[["a", "c", "d", "e"]].all(axis=1)).groupby(["backbone", "rank", "form", "scope"])
    print("\nsettings that meet each criterion\n")
    met = counts[["a", "b", "c", "d", "e", "all"]].sum().astype(int).assign(of=counts.size()).reset_index()
    print(table(met, list(met.columns)))
    print("\nthe best setting of each form\n")
    shown = [
        "backbone",
        "rank",
        "form",
        "scope",
        "gate_rate",
        "price",
        "seeds",
        "val_loss",
        "worse",
        "open",
        "over_layers",
    ]
    print(
        table(
            best_of_each(found),
            [*shown, "selective_layers", "fall", "freezing", "frozen_open", "frozen_kb", "a", "b", "c", "d"],
        )
    )
    print("\nopen ranks by price, at the gate's rate 16\n")
    priced = by_price(found)
    print(table(priced, list(priced.columns)))


if __name__ == "__main__":
    main()
