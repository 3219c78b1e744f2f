"""Commands that get a signal at a chosen point of their work: the same point every time, however fast the machine is."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# argv: the event, which of them, the signal, how often; then the command. A signal that comes while a file or folder is
# being written finds half of it there.
SCRIPT = """
import os, pathlib, runpy, sys
event, number, signum, times = sys.argv[1], *map(int, sys.argv[2:5])
del sys.argv[:5]

def came():
    global number
    number -= 1
    return number == 0

def stop():
    for _ in range(times):
        os.kill(os.getpid(), signum)

if event == "step":
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(lambda *_: stop() if came() else None)
else:
    when, name = event.split()
    real = os.replace

    def replace(source, target, **more):
        due = pathlib.Path(target).name == name and came()
        if due and when == "writing":
            for part in [source] if os.path.isfile(source) else [*pathlib.Path(source).iterdir()]:
                os.truncate(part, os.path.getsize(part) // 2)
            stop()
        real(source, target, **more)
        if due:
            stop()

    os.replace = replace
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def stopped(
    root: Path,
    env: Mapping[str, str],
    outputs: Path,
    *arguments: str,
    at: str = "wrote checkpoint.pt",
    number: int = 1,
    by: int = signal.SIGKILL,
    times: int = 1,
) -> subprocess.CompletedProcess[str]:
    """Run `python train.py ARGUMENTS outputs=OUTPUTS`, which gets the signal `by` at an event, and wait for its end.

    Args:
        at: "step" (after an optimizer step), "writing NAME" or "wrote NAME" (a file or folder that is moved into place).
        number: which of these events, counted from 1.
        times: how often the signal comes, without a pause.
    """
    script = [sys.executable, "-c", SCRIPT, at, str(number), str(int(by)), str(times)]
    return subprocess.run(
        [*script, str(root / "train.py"), *arguments, f"outputs={outputs}"],
        env=dict(env),
        cwd=outputs.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        # tests may run where Ctrl-C is ignored, as in the background of a shell
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
