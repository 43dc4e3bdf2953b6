"""Prompts as lists of segments, each tokenised once and joined as ids.

White space starts a segment and never ends one, so joining the segments' ids gives the ids of the whole
text; the shared part of two prompts is then an exact token prefix, and truncation drops whole old
history items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt, PositiveInt, field_validator

from recpeft.config import Config, digest
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase


class PromptConfig(Config):
    instruction: str = "Watched:"
    """What a user's text begins with."""
    item: str = "{{ title }}{% if year %} ({{ year }}){% endif %}"
    """Jinja template (sandboxed) of an item's text over the columns of the item table."""
    separator: str = ";"
    """Stands behind each item of a history."""
    history: NonNegativeInt = 10
    """How many of the user's latest items the text names, oldest first."""
    max_user_tokens: PositiveInt = 64
    """A user's text is cut to this by dropping its oldest items whole; special tokens count."""
    max_item_tokens: PositiveInt = 12
    """An item's text is cut to this at its end; special tokens count."""

    @field_validator("instruction", "separator")
    @classmethod
    def _segments_do_not_end_in_white_space(cls, value: str) -> str:
        if value != value.rstrip():
            raise ValueError(
                f"{value!r} ends in white space, which would change its tokens; the next segment brings its own"
            )
        return value

    @field_validator("item")
    @classmethod
    def _item_is_a_template(cls, value: str) -> str:
        from jinja2 import TemplateSyntaxError

        try:
            _environment().from_string(value)
        except TemplateSyntaxError as error:
            raise ValueError(f"not a Jinja template: {error.message}") from None
        return value


class PromptAssembler:
    """Token ids of user and item texts of one data set with one tokenizer.

    Args:
        items: item table; row i is item i.
        The rest as in ``PromptConfig``.
    Raises:
        RecpeftError: a template names a column that is not there, an item's text is empty, or the
            instruction leaves no room for a history item.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        items: pl.DataFrame,
        *,
        instruction: str = PromptConfig().instruction,
        item: str = PromptConfig().item,
        separator: str = PromptConfig().separator,
        history: int = PromptConfig().history,
        max_user_tokens: int = PromptConfig().max_user_tokens,
        max_item_tokens: int = PromptConfig().max_item_tokens,
    ) -> None:
        self.item_texts = render_items(items, item)
        self.history = history
        self._max_user_tokens = max_user_tokens
        self._before, self._after = _special_tokens(tokenizer)
        around = len(self._before) + len(self._after)
        bodies = _tokenise(tokenizer, self.item_texts)
        for raw_id, text, body in zip(items["raw_id"], self.item_texts, bodies, strict=True):
            if not body:
                raise RecpeftError(
                    f"item {raw_id!r} has the text {text!r}, of which the tokenizer leaves nothing; "
                    "change prompt.item or remove the item from the data."
                )
        self.num_truncated_items = sum(len(body) + around > max_item_tokens for body in bodies)
        if max_item_tokens <= around:
            raise RecpeftError(
                f"prompt.max_item_tokens is {max_item_tokens} but {around} special tokens go around each text; "
                f"allow at least {around + 1}."
            )
        self._items = [[*self._before, *body[: max_item_tokens - around], *self._after] for body in bodies]
        self._instruction = _tokenise(tokenizer, [instruction])[0] if instruction else []
        self._segments = _tokenise(tokenizer, [f" {text}{separator}" for text in self.item_texts])
        if len(self._instruction) + around >= max_user_tokens:
            raise RecpeftError(
                f"prompt.max_user_tokens is {max_user_tokens} but the instruction alone takes "
                f"{len(self._instruction) + around}; raise it or shorten prompt.instruction."
            )
        self.hash = digest(
            {
                "items": self._items,
                "segments": self._segments,
                "instruction": self._instruction,
                "around": [self._before, self._after],
                "history": history,
                "max_user_tokens": max_user_tokens,
            }
        )

    def item(self, item: int) -> list[int]:
        """Token ids of an item's text."""
        return self._items[item]

    def user(self, history: Sequence[int]) -> list[int]:
        """Token ids of a user's text from the items of ``history``, oldest first; the latest are kept."""
        room = self._max_user_tokens - len(self._before) - len(self._after) - len(self._instruction)
        kept: list[list[int]] = []
        for item in reversed(history[-self.history :] if self.history else []):
            segment = self._segments[item]
            if len(segment) > room:
                break
            room -= len(segment)
            kept.append(segment)
        ids = [*self._before, *self._instruction]
        for segment in reversed(kept):
            ids += segment
        ids += self._after
        if not ids:
            raise RecpeftError(
                "a user's text is empty: no item of the history fits and there is no instruction; "
                "set prompt.instruction or raise prompt.max_user_tokens."
            )
        return ids


def render_items(items: pl.DataFrame, template: str) -> list[str]:
    """Each item's text, white space folded; row i of ``items`` gives text i.

    Raises:
        RecpeftError: a column the template names is missing, or a text is empty.
    """
    compiled = _environment().from_string(template)
    texts = []
    for row in items.iter_rows(named=True):
        try:
            text = " ".join(compiled.render(row).split())
        except Exception as error:  # a template holds expressions, and they raise what they like
            raise RecpeftError(
                f"prompt.item cannot be rendered for item {row['raw_id']!r}: {error}; "
                f"the item table has {', '.join(items.columns)}."
            ) from None
        if not text:
            raise RecpeftError(
                f"item {row['raw_id']!r} has no text under prompt.item {template!r}; "
                "name a column that every item has, or remove the item from the data."
            )
        texts.append(text)
    return texts


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # The text goes to a tokenizer, not into a page: escaping would change it.
    # A null in the item table is no text; Jinja would write the word None.
    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        finalize=lambda value: "" if value is None else value,
    )


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [list(row) for row in ids]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text of its own."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return list(whole[:start]), list(whole[start + len(bare) :])
