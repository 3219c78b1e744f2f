"""Every command line and every link of the README, docs/, CONTRIBUTING and experiments/ is one that works."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foura import cli
from foura.config import check
from tests.helpers.config import CONF, composed

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, *sorted((ROOT / "experiments").rglob("*.md")), *sorted((ROOT / "foura").rglob("*.md"))]
# they start other programs, need what is not installed with the rest (Ray), or are what a command prints (r64)
ELSEWHERE = ("torchrun", "hydra/launcher=ray", "experiments/benchmarks/", "hydra.searchpath", "r64")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every indented command line of a page; a comment ends it, a backslash continues it."""
    text = re.sub(r" *\\\n +", " ", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^ {4,}((?:\S+=\S+ )*(?:python|foura|make|torchrun) \S.*)$", text, flags=re.MULTILINE):
        for part in re.split(r" && ", line):
            yield shlex.split(part, comments=True)


def told(program: str, pages: list[Path] = DOCS) -> list[list[str]]:
    found = [words for page in pages for words in commands(page) if words[0] == program]
    assert found
    return [words for words in found if not any(skipped in word for word in words for skipped in ELSEWHERE)]


def trained(sweep: bool) -> list[list[str]]:
    """The overrides of every `python train.py`."""
    found = [
        words[2:] for words in told("python", [*DOCS, ROOT / "experiments" / "README.md"]) if words[1] == "train.py"
    ]
    return [[word for word in words if word != "-m"] for words in found if ("-m" in words) == sweep]


@pytest.mark.parametrize("overrides", trained(sweep=False), ids=" ".join)
def test_a_run_is_a_legal_config(overrides) -> None:
    check(composed(*(word for word in overrides if word not in ("--cfg", "job"))))


@pytest.mark.parametrize("overrides", trained(sweep=True), ids=" ".join)
def test_a_sweep_can_be_planned(overrides, train) -> None:
    planned = train("-m", *overrides, "plan=true")
    assert planned.code == 0 and "to run" in planned.out, planned.out


@pytest.mark.parametrize("words", told("foura"), ids=" ".join)
def test_a_command_and_its_options_exist(words, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["foura", words[1], "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    shown = capsys.readouterr().out
    assert all(word in shown for word in words if word.startswith("--"))


def test_make_has_the_targets() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {words[1] for words in told("make", PAGES)} <= set(targets)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_readme_has_every_adapter_and_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Adapters\n")[2].partition("\n## ")[0]
    first_column = " ".join(re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_column)) == {path.stem for path in (CONF / "adapter").glob("*.yaml")}
    assert all(f"(docs/{page.name})" in readme for page in (ROOT / "docs").glob("*.md"))
