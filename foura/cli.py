"""The `foura` command: look at runs, export adapters, remake weights. Runs are started by `python train.py`.

Light on purpose: each command imports what it needs, once its arguments are known to be sound.
"""

import argparse
import collections
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foura.children import command, leave_working_directory, protect_children
from foura.errors import UserError, cannot_write, exit_without_lab, one_line, out_of_memory, print_traceback, reason
from foura.logs import quiet
from foura.threads import spin_briefly


def main() -> None:
    """Entry point of `foura` and `python -m foura`."""
    spin_briefly()
    leave_working_directory()
    protect_children()
    sys.excepthook = print_traceback
    quiet()  # before a library is loaded that speaks while it is imported
    arguments = _parser().parse_args()
    try:
        arguments.run_command(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: stopped by Ctrl-C; the same command starts anew.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except ModuleNotFoundError as error:
        exit_without_lab(error)
    except Exception as error:
        if out_of_memory(error):
            sys.exit(f"error: out of memory ({reason(error)}).")
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
    ui.add_argument("--port", type=int, default=None, help="default: 5000, or the next one that is free")
    ui.add_argument("--open", action="store_true", help="open the runs in a browser too")
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    page = command("report", _report, "make a sweep's report again, from the tracking store alone")
    page.add_argument("sweep")
    page.add_argument("--outputs", **outputs)
    page.add_argument("--into", default=None, type=Path, help="where to write (default: the sweep's folder)")
    state = command(
        "status", _status, "list sweeps and runs, or the runs of one sweep, with states and validation results"
    )
    state.add_argument("sweep", nargs="?", help="left out: everything in the folder")
    state.add_argument("--best", action="store_true", help="only the best runs, by validation data")
    state.add_argument("--outputs", **outputs)
    drop = command("drop", _drop, "move a run or a sweep to the trash, and delete it in MLflow")
    drop.add_argument("name", help="a run's folder, SWEEP/RUN, or a sweep's name")
    drop.add_argument("--outputs", **outputs)
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
    export.add_argument(
        "--per-layer-ranks", action="store_true", help="a smaller LoRA that only PEFT and diffusers read (frozen gates)"
    )
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
    if store.startswith(("http:", "https:")):
        raise UserError(
            f"the runs are kept by the server at {store}, which has a UI of its own: open that in a browser."
        )
    from foura.tracking.address import DATABASE, SQLITE
    from foura.tracking.artifacts import mend

    outputs = arguments.outputs.absolute()
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mend(outputs, store)
        os.chdir(outputs)  # so that MLflow need not read the folder's name out of an address
        store = SQLITE + DATABASE
    port = _announce(arguments, outputs, store)
    # in the environment: others can read a command line, and the address may hold a password
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store
    os.environ["PYTHONSAFEPATH"] = "1"  # no module is imported from the working directory
    os.environ["UVICORN_APP_DIR"] = os.devnull  # … which uvicorn puts first on the path of imports all the same
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # three times faster to start, a third of the memory
    told = ["ui", "--workers", "1", "--host", arguments.host, "--port", str(port)]
    os.execv(sys.executable, command("mlflow", *told))


def _announce(arguments: argparse.Namespace, outputs: Path, store: str) -> int:
    """Print the address of the runs, have a browser open it where that is wished, and return the server's port."""
    from foura.tracking import ui
    from foura.tracking.store import experiment_for_ui

    port = arguments.port or ui.free_port(arguments.host)
    everywhere = arguments.host in ("0.0.0.0", "::")
    host = ui.HOST if everywhere else f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    base, experiment = f"http://{host}:{port}", experiment_for_ui(store)
    ui.remember(outputs, base)
    address = base if experiment is None else ui.runs_address(base, experiment)
    print(address, flush=True)
    if arguments.open:
        subprocess.Popen(command("foura.tracking.ui", address))
    return port


def _store(outputs: Path) -> str:
    """The address of a tracking store that exists; none is created.

    Raises:
        UserError: there is no store in the folder, and MLFLOW_TRACKING_URI names no other.
    """
    from foura.tracking.address import DATABASE, tracking_uri

    path = outputs.absolute() / DATABASE
    if not os.environ.get("MLFLOW_TRACKING_URI") and not path.is_file():
        raise UserError(f"there are no runs at {path}; `python train.py` makes some, or name another folder.")
    return tracking_uri(outputs.absolute())


def _report(arguments: argparse.Namespace) -> None:
    _store(arguments.outputs)
    from foura.report.page import report

    print(report(arguments.outputs.absolute(), arguments.sweep, arguments.into))


def _status(arguments: argparse.Namespace) -> None:
    from foura.sweep.listing import best, overview, runs_in
    from foura.sweep.plan import sweep_folder

    outputs = arguments.outputs.absolute()
    if arguments.sweep is None:
        for line in overview(outputs, arguments.best):
            print(line[: len(line) - len(line.lstrip())] + one_line(line))
        return
    runs, now = runs_in(sweep_folder(arguments.outputs, arguments.sweep)), time.time()
    for run in filter(None, [best(runs)] if arguments.best else runs):
        print(one_line(run.line(now)))
    counts = collections.Counter(run.state for run in runs)
    print(f"{len(runs)} started: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))


def _drop(arguments: argparse.Namespace) -> None:
    from foura.sweep.listing import drop

    place = drop(arguments.outputs.absolute(), arguments.name)
    print(f"{arguments.name}: moved to {os.path.relpath(place)}, deleted in MLflow; the same command runs it again")


def _sync(arguments: argparse.Namespace) -> None:
    if not arguments.outputs.is_dir():
        raise UserError(f"there is no folder {arguments.outputs.absolute()}; name the folder of the runs.")
    from foura.tracking.sync import REFUSED, sync

    done = sync(arguments.outputs.absolute())
    for name, what in done:
        print(one_line(f"{what}: {name}" if not what.startswith(REFUSED) else f"{name} {what}"))
    if not done:
        print("nothing to send")
    refused = sum(what.startswith(REFUSED) for _, what in done)
    if refused:
        raise UserError(
            f"{refused} of {len(done)} runs could not be sent, for the reasons above; their journals keep them."
        )


def _export(arguments: argparse.Namespace) -> None:
    from foura.run.export_forms import check_export

    check_export(arguments.run, arguments.to, arguments.out, arguments.freeze)  # before torch is loaded
    from foura.run.export import export

    said = export(arguments.run, arguments.to, arguments.out, arguments.freeze, arguments.per_layer_ranks)
    print(one_line(f"{arguments.out}: {said}"))


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
        print(one_line(f"data of {row['data']}, adapters {row['adapters']}: {values}"))
    print(f"images and merged.csv: {arguments.out}")
