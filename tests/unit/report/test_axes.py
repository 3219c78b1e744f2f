"""Axes of counts have whole numbers on them, and open ranks are drawn against all ranks."""

import re

import pandas as pd

from foura.report import plots, updates
from foura.run.figures import draw_curves
from tests.helpers.sweeps import study_of


def labels(svg: bytes, axis: str) -> list[float]:
    """The numbers at the ticks of an SVG's first axis of this name, "xtick" or "ytick"."""
    pattern = rf'id="{axis}_\d+">.*?<text[^>]*>([^<]*)</text>'
    return [float(text.replace("−", "-")) for text in re.findall(pattern, svg.decode(), flags=re.DOTALL)]


def whole(numbers: list[float]) -> bool:
    return len(numbers) > 1 and all(number == int(number) for number in numbers)


def of_one_rank(rank: int):
    return study_of({"adapter": name, "seed": 0, "rank": rank, "test": 0.5} for name in ("lora", "foura"))


def test_open_ranks_have_an_axis_from_zero_to_the_rank() -> None:
    """Values from 3.99985 to 4 would fill the axis if it followed them."""
    study = of_one_rank(4)
    rows = [{"run_id": one, "measure": "adapter/open_ranks", "epoch": epoch, "value": 4 - 0.00005 * epoch}
            for one in study.finished["run_id"] for epoch in (1, 2, 3)]  # fmt: skip
    (panel,) = plots.further_curves(study, pd.DataFrame(rows))
    assert labels(panel.svg, "ytick") == [0, 1, 2, 3, 4] and labels(panel.svg, "xtick") == [1, 2, 3]


def test_open_ranks_of_sixteen_are_whole_numbers() -> None:
    study = of_one_rank(16)
    rows = [{"run_id": one, "measure": "adapter/open_ranks", "epoch": epoch, "value": 12.5}
            for one in study.finished["run_id"] for epoch in (1, 2)]  # fmt: skip
    (panel,) = plots.further_curves(study, pd.DataFrame(rows))
    ticks = labels(panel.svg, "ytick")
    assert whole(ticks) and ticks[0] == 0 and 12 <= ticks[-1] <= 16


def test_singular_values_are_numbered_without_fractions() -> None:
    study = of_one_rank(4)
    rows = [{"run_id": one, "layer": "a", "index": index, "value": 1 / index}
            for one in study.finished["run_id"] for index in (1, 2, 3, 4)]  # fmt: skip
    (panel,) = updates.spectra(study, pd.DataFrame(rows))
    assert labels(panel.svg, "xtick") == [1, 2, 3, 4]


def test_a_run_of_three_epochs_has_whole_epochs(tmp_path) -> None:
    rows = [{"epoch": epoch, **{f"{part}/acc": 0.5 + 0.1 * epoch for part in ("train_eval", "val", "gap")}}
            for epoch in range(3)]  # fmt: skip
    draw_curves(rows, ["acc"], 2, "a run", tmp_path / "curves.svg")
    assert whole(labels((tmp_path / "curves.svg").read_bytes(), "xtick"))


def test_panels_of_one_rank_show_every_adapter_and_run() -> None:
    """Rows in place of an axis of one value: the marks lie inside the axes, with half a row of room."""
    study = study_of(
        {"adapter": name, "seed": seed, "rank": 4, "test": 0.5 + 0.1 * seed}
        for name in ("lora", "foura", "dora")
        for seed in range(3)
    )
    (panel,) = plots.by_measure(study, study.quality)
    names = re.findall(r">(lora|foura|dora)</text>", panel.svg.decode())
    assert sorted(names) == ["dora", "foura", "lora"]
    width, height = map(float, re.findall(rb'(?:width|height)="([\d.]+)pt"', panel.svg)[:2])
    marks = re.findall(rb'<use xlink:href="#m\w+" x="([\d.]+)" y="([\d.]+)"', panel.svg)
    assert len(marks) >= 3 * 3 and all(0 < float(x) < width and 0 < float(y) < height for x, y in marks)
