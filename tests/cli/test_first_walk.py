"""The first walk of a new user, in a real browser: own pictures, a run, a sweep, its page, MLflow's UI, an exported adapter."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from peft import PeftModel
from PIL import Image, ImageDraw

from foura.run.load import load_adapter, read_config, rebuild
from tests.helpers.browser import BROWSER, Browser, browser
from tests.helpers.commands import run_foura
from tests.helpers.network import answers, free_port
from tests.helpers.runs import children
from tests.helpers.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("first walk"),
    pytest.mark.skipif(BROWSER is None, reason="no chromium here: `apt install chromium` to look at the UI"),
]
SHAPES = ("circle", "cross", "square", "stripes")
SWEEP = ("-m", "sweep=walk", "adapter=lora,foura", "rank=2,4", "dataset.epochs=1", "trainer.max_steps=4")
# of every figure that is not folded away: loaded, its width on the page, where it ends on the right
FIGURES = """[...document.images].filter(one => one.checkVisibility()).map(one =>
    [one.complete && one.naturalWidth > 0, one.clientWidth / one.naturalWidth, one.getBoundingClientRect().right])"""


def draw(shape: str, number: int) -> Image.Image:
    """A white shape on black, at a place and of a size that follow from the number."""
    picture = Image.new("L", (32, 32))
    pen, left, size = ImageDraw.Draw(picture), 3 + number % 5, 16 + number % 9
    right = left + size
    if shape == "circle":
        pen.ellipse((left, left, right, right), outline=255, width=3)
    elif shape == "square":
        pen.rectangle((left, left, right, right), fill=255)
    elif shape == "cross":
        pen.line((left, left, right, right), fill=255, width=4)
        pen.line((left, right, right, left), fill=255, width=4)
    else:
        for x in range(left, right, 6):
            pen.line((x, 0, x, 31), fill=255, width=2)
    return picture


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """200 pictures in four folders, named by their classes."""
    folder = tmp_path_factory.mktemp("walk") / "pictures"
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in range(50):
            draw(shape, number).save(folder / shape / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def walk(pictures, train_into) -> Path:
    """The outputs of a run, and of a sweep of two adapters, two ranks and three seeds."""
    outputs, data = pictures.parent / "outputs", ("dataset=imagefolder", f"dataset.path={pictures}")
    ended = train_into(outputs, "adapter=foura", "rank=8", "dataset.epochs=10", *data)
    assert ended.code == 0, ended.out
    assert "4 classes (chance 0.25)" in ended.out and "pretrained on rendered letters" in ended.out
    assert "adapter: " in ended.out and "foura ui" in ended.out
    ended = train_into(outputs, *SWEEP, "seed=0,1,2", *data)
    assert ended.code == 0 and "sweep walk: 12 finished" in ended.out, ended.out
    assert "test accuracy: of 2 comparisons with lora: " in ended.out and "report/report.html" in ended.out
    return outputs


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def ui(walk, run_env):
    """The address of the runs, as `foura ui --open` hands it to the user's browser: here a program that writes it down."""
    given, opener = walk.parent / "opened", walk.parent / "opener"
    opener.write_text(f'#!/bin/sh\nprintf %s "$1" > "{given}.part" && mv "{given}.part" "{given}"\n')
    opener.chmod(0o755)
    command = [sys.executable, "-m", "foura", "ui", str(walk), "--port", str(free_port()), "--open"]
    env = {**run_env, **os.environ, "PYTHONPATH": run_env["PYTHONPATH"], "BROWSER": str(opener)}
    server = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        printed = server.stdout.readline().strip()
        wait_until(given.exists, "the browser that --open starts")
        assert given.read_text() == printed and answers(f"{printed.split('/#/')[0]}/health")
        yield printed
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def report_of(outputs: Path) -> str:
    return (outputs / "sweeps/walk/report/report.html").as_uri()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_shows_its_answer_and_every_figure_whole(width, walk, eyes, tmp_path) -> None:
    eyes.open(report_of(walk), width)
    text = eyes.seen("Where this comes from")
    assert "12 runs: 12 finished" in text and "test accuracy: of 2 comparisons with lora: " in text
    assert text.index("test accuracy: of") < text.index("Means over seeds") < text.index("How the verdicts are reached")
    assert re.search(r"0\.\d+ ± 0\.\d+", text)  # mean and spread in one cell
    assert "peak memory, MB" not in text and "stable rank" not in text  # folded away
    page = (walk / "sweeps/walk/report/report.html").read_text(encoding="utf-8")
    assert "http" not in page.split("Where this comes from")[0]  # nothing is fetched
    figures = eyes.value(FIGURES)
    assert len(figures) >= 6
    assert all(loaded and scale >= 0.9 and right <= width for loaded, scale, right in figures), figures
    assert eyes.value("document.documentElement.scrollWidth") <= width  # the page does not scroll sideways
    eyes.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    opened = eyes.seen("peak memory, MB", "stable rank", "differences from lora", "All 12 runs")
    assert "equivalent" in opened or "undecided" in opened
    assert all(loaded and scale >= 0.9 and right <= width for loaded, scale, right in eyes.value(FIGURES))
    eyes.screenshot(tmp_path / f"report-{width}.png")


def test_the_list_the_sweep_a_run_and_a_comparison_are_seen_in_the_ui(walk, ui, eyes, tmp_path) -> None:
    base = ui.split("/#/")[0]
    (parent,), runs = children(walk, "walk")
    eyes.open(ui)
    listed = eyes.seen("walk", "foura r8", "test/acc")
    assert "Detect Issues" not in listed and "Model training" in listed
    eyes.screenshot(tmp_path / "list.png")
    eyes.open(f"{ui}.walk")
    names = {run.info.run_name for run in runs}
    assert len(names) == 12
    assert "12 matching runs" in eyes.seen(*names)
    eyes.screenshot(tmp_path / "sweep.png")
    one = runs[0]
    eyes.open(f"{base}/#/experiments/{one.info.experiment_id}/runs/{one.info.run_id}?workflowType=machine_learning")
    opened = eyes.seen(one.info.run_name, "test/acc", "python train.py")
    assert "dataset.path" in opened
    eyes.screenshot(tmp_path / "run.png")
    place = f"{base}/#/experiments/{one.info.experiment_id}/runs/{parent.info.run_id}"
    eyes.open(f"{place}/artifacts/report/report.html?workflowType=machine_learning")
    eyes.seen("report.html", "verdicts.txt")
    ids, experiments = (
        quote(json.dumps(names)) for names in ([run.info.run_id for run in runs[:4]], [one.info.experiment_id])
    )
    eyes.open(f"{base}/#/compare-runs?runs={ids}&experiments={experiments}")
    compared = eyes.seen("Comparing 4 Runs", *(run.info.run_name for run in runs[:4]))
    assert all(run.info.run_id in compared for run in runs[:4])
    eyes.screenshot(tmp_path / "comparison.png")


def test_a_run_is_dropped_and_seeds_are_added(walk, pictures, train_into, ui, eyes) -> None:
    _, runs = children(walk, "walk")
    folder = next(path for path in sorted((walk / "sweeps/walk").iterdir()) if "adapter=foura" in path.name)
    said = run_foura("drop", f"walk/{folder.name}", "--outputs", str(walk), outputs=walk)
    assert said.code == 0 and not folder.exists()
    assert "11 started: 11 finished" in run_foura("status", "walk", "--outputs", str(walk), outputs=walk).out
    eyes.open(f"{ui}.walk")
    assert "11 matching runs" in eyes.seen("11 matching runs")
    ended = train_into(walk, *SWEEP, "seed=0,1,2,3", "dataset=imagefolder", f"dataset.path={pictures}")
    assert ended.code == 0 and "sweep walk: 16 runs, 11 done, 5 to run" in ended.out, ended.out
    eyes.open(report_of(walk), 390)
    assert "4 shared seeds" in _unfolded(eyes, "16 runs: 16 finished")
    eyes.open(f"{ui}.walk")
    eyes.seen("16 matching runs", *(run.info.run_name for run in runs))


def _unfolded(eyes: Browser, wanted: str) -> str:
    """The visible text with everything unfolded, once `wanted` is seen."""
    eyes.seen(wanted)
    eyes.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    return eyes.text()


def test_the_exported_adapter_predicts(walk, tmp_path) -> None:
    """An ordinary LoRA on the frozen model names the shapes, as the run's own adapter does."""
    (run,) = (path.parent for path in walk.glob("runs/*/status.json"))
    said = run_foura("export", str(run), "--to", "lora", str(tmp_path / "lora"), "--freeze", outputs=walk)
    assert said.code == 0 and re.search(r"Frozen gates: \d+ of 128 ranks kept", said.out), said.out
    cfg = read_config(run)
    backbone = rebuild(run, cfg)
    images = torch.stack([backbone.preprocess(draw(shape, number)) for shape in SHAPES for number in range(50, 60)])
    with torch.no_grad():
        ours = load_adapter(rebuild(run, cfg).model, run, cfg).eval()(images).argmax(1)
        found = PeftModel.from_pretrained(backbone.model, str(tmp_path / "lora")).eval()(images).argmax(1)
    right = torch.arange(len(SHAPES)).repeat_interleave(10)  # classes are in alphabetical order
    assert (found == right).float().mean() > 0.6  # chance is 0.25
    assert (found == ours).float().mean() > 0.9
