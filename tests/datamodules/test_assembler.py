"""A user's text is put together from pieces as its options say."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable
from pathlib import Path
from string import ascii_uppercase
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules import _assembler
from datamodules._assembler import PromptAssembler
from datamodules._histories import Histories
from datamodules._prompts import Form, PromptConfig
from recpeft.errors import RecpeftError


def bytewise_tokenizer(
    special: bool = True, pair: str = "$A $B", prefix_space: bool = False
) -> PreTrainedTokenizerBase:
    """A byte is a token, so texts can be read back and lengths counted; < and > are bytes around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="< $A >", pair=pair, special_tokens=[(mark, alphabet.index(mark)) for mark in "<>|"]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerBase:
    return bytewise_tokenizer()


@pytest.fixture(scope="module")
def tiny(tiny_backbone: Path) -> PreTrainedTokenizerBase:
    """A word is a token; [CLS] and [SEP] go around a text."""
    return AutoTokenizer.from_pretrained(tiny_backbone)


def items_of(titles: list[str], years: list[int | None] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item": range(len(titles)),
            "raw_id": [str(100 + n) for n in range(len(titles))],
            "title": titles,
            "year": years or [None] * len(titles),
        },
        schema_overrides={"year": pl.Int32},
    )


Row = tuple[int, int, float | None, int | None]
"""user, item, rating, timestamp"""


def interactions_of(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64},
        orient="row",
    )


LETTERS = items_of(["A", "B", "C", "D"])
# One user, oldest first: B and C are liked from 4 on, A is not, and of D there is neither rating nor time.
ROWS: list[Row] = [(0, 0, 2.0, 0), (0, 1, 4.0, 86_399), (0, 3, None, None), (0, 2, 5.0, 86_400)]


@pytest.fixture
def read(bytewise: PreTrainedTokenizerBase) -> Callable[..., str]:
    """The text of user 0 with interactions ``rows`` and these options."""

    def read(rows: list[Row] = ROWS, users: pl.DataFrame | None = None, **prompt: Any) -> str:
        interactions = interactions_of(rows)
        prompt = {"max_user_tokens": 1000, "instruction": "Saw:", **prompt}
        assembler = PromptAssembler(bytewise, LETTERS, users=users, interactions=interactions, **prompt)
        text: str = bytewise.decode(assembler.users(Histories.of(interactions, 1), np.asarray([0]))[0].tolist())
        assert (text[0], text[-1]) == ("<", ">")
        return text[1:-1]

    return read


def test_a_users_text_reads_as_written(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    prompt = PromptAssembler(tiny, tiny_items, instruction="Watched:")
    assert tiny.decode(prompt.user([0, 1])) == "[CLS] watched : red film ( 1995 ) ; blue film 7 ; [SEP]"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "Saw: A; B; D; C;"),
        ({"separator": ""}, "Saw: A B D C"),
        ({"lead": "\n- ", "separator": "", "ending": "\nNext:"}, "Saw:\n- A\n- B\n- D\n- C\nNext:"),
        ({"order": "newest_first"}, "Saw: C; D; B; A;"),
        ({"history": 2, "order": "newest_first"}, "Saw: C; D;"),
        ({"ending": "Next:"}, "Saw: A; B; D; C; Next:"),
        ({"instruction": "", "ending": "Next:"}, " A; B; D; C; Next:"),
        # Who gives no rating does not dislike.
        ({"disliked": "Not:"}, "Saw: B; D; C; Not: A;"),
        ({"disliked": "Not:", "liked_from": 4.5}, "Saw: D; C; Not: A; B;"),
        ({"disliked": "Not:", "liked_from": 4.5, "order": "newest_first"}, "Saw: C; D; Not: B; A;"),
        ({"disliked": "Not:", "liked_from": 1.0}, "Saw: A; B; D; C;"),
        ({"disliked": "Not:", "liked_from": 6.0, "history": 1, "ending": "Next:"}, "Saw: Not: C; Next:"),
        ({"annotation": "({{ rating }}/5)"}, "Saw: A (2/5); B (4/5); D; C (5/5);"),
        # A day ends at midnight in UTC, wherever this runs.
        ({"annotation": "on {{ date }}"}, "Saw: A on 1970-01-01; B on 1970-01-01; D; C on 1970-01-02;"),
        (
            {"annotation": "{{ rating }}, {{ date.strftime('%d.%m.%y') }}", "separator": "", "history": 1},
            "Saw: C 5, 02.01.70",
        ),
        ({"annotation": "{% if rating >= 5 %}!{% endif %}"}, "Saw: A; B; D; C !;"),
    ],
    ids=str,
)
def test_a_users_text_has_what_its_options_say(
    read: Callable[..., str], options: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
    assert read(**options) == expected


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [
        ([4.0, 5.0], ["4", "5"]),
        ([4.5, 3.0], ["4.5", "3.0"]),  # where a file has half stars, all are written alike
        ([3.7, 4.1], ["3.7", "4.1"]),  # not as Float32 has them: 3.700000047683716
        ([None, 10.0], ["", "10"]),
        ([None, 0.5], ["", "0.5"]),
        ([None, None], ["", ""]),
    ],
)
def test_ratings_are_written_as_in_the_file(
    read: Callable[..., str], ratings: list[float | None], expected: list[str]
) -> None:
    rows: list[Row] = [(0, item, rating, 0) for item, rating in enumerate(ratings)]
    notes = [f" {note}" if note else "" for note in expected]
    assert read(rows, annotation="{{ rating }}") == f"Saw: A{notes[0]}; B{notes[1]};"


def test_a_rating_that_is_missing_beside_a_date_is_no_text(read: Callable[..., str]) -> None:
    rows: list[Row] = [(0, 0, None, 0), (0, 1, 3.0, None), (0, 2, None, None)]
    assert read(rows, annotation="[{{ rating }}|{{ date }}]") == "Saw: A [|1970-01-01]; B [3|]; C;"


def test_an_annotation_needs_the_interactions(bytewise: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RecpeftError, match=r"prompt\.annotation needs the interactions"):
        PromptAssembler(bytewise, LETTERS, annotation="{{ rating }}")


def test_a_users_profile_stands_before_the_instruction(
    bytewise: PreTrainedTokenizerBase,
) -> None:
    users = pl.DataFrame({"user": [0, 1, 2], "raw_id": list("xyz"), "age": [24, None, 7], "job": ["cook", "", None]})
    prompt = PromptAssembler(
        bytewise, LETTERS, users=users, profile="{% if age %}{{ age }}{% endif %} {{ job }}", ending="Next:"
    )
    texts = [bytewise.decode(prompt.user([0, 1], user)) for user in range(3)]
    assert texts == [
        "<24 cook Watched: A; B; Next:>",
        "<Watched: A; B; Next:>",
        "<7 Watched: A; B; Next:>",
    ]
    histories = Histories.of_items([[0], [1], [2]])
    swapped = prompt.users(histories, np.asarray([2, 0, 2]), profiles=np.asarray([0, 2, 1]))
    assert [bytewise.decode(swapped[row].tolist()) for row in range(3)] == [
        "<24 cook Watched: C; Next:>",
        "<7 Watched: A; Next:>",
        "<Watched: C; Next:>",
    ]


def test_in_a_chat_the_profile_begins_what_the_user_says(bytewise: PreTrainedTokenizerBase) -> None:
    users = pl.DataFrame({"user": [0, 1], "raw_id": list("xy"), "job": ["cook", None]})
    prompt = PromptAssembler(
        chatting(bytewise), LETTERS, users=users, form="pair", chat=True, profile="{{ job }}", **ASKED
    )
    texts = [bytewise.decode(prompt.user([0], user)) for user in range(2)]
    assert texts == ["[user: cook Saw: A; And", "[user: Saw: A; And"]


def test_a_profile_needs_the_users_and_their_columns(bytewise: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RecpeftError, match=r"prompt\.profile needs the table of users"):
        PromptAssembler(bytewise, LETTERS, profile="{{ age }}")
    users = pl.DataFrame({"user": [0], "raw_id": ["x"]})
    message = r"prompt\.profile .* names age, job, which is not there; choose from user, raw_id\."
    with pytest.raises(RecpeftError, match=message):
        PromptAssembler(bytewise, LETTERS, users=users, profile="{{ age }} {{ raw_id }} {{ job }}")


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


def test_no_more_than_history_items_are_named(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    prompt = PromptAssembler(tiny, tiny_items, history=2)
    assert prompt.user([3, 0, 2, 1]) == prompt.user([2, 1])


def test_a_history_of_0_leaves_the_profile(bytewise: PreTrainedTokenizerBase) -> None:
    users = pl.DataFrame({"user": [0, 1], "raw_id": ["x", "y"], "job": ["cook", "nurse"]})
    prompt = PromptAssembler(bytewise, LETTERS, users=users, profile="{{ job }}", history=0)
    assert [bytewise.decode(prompt.user([0, 1, 2], user)) for user in (0, 1)] == ["<cook Watched:>", "<nurse Watched:>"]


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


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        # By hand: "<Saw: Not: Next:>" is 17 bytes, and " A;" and so on 3 each; A is disliked and the oldest.
        (29, "Saw: B; D; C; Not: A; Next:"),
        (28, "Saw: B; D; C; Next:"),
        (26, "Saw: B; D; C; Next:"),
        (25, "Saw: D; C; Next:"),  # room for " Not:" is kept, whether it is needed or not
        (19, "Saw: Next:"),
    ],
)
def test_a_short_budget_drops_the_oldest_of_both_lists(read: Callable[..., str], most: int, expected: str) -> None:
    assert read(disliked="Not:", ending="Next:", max_user_tokens=most) == expected


def test_nothing_older_than_what_does_not_fit_is_kept(bytewise: PreTrainedTokenizerBase) -> None:
    items = items_of(["A", "Long title", "C"])
    prompt = PromptAssembler(bytewise, items, instruction="", max_user_tokens=10)
    assert bytewise.decode(prompt.user([0, 1, 2])) == "< C;>"


def test_a_profile_and_an_ending_that_leave_no_room_are_refused(bytewise: PreTrainedTokenizerBase) -> None:
    users = pl.DataFrame({"user": [0, 1], "raw_id": ["x", "y"], "job": ["a", "ab"]})
    options = {"users": users, "instruction": "I", "profile": "{{ job }}", "ending": "E"}
    # "<ab I E>" is 8
    with pytest.raises(RecpeftError, match="is 8 but profile, instruction and ending take 8"):
        PromptAssembler(bytewise, LETTERS, max_user_tokens=8, **options)
    prompt = PromptAssembler(bytewise, LETTERS, max_user_tokens=9, **options)
    assert bytewise.decode(prompt.user([0], user=1)) == "<ab I E>"


# Many users at once, against a loop --------------------------------------------------------------------

ANNOTATIONS: dict[str, Callable[[str, str], str]] = {
    "": lambda rating, date: "",
    "({{ rating }}/5)": lambda rating, date: f"({rating}/5)" if rating else "",
    "{{ date }}": lambda rating, date: date,
    "({{ rating }}/5, {{ date }})": lambda rating, date: f"({rating}/5, {date})" if rating or date else "",
    "{% if rating and rating >= 4 %}loved{% endif %}": lambda rating, date: (
        "loved" if rating and float(rating) >= 4 else ""
    ),
}
"""Template -> the same in Python, of the rating and the date as text, empty where there is none."""


class World:
    """Random interactions and options, and each user's text by a loop over them."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.titles = ["".join(draw.choice(list("ab é(,"), draw.integers(1, 12))) + "." for _ in range(20)]
        half_stars = bool(draw.random() < 0.5)
        self.rows: list[list[tuple[int, float | None, int | None]]] = []
        for _ in range(6):
            ratings = draw.integers(1, 11, 31) / 2 if half_stars else draw.integers(1, 6, 31)
            times = np.sort(draw.integers(0, 5 * 86_400, 31))
            known = draw.random((31, 2)) < 0.85
            self.rows.append(
                [
                    (int(draw.integers(20)), float(rating) if has[0] else None, int(time) if has[1] else None)
                    for rating, time, has in zip(ratings, times, known, strict=True)
                ][: int(draw.choice([0, 1, 30, draw.integers(31)]))]
            )
        self.ages = [None if draw.random() < 0.3 else int(draw.integers(5, 2000)) for _ in self.rows]
        self.whole = all(int(rating) == rating for rows in self.rows for _, rating, _ in rows if rating is not None)

        def one_of(*values: Any) -> Any:
            return values[draw.integers(len(values))]

        self.options: dict[str, Any] = {
            "instruction": one_of("", "Saw:", "A long instruction, with a comma:"),
            "profile": one_of("", "Aged {{ age }}.", "{% if age %}{{ age }}{% endif %}"),
            "annotation": one_of(*ANNOTATIONS),
            "lead": one_of(" ", "\n- ", "\n"),
            "separator": one_of("", ";", "..."),
            "disliked": one_of("", "Disliked:"),
            "liked_from": one_of(1.0, 3.0, 3.5, 4.0),
            "ending": one_of("", "Next:"),
            "order": one_of("oldest_first", "newest_first"),
            "history": int(one_of(0, 1, 5, 30, 100)),
            "max_user_tokens": int(one_of(draw.integers(20, 60), draw.integers(60, 300), 5000)),
        }
        if not self.options["profile"]:  # which a prompt without a history needs
            self.options["history"] = self.options["history"] or 2

    def text(self, rows: list[tuple[int, float | None, int | None]], age: int | None, kept: bool = False) -> str:
        """What a user with ``rows`` reads; ``kept``: with everything that room is kept for."""
        options = self.options
        liked, disliked = "", ""
        for item, rating, time in rows if options["order"] == "oldest_first" else rows[::-1]:
            stars = "" if rating is None else str(int(rating) if self.whole else rating)
            date = "" if time is None else str(datetime.datetime.fromtimestamp(time, datetime.UTC).date())
            note = ANNOTATIONS[options["annotation"]](stars, date)
            title = " ".join(self.titles[item].split())
            text = options["lead"] + title + (f" {note}" if note else "") + options["separator"]
            if options["disliked"] and rating is not None and rating < options["liked_from"]:
                disliked += text
            else:
                liked += text
        profile = {
            "": "",
            "Aged {{ age }}.": f"Aged {'' if age is None else age}.",
            "{% if age %}{{ age }}{% endif %}": "" if age is None else f"{age}",
        }[options["profile"]]
        header = f" {options['disliked']}" if options["disliked"] and (disliked or kept) else ""
        ending = f" {options['ending']}" if options["ending"] else ""
        introduced = " ".join(filter(None, (profile, options["instruction"])))
        return f"<{introduced}{liked}{header}{disliked}{ending}>"

    def fits(self, rows: list[tuple[int, float | None, int | None]], age: int | None) -> bool:
        return len(self.text(rows, age, kept=True).encode()) <= self.options["max_user_tokens"]

    def expected(self, user: int, stop: int) -> str:
        rows = self.rows[user][:stop]
        rows = rows[max(0, len(rows) - self.options["history"]) :]
        while not self.fits(rows, self.ages[user]):
            rows = rows[1:]
        return self.text(rows, self.ages[user])

    @property
    def too_long(self) -> bool:
        """Whether no item could stand in some user's text."""
        return any(len(self.text([], age, kept=True).encode()) >= self.options["max_user_tokens"] for age in self.ages)

    @property
    def interactions(self) -> pl.DataFrame:
        return interactions_of([(user, *row) for user, rows in enumerate(self.rows) for row in rows])

    def assembler(self, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PromptAssembler:
        users = pl.DataFrame(
            {"user": range(6), "raw_id": list("uvwxyz"), "age": self.ages}, schema_overrides={"age": pl.Int64}
        )
        return PromptAssembler(
            tokenizer,
            items_of(self.titles),
            users=users,
            interactions=self.interactions,
            **self.options | options,
        )


@pytest.mark.parametrize("seed", range(150))
def test_users_texts_are_those_of_a_loop_over_their_histories(bytewise: PreTrainedTokenizerBase, seed: int) -> None:
    world = World(seed)
    if world.too_long:
        with pytest.raises(RecpeftError, match="raise it or shorten"):
            world.assembler(bytewise)
        return
    prompt = world.assembler(bytewise)
    draw = np.random.default_rng(seed)
    user = draw.integers(0, 6, 15)
    lengths = np.asarray([len(world.rows[row]) for row in user])
    histories = Histories.of(world.interactions, 6)
    for stop in (lengths, draw.integers(0, lengths + 1)):
        texts = prompt.users(histories, user, None if stop is lengths else stop)
        assert len(texts) == 15
        for row, (each, moment) in enumerate(zip(user.tolist(), stop.tolist(), strict=True)):
            assert bytewise.decode(texts[row].tolist()) == world.expected(each, moment)


def test_the_loop_meets_every_case() -> None:
    worlds = [World(seed) for seed in range(150)]
    assert 5 < sum(world.too_long for world in worlds) < 75
    for option in ("disliked", "annotation", "profile"):
        assert 20 < sum(not world.options[option] for world in worlds if not world.too_long) < 100
    dropped = [
        world
        for world in worlds
        if not world.too_long and not world.fits(world.rows[0][-world.options["history"] :], world.ages[0])
    ]
    assert len(dropped) > 15


@pytest.mark.parametrize("seed", range(20))
def test_a_moment_is_a_history_that_ends_there(bytewise: PreTrainedTokenizerBase, seed: int) -> None:
    world = World(seed)
    prompt = world.assembler(bytewise, max_user_tokens=200)
    draw = np.random.default_rng(seed)
    stop = np.asarray([draw.integers(len(rows) + 1) for rows in world.rows])
    at_moment = prompt.users(Histories.of(world.interactions, 6), np.arange(6), stop)
    world.rows = [rows[:moment] for rows, moment in zip(world.rows, stop.tolist(), strict=True)]
    sliced = prompt.users(Histories.of(world.interactions, 6), np.arange(6))
    assert at_moment.values.tolist() == sliced.values.tolist()
    assert at_moment.offsets.tolist() == sliced.offsets.tolist()


def test_no_users_have_no_texts(bytewise: PreTrainedTokenizerBase) -> None:
    prompt = PromptAssembler(bytewise, LETTERS)
    nobody = np.empty(0, np.int64)
    assert len(prompt.users(Histories.of_items([[0, 1]]), nobody)) == 0
    assert len(prompt.users(Histories.of_items([]), nobody)) == 0
    assert len(prompt.items(nobody)) == 0


def test_many_items_texts_are_those_of_each(bytewise: PreTrainedTokenizerBase) -> None:
    prompt = PromptAssembler(bytewise, items_of(["Abc", "D", "Efghi"]), max_item_tokens=6)
    texts = prompt.items(np.asarray([2, 0, 2, 1]))
    decoded = [bytewise.decode(texts[row].tolist()) for row in range(4)]
    assert decoded == ["<Efgh>", "<Abc>", "<Efgh>", "<D>"]


# Ablations ---------------------------------------------------------------------------------------------

FILMS = items_of(["Toy Story", "Heat", "Cité perdue", "Brazil"], [1995, 1995, 1995, None])


@pytest.fixture
def ablated(bytewise: PreTrainedTokenizerBase) -> Callable[..., list[str]]:
    """Texts of the four films and of a user who met them all, under an ablation."""

    def ablated(ablation: str, history: tuple[int, ...] = (0, 1, 2, 3)) -> list[str]:
        prompt = PromptAssembler(bytewise, FILMS, ablation=ablation, max_item_tokens=100, max_user_tokens=1000)
        ids = [*(prompt.item(item) for item in range(4)), prompt.user(history)]
        return [bytewise.decode(row)[1:-1] for row in ids]

    return ablated


def test_anonymous_titles_leave_no_word_of_any_title_and_tell_items_apart(ablated: Callable[..., list[str]]) -> None:
    *items, user = ablated("anonymous_titles")
    words = {word for title in FILMS["title"] for word in title.split()}
    assert not any(word in text for word in words for text in (*items, user))
    assert len(set(items)) == 4
    assert [item.endswith(" (1995)") for item in items] == [True, True, True, False]  # other columns stay
    assert user == "Watched:" + "".join(f" {item};" for item in items)


def test_shuffled_titles_are_those_of_other_items(ablated: Callable[..., list[str]]) -> None:
    *items, user = ablated("shuffled_titles")
    titles = [item.removesuffix(" (1995)") for item in items]
    assert sorted(titles) == sorted(FILMS["title"])
    assert titles != FILMS["title"].to_list()
    assert [item.endswith(" (1995)") for item in items] == [True, True, True, False]
    assert user == "Watched:" + "".join(f" {item};" for item in items)


def test_ids_stand_in_place_of_texts(ablated: Callable[..., list[str]]) -> None:
    assert ablated("ids") == ["100", "101", "102", "103", "Watched: 100; 101; 102; 103;"]


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
def test_shuffled_histories_name_the_same_items_in_another_order(bytewise: PreTrainedTokenizerBase, order: str) -> None:
    items = items_of([chr(ord("A") + n) for n in range(26)])
    draw = np.random.default_rng(0)
    histories = Histories.of_items([draw.permutation(26).tolist() for _ in range(10)])

    def texts(ablation: str) -> list[str]:
        prompt = PromptAssembler(
            bytewise,
            items,
            ablation=ablation,
            order=order,
            instruction="",
            separator="",
            history=20,
            max_user_tokens=32,  # < and > and the latest 15 letters, each behind a space
        )
        joined = prompt.users(histories, np.arange(10))
        return [bytewise.decode(joined[user].tolist())[1:-1] for user in range(10)]

    shuffled = texts("shuffled_history")
    for plain, other in zip(texts("none"), shuffled, strict=True):
        assert len(plain.split()) == 15
        assert sorted(plain.split()) == sorted(other.split())
        assert plain != other
    assert texts("shuffled_history") == shuffled


# Users and items in one text ---------------------------------------------------------------------------

CHAT = "[{% for message in messages %}{{ message.role }}: {{ message.content | trim }}]{% endfor %} bot:"


def chatting(tokenizer: PreTrainedTokenizerBase, template: str | None = CHAT) -> PreTrainedTokenizerBase:
    """The tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


ASKED = {"instruction": "Saw:", "question": "And {{ item }} too? Answer:", "list_question": "Next?\n{{ items }}\nIs:"}


@pytest.mark.parametrize(
    ("form", "chat", "user", "item"),
    [
        ("single", False, "<Saw: A; B;>", "<C>"),
        ("pair", False, "<Saw: A; B; And", " C too? Answer:"),
        ("closed_pair", False, "<Saw: A; B; And", "| C too? Answer:>"),
        ("list", False, "<Saw: A; B; Next?", " C"),
        ("pair", True, "[user: Saw: A; B; And", " C too? Answer:] bot:"),
        ("closed_pair", True, "[user: Saw: A; B; And", " C too? Answer:] bot:"),
        ("list", True, "[user: Saw: A; B; Next?", " C"),
    ],
)
def test_each_form_puts_user_and_item_as_it_says(form: Form, chat: bool, user: str, item: str) -> None:
    tokenizer = chatting(bytewise_tokenizer(pair="< $A | $B >"))
    prompt = PromptAssembler(tokenizer, LETTERS, form=form, chat=chat, **ASKED)
    assert tokenizer.decode(prompt.user([0, 1])) == user
    assert tokenizer.decode(prompt.item(2)) == item
    assert prompt.read_together is (form != "single")
    if form == "list":
        assert [tokenizer.decode(choice) for choice in prompt.choices(3)] == ["\nA:", "\nB:", "\nC:"]
        assert tokenizer.decode(prompt.tail) == "\nIs:" + "] bot:" * chat
        assert prompt.tails(2) == [f"\nZ: {title}\nIs:" + "] bot:" * chat for title in "AB"]
    elif form != "single":
        assert prompt.tails(2) == [f" {title} too? Answer:" + "] bot:" * chat for title in "AB"]


@pytest.mark.parametrize(
    ("pair", "between"),
    [("< $A | $B >", "|"), ("< $A > > $B >", ">>"), ("< $A < $B", ""), ("< $A > < $B >", ""), ("< $A $B >", "")],
)
def test_between_a_closed_pair_stands_what_does_not_open_a_text_anew(pair: str, between: str) -> None:
    tokenizer = bytewise_tokenizer(pair=pair)
    prompt = PromptAssembler(tokenizer, LETTERS, form="closed_pair", **ASKED)
    assert tokenizer.decode(prompt.item(0)) == f"{between} A too? Answer:>"


@pytest.mark.parametrize("form", ["pair", "closed_pair", "list"])
def test_of_one_text_the_item_alone_is_cut(form: Form) -> None:
    tokenizer, items = bytewise_tokenizer(pair="< $A | $B >"), items_of(["Abcdef", "Gh"])
    cut, whole = (PromptAssembler(tokenizer, items, form=form, max_item_tokens=most, **ASKED) for most in (4, 100))
    assert (cut.num_truncated_items, whole.num_truncated_items) == (1, 0)
    expected = tokenizer.decode(whole.item(0)).replace(" Abcdef", " Abc")
    assert tokenizer.decode(cut.item(0)) == expected
    assert cut.item(1) == whole.item(1)
    assert PromptAssembler(tokenizer, items, form=form, max_item_tokens=1, **ASKED).num_truncated_items == 2


def test_a_list_has_letters_for_26_items(bytewise: PreTrainedTokenizerBase) -> None:
    prompt = PromptAssembler(bytewise, LETTERS, form="list", choice="({{ letter }})")
    assert "".join(bytewise.decode(choice) for choice in prompt.choices(26)).split() == [
        f"({c})" for c in ascii_uppercase
    ]
    with pytest.raises(RecpeftError, match=r"a list of 27 items was asked for, but prompt\.choice has letters for 26"):
        prompt.choices(27)


def test_forms_that_put_an_item_elsewhere_share_no_cached_ids(tmp_path: Path) -> None:
    # A tokenizer that puts a space before a text has other ids for an item behind [SEP] than behind text.
    tokenizer = bytewise_tokenizer(pair="< $A | $B >", prefix_space=True)
    for form, item in [("single", "< A>"), ("pair", "\tA too?"), ("closed_pair", "| \tA too?>"), ("pair", "\tA too?")]:
        prompt = PromptAssembler(
            tokenizer, LETTERS, form=form, cache=tmp_path, question="And\t{{ item }} too?", instruction="Saw:"
        )
        assert "".join(tokenizer.convert_ids_to_tokens(prompt.item(0))).translate(SPACES) == item


SPACES = str.maketrans({"Ġ": " ", "ĉ": "\t"})
"""As byte-level tokens write them."""


# Bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("single", {}, r"max_user_tokens is 20 but the instruction alone takes 22; raise it or shorten"),
        ("pair", {}, r"is 20 but instruction and question take 29;"),
        ("list", {}, r"is 20 but instruction and question take 27;"),
        ("pair", {"chat": True}, r"is 20 but instruction, chat template and question take 35;"),
        ("list", {"ending": "Now.", "disliked": "Not:"}, r"is 20 but instruction, disliked, ending and question take"),
    ],
)
def test_all_that_is_always_in_a_users_text_is_counted(form: Form, options: dict[str, Any], message: str) -> None:
    # By hand, in bytes: the instruction 20, "<" and ">" 1 each, " Would I" 8, "Next?" 6, "[user: " 7.
    prompt = {**ASKED, "instruction": "Somebody has watched", "question": "Would I {{ item }} now? Answer:", **options}
    with pytest.raises(RecpeftError, match=message):
        PromptAssembler(chatting(bytewise_tokenizer()), LETTERS, form=form, max_user_tokens=20, **prompt)


def test_a_chat_needs_one_text_of_user_and_item(bytewise: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RecpeftError, match=r"prompt\.chat is true, but the formulation reads .* set prompt\.chat to"):
        PromptAssembler(chatting(bytewise), LETTERS, chat=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; set prompt.chat to false, or choose"),
        ("{{ raise_exception('a system message is needed') }}", "cannot be rendered: a system message is needed; set"),
        ("{{ messages", "cannot be rendered: .*; set prompt.chat to false"),
        ("Hello!", "writes what the user says 0 times and not once; set prompt.chat"),
        ("{% for n in (1, 2) %}{{ messages[0].content }}{% endfor %}", "says 2 times and not once; set prompt.chat"),
        ("{{ messages[0].content | upper }}", "says 0 times"),
    ],
)
@pytest.mark.parametrize("name", ["", "somewhere/base-model"])
def test_a_chat_template_that_is_of_no_use_is_refused(
    bytewise: PreTrainedTokenizerBase, template: str | None, message: str, name: str
) -> None:
    tokenizer = chatting(bytewise, template)
    tokenizer.name_or_path = name
    with pytest.raises(RecpeftError, match=rf"prompt\.chat is true, but .*{message}") as caught:
        PromptAssembler(tokenizer, LETTERS, form="pair", chat=True)
    assert (f"the tokenizer of '{name}'" in str(caught.value)) is bool(name)
    assert "\n" not in str(caught.value)


def test_a_chat_template_whose_tokens_depend_on_the_item_is_refused(bytewise: PreTrainedTokenizerBase) -> None:
    options: dict[str, Any] = {"form": "pair", "chat": True, "max_user_tokens": 1000}
    with pytest.raises(RecpeftError, match=r"goes on with '\] bot:', whose tokens would depend on the item"):
        PromptAssembler(chatting(bytewise), LETTERS, question="And {{ item }}", **options)
    special = chatting(bytewise)
    special.add_tokens(["]"], special_tokens=True)
    for tokenizer, question in [
        (special, "And {{ item }}"),
        (chatting(bytewise), "And {{ item }} ?"),
        (chatting(bytewise, "{{ messages[0].content }} bot:"), "And {{ item }}"),
    ]:
        PromptAssembler(tokenizer, LETTERS, question=question, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item": "a film"}, "prompt.item 'a film' names no column, .*; name one of item, raw_id, title, year"),
        ({"item": "{{ ''.__class__.__mro__ }}"}, "names no column"),
        ({"item": "{% include '/etc/passwd' %}"}, "names no column"),
        ({"item": "{{ self.__init__.__globals__ }}"}, "names no column"),
        ({"item": "{% for i in range(10**9) %}a{% endfor %}"}, "names range, which is not there"),
        ({"item": "{% if colour is defined %}{{ colour }}{% endif %}a film"}, "names no column"),
        (
            {"item": "{{ titel }} {{ year }} {% if colour %}{{ brand | upper }}{% endif %}"},
            "prompt.item .* names brand, colour, titel, which is not there; choose from item, raw_id, title, year",
        ),
        ({"item": "{{ title }}{{ title.__init__.__globals__ }}"}, "prompt.item cannot be rendered .* unsafe"),
        ({"item": "{{ title }}{{ self.__init__.__globals__ }}"}, "prompt.item cannot be rendered .* unsafe"),
        ({"item": "{{ title }}{% include '/etc/passwd' %}"}, "prompt.item cannot be rendered .* no loader"),
        ({"item": "{{ title }}{% for i in range(10**9) %}a{% endfor %}"}, "names range, which is not there"),
        ({"profile": "{{ age }}{{ ''.__class__ }}"}, "prompt.profile cannot be rendered .* unsafe"),
        ({"profile": "{% for i in range(10**9) %}a{% endfor %}"}, "prompt.profile .* names range, which is not"),
        ({"annotation": "{{ rating.__class__.__mro__ }}"}, "prompt.annotation cannot be rendered .* unsafe"),
        ({"history": 0}, "prompt.history is 0 and prompt.profile '' names no column .*; raise history, or name"),
        ({"history": 0, "profile": "Someone."}, "prompt.history is 0 and prompt.profile 'Someone.' names no column"),
        (
            {"history": 0, "profile": "{% if job is defined %}{{ job }}{% endif %}"},
            "prompt.history is 0 and prompt.profile .* names no column",
        ),
        ({"lead": "-"}, "prompt.lead: '-' must start with a space"),
        ({"history": -1}, "prompt.history is -1: input should be greater than"),
        ({"instructoin": "Saw:"}, "unknown key prompt.instructoin; did you mean instruction"),
    ],
    ids=str,
)
def test_a_prompt_that_cannot_work_is_refused_in_one_sentence(
    bytewise: PreTrainedTokenizerBase, options: dict[str, Any], message: str
) -> None:
    users = pl.DataFrame({"user": [0], "raw_id": ["x"], "age": [7]})
    with pytest.raises(RecpeftError, match=message) as caught:
        PromptAssembler(bytewise, LETTERS, users=users, interactions=interactions_of(ROWS), **options)
    assert "\n" not in str(caught.value)


def test_unknown_columns_are_found_before_anything_is_rendered(
    bytewise: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_assembler, "render", lambda *_: pytest.fail("texts were rendered"))
    for options in ({"item": "{{ title }} {{ titel }}"}, {"profile": "{{ age }} {{ jop }}"}):
        with pytest.raises(RecpeftError, match=r"names (titel|jop), which is not there"):
            PromptAssembler(bytewise, LETTERS, users=pl.DataFrame({"age": [7]}), **options)


def test_a_template_may_ask_whether_a_column_is_there(bytewise: PreTrainedTokenizerBase) -> None:
    item = "{{ title }}{% if colour is defined %} {{ colour }}{% endif %}{{ size | default('!') }}"
    assert bytewise.decode(PromptAssembler(bytewise, LETTERS, item=item).item(0)) == "<A!>"


def test_a_template_may_name_what_jinja_has_of_its_own(bytewise: PreTrainedTokenizerBase) -> None:
    item = "{% for n in [3, 4] %}{{ title }}{{ loop.index }}{% endfor %}"
    assert bytewise.decode(PromptAssembler(bytewise, LETTERS, item=item).item(0)) == "<A1A2>"


def test_under_the_ablation_ids_the_items_template_is_not_read(bytewise: PreTrainedTokenizerBase) -> None:
    prompt = PromptAssembler(bytewise, LETTERS, item="a film by {{ nobody }}", ablation="ids")
    assert bytewise.decode(prompt.item(0)) == "<100>"


def test_an_instruction_that_leaves_no_room_is_refused(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    instruction = ("watched " * 30).strip()
    with pytest.raises(RecpeftError, match=r"prompt\.max_user_tokens is 32 but the instruction alone takes 32"):
        PromptAssembler(tiny, tiny_items, instruction=instruction, max_user_tokens=32)


def test_an_item_limit_below_the_special_tokens_is_refused(
    tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame
) -> None:
    with pytest.raises(RecpeftError, match=r"max_item_tokens is 2 but 2 special tokens .* at least 3"):
        PromptAssembler(tiny, tiny_items, max_item_tokens=2)


@pytest.mark.parametrize("title", ["", "  \t\n"])
def test_an_item_without_text_is_named(tiny: PreTrainedTokenizerBase, title: str) -> None:
    items = items_of(["Toy Story", title], [1995, None])
    with pytest.raises(RecpeftError, match="leaves no text for item '101'"):
        PromptAssembler(tiny, items)


def test_an_item_of_which_the_tokenizer_leaves_nothing_is_named(tiny: PreTrainedTokenizerBase) -> None:
    # BERT's normaliser drops control characters
    with pytest.raises(RecpeftError, match="item '101' has the text '\\\\x07', of which the tokenizer leaves"):
        PromptAssembler(tiny, items_of(["Toy Story", "\x07"], [1995, None]))


def test_a_users_text_is_never_empty() -> None:
    prompt = PromptAssembler(bytewise_tokenizer(special=False), items_of(["Toy Story"], [None]), instruction="")
    assert prompt.user([0]) != []
    with pytest.raises(RecpeftError, match="a user's text is empty"):
        prompt.user([])


# The hash ----------------------------------------------------------------------------------------------

BASE: dict[str, Any] = {"disliked": "Disliked:"}
CHANGES: dict[str, Any] = {
    "template": "de",
    "instruction": "Seen:",
    "profile": "{{ age }}",
    "item": "{{ title }}",
    "annotation": "({{ rating }}/5)",
    "lead": "\n- ",
    "separator": ":",
    "disliked": "Not liked:",
    "liked_from": 3.0,
    "ending": "Next:",
    "history": 3,
    "order": "newest_first",
    "max_user_tokens": 40,
    "max_item_tokens": 4,
    "ablation": "ids",
}
OF_FORMS: dict[str, tuple[Any, set[Form]]] = {
    "question": ("Is {{ item }} next? Answer:", {"pair", "closed_pair"}),
    "list_question": ("Next? {{ items }} Answer:", {"list"}),
    "choice": ("({{ letter }})", {"list"}),
    "chat": (True, {"pair", "closed_pair", "list"}),
}
"""Option -> another value, and the forms of whose texts it is a part."""


def test_every_option_of_the_config_is_tried_here() -> None:
    assert {*CHANGES, *OF_FORMS} == set(PromptConfig.model_fields)


@pytest.fixture
def hash_of(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> Callable[..., str]:
    users = pl.DataFrame({"user": [0], "raw_id": ["x"], "age": [7]})

    def hash_of(**prompt: Any) -> str:
        interactions = interactions_of(ROWS)
        return PromptAssembler(tiny, tiny_items, users=users, interactions=interactions, **prompt).hash

    return hash_of


@pytest.mark.parametrize("option", CHANGES)
def test_the_hash_changes_with_each_option(hash_of: Callable[..., str], option: str) -> None:
    assert CHANGES[option] != getattr(PromptConfig(**BASE), option)
    assert hash_of(**BASE | {option: CHANGES[option]}) != hash_of(**BASE)


def test_each_ablation_has_a_hash_of_its_own(hash_of: Callable[..., str]) -> None:
    ablations = ["none", "anonymous_titles", "shuffled_titles", "ids", "shuffled_history"]
    assert len({hash_of(ablation=ablation) for ablation in ablations}) == len(ablations)


def test_a_template_has_the_hash_of_its_keys_written_out(hash_of: Callable[..., str]) -> None:
    written = PromptConfig(template="zh").model_dump(exclude={"template"})
    assert hash_of(**written) == hash_of(template="zh")
    assert hash_of(**PromptConfig(template="zh").model_dump()) == hash_of(template="zh")


def test_the_hash_does_not_change_with_what_no_text_depends_on(hash_of: Callable[..., str]) -> None:
    assert hash_of(liked_from=3.0) == hash_of()  # without a list of the disliked


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("option", OF_FORMS)
def test_the_hash_changes_with_what_is_asked_where_that_is_read(
    tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame, form: Form, option: str
) -> None:
    value, forms = OF_FORMS[option]
    if option == "chat" and form not in forms:
        return  # which is refused
    tokenizer = chatting(tiny)
    default = PromptAssembler(tokenizer, tiny_items, form=form)
    other = PromptAssembler(tokenizer, tiny_items, form=form, **{option: value})
    assert (other.hash != default.hash) is (form in forms)


def test_each_form_has_a_hash_of_its_own(hash_of: Callable[..., str]) -> None:
    assert len({hash_of(form=form) for form in get_args(Form)}) == len(get_args(Form))


def test_where_items_alone_are_read_the_hash_is_of_their_texts_alone(hash_of: Callable[..., str]) -> None:
    assert hash_of(form="items", history=3, instruction="Seen:") == hash_of(form="items")
    assert hash_of(form="items", max_item_tokens=9) != hash_of(form="items")
    assert hash_of(form="items", item="{{ title }}!") != hash_of(form="items")


def test_the_hash_changes_with_the_chat_template(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    hashes = set()
    for template in ("red {{ messages[0].content }} blue", "red {{ messages[0].content }} film"):
        prompt = PromptAssembler(chatting(tiny, template), tiny_items, form="list", chat=True)
        hashes.add(prompt.hash)
    assert len(hashes) == 2


def test_the_hash_changes_with_an_items_text(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    other = tiny_items.with_columns(title=pl.col("title").replace("Red", "Blue"))
    assert PromptAssembler(tiny, tiny_items).hash == PromptAssembler(tiny, tiny_items.clone()).hash
    assert PromptAssembler(tiny, tiny_items).hash != PromptAssembler(tiny, other).hash


def test_the_hash_changes_with_the_tokenizer(
    tiny: PreTrainedTokenizerBase, bytewise: PreTrainedTokenizerBase, tiny_items: pl.DataFrame
) -> None:
    assert PromptAssembler(tiny, tiny_items).hash != PromptAssembler(bytewise, tiny_items).hash


def test_the_defaults_are_those_of_the_config(tiny: PreTrainedTokenizerBase, tiny_items: pl.DataFrame) -> None:
    written = PromptAssembler(tiny, tiny_items, **PromptConfig().model_dump())
    assert written.hash == PromptAssembler(tiny, tiny_items).hash
