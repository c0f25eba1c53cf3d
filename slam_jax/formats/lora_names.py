"""Which layer a key of a LoRA file means, in all the spellings there are.

lora_unet_down_blocks_0_attentions_0_proj_in       kohya's sd-scripts, diffusers' names
lora_unet_input_blocks_1_1_proj_in                 kohya's for SDXL, StabilityAI's names
lora_te_..., lora_te1_..., lora_te2_...            kohya's text encoders
unet.down_blocks.0.attentions.0.proj_in            diffusers; text_encoder., text_encoder_2.
transformer.transformer_blocks.0.attn.to_q         diffusers, of a transformer
base_model.model.down_blocks.0.attentions.0.proj_in    peft, of a UNet
down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora    diffusers, in 2023
"""

import re
from collections.abc import Collection, Mapping

DENOISER = "denoiser"
# What stands before a layer's path -> the part it is of.
WITH_UNDERSCORES = {
    "lora_unet_": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
WITH_DOTS = {
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "base_model.model.": DENOISER,
    "": DENOISER,
}
IN_RESNETS = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
# diffusers' UNet outside of its blocks -> StabilityAI's.
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
OLD_TEXT_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Names:
    """The layers of a model by all their names.

    Args:
      layers: part -> dotted paths of its layers, as diffusers and transformers have them.
      layers_per_block: of the UNet; None: it is none, and nobody has other names for its layers.
    """

    def __init__(self, layers: Mapping[str, Collection[str]], layers_per_block: int | None):
        self._dotted = {part: {path: path for path in paths} for part, paths in layers.items()}
        if layers_per_block is not None:
            self._dotted[DENOISER] |= stability_names(layers[DENOISER], layers_per_block)
        for part, paths in self._dotted.items():
            if part != DENOISER:  # files of one text encoder may lack it
                paths |= {path.removeprefix("text_model."): path for path in list(paths)}
        self._underscored = {
            part: {name.replace(".", "_"): path for name, path in paths.items()}
            for part, paths in self._dotted.items()
        }

    def find(self, name: str) -> tuple[str, str] | None:
        """Part and path of a layer that a file calls so; None: there is no such layer."""
        for prefix, part in WITH_UNDERSCORES.items():
            if name.startswith(prefix):
                path = self._underscored.get(part, {}).get(name.removeprefix(prefix))
                return None if path is None else (part, path)
        for prefix, part in WITH_DOTS.items():
            if name.startswith(prefix):
                for spelled in _spellings(name.removeprefix(prefix)):
                    if (path := self._dotted.get(part, {}).get(spelled)) is not None:
                        return part, path
        return None


def _spellings(name: str) -> list[str]:
    """A layer's path, and what it means where it is an older one."""
    plain = name.replace(".processor.", ".")
    before, _, last = plain.rpartition(".")
    return [plain, f"{plain}.0", f"{before}.{OLD_TEXT_ATTENTION.get(last, last)}"]


def stability_names(paths: Collection[str], layers_per_block: int) -> dict[str, str]:
    """What StabilityAI's code calls the layers of diffusers' UNet -> what diffusers calls them."""
    each = layers_per_block + 1  # places of a block, of which the last down is a downsampler's
    found = {}
    for path in paths:
        if path in OUTSIDE:
            found[OUTSIDE[path]] = path
        elif match := re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", path):
            kind, index, inner = match[1], int(match[2]), match[3]
            place = 1 if kind == "attentions" else 2 * index
            found[f"middle_block.{place}.{inner_name(kind, inner)}"] = path
        elif match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path):
            block, kind, index, inner = int(match[2]), match[3], int(match[4]), match[5]
            attends = any(name.startswith(f"up_blocks.{block}.attentions.") for name in paths)
            if kind == "downsamplers":
                name = f"input_blocks.{each * (block + 1)}.0.op"
            elif kind == "upsamplers":
                name = f"output_blocks.{each * (block + 1) - 1}.{1 + attends}.conv"
            else:
                side, first = ("input", 1) if match[1] == "down" else ("output", 0)
                place = f"{each * block + index + first}.{int(kind == 'attentions')}"
                name = f"{side}_blocks.{place}.{inner_name(kind, inner)}"
            found[name] = path
    return found


def inner_name(kind: str, inner: str) -> str:
    """A layer inside a residual or an attention block."""
    names = {ours: theirs for theirs, ours in IN_RESNETS.items()}
    return names.get(inner, inner) if kind == "resnets" else inner
