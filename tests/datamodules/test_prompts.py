"""What a prompt's options may be, and what its templates leave."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from pydantic import ValidationError

import datamodules
from datamodules._prompts import PromptConfig, ablated, render
from recpeft.errors import RecpeftError
from recpeft.validation import validate

NAMED = ["de", "en", "es", "fr", "zh"]


def items_of(titles: list[str], years: list[int | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item": range(len(titles)),
            "raw_id": [str(100 + n) for n in range(len(titles))],
            "title": titles,
            "year": years,
        },
        schema_overrides={"year": pl.Int32},
    )


# Named templates and files of one's own ----------------------------------------------------------------


def test_every_file_beside_the_code_is_a_named_template() -> None:
    folder = Path(datamodules.__file__).parent / "prompts"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.yaml" for name in NAMED]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_gives_the_keys_that_are_not_written(name: str) -> None:
    folder = Path(datamodules.__file__).parent / "prompts"
    keys = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    config = PromptConfig(template=name)
    assert config.model_dump() == PromptConfig().model_dump() | keys | {"template": name}
    assert config.instruction != PromptConfig().instruction
    assert config.ending


@pytest.mark.parametrize("name", NAMED)
def test_a_written_key_stands_over_the_templates(name: str) -> None:
    config = PromptConfig(template=name, instruction="Mine:", history=3)
    assert (config.instruction, config.history) == ("Mine:", 3)
    assert config.ending == PromptConfig(template=name).ending


@pytest.mark.parametrize("options", [{}, *({"template": name, "ending": "Then:"} for name in NAMED)], ids=str)
def test_a_config_that_is_dumped_is_read_as_the_same(options: dict[str, Any]) -> None:
    config = PromptConfig(**options)
    for dumped in (config.model_dump(mode="json"), config.model_dump(exclude_defaults=True)):
        assert PromptConfig(**dumped) == config
    assert PromptConfig.model_validate_json(config.model_dump_json()) == config


def test_a_default_that_stands_over_a_template_survives_a_dump() -> None:
    config = PromptConfig(template="en", ending="")
    assert PromptConfig(**config.model_dump(mode="json")).ending == ""


def test_a_file_of_ones_own_gives_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("instruction: 'Käufe:'\nseparator: ','\nhistory: 3\n", encoding="utf-8")
    config = PromptConfig(template=str(file), history=4)
    assert (config.instruction, config.separator, config.history) == ("Käufe:", ",", 4)


def test_an_unknown_template_lists_the_names() -> None:
    with pytest.raises(ValidationError, match=r"template is 'nl', which is no file; choose one of de, en, es, fr, zh"):
        PromptConfig(template="nl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is no readable YAML"),
        (b"\xff\xfe", "is no readable YAML"),
        (b"", "must be a mapping of prompt's keys"),
        (b"- instruction", "must be a mapping of prompt's keys"),
        (b"template: en", "must be a mapping of prompt's keys, without template"),
        (b"instructoin: 'Watched:'", "instructoin\n  Extra inputs are not permitted"),
        (b"history: 1\nhistory: 2", "the key history stands there a second time in line 2"),
        (b"history: many", "history\n  Input should be a valid integer"),
        (b"instruction: 'Watched: '", "'Watched: ' ends in white space"),
    ],
)
def test_a_file_that_is_no_template_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("./mine.yaml")  # a longer path would be cut in the message
    file.write_bytes(content)
    with pytest.raises(ValidationError) as caught:
        PromptConfig(template=f"./{file}")
    assert message in str(caught.value)
    if "readable" in message or "mapping" in message:
        assert str(file) in str(caught.value)


# Options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["instruction", "separator", "disliked", "ending"])
@pytest.mark.parametrize("end", [" ", "\n", "\t", "\u00a0"])
def test_a_segment_that_ends_in_white_space_is_refused(option: str, end: str) -> None:
    with pytest.raises(ValidationError, match="ends in white space, which would change its tokens"):
        PromptConfig(**{option: f"x{end}"})


@pytest.mark.parametrize("lead", ["", "-", "- "])
def test_a_lead_that_does_not_start_with_white_space_is_refused(lead: str) -> None:
    with pytest.raises(ValidationError, match="must start with a space or a line break"):
        PromptConfig(lead=lead)


@pytest.mark.parametrize("option", ["item", "profile", "annotation", "question", "list_question", "choice"])
@pytest.mark.parametrize("template", ["{{ title", "{% if %}", "{% nonsense %}", "{{ title | nonsense }}"])
def test_a_broken_template_is_refused_with_the_config(option: str, template: str) -> None:
    with pytest.raises(ValidationError, match="not a Jinja template"):
        PromptConfig(**{option: template})


def test_an_annotation_of_something_else_than_the_interaction_is_refused() -> None:
    with pytest.raises(ValidationError, match="names title, year, which is not there; choose from rating, date"):
        PromptConfig(annotation="{{ rating }} {{ title }} {{ year }} {{ date }}")


@pytest.mark.parametrize(("option", "name"), [("question", "item"), ("list_question", "items"), ("choice", "letter")])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Which? Answer:", "names {{ NAME }} 0 times; name it once"),
        ("Which? {{ NAME }} or {{ NAME }} Answer:", "names {{ NAME }} 2 times; name it once"),
        ("{{ user }}? {{ NAME }} {{ year }} Answer:", "names user, year, which is not there; choose from NAME"),
        ("Which? {{ NAME }} {{ NAME | upper }} Answer:", "has more of Jinja than {{ NAME }}"),
        ("{% if NAME %}Which?{% endif %} {{ NAME }} Answer:", "has more of Jinja than {{ NAME }}"),
        ("Which? {{ NAME }} {# or not #} Answer:", "has more of Jinja than {{ NAME }}"),
        ("{{ ''.__class__.__mro__ }} {{ NAME }} Answer:", "has more of Jinja than {{ NAME }}"),
        ("{% include '/etc/passwd' %} {{ NAME }} Answer:", "has more of Jinja than {{ NAME }}"),
    ],
)
def test_a_question_is_filled_in_at_one_place(option: str, name: str, template: str, message: str) -> None:
    with pytest.raises(RecpeftError) as caught:
        validate(PromptConfig, {option: template.replace("NAME", name)}, "prompt.")
    assert str(caught.value).startswith(f"prompt.{option} ")
    assert message.replace("NAME", name) in str(caught.value)


@pytest.mark.parametrize(("option", "name"), [("question", "item"), ("list_question", "items")])
@pytest.mark.parametrize(
    "template", ["{{ NAME }} Answer:", "Which?{{ NAME }} Answer:", "? {{ NAME }}:", "? {{ NAME }} A: "]
)
def test_white_space_stands_on_either_side_of_what_is_asked_about(option: str, name: str, template: str) -> None:
    with pytest.raises(ValidationError, match=rf"prompt\.{option} .* needs white space or a line break on either side"):
        PromptConfig(**{option: template.replace("NAME", name)})


@pytest.mark.parametrize("choice", [" {{ letter }}:", "{{ letter }}: ", "\n{{ letter }}"])
def test_a_choice_that_begins_or_ends_in_white_space_is_refused(choice: str) -> None:
    with pytest.raises(ValidationError, match=r"prompt\.choice .* begins or ends in white space"):
        PromptConfig(choice=choice)


@pytest.mark.parametrize("instruction", ["", " Watched:", "\nWatched:"])
def test_a_turn_of_a_chat_begins_with_text(instruction: str) -> None:
    assert PromptConfig(instruction=instruction).instruction == instruction
    with pytest.raises(
        ValidationError, match=r"prompt\.instruction is .* but with prompt\.chat it must begin with text"
    ):
        PromptConfig(instruction=instruction, chat=True)


# Templates over rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["{{ titel }}", "{% if titel %}x{% endif %}{{ title }}"])
def test_a_missing_column_lists_the_columns(tiny_items: pl.DataFrame, template: str) -> None:
    with pytest.raises(RecpeftError, match="'titel' is undefined") as caught:
        render(tiny_items, template, "prompt.item")
    for column in tiny_items.columns:
        assert column in str(caught.value)


@pytest.mark.parametrize(
    "template",
    ["{{ title + 1 }}", "{{ 1 / 0 }}", "{{ title.nothing() }}", "{% for n in range(10**9) %}{% endfor %}"],
)
def test_a_template_that_raises_names_the_item(tiny_items: pl.DataFrame, template: str) -> None:
    with pytest.raises(RecpeftError, match=r"prompt\.item cannot be rendered for item '1'"):
        render(tiny_items, template, "prompt.item")


def test_a_null_is_no_text() -> None:
    items = items_of(["Toy Story"], [None])
    assert render(items, "{{ title }} {{ year }}", "prompt.item") == ["Toy Story"]
    with pytest.raises(RecpeftError, match="leaves no text for item '100'"):
        render(items, "{{ year }}", "prompt.item")


def test_white_space_in_a_text_is_folded() -> None:
    assert render(items_of([" Toy \n\t Story  "], [None]), PromptConfig().item, "prompt.item") == ["Toy Story"]


def test_text_is_not_escaped_for_a_page() -> None:
    assert render(items_of(["Tom & <Jerry>'s"], [None]), "{{ title }}", "prompt.item") == ["Tom & <Jerry>'s"]


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
    with pytest.raises(RecpeftError, match=r"cannot be rendered .*(unsafe|not safely callable|is undefined)"):
        render(tiny_items, template, "prompt.item")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ " + "(" * 3000 + "title" + ")" * 3000 + " }}", "nested too deep"),
        (
            "{% for a in title %}{% for b in title %}{% for c in title %}x{% endfor %}{% endfor %}{% endfor %}",
            "a loop in",
        ),
        ("{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(title) }}", "a macro"),
        ("x" * 20_000, "20,000 characters; give one of at most 10,000"),
    ],
)
def test_a_template_that_asks_for_much_work_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        PromptConfig(item=template)


@pytest.mark.parametrize(
    "template",
    ["{{ title * 10 ** 9 }}", "{{ 9 ** 9 ** 9 }}", "{{ '%999999999d' % 1 }}", "{% for n in range(9) %}x{% endfor %}"],
)
def test_a_template_makes_no_text_that_no_column_has(tiny_items: pl.DataFrame, template: str) -> None:
    with pytest.raises(RecpeftError, match=r"cannot be rendered .*(is too much|'range' is undefined)"):
        render(tiny_items, template, "prompt.item")


@pytest.mark.parametrize(
    "template",
    [
        "{% set a = title %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
        "{% set a = title %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
        "{% set a = [title] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
        "{% set a = title %}" + "{% set a = a ~ a %}" * 9 + "{{ a }}" * 500,
        "".join(f"{{% with a{n + 1} = a{n} ~ a{n} %}}" for n in range(60)).replace("a0", "title")
        + "{% endwith %}" * 60,
        "{% set a %}{{ title }}{{ title }}{% endset %}{{ a }}",
        "{% block a %}x{% endblock %}{{ self.a() }}",
        "{{ title | center(10 ** 9) }}",
        "{{ title | indent(width=999999999) }}",
        "{{ title.ljust(999999999) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ title" + "|replace('', 'xxxxxxxxx')" * 60 + " }}",
    ],
)
def test_a_template_cannot_let_text_grow_without_bound(tiny_items: pl.DataFrame, template: str) -> None:
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"too much|a macro or a block|No filter named 'format'|unsafe|no attribute"):
        render(tiny_items, template, "prompt.item")
    assert time.process_time() - begin < 3


def test_what_templates_are_for_is_no_growth(tiny_items: pl.DataFrame) -> None:
    template = (
        "{% set name = title | replace('(', '[') | truncate(40) %}{% if categories %}{% for c in categories %}"
        "{{ loop.index + 0 }} {{ c.lower().replace('a', 'o') }}{{ ', ' if not loop.last }}{% endfor %}{% endif %}"
        "{{ ' by ' ~ name ~ '; ' ~ title.upper()[:3] ~ categories | join('/') }}"
    )
    first = render(tiny_items, template, "prompt.item")[0]
    title, categories = tiny_items["title"][0], tiny_items["categories"][0].to_list()
    listed = ", ".join(f"{n} {c.lower().replace('a', 'o')}" for n, c in enumerate(categories, 1))
    assert first == f"{listed} by {title.replace('(', '[')}; {title.upper()[:3]}{'/'.join(categories)}"


# Ablations of the item table ---------------------------------------------------------------------------


def test_shuffled_titles_are_the_same_titles_beside_other_columns_that_stay(tiny_items: pl.DataFrame) -> None:
    items = pl.concat([tiny_items.with_columns(title=pl.col("title") + f" {n}") for n in range(10)])
    shuffled = ablated(items, "shuffled_titles")
    assert sorted(shuffled["title"]) == sorted(items["title"])
    assert shuffled["title"].to_list() != items["title"].to_list()
    assert shuffled.drop("title").equals(items.drop("title"))
    assert shuffled.columns == items.columns
    assert ablated(items, "shuffled_titles").equals(shuffled)
    assert not ablated(items, "shuffled_titles", seed=1).equals(shuffled)


def test_anonymous_titles_are_numbers_that_tell_items_apart(tiny_items: pl.DataFrame) -> None:
    items = pl.concat([tiny_items] * 10)
    anonymous = ablated(items, "anonymous_titles")
    assert sorted(anonymous["title"]) == sorted(f"Item {number}" for number in range(1, 41))
    assert anonymous["title"].to_list() != [f"Item {number}" for number in range(1, 41)]  # ids often follow the year
    assert anonymous.drop("title").equals(items.drop("title"))


@pytest.mark.parametrize("ablation", ["none", "ids", "shuffled_history"])
def test_other_ablations_leave_the_item_table(tiny_items: pl.DataFrame, ablation: Any) -> None:
    assert ablated(tiny_items, ablation).equals(tiny_items)


@pytest.mark.parametrize("ablation", ["anonymous_titles", "shuffled_titles"])
def test_an_ablation_of_titles_needs_titles(tiny_items: pl.DataFrame, ablation: Any) -> None:
    with pytest.raises(RecpeftError, match=f"ablation is {ablation}, but the items have no title; use ids"):
        ablated(tiny_items.drop("title"), ablation)
