"""The `foura` command: look at runs, export adapters, remake weights. Runs are started by `python train.py`.

Light on purpose: each command imports what it needs, once its arguments are known to be sound.
"""

import argparse
import collections
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foura.errors import UserError, cannot_write, exit_without_lab, reason
from foura.threads import spin_briefly


def main() -> None:
    """Entry point of `foura` and `python -m foura`."""
    spin_briefly()
    arguments = _parser().parse_args()
    try:
        arguments.run_command(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        exit_without_lab(error)
    except Exception as error:
        if not cannot_write(error):
            raise
        sys.exit(f"error: cannot write ({reason(error)}); make room, or name another place.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="foura", description="Look at runs, export adapters, remake weights. `python train.py` starts runs."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run_command=run)
        return added

    _add_looking(command)
    _add_making(command)
    return parser


def _add_looking(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that show runs."""
    outputs: Any = {"default": "outputs", "type": Path, "help": "the folder of the runs (default: outputs)"}
    ui = command("ui", _ui, "open the MLflow UI over the runs in a folder")
    ui.add_argument("outputs", nargs="?", **outputs)
    ui.add_argument("--port", type=int, default=5000, help="default: 5000")
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    page = command("report", _report, "make a sweep's report again, from the tracking store alone")
    page.add_argument("sweep")
    page.add_argument("--outputs", **outputs)
    page.add_argument("--into", default=None, type=Path, help="where to write (default: the sweep's folder)")
    state = command("status", _status, "list the runs of a sweep with their states")
    state.add_argument("sweep")
    state.add_argument("--outputs", **outputs)
    sync = command("sync", _sync, "send the tracking store what it did not take, or has lost")
    sync.add_argument("outputs", nargs="?", **outputs)


def _add_making(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that make something of runs and models."""
    export = command("export", _export, "write a run's adapter in a form that another library loads")
    export.add_argument("run", type=Path, help="the folder of a finished run")
    export.add_argument(
        "--to", required=True, help="peft, lora, merged, or another form of the backbone's family (UNets: kohya)"
    )
    export.add_argument("out", type=Path, help="a folder that does not exist yet")
    export.add_argument("--freeze", action="store_true", help="fix an adaptive gate first, on the run's training data")
    pretrain = command("pretrain", _pretrain, "remake a bundled backbone's weights (5 to 25 minutes on 2 cores)")
    pretrain.add_argument("backbone", nargs="?", default="vit", help="a choice of backbone= (default: vit)")
    pretrain.add_argument("--out", type=Path, default=None, help="where to write (default: into the package)")
    merge = command("merge-eval", _merge, "evaluate the adapters of several runs together, each at its strength")
    merge.add_argument("runs", nargs="+", type=Path, help="folders of finished runs on one backbone")
    merge.add_argument("--strengths", nargs="+", type=float, default=None, help="one per run (default: 1 for each)")
    merge.add_argument("--out", type=Path, default=Path("outputs/merged"), help="the folder for images and merged.csv")


def _ui(arguments: argparse.Namespace) -> None:
    store = _store(arguments.outputs)
    if importlib.util.find_spec("mlflow") is None:
        raise ModuleNotFoundError(name="mlflow")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # three times faster to start, a third of the memory
    print(f"http://{arguments.host}:{arguments.port}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--workers", "1"]
    os.execv(sys.executable, [*command, "--host", arguments.host, "--port", str(arguments.port)])


def _store(outputs: Path) -> str:
    """The address of a tracking store that exists; none is created.

    Raises:
        UserError: there is no store in the folder, and MLFLOW_TRACKING_URI names no other.
    """
    database = outputs.absolute() / "mlflow.db"
    if "MLFLOW_TRACKING_URI" not in os.environ and not database.is_file():
        raise UserError(f"there are no runs at {database}; `python train.py` makes some, or name another folder.")
    return os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{database}")


def _report(arguments: argparse.Namespace) -> None:
    _store(arguments.outputs)
    from foura.report.page import report

    print(report(arguments.outputs.absolute(), arguments.sweep, arguments.into))


def _status(arguments: argparse.Namespace) -> None:
    from foura.sweep.plan import sweep_folder, sweep_status

    runs = sweep_status(sweep_folder(arguments.outputs, arguments.sweep))
    for name, status in runs:
        print(f"{status['state']:<12} {name}  {status.get('error', '')}".rstrip())
    counts = collections.Counter(status["state"] for _, status in runs)
    print(f"{len(runs)} started: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))


def _sync(arguments: argparse.Namespace) -> None:
    if not arguments.outputs.is_dir():
        raise UserError(f"there is no folder {arguments.outputs.absolute()}; name the folder of the runs.")
    from foura.tracking.sync import sync

    done = sync(arguments.outputs.absolute())
    for name, what in done:
        print(f"{what}: {name}")
    if not done:
        print("nothing to send")


def _export(arguments: argparse.Namespace) -> None:
    from foura.run.export import export

    export(arguments.run, arguments.to, arguments.out, arguments.freeze)
    print(arguments.out)


def _pretrain(arguments: argparse.Namespace) -> None:
    from foura.families import FAMILIES

    if arguments.backbone not in FAMILIES:
        raise UserError(f"backbone {arguments.backbone} is not known; choose one of {', '.join(FAMILIES)}.")
    pretrain = FAMILIES[arguments.backbone].pretrain
    if pretrain is None:
        raise UserError(f"backbone {arguments.backbone} has no bundled weights.")
    pretrain(arguments.out)


def _merge(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) < 2:
        raise UserError("name at least two runs to merge.")
    strengths = arguments.strengths or [1.0] * len(arguments.runs)
    if len(strengths) != len(arguments.runs):
        raise UserError(f"--strengths has {len(strengths)} values for {len(arguments.runs)} runs.")
    from foura.run.merge import merge_evaluate

    for row in merge_evaluate(arguments.runs, strengths, arguments.out):
        values = "  ".join(
            f"{key.removeprefix('test/')} {value:.3f}" for key, value in row.items() if key.startswith("test/")
        )
        print(f"data of {row['data']}, adapters {row['adapters']}: {values}")
    print(f"images and merged.csv: {arguments.out}")
