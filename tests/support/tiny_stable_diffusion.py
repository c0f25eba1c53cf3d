"""Tiny but complete diffusers folders of Stable Diffusion's families, with random weights.

    python tests/support/tiny_stable_diffusion.py OUT_DIR --family sd15

writes model_index.json, unet, vae, text_encoder(s), tokenizer(s) and scheduler as the families'
own folders on the hub have them, down to their oddities: SD 1.5 has a VAE with attention keys of
before 2023, a `position_ids` that is no parameter and no prediction_type; SD 2 and the second
tokenizer of SDXL pad with "!". 64-pixel pictures, below 3 MB, the same bytes every time. The
weights are random but scaled: contexts, scaled latents and predictions are of order one, and
decoded pictures lie in about [-1.5, 1.5].
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tiny_tokenizer import vocabulary, write_json, write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FAMILIES = ("sd15", "sd21", "sd21_v", "sdxl")
# The numbers of the published schedulers; a missing prediction_type means epsilon.
BETAS = {
    "_diffusers_version": "0.8.0",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SCHEDULERS = {
    "sd15": {"_class_name": "PNDMScheduler", **BETAS},
    "sd21": {"_class_name": "PNDMScheduler", **BETAS, "prediction_type": "epsilon"},
    "sd21_v": {"_class_name": "DDIMScheduler", **BETAS, "prediction_type": "v_prediction"},
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "interpolation_type": "linear",
        "use_karras_sigmas": False,
        "sample_max_value": 1.0,
    },
}
# Two levels, where the real ones have four: each takes seconds to compile.
UNET = dict(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
)
UNETS = {
    "sd15": dict(**UNET, cross_attention_dim=32, attention_head_dim=4),
    "sd21": dict(
        **UNET,
        cross_attention_dim=40,
        attention_head_dim=(2, 8),
        use_linear_projection=True,
    ),
    "sdxl": dict(UNET)
    | dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 48,  # of both text encoders
        attention_head_dim=(2, 8),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56 + 6 * 8,  # pooled text and six numbers
    ),
}
UNETS["sd21_v"] = {**UNETS["sd21"], "upcast_attention": True}
SCALING_FACTORS = {"sd15": 0.18215, "sd21": 0.18215, "sd21_v": 0.18215, "sdxl": 0.13025}
# (hidden size, layers, activation, width of the projection in the config)
TEXT_L, TEXT_H, TEXT_G = (32, 3, "quick_gelu", 32), (40, 3, "gelu", 24), (48, 3, "gelu", 56)
TEXTS = {"sd15": TEXT_L, "sd21": TEXT_H, "sd21_v": TEXT_H, "sdxl": TEXT_L}


def make(folder, family: str, zero_snr: bool = False) -> Path:
    """Writes the model folder of a family, with zero terminal SNR if asked; returns its path."""
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}")
    folder = Path(folder)
    rng = np.random.default_rng(FAMILIES.index(family))
    scheduler = dict(SCHEDULERS[family])
    if zero_snr:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", _model_index(family))
    _write_unet(folder / "unet", family, rng)
    _write_vae(folder / "vae", family, rng)
    _write_text_encoder(folder / "text_encoder", TEXTS[family], rng, with_ids=family == "sd15")
    write_tokenizer(folder / "tokenizer", "special_tokens_map" if "sd21" in family else None)
    if family == "sdxl":
        _write_text_encoder(folder / "text_encoder_2", TEXT_G, rng, projection=True)
        write_tokenizer(folder / "tokenizer_2", "tokenizer_config")
    return folder


def _model_index(family):
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.8.0",
        "scheduler": ["diffusers", SCHEDULERS[family]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family == "sdxl":
        return index | {
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": True,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    return index | {
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    }


def _randomise(module, rng):
    """Random weights that keep activations of order one; numpy's, so that torch cannot change them.

    Returns the state dict.
    """
    state = {}
    for key, tensor in module.state_dict().items():
        draw = rng.standard_normal(tensor.shape).astype(np.float32)
        if key.endswith("bias"):
            draw *= 0.1
        elif tensor.ndim == 1:
            draw = 1 + 0.1 * draw
        elif "embedding.weight" not in key:  # those of tokens and positions stay as drawn
            draw *= 1 / np.sqrt(np.prod(tensor.shape[1:]))
        state[key] = torch.from_numpy(draw)
    return state


def _write_unet(folder, family, rng):
    unet = UNet2DConditionModel(**UNETS[family])
    state = _randomise(unet, rng)
    state["conv_out.weight"] *= 1.6  # what SiLU takes away
    unet.save_config(folder)
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def _write_vae(folder, family, rng):
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=SCALING_FACTORS[family],
        force_upcast=family == "sdxl",
    )
    state = _randomise(vae, rng)
    # Means of order 1 / scaling_factor, and little noise about them.
    mean, log_variance = state["quant_conv.weight"].split(4)
    mean *= 2 / SCALING_FACTORS[family]
    log_variance *= 0.3
    state["quant_conv.bias"][4:] -= 3
    state["post_quant_conv.weight"] *= SCALING_FACTORS[family]
    state["decoder.conv_out.weight"] *= 0.25
    state["decoder.conv_out.bias"] *= 0.25
    if family == "sd15":
        state = {_old_attention_key(key): tensor for key, tensor in state.items()}
    vae.save_config(folder)
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def _old_attention_key(key):
    """The name that diffusers before 0.16 gave to a key of the VAE's attention."""
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return key


def _write_text_encoder(folder, sizes, rng, projection=False, with_ids=False):
    hidden, layers, activation, width = sizes
    architecture = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    config = {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,  # wrong everywhere, and read as "the position of the largest id"
        "hidden_act": activation,
        "hidden_size": hidden,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 2 * hidden,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": width,
        "torch_dtype": "float32",
        "transformers_version": "4.25.0.dev0",
        "vocab_size": len(vocabulary()[0]),
    }
    write_json(folder / "config.json", config)
    model_class = CLIPTextModelWithProjection if projection else CLIPTextModel
    state = _randomise(model_class(CLIPTextConfig.from_dict(config)), rng)
    names = ((key.removeprefix("text_model."), tensor) for key, tensor in state.items())
    state = {key if "projection" in key else f"text_model.{key}": t for key, t in names}
    if with_ids:
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="sd15")
    parser.add_argument("--zero-snr", action="store_true", help="zero terminal signal to noise")
    options = parser.parse_args()
    print(make(options.folder, options.family, options.zero_snr))


if __name__ == "__main__":
    main()
