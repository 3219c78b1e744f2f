"""Models that users have, small and random."""

import torch
from torch import nn


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))


def tiny_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def tiny_clip(projection: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPTextConfig(**shape, vocab_size=64, max_position_embeddings=16, projection_dim=32)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tiny_transformer(family: str) -> tuple[nn.Module, dict]:
    """(a random transformer of a diffusion pipeline of diffusers, an input for it)."""
    import diffusers

    torch.manual_seed(2)
    noise = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise)

    heads = {"num_attention_heads": 2, "attention_head_dim": 16}
    ids = {"img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(5, 3)}
    time = {"timestep": torch.tensor([0.5])}
    if family == "SD3":
        model = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, **heads, joint_attention_dim=32,
            caption_projection_dim=32, pooled_projection_dim=32, out_channels=4, pos_embed_max_size=8,
        )  # fmt: skip
        inputs = {"hidden_states": randn(1, 4, 8, 8), "encoder_hidden_states": randn(1, 5, 32)}
        return model, {**inputs, "pooled_projections": randn(1, 32), "timestep": torch.tensor([500])}
    if family == "Flux":
        model = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, **heads, joint_attention_dim=32,
            pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        inputs = {"hidden_states": randn(1, 4, 4), "encoder_hidden_states": randn(1, 5, 32)}
        return model, {**inputs, "pooled_projections": randn(1, 32), **ids, **time}
    if family == "Flux2":
        model = diffusers.Flux2Transformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=2, **heads, joint_attention_dim=32,
            timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        )  # fmt: skip
        inputs = {"hidden_states": randn(1, 4, 4), "encoder_hidden_states": randn(1, 5, 32), **time}
        return model, {**inputs, "img_ids": torch.zeros(4, 4), "txt_ids": torch.zeros(5, 4)}
    if family == "QwenImage":
        model = diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, **heads, joint_attention_dim=32,
            guidance_embeds=False, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        inputs = {"hidden_states": randn(1, 4, 16), "encoder_hidden_states": randn(1, 5, 32)}
        mask = {"encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.long), "img_shapes": [[(1, 2, 2)]]}
        return model, {**inputs, **mask, **time}
    model = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=32, axes_dims=[4, 6, 6], axes_lens=[64, 64, 64],
    )  # fmt: skip
    return model, {"x": [randn(4, 1, 8, 8)], "t": torch.tensor([0.5]), "cap_feats": [randn(5, 32)]}
