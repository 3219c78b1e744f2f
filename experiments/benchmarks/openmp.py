"""How OpenMP's threads should wait: time of a small training step on a quiet and on a busy machine.

    python experiments/benchmarks/openmp.py                          # about 10 minutes on 2 cores; nothing else running
    python experiments/benchmarks/openmp.py --rounds 1 --steps 50    # a look

Every measurement is a process of its own, since OpenMP reads its variables once. A round measures every setting once, in
rotating order, beside 0, 1 and 2 processes that keep a core busy each.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import cpu_name

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="busy processes beside the measured one")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "openmp.csv")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(step_ms(args.steps))
        return
    load = os.getloadavg()[0]
    measured = measure(args.rounds, args.steps, args.busy)
    rows = [summary(busy, name, values) for (busy, name), values in measured.items()]
    with args.out.open("w", newline="", encoding="utf-8") as file:
        file.write(
            f"# {cpu_name()}, {os.cpu_count()} cores, {THREADS} threads, {args.steps} steps, load {load:.1f} before\n"
        )
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(args.out.read_text(encoding="utf-8"))


def measure(rounds: int, steps: int, busy: list[int]) -> dict[tuple[int, str], list[float]]:
    """{(busy processes, setting): ms a step of every round}."""
    found: dict[tuple[int, str], list[float]] = {(count, name): [] for count in busy for name in SETTINGS}
    names = list(SETTINGS)
    for number in range(rounds):
        turn = number % len(names)
        for count in busy:
            for name in names[turn:] + names[:turn]:
                with busy_processes(count):
                    found[count, name].append(in_a_process(SETTINGS[name], steps))
                print(f"round {number + 1}: beside {count}, {name}: {found[count, name][-1]:.1f} ms", flush=True)
    return found


def summary(busy: int, name: str, values: list[float]) -> dict[str, object]:
    """One line of the table: median, least and most over the rounds."""
    numbers = {"median_ms": statistics.median(values), "min_ms": min(values), "max_ms": max(values)}
    return {
        "busy": busy,
        "setting": name,
        **{key: f"{value:.2f}" for key, value in numbers.items()},
        "rounds": len(values),
    }


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def in_a_process(setting: dict[str, str], steps: int) -> float:
    """`step_ms` in a process with this setting and no other of OpenMP's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = {**kept, **setting, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--child", "--steps", str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def step_ms(steps: int) -> float:
    """Mean time of a training step of the bundled ViT with a FouRA adapter, batches of 32, after 10 steps."""
    import torch
    from omegaconf import OmegaConf
    from peft import get_peft_model

    from foura import FouraConfig
    from foura.families.images.backbone import build_vit
    from foura.schema import BackboneConfig

    torch.manual_seed(0)
    backbone = build_vit(OmegaConf.structured(BackboneConfig(family="vit")), 10)
    model = get_peft_model(backbone.model, FouraConfig(r=16, foura_alpha=16, target_modules=backbone.targets))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    images, labels = torch.randn(32, 1, 16, 16), torch.randint(0, 10, (32,))
    for number in range(10 + steps):
        if number == 10:
            began = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return (time.perf_counter() - began) / steps * 1e3


if __name__ == "__main__":
    main()
