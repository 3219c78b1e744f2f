"""Tiny random models under the hub's names, so that PEFT's tests find them in the working folder: `python … FOLDER`."""

import json
import sys
from pathlib import Path

import diffusers
import torch
import transformers

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1100}
WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**SHAPE, **WORDS, "intermediate_size": 64, "num_key_value_heads": 4, "max_position_embeddings": 128}
GPT = {"vocab_size": 1100, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, **WORDS}
OPT = {**SHAPE, **WORDS, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 16}

DECODERS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", "OPTConfig", OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", "MistralConfig", LLAMA),
}


def decoders(folder: Path) -> None:
    for name, (model_class, config_class, shape) in DECODERS.items():
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**shape))
        with torch.no_grad():  # fresh models say nearly the same to everything; the tests look for changes
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
            if "qwen2" in name:  # PEFT counts on small hidden states there, to compare them after a coarse conversion
                model.model.norm.weight.mul_(0.25)
        model.save_pretrained(folder / name)


def stable_diffusion(folder: Path) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    words = folder / "tokenizer"
    words.mkdir(parents=True)
    (words / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    text = {**SHAPE, "vocab_size": len(tokens), "intermediate_size": 64, "max_position_embeddings": 16}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    channels = {"block_out_channels": (16, 32), "norm_num_groups": 8}
    diffusers.StableDiffusionPipeline(
        tokenizer=transformers.CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=16),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text, **ends)),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            **channels,
        ),
        vae=diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=16,
            **channels,
        ),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


if __name__ == "__main__":
    torch.manual_seed(0)
    here = Path(sys.argv[1])
    decoders(here)
    stable_diffusion(here / "hf-internal-testing" / "tiny-sd-pipe")
    peft_config = {"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": "none"}
    revision = here / "peft-internal-testing" / "tiny-opt-lora-revision"
    revision.mkdir(parents=True)
    (revision / "adapter_config.json").write_text(json.dumps(peft_config))
