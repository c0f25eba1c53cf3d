"""Tiny but complete diffusers folders of Stable Diffusion 3, with random weights.

    python tests/support/tiny_sd3.py OUT_DIR --family sd35

writes what a folder on the hub has: "sd3" has the plain transformer and no T5, as many have left it
out; "sd35" has a second attention in its first block, norms of queries and keys, and a T5. 64-pixel
pictures, 2 MB, the same bytes every time.
"""

import argparse
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import save_file
from tiny_stable_diffusion import TEXT_G, TEXT_L, _randomise, _write_text_encoder
from tiny_tokenizer import CAPTIONS, write_json, write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

FAMILIES = ("sd3", "sd35")
SHIFT, SCALE = 0.0609, 1.5305  # of the published autoencoder
# The published scheduler's.
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.29.0.dev0",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
T5_WIDTH = 96  # more than both CLIPs' 80, which are filled up
TRANSFORMER = dict(
    sample_size=8,
    in_channels=16,
    out_channels=16,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    caption_projection_dim=16,
    joint_attention_dim=T5_WIDTH,
    pooled_projection_dim=TEXT_L[3] + TEXT_G[3],
    pos_embed_max_size=6,
)
TRANSFORMERS = {
    "sd3": TRANSFORMER,
    "sd35": dict(**TRANSFORMER, dual_attention_layers=(0,), qk_norm="rms_norm"),
}
# How the published file of T5 has it.
T5 = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 48,
    "d_kv": 8,
    "d_model": T5_WIDTH,
    "dense_act_fn": "gelu_new",
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_heads": 3,
    "num_layers": 2,
    "relative_attention_max_distance": 20,
    "relative_attention_num_buckets": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 128,
}


def make(folder, family: str) -> Path:
    """Writes the model folder of a family; returns its path."""
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}")
    folder, rng = Path(folder), np.random.default_rng(30 + FAMILIES.index(family))
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", _model_index(family))
    transformer = SD3Transformer2DModel(**TRANSFORMERS[family])
    places = transformer.state_dict()["pos_embed.pos_embed"]
    state = {**_randomise(transformer, rng), "pos_embed.pos_embed": places}
    transformer.save_config(folder / "transformer")
    save_file(state, folder / "transformer/diffusion_pytorch_model.safetensors", {"format": "pt"})
    _write_vae(folder / "vae", rng)
    for name, sizes in (("text_encoder", TEXT_L), ("text_encoder_2", TEXT_G)):
        _write_text_encoder(folder / name, sizes, rng, projection=True)
    write_tokenizer(folder / "tokenizer", None)
    write_tokenizer(folder / "tokenizer_2", "tokenizer_config")
    if family == "sd35":
        _write_t5(folder, rng)
    return folder


def _model_index(family):
    has_t5 = family == "sd35"
    return {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.29.0.dev0",
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"] if has_t5 else [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"] if has_t5 else [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_vae(folder, rng):
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        sample_size=64,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )
    state = _randomise(vae, rng)
    state["encoder.conv_out.weight"][16:] *= 0.3  # little noise about the means
    state["encoder.conv_out.bias"][16:] -= 3
    state["decoder.conv_out.weight"] *= 0.25
    state["decoder.conv_out.bias"] *= 0.25
    vae.save_config(folder)
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def _write_t5(folder, rng):
    write_json(folder / "text_encoder_3" / "config.json", T5)
    state = _randomise(T5EncoderModel(T5Config.from_dict(T5)), rng)
    del state["encoder.embed_tokens.weight"]  # the same as shared.weight
    save_file(state, folder / "text_encoder_3/model.safetensors", {"format": "pt"})
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    vocabulary = [(piece, 0.0 if i < 3 else -2.0 - i / 20) for i, (piece, _) in enumerate(pieces)]
    made = T5TokenizerFast(vocab=vocabulary, extra_ids=4, model_max_length=512)
    made.save_pretrained(folder / "tokenizer_3")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="sd35")
    options = parser.parse_args()
    print(make(options.folder, options.family))


if __name__ == "__main__":
    main()
