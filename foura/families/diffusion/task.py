"""Text-to-image diffusion: the denoising loss, and what the trained model draws: distance, diversity, copying, by strength."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from foura.adapter import effective_rank
from foura.adapter.freeze import foura_layers
from foura.families.diffusion.backbone import DiffusionBackbone
from foura.families.diffusion.data import DiffusionData
from foura.families.diffusion.figures import draw_ranks_by_step, draw_strengths, image_grid
from foura.families.diffusion.image_metrics import Judge
from foura.families.diffusion.sampling import sample, strength
from foura.families.task import EVALUATIONS, Task
from foura.files import write_csv

LEVELS = 4  # noise levels at which each item is evaluated
GRID = 8  # pictures in a row of a grid


class Diffusion(Task):
    """Batches are (latents (S, C, H, W), caption tokens (S, T), numbers of the items (S,)).

    loss: mean squared error of the predicted noise (or velocity). For training, noise and timesteps come from a generator
    of the run's seed, so that adapters of one seed see the same; an evaluation gives each item fixed ones of its own.
    """

    metrics = ("loss",)

    def __init__(self, model: nn.Module, backbone: DiffusionBackbone, data: DiffusionData, cfg: DictConfig) -> None:
        super().__init__(model, cfg)
        self.backbone, self.data, self.evaluation = backbone, data, cfg.evaluation
        self.judge = Judge(cfg.evaluation, data, cfg.dataset.source)
        self.chance = torch.Generator().manual_seed(cfg.seed)
        self.generators.append(self.chance)
        self.levels = int(backbone.scheduler.config.num_train_timesteps)
        self.losses: Any = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in (*EVALUATIONS, "test")})

    def loss(self, batch: Any) -> Tensor:
        latents, captions, _ = batch
        # of several ranks, each draws for all and takes its own
        rows, size = (slice(None), len(latents)) if self.rows is None else (self.rows, self.batch_size)
        noise = torch.randn((size, *latents.shape[1:]), generator=self.chance)[rows].to(latents)
        timestep = torch.randint(self.levels, (size,), generator=self.chance)[rows].to(latents.device)
        return self._errors(latents, captions, noise, timestep).mean()

    def evaluate(self, name: str, batch: Any) -> None:
        latents, captions, _ = batch
        for level in range(LEVELS):
            noise, timestep = self._fixed(batch, level)
            self.losses[name].update(self._errors(latents, captions, noise, timestep))

    def results(self, name: str) -> dict[str, float]:
        value = float(self.losses[name].compute())
        self.losses[name].reset()
        return {"loss": value}

    def inputs(self, batch: Any) -> dict[str, Tensor]:
        latents, captions, numbers = batch
        timestep = (numbers * 389 + 97) % self.levels  # all over the noise levels
        noise, _ = self._fixed(batch, 0)
        return {
            "noisy": self.backbone.scheduler.add_noise(latents, noise, timestep),
            "timestep": timestep,
            "captions": captions,
        }

    def epoch_pictures(self, folder: Path) -> list[Path]:
        """One picture for each of the first prompts."""
        every = self.evaluation.pictures_every
        if not every or (self.current_epoch + 1) % every:
            return []
        path = folder / "samples" / f"epoch_{self.current_epoch + 1:04d}.png"
        image_grid([self._draw(self._prompts()[:GRID], 0)], ["drawn"], path)
        return [path]

    def epoch_measures(self) -> dict[str, float]:
        """val/kernel, val/diversity and val/copy_distance of pictures drawn now, against validation pictures."""
        every = self.evaluation.judge_every
        if not every or (self.current_epoch + 1) % every:
            return {}
        prompts, seeds = self._prompts(), self.evaluation.seeds_per_prompt
        captions = [prompt for prompt in prompts for _ in range(seeds)]
        drawn = self._sample(captions, list(range(seeds)) * len(prompts))
        measured = self.judge(drawn, captions, "validation", self.device)
        return {f"val/{key}": measured[key] for key in ("kernel", "diversity", "copy_distance")}

    def final_measures(self, data: DiffusionData, folder: Path) -> dict[str, float]:
        """test/frechet, test/kernel, test/diversity, test/copy_distance, and the same by strength in strengths.csv."""
        prompts, seeds = self._prompts(), self.evaluation.seeds_per_prompt
        rows, grid, names = [], [data.images["test"][:GRID]], ["held out"]
        with strength(self.model, 0.0, self.before):
            grid.append(self._draw(prompts[:GRID], 0))
            names.append("strength 0")
        for alpha in self.evaluation.strengths:
            captions = [prompt for prompt in prompts for _ in range(seeds)]
            with strength(self.model, alpha, self.before):
                drawn = self._sample(captions, list(range(seeds)) * len(prompts))
            rows.append({"strength": alpha, **self.judge(drawn, captions, "test", self.device)})
            grid.append(drawn[::seeds][:GRID])
            names.append(f"strength {alpha:g}")
        write_csv(rows, folder / "strengths.csv")
        draw_strengths(rows, folder / "strengths.png")
        image_grid(grid, names, folder / "samples.png")
        self._ranks_by_step(prompts[:GRID], folder)
        return {f"test/{key}": value for key, value in rows[-1].items() if key != "strength"}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The text encoder's adapters learn at their own rate (half of the UNet's in the paper, App. C.2)."""
        rate = self.optimizer_config.text_encoder_lr
        text = {id(p) for name, p in self.model.named_parameters() if ".text_encoder." in f".{name}"}
        groups = []
        for group in super().parameter_groups():
            for chosen, lr in ((False, group["lr"]), (True, group["lr"] if rate is None else rate)):
                parameters = [p for p in group["params"] if (id(p) in text) == chosen]
                if parameters:
                    groups.append({**group, "params": parameters, "lr": lr})
        return groups

    def _errors(self, latents: Tensor, captions: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Squared error of each item, (S,)."""
        scheduler = self.backbone.scheduler
        predicted = self.model(scheduler.add_noise(latents, noise, timestep), timestep, captions)
        velocity = scheduler.config.prediction_type == "v_prediction"
        wanted = scheduler.get_velocity(latents, noise, timestep) if velocity else noise
        return (predicted.float() - wanted).square().flatten(1).mean(1)

    def _fixed(self, batch: Any, level: int) -> tuple[Tensor, Tensor]:
        """The noise of each item and a timestep of the given quarter of them, the same at every evaluation."""
        latents, _, numbers = batch
        noise, timesteps = [], []
        for number in numbers.tolist():
            chance = torch.Generator().manual_seed(LEVELS * number + level)
            noise.append(torch.randn(latents.shape[1:], generator=chance))
            within = float(torch.rand((), generator=chance))
            timesteps.append(int((level + within) / LEVELS * self.levels))
        return torch.stack(noise).to(latents), torch.tensor(timesteps, device=latents.device)

    def _prompts(self) -> list[str]:
        given = self.evaluation.prompts
        found = list(given) if given else list(dict.fromkeys(self.data.captions["validation"]))
        return found[: self.evaluation.max_prompts]

    def _draw(self, prompts: list[str], seed: int) -> Tensor:
        return self._sample(prompts, [seed] * len(prompts))

    def _sample(self, captions: list[str], seeds: list[int], **options: Any) -> Tensor:
        settings = (self.evaluation.sampling_steps, self.evaluation.guidance, self.device)
        return sample(self.model, self.backbone, captions, seeds, *settings, **options)

    def _ranks_by_step(self, prompts: list[str], folder: Path) -> None:
        """Open ranks of each gated layer at each denoising step (paper Fig. 5)."""
        if not any(layer.foura_gate for layer in foura_layers(self.model).values()):
            return
        seen: list[dict[str, Tensor]] = []
        self._sample(prompts, [0] * len(prompts), watch=lambda step, inputs: seen.append(inputs))
        rows = [{"step": step, **effective_rank(self.model, [inputs])} for step, inputs in enumerate(seen)]
        write_csv(rows, folder / "ranks_by_step.csv")
        draw_ranks_by_step(rows, folder / "ranks_by_step.png")
