"""slam-jax evaluate of a tiny Stable Diffusion, with prompts of a file and a tiny CLIP."""

import hashlib
import json

import numpy as np
import pytest
import tiny_loras
import torch
from tiny_networks import clip_folder
from transformers import CLIPTokenizer

import slam_jax
from slam_jax.commands import evaluate
from slam_jax.features.resize import clip
from slam_jax.formats.lora_file import write_lora

PROMPTS = ("a lighthouse by the sea", "two dogs")


@pytest.mark.slow
def test_scores_of_clip_of_a_student(finished_sd, teachers, tmp_path, capsys):
    """Against transformers' CLIP on the pictures that `sample` draws."""
    folder = tmp_path / "clip"
    model = clip_folder(folder, width=512, image_size=224, patch_size=32)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    out = tmp_path / "out"
    evaluate.main(
        [
            *("--model", str(finished_sd), "--prompts", str(tmp_path / "prompts.txt")),
            *("--per-prompt", "2", "--steps", "1", "--metrics", "clip_score,retrieval,diversity"),
            *("--weights", f"clip_b32={folder}", "--weights", f"clip_own={folder}"),
            *("--out", str(out), "--batch", "1"),
        ]
    )
    (row,) = json.loads((out / "results.json").read_text())["results"]
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    images = slam_jax.sample(slam_jax.load(finished_sd), prompts, steps=1)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    pixels = np.stack([clip(image, 224) for image in images]).transpose(0, 3, 1, 2)
    texts = [f"A photo depicts {prompt}" for prompt in prompts] + list(PROMPTS)
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        seen = model.get_image_features(torch.tensor(pixels))
        read = model.get_text_features(tokens.input_ids)
    seen, read = (getattr(x, "pooler_output", x) for x in (seen, read))
    read, bare = read[:4], torch.nn.functional.normalize(read[4:])
    cosines = torch.nn.functional.cosine_similarity(seen, read)
    assert row["clip_score"] == pytest.approx(cosines.mean().item(), rel=1e-4)
    pairs = torch.nn.functional.cosine_similarity(seen[::2], seen[1::2])
    assert row["diversity"] == pytest.approx(1 - pairs.mean().item(), rel=1e-3, abs=1e-6)
    right = (seen @ bare.T).argmax(dim=1) == torch.tensor([0, 0, 1, 1])
    assert row["retrieval"] == right.float().mean() and row["retrieval_choices"] == 2
    assert f"| {row['retrieval']:.4g} of 2 |" in (out / "results.md").read_text()
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["texts"] == {"clip_b32": "A photo depicts ...", "clip_own": "..."}
    assert row["pictures"] == 4


@pytest.mark.slow
def test_the_record_names_the_loras(teachers, tmp_path):
    """By their files, weights and SHA-256; and the method by which the model drew with them."""
    folder, lora, out = tmp_path / "clip", tmp_path / "lcm.safetensors", tmp_path / "out"
    clip_folder(folder, width=512, image_size=224, patch_size=32)
    write_lora(lora, tiny_loras.make(teachers["sd15"])[0].lora)
    (tmp_path / "prompts.txt").write_text("two dogs")
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--metrics", "clip_score"]
    options += ["--weights", f"clip_b32={folder}", "--batch", "1", "--steps", "1"]
    options += ["--model", str(teachers["sd15"]), "--lora", f"{lora}:0.8", "--method", "lcm"]
    evaluate.main([*options, "--out", str(out)])
    protocol = json.loads((out / "results.json").read_text())["protocol"]
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    assert protocol["loras"] == [{"file": str(lora), "sha256": digest, "weight": 0.8}]
    assert protocol["model"]["method"]["name"] == "lcm"
