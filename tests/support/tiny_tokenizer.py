"""A tiny tokenizer of CLIP's form: a vocabulary and merges, trained on a few captions."""

import collections
import json
import re

CAPTIONS = (
    "a photograph of an astronaut riding a horse on the beach at sunset",
    "a bowl of fruit on a wooden table, oil painting, high quality",
    "two cats sleeping on a red sofa next to the window",
    "a small dog running through the green grass of the park",
    "the old city at night, cinematic light, highly detailed",
    "a man and a woman walking down the street with a bicycle",
)
MERGES = 90
START, END = "<|startoftext|>", "<|endoftext|>"
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+", re.IGNORECASE)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _byte_letters():
    """One printable letter per byte, in the order of CLIP's vocabulary (which is GPT-2's)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    return letters


def vocabulary():
    """A byte-level BPE vocabulary of CLIP's form, trained on CAPTIONS.

    Returns:
        token -> id: 256 bytes, 256 bytes that end a word, merges, start and end; and the merges.
    """
    letters = _byte_letters()
    words = collections.Counter()
    for word in WORD.findall(" ".join(CAPTIONS).lower()):
        symbols = [letters[byte] for byte in word.encode()]
        words[(*symbols[:-1], symbols[-1] + "</w>")] += 1
    merges = []
    while len(merges) < MERGES:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged = collections.Counter()
        for word, count in words.items():
            merged[_merge(word, best)] += count
        words = merged
    tokens = [*letters.values(), *(letter + "</w>" for letter in letters.values())]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    assert len(set(tokens)) == len(tokens)
    return {token: i for i, token in enumerate(tokens)}, merges


def _merge(word, pair):
    merged, i = [], 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        merged.append("".join(word[i : i + step]))
        i += step
    return tuple(merged)


def write_tokenizer(folder, exclamation_mark_in):
    """A tokenizer's four files.

    Args:
        exclamation_mark_in: the file that makes "!" the padding, "special_tokens_map" (SD 2) or
            "tokenizer_config" (the second one of SDXL: both files, and id 0 is a special token);
            None: the end token pads.
    """
    ids, merges = vocabulary()

    def special(content, normalized=True):
        flags = dict(lstrip=False, normalized=normalized, rstrip=False, single_word=False)
        return {"content": content, **flags}

    tokens = {"bos_token": special(START), "eos_token": special(END), "unk_token": special(END)}
    config = {
        "add_prefix_space": False,
        **{key: {"__type": "AddedToken", **value} for key, value in tokens.items()},
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
    }
    if exclamation_mark_in == "tokenizer_config":
        config |= {key: value["content"] for key, value in tokens.items()} | {"pad_token": "!"}
        config["added_tokens_decoder"] = {
            "0": {**special("!", normalized=False), "special": True},
            str(ids[START]): {**special(START), "special": True},
            str(ids[END]): {**special(END), "special": True},
        }
    write_json(folder / "tokenizer_config.json", config)
    pad = "!" if exclamation_mark_in else END
    write_json(folder / "special_tokens_map.json", {**tokens, "pad_token": pad})
    write_json(folder / "vocab.json", ids)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
