"""Where the seconds of a sweep go: sixteen default runs in one process, by phase.

    python experiments/benchmarks/phases.py                     # about two minutes on a quiet machine

Writes phases.csv: seconds of each phase, and their share of the wall time. "training" and "evaluation" are the steps alone,
"forgetting" is the evaluation on pretraining data before and after training; what is in none of the phases (Lightning's
loops, hooks, logging) is "rest". The last row compares the wall time with the sum of training, evaluation and forgetting.
"""

import argparse
import contextlib
import csv
import functools
import importlib
import io
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# (module, the attribute to time, phase). The innermost phase counts: a nested one is taken off the one around it.
TIMED = (
    ("foura.run.worker", "load_run", "imports"),
    ("foura.run.run", "build", "data and backbone"),
    ("foura.run.run", "attach", "adapter"),
    ("foura.run.run", "_fit", "rest of fit"),
    ("foura.families.task", "Task.optimizer_step", "training"),
    ("foura.families.task", "Task.validation_step", "evaluation"),
    ("foura.families.task", "Task.test_step", "evaluation"),
    ("foura.run.checkpoint", "Checkpoint._write", "checkpoints"),
    ("foura.run.before", "pretraining_loss", "forgetting"),
    ("foura.run.run", "_costs", "cost of a step"),
    ("foura.run.run", "_table", "update of each layer"),
    ("foura.run.run", "draw", "figures"),
    ("foura.run.run", "save_adapter", "saving the adapter"),
    ("foura.tracking.journal", "Outbox.send", "tracking"),
    ("foura.tracking.tracked_run", "TrackedRun.close", "tracking"),
    ("foura.sweep.callback", "SweepCallback.on_multirun_start", "start of the sweep"),
    ("foura.sweep.callback", "SweepCallback.on_multirun_end", "report"),
)
SWEEP = ("-m", "sweep=phases", "adapter=lora,foura_dct", "rank=4,16", "seed=0,1,2,3")


class Clock:
    """Seconds by phase; the phase that was entered last is the one that runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside: list[str] = ["rest"]
        self.since = time.perf_counter()

    def switch(self, phase: str | None) -> None:
        """Enter a phase, or leave the present one (None)."""
        now = time.perf_counter()
        self.seconds[self.inside[-1]] = self.seconds.get(self.inside[-1], 0.0) + now - self.since
        self.since = now
        if phase is None:
            self.inside.pop()
        else:
            self.inside.append(phase)

    def timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            self.switch(phase)
            try:
                return function(*args, **options)
            finally:
                self.switch(None)

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "phases.csv")
    parser.add_argument("keys", nargs="*", help="further keys of the sweep, such as trainer.max_epochs=2")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    began = time.perf_counter()
    clock = Clock()
    with tempfile.TemporaryDirectory() as outputs:
        sweep([*SWEEP, *args.keys, f"outputs={outputs}"], clock)
    clock.switch("end")
    wall = time.perf_counter() - began
    steps = sum(clock.seconds[phase] for phase in ("training", "evaluation", "forgetting"))
    rows = sorted(clock.seconds.items(), key=lambda item: -item[1])
    with args.out.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# 16 runs, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("phase", "seconds", "share"))
        writer.writerows((phase, f"{seconds:.2f}", f"{seconds / wall:.3f}") for phase, seconds in rows)
        writer.writerow(("wall / (training + evaluation + forgetting)", f"{wall:.2f}", f"{wall / steps:.3f}"))
    print(args.out.read_text(encoding="utf-8"))


def sweep(arguments: list[str], clock: Clock) -> None:
    """The sweep in this process, with the phases timed."""
    clock.switch("imports")
    for module, name, phase in TIMED:
        *owners, attribute = name.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, attribute, clock.timed(getattr(owner, attribute), phase))
    clock.switch(None)
    sys.argv = [str(ROOT / "train.py"), *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
