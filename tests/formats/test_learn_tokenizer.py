"""A vocabulary learnt from captions, read by transformers' CLIPTokenizer."""

import collections

import pytest
import tiny_tokenizer
import transformers

from slam_jax.formats.diffusers_folder import Folder, read_tokenizer
from slam_jax.formats.learn_tokenizer import (
    END,
    START,
    alphabet,
    learn_merges,
    vocabulary_of,
    write_tokenizer,
)

CAPTIONS = tiny_tokenizer.CAPTIONS
COUNT = 60


@pytest.fixture(scope="module")
def merges():
    return learn_merges(CAPTIONS, COUNT)


def pair_counts(merged):
    """How often each pair of neighbours occurs in the captions, after these merges."""
    words = collections.Counter()
    for word in tiny_tokenizer.WORD.findall(" ".join(CAPTIONS).lower()):
        words[(*word[:-1], word[-1] + "</w>")] += 1
    for pair in merged:
        joined = collections.Counter()
        for word, count in words.items():
            joined[tiny_tokenizer._merge(word, pair)] += count
        words = joined
    pairs = collections.Counter()
    for word, count in words.items():
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += count
    return pairs


def test_each_merge_is_of_a_most_frequent_pair(merges):
    assert len(merges) == COUNT
    for i, pair in enumerate(merges):
        counts = pair_counts(merges[:i])
        assert counts[pair] == max(counts.values())


def test_alphabet_is_that_of_clip():
    letters = tiny_tokenizer.vocabulary()[0]
    assert alphabet() == list(letters)[:256]


def test_files_make_a_clip_tokenizer(merges, tmp_path):
    write_tokenizer(tmp_path / "tokenizer", merges, 12)
    ids, theirs = (
        vocabulary_of(merges),
        transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"),
    )
    assert len(theirs) == 512 + COUNT + 2 and theirs.get_vocab() == ids
    text = "A small dog, sleeping on the 日本 sofa"
    tokens = theirs(text)["input_ids"]
    assert (tokens[0], tokens[-1]) == (ids[START], ids[END]) and len({*tokens}) > 12
    assert theirs.decode(tokens, skip_special_tokens=True).replace(" ", "") == (
        text.lower().replace(" ", "")
    )
    ours = read_tokenizer(Folder(tmp_path, "tiny"), "tokenizer")
    padded = theirs([text, ""], padding="max_length", truncation=True, max_length=12)["input_ids"]
    assert ours([text, ""]).tolist() == padded
    assert padded[1] == [ids[START]] + 11 * [ids[END]]


def test_few_words_have_few_merges():
    merges = learn_merges(["red apple", "red pear"], 1000)
    assert ("r", "e") in merges or ("e", "d</w>") in merges
    # Every word is one token, and nothing is left to merge.
    assert {"red</w>", "apple</w>", "pear</w>"} <= {"".join(pair) for pair in merges}
    assert len(merges) < 12
