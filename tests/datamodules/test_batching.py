"""Texts in buckets of like length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules._batching import Bucket, TextBatch, bucket

PAD = 99


def random_texts(seed: int, count: int, longest: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 50, draw.integers(1, longest + 1)).tolist() for _ in range(count)]


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_in_one_row_with_its_ids_and_mask(padding_side: str, seed: int) -> None:
    texts = random_texts(seed, count=60, longest=40)
    batch = bucket(texts, PAD, max_tokens=200, padding_side=padding_side)
    found: dict[int, list[int]] = {}
    for part in batch.buckets:
        length = part.input_ids.shape[1]
        for ids, mask, row in zip(
            part.input_ids.tolist(), part.attention_mask.tolist(), part.row.tolist(), strict=True
        ):
            assert row not in found
            text = texts[row]
            padding = length - len(text)
            if padding_side == "right":
                assert ids == text + [PAD] * padding
                assert mask == [1] * len(text) + [0] * padding
            else:
                assert ids == [PAD] * padding + text
                assert mask == [0] * padding + [1] * len(text)
            found[row] = ids
    assert sorted(found) == list(range(60))
    assert batch.size == 60
    assert batch.num_tokens == sum(map(len, texts))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_tokens", [16, 100, 10_000])
def test_no_bucket_exceeds_max_tokens_except_a_single_long_text(seed: int, max_tokens: int) -> None:
    for part in bucket(random_texts(seed, count=80, longest=40), PAD, max_tokens).buckets:
        assert part.input_ids.numel() <= max_tokens or part.input_ids.shape[0] == 1


def test_the_limit_of_a_bucket_is_reached() -> None:
    # 7 texts of 4 tokens at 12 tokens a bucket: 3, 3 and 1
    assert [len(part.row) for part in bucket([[1] * 4] * 7, PAD, max_tokens=12).buckets] == [3, 3, 1]


@pytest.mark.parametrize("longest", [3, 6, 12, 64])
@pytest.mark.parametrize("seed", range(5))
def test_padding_is_under_a_fifth_of_any_bucket(seed: int, longest: int) -> None:
    for part in bucket(random_texts(seed, count=200, longest=longest), PAD, max_tokens=4096).buckets:
        assert (part.attention_mask == 0).float().mean() < 0.2


@pytest.mark.parametrize("shortest", range(1, 20))
def test_one_longer_text_never_pads_many_shorter_ones_by_a_fifth(shortest: int) -> None:
    texts = [[1] * shortest] * 50 + [[1] * (shortest + 1)]
    for part in bucket(texts, PAD, max_tokens=4096).buckets:
        assert (part.attention_mask == 0).float().mean() < 0.2


def test_texts_of_like_length_share_a_bucket() -> None:
    # by hand: 8 to 10 tokens are within 0.8 of each other, 11 is not within 0.8 of 8
    texts = [[1] * n for n in (10, 8, 11, 9)]
    assert [part.row.tolist() for part in bucket(texts, PAD, max_tokens=100).buckets] == [[1, 3, 0], [2]]


def test_a_batch_moves_with_its_rows() -> None:
    batch = bucket([[1, 2], [3]], PAD, max_tokens=8).to("meta")
    assert isinstance(batch, TextBatch)
    assert (batch.size, batch.num_tokens) == (2, 3)
    for part in batch.buckets:
        assert isinstance(part, Bucket)
        assert {part.input_ids.device.type, part.attention_mask.device.type, part.row.device.type} == {"meta"}


def test_ids_are_int64() -> None:
    (part,) = bucket([[1, 2]], PAD, max_tokens=8).buckets
    assert part.input_ids.dtype == part.attention_mask.dtype == part.row.dtype == torch.int64
