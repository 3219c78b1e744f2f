"""The progress line at the widths of terminals."""

import pytest

from foura.run.artifacts import _table_of
from foura.run.progress import make_console, progress_line

METRICS = ("acc train 0.750 val 0.666 gap +0.084", "acc val 0.666 gap +0.084", "val 0.666")


def line(width: int, title: str = "foura_dct_frozen r64 seed 0") -> str:
    return progress_line(width, title, 155, 520, 754.0, METRICS)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_count_and_time_left_are_always_whole(width) -> None:
    shown = line(width)
    assert len(shown) <= width
    assert "155/520" in shown and shown.endswith("ETA 0:12:34")


def test_the_bar_goes_first_then_the_title_then_the_metrics() -> None:
    assert line(20) == "155/520 ETA 0:12:34"
    assert line(40) == "155/520 val 0.666 ETA 0:12:34"[:40] or METRICS[1] not in line(40)
    assert METRICS[0] in line(80) and "━" in line(200) and "foura_dct_frozen r64 seed 0" in line(200)
    assert line(40).count("val 0.666") == 1 and "seed" not in line(40)
    assert line(200).count("━") == 40 * 155 // 520


def test_an_unknown_time_left() -> None:
    assert progress_line(40, "x", 0, 10, None, ()).endswith("0/10 ETA -:--:--")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_of_results_cuts_no_number(width, capsys) -> None:
    cells = {"parameters": "559,626", "train": "1.000", "val": "0.937", "test": "0.932", "gap": "+0.063"}
    cells |= {"open ranks": "58.9", "step ms": "53", "peak MB": "1,249"}
    console = make_console(quiet=False)
    console.width = width
    console.print(_table_of("foura r64 seed 0: accuracy of the selected epoch, and cost", cells, width))
    shown = capsys.readouterr().out
    assert all(name in shown and value in shown for name, value in cells.items())
    assert all(len(row) <= width for row in shown.splitlines())
