"""A vocabulary of CLIP's form, learnt from texts: byte-pair encoding by the tokenizers library."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from slam_jax.base.files import write_whole
from slam_jax.base.json_file import write_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# How CLIP splits a text into words before pairs are merged.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The most frequent pairs of letters and parts of words, in the order in which they are merged.

    Args:
      texts: to learn from.
      count: pairs, at most; there are fewer where every word is one token before.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    # The trainer counts the letters that it has seen among the vocabulary, each in both forms.
    trainer = trainers.BpeTrainer(
        vocab_size=count + 2 * 256,
        show_progress=False,
        initial_alphabet=alphabet(),
        end_of_word_suffix=WORD_END,
    )
    learner.train_from_iterator(texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges][:count]


def alphabet() -> list[str]:
    """A printable letter for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary_of(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token -> id: a letter and a letter at the end of a word for each byte, what is merged, start
    and end."""
    letters = alphabet()
    tokens = [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges)]
    return {token: i for i, token in enumerate([*dict.fromkeys(tokens), START, END])}


def write_tokenizer(folder: Path, merges: Sequence[tuple[str, str]], length: int) -> None:
    """Writes the files of a CLIPTokenizer.

    Args:
      folder: to write into.
      merges: from `learn_merges`.
      length: tokens of a text, with those of its start and end.
    """
    write_json(folder / "vocab.json", vocabulary_of(merges))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    write_whole(folder / "merges.txt", "\n".join(lines))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    config = {"model_max_length": length, "tokenizer_class": "CLIPTokenizer", **special}
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, **config})
