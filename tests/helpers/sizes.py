"""Overrides that make a run of each family take seconds."""

SMALL: dict[str, tuple[str, ...]] = {
    "vit": ("dataset.limit=20",),
    "llama_small": ("dataset.limit=16", "dataset.eval_limit=8", "evaluation.passages=2", "evaluation.passage_tokens=4"),
    "unet": (
        *("dataset.limit=8", "dataset.eval_limit=8", "dataset.repeats=1", "evaluation.sampling_steps=2"),
        *("evaluation.strengths=[1.0]", "evaluation.max_prompts=2", "evaluation.seeds_per_prompt=2"),
    ),
}
QUICK = ("rank=4", "trainer.max_epochs=1")
