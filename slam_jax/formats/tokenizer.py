"""The tokenizers of CLIP and T5, which are those of transformers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Tokenizer:
    """Texts to the token ids that a text encoder takes.

    Attributes:
      backend: transformers' tokenizer.
      length: L, with the start and end tokens.
    """

    backend: Any
    length: int

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return len(self.backend)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Token ids [B, L], int32; long texts are cut, short ones padded as the folder says."""
        ids = self.backend(
            list(texts), padding="max_length", truncation=True, max_length=self.length
        )["input_ids"]
        return np.array(ids, np.int32).reshape(len(texts), self.length)

    def cut(self, text: str) -> str:
        """The end of the text that `__call__` cuts off; "" if the text fits."""
        offsets = self.backend(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        # The last place of L is that of the end token.
        return text[offsets[self.length - 1][0] :] if len(offsets) > self.length else ""


def tokenize(tokenizers: Sequence[Tokenizer], texts: Sequence[str]) -> Int[np.ndarray, "B E L"]:
    """Token ids of the texts by each of E tokenizers, int32."""
    return np.stack([tokenizer(list(texts)) for tokenizer in tokenizers], axis=1)


def tokenize_in_a_row(
    tokenizers: Sequence[Tokenizer], texts: Sequence[str]
) -> Int[np.ndarray, "B L"]:
    """The same of tokenizers of several lengths: their token ids behind each other."""
    return np.concatenate([tokenizer(list(texts)) for tokenizer in tokenizers], axis=1)


def load_tokenizer(where: Path, length: int, kind: str = "CLIP") -> Tokenizer:
    """The tokenizer whose files are in `where`, for texts of `length` tokens.

    Args:
        where: its folder.
        length: L.
        kind: "CLIP" or "T5".

    Raises:
        Exception: of any class, when a file is not what it should be.
    """
    # Imported here because it takes more than a second; and quietly, because without torch it
    # would say that it can do nothing but this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import (
        CLIPTokenizer,
        T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
    )

    classes = {"CLIP": CLIPTokenizer, "T5": T5TokenizerFast}
    return Tokenizer(classes[kind].from_pretrained(where, local_files_only=True), length)
