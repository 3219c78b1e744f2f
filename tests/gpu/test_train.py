"""One run of each family on the GPU, as a user starts it."""

import subprocess
import sys

import pytest

RUNS = {
    "images": "adapter=foura rank=4 trainer.max_epochs=1",
    "language": "backbone=llama_small adapter=foura_dft_gated rank=4 trainer.max_epochs=1 dataset.limit=32 "
    "dataset.eval_limit=16 evaluation.passages=4",
    "diffusion": "backbone=unet adapter=foura rank=4 trainer.max_epochs=1 dataset.repeats=2 dataset.eval_limit=26 "
    "evaluation.sampling_steps=2 evaluation.max_prompts=4 evaluation.strengths=[1.0]",
    "encoder": "backbone=bert adapter=foura rank=4 trainer.max_epochs=1 dataset.limit=64 dataset.eval_limit=32",
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("family", RUNS)
def test_a_run_finishes_without_a_traceback(family, precision, root, run_env, tmp_path) -> None:
    command = [sys.executable, "train.py", *RUNS[family].split(), "trainer=gpu", f"trainer.precision={precision}"]
    ended = subprocess.run(
        [*command, f"outputs={tmp_path}"], cwd=root, env=run_env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr + ended.stdout and "SystemExit" not in ended.stderr
