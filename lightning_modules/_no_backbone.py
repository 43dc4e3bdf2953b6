"""Placeholders for runs that read no text: a model without parameters, and a tokenizer of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class NoBackbone(nn.Module):
    """A model without parameters or states; it is never called."""

    class config:  # as transformers names it
        hidden_size = 0

    def get_input_embeddings(self) -> Any:
        """Raise ``NotImplementedError``, as transformers' models without an embedding table do."""
        raise NotImplementedError


def tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer whose tokens are bytes, so that different item texts have different ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", *alphabet])}
    bytes_alone = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token="<pad>")  # noqa: S106  # no password
