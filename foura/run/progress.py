"""The progress of a run on the terminal: a bar with ETA, or plain lines where the output is not a terminal."""

import time
from collections.abc import Iterable

from pytorch_lightning import Trainer
from rich.console import Console, RenderableType
from rich.progress import Progress, TaskID
from rich.text import Text

from foura.metrics import Metric

LOG_WIDTH = 120  # columns where there is no terminal
LINES = 10  # of a run, about
SHORTEST, LONGEST = 8, 40  # characters of a bar


def make_console(quiet: bool) -> Console:
    """The console of a run; `quiet` for processes other than rank 0."""
    console = Console(highlight=False, markup=False, emoji=False, quiet=quiet)  # names are shown as they are
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def progress_line(width: int, title: str, done: int, total: int, left: float | None, metrics: Iterable[str]) -> str:
    """One line of at most `width` characters: title, bar, count, metrics, time left.

    Where it is too narrow, the bar goes first, then the title, then the metrics; count and time left are never cut.

    Args:
        left: seconds until the end; None if it is not known. metrics: the same in several lengths, the longest first.
    """
    count, eta = f"{done}/{total}", f"ETA {'-:--:--' if left is None else _clock(left)}"
    room = width - len(count) - len(eta) - 1
    shown = next((text for text in metrics if len(text) + 1 <= room), "")
    room -= len(shown) + 1 if shown else 0
    title = title if len(title) + 1 <= room else ""
    room -= len(title) + 1 if title else 0
    size = min(room - 1, LONGEST)
    filled = size * done // max(total, 1)
    bar = "━" * filled + "─" * (size - filled) if size >= SHORTEST else ""
    return " ".join(part for part in (title, bar, count, shown, eta) if part)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0.0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


class _Line(Progress):
    """A progress display of one line, as `progress_line` lays it out."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            metrics = task.fields["metrics"]
            done, total = int(task.completed), int(task.total or 0)
            width = self.console.width
            yield Text(progress_line(width, task.description, done, total, task.time_remaining, metrics), no_wrap=True)


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
            self.progress = _Line(console=self.console)
            self.progress.start()
            self.row: TaskID = self.progress.add_task(self.title, total=self.total, metrics=())

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
            self.progress.update(self.row, metrics=(text, f"{key} val {val:.3f} gap {gap:+.3f}", f"val {val:.3f}"))
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
