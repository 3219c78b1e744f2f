"""Text-to-image diffusion: the denoising loss, and metrics of generated images at the end, by adapter scale."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from foura.adapter import effective_rank
from foura.adapter.freeze import foura_layers
from foura.errors import UserError
from foura.families.diffusion.backbone import DiffusionBackbone
from foura.families.diffusion.data import DiffusionData
from foura.families.diffusion.figures import draw_ranks_by_step, draw_scales, image_grid
from foura.families.diffusion.image_metrics import ImageMetrics
from foura.families.diffusion.sampling import adapter_scale, sample
from foura.families.task import EVALUATIONS, Task
from foura.files import write_csv

LEVELS = 4  # noise levels at which each item is evaluated
GRID = 8  # images in a row of a grid
MOST_IMAGES = 100_000  # generated at once: twice what studies of FID use
BY_EPOCH = ("kernel", "diversity", "copy_distance")  # measured within training, with evaluation.judge_every
DRAWN = torch.float32  # of random numbers: another precision of the trainer would draw others


class Diffusion(Task):
    """Batches are (latents (S, C, H, W), caption tokens (S, T), numbers of the items (S,)).

    loss: mean squared error of the predicted noise (DDPM, arXiv 2006.11239) or velocity (arXiv 2202.00512). In training,
    noise and timesteps come from a generator of the run's seed, so that all adapters of a seed see the same; in an
    evaluation each item has fixed ones of its own.
    """

    metrics = ("loss",)

    def __init__(self, model: nn.Module, backbone: DiffusionBackbone, data: DiffusionData, cfg: DictConfig) -> None:
        super().__init__(model, cfg)
        self.backbone, self.data, self.evaluation = backbone, data, cfg.evaluation
        self.image_metrics = ImageMetrics(cfg.evaluation, data, cfg.dataset.source)
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.generators.append(self.generator)
        self.levels = int(backbone.scheduler.config.num_train_timesteps)
        self.losses: Any = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in (*EVALUATIONS, "test")})
        self._check_sampling()
        self._check_measuring()

    def _check_sampling(self) -> None:
        """Refuse what cannot be sampled, before anything is trained; the config may be another person's too."""
        steps, seeds = self.evaluation.sampling_steps, self.evaluation.seeds_per_prompt
        if steps > self.levels:
            raise UserError(
                f"evaluation.sampling_steps={steps} is more than the {self.levels} noise levels of the model."
            )
        if seeds * len(self._prompts()) > MOST_IMAGES:
            raise UserError(
                f"evaluation.seeds_per_prompt={seeds} makes more than {MOST_IMAGES:,} images of all prompts, which "
                "are kept in memory to be measured; lower it, or evaluation.max_prompts."
            )

    def _check_measuring(self) -> None:
        """Refuse what cannot be measured, before anything is trained: the distances are between two distributions."""
        if not self.evaluation.strengths:
            raise UserError(
                "evaluation.strengths names no adapter scale to measure at; leave it out, or write "
                "evaluation.strengths=[1.0]."
            )
        used = {
            "validation": (self.evaluation.judge_every > 0, "evaluation.judge_every=0"),
            "test": (self.evaluation.test, "evaluation.test=false"),
        }
        for split, (measured, without) in used.items():
            count = len(self.data.captions[split])
            if measured and count < 2:
                raise UserError(
                    f"the {split} split has {count} image, and generated images are compared with at least 2: give it "
                    f"another (see dataset.eval_limit, too), or set {without}."
                )

    def loss(self, batch: Any) -> Tensor:
        latents, captions, _ = batch
        # of several processes, each draws for the whole batch and takes its share
        rows, size = (slice(None), len(latents)) if self.rows is None else (self.rows, self.batch_size)
        noise = torch.randn((size, *latents.shape[1:]), generator=self.generator, dtype=DRAWN)[rows].to(latents)
        timestep = torch.randint(self.levels, (size,), generator=self.generator)[rows].to(latents.device)
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
        timestep = (numbers * 389 + 97) % self.levels  # spread over the noise levels
        noise, _ = self._fixed(batch, 0)
        return {
            "noisy": self.backbone.scheduler.add_noise(latents, noise, timestep),
            "timestep": timestep,
            "captions": captions,
        }

    def epoch_images(self, folder: Path) -> list[Path]:
        """One image for each of the first prompts, every `evaluation.pictures_every` epochs."""
        every = self.evaluation.pictures_every
        if not every or (self.current_epoch + 1) % every:
            return []
        path = folder / "samples" / f"epoch_{self.current_epoch + 1:04d}.png"
        image_grid([self._of_each(self._prompts()[:GRID])], ["generated"], path)
        return [path]

    def epoch_measures(self) -> dict[str, float]:
        """{"val/kernel", …}: generated images against validation images, every `evaluation.judge_every` epochs."""
        every = self.evaluation.judge_every
        if not every or (self.current_epoch + 1) % every:
            return {}
        images, captions = self._generated()
        values = self.image_metrics(images, captions, "validation", self.device)
        return {f"val/{key}": values[key] for key in BY_EPOCH}

    def final_measures(self, data: DiffusionData, folder: Path) -> dict[str, float]:
        """{"test/kernel", …}: generated images against test images, at the last adapter scale of `evaluation.strengths`.

        The values at all scales go to strengths.csv and strengths.png, images to samples.png, and the open ranks of gates
        by denoising step to ranks_by_step.csv and .png.
        """
        prompts, rows = self._prompts()[:GRID], []
        grid = {"held out": data.images["test"][:GRID]}
        with adapter_scale(self.model, 0.0, self.before):
            grid["scale 0"] = self._of_each(prompts)
        for alpha in self.evaluation.strengths:
            with adapter_scale(self.model, alpha, self.before):
                images, captions = self._generated()
            rows.append({"strength": alpha, **self.image_metrics(images, captions, "test", self.device)})
            grid[f"scale {alpha:g}"] = images[:: self.evaluation.seeds_per_prompt][:GRID]
        write_csv(rows, folder / "strengths.csv")
        draw_scales(rows, folder / "strengths.png")
        image_grid(list(grid.values()), list(grid), folder / "samples.png")
        self._ranks_by_step(prompts, folder)
        return {f"test/{key}": value for key, value in rows[-1].items() if key != "strength"}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The text encoder's adapters have a learning rate of their own (half of the UNet's in the paper, App. C.2).

        Their gates have that of all gates: at an adapter's rate a gate stays where it starts.
        """
        rate = self.optimizer_config.text_encoder_lr
        named = {f".{name}": p for name, p in self.model.named_parameters()}
        text = {id(p) for name, p in named.items() if ".text_encoder." in name and ".foura_gate." not in name}
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
        """The noise of each item and a timestep in the quarter `level` of them, the same at every evaluation."""
        latents, _, numbers = batch
        noise, timesteps = [], []
        for number in numbers.tolist():
            generator = torch.Generator().manual_seed(LEVELS * number + level)
            noise.append(torch.randn(latents.shape[1:], generator=generator, dtype=DRAWN))
            within = float(torch.rand((), generator=generator, dtype=DRAWN))
            timesteps.append(int((level + within) / LEVELS * self.levels))
        return torch.stack(noise).to(latents), torch.tensor(timesteps, device=latents.device)

    def _prompts(self) -> list[str]:
        given = self.evaluation.prompts
        found = list(given) if given else list(dict.fromkeys(self.data.captions["validation"]))
        return found[: self.evaluation.max_prompts]

    def _generated(self) -> tuple[Tensor, list[str]]:
        """(images, their captions): of every prompt, one for each of the first seeds."""
        prompts, seeds = self._prompts(), self.evaluation.seeds_per_prompt
        captions = [prompt for prompt in prompts for _ in range(seeds)]
        return self._sample(captions, list(range(seeds)) * len(prompts)), captions

    def _of_each(self, prompts: list[str]) -> Tensor:
        """One image of each prompt."""
        return self._sample(prompts, [0] * len(prompts))

    def _sample(self, captions: list[str], seeds: list[int], **options: Any) -> Tensor:
        settings = (self.evaluation.sampling_steps, self.evaluation.guidance, self.device)
        return sample(self.model, self.backbone, captions, seeds, *settings, **options)

    def _ranks_by_step(self, prompts: list[str], folder: Path) -> None:
        """Open ranks of each gated layer at each denoising step (paper Fig. 5)."""
        if not any(layer.foura_gate for layer in foura_layers(self.model).values()):
            return
        inputs: list[dict[str, Tensor]] = []
        self._sample(prompts, [0] * len(prompts), watch=lambda step, given: inputs.append(given))
        rows = [{"step": step, **effective_rank(self.model, [given])} for step, given in enumerate(inputs)]
        write_csv(rows, folder / "ranks_by_step.csv")
        draw_ranks_by_step(rows, folder / "ranks_by_step.png")
