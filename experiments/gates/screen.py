"""The screen of the gates: forms × learning rates of the gate × prices × ranks, on validation data.

    python experiments/gates/screen.py vit llama_small unet -j 2 --out experiments/gates/screen.csv

minilm is a network of other people, with weights in models/ and data in data/: experiments/real_glue/README.md says how they
get there.

A run trains an adapter as train.py does (same data, batches, optimizer and schedule; no tracking), keeps the epoch with the
lowest validation loss, counts the open ranks on the validation data, and freezes the gates on the training data. Each finished
run is a line of the CSV; the same command resumes, the most important runs first. Nothing reads the test data.
"""

import argparse
import copy
import csv
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FORMS = ("entropy", "sigmoid", "softmax", "hard", "hard_concrete")
GATE_RATES = (16, 4, 64, 1)  # times the adapter's; the most important values come first
UNET_RATE = 5  # the rate 0.05 that the gates have elsewhere: the UNet's adapters learn ten times as fast
PRICES = (0.0, 0.01, 0.001, 0.1)
CONTROL_RATES = (1.0, 3.0, 1 / 3)  # of the ungated adapter, times the backbone's
# of gated adapters, where the backbone's rate is too high for any
OWN_RATES = {("llama_long", 64): 1 / 3, ("minilm", 64): 1 / 3, ("minilm", 16): 1 / 3}
INPUTS = 256  # validation items on which open ranks are counted
BY_STEP = 12  # denoising steps at which they are, on the UNet
# the LLaMA's data is the standard library of the Python that runs: differences are between runs of the same versions alone
VERSIONS = f"python {sys.version_info.major}.{sys.version_info.minor}, torch {version('torch')}"
# what differs from the default run of each backbone: short runs, one adapter rate
SETTINGS: dict[str, tuple[str, ...]] = {
    "vit": ("backbone=vit", "adapter.lr=3e-3", "dataset.epochs=20"),
    "llama_small": (
        "backbone=llama_small",
        "adapter.lr=1e-3",
        "dataset.epochs=10",
        "dataset.limit=64",
        "dataset.eval_limit=32",
    ),
    "llama_long": ("backbone=llama_small", "adapter.lr=3e-3", "dataset.epochs=30", "dataset.eval_limit=32"),
    "unet": ("backbone=unet", "adapter.lr=1e-3", "dataset.epochs=5", "dataset.repeats=5", "dataset.eval_limit=26"),
    "minilm": (
        "backbone=bert",
        "backbone.name=models/minilm",
        "dataset=real/sst2",
        "adapter.lr=3e-3",
        "trainer.precision=bf16-mixed",
    ),
}
NEW_HEAD = ("vit", "minilm")  # trained with the adapter, and alone in the control "base"
CAUSAL = ("llama_small", "llama_long")  # each token has a gate of its own
EVALUATIONS = 5  # of validation loss in a run
RANKS = (16, 64, 4)
COLUMNS = ("backbone", "form", "scope", "rank", "gate_rate", "price", "rate", "seed", "steps", "seconds")
COLUMNS += ("val_loss", "val_acc", "open", "open_over_layers", "selective_layers")
COLUMNS += (
    "frozen_val_loss",
    "frozen_val_acc",
    "frozen_open",
    "frozen_most",
    "frozen_kb",
    "versions",
    "layers",
    "by_step",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the CSV. form "none" has no gate, and "base" no adapter: a new head alone, or nothing trained.

    rate is the adapter's learning rate and gate_rate that of its gate, both in units of the backbone's rate in `SETTINGS`.
    """

    backbone: str
    form: str
    scope: str = ""
    rank: int = 16
    gate_rate: float = 0
    price: float = 0.0
    rate: float = 1.0
    seed: int = 0

    @property
    def key(self) -> str:
        return ",".join(
            f"{value:g}" if isinstance(value, float | int) else value for value in dataclasses.astuple(self)
        )


KEYS = tuple(spec.name for spec in dataclasses.fields(Run))


def grid(backbone: str, seeds: int) -> Iterator[tuple[tuple[int, ...], Run]]:
    """(importance, run): lower first."""
    own = "token" if backbone in CAUSAL else "sequence"
    scopes = ("token",) if own == "token" else ("sequence", "token")
    for seed in range(seeds):
        yield (0, seed), Run(backbone, "base", seed=seed)
        for (a, rank), (b, rate) in itertools.product(enumerate(RANKS), enumerate(CONTROL_RATES)):
            yield (a + b, seed), Run(backbone, "none", rank=rank, rate=rate, seed=seed)
    rates = (*GATE_RATES, UNET_RATE) if backbone == "unet" else GATE_RATES
    axes = (enumerate(RANKS), enumerate(rates), enumerate(PRICES), enumerate(scopes))
    reduced = backbone != "vit"
    for (a, rank), (b, times), (c, price), (d, scope) in itertools.product(*map(list, axes)):
        if reduced and (times == 1 or price == 0.001):
            continue
        for seed, form in itertools.product(range(seeds), FORMS):
            importance = a + b + max(0, c - 1) + d
            yield (
                (importance, seed),
                Run(backbone, form, scope, rank, times, price, OWN_RATES.get((backbone, rank), 1.0), seed),
            )


# -- one run


@functools.cache
def parts_of(backbone: str, seed: int) -> tuple[Any, Any]:
    """(the config without an adapter, the family's parts), built once per process."""
    from pytorch_lightning import seed_everything

    from foura.families import build

    seed_everything(seed, verbose=False)  # a new head starts alike in every process
    cfg = composed(backbone, f"seed={seed}", "adapter=head" if backbone in NEW_HEAD else "adapter=foura_dct")
    return cfg, build(cfg)


def composed(backbone: str, *overrides: str) -> Any:
    from hydra import compose, initialize_config_dir

    from foura import config

    config.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*SETTINGS[backbone], *overrides])


def config_of(run: Run) -> Any:
    if run.form == "base":
        return parts_of(run.backbone, run.seed)[0]
    cfg = composed(run.backbone, f"seed={run.seed}", f"rank={run.rank}", "adapter=foura_dct")
    cfg.adapter.lr *= run.rate
    if run.form != "none":
        cfg.adapter.gate, cfg.adapter.gate_form, cfg.adapter.gate_scope = "adaptive", run.form, run.scope
        cfg.adapter.gate_sparsity = run.price
        cfg.adapter.gate_lr = cfg.optimizer.lr / run.rate * run.gate_rate
    return cfg


def measure(run: Run) -> dict[str, Any]:
    """Train, select on validation, count open ranks, freeze: the line of the CSV."""
    import torch

    from foura.errors import Diverged
    from foura.logs import quiet

    quiet()
    torch.set_num_threads(1)
    cfg, (_, parts) = config_of(run), parts_of(run.backbone, run.seed)
    start = time.perf_counter()
    torch.manual_seed(run.seed)
    task, loaders = task_of(run, cfg, parts)
    row: dict[str, Any] = dataclasses.asdict(run) | {"versions": VERSIONS}
    try:
        row["steps"], found = trained(run, task, loaders, cfg)
        row |= {f"val_{key}": found.get(key) for key in ("loss", "acc")}
    except Diverged:
        return row | {"val_loss": math.nan, "seconds": time.perf_counter() - start}
    if run.form not in ("base", "none"):
        row |= gates_of(run, task, loaders, cfg)
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def task_of(run: Run, cfg: Any, parts: Any) -> tuple[Any, Any]:
    from foura.methods.attach import attach
    from foura.run.loop import Loaders

    backbone = dataclasses.replace(parts.backbone, model=copy.deepcopy(parts.backbone.model))
    loaders = Loaders(parts.data, cfg)
    bare = run.form == "base" and run.backbone not in NEW_HEAD
    task = parts.task(backbone.model if bare else attach(backbone, cfg, steps=loaders.steps()))
    task.adapter_config, task.optimizer_config, task.steps = cfg.adapter, cfg.optimizer, loaders.steps()
    return task, loaders


def trained(run: Run, task: Any, loaders: Any, cfg: Any) -> tuple[int, dict[str, float]]:
    """(steps, validation results of the selected epoch); the model is then that of this epoch.

    Raises:
        Diverged: a loss that is not finite.
    """
    from foura.methods.state import adapter_parameters, load_adapter_parameters

    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        return 0, evaluated(task, loaders, cfg)
    schedule = task.configure_optimizers()
    optimizer, schedule = schedule["optimizer"], schedule["lr_scheduler"]["scheduler"]
    best, state, steps = {"loss": math.inf}, {}, 0
    every = max(1, cfg.dataset.epochs // EVALUATIONS)
    for epoch in range(1, cfg.dataset.epochs + 1):
        task.model.train()
        for batch in loaders.train:
            optimizer.zero_grad()
            with autocast(cfg):
                loss = task.loss(batch)
            loss.backward()
            optimizer.step()
            schedule.step()
            steps += 1
        if epoch % every == 0 or epoch == cfg.dataset.epochs:
            found = evaluated(task, loaders, cfg)
            if found["loss"] < best["loss"]:
                best, state = found, copy.deepcopy(adapter_parameters(task.model))
    load_adapter_parameters(task.model, state)
    return steps, best


def autocast(cfg: Any) -> Any:
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=cfg.trainer.precision == "bf16-mixed")


def evaluated(task: Any, loaders: Any, cfg: Any) -> dict[str, float]:
    import torch

    from foura.errors import Diverged

    task.model.eval()
    with torch.no_grad(), autocast(cfg):
        for batch in loaders.evaluation()[1]:
            task.evaluate("val", batch)
    found: dict[str, float] = task.results("val")
    if not math.isfinite(found["loss"]):
        raise Diverged("the validation loss is not finite")
    return found


def gates_of(run: Run, task: Any, loaders: Any, cfg: Any) -> dict[str, Any]:
    """Open ranks by layer, input and denoising step; then the same model with frozen gates."""
    import torch

    from foura.adapter import freeze_gates, to_lora
    from foura.adapter.freeze import gate_statistics, spread_of

    inputs = list(loaders.inputs(task, loaders.data.validation, INPUTS))
    layers = {
        name: (round(float(found["default"]["open"]), 3), round(spread_of(found["default"]["counts"]), 3))
        for name, found in gate_statistics(task.model, inputs).items()
    }
    means, spreads = zip(*layers.values(), strict=True)
    row = {
        "open": round(sum(means) / len(means), 3),
        "open_over_layers": round(float(torch.tensor(means).std(correction=0)), 3),
        "selective_layers": round(sum(spread > 0.05 * run.rank for spread in spreads) / len(spreads), 3),
        "layers": json.dumps(layers),
        "by_step": json.dumps(ranks_by_step(task)) if run.backbone == "unet" else None,
    }
    kept = freeze_gates(task.model, loaders.inputs(task, loaders.data.train))
    frozen = evaluated(task, loaders, cfg)
    row |= {f"frozen_val_{key}": frozen.get(key) for key in ("loss", "acc")}
    _, lora = to_lora(task.model, per_layer_ranks=True)
    row["frozen_kb"] = round(sum(tensor.nbytes for name, tensor in lora.items() if ".lora_" in name) / 1024, 1)
    return row | {"frozen_open": round(sum(kept.values()) / len(kept), 3), "frozen_most": max(kept.values())}


def ranks_by_step(task: Any) -> list[float]:
    """Open ranks at each denoising step, means over the layers; the first step has the most noise."""
    from foura.adapter import effective_rank
    from foura.families.diffusion.sampling import sample

    prompts = list(dict.fromkeys(task.data.captions["validation"]))[:4]
    inputs: list[Any] = []
    seeds = list(range(len(prompts)))
    sample(task.model, task.backbone, prompts, seeds, BY_STEP, 1.0, task.device, lambda _, given: inputs.append(given))
    ranks = (effective_rank(task.model, [given]) for given in inputs)
    return [round(sum(found.values()) / len(found), 3) for found in ranks]


# -- many runs


def finished(path: Path) -> set[str]:
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {_key_of(row) for row in csv.DictReader(file)}


def _key_of(row: dict[str, str]) -> str:
    kinds = {spec.name: type(spec.default) for spec in dataclasses.fields(Run)}
    return Run(**{name: float(row[name]) if kinds[name] in (int, float) else row[name] for name in KEYS}).key  # type: ignore[arg-type]


def screen(runs: Iterable[Run], out: Path, jobs: int, seconds: float) -> tuple[int, int]:
    """Run what is not in `out` yet, `jobs` at a time, and start nothing after `seconds`; returns (finished, failed)."""
    end = time.monotonic() + seconds
    done, waiting, count, failed = finished(out), dict[Future[dict[str, Any]], Run](), 0, 0
    todo = (run for run in runs if run.key not in done)
    os.environ.update(
        OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.open("a", encoding="utf-8", newline="") as file,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        while True:
            while len(waiting) < jobs and time.monotonic() < end and (run := next(todo, None)) is not None:
                waiting[pool.submit(measure, run)] = run
            if not waiting:
                return count, failed
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                run = waiting.pop(future)
                if (error := future.exception()) is not None:
                    failed += 1
                    print(f"{run}: {type(error).__name__}: {error}", file=sys.stderr)
                    continue
                writer.writerow(future.result())
                file.flush()
                count += 1


def chosen(run: Run, where: Iterable[str]) -> bool:
    """True if the run has one of the values that each condition, such as "form=none,softmax", lists."""
    for condition in where:
        name, _, values = condition.partition("=")
        own = getattr(run, name)
        if not any(own == type(own)(value) for value in values.split(",")):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("backbones", nargs="+", choices=list(SETTINGS))
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--where", nargs="*", default=[], help="only such runs: rank=64 form=none,softmax")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("screen.csv"))
    args = parser.parse_args()
    ordered = sorted((item for name in args.backbones for item in grid(name, args.seeds)), key=lambda item: item[0])
    runs = [run for _, run in ordered if chosen(run, args.where)]
    count, failed = screen(runs, args.out, args.jobs, args.seconds)
    there = finished(args.out) & {run.key for run in runs}
    print(f"{count} runs finished, {failed} failed; {len(there)} of {len(runs)} are in {args.out}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
