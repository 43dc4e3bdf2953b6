"""Token ids on disk: tokenised once, memory-mapped by every run with the same texts and tokenizer."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules._ragged import Ragged, concatenate
from recpeft.files import atomic_folder, locked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 16_384
"""Number of texts tokenised at once; a fast tokenizer distributes them over the cores."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts by kind, and the hash of each kind's ids."""

    texts: dict[str, Ragged]
    hashes: dict[str, str]
    found: bool = False
    """True if they were read from the cache."""


def load_or_build(
    folder: Path | None,
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Callable[[], Sequence[str]]],
    whole: Collection[str],
) -> Tokens:
    """Return the ids of ``texts`` from the cache in ``folder``; tokenise and cache them if they are missing.

    One process builds while others wait. Incomplete or altered entries are built again.

    Args:
        folder: folder of the cache; None caches nothing.
        key: name of the entry, equal for equal texts and tokenizers.
        texts: function that renders the texts of each kind, called only if they are not in the cache.
        whole: kinds whose texts are complete or begin a text; the texts of other kinds are segments within a text.
    """

    def build() -> Tokens:
        ids = {kind: tokenise(tokenizer, render(), kind, within=kind not in whole) for kind, render in texts.items()}
        return Tokens(ids, {kind: _hash(part) for kind, part in ids.items()})

    if folder is None:
        return build()
    entry = folder / key
    found = _read(entry, texts)
    if found is None:
        with locked(entry):
            found = _read(entry, texts)  # another process was faster
            if found is None:
                tokens = build()
                _write(entry, tokens)
                return tokens
    return found


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits over everything that determines a tokenizer's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{type(tokenizer).__name__}{state}".encode()).hexdigest()[:16]


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str = "texts", within: bool = False
) -> Ragged:
    """Return the ids of ``texts`` without special tokens; a progress bar is shown for many texts in a terminal.

    Args:
        within: return the ids that the texts have after another text; they start with white space.
    """
    from rich.progress import track

    anchor = _anchor(tokenizer) if within else ""
    cut = len(_ids(tokenizer, [anchor])[0]) if anchor else 0
    starts = range(0, len(texts), CHUNK)
    watched = len(texts) > CHUNK and sys.stderr.isatty()
    parts = []
    for start in track(starts, description=f"Tokenising {what}", disable=not watched):
        ids = _ids(tokenizer, [f"{anchor}{text}" for text in texts[start : start + CHUNK]])
        parts.append(Ragged.of([row[cut:] for row in ids]))
    return concatenate(parts) if parts else Ragged.of([])


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text to put before segments to get their ids within a text; empty if none is needed.

    Tokenizers such as Llama 2's put a space before every text. Those of Llama 3, Qwen and DeepSeek have one token for
    a colon and a following line break, so cutting off the colon's token would also remove the line break: for them
    a segment's line break stays a separate token, as after a word.
    """
    segments = [" b", "\n- b", "\nb"]
    for anchor in ("a:", "a"):
        start, *alone = _ids(tokenizer, [anchor, *segments])
        behind = _ids(tokenizer, [anchor + segment for segment in segments])
        if all(ids[: len(start)] == start for ids in behind):
            return "" if [ids[len(start) :] for ids in behind] == alone else anchor
    return ""


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _hash(ids: Ragged) -> str:
    state = hashlib.sha256(np.ascontiguousarray(ids.offsets, "<i8").data)
    state.update(np.ascontiguousarray(ids.values, "<i4").data)
    return state.hexdigest()[:16]


def _read(entry: Path, kinds: Mapping[str, object]) -> Tokens | None:
    try:
        hashes = json.loads((entry / "hashes.json").read_text(encoding="utf-8"))
        texts = {
            kind: Ragged(
                np.load(entry / f"{kind}.ids.npy", mmap_mode="r"), np.load(entry / f"{kind}.offsets.npy", mmap_mode="r")
            )
            for kind in kinds
        }
        if hashes != {kind: _hash(ids) for kind, ids in texts.items()}:
            return None
    except (OSError, ValueError, EOFError):  # missing, truncated, or not a cache entry
        return None
    return Tokens(texts, hashes, found=True)


def _write(entry: Path, tokens: Tokens) -> None:
    with atomic_folder(entry) as folder:
        for kind, ids in tokens.texts.items():
            np.save(folder / f"{kind}.ids.npy", ids.values)
            np.save(folder / f"{kind}.offsets.npy", ids.offsets)
        (folder / "hashes.json").write_text(json.dumps(tokens.hashes), encoding="utf-8")
