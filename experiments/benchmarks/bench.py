"""The cost of adapters, as ratios to PEFT's LoRA of the same rank: `make bench`. README.md says how it is measured."""

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
import peft
import torch

import foura  # noqa: F401  (makes the method known to PEFT)

mpl.use("Agg")
import framework
import layers
import models
from machine import cpu_name
from matplotlib import pyplot as plt
from timing import Row

WIDTHS, RANKS, TOKENS = (192, 768, 2048), (16, 64), (1, 64, 2048)
LABELS = {
    "frozen": "frozen layer alone",
    "lora": "PEFT LoRA",
    "foura_dct": "FouRA dct",
    "foura_dft": "FouRA dft",
    "foura_gated": "FouRA dct, gated (entropy)",
    "foura_softmax": "FouRA dct, gated (softmax)",
    "foura_gated_token": "FouRA dct, gate a token",
    "foura_gated_sequence": "FouRA dct, gate a sequence",
    "foura_softmax_token": "FouRA dct, softmax gate per token",
    "foura_softmax_sequence": "FouRA dct, softmax gate per sequence",
    "dora": "PEFT DoRA",
    "fourierft": "PEFT FourierFT",
    "textbook": "FouRA as written (textbook)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look in a minute: one width, few rounds")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--only", default="layers,models,framework", help="a list of layers, models, framework")
    args = parser.parse_args()
    parts, dtype = args.only.split(","), getattr(torch, args.dtype)
    args.out.mkdir(parents=True, exist_ok=True)
    machine = hardware(args.device, args.dtype)
    print(machine, flush=True)

    def say(line: str) -> None:
        print(line, flush=True)

    rows: dict[str, list[Row]] = {}
    if "layers" in parts:
        rows["layers"] = [
            one
            for d in (WIDTHS[:1] if args.quick else WIDTHS)
            for r in RANKS
            for tokens in TOKENS
            for one in layers.measure(d, r, tokens, rounds(d, tokens, args), args.device, dtype, say)
        ]
    if "models" in parts:
        names = ["unet_32"] if args.quick else models.MODELS
        rows["models"] = [
            one for name in names for one in models.measure(name, 2 if args.quick else 9, args.device, dtype, say)
        ]
    if "framework" in parts and args.device == "cpu":
        rows["framework"] = framework.measure(1 if args.quick else 5, 2 if args.quick else 20, say)
    suffix = "" if args.device == "cpu" else f"_{args.device}_{args.dtype}"
    for part, measured in rows.items():
        write_csv(measured, machine, args.out / f"{part}{suffix}.csv")
    if "layers" in rows:
        draw(rows["layers"], machine, args.out / f"bench{suffix}.png")
    text = table(rows, machine)
    (args.out / f"table{suffix}.md").write_text(text)
    print(text)


def rounds(d: int, tokens: int, args: argparse.Namespace) -> int:
    if args.quick:
        return 3
    return 15 if d * tokens >= 2048 * 2048 else 31


def hardware(device: str, dtype: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return f"{name}{threads}, {dtype}, torch {torch.__version__.split('+')[0]}, peft {peft.__version__}"


def write_csv(rows: list[Row], machine: str, path: Path) -> None:
    with path.open("w", newline="") as file:
        file.write(f"# {machine}; ratio: to PEFT's LoRA (framework.csv: to the bare loop) of the same round\n")
        writer = csv.DictWriter(file, fieldnames=list(rows[0].fields()), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.fields().items()}
            writer.writerow(cells)


def draw(rows: list[Row], machine: str, path: Path) -> None:
    """Step time and decoding time by method, a marker for each width and rank."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    methods = [name for name in LABELS if any(row.method == name for row in rows)]
    for axis, measure, tokens in ((axes[0], "step", 2048), (axes[1], "decode", 1)):
        for d, marker in zip(WIDTHS, "osD", strict=True):
            for r, colour in zip(RANKS, ("tab:blue", "tab:orange"), strict=True):
                chosen = {
                    row.method: row.ratio
                    for row in rows
                    if row.setting == f"d={d} r={r} tokens={tokens}" and row.measure == measure
                }
                places = [methods.index(name) for name in chosen]
                axis.scatter(
                    list(chosen.values()), places, marker=marker, color=colour, alpha=0.8, s=36, label=f"d={d} r={r}"
                )
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xlabel("time / time of PEFT's LoRA (log scale; left is faster)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), [LABELS[name] for name in methods])
    axes[0].invert_yaxis()
    axes[0].set_title("training step, 2048 tokens")
    axes[1].set_title("decoding, 1 token")
    axes[1].legend(fontsize=8, loc="upper right")
    figure.suptitle(f"One linear layer d x d; {machine}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(rows: dict[str, list[Row]], machine: str) -> str:
    """Markdown: ratios to PEFT's LoRA, the least and the most over widths and ranks."""
    lines = [f"{machine}. Times as ratios to PEFT's LoRA at the same rank.", ""]
    if "layers" in rows:
        lines += [
            "| one layer, d = 192 to 2048, r = 16, 64 | step, 2048 tokens | step, 64 | decode | saved |",
            "|---|---|---|---|---|",
        ]
        for name in LABELS:
            cells = [
                _span(rows["layers"], name, measure, tokens)
                for measure, tokens in (("step", 2048), ("step", 64), ("decode", 1), ("saved", 2048))
            ]
            if any(cell != "-" for cell in cells):
                lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
        lines.append("")
    if "models" in rows:
        settings = list(dict.fromkeys(row.setting for row in rows["models"]))
        lines += [f"| whole models, r = 16: step | {' | '.join(settings)} |", "|---" * (len(settings) + 1) + "|"]
        for name in models.METHODS:
            found = {row.setting: row for row in rows["models"] if row.method == name and row.measure == "step"}
            lines.append(f"| {LABELS[name]} | {' | '.join(f'{found[s].ratio:.2f}' for s in settings)} |")
        lines.append("")
    for row in rows.get("framework", []):
        if row.method == "framework":
            lines.append(
                f"{row.setting}: {row.ratio:.2f} of a bare PyTorch loop's time ({row.ratio_q25:.2f} to {row.ratio_q75:.2f})"
            )
    return "\n".join(lines) + "\n"


def _span(rows: list[Row], method: str, measure: str, tokens: int) -> str:
    found = [
        row.ratio
        for row in rows
        if row.method == method and row.measure == measure and row.setting.endswith(f" tokens={tokens}")
    ]
    return f"{min(found):.2f} to {max(found):.2f}" if found else "-"


if __name__ == "__main__":
    main()
