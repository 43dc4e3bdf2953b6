"""Full fine-tuning, the reference for adapters: every parameter that the hidden states pass through is trained.

The result is not a ``PeftModel`` but the backbone itself, which its own ``save_pretrained`` writes in full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapters._base import AdapterConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


class Config(AdapterConfig):
    """Learning rates are lower than any adapter's: 2e-5 to 5e-5 for BERT (Devlin et al. 2019)."""

    can_merge: ClassVar[bool] = True  # training changes the backbone's own weights

    method: str = "full"

    def refusal(self, *, width: str, max_steps: int, gradient_checkpointing: str) -> str | None:
        if width != "none":
            return (
                f"full fine-tuning cannot train weights quantised to {width}; "
                "use backbone.width: none, or an adapter such as lora"
            )
        return None


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return ``backbone``, all trainable except the heads after its hidden states, which get no gradient.

    Raises:
        RecpeftError: the weights are quantised, or in half precision, where most updates would be rounded away.
    """
    from adapters._targets import _HEADS

    half = next((p.dtype for p in backbone.parameters() if p.is_floating_point() and p.element_size() < 4), None)
    if getattr(backbone, "is_quantized", False):
        raise RecpeftError("full fine-tuning cannot train quantised weights; use backbone.width: none.")
    if half is not None:
        raise RecpeftError(
            f"adapter.method is full but the backbone's weights are {half}, whose spacing is wider than most updates; "
            "use backbone.compute_dtype: float32, with training.precision: bf16-mixed for speed."
        )
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(not set(name.split(".")) & set(_HEADS))
    return backbone


def load(backbone: nn.Module, config: Config, folder: Path) -> nn.Module:
    """Return ``backbone`` with the weights that its ``save_pretrained`` wrote into ``folder``, frozen.

    Raises:
        RecpeftError: ``folder`` lacks some of the weights, or ``backbone`` is quantised.
    """
    import torch

    if getattr(backbone, "is_quantized", False):
        raise RecpeftError("full fine-tuning's weights go into no quantised backbone; use backbone.width: none.")
    kind: Any = type(backbone)
    # Through transformers, which may use other weight names on disk than in memory.
    loaded, about = kind.from_pretrained(
        str(folder), dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if about["missing_keys"]:
        raise RecpeftError(
            f"{folder} lacks {len(about['missing_keys'])} weights of {kind.__name__}, such as "
            f"{sorted(about['missing_keys'])[0]}; give the folder of a run that trained this backbone."
        )
    backbone.load_state_dict(loaded.state_dict())
    return backbone.requires_grad_(False)
