"""Peak memory and time of references and one text row on a large sparse catalogue, as their records say.

    .venv/bin/python benchmarks/large_catalogue.py
    .venv/bin/python benchmarks/large_catalogue.py --users 20000 --items 5000 --references popularity item_knn

Made-up data, by default of 200,000 users, 50,000 items and 5 million interactions, one of each user held out for
validation and one for test. The text row is 60 steps of a two-tower model on a BERT of two random layers. All rows are
tested on 2,000 users; references validate all users. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from datamodules.synthetic import TOPICS

TRAINING = {"max_steps": 60, "steps_per_epoch": 30, "users_per_step": 32, "positives_per_user": 4}


def backbone(folder: Path) -> str:
    """A random BERT and a tokenizer of the made-up titles' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(10)), *" ".join(TOPICS.values()).split()]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), words, strict=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return str(folder)


def measure(name: str, content: dict[str, Any], folder: Path) -> None:
    """Run a file of one run, and print what its record says."""
    file, out = folder / f"{name}.yaml", folder / name
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "experiments.cli", "run", str(file), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for path in out.glob("large/*/result.json"):
        record = json.loads(path.read_text())
        if record["status"] != "done":
            print(f"{record['method']}: {record['error']}", flush=True)
            continue
        costs = record["costs"]
        print(
            f"{record['method']}: ndcg@10 {record['test']['ndcg@10']:.4f}; peak {costs['peak_memory_bytes'] / 1e9:.2f} "
            f"GB; {costs['train_seconds']:.0f} s training, {costs['test_seconds']:.0f} s test, "
            f"{costs['wall_seconds']:.0f} s in all",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--interactions-per-user", type=int, default=25)
    parser.add_argument("--references", nargs="*", default=["popularity", "ease"])
    parser.add_argument("--without-text", action="store_true")
    given = parser.parse_args()
    base: dict[str, Any] = {
        "study": "large",
        "threads": 2,
        "data": {
            "source": "synthetic",
            "num_users": given.users,
            "num_items": given.items,
            "interactions_per_user": given.interactions_per_user,
            "split": "leave_one_out",
        },
        "evaluation": {"validation_users": 2000, "test_users": 2000},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for reference in given.references:
            measure(reference, base | {"references": [reference]}, folder)
        if not given.without_text:
            text = {
                "references": [],
                "backbone": {"name": backbone(folder / "backbone")},
                "adapter": {"method": "lora", "rank": 4},
                "formulation": {"name": "two_tower"},
                "loss": {"name": "listwise_softmax"},
                "prompt": {"history": 5, "max_user_tokens": 64, "max_item_tokens": 16},
                "training": TRAINING,
            }
            measure("text", base | text, folder)


if __name__ == "__main__":
    main()
