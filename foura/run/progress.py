"""The progress of a run on the terminal: a bar with ETA, or plain lines where the output is not a terminal."""

import time

from pytorch_lightning import Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from foura.metrics import Metric

LOG_WIDTH = 120  # columns where there is no terminal
LINES = 10  # of a run, about


def make_console(quiet: bool) -> Console:
    """The console of a run; `quiet` for processes other than rank 0."""
    console = Console(highlight=False, markup=False, emoji=False, quiet=quiet)  # names are shown as they are
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


class ProgressDisplay:
    """Shows the progress of training, with the run's main metric.

    Args:
        title: of the run. metric: the one that is shown after each epoch.
        bar: draw a bar if the console is a terminal. lines: print lines where there is no bar.
    """

    def __init__(self, console: Console, title: str, metric: Metric, bar: bool, lines: bool) -> None:
        self.console, self.title, self.metric, self.lines = console, title, metric, lines
        self.bar = bar and console.is_terminal
        self.progress: Progress | None = None

    def start(self, trainer: Trainer, steps: int) -> None:
        """Training of so many optimizer steps begins, or resumes."""
        self.began, self.first = time.monotonic(), trainer.global_step
        self.total = steps
        if self.bar:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[metrics]}", markup=False))
            times = (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
            self.progress = Progress(
                TextColumn("{task.description}", markup=False), *columns, *times, console=self.console
            )
            self.progress.start()
            self.row = self.progress.add_task(self.title, total=self.total, metrics="")

    def step(self, trainer: Trainer) -> None:
        """An optimizer step is done."""
        if self.progress is not None:
            self.progress.update(self.row, completed=trainer.global_step)

    def epoch(self, trainer: Trainer, row: dict[str, float]) -> None:
        """An epoch was evaluated: `row` of the history."""
        key = self.metric.key
        train, val, gap = (row[f"{part}/{key}"] for part in ("train_eval", "val", "gap"))
        text = f"{key} train {train:.3f} val {val:.3f} gap {gap:+.3f}"
        if self.progress is not None:
            self.progress.update(self.row, metrics=text)
        elif self.lines:
            self._line(trainer, text)

    def _line(self, trainer: Trainer, text: str) -> None:
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        epoch = trainer.current_epoch + 1
        if epochs and epoch % max(1, epochs // LINES) and epoch != epochs:
            return
        done, left = trainer.global_step - self.first, self.total - trainer.global_step
        eta = (time.monotonic() - self.began) * left / done if done else 0.0
        self.console.print(f"{self.title}: epoch {epoch}{f'/{epochs}' if epochs else ''}  {text}  ETA {eta:.0f} s")

    def stop(self) -> None:
        """Training has ended, in whatever way."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
