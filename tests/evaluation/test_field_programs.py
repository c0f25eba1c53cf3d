"""FID, CMMD and CLIP score of pictures in files against the field's programs: golden numbers of
torch-fidelity and clean-fid (golden/make_fid.py), CMMD's formula in torch, and transformers."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import random_inception
import smooth_pictures
import tiny_networks
from PIL import Image

from slam_jax.drawing.metrics.metric import Drawn
from slam_jax.drawing.metrics.registry import measure
from slam_jax.evaluation.images import open_images
from slam_jax.evaluation.reference import from_pictures
from slam_jax.features.extract import Extractor
from slam_jax.features.registry import open_network
from slam_jax.features.rows import in_memory
from slam_jax.formats import safetensors
from slam_jax.parallel.sharding import make_mesh

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parent / "golden/fid.json"
# Of CLIP's checkpoints.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ("a photograph of an astronaut", "two cats", "a cat", "two photographs of a cat")


def extractor(weights, *names):
    networks = {name: open_network(name, str(weights)) for name in names}
    return Extractor(networks, make_mesh(devices=jax.local_devices()), 8)


def features_of(folder, extractor, *pictures):
    """(whose, network) -> rows, of the model's pictures, then of real ones."""
    features = {}
    for whose, path in zip(("model", "reference"), pictures, strict=False):
        seen = from_pictures(open_images(path), folder / f"of_{whose}", extractor)
        features |= {(whose, name): rows for name, rows in seen.features.items()}
    return features


def test_fid_of_two_folders_is_that_of_torch_fidelity_and_clean_fid(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    pictures = smooth_pictures.write_two_sets(tmp_path, golden["count"])
    weights = tmp_path / "model.safetensors"
    safetensors.save_arrays(weights, random_inception.published())
    networks = extractor(weights, "inception", "inception_tf1")
    features = features_of(tmp_path, networks, *pictures)
    found = measure(Drawn(None, (), features=features), ["fid", "fid_tf1"])
    theirs = golden["torch-fidelity"]
    assert found == {
        "fid": pytest.approx(golden["clean-fid"]["fid"], abs=1e-3),
        "fid_tf1": pytest.approx(theirs["fid"], abs=1e-3),
    }
    assert abs(found["fid"] - found["fid_tf1"]) > 0.5  # the resizer is seen
    # torch-fidelity's are of the features of its FID.
    resized = {(whose, "inception"): features[whose, "inception_tf1"] for whose, _ in features}
    found = measure(Drawn(None, (), features=resized), ["precision", "recall"])
    assert found == {name: pytest.approx(theirs[name]) for name in ("precision", "recall")}


def clip_model(folder, **sizes):
    return tiny_networks.clip_folder(folder / "clip", **sizes).double()


def read(folder):
    return [Image.open(path) for path in sorted(folder.glob("*.png"))]


def test_cmmd_of_two_folders_is_that_of_the_authors(tmp_path):
    """google-research's cmmd: io_util.py crops and resizes, embedding.py standardises and divides
    by the length, distance.py compares."""
    import torch

    model = clip_model(tmp_path, width=768, image_size=336, patch_size=14)
    pictures = smooth_pictures.write_two_sets(tmp_path, 3)
    networks = extractor(tmp_path / "clip", "clip_l14_336")
    features = features_of(tmp_path, networks, *pictures)
    found = measure(Drawn(None, (), features=features), ["cmmd"])

    def seen(image):
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        pixels = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC))
        return torch.tensor((pixels / 255 - MEAN) / STD).permute(2, 0, 1)

    def embedded(folder):
        with torch.no_grad():
            pooled = model.vision_model(torch.stack(list(map(seen, read(folder))))).pooler_output
            rows = model.visual_projection(pooled)
        return rows / rows.norm(dim=1, keepdim=True)

    def kernel(a, b):
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        return torch.exp(-squares / (2 * 10**2)).mean()

    x, y = map(embedded, pictures)
    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert found == {"cmmd": pytest.approx(expected.item(), rel=1e-4)}


def test_clip_score_of_a_folder_is_that_of_transformers(tmp_path):
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = clip_model(tmp_path, width=512, image_size=224, patch_size=32)
    drawn, _ = smooth_pictures.write_two_sets(tmp_path, 2)
    networks = extractor(tmp_path / "clip", "clip_b32")
    features = features_of(tmp_path, networks, drawn)
    texts = networks.texts(PROMPTS)["clip_b32"]
    features["prompts", "clip_b32"] = in_memory(texts)
    found = measure(Drawn(None, PROMPTS, features=features), ["clip_score"])

    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "clip")
    captions = [f"A photo depicts {prompt}" for prompt in PROMPTS]
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil()(read(drawn), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        said = model(**tokens, pixel_values=pixels.double())
    cosines = (said.image_embeds * said.text_embeds).sum(1)
    assert found == {"clip_score": pytest.approx(cosines.mean().item(), rel=1e-4)}
