"""Content of prompts: templates, their languages, and the ablations of their text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache, wraps
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from recpeft.config import Config
from recpeft.errors import RecpeftError, cut, shown
from recpeft.reading import YAML_BYTES, parse_yaml, read_text, reason

if TYPE_CHECKING:
    import polars as pl

Ablation = Literal["none", "anonymous_titles", "shuffled_titles", "ids", "shuffled_history"]

Form = Literal["single", "items", "pair", "closed_pair", "list"]
"""The way a formulation reads users and items: each as its own text (``single``); only items, with users as sequences
of items (``items``); or together in one text, the user's followed by one item (``pair``; ``closed_pair`` adds the
tokenizer's closing tokens, for classifiers of the whole text) or by a list of items, each after a letter (``list``)."""


class PromptConfig(Config):
    """Prompt of users and items; a user's text has the segments profile, instruction, liked, disliked items, ending.

    White space starts a segment and never ends one, so that each can be tokenised on its own.
    """

    template: str | None = None
    """File with values for keys not set here: a name in ``datamodules/prompts/`` (de, en, es, fr, zh), or your own YAML
    file."""
    instruction: str = "Watched:"
    """Text before the items."""
    profile: str = ""
    """Jinja template (sandboxed) over the columns of the user table: ``{{ age_group }}, {{ occupation }}.`` It comes
    before the instruction, which introduces the items."""
    item: str = "{{ title }}{% if year is defined and year %} ({{ year }}){% endif %}"
    """Jinja template of an item's text over the columns of the item table; a year is MovieLens's."""
    annotation: str = ""
    """Jinja template of text after an item in a history, over ``rating`` and ``date`` (UTC): ``({{ rating }}/5)``."""
    lead: str = " "
    """Text before each item of a history: a space, or the beginning of a line such as "\\n- ". Tokenizers with one
    token for punctuation and a following line break (Llama 3's, Qwen's, DeepSeek's) get two tokens here: the text is
    the same, but its ids differ from those of the text tokenised as a whole."""
    separator: str = ";"
    """Text after each item of a history and its annotation."""
    disliked: str = ""
    """If given, items rated below ``liked_from`` form a separate list after this text."""
    liked_from: float | None = None
    """Lowest rating that counts as liked, if ``disliked`` is given; null is data.liked_from, or 4."""
    ending: str = ""
    """End of a user's text, such as a question."""
    question: str = "Would this person like this too, Yes or No? {{ item }} Answer:"
    """Question about an item, for formulations that read user and item as one text (``verbalizer``); the item's text
    replaces ``{{ item }}``. White space is required on either side of it; for line breaks, see ``lead``."""
    list_question: str = "Which of these would this person like best? {{ items }} Answer:"
    """Question about a list of items, for formulations that read a user and such a list as one text; the items replace
    ``{{ items }}``, each after its ``choice``. The white space before ``{{ items }}`` precedes each item: a line break
    puts each on its own line; see ``lead``."""
    choice: str = "{{ letter }}:"
    """Text before each item of such a list; a space follows it. Letters go from A to Z."""
    chat: bool = False
    """Present the text of user and item to the backbone as a user's turn in its tokenizer's chat template, followed by
    the start of the answer. The template's text before it counts towards ``max_user_tokens``."""
    history: NonNegativeInt = 10
    """Number of the user's latest items that the text names."""
    order: Literal["oldest_first", "newest_first"] = "oldest_first"
    """Order of the items within each list."""
    max_user_tokens: PositiveInt = 64
    """Maximum number of tokens in a user's text, special tokens included; the oldest items are dropped whole."""
    max_item_tokens: PositiveInt = 12
    """Maximum number of tokens in an item's text, which is cut at its end; special tokens count, a question's text
    around the item does not."""
    ablation: Ablation = "none"
    """Information removed from the text, to measure its effect: titles replaced by numbers, titles shuffled among the
    items, ids in place of items' texts, or histories in a random order."""

    @model_validator(mode="before")
    @classmethod
    def _from_template(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("template"), str):
            return {**_template(values["template"]), **values}
        return values

    @field_validator("instruction", "separator", "disliked", "ending")
    @classmethod
    def _segments_do_not_end_in_white_space(cls, value: str) -> str:
        if value != value.rstrip():
            raise ValueError(
                f"{value!r} ends in white space, which would change its tokens; the next segment brings its own"
            )
        return value

    @field_validator("lead")
    @classmethod
    def _lead_starts_with_white_space(cls, value: str) -> str:
        if not value[:1].isspace():
            raise ValueError(f"{value!r} must start with a space or a line break, so that a new token starts there")
        return value

    @field_validator("item", "profile", "annotation", "question", "list_question", "choice")
    @classmethod
    def _is_a_template(cls, value: str) -> str:
        compiled(value)
        return value

    @field_validator("annotation")
    @classmethod
    def _annotation_is_of_the_interaction(cls, value: str) -> str:
        names_read("prompt.annotation", value, ("rating", "date"))
        return value

    @field_validator("question")
    @classmethod
    def _question_names_the_item(cls, value: str) -> str:
        parts_of_question(value, "item")
        return value

    @field_validator("list_question")
    @classmethod
    def _list_question_names_the_items(cls, value: str) -> str:
        parts_of_question(value, "items")
        return value

    @field_validator("choice")
    @classmethod
    def _choice_names_the_letter(cls, value: str) -> str:
        choices(value)
        return value

    @model_validator(mode="after")
    def _a_turn_begins_with_text(self) -> PromptConfig:
        if self.chat and not self.instruction[:1].strip():
            raise RecpeftError(
                f"prompt.instruction is {self.instruction!r}, but with prompt.chat it must begin with text, since chat "
                "templates cut off white space; give one, such as 'Watched:'."
            )
        return self


def parts_of_question(question: str, name: Literal["item", "items"]) -> tuple[str, str, str]:
    """Return the text before ``{{ item }}`` or ``{{ items }}``, the white space before it, and the text after it.

    Raises:
        RecpeftError: the name does not occur exactly once and alone, or text touches it, whose tokens would then depend
            on the item.
    """
    key = "prompt.question" if name == "item" else "prompt.list_question"
    before, behind = _around(key, question, name)
    ask = before.rstrip()
    lead = before[len(ask) :]
    if not lead or (behind and not behind[0].isspace()) or behind != behind.rstrip():
        raise RecpeftError(
            f"{key} {shown(question)} needs white space or a line break on either side of {{{{ {name} }}}} and none "
            "at its end, so that the tokens of each part stay its own."
        )
    return ask, lead, behind


def choices(choice: str) -> list[str]:
    """Return the texts before the items of a list, one for each letter from A to Z.

    Raises:
        RecpeftError: the letter does not occur exactly once and alone, or ``choice`` begins or ends in white space.
    """
    before, behind = _around("prompt.choice", choice, "letter")
    if choice != choice.strip():
        raise RecpeftError(
            f"prompt.choice {shown(choice)} begins or ends in white space, which would change its tokens; leave that "
            "out, since prompt.list_question gives what stands before it, and a space comes behind it."
        )
    return [f"{before}{letter}{behind}" for letter in ascii_uppercase]


def _around(key: str, template: str, name: str) -> tuple[str, str]:
    """Return the text before and after ``{{ name }}``, the only placeholder of ``template``."""
    names_read(key, template, (name,))
    before, *behind = re.split(rf"\{{\{{\s*{name}\s*\}}\}}", template)
    if len(behind) != 1:
        raise RecpeftError(f"{key} {shown(template)} names {{{{ {name} }}}} {len(behind)} times; name it once.")
    if any(re.search(r"\{[{%#]", part) for part in (before, *behind)):
        raise RecpeftError(
            f"{key} {shown(template)} has more of Jinja than {{{{ {name} }}}}, which alone is filled in; leave the "
            "rest out."
        )
    return before, behind[0]


def _template(name: str) -> dict[str, Any]:
    folder = Path(__file__).parent / "prompts"
    built_in = sorted(path.stem for path in folder.glob("*.yaml"))
    path = folder / f"{name}.yaml" if name in built_in else Path(name)
    try:
        values = parse_yaml(read_text(path, YAML_BYTES))
    except FileNotFoundError:
        raise RecpeftError(
            f"prompt.template is {shown(name)}, which is no file; choose one of {', '.join(built_in)}, or give a YAML "
            "file."
        ) from None
    except (OSError, ValueError) as error:
        raise RecpeftError(
            f"prompt.template {shown(str(path))} is no readable YAML ({reason(error)}); mend it."
        ) from None
    if not isinstance(values, dict) or "template" in values:
        raise RecpeftError(f"prompt.template {path} must be a mapping of prompt's keys, without template; mend it.")
    return values


LONGEST_TEMPLATE = 10_000
"""Maximum number of characters in a template; a longer one is not a prompt."""


LONGEST_TEXT = 100_000
"""Maximum number of characters that a template may produce for an item, and maximum size of intermediate values."""
MOST_WORK = 10**8
"""Maximum product of the sizes of a filter's or method's arguments: replace and join can produce as much."""


def _size(value: Any) -> int:
    """Count the characters and entries of ``value``, recursively, stopping just beyond ``LONGEST_TEXT``."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, list | tuple | dict):
        return 1
    found = 0
    for part in (*value, *value.values()) if isinstance(value, dict) else value:
        found += 1 + _size(part)
        if found > LONGEST_TEXT:
            break
    return found


def _capped(value: Any) -> Any:
    """Return ``value``, or raise ValueError if it is larger than ``LONGEST_TEXT``."""
    if _size(value) > LONGEST_TEXT:
        raise ValueError(f"it makes more than {LONGEST_TEXT:,} characters, which is too much")
    return value


def _bounded(function: Any) -> Any:
    """Wrap a template's ``function`` to raise ValueError for too much work instead of running it."""

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        work = 1
        for part in (getattr(function, "__self__", None), *given, *named.values()):
            number = isinstance(part, int | float)
            work *= max(1, abs(part) if number else _size(part))
            if work > MOST_WORK:
                raise ValueError(f"{getattr(function, '__name__', 'a call')} of so much is too much")
        return _capped(function(*given, **named))

    return call


@lru_cache
def environment() -> Any:
    """Return Jinja's sandbox with an error for undefined names and bounds on the work of a template."""
    from jinja2 import StrictUndefined, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%", "+"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            # 'x' * 10 ** 9, and the format '%999999999d' % 1, would fill the memory.
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if operator == "+":
                _capped([left, right])
            elif not numbers or (operator == "**" and max(abs(left), abs(right)) > 100):
                raise SecurityError(f"{shown(left)} {operator} {shown(right)} is too much")
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *given: Any, **named: Any) -> Any:
            return super().call(context, _bounded(function), *given, **named)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return not attr.startswith("format") and super().is_safe_attribute(obj, attr, value)  # '{:999999999}'

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            """Pass each value that is assigned to a name through a filter that bounds its size."""
            tree = super()._parse(source, name, filename)

            def capped(value: Any) -> nodes.Filter:
                return nodes.Filter(value, "capped", [], [], None, None, lineno=value.lineno, environment=self)

            for named in tree.find_all((nodes.Assign, nodes.With, nodes.For)):
                if isinstance(named, nodes.With):
                    named.values = [capped(value) for value in named.values]
                elif isinstance(named, nodes.For):
                    named.iter = capped(named.iter)
                elif isinstance(named, nodes.Assign):
                    named.node = capped(named.node)
            return tree

    # The text goes to a tokenizer, not into a web page: escaping would change it.
    # A null in the item table becomes empty text; Jinja would write the word None.
    found = Environment(
        undefined=StrictUndefined,
        autoescape=False,
        finalize=lambda value: "" if value is None else _capped(value),
    )
    found.globals.clear()  # range and lipsum make text that no column has
    found.filters = {name: _bounded(function) for name, function in found.filters.items() if name != "format"}
    found.filters["capped"] = _capped
    return found


@lru_cache(maxsize=1024)
def _tree(template: str) -> Any:
    return environment().parse(template)


@lru_cache(maxsize=1024)
def compiled(template: str) -> Any:
    """Compile ``template``.

    Raises:
        ValueError: a clause with the problem.
    """
    from jinja2 import TemplateSyntaxError, nodes

    if len(template) > LONGEST_TEMPLATE:
        raise ValueError(f"a template of {len(template):,} characters; give one of at most {LONGEST_TEMPLATE:,}")
    try:
        tree = _tree(template)
        if next(tree.find_all((nodes.Macro, nodes.CallBlock, nodes.Block, nodes.AssignBlock)), None):
            raise ValueError("a template with a macro or a block, which could call itself or grow; leave it out")
        for loop in tree.find_all(nodes.For):
            inner = next(loop.find_all(nodes.For), None)
            if loop.recursive or (inner and next(inner.find_all(nodes.For), None)):
                raise ValueError("a template with a loop in a loop in a loop, or a recursive one; use two at most")
        return environment().from_string(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"not a Jinja template: {cut(error.message or 'it cannot be read')}") from None
    except RecursionError:
        raise ValueError("a template that is nested too deep; use fewer brackets") from None


@lru_cache(maxsize=1024)
def variables(template: str) -> frozenset[str]:
    """Return the names that ``template`` reads."""
    from jinja2 import TemplateSyntaxError, meta

    try:
        return frozenset(meta.find_undeclared_variables(_tree(template)))
    except TemplateSyntaxError:
        return frozenset()


def names_in_conditions(template: str) -> set[str]:
    """Return the names in the conditions of ``template``, as in ``{% if tags %}``."""
    from jinja2 import nodes

    tests = [node.test for node in _tree(template).find_all((nodes.If, nodes.CondExpr))]
    return {name.name for test in tests for name in (test, *test.find_all(nodes.Name)) if isinstance(name, nodes.Name)}


def names_read(key: str, template: str, known: Collection[str]) -> set[str]:
    """Return the names in ``known`` that ``template`` reads.

    Args:
        key: name of the template for messages, such as ``prompt.item``.
    Raises:
        RecpeftError: ``template`` reads other names without testing whether they are defined.
    """
    from jinja2 import nodes

    asking = _tree(template).find_all((nodes.Test, nodes.Filter))
    asked = {
        node.node.name
        for node in asking
        if isinstance(node.node, nodes.Name) and node.name in ("defined", "undefined", "default", "d")
    }
    read = variables(template)
    unknown = sorted(read - {*known, *asked})
    if unknown:
        raise RecpeftError(
            f"{key} {shown(template)} names {', '.join(unknown)}, which is not there; choose from {', '.join(known)}."
        )
    return set(read & set(known))


def render(table: pl.DataFrame, template: str, key: str, allow_empty: bool = False) -> list[str]:
    """Render ``template`` for each row of ``table``, with runs of white space collapsed.

    Args:
        key: name of the template for messages, such as ``prompt.item``.
    Raises:
        RecpeftError: a row cannot be rendered, or a text is empty without ``allow_empty``.
    """
    from datamodules._tables import SHOWN

    ready = compiled(template)
    wanted = [name for name in table.columns if name in variables(template)]
    texts = []
    rows = table.select(wanted).iter_rows(named=True) if wanted else iter([{}] * table.height)
    for number, row in enumerate(rows):
        try:
            texts.append(" ".join(_text(ready, row).split()))
        except Exception as error:  # expressions in a template may raise anything
            raise RecpeftError(
                f"{key} cannot be rendered for {_name(table, number)}: {error}; there are {', '.join(table.columns)}."
            ) from None
    empty = [number for number, text in enumerate(texts) if not text]
    if empty and not allow_empty:
        names = ", ".join(_name(table, number) for number in empty[:SHOWN])
        more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
        raise RecpeftError(
            f"{key} {shown(template)} leaves no text for {names}{more}; "
            "name a column that every row has, or remove these from the data."
        )
    return texts


def _text(ready: Any, row: Mapping[str, Any]) -> str:
    """Render one row, and raise ValueError as soon as the text is too long."""
    text = ""
    for piece in ready.generate(row):
        text = _capped(text + piece)
    return text


def _name(table: pl.DataFrame, row: int) -> str:
    """Return ``item '7'`` or ``user '7'``, or the row's values without an id."""
    if "raw_id" not in table.columns:
        return str(table.row(row, named=True))
    kind = "item" if "item" in table.columns else "user"
    return f"{kind} {table['raw_id'][row]!r}"


def ablated(items: pl.DataFrame, ablation: Ablation, seed: int = 0) -> pl.DataFrame:
    """Return the item table with its titles ablated."""
    import numpy as np
    import polars as pl

    if ablation not in ("anonymous_titles", "shuffled_titles"):
        return items
    if "title" not in items.columns:
        raise RecpeftError(f"prompt.ablation is {ablation}, but the items have no title; use ids.")
    order = np.random.default_rng([seed, 7]).permutation(items.height)
    if ablation == "shuffled_titles":
        return items.with_columns(items["title"].gather(order))
    # Numbers are permuted, since ids often follow the year.
    return items.with_columns(title=pl.Series([f"Item {number + 1}" for number in order.tolist()], dtype=pl.String))
