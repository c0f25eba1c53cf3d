"""A small CLIP, trained from nothing on captioned pictures alone, to judge which caption a picture
was drawn for: slam-jax evaluate --metrics retrieval --weights clip_own=OUT.

    PYTHONPATH=. python benchmarks/train_judge.py --data emoji:emoji --out runs/judge

It trains on one split. Of that and of one that it has not seen it tells the share of real pictures
whose caption it finds among 100, which drawn pictures can hardly surpass. OUT becomes a folder of
transformers' CLIPModel with these numbers in judge.json; OUT/training has checkpoints, from which
the same command goes on.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from contrastive import FIRST_SCALE, SCALE, TEXT, VISION, contrastive_loss
from jax.sharding import Mesh
from result import made_by, positive
from result import write as write_report

from slam_jax.base.errors import BackendError, InputError
from slam_jax.base.files import is_empty
from slam_jax.base.json_file import read_json, write_json
from slam_jax.base.options import OptionError
from slam_jax.config.options import Optimizer, Training
from slam_jax.data.examples import Examples
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.rejects import Rejected
from slam_jax.data.sources import add_source_options, data_of, open_examples
from slam_jax.drawing.metrics.retrieval import share_right
from slam_jax.features.clip import Clip
from slam_jax.features.extract import Extractor
from slam_jax.features.registry import open_network
from slam_jax.formats import convert
from slam_jax.formats.learn_tokenizer import learn_merges, vocabulary_of, write_tokenizer
from slam_jax.formats.safetensors import save_arrays
from slam_jax.formats.tokenizer import load_tokenizer
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.clip_vision import CLIPVisionConfig, CLIPVisionModel
from slam_jax.parallel import runtime
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes.plain import PlainTraining
from slam_jax.training.loop import Interrupted
from slam_jax.training.step import Params, check_batch_size

MERGES, TOKENS = 1000, 20
CAPTIONS, DRAWS = 100, 20


def networks(
    options: argparse.Namespace, vocabulary: int
) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """Both towers.

    Raises:
      InputError: the picture is no multiple of the patch, or a width none of the heads.
    """
    width = options.width
    common = dict(hidden_size=width, intermediate_size=4 * width, projection_dim=width)
    common |= dict(num_attention_heads=max(1, width // 32))
    try:
        text = CLIPTextConfig(
            vocab_size=vocabulary,
            eos_token_id=vocabulary - 1,
            max_position_embeddings=TOKENS,
            num_hidden_layers=options.text_layers,
            projection=True,
            **common,
        )
        vision = CLIPVisionConfig(
            image_size=options.resolution,
            patch_size=options.patch,
            num_hidden_layers=options.layers,
            **common,
        )
    except ValueError as error:
        raise InputError(f"--resolution, --patch, --width: {error}") from error
    return text, vision


def captions_of(examples: Examples) -> dict[str, int]:
    """Caption -> example that has it, of the first caption of every usable example."""
    found = {}
    for index in range(len(examples)):
        try:
            found[examples[index].captions[0]] = index
        except Rejected:
            continue
    return found


def schedule(options: argparse.Namespace, mesh: Mesh) -> Training:
    """How long and how fast it is trained.

    Raises:
      InputError: an impossible value; names the flag.
    """
    rate, warmup = options.learning_rate, options.steps // 10
    try:
        optimizer = Optimizer(rate, "cosine", warmup, weight_decay=0.1, b2=0.98)
        ema = max(0.0, 1 - 10 / options.steps)  # of about the last tenth
        training = Training(options.steps, options.batch_size, ema=ema, optimizer=optimizer)
        check_batch_size(training, mesh)
    except OptionError as error:
        flag = f"--{error.key.replace('_', '-')}"
        raise InputError(f"{flag} = {error.value!r}, expected {error.expected}") from error
    return training


def train(options: argparse.Namespace, examples: Examples) -> None:
    """Trains, and writes the folder.

    Raises:
      InputError: an option does not fit, or OUT holds something else.
      Interrupted: Ctrl-C; the state is saved.
    """
    mesh, out = make_mesh(), options.out
    training = schedule(options, mesh)
    merges = learn_merges(captions_of(examples), MERGES)
    text, vision = networks(options, len(vocabulary_of(merges)))
    folder = out / "training"
    claim(folder, options)
    write_tokenizer(folder, merges, TOKENS)
    source = ImageText(
        examples,
        Transform(options.resolution, flip=options.flip),
        load_tokenizer(folder, TOKENS),
    )
    init = keys_of(options.seed).init
    params = functional.init(CLIPTextModel, text, init)
    params |= functional.init(CLIPVisionModel, vision, jax.random.fold_in(init, 1))
    params[SCALE] = np.float32(FIRST_SCALE)
    run = PlainTraining(
        contrastive_loss(text, vision, options.shift, options.colour),
        source,
        training,
        options.seed,
        0,
        folder,
        "judge",
        command_of(options),
    )
    write_clip(out, text, vision, run.train(params, {}, mesh))
    write_tokenizer(out, merges, TOKENS)


def command_of(options: argparse.Namespace) -> dict:
    """What decides the weights, as JSON."""
    free = ("out", "held_out", "index")
    return {key: value for key, value in vars(options).items() if key not in free}


def claim(folder: Path, options: argparse.Namespace) -> None:
    """Makes the folder of a run, or finds the same run in it.

    Raises:
      InputError: it holds another one.
    """
    out, record = folder.parent, folder / "options.json"
    if record.exists():
        if read_json(record, "choose another --out") != command_of(options):
            raise InputError(f"{out}: made with other options; choose another --out")
    elif out.exists() and not is_empty(out):
        raise InputError(f"{out}: not empty, and no judge; choose another --out")
    write_json(record, command_of(options))


def write_clip(
    folder: Path, text: CLIPTextConfig, vision: CLIPVisionConfig, params: Params
) -> None:
    """Writes config.json and weights as transformers' CLIPModel does."""
    towers = {name: params[name] for name in (*TEXT, *VISION)}
    arrays = convert.to_torch(towers) | {SCALE: np.float32(params[SCALE])}
    save_arrays(folder / "model.safetensors", arrays)
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection_dim,
        "text_config": text.to_dict(),
        "vision_config": {"model_type": "clip_vision_model", **dataclasses.asdict(vision)},
    }
    write_json(folder / "config.json", config)


def retrieval(folder: Path, examples: Examples, seed: int) -> dict[str, float]:
    """The share of real pictures whose caption the judge finds among CAPTIONS, or among as many as
    there are: the mean over DRAWS choices of these, each a picture for a caption.

    Args:
      folder: of the judge.
      examples: real pictures.
      seed: of the choices.
    """
    network = open_network("clip_own", str(folder))
    assert isinstance(network, Clip)
    mesh = make_mesh(devices=jax.local_devices())
    extractor = Extractor({"clip_own": network}, mesh, 64 * mesh.size)
    places, cut = captions_of(examples), Transform(network.vision.image_size).cut
    pictures = [cut(examples[index]).image for index in places.values()]
    seen = extractor.images(pictures)["clip_own"]
    read = extractor.texts(list(places))["clip_own"]
    count, rng = min(CAPTIONS, len(places)), np.random.default_rng(seed)
    chosen = [rng.choice(len(places), count, replace=False) for _ in range(DRAWS)]
    shares = [share_right(seen[rows], read[rows], np.arange(count)) for rows in chosen]
    return {"retrieval": float(np.mean(shares)), "choices": count, "captions": len(places)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="source of pictures with captions, such as emoji:FOLDER")
    add("--out", type=Path, required=True, help="folder of the judge")
    add("--held-out", default="held_out", help="split that it is measured on, too")
    add("--steps", type=positive, default=1500)
    add("--batch-size", type=positive, default=128, help="pictures, each against their captions")
    add("--learning-rate", type=float, default=1e-3, help="the highest")
    add("--seed", type=int, default=0)
    add("--resolution", type=positive, default=32, help="pixels of a side that the judge sees")
    add("--patch", type=positive, default=4, help="pixels of a side")
    add("--width", type=positive, default=128, help="of both towers and of the features")
    add("--layers", type=positive, default=4, help="of the tower for pictures")
    add("--text-layers", type=positive, default=2, help="of the tower for captions")
    add("--shift", type=int, choices=range(9), default=2, help="of a picture, in pixels, at most")
    add("--flip", action="store_true", help="mirror half of the pictures")
    add("--colour", type=float, default=0.0, help="share by which channels change at most")
    add_source_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    made = made_by("train_judge.py", argv, ("jax", "flax", "optax", "numpy", "transformers"))
    try:
        runtime.configure()
        data = data_of(options, options.data, resolution=options.resolution)
        splits = {"train": data, "held_out": dataclasses.replace(data, split=options.held_out)}
        examples = {name: open_examples(split) for name, split in splits.items()}
        train(options, examples["train"])
        found = {n: retrieval(options.out, e, options.seed) for n, e in examples.items()}
        write_report({**made, **found}, options.out / "judge.json")
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        sys.exit(f"{stop}; the same command goes on")


if __name__ == "__main__":
    main()
