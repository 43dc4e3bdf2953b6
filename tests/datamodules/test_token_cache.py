"""Token ids on disk: found again, built once, and rebuilt where they were damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules import _token_cache
from datamodules._assembler import PromptAssembler
from datamodules._histories import Histories
from recpeft.errors import DiskError

USERS = pl.DataFrame({"user": [0, 1], "raw_id": ["a", "b"], "age": [7, 24], "shoe_size": [40, 41]})
INTERACTIONS = pl.DataFrame(
    {"user": [0, 0, 1, 1], "item": [0, 1, 2, 3], "rating": [4.0, 2.0, None, 5.0], "timestamp": [10, 20, 30, 40]},
    schema={"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64},
)
PROMPT: dict[str, Any] = {"annotation": "({{ rating }}/5)", "profile": "{{ age }}"}


@pytest.fixture(scope="module")
def tiny(tiny_backbone: Path) -> PreTrainedTokenizerBase:
    """A word is a token; [CLS] and [SEP] go around a text."""
    return AutoTokenizer.from_pretrained(tiny_backbone)


@pytest.fixture
def build(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame, tmp_path: Path) -> Callable[..., PromptAssembler]:
    """An assembler over the cache ``tmp_path / "tokens"``, with what is given in place of the usual inputs."""

    def build(
        tokenizer: PreTrainedTokenizerBase = tiny,
        items: pl.DataFrame = tiny_items,
        users: pl.DataFrame = USERS,
        interactions: pl.DataFrame = INTERACTIONS,
        cache: Path | None = tmp_path / "tokens",
        **prompt: Any,
    ) -> PromptAssembler:
        return PromptAssembler(tokenizer, items, users=users, interactions=interactions, cache=cache, **PROMPT | prompt)

    return build


def texts(prompt: PromptAssembler) -> list[list[int]]:
    """Ids of all texts there are."""
    histories = Histories.of(INTERACTIONS, 2)
    users = prompt.users(histories, np.arange(2))
    return [*(prompt.item(item) for item in range(4)), *(users[user].tolist() for user in range(2))]


def entries(folder: Path) -> list[Path]:
    """What is not a lock."""
    return [path for path in folder.iterdir() if not path.name.endswith(".lock")]


def no_tokenising(*_: object, **__: object) -> None:
    raise AssertionError("texts were tokenised")


def test_the_second_construction_finds_the_ids_of_the_first(
    build: Callable[..., PromptAssembler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, without = build(), build(cache=None)
    monkeypatch.setattr(PromptAssembler, "item_texts", property(no_tokenising))
    second = build()
    assert (first.cache_was_used, second.cache_was_used, without.cache_was_used) == (False, True, False)
    assert texts(first) == texts(second) == texts(without)
    assert first.hash == second.hash == without.hash
    assert len(entries(tmp_path / "tokens")) == 1


def test_found_ids_are_mapped_and_not_read_into_memory(
    tiny: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Callable[[], list[str]]] = {"items": lambda: ["Red Film", "Blue"], "notes": list}
    built = _token_cache.load_or_build(tmp_path, "key", tiny, words, whole=("items",))
    monkeypatch.setattr(_token_cache, "tokenise", no_tokenising)
    found = _token_cache.load_or_build(tmp_path, "key", tiny, words, whole=("items",))
    assert found.found
    assert found.hashes == built.hashes
    for kind in words:
        assert isinstance(found.texts[kind].values, np.memmap)
        assert isinstance(found.texts[kind].offsets, np.memmap)
        assert found.texts[kind].values.tolist() == built.texts[kind].values.tolist()
        assert found.texts[kind].offsets.tolist() == built.texts[kind].offsets.tolist()
    assert found.texts["items"].offsets.tolist() == [0, 2, 3]


OTHER_RATINGS = INTERACTIONS.with_columns(rating=pl.Series([4.0, 2.0, None, 3.0], dtype=pl.Float32))
ANOTHER_ENTRY: dict[str, Callable[[pl.DataFrame], dict[str, Any]]] = {
    "item": lambda _: {"item": "{{ title }}"},
    "lead": lambda _: {"lead": "\n- "},
    "separator": lambda _: {"separator": ","},
    "annotation": lambda _: {"annotation": "({{ rating }} of 5)"},
    "profile": lambda _: {"profile": "{{ shoe_size }}"},
    "ablation": lambda _: {"ablation": "ids"},
    "a title": lambda items: {"items": items.with_columns(title=pl.col("title").replace("Red", "Blue"))},
    "a user's age": lambda _: {"users": USERS.with_columns(age=pl.Series([8, 24]))},
    "a rating that no other has": lambda _: {"interactions": OTHER_RATINGS},
}


@pytest.mark.parametrize("change", ANOTHER_ENTRY)
def test_what_changes_a_piece_of_text_has_an_entry_of_its_own(
    build: Callable[..., PromptAssembler], tiny_items: pl.DataFrame, tmp_path: Path, change: str
) -> None:
    build()
    changed = build(**ANOTHER_ENTRY[change](tiny_items))
    assert not changed.cache_was_used
    assert len(entries(tmp_path / "tokens")) == 2
    assert build().cache_was_used  # the first stays


def test_another_tokenizer_has_an_entry_of_its_own(
    build: Callable[..., PromptAssembler], tiny_backbone: Path, tmp_path: Path
) -> None:
    build()
    same = AutoTokenizer.from_pretrained(tiny_backbone)
    assert build(tokenizer=same).cache_was_used
    other = AutoTokenizer.from_pretrained(tiny_backbone)
    other.add_tokens(["film 7"])
    changed = build(tokenizer=other)
    assert not changed.cache_was_used
    assert len(entries(tmp_path / "tokens")) == 2


SAME_ENTRY: list[dict[str, Any]] = [
    {"instruction": "Seen:"},
    {"ending": "Next:"},
    {"disliked": "Disliked:", "liked_from": 3.0},
    {"history": 2},
    {"order": "newest_first"},
    {"max_user_tokens": 40},
    {"max_item_tokens": 4},
    {"interactions": pl.concat([INTERACTIONS, INTERACTIONS])},
]


@pytest.mark.parametrize("change", SAME_ENTRY, ids=lambda change: " ".join(change))
def test_what_only_puts_pieces_together_shares_the_entry(
    build: Callable[..., PromptAssembler], tmp_path: Path, change: dict[str, Any]
) -> None:
    build()
    changed = build(**change)
    assert changed.cache_was_used
    assert len(entries(tmp_path / "tokens")) == 1
    assert texts(changed) == texts(build(cache=None, **change))


# Damage ------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def scramble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


FILES = [
    f"{kind}.{part}.npy" for kind in ("items", "segments", "bare", "notes", "profiles") for part in ("ids", "offsets")
]


@pytest.mark.parametrize("damage", [remove, truncate, empty, alter, scramble])
@pytest.mark.parametrize("file", ["hashes.json", "items.ids.npy", "notes.ids.npy", "profiles.offsets.npy"])
def test_a_damaged_entry_is_built_anew(
    build: Callable[..., PromptAssembler], tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    expected = texts(build())
    (entry,) = entries(tmp_path / "tokens")
    assert sorted(path.name for path in entry.iterdir()) == sorted(["hashes.json", *FILES])
    damage(entry / file)
    again = build()
    assert not again.cache_was_used
    assert texts(again) == expected
    assert build().cache_was_used
    assert entries(tmp_path / "tokens") == [entry]


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"items": "0"}'])
def test_an_entry_with_other_hashes_is_built_anew(
    build: Callable[..., PromptAssembler], tmp_path: Path, content: str
) -> None:
    build()
    (entry,) = entries(tmp_path / "tokens")
    (entry / "hashes.json").write_text(content)
    assert not build().cache_was_used
    assert build().cache_was_used


def test_an_interrupted_build_leaves_no_entry(
    build: Callable[..., PromptAssembler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = np.save, []

    def interrupted(*arguments: Any) -> None:
        saved.append(save(*arguments))
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert entries(tmp_path / "tokens") == []
    assert not build().cache_was_used


def test_a_folder_that_may_not_be_written_is_named(
    build: Callable[..., PromptAssembler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:  # root may write anywhere
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskError, match=r"tokens.* may not be written \(.*\); choose another folder"):
        build()


# Several processes -------------------------------------------------------------------------------------

BUILD = """
import json, sys, time
from pathlib import Path
from tokenizers import Tokenizer
from datamodules import _token_cache

folder, backbone, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
fast = Tokenizer.from_file(str(backbone / "tokenizer.json"))

def tokenizer(texts, **_):  # as transformers' does, whose import takes seconds
    return {"input_ids": [found.ids for found in fast.encode_batch(texts, add_special_tokens=False)]}

def render():
    (folder / f"rendered-by-{name}").touch()
    time.sleep(0.5)  # the others come meanwhile
    return [f"red film {n}" for n in range(100)]

(folder / f"ready-{name}").touch()
while len(list(folder.glob("ready-*"))) < 3:
    time.sleep(0.01)
tokens = _token_cache.load_or_build(folder / "tokens", "key", tokenizer, {"items": render}, whole=("items",))
ids = tokens.texts["items"]
print(json.dumps([tokens.found, tokens.hashes, ids.values.tolist(), ids.offsets.tolist()]))
"""


def test_processes_at_once_tokenise_once_and_have_the_same_ids(tiny_backbone: Path, tmp_path: Path) -> None:
    project = Path(_token_cache.__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(tmp_path), str(tiny_backbone), str(number)],
            cwd=project,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    results = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert sorted(found for found, *_ in results) == [False, True, True]
    assert len(list(tmp_path.glob("rendered-by-*"))) == 1
    assert results[0][1:] == results[1][1:] == results[2][1:]
    assert len(results[0][3]) == 101
    assert [path.name for path in entries(tmp_path / "tokens")] == ["key"]
