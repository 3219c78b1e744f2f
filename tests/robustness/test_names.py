"""Names with anything in them: of adapters in figures, tables, pages and on the terminal, and of the outputs folder."""

import csv
import json
import sys

import pytest

from foura.cli import main
from tests.helpers.runs import children

NAME = "=1+1$\\frac{$[/x]<b>:smile:\x1b[2J"
SAFE = NAME.replace("\x1b", "\\x1b")
QUICK = ("adapter=lora", "rank=4", "dataset.limit=40", "dataset.epochs=1")


@pytest.mark.slow
def test_an_adapter_of_any_name_ends_its_run_and_its_report(train, monkeypatch, capsys, tmp_path) -> None:
    ended = train("-m", "sweep=s", *QUICK, f'adapter.name="{NAME}"', into="a ?x#%20")
    assert ended.code == 0, ended.out
    assert "the report could not be made" not in ended.out and "\x1b" not in ended.out
    report = ended.outputs / "sweeps" / "s" / "report"
    with open(report / "runs.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["adapter"] == f"'{SAFE}" and row["state"] == "finished" and row["rank"] == "4"
    assert not [cell for cell in row.values() if cell.startswith(("=", "@"))]
    page = (report / "report.html").read_text()
    assert "<b>" not in page.split("<body", 1)[1] and "&lt;b&gt;" in page and "\x1b" not in page
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf") == ["a ?x#%20"]
    _, (run,) = children(ended.outputs, "s")
    assert run.data.params["adapter.name"] == NAME

    (status,) = ended.outputs.glob("sweeps/s/*/status.json")
    status.write_text(
        json.dumps({**json.loads(status.read_text()), "state": "failed", "error": "\x1b]0;owned\x07 \u202eb"})
    )
    monkeypatch.setattr(sys, "argv", ["foura", "status", "s", "--outputs", str(ended.outputs)])
    main()
    said = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07 \\u202eb" in said and "\x1b" not in said and "\u202e" not in said


@pytest.mark.parametrize("override", ["outputs=a=b", "adapter.start_from=runs/x=1"])
def test_a_value_that_needs_quotes_is_said(override, train) -> None:
    ended = train(*QUICK, override)
    assert ended.code.startswith("error: the command cannot be read") and "'outputs=\"a=b\"'" in ended.code
