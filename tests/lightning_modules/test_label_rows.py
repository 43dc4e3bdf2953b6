"""Labels' logits are the model's own, whatever its family does to them, or the family is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaModel,
    ModernBertDecoderConfig,
    OPTConfig,
    PhiConfig,
    Qwen3Config,
)

from datamodules._batching import ItemBatch, UserBatch, bucket
from lightning_modules import listwise_verbalizer, verbalizer
from lightning_modules._answers import AnswerHead
from lightning_modules._backbone import skeleton
from lightning_modules._label_rows import check_labels, label_rows
from lightning_modules._listwise_verbalizer_impl import ListwiseVerbalizer
from lightning_modules._verbalizer_impl import Verbalizer
from recpeft.errors import RecpeftError

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
WIDE = SIZES | {"intermediate_size": 64, "num_key_value_heads": 1}
FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(**SIZES),
    "llama": lambda: LlamaConfig(**WIDE),
    "qwen3": lambda: Qwen3Config(**WIDE, head_dim=16),
    "gemma3": lambda: Gemma3TextConfig(**WIDE, head_dim=16, final_logit_softcapping=2.0),
    "phi": lambda: PhiConfig(**WIDE),  # a bias
    "granite": lambda: GraniteConfig(**WIDE, logits_scaling=8.0),
    "cohere": lambda: CohereConfig(**WIDE, logit_scale=0.0625),
    "gemma2": lambda: Gemma2Config(**WIDE, head_dim=16, final_logit_softcapping=3.0, attn_logit_softcapping=None),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=64),  # files name the head otherwise
    "opt": lambda: OPTConfig(**SIZES, word_embed_proj_dim=32, ffn_dim=64, init_std=0.2),  # its decoder within
}
IDS = [7, 3, 21, 40, 11]
USERS, ITEMS = [[5, 9, 2, 8], [30, 4]], [[12, 13], [17, 18, 19], [50]]
NOWHERE = (torch.empty(0, dtype=torch.int64),) * 2


def saved(config: Any, folder: Path) -> Any:
    """The causal language model of ``config``, its head's bias drawn, as it is read from ``folder``."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def backbone_in(folder: Path) -> Any:
    return SimpleNamespace(model=AutoModel.from_pretrained(folder).eval())


def own_logits(causal: Any, text: list[int], ids: list[int]) -> Tensor:
    found: Tensor = causal(input_ids=torch.tensor([text])).logits[0, -1, ids]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_labels_logits_and_all_that_reads_them_are_the_models_own(family: str, tmp_path: Path) -> None:
    causal, backbone = saved(FAMILIES[family](), tmp_path), backbone_in(tmp_path)
    found = label_rows(backbone, IDS)
    head = AnswerHead(found.rows, found.softcap, found.bias)
    state = backbone.model(input_ids=torch.tensor([USERS[0]])).last_hidden_state[:, -1]
    assert torch.allclose(head.logits(state)[0], own_logits(causal, USERS[0], IDS), atol=1e-5)

    users = UserBatch(torch.arange(2), bucket(USERS, 0, 64), NOWHERE, NOWHERE)
    items = ItemBatch(torch.arange(3), bucket(ITEMS, 0, 64))
    options: dict[str, Any] = {"num_items": 3, "loss": None, "softcap": found.softcap}
    pairs = Verbalizer(backbone.model, answer_rows=found.rows[:2], answer_bias=found.bias[:2], **options).eval()
    logits = torch.stack([own_logits(causal, user + item, IDS[:2]) for user in USERS for item in ITEMS])
    assert logits.std() > 0.05
    assert torch.allclose(pairs.score_items(users, items).flatten(), logits[:, 0] - logits[:, 1], atol=1e-5)

    options |= {"letter_rows": found.rows[:3], "letter_bias": found.bias[:3]}
    lists = ListwiseVerbalizer(backbone.model, choices=[[1], [2], [3]], tail=[4], pad_id=0, **options).eval()
    text = [[*user, 1, *ITEMS[0], 2, *ITEMS[1], 3, *ITEMS[2], 4] for user in USERS]
    expected = torch.stack([own_logits(causal, one, IDS[:3]) for one in text])
    assert torch.allclose(lists.score_items(users, items), expected, atol=1e-5)


@pytest.mark.parametrize("formulation", [verbalizer, listwise_verbalizer])
def test_a_family_with_a_layer_of_its_own_before_the_head_is_refused_before_weights_are_read(formulation: Any) -> None:
    config = ModernBertDecoderConfig(**SIZES, intermediate_size=64, global_attn_every_n_layers=2)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    with pytest.raises(RecpeftError, match=r"the logits of ModernBertDecoderForCausalLM cannot be read .*two_tower"):
        formulation.check(formulation.Config(), skeleton, None, None)


def test_logits_that_are_neither_scaled_nor_capped_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def normalised(self: Any, *arguments: Any, **options: Any) -> Any:
        output = forward(self, *arguments, **options)
        output.logits = output.logits.log_softmax(dim=-1)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", normalised)
    with pytest.raises(RecpeftError, match=r"logits of LlamaForCausalLM .*neither a scale nor a soft cap"):
        check_labels(LlamaConfig(**WIDE))


def test_heads_that_normalise_their_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.functional import linear, normalize
    from transformers import LlamaForCausalLM

    class NormHead(torch.nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return linear(states, normalize(self.weight))

    def forward(self: Any, input_ids: Tensor, **_: Any) -> Any:
        states = self.model(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=linear(states, normalize(self.lm_head.weight)))

    make = LlamaForCausalLM.__init__

    def with_norm_head(self: Any, config: Any) -> None:
        make(self, config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size, bias=False)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "__init__", with_norm_head)
        with pytest.raises(RecpeftError, match=r"logits of LlamaForCausalLM .*the head is a NormHead"):
            check_labels(LlamaConfig(**WIDE))
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(RecpeftError, match=r"logits of LlamaForCausalLM .*neither a scale nor a soft cap"):
        check_labels(LlamaConfig(**WIDE))


def test_a_backbone_saved_without_its_head_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    LlamaModel(LlamaConfig(**WIDE)).save_pretrained(tmp_path)
    with pytest.raises(RecpeftError, match=r"no language-model head of LlamaForCausalLM \(lm_head\.weight\)"):
        check_labels(backbone_in(tmp_path).model.config)
    LlamaModel(LlamaConfig(**WIDE, tie_word_embeddings=True)).save_pretrained(tmp_path)
    backbone = backbone_in(tmp_path)
    assert torch.equal(label_rows(backbone, IDS).rows, backbone.model.embed_tokens.weight[IDS])


def test_a_head_in_the_files_counts_whatever_the_config_says_of_ties(tmp_path: Path) -> None:
    saved(LlamaConfig(**WIDE), tmp_path)  # untied
    config = LlamaConfig.from_pretrained(tmp_path)
    config.tie_word_embeddings = True
    config.save_pretrained(tmp_path)
    causal = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(label_rows(backbone_in(tmp_path), IDS).rows, causal.lm_head.weight[IDS])


def test_a_quantised_head_is_refused(tmp_path: Path) -> None:
    saved(LlamaConfig(**WIDE), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.int8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecpeftError, match=r"head of .* is quantised \(lm_head\.weight is I8\)"):
        check_labels(skeleton(str(tmp_path)).config)
