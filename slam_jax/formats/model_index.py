"""model_index.json of a folder of diffusers: which pipelines there are, and the classes of the
parts of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json

HINT = "a diffusers model folder has it; get it again"
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
# The classes that a component may have.
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": CLIP_TOKENIZERS,
}
CLASSES_XL = {
    **CLASSES,
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer_2": CLIP_TOKENIZERS,
}
CLASSES_3 = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "tokenizer": CLIP_TOKENIZERS,
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer_2": CLIP_TOKENIZERS,
    "text_encoder_3": ("T5EncoderModel",),
    "tokenizer_3": ("T5TokenizerFast", "T5Tokenizer"),
}
OPTIONAL = ("text_encoder_3", "tokenizer_3")  # both or neither
WITHOUT_T5 = (
    "get it again, or leave T5 out: with text_encoder_3 and tokenizer_3 set to [null, null] in "
    "model_index.json prompts are read by CLIP alone"
)
COMPONENTS = tuple({**CLASSES_XL, **CLASSES_3})
TOKENIZERS = tuple(name for name in COMPONENTS if name.startswith("tokenizer"))
# They judge or encode pictures, and take no part in distillation or sampling.
NOT_USED = {"safety_checker", "feature_extractor", "image_encoder"}
STEMS = {  # of the weights' file names, by who wrote them: diffusers or transformers
    name: "diffusion_pytorch_model" if name in ("unet", "vae", "transformer") else "model"
    for name in COMPONENTS
    if name not in TOKENIZERS
}
PIPELINES = {
    "StableDiffusionPipeline": CLASSES,
    "StableDiffusionImg2ImgPipeline": CLASSES,
    "LatentConsistencyModelPipeline": CLASSES,
    "LatentConsistencyModelImg2ImgPipeline": CLASSES,
    "StableDiffusionXLPipeline": CLASSES_XL,
    "StableDiffusionXLImg2ImgPipeline": CLASSES_XL,
    "StableDiffusion3Pipeline": CLASSES_3,
    "StableDiffusion3Img2ImgPipeline": CLASSES_3,
}
# What others differ in that are distilled too.
FLUX = (
    "its transformer is of another kind, and FLUX.1-dev is told its guidance, which a teacher here "
    "has to be drawn with and without"
)
OTHERS = {
    "FluxPipeline": FLUX,
    "FluxTransformer2DModel": FLUX,
    "PixArtAlphaPipeline": "its transformer is of another kind",
    "PixArtSigmaPipeline": "its transformer is of another kind",
    "SanaPipeline": "its transformer, autoencoder and text encoder are of another kind",
}


def read_index(path: Path) -> dict[str, Any]:
    """Contents of model_index.json, whose classes are known ones.

    Raises:
        InputError: no such file, or a pipeline or component that is not supported, by its name.
    """
    index = read_json(path, HINT)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        why = f" ({OTHERS[pipeline]})" if pipeline in OTHERS else ""
        supported = ", ".join(PIPELINES)
        raise InputError(f"{path}: _class_name is {pipeline!r}{why}, supported: {supported}")
    classes = PIPELINES[pipeline]
    if all(class_of(index.get(component)) is None for component in OPTIONAL):
        classes = {name: kinds for name, kinds in classes.items() if name not in OPTIONAL}
    for component, supported in classes.items():
        name = class_of(index.get(component))
        if name not in supported:
            why = f" ({OTHERS[name]})" if name in OTHERS else ""
            named = f"{component} is {name}{why}"
            raise InputError(f"{path}: {named}, supported: {' and '.join(supported)}")
    known = classes.keys() | NOT_USED | {"scheduler"}
    for component, value in index.items():
        if component not in known and (name := class_of(value)):
            raise InputError(f"{path}: {component} ({name}) is not supported in a {pipeline}")
    return index


def classes_in(folder: Path) -> Mapping[str, Any] | None:
    """The classes of the pipeline in a folder, a value of PIPELINES; None: there is no pipeline, or
    an unknown one.

    Raises:
        InputError: model_index.json is damaged.
    """
    path = folder / "model_index.json"
    return PIPELINES.get(str(read_json(path, HINT).get("_class_name"))) if path.exists() else None


def left_out(path: Path) -> tuple[str, ...]:
    """Which optional parts of a pipeline a model_index.json says are not there."""
    index = read_index(path)
    return tuple(
        name
        for name in OPTIONAL
        if name in PIPELINES[index["_class_name"]] and class_of(index.get(name)) is None
    )


def tokenizer_of(text_encoder: str) -> str:
    """The folder of the tokenizer that belongs to a text encoder."""
    return text_encoder.replace("text_encoder", "tokenizer")


def hint_of(component: str) -> str:
    """What to do where a file of a component is missing."""
    return WITHOUT_T5 if component in OPTIONAL else HINT


def class_of(entry: Any) -> str | None:
    """The class in an entry [library, class] of model_index.json; None for any other entry."""
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
        return entry[1]
    return None
