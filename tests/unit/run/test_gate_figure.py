"""What a run's gates open: the columns of layers.csv, the figure, and the sentences in place of maps of one colour."""

import csv

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from foura import FouraConfig
from foura.metrics import METRICS
from foura.run.artifacts import open_ranks
from foura.run.figures import draw_layers
from foura.run.gate_figure import draw_gates, epochs_in_words, inputs_in_words
from foura.run.layers import COLUMNS, layer_table, mean_open_std, write_open_counts, write_table


def adapted(gate: str) -> nn.Module:
    """One layer of rank 2 whose rank 0 is open where the input is positive, and whose rank 1 always is."""
    fields = {"gate_form": "hard", "gate_scope": "token"} if gate == "adaptive" else {}
    config = FouraConfig(r=2, target_modules=["0"], transform="identity", gate=gate, init_weights=False, **fields)
    model = get_peft_model(nn.Sequential(nn.Linear(2, 3)), config)
    if gate == "adaptive":
        layer = model.base_model.model[0]
        with torch.no_grad():
            layer.foura_A["default"].copy_(torch.eye(2))
            network = layer.gate("default")
            for parameter in network.parameters():
                parameter.zero_()
            network.weight_in[0, 0] = network.weight_out[0, 0] = 1.0
            network.bias_out[1] = 1.0
    return model.eval()


def table_of(gate: str) -> list[dict]:
    signs = torch.tensor([1.0] * 30 + [-1.0] * 10)
    return layer_table(adapted(gate), None, [torch.stack([signs, torch.ones(40)], dim=1)], {})


def test_the_columns_of_a_gated_layer(tmp_path) -> None:
    """30 of 40 inputs open both ranks, 10 open one: mean 1.75, standard deviation √(0.75 · 0.25)."""
    table = table_of("adaptive")
    (row,) = table
    assert row["open_counts"] == [0, 10, 30] and row["effective_rank"] == pytest.approx(1.75)
    assert (row["open_low"], row["open_high"]) == (1, 2)
    assert row["open_std"] == mean_open_std(table) == pytest.approx(np.sqrt(0.1875))
    write_table(table, tmp_path / "layers.csv")
    write_open_counts(table, tmp_path / "counts.csv")
    with (tmp_path / "layers.csv").open() as file:
        (read,) = csv.DictReader(file)
    assert tuple(read) == COLUMNS and float(read["open_std"]) == pytest.approx(0.4330, abs=1e-3)
    assert (tmp_path / "counts.csv").read_text().split() == ["layer,open,inputs", "0,1,10", "0,2,30"]
    draw_layers(table, "run", tmp_path / "layers.png")
    draw_gates(table, [{"epoch": 0, "0": 2.0}, {"epoch": 1, "0": 1.75}], "run", tmp_path / "gates.png")
    assert (tmp_path / "gates.png").stat().st_size > 0


def test_a_layer_without_a_gate_has_none_of_them(tmp_path) -> None:
    (row,) = table_of("none")
    assert row["open_std"] is row["open_low"] is row["gate_std"] is None and mean_open_std([row]) is None
    draw_layers([row], "run", tmp_path / "layers.png")


def test_one_colour_is_a_sentence() -> None:
    flat = np.full((3, 5), 0.98)
    assert "98.0% of its ranks open" in epochs_in_words(flat)
    flat[0, 0] = 0.5
    assert epochs_in_words(flat) == ""
    counts = np.eye(4)[[3, 2]]
    assert inputs_in_words(counts, np.array([3, 3])).endswith("ranks:\n2 to 3, by layer, of 3.")
    assert inputs_in_words(counts[:1], np.array([3])).endswith("ranks:\n3 of 3.")
    counts[0] = [0, 0.5, 0, 0.5]
    assert inputs_in_words(counts, np.array([3, 3])) == ""


def test_the_table_of_a_run_says_how_open_ranks_vary() -> None:
    assert open_ranks(table_of("adaptive")) == "1.8 ± 0.4" and open_ranks(table_of("none")) == "2.0"
    assert open_ranks([]) == "-" and "layers/open_std" in METRICS
