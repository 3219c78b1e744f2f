"""Tables of the screen by the criteria of README.md, from screen.csv: `python experiments/gates/summary.py [CSV]`.

Prints Markdown, and writes conditions.csv, a line per setting (means over seeds), quality.svg and steps.svg.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from foura.figures import plt, save_figure  # noqa: E402

CONDITION = ["backbone", "rank", "form", "scope", "rate", "gate_rate", "price"]
SHARE = 0.05  # of the rank: criteria (a) and (b)
LAYERS = 0.25  # of the layers: criterion (a)
TENTH = 0.1  # of a gain: criteria (c) and (d)
FINAL_SEEDS = 5


def paired(runs: pd.DataFrame) -> pd.DataFrame:
    """The gated runs with their losses against those of the controls of the same seed and data."""
    causal = runs["backbone"].str.startswith("llama")  # whose data Python brings
    runs = runs.assign(data=runs["versions"].where(causal, ""))
    here, there = ["backbone", "data", "seed"], ["backbone", "data", "rank", "seed"]
    base = runs[runs["form"] == "base"].groupby(here)["val_loss"].first()
    ungated = runs[runs["form"] == "none"]
    by_rate = ungated.groupby(["backbone", "data", "rank", "rate"])["val_loss"].mean().reset_index()
    best = by_rate.loc[by_rate.groupby(["backbone", "data", "rank"])["val_loss"].idxmin()]
    ungated = ungated.merge(best[["backbone", "data", "rank", "rate"]]).groupby(there)["val_loss"].first()
    gated = runs[~runs["form"].isin(["base", "none"])].copy()
    gated["base"] = base.reindex(pd.MultiIndex.from_frame(gated[here])).to_numpy()
    gated["ungated"] = ungated.reindex(pd.MultiIndex.from_frame(gated[there])).to_numpy()
    gated["gain"] = gated["base"] - gated["val_loss"]
    gated["worse"] = (gated["val_loss"] - gated["ungated"]) / (gated["base"] - gated["ungated"])
    gated["freezing"] = (gated["frozen_val_loss"] - gated["val_loss"]) / gated["gain"]
    gated["over_layers"] = gated["open_over_layers"] / gated["rank"]
    gated["by_step"] = [_fall(steps) for steps in gated["by_step"]]
    gated["fall"] = gated["by_step"] / gated["rank"]
    gated["diverged"] = gated["val_loss"].isna() & gated["ungated"].notna()
    return gated


def conditions(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per gated setting with the criteria, by means over seeds."""
    gated = paired(runs)
    columns = ["val_loss", "val_acc", "worse", "open", "over_layers", "selective_layers", "fall", "freezing"]
    columns += ["frozen_open", "frozen_kb"]
    found = gated.groupby(CONDITION)[columns].mean()
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
    shown = found[columns].round(3).astype(object)  # bool as yes or no
    shown = shown.map(lambda value: {True: "yes", False: "no"}[value] if isinstance(value, bool) else value)
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


def finals(runs: pd.DataFrame) -> pd.DataFrame:
    """Settings with 5 seeds: what (c) and (d) compare, with 95 % intervals of the mean over seeds."""
    rows = []
    for condition, own in paired(runs).groupby(CONDITION):
        if len(own) < FINAL_SEEDS:
            continue
        row = dict(zip(CONDITION, condition, strict=True)) | {"seeds": len(own), "open": own["open"].mean()}
        for column in ("worse", "freezing", "selective_layers"):
            half = float(t.ppf(0.975, len(own) - 1) * own[column].std() / np.sqrt(len(own)))
            row[column] = f"{own[column].mean():+.3f} ± {half:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def by_price(found: pd.DataFrame) -> pd.DataFrame:
    """Open ranks by λ at the gate's rate 16, one line per backbone, rank, form and scope."""
    some = found[found["gate_rate"] == 16]
    return (
        some.pivot_table(index=["backbone", "rank", "form", "scope"], columns="price", values="open")
        .rename(columns=str)
        .reset_index()
    )


def draw_quality(found: pd.DataFrame, path: Path) -> None:
    """Validation loss above ungated DCT's against open ranks, a line over λ per form, a panel per backbone and rank."""
    some = found[(found["gate_rate"] == 16) & found["worse"].notna()]
    groups = list(some.groupby(["backbone", "rank", "scope"]))
    lines = -(-len(groups) // 3)
    fig, axes = plt.subplots(lines, 3, figsize=(10, 3.1 * lines), layout="constrained", squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, (where, part) in zip(axes.flat, groups, strict=False):
        for number, (form, own) in enumerate(part.sort_values("price").groupby("form")):
            axis.plot(own["open"], own["worse"], marker="os^Dv"[number], markersize=4, linewidth=1, label=form)
        axis.axhspan(-1, TENTH, color="0.92")
        axis.set_ylim(min(-0.1, part["worse"].min() - 0.05), min(1.5, part["worse"].max() + 0.1))
        axis.set_title(f"{where[0]}, rank {where[1]}, {where[2]}", fontsize=9)
        axis.set_xlabel("open ranks")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("loss above ungated, share of its gain", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=8)
    save_figure(fig, path)


def draw_steps(runs: pd.DataFrame, path: Path) -> None:
    """Open ranks by denoising step on the UNet, a line per form at the gate's rate 16 without a price, means over seeds."""
    some = runs[
        (runs["backbone"] == "unet") & (runs["gate_rate"] == 16) & (runs["price"] == 0) & runs["by_step"].notna()
    ]
    groups = list(some.groupby("scope"))
    fig, axes = plt.subplots(1, len(groups), figsize=(4.2 * len(groups), 3.0), layout="constrained", squeeze=False)
    for axis, (scope, part) in zip(axes[0], groups, strict=True):
        for number, (form, own) in enumerate(part.groupby("form")):
            steps = np.mean([json.loads(values) for values in own["by_step"]], axis=0)
            axis.plot(range(1, len(steps) + 1), steps, marker="os^Dv"[number], markersize=3, linewidth=1, label=form)
        axis.set_title(f"scope {scope}", fontsize=9)
        axis.set_xlabel("denoising step (noise to image)")
        axis.set_ylim(0, 16.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("open ranks of 16")
    axes[0, -1].legend(frameon=False, fontsize=8)
    save_figure(fig, path)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "screen.csv"
    runs = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"], dtype={"scope": str})
    runs["scope"] = runs["scope"].fillna("")
    found = conditions(runs)
    found.to_csv(HERE / "conditions.csv", index=False, float_format="%.5g")
    whose = runs["versions"].where(runs["backbone"].str.startswith("llama"), "")
    controls = runs[runs["form"].isin(["base", "none"])].assign(data=whose)
    groups = controls.groupby(["backbone", "data", "form", "rank", "rate"])
    means = groups[["val_loss", "val_acc"]].mean().assign(seeds=groups["seed"].nunique()).reset_index()
    print(table(means, list(means.columns)))
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
    print("\n5 seeds, with 95 % intervals\n")
    final = finals(runs)
    print(table(final, list(final.columns)))
    print("\nopen ranks by price, at the gate's rate 16\n")
    priced = by_price(found)
    print(table(priced, list(priced.columns)))
    draw_quality(found, HERE / "quality.svg")
    draw_steps(runs, HERE / "steps.svg")


if __name__ == "__main__":
    main()
