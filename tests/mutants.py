"""Deliberate faults in the decisions that a result rests on, to show that the tests catch every one.

    make test-mutants                              # all of them; about half an hour on two cores
    python -m tests.mutants -k gap                 # those whose fault mentions "gap"
    python -m tests.mutants --whole                # what survives its own tests meets all fast tests

A mutant is one line: the file, the text to replace, its replacement, and the tests that hold the decision. It is caught if
those tests fail on a copy of the checkout that has this one fault. `tests/unit/test_mutants.py` holds every text to occur
exactly once, so that the list follows the code.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("foura", "conf", "tests", "experiments", "docs", "train.py", "pyproject.toml", "README.md", "Makefile")
FAILED = 1  # pytest's exit status where tests failed; others are errors of the run itself


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` in `path` becomes `new`, which `tests` have to notice."""

    path: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        return f"{self.path}: {self.old.strip()}  ->  {self.new.strip()}"


RUN, SPLITS, REPORT = "tests/unit/run/test_decisions.py", "tests/unit/data", "tests/unit/report/test_compare.py"
STUDY, STATISTICS = "tests/unit/report/test_study.py", "tests/unit/analysis/test_statistics.py"
HALVING, ROUNDS = "tests/unit/analysis/test_tuning.py", "tests/unit/sweep/test_tuning.py"
OVERVIEW, TRAINING = "tests/unit/report/test_overview.py", "tests/unit/families/test_training.py"
LOADERS, DIFFUSION = "tests/unit/run/test_loaders.py", "tests/unit/families/diffusion"
RESUMED = "tests/unit/run/test_resumed_training.py"
EQUATION, METRICS = "tests/unit/test_adapter_equation.py", "tests/unit/test_metrics.py"
MUTANTS = (
    # which epoch is selected, by which split, and what is reported of it
    Mutant("foura/run/recorder.py", 'name = f"val/{self.metric.key}"', 'name = f"train_eval/{self.metric.key}"', RUN),
    Mutant("foura/run/recorder.py", "self.metric.sign * row[name] > self", "self.metric.sign * row[name] < self", RUN),
    Mutant("foura/run/recorder.py", "sign * row[name] > self.metric", "sign * row[name] >= self.metric", RUN),
    Mutant("foura/run/recorder.py", "self.metric.sign * row[name] > self.metric.sign * self.row[name]", "row[name] < self.row[name]", RUN),
    Mutant("foura/run/recorder.py", "self.epoch is None or self", "True or self", RUN),
    Mutant("foura/run/recorder.py", "    load_adapter_parameters(task.model, self.state)", "    pass", RUN),
    Mutant("foura/run/recorder.py", "tensor.detach().cpu().clone()", "tensor.detach().cpu()", RUN),
    Mutant("foura/run/run.py", "    recorder.restore(task)\n", "", RUN),
    Mutant("foura/run/run.py", "        return recorder.row\n", "        return task.history[-1]\n", RUN),
    Mutant("foura/run/run.py", "task, loaders.test(), verbose", "task, loaders.evaluation()[1], verbose", RUN),
    Mutant("foura/run/run.py", "save_adapter(task, recorder.state, folder)\n\n\ndef _costs", "save_adapter(task, adapter_parameters(task.model), folder)\n\n\ndef _costs", RUN),
    Mutant("foura/run/artifacts.py", "    final, curve = task.history[-1], ", "    best = task.history[-1]\n    final, curve = task.history[-1], ", RUN),
    Mutant("foura/run/artifacts.py", "    final, curve = task.history[-1], ", "    final, curve = best, ", RUN),
    Mutant("foura/run/artifacts.py", '{f"best/{name}": best[f"val/{name}"]}', '{f"best/{name}": final[f"val/{name}"]}', RUN),
    Mutant("foura/run/artifacts.py", '{f"best/{name}": best[f"val/{name}"]}', '{f"best/{name}": best[f"train_eval/{name}"]}', RUN),
    Mutant("foura/run/artifacts.py", 'best[f"train_eval/{curve}"]', 'final[f"train_eval/{curve}"]', RUN),
    Mutant("foura/run/artifacts.py", 'f"final/gap_{name}": final[f"gap/{name}"]', 'f"final/gap_{name}": best[f"gap/{name}"]', RUN),
    Mutant("foura/run/artifacts.py", '[row["val/loss"] for row', '[row["train_eval/loss"] for row', RUN),
    Mutant("foura/analysis/overfitting.py", "epochs[min(range", "epochs[max(range", "tests/unit/analysis/test_overfitting.py"),
    # evaluation: which data, and in which way
    Mutant("foura/families/task.py", 'EVALUATIONS = ("train_eval", "val")', 'EVALUATIONS = ("val", "train_eval")', RUN),
    Mutant("foura/families/task.py", 'gap(row[f"train_eval/{key}"], row[f"val/{key}"])', 'gap(row["train/loss"], row[f"val/{key}"])', RUN),
    Mutant("foura/metrics.py", "return self.sign * (train - validation)", "return self.sign * (validation - train)", METRICS),
    Mutant("foura/metrics.py", "return self.sign * (train - validation)", "return train - validation", METRICS),
    Mutant("foura/metrics.py", "1.0 if self.greater_is_better else -1.0", "1.0", METRICS),
    Mutant("foura/metrics.py", 'Metric("loss", "loss", False,', 'Metric("loss", "loss", True,', METRICS),
    Mutant("foura/metrics.py", 'Metric("kernel", "kernel distance", False,', 'Metric("kernel", "kernel distance", True,', METRICS),
    Mutant("foura/metrics.py", 'Metric("copy_distance", "copy distance", True,', 'Metric("copy_distance", "copy distance", False,', METRICS),
    Mutant("foura/metrics.py", 'Metric("memorised/train", "memorised", False,', 'Metric("memorised/train", "memorised", True,', METRICS),
    Mutant("foura/families/language/task.py", "_likeliest(-nats,", "_likeliest(nats,", "tests/unit/families/language"),
    Mutant("foura/families/language/task.py", "loss = nats / tokens\n", "loss = nats / judged\n", "tests/unit/families/language"),
    Mutant("foura/families/images/task.py", "argmax(1).cpu() == labels", "argmax(1).cpu() != labels", "tests/cli/test_measures.py tests/unit/families/images"),
    # data: what is cut from what, by which seed, and what noise touches
    Mutant("foura/data/draws.py", "order = np.random.default_rng(seed).permutation(total)", "order = np.arange(total)", SPLITS),
    Mutant("foura/data/draws.py", "parts[name], order = order[:count], order[count:]", "parts[name] = order[:count]", SPLITS),
    Mutant("foura/data/draws.py", "[np.argsort(-(shares % len(labels))[tied]", "[np.argsort((shares % len(labels))[tied]", SPLITS),
    Mutant("foura/families/encoder/sources.py", "if blank(label) or (names", "if label is None or (names", "tests/unit/families/encoder"),
    Mutant("foura/families/images/sources.py", "return blank(value) or value != value or", "return value != value or", "tests/unit/families/images"),
    Mutant("foura/data/draws.py", "sorted_places = np.argsort(drawn)", "sorted_places = np.arange(len(drawn))", SPLITS),
    Mutant("foura/families/language/data.py", "some_in_order(drawn, cfg.train_eval_limit, cfg.split_seed)", "some_in_order(drawn, cfg.train_eval_limit, seed)", "tests/unit/families/language/test_data.py"),
    Mutant("foura/families/diffusion/data.py", "some_in_order(drawn, cfg.train_eval_limit, cfg.split_seed)", "some_in_order(drawn, cfg.train_eval_limit, seed)", DIFFUSION),
    Mutant("foura/data/draws.py", "np.random.default_rng([seed, 0]).permutation", "np.random.default_rng([0, 0]).permutation", SPLITS),
    Mutant("foura/families/images/data.py", "cut_by_class(train.labels, share / left, cfg", "cut_by_class(train.labels, share, cfg", "tests/unit/families/images"),
    Mutant("foura/families/images/data.py", "train.subset(rest), train.subset(part)", "train.subset(rest), train.subset(rest)", "tests/unit/families/images"),
    Mutant("foura/families/images/data.py", "draw_by_class(train.labels, cfg.limit, seed)", "draw_by_class(train.labels, cfg.limit, 0)", "tests/unit/families/images"),
    Mutant("foura/data/labels.py", "generator.integers(1, classes, len(wrong))", "generator.integers(0, classes, len(wrong))", SPLITS),
    Mutant("foura/data/labels.py", "np.random.default_rng([seed, 1])", "np.random.default_rng([0, 1])", SPLITS),
    Mutant("foura/run/run.py", "    seed_everything(cfg.seed, verbose=False)  # the adapter starts alike", "    pass  # the adapter starts alike", "tests/unit/methods/test_equal_start.py " + RUN),
    # the method: the equation that the comparison is about
    Mutant("foura/methods/foura.py", "foura_alpha=cfg.alpha * cfg.rank", "foura_alpha=cfg.alpha", "tests/unit/methods/test_foura.py"),
    Mutant("foura/methods/lora.py", '"lora_alpha": cfg.alpha * cfg.rank', '"lora_alpha": cfg.alpha', "tests/unit/methods"),
    Mutant("foura/methods/foura.py", "transform=adapter.transform,", 'transform="dct",', "tests/unit/methods/test_foura.py"),
    Mutant("foura/adapter/transforms.py", "        return self.inverse(A)\n", "        return self.forward(A)\n", EQUATION),
    Mutant("foura/adapter/transforms.py", "return self._on_blocks(self.inverse, B)", "return self._on_blocks(self.forward, B)", EQUATION),
    Mutant("foura/adapter/gate_forms.py", "4.0 + SEQUENCE_SLOPE * (log_p + entropy)", "4.0 + SEQUENCE_SLOPE * log_p", "tests/unit/adapter/test_gate_forms.py"),
    Mutant("foura/adapter/gate_forms.py", "/ mask.sum(1, keepdim=True)", "/ mask.shape[1]", "tests/unit/adapter/test_gate_forms.py"),
    Mutant("foura/adapter/real_tokens.py", " or made[0] != mask._version", "", "tests/unit/adapter/test_padding.py"),
    Mutant("foura/adapter/kernels/sequence_gate.py", "tl.log(count)", "tl.log(count + 1.0)", "tests/unit/adapter/test_kernels.py"),
    Mutant("foura/adapter/kernels/short_gate.py", "grad_mean / tl.load(kept + sample * (H + 1) + H)", "grad_mean", "tests/unit/adapter/test_kernels.py"),
    Mutant("foura/adapter/kernels/launch.py", "SHORT = 4 ", "SHORT = 0 ", "tests/unit/adapter/test_kernels.py"),
    Mutant("foura/adapter/freeze.py", '["mean"] > OPEN', '["mean"] > 0', "tests/unit/test_adapter_peft.py"),
    Mutant("foura/adapter/optim.py", "lr if gate_lr is None else gate_lr", "lr", TRAINING),
    Mutant("foura/families/diffusion/task.py", ' and ".foura_gate." not in name', "", DIFFUSION),
    Mutant("foura/methods/attach.py", "if p.requires_grad)\n\n    def count_above", ")\n\n    def count_above", "tests/unit/methods/test_equal_parameters.py"),
    # who is paired with whom, which runs count, and by which rate
    Mutant("foura/analysis/statistics.py", "shared = sorted(set(candidate) & set(baseline))", "shared = sorted(candidate)[: len(baseline)]; baseline = dict(zip(shared, baseline.values()))", STATISTICS),
    Mutant("foura/analysis/statistics.py", "    differences = own - base\n", "    differences = base - own\n", STATISTICS),
    Mutant("foura/analysis/statistics.py", "level = 0.0 if math.isnan(item) else item, LEVEL / tests", "level = 0.0 if math.isnan(item) else item, LEVEL", STATISTICS),
    Mutant("foura/analysis/statistics.py", "stats.t.ppf(1 - level / 2, seeds - 1) * spread", "stats.norm.ppf(1 - level / 2) * spread", STATISTICS),
    Mutant("foura/analysis/statistics.py", "sample.std(-1, ddof=1)", "sample.std(-1)", STATISTICS),
    Mutant("foura/analysis/statistics.py", "(mean > 0) == more_is_better else", "mean > 0 else", STATISTICS),
    Mutant("foura/analysis/statistics.py", "return (high < 0) & (low > 0)", "return (high < 0) | (low > 0)", STATISTICS),
    Mutant("foura/analysis/statistics.py", "    logs = np.log2(np.asarray(x, dtype=float))", "    logs = np.asarray(x, dtype=float)", STATISTICS),
    Mutant("foura/analysis/tasks.py", "return (self.candidate - self.baseline) / self.unit", "return self.candidate - self.baseline", "tests/unit/analysis/test_tasks.py"),
    Mutant("foura/report/study.py", "        more_is_better=False,\n        share_of=selection.column,", "        more_is_better=True,\n        share_of=selection.column,", STUDY),
    Mutant("foura/report/study.py", 'f"final/gap_{curve.key}"', 'f"best/gap_{curve.key}"', STUDY),
    Mutant("foura/report/study.py", 'finished = runs[runs["state"] == "finished"].copy()', 'finished = runs[runs["state"] != "running"].copy()', STUDY),
    Mutant("foura/report/study.py", 'f"best/{curve.key}", f"val', 'f"test/{curve.key}", f"val', STUDY),
    Mutant("foura/report/study.py", "selection.label, selection.more_is_better\n", "selection.label, not selection.more_is_better\n", STUDY),
    Mutant("foura/report/study.py", "score = selection.column, ", "score = quality.column, ", STUDY),
    Mutant("foura/report/study.py", "metric.greater_is_better if more_is_better is None else more_is_better", "True", STUDY),
    Mutant("foura/report/tuning.py", 'by, picked, kept = ["adapter", *conditions]', "by, picked, kept = [*conditions]", STUDY),
    Mutant("foura/analysis/tuning.py", "return len(known) == len(results[value]), len(known), sign", "return True, 0, sign", HALVING),
    Mutant("foura/analysis/tuning.py", "return len(known) == len(results[value]), len(known), sign", "return True, len(known), sign", HALVING),
    Mutant("foura/analysis/tuning.py", "sign * statistics.mean(known)", "statistics.mean(known)", HALVING),
    Mutant("foura/analysis/tuning.py", "key=lambda value: -sign * means[value]", "key=lambda value: sign * means[value]", HALVING),
    Mutant("foura/analysis/tuning.py", " and len(known) == len(found)\n", "\n", HALVING),
    Mutant("foura/analysis/tuning.py", "<= MOST * compared", "<= 3 * MOST * compared", HALVING),
    Mutant("foura/analysis/tuning.py", "ordered[1] if chosen == ordered[0] else ordered[-2]", "ordered[-2] if chosen == ordered[0] else ordered[1]", HALVING),
    Mutant("foura/run/before.py", "plain and whole and cfg.evaluation.test and", "plain and cfg.evaluation.test and", "tests/unit/run/test_forgetting.py"),
    Mutant("foura/run/before.py", "pretraining_loss(parts, model, cfg) - self.loss", "self.loss - pretraining_loss(parts, model, cfg)", "tests/cli/test_measures.py"),
    Mutant("foura/sweep/tuning.py", 'f"seed={seed}", UNTESTED) for seed in self.seeds[before : one.seeds]', 'f"seed={seed}") for seed in self.seeds[before : one.seeds]', ROUNDS),
    Mutant("foura/sweep/tuning.py", "        if shared:\n", "        if False:\n", ROUNDS),
    Mutant("foura/report/tuning.py", "groups.get(_cell(cell), part)", "part", "tests/unit/report/test_page.py"),
    Mutant("foura/report/collect.py", "runs=runs[tested]", "runs=runs", "tests/unit/report/test_page.py"),
    Mutant("foura/run/run.py", "    if cfg.evaluation.test:\n", "    if True:\n", RUN),
    Mutant("foura/report/tuning.py", 'evidence[column].where(done)', "evidence[column]", STUDY),
    Mutant("foura/report/compare.py", 'done = part[part["state"] == "finished"]', "done = part", REPORT),
    Mutant("foura/report/compare.py", "by_condition(study.finished, study.conditions)", "by_condition(study.finished, study.conditions[:1])", REPORT),
    Mutant("foura/report/compare.py", '["adapter", *study.facets], sort=False', '["adapter"], sort=False', REPORT),
    Mutant("foura/report/compare.py", "measure.more_is_better, len(found),", "True, len(found),", STUDY),
    # numbers by hand: intervals of counted items, tables, means, slopes, margins, tasks
    Mutant("foura/analysis/statistics.py", "np.maximum(sample.std(-1, ddof=1), item / math.sqrt(6))", "sample.std(-1, ddof=1)", STATISTICS),
    Mutant("foura/analysis/statistics.py", "spread = max(spread, item / math.sqrt(6))", "pass", STATISTICS),
    Mutant("foura/analysis/statistics.py", "len(shared), mean, spread, delta, level, item)", "len(shared), mean, spread, delta, LEVEL, item)", STATISTICS),
    Mutant("foura/analysis/statistics.py", "p_adjusted=min(1.0, p * tests)", "p_adjusted=min(1.0, p)", STATISTICS),
    Mutant("foura/analysis/statistics.py", "return mean_interval(slopes, LEVEL / tests)", "return mean_interval(slopes, LEVEL)", STATISTICS),
    Mutant("foura/analysis/items.py", "of_seeds + of_items - of_both)", "of_seeds + of_items)", "tests/unit/analysis/test_items.py"),
    Mutant("foura/analysis/tasks.py", "elif inner_low > -1 and inner_high < 1", "elif low > -1 and high < 1", "tests/unit/analysis/test_tasks.py"),
    Mutant("foura/analysis/tasks.py", "0.5 * (own == base)", "1.0 * (own == base)", "tests/unit/analysis/test_tasks.py"),
    Mutant("foura/report/compare.py", "done[measure.column].mean()", "done[measure.column].median()", REPORT),
    Mutant("foura/report/compare.py", "values=measure.column).dropna()", "values=measure.column).ffill()", REPORT),
    Mutant("foura/report/compare.py", "_margin(measure, base), item)", "_margin(measure, own), item)", REPORT),
    Mutant("foura/report/compare.py", "own, base, items, len(found))", "own, base, items, 1)", STUDY),
    Mutant("foura/report/compare.py", "np.stack(found[: len(shared)]) - np.stack(found[len(shared) :])", "np.stack(found[len(shared) :]) - np.stack(found[: len(shared)])", STUDY),
    Mutant("foura/report/compare.py", "or study.finished[split_seed].nunique() == 1", "or True", STUDY),
    Mutant("foura/report/compare.py", '(done["final/loss"] - done["best/loss"])', '(done["best/loss"] - done["final/loss"])', STUDY),
    Mutant("foura/report/study.py", '("lora", "foura_dct", "head")', '("foura_dct", "lora", "head")', STUDY),
    Mutant("foura/report/study.py", "        share_of=selection.column,\n", "", STUDY),
    Mutant("foura/report/study.py", "1 / runs[column].min()", "1 / runs[column].max()", STUDY),
    Mutant("foura/report/study.py", '(by["backbone"] == backbone) & (by["dataset"] == dataset)', '(by["backbone"] == backbone)', STUDY),
    Mutant("foura/report/study.py", 'groupby("run_id")[columns].mean()', 'groupby("run_id")[columns].median()', STUDY),
    Mutant("foura/report/tuning.py", 'sort=False, dropna=False).all()', 'sort=False, dropna=False).any()', STUDY),
    Mutant("foura/report/tuning.py", "found in results.items() if value in compared}", "found in results.items()}", STUDY),
    Mutant("foura/report/tuning.py", ", 1 if score[2] else -1)", ", 1)", STUDY),
    Mutant("foura/report/page.py", 'metric.sign * (found["train"] - found["val"])', 'found["train"] - found["val"]', "tests/unit/report/test_page.py"),
    Mutant("foura/report/collect.py", "{point.step + 1: _measured", "{point.step: _measured", "tests/unit/report/test_page.py"),
    Mutant("foura/report/collect.py", 'math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value', 'value', "tests/unit/report/test_parts.py"),
    Mutant("foura/analysis/statistics.py", '    if not np.isfinite(differences).all():\n        return differences\n', '', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/study.py", 'numbers = numeric(column)  # of both tables', 'numbers = numeric(tables[0][f"param:{key}"])  # of both tables', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/conditions.py", 'says(other, key) and not (tuned and (key in PREFERRED or not says(key, other)))', 'says(other, key)', "tests/unit/report/test_parts.py"),
    Mutant("foura/analysis/tasks.py", 'np.maximum([(middle - low) * ratio, (high - middle) * ratio], least)', '(middle - low) * ratio, (high - middle) * ratio', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/study.py", 'adapters = list(dict.fromkeys(both["adapter"]))', 'adapters = list(dict.fromkeys(pick(runs, tuning, conditions, tuned_keys, score)[1]["adapter"]))', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/conditions.py", 'if not key.startswith("adapter.") or follows.all():', 'if follows.all():', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/study.py", '            if key not in self.unused:\n                rows =', '            if not key.startswith(("adapter.", "dataset.")):\n                rows =', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/compare.py", 'own[~own["seed"].isin(differ)]', 'own', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/tuning.py", '(set(_values(done, keys)) & set(results)) or set', 'set', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/tuning.py", 'isin(["finished", "diverged"])', 'isin(["finished"])', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/tuning.py", '(set(_values(done, keys)) & set(results)) or', 'set(_values(done, keys)) or', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/verdicts.py", 'row["needed"] - row["seeds"] for row', 'row["needed"] - len(sweep.runs["seed"].unique()) for row', "tests/unit/report/test_parts.py"),
    Mutant("foura/report/verdicts.py", 'not in taken | set(have)', 'not in set(have)', "tests/unit/report/test_parts.py"),
    Mutant("foura/tracking/store.py", '{**earlier, **margins}', 'margins', "tests/unit/report/test_parts.py"),
    Mutant("foura/tracking/store.py", "**{name: shared[name] for name in TOLD if shared.get(name)}", "", "tests/unit/report/test_parts.py"),
    Mutant("foura/report/overview.py", "1.0 if measure.more_is_better else -1.0", "1.0", OVERVIEW),
    Mutant("foura/report/overview.py", "tests=len(shared))", "tests=1)", OVERVIEW),
    Mutant("foura/report/overview.py", "runs[np.isfinite(runs[column])]", "runs", OVERVIEW),
    Mutant("foura/report/overview.py", "np.abs(others).mean()", "np.abs(mine).mean()", OVERVIEW),
    # training: what the optimizer is given, in which order, and what counts
    Mutant("foura/families/task.py", "weight_decay=cfg.weight_decay", "weight_decay=0.0", TRAINING),
    Mutant("foura/families/task.py", "lr=cfg.lr, gate_lr=cfg.gate_lr", "lr=cfg.lr", TRAINING),
    Mutant("foura/families/task.py", "T_max=max(1, total - steps)", "T_max=max(1, total)", TRAINING),
    Mutant("foura/families/task.py", "            self.train_loss.reset()\n", "", TRAINING),
    Mutant("foura/families/task.py", "return loss if extra is None else loss + extra", "return loss", TRAINING),
    Mutant("foura/families/task.py", "                module.eval()\n", "                pass\n", TRAINING),
    Mutant("foura/run/loop.py", "drop_last=False", "drop_last=True", LOADERS),
    Mutant("foura/run/loop.py", "torch.Generator().manual_seed(self.cfg.seed)", "torch.Generator().manual_seed(0)", LOADERS),
    Mutant("foura/run/loop.py", "[self.data.train] * self.cfg.dataset.repeats", "[self.data.train]", LOADERS),
    Mutant("foura/run/loop.py", "if trainer.current_epoch + 1 == trainer.max_epochs:", "if False:", "tests/cli/test_train.py"),
    Mutant("foura/run/loop.py", "self._last_epoch(trainer)  # Lightning", "pass  # Lightning", RESUMED),
    Mutant("foura/run/loop.py", "    _count_epochs(trainer)\n", "", RESUMED),
    Mutant("foura/families/task.py", "self._keep_averages()  # Lightning", "pass  # Lightning", RESUMED),
    Mutant("foura/methods/lora.py", '"lora_dropout": cfg.adapter.dropout', '"lora_dropout": 0.0', "tests/unit/methods/test_lora.py"),
    # measures of a run: open ranks, memorised passages, images, the update, the cost, forgetting
    Mutant("foura/run/recorder.py", "if dataloader_idx > 0:", "if dataloader_idx > 1:", "tests/unit/run/test_ranks_by_epoch.py"),
    Mutant("foura/run/recorder.py", "(counted > OPEN)", "(counted > 0)", "tests/unit/run/test_ranks_by_epoch.py"),
    Mutant("foura/run/recorder.py", "before[1] + opened.numel()", "before[1] + 1", "tests/unit/run/test_ranks_by_epoch.py"),
    Mutant("foura/run/recorder.py", "distributed.all_reduce_sum(*(number for counts in self.counts.values() for number in counts))", "[number for counts in self.counts.values() for number in counts]", "tests/unit/run/test_ranks_by_epoch.py"),
    Mutant("foura/run/recorder.py", "counted = gates if mask is None else gates[mask]", "counted = gates", "tests/unit/run/test_ranks_by_epoch.py"),
    Mutant("foura/run/layers.py", "math.sqrt(sum(norm**2 for norm in norms))", "sum(norms)", "tests/unit/run/test_layers.py"),
    Mutant("foura/run/layers.py", "before.get(name, full.get_base_layer().weight)", "full.get_base_layer().weight", "tests/unit/run/test_layers.py"),
    Mutant("foura/run/cost.py", "self.step_times[1:] or self.step_times", "self.step_times", "tests/unit/run/test_layers.py"),
    Mutant("foura/run/before.py", "    model.eval()\n    try", "    try", "tests/unit/run/test_forgetting.py"),
    Mutant("foura/families/encoder/task.py", "if classes == 2", "if classes == 3", "tests/unit/families/encoder"),
    Mutant("foura/families/encoder/task.py", '"mcc": _Matthews(classes)', '"mcc": MulticlassMatthewsCorrCoef(classes)', "tests/unit/families/encoder"),
    Mutant("foura/families/encoder/data.py", "cfg.eval_limit, cfg.split_seed, source", "cfg.eval_limit, seed, source", "tests/unit/families/encoder"),
    Mutant("foura/families/encoder/data.py", 'train_eval=[items["train"]', 'train_eval=[items["validation"]', "tests/unit/families/encoder"),
    Mutant("foura/families/encoder/data.py", "cfg.train_eval_limit, cfg.split_seed)", "cfg.train_eval_limit, seed)", "tests/unit/families/encoder"),
    Mutant("foura/families/images/data.py", "some_of(len(train), cfg.train_eval_limit, cfg.split_seed)", "range(min(len(train), cfg.train_eval_limit))", "tests/unit/families/images"),
    Mutant("foura/families/diffusion/data.py", "if name in found and cfg.path is not None:", "if False:", DIFFUSION),
    Mutant("foura/families/language/task.py", "(completed == truth).all(1)", "(completed == truth)", "tests/unit/families/language"),
    Mutant("foura/families/language/data.py", 'to_judge(items["train"][place]) for place in fixed', 'to_judge(item) for item in items["validation"]', "tests/unit/families/language"),
    Mutant("foura/families/language/data.py", "counts, cfg.split_seed)", "counts, 1)", "tests/unit/families/language"),
    Mutant("foura/families/diffusion/task.py", "value in rows[-1].items()", "value in rows[0].items()", DIFFUSION),
    Mutant("foura/families/diffusion/task.py", "manual_seed(LEVELS * number + level)", "manual_seed(level)", DIFFUSION),
    Mutant("foura/families/diffusion/task.py", "torch.Generator().manual_seed(cfg.seed)", "torch.Generator().manual_seed(0)", DIFFUSION),
    Mutant("foura/families/diffusion/image_metrics.py", "_kernel(features, other)", "_kernel(features, training)", DIFFUSION),
    Mutant("foura/sweep/sweeper.py", 'get(f"best/{metric}")', 'get(f"final/{metric}")', ROUNDS),
    Mutant("foura/sweep/sweeper.py", 'return Result("loss", None)', "return None", ROUNDS),
    # what is done, and what is run again
    Mutant("foura/tracking/status.py", 'DONE = ("finished", "diverged")', 'DONE = ("finished", "diverged", "failed")', "tests/unit/run tests/unit/tracking"),
    Mutant("foura/run/resume.py", 'previous.get("key") == key and previous.get("state") in DONE', 'previous.get("state") in DONE', "tests/unit/run"),
    Mutant("foura/run/resume.py", "    if force or not left:\n", "    if force:\n", "tests/unit/run"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only mutants whose line has this text")
    parser.add_argument("-n", type=int, default=2, help="at the same time")
    parser.add_argument("--whole", action="store_true", help="run all fast tests on what survives")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if args.k in str(mutant)]
    with ThreadPoolExecutor(args.n) as pool:
        verdicts = list(pool.map(lambda mutant: _report(mutant, args.whole), chosen))
    survived = [mutant for mutant, caught in zip(chosen, verdicts, strict=True) if not caught]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} faults caught")
    for mutant in survived:
        print(f"survived: {mutant}")
    sys.exit(1 if survived or not chosen else 0)


def _report(mutant: Mutant, whole: bool) -> bool:
    caught = caught_by(mutant, mutant.tests.split()) or (whole and caught_by(mutant, []))
    print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant}", flush=True)
    return caught


def caught_by(mutant: Mutant, tests: list[str]) -> bool:
    """True if these tests (none: all fast ones) fail with the fault.

    Raises:
        RuntimeError: pytest ended in another way, as where a test file does not exist.
    """
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in COPIED:
            source = ROOT / part
            ignored = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=ignored)
            else:
                shutil.copy(source, copy / part)
        path = copy / mutant.path
        path.write_text(mutated(path.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
        env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        ended = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
        if ended.returncode not in (0, FAILED):
            raise RuntimeError(f"{mutant}: pytest ended with {ended.returncode}\n{ended.stdout[-2000:]}{ended.stderr}")
        return ended.returncode == FAILED


def mutated(text: str, mutant: Mutant) -> str:
    """The text with the fault.

    Raises:
        ValueError: the text to replace does not occur exactly once.
    """
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.path} has {text.count(mutant.old)} times {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


if __name__ == "__main__":
    main()
