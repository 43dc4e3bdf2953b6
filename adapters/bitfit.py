"""BitFit: only the backbone's bias terms are trained (Ben Zaken et al. 2022).

The adapter learns each bias's change, ``base(x) + delta`` with ``delta`` zero at the start; its gradient is the bias's.
It covers the biases of linear and normalisation layers, including quantised layers.

PEFT lacks this method, so it is implemented in PEFT's layout. To load a saved adapter without the rest of recpeft::

    from adapters.bitfit import BitFitConfig  # registers the type BITFIT with PEFT
    model = peft.PeftModel.from_pretrained(backbone, folder)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adapters._base import AdapterConfig
from recpeft import lazy
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import nn

    from adapters._bitfit_peft import BitFitConfig

__all__ = ["BitFitConfig", "Config", "attach", "check", "describe"]

__getattr__ = lazy.exports(__name__, {"BitFitConfig": "adapters._bitfit_peft:BitFitConfig"})

PEFT_IMPORT = "from adapters.bitfit import BitFitConfig"
"""Statement that registers the method with PEFT."""


class Config(AdapterConfig):
    can_merge: ClassVar[bool] = True

    method: str = "bitfit"


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if the backbone's layers have no biases."""
    if not _biased_names(backbone):
        raise RecpeftError(
            f"adapter.method is bitfit but the layers of {type(backbone).__name__} have no bias terms; "
            "choose another method, such as layernorm or lora, or a backbone with biases, such as BERT or GPT-2."
        )


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``; at the start it computes what the backbone computes.

    Raises:
        RecpeftError: the backbone's layers have no biases.
    """
    from peft import get_peft_model

    from adapters._bitfit_peft import BitFitConfig

    check(backbone, config)
    return get_peft_model(backbone, BitFitConfig(target_modules=_biased_names(backbone)))


def load(backbone: nn.Module, config: Config, folder: Path) -> nn.Module:
    """Return ``backbone`` with the adapter saved in ``folder``."""
    from peft import PeftModel

    from adapters import _bitfit_peft  # noqa: F401  (PEFT knows the type from here on)

    return PeftModel.from_pretrained(backbone, str(folder))


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the layers whose biases are trained."""
    from adapters._targets import adapted_names

    return {"target_modules": adapted_names(model)}


def _biased_names(backbone: nn.Module) -> list[str]:
    from adapters._targets import linear_names, norm_names

    candidates = {*linear_names(backbone), *norm_names(backbone)}
    return [
        name
        for name, module in backbone.named_modules()
        if name in candidates and getattr(module, "bias", None) is not None
    ]
