"""The table of docs/robustness.md, from what the tests of a `make test-all` recorded: python -m tests.helpers.survives"""

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".pytest_cache" / "survives"
BEGIN, END = "<!-- survives: made by make test-all -->\n", "<!-- /survives -->\n"
GROUPS = ("processes", "schedulers", "tracking", "faults", "bad input", "load")


def record(group: str, what: str, tried: str, lost: int = 0) -> None:
    """Keep a line for the table: called by a test when all that it asserts has held.

    Args:
        tried: the figure: how many runs, faults or inputs. lost: runs or results.
    """
    assert group in GROUPS
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in f"{group}-{what}")
    (FOLDER / f"{name}.json").write_text(json.dumps([group, what, tried, lost]), encoding="utf-8")


def table() -> str:
    """The recorded lines as Markdown."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")]
    rows = sorted(found, key=lambda row: (GROUPS.index(row[0]), row[1]))
    lines = [f"| {group} | {what} | {tried} | {lost} |" for group, what, tried, lost in rows]
    return "\n".join(["| | what happened | tried | lost |", "|---|---|---|---|", *lines]) + "\n"


def main() -> None:
    page = ROOT / "docs" / "robustness.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
    shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
