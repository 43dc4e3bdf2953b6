"""Token ids on disk: tokenised once, memory-mapped by every run that has the same texts and tokenizer."""

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
"""Texts that are tokenised at once; a fast tokenizer shares them out among the cores."""


@dataclass(frozen=True)
class Tokens:
    """Texts by kind, as ids, and the hash of each kind's ids."""

    texts: dict[str, Ragged]
    hashes: dict[str, str]
    found: bool = False
    """Whether they stood in the cache."""


def load_or_build(
    folder: Path | None,
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Callable[[], Sequence[str]]],
    whole: Collection[str],
) -> Tokens:
    """The ids of ``texts``, from ``folder`` if they are there, else tokenised and left there.

    One process builds while others wait. What an interrupted process left, or what was altered since, is built
    anew.

    Args:
        folder: None keeps nothing.
        key: names the entry: equal for equal texts and tokenizers.
        texts: kind -> function that renders them, called only where they are not in the cache.
        whole: the kinds whose texts stand on their own or begin one; those of the others are segments within a text.
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
    """16 hex digits over all that decides a tokenizer's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{type(tokenizer).__name__}{state}".encode()).hexdigest()[:16]


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str = "texts", within: bool = False
) -> Ragged:
    """Ids of ``texts`` without special tokens; a bar shows the way where it is long and someone watches.

    Args:
        within: the ids that the texts have behind another one. They start with white space.
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
    """What segments are to stand behind to get the ids that they have within a text; empty where they need nothing.

    Llama 2's kind of tokenizer puts a space before whatever it is given. Those of Llama 3, Qwen and DeepSeek have
    one token for a colon with the line break behind it, so cutting off a colon's token would take the break along:
    with them a segment's line break stays a token of its own, as behind a word.
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
    except (OSError, ValueError, EOFError):  # not there, cut short, or no such file at all
        return None
    return Tokens(texts, hashes, found=True)


def _write(entry: Path, tokens: Tokens) -> None:
    with atomic_folder(entry) as folder:
        for kind, ids in tokens.texts.items():
            np.save(folder / f"{kind}.ids.npy", ids.values)
            np.save(folder / f"{kind}.offsets.npy", ids.offsets)
        (folder / "hashes.json").write_text(json.dumps(tokens.hashes), encoding="utf-8")
