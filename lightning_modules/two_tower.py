"""Two towers: user text and item text are encoded by the same adapted backbone, pooled and scored.

Reimers & Gurevych 2019 for the shared encoder with mean pooling and cosine, the defaults. The class is in
``_two_tower_impl``, the scores are in ``_scores`` and the poolings in ``_pooling``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat, model_validator

from lightning_modules._formulation import FormulationConfig
from recpeft.config import Dimension
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from datamodules._assembler import PromptAssembler
    from lightning_modules._rec_module import RecModule
    from lightning_modules._scores import Head

Score = Literal["cosine", "dot", "euclidean", "layer_weighted_dot", "mlp", "attention"]


class Config(FormulationConfig):
    name: str = "two_tower"
    score: Score = "cosine"
    """Score of a user's and an item's representation: cosine; dot, divided by sqrt(hidden_size); euclidean, negative
    distance (Hsieh et al. 2017); layer_weighted_dot, dot over a learned mean of all layers (ELMo, Peters et al. 2018);
    mlp, a network over both, their product and their difference (NCF, He et al. 2017), which is initialised at random
    and so meaningless untrained; attention, of the item over the tokens of the user's text (DIN, Zhou et al. 2018),
    then dot. Only cosine scales embeddings to unit length."""
    pooling: Literal["mean", "first", "last", "weighted"] = "mean"
    """Pooling of token states into an embedding, without padding: mean; first, which is BERT's [CLS]; last, which in a
    decoder has seen the others; weighted, the mean weighted by position, for decoders (SGPT, Muennighoff 2022). With
    score attention it applies only to items, as users keep their tokens."""
    temperature: PositiveFloat = 0.05
    """Initial value of the learned temperature, which divides the cosine, dot product or distance. 0.05 for cosine is
    SimCSE's (Gao et al. 2021); 1 for the others, which have no fixed range; mlp has no temperature."""
    item_bias: bool = False
    """Learn a bias for each item, added to its score. It can learn popularity without reading any text."""
    layer_norm: bool = False
    """Standardise each layer's embedding before the mean of layer_weighted_dot, for backbones whose layers differ much
    in scale, as in decoders; off as in ELMo, where it helped in some cases (their section 3.2)."""
    mlp_hidden: Dimension = 64
    """Width of the hidden layer of mlp; 64 is the largest number of predictive factors that He et al. tried."""
    attention_heads: Dimension = 1
    """Number of heads of attention, a divisor of hidden_size; 1 is DIN's, one weight per token and item."""

    @model_validator(mode="before")
    @classmethod
    def _temperature_starts_by_score(cls, values: Any) -> Any:
        # Not a default_factory: for a misspelt score its error would be about the temperature.
        if isinstance(values, dict) and values.get("score", "cosine") != "cosine":
            return {"temperature": 1.0, **values}
        return values

    @model_validator(mode="after")
    def _options_fit_the_score(self) -> Config:
        owners = {"layer_norm": "layer_weighted_dot", "mlp_hidden": "mlp", "attention_heads": "attention"}
        for option, score in owners.items():
            value = getattr(self, option)
            # Checked by value, not by whether it was given, as a record holds every default.
            if self.score != score and value != type(self).model_fields[option].default:
                raise ValueError(
                    f"{option} is {value} but score is {self.score}, which has no such option; leave it out or set "
                    f"score: {score}"
                )
        if self.score == "mlp" and self.temperature != 1.0:
            raise ValueError(
                f"temperature is {self.temperature} but score is mlp, whose last layer learns the scale; leave it out"
            )
        return self

    @property
    def starts_at_random(self) -> bool:
        return self.score == "mlp"


def check(config: Config, skeleton: PreTrainedModel, prompt: PromptAssembler, tokenizer: Any) -> None:
    """Raise ``RecpeftError`` if ``score`` or ``pooling`` does not fit the backbone."""
    import torch

    from lightning_modules._pair_module import is_causal

    with torch.device("meta"):  # the heads' constructors check the sizes
        _make_head(config, skeleton, 1, skeleton.config.hidden_size)
    if config.pooling == "first" and is_causal(skeleton):
        raise RecpeftError(
            "formulation.pooling is first but the backbone is causal: its first token sees nothing of the text after "
            "it; use formulation.pooling: last, weighted or mean."
        )


def build(backbone: nn.Module, config: Config, *, num_items: int, hidden_size: int, **training: Any) -> RecModule:
    """Build the formulation's module around ``backbone``; ``training`` is passed to ``TwoTower``.

    Raises:
        RecpeftError: ``score`` does not fit the backbone.
    """
    from lightning_modules._two_tower_impl import TwoTower

    head = _make_head(config, backbone, num_items, hidden_size)
    return TwoTower(backbone, num_items=num_items, head=head, pooling=config.pooling, **training)


def _make_head(config: Config, backbone: nn.Module, num_items: int, hidden_size: int) -> Head:
    from lightning_modules import _scores as scores

    common: dict[str, Any] = {"temperature": config.temperature, "item_bias": config.item_bias}
    match config.score:
        case "cosine":
            return scores.CosineHead(num_items, **common)
        case "dot":
            return scores.DotHead(num_items, **common)
        case "euclidean":
            return scores.EuclideanHead(num_items, **common)
        case "layer_weighted_dot":
            return scores.LayerWeightedDotHead(num_items, _num_layers(backbone), config.layer_norm, **common)
        case "mlp":
            return scores.MLPHead(num_items, hidden_size, config.mlp_hidden, config.item_bias)
        case "attention":
            return scores.AttentionHead(num_items, hidden_size, config.attention_heads, **common)


def _num_layers(backbone: nn.Module) -> int:
    """Return the number of layers with states in the backbone, embeddings included."""
    layers = getattr(getattr(backbone, "config", None), "num_hidden_layers", None)
    if layers is None:
        raise RecpeftError(
            f"formulation.score is layer_weighted_dot but the config of {type(backbone).__name__} does not say how "
            "many layers it has (num_hidden_layers); use another formulation.score."
        )
    return int(layers) + 1
