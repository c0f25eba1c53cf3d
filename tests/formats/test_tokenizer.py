"""Tokenizers of model folders, against transformers."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_stable_diffusion
import transformers

from slam_jax.base.errors import InputError
from slam_jax.formats import diffusers_folder as folder

ROOT = Path(__file__).parents[2]
CAPTIONS = (
    "",
    "a photograph of an astronaut riding a horse",
    "A  PHOTOGRAPH\n of\tan astronaut!",
    "it's 1,024 pixels wide; they're <|endoftext|> done",
    "wow! such a dog!!! !",
    "ein Mädchen im Café, 日本の庭園, кошка 🐈 e\u0301",
    "cat " * 100,
    "красная площадь " * 40,
)
TOKENIZERS = [(family, "tokenizer") for family in tiny_stable_diffusion.FAMILIES]
TOKENIZERS += [("sdxl", "tokenizer_2")]


@pytest.mark.parametrize("only_tokenizer_json", [False, True])
@pytest.mark.parametrize(("family", "component"), TOKENIZERS)
def test_token_ids(teachers, tmp_path, family, component, only_tokenizer_json):
    path = teachers[family]
    reference = transformers.CLIPTokenizer.from_pretrained(path / component)
    if only_tokenizer_json:  # all that transformers 5 writes
        reference.save_pretrained(tmp_path / component)
        assert not (tmp_path / component / "vocab.json").exists()
        path = tmp_path
    tokenizer = folder.read_tokenizer(folder.Folder(path, "tiny"), component)
    ids = tokenizer(CAPTIONS)
    assert (ids.shape, ids.dtype) == ((len(CAPTIONS), 77), np.int32)
    for text, row in zip(CAPTIONS, ids, strict=True):
        expected = reference(text, padding="max_length", truncation=True, max_length=77)
        assert row.tolist() == expected["input_ids"]
    start, end = tokenizer.vocabulary - 2, tokenizer.vocabulary - 1
    pad = 0 if "sd21" in family or component == "tokenizer_2" else end
    assert ids[0].tolist() == [start, end] + [pad] * 75
    assert ids[-1, 0] == start
    assert ids[-1, -1] == end


def test_what_a_tokenizer_cuts_off(teachers, monkeypatch):
    warnings = []  # transformers warns of long texts, once for each tokenizer
    logger = logging.getLogger("transformers.tokenization_utils_base")
    monkeypatch.setattr(logger, "warning", lambda *args: warnings.append(args))
    tokenizer = folder.read_tokenizer(folder.resolve(str(teachers["sd15"])), "tokenizer")
    assert tokenizer.cut("") == ""
    assert tokenizer.cut("a " * 75) == ""
    assert tokenizer.cut("a " * 75 + "Dog") == "Dog"
    assert tokenizer.cut("a " * 75 + "Dog, é  end") == "Dog, é  end"
    for text in (CAPTIONS[-2], CAPTIONS[-1], "e\u0301 " * 80):
        tail = tokenizer.cut(text)
        assert 0 < len(tail) < len(text)
        assert text.endswith(tail)
        kept = tokenizer([text.removesuffix(tail)])[0]
        # A word that is cut in two may end in other tokens than it had.
        assert kept[:73].tolist() == tokenizer([text])[0, :73].tolist()
    assert not warnings


def test_reading_a_tokenizer_is_quiet_without_torch(teachers):
    code = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
from pathlib import Path
from slam_jax.formats import diffusers_folder as folder
assert "transformers" not in sys.modules
model = folder.Folder(Path({str(teachers["sd15"])!r}), "tiny")
tokenizer = folder.read_tokenizer(model, "tokenizer")
assert tokenizer(["a " * 100]).shape == (1, 77)
assert tokenizer.cut("a " * 100)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_VERBOSITY"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "special_tokens_map.json",
            {"pad_token": None},
            r"tokenizer: not a CLIP tokenizer \(Asking",
        ),
        ("vocab.json", {"<|endoftext|>": None}, r"vocab.json: lacks <\|endoftext\|>"),
    ],
)
def test_a_tokenizer_that_cannot_pad_or_end_a_text_is_refused(changeable, name, changes, message):
    """Transformers would say the first when it pads, and add the second as a new word."""
    path = changeable / "tokenizer" / name
    content = {**json.loads(path.read_text()), **changes}
    if name == "vocab.json":
        content = {word: number for word, number in content.items() if number is not None}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        folder.read_tokenizer(folder.Folder(changeable, "tiny"), "tokenizer")
