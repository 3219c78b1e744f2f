"""The answer of a report in sentences: verdicts, the seeds that would decide, and what the numbers cover."""

import itertools
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from foura.analysis.power import MOST
from foura.analysis.statistics import LEAST, LEVEL
from foura.report.collect import Look, Sweep
from foura.report.compare import OTHER_DATA
from foura.report.conditions import NO_CONDITION, follows_seed
from foura.report.rounding import decimals, fixed, signed
from foura.report.study import Measure, Study, in_cell, in_words
from foura.report.tuning import OWN, SEEDS, TRIED, WIDEN

SPLIT_SEED = "dataset.split_seed"
OF_ADAPTERS = ("adapter.", "optimizer.lr", "optimizer.gate_lr")  # beginnings of the keys that an adapter's config sets
VERDICTS = ("better", "worse", "equivalent", "undecided")


def answer(table: pd.DataFrame, measure: Measure, study: Study) -> list[str]:
    """The comparisons of one measure as sentences, their total first."""
    if table.empty and not (study.finished["adapter"] == study.baseline).any():
        return [f"{measure.label}: {study.baseline}, with which the others are compared, has no finished run."]
    if table.empty:
        return [
            f"{measure.label}: there is nothing to compare with {study.baseline} yet: one adapter, or no condition that "
            "two of them share."
        ]
    lines = [f"{measure.label}: {total(table, study.baseline)}"]
    for row in table.to_dict("records"):
        lines.append(f"{in_cell(row, study)}: {row['verdict']} ({reason(row)}).")
    return lines


def total(table: pd.DataFrame, baseline: str) -> str:
    """The number of comparisons with each verdict."""
    counts = table["verdict"].value_counts()
    said = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if word in counts)
    return f"of {len(table)} comparison{'' if len(table) == 1 else 's'} with {baseline}: {said}."


def reason(row: Mapping[str, Any]) -> str:
    """The numbers behind a verdict, in words."""
    seeds = f"{row['seeds']} shared seed{'' if row['seeds'] == 1 else 's'}"
    if row["unpaired"]:
        seeds += f", without {row['unpaired']}, which one of both has"
    if row.get(OTHER_DATA):
        seeds += f", without {row[OTHER_DATA]}, at which the two had different data"
    if row["seeds"] < LEAST:
        return f"{seeds}; {LEAST} are the least, 5 or more are better"
    if not math.isfinite(row["difference"]):
        return f"{seeds}, of which a run's value is not finite"
    if math.isnan(row["low"]):
        return f"{seeds}, all with the same difference, of a share of an unknown number of items"
    places = places_of(row)
    low, high = (row["inner_low"], row["inner_high"]) if row["verdict"] == "equivalent" else (row["low"], row["high"])
    said = f"{signed(row['difference'], places)}, interval {signed(low, places)} to {signed(high, places)}"
    if not math.isnan(row["items_low"]):
        said += f"; over test items too {signed(row['items_low'], places)} to {signed(row['items_high'], places)}"
    margin = f"±{fixed(row['margin'], max(places, decimals(row['margin'])))}"
    if row["verdict"] == "equivalent":
        said += f", within {margin}"
    elif row["verdict"] != "undecided" and max(abs(low), abs(high)) < row["margin"]:
        said += f", but within {margin}, which counts as no difference"
    if row["verdict"] == "undecided":
        needed = row["needed"]
        seeds += f"; about {needed:.0f} would decide" if needed <= MOST else f"; more than {MOST} would be needed"
    return f"{said}; {seeds}"


def places_of(row: Mapping[str, Any]) -> int:
    """Decimal places of a difference and its interval: more where a bound that is not zero would be printed as zero."""
    places = decimals((row["high"] - row["low"]) / 2, row["item"])
    nearest = min(abs(row["low"]), abs(row["high"]))
    if row["verdict"] in ("better", "worse") and round(nearest, places) == 0:
        places = max(places, math.ceil(-math.log10(nearest)))
    return places


def more_seeds(table: pd.DataFrame, sweep: Sweep, study: Study) -> tuple[str, str] | None:
    """(sentence, commands) for the seeds that decide half of the undecided comparisons; None if no number of seeds does.

    Args:
        table: comparisons of the study's quality.
    """
    if table.empty:
        return None
    # a comparison can have fewer pairs than there are seeds: those of runs that diverged do not come back
    needs = sorted(row["needed"] - row["seeds"] for row in table.to_dict("records") if math.isfinite(row["needed"]))
    if not needs:
        return None
    further = math.ceil(statistics.median_high(needs))
    undecided = int((table["verdict"] == "undecided").sum())
    decided = sum(need <= further for need in needs)
    which = "the undecided one" if undecided == 1 else f"{decided} of the {undecided} undecided"
    have = sorted(study.runs["seed"].unique().tolist())
    said = (
        f"About {len(have) + further} seeds (now {len(have)}) would decide {which} in 4 of 5 cases, if "
        "differences and spread stay as they are. The same sweep resumes with"
    )
    taken = set(sweep.tuning["seed"]) if len(sweep.tuning) else set()
    fresh = itertools.islice((seed for seed in itertools.count() if seed not in taken | set(have)), further)
    seeds = sorted([*have, *fresh])
    commands = [with_seeds(command, sweep.name, seeds) for command in sweep.commands or ["python train.py -m ..."]]
    return said, "\n".join(dict.fromkeys(commands))  # parts of a sweep that differed in their seeds alone are one now


def with_seeds(command: str, name: str, seeds: Sequence[int]) -> str:
    """A command of a sweep with these seeds."""
    whole = list(seeds) == list(range(len(seeds)))
    told = f"seed=range({len(seeds)})" if whole else f"seed={','.join(map(str, seeds))}"
    try:
        words = shlex.split(command)
    except ValueError:  # of an older version, which did not quote
        words = command.split()
    keys = [word.lstrip("+").partition("=")[0] for word in words]
    words = [told if key == "seed" else word for key, word in zip(keys, words, strict=True) if key != "force"]
    words += [] if "seed" in keys else [told]
    words += [] if "sweep" in keys else [f"sweep={name}"]
    return shlex.join(words)


def nothing(sweep: Sweep) -> str:
    """The sentence of a sweep without a finished run to compare."""
    runs = sweep.runs if len(sweep.runs) else sweep.tuning
    if len(runs) and (runs["state"] == "diverged").all():
        rates = sorted(pd.to_numeric(runs["param:adapter.lr"]).unique()) if "param:adapter.lr" in runs else []
        tried = f" (adapter.lr {', '.join(f'{rate:g}' for rate in rates)})" if rates else ""
        return (
            f"Every run diverged{tried}, so there is nothing to compare: a lower adapter.lr or "
            "trainer.gradient_clip_val=1.0 may help."
        )
    if (sweep.runs["state"] == "finished").any():
        return "No run with the tuned values has finished, so there is nothing to compare yet."
    return "No run has finished, so there is nothing to compare."


def tuned(study: Study) -> list[str]:
    """How the tuned values were chosen, and those to be wary of: at the edge of their grid, or without any that works."""
    if study.tuned.empty:
        return []
    keys = [column.removeprefix(f"{TRIED} ") for column in study.tuned if str(column).startswith(f"{TRIED} ")]
    seeds = sorted(set(study.tuned[SEEDS]))
    of = [each if each == OWN else f"seed{'s' if ',' in each else ''} {each}" for each in seeds]
    by = f"the validation data of {' or '.join(of)}"
    unused = ", which the comparison does not use" if OWN not in seeds else ""
    lines = [f"{', '.join(keys)} was tuned for each adapter and condition on {by}{unused}."]
    for key in keys:
        at_edge = study.tuned[study.tuned[f"{WIDEN} {key}"] != ""]
        if len(at_edge):
            cells = [f"{in_cell(row, study)} ({in_words(row, [key])})" for row in at_edge.to_dict("records")]
            wider = ", ".join(dict.fromkeys(at_edge[f"{WIDEN} {key}"]))
            lines.append(
                f"Best at the edge of the grid of {key}: {'; '.join(cells)}. Better values may lie beyond: widen it with "
                f"{wider}."
            )
    if len(study.lost):
        cells = [in_cell(row, study) for row in study.lost.to_dict("records")]
        lines.append(f"Left out, as every run to choose from diverged or failed: {'; '.join(cells)}.")
    return lines


def left_out(study: Study) -> list[str]:
    """What of the study has no verdict, and what else differs between its adapters, a sentence each."""
    lines = []
    if len(study.baseline_in({})):
        keys = ["adapter", *study.conditions]
        cells = study.finished[study.finished["adapter"] != study.baseline].drop_duplicates(keys).to_dict("records")
        alone = [in_cell(row, study) for row in cells if study.baseline_in({key: row[key] for key in keys[1:]}).empty]
        if alone:
            lines.append(f"Not compared, as {study.baseline} has no finished run there: {'; '.join(alone)}.")
    for key in _different(study):
        values = study.finished.groupby("adapter", sort=False)[f"param:{key}"].first()
        told = ", ".join(f"{values[adapter]} ({adapter})" for adapter in study.adapters if adapter in values)
        lines.append(f"The adapters differ in {key}, too: {told}.")
    return lines


def _different(study: Study) -> list[str]:
    """The keys, not of the adapter itself, in which all runs of one adapter differ from all runs of another."""
    runs, found = study.finished, []
    for column in runs:
        key = str(column).removeprefix("param:")
        own = key.startswith(OF_ADAPTERS) or key in (*NO_CONDITION, *study.conditions, *study.tuned, *study.derived)
        if str(column).startswith("param:") and not own and not follows_seed(runs, key):
            values = runs.groupby("adapter")[column].agg(["nunique", "first"])
            if (values["nunique"] == 1).all() and values["first"].nunique() > 1:
                found.append(key)
    return found


def margins(study: Study) -> str:
    """The margins of the measures, and the measures without one."""
    declared = []
    for measure in study.answered:
        if measure.margin is not None:
            declared.append(f"±{measure.margin:g} in {measure.label}")
        elif measure.margin_share is not None:
            of = "" if measure.share_of == measure.column else f" {study.selection.label}"
            declared.append(f"±{measure.margin_share * 100:g} % of {study.baseline}'s{of} in {measure.label}")
    without = [measure.label for measure in study.answered if measure.margin is None and measure.margin_share is None]
    text = f"Equivalent means within {', '.join(declared)}." if declared else ""
    if without:
        text += f" No margin is declared for {', '.join(without)}, so that nothing is equivalent there."
    return text.strip()


def coverage(study: Study, quality: pd.DataFrame) -> str:
    """The coverage of the intervals in words, by what varies between seeds. quality: comparisons of the study's quality."""
    keys = ["adapter", *study.conditions]
    varies = "data_fingerprint" in study.finished and bool(
        (study.finished.groupby(keys, dropna=False)["data_fingerprint"].nunique() > 1).any()
    )
    drawn = ", the order of the data and the draw of training items" if varies else " and the order of the data"
    items = study.finished.get("test_items", pd.Series(dtype=float)).dropna().unique()
    which = f"{items[0]:,.0f} test items" if len(items) == 1 else "test items"
    known = "data_fingerprint" in study.finished
    # where the data brings all splits, none is cut
    cut = (varies or not known) and follows_seed(study.finished, SPLIT_SEED)
    drawn = f", the cut of the splits{drawn.replace(' and the order', ', the order')}" if cut else drawn
    text = f"Intervals cover what a seed changes: the start of the adapter{drawn}. "
    if "items_low" in quality and quality["items_low"].notna().any():
        text += (
            f"The second interval, over test items too, also covers the choice of the {which}: another draw of as many. "
            "Neither covers other data or other backbones; verdicts are by the first."
        )
    else:
        text += f"They do not cover {'' if cut else f'the choice of the {which}, '}other data or other backbones."
    fixed_at = study.finished.get(f"param:{SPLIT_SEED}", pd.Series(dtype=str)).dropna().unique()
    if cut:
        text += (
            f" Every seed cuts anew the splits that the data does not bring ({SPLIT_SEED} follows seed); of test items that "
            "it brings, the choice is not covered."
        )
    elif len(fixed_at) == 1:
        text += f" All seeds share their splits ({SPLIT_SEED}={fixed_at[0]})."
    if study.quality.split and len(items) == 0:
        text += " The number of test items was not recorded, so that steps of one item cannot be allowed for."
    return text


def repeated_looks(looks: Sequence[Look], margins: Sequence[Mapping[str, float]] = ()) -> str:
    """How often the results were looked at, and what that does to the error rate.

    Args:
        margins: those that the sweep's commands declared, one after the other.
    """
    if len(looks) < 2:
        text = "This is the first report of these runs, so that the error rates hold as stated."
    else:
        seen = ", ".join(str(look.finished) for look in looks)
        text = (
            f"The results were looked at {len(looks)} times (with {seen} finished runs). If runs were added because of what a "
            f"look showed, and ended with the first verdict, a table without any difference has a verdict not in {LEVEL:.0%} "
            f"but in up to {min(1.0, LEVEL * len(looks)):.0%} of sweeps."
        )
    declared = [*margins, *(look.margins for look in looks)]
    if any(one != declared[-1] for one in declared):
        text += " The declared margins were other ones before, so that they could have been chosen to fit."
    return text
