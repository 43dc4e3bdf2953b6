"""Prompts as lists of segments; each segment is tokenised once, and prompts join their ids.

The ids of the joined segments are those of the whole text, so the shared part of two prompts is an exact token
prefix, and truncation drops whole old history items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from datamodules import _token_cache
from datamodules._dataset import frame_hash
from datamodules._hashing import splitmix64
from datamodules._histories import Histories
from datamodules._prompts import (
    Form,
    PromptConfig,
    ablated,
    choices,
    names_in_conditions,
    names_read,
    parts_of_question,
    render,
    variables,
)
from datamodules._ragged import Ragged, concatenate, offsets_of, ranges
from recpeft.config import digest
from recpeft.errors import RecpeftError
from recpeft.validation import validate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptAssembler:
    """Assembles the token ids of one data set's user and item texts with one tokenizer.

    Args:
        items: item table; row i is item i.
        users: user table, for ``profile``.
        interactions: interactions whose ratings and times ``annotation`` may use; row order does not matter.
        optional: columns that ``prompt.item`` may test for (``{% if tags %}``) although ``items`` lacks them, each with
            the value that it reads then.
        cache: folder of the token cache; None keeps ids only in memory.
        form: how the formulation reads user and item.
            ``single``: each as a text of its own.
            ``items``: the same, but only items are read.
            ``pair``: a user's text ends with the part of ``prompt.question`` before the item, and an item's text is the
            rest of the question, to be appended to it.
            ``closed_pair``: the same, with the tokenizer's closing tokens at the end, and its separator tokens between
            the two texts: BERT's ``[CLS] user [SEP] item [SEP]``.
            ``list``: a user's text ends with the part of ``prompt.list_question`` before the items; then follow
            ``choices`` and ``items`` alternately, then ``tail``.
        prompt: fields of ``PromptConfig``.
    Raises:
        RecpeftError: a field of ``prompt`` is wrong, a template names a missing column, texts do not depend on the item
            or on the user, an item's text is empty, the instruction leaves no room for a history item, or
            ``prompt.chat`` is set although there is no chat template or users and items are not read together.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        items: pl.DataFrame,
        *,
        users: pl.DataFrame | None = None,
        interactions: pl.DataFrame | None = None,
        optional: Mapping[str, pl.Expr] = MappingProxyType({}),
        cache: Path | None = None,
        form: Form = "single",
        **prompt: Any,
    ) -> None:
        self.form = form
        self.config = config = validate(PromptConfig, prompt, "prompt.")
        self._liked_from = 4.0 if config.liked_from is None else config.liked_from
        lacking = {name: empty for name, empty in optional.items() if name not in items.columns}
        asked = names_in_conditions(config.item)
        self._item_table = items.with_columns(**{name: empty for name, empty in lacking.items() if name in asked})
        self._user_table = users
        self._tokenizer = tokenizer
        self._check_names()
        self._notes = _Notes.of(interactions, config.annotation) if config.annotation else None
        opening, between, closing = _special_tokens(tokenizer)
        ask, gap, answer = "", "", ""
        if form == "list":
            ask, gap, answer = parts_of_question(config.list_question, "items")
        elif self.read_together:
            ask, gap, answer = parts_of_question(config.question, "item")
        before = ""
        if config.chat:
            before, behind = self._chat_template(touches_item=not answer)
            answer += behind
            opening, between, closing = [], [], []  # the chat template has its own
        self._answer = answer
        self._lead = " " if form == "list" else gap
        self._choice_texts = [f"{gap}{text}" for text in choices(config.choice)] if form == "list" else []
        self._choices = [self._ids(text) for text in self._choice_texts]
        # A text at the start, or after a special token, may have other ids than after text.
        self._stands_alone = not self.read_together or (form == "closed_pair" and bool(between))
        end = self._ids(answer)
        self.tail = end if form == "list" else []
        """Token ids after the last item, if ``form`` is ``list``; else empty."""
        self._around: tuple[list[int], list[int]] = {
            "single": (opening, closing),
            "items": (opening, closing),
            "pair": ([], end),
            "closed_pair": (between, [*end, *closing]),
            "list": ([], []),
        }[form]
        after = [] if self.read_together else closing
        # Tokens around an item that follows a user's text are not counted: only the item itself is truncated.
        around = 0 if self.read_together else len(opening) + len(closing)
        if config.max_item_tokens <= around:
            raise RecpeftError(
                f"prompt.max_item_tokens is {config.max_item_tokens} but {around} special tokens go around each text; "
                f"allow at least {around + 1}."
            )
        tokens = self._tokens(cache, before)
        self.cache_was_used = tokens.found
        bodies = tokens.texts["items"]
        self._check_bodies(bodies)
        self.num_truncated_items = int((bodies.lengths + around > config.max_item_tokens).sum())
        self._bodies = bodies.cut(config.max_item_tokens - around)
        fixed = [
            [*opening, *self._ids(f"{before}{config.instruction}", within=False)],
            self._ids(_behind(config.disliked)),
            [*self._ids(_behind(config.ending)), *self._ids(_behind(ask))],
            after,
            # After a profile, the instruction is a segment within the text.
            *([opening, self._ids(_behind(config.instruction))] if config.profile else []),
        ]
        # All pieces of users' texts, concatenated, and the start of each kind.
        pieces = {"fixed": Ragged.of(fixed)} | {kind: ids for kind, ids in tokens.texts.items() if kind != "items"}
        self._pieces = concatenate(list(pieces.values()))
        starts = offsets_of(np.asarray([len(part) for part in pieces.values()], np.int64))
        self._start = {kind: int(start) for kind, start in zip(pieces, starts[:-1], strict=True)}
        self._lengths = self._pieces.lengths
        self._room = self._room_for_items()
        unused = _without_effect(config, form)
        self.hash = digest(
            {
                "ids": tokens.hashes if form != "items" else tokens.hashes["items"],
                "fixed": fixed if form != "items" else form,
                "around": [opening, after, *self._around, *self._choices, *([self.tail] if self.tail else [])],
                "settings": {key: part for key, part in config.asked_for().items() if key not in unused},
            }
        )

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self._item_table.height

    @property
    def largest_id(self) -> int:
        """Largest token id of any text."""
        others = [*self._around, *self._choices, self.tail]
        return max(
            int(self._pieces.values.max()), int(self._bodies.values.max()), *(max(ids, default=0) for ids in others)
        )

    @property
    def read_together(self) -> bool:
        """True if an item's text, or a list of items, follows the user's text."""
        return self.form not in ("single", "items")

    @cached_property
    def item_texts(self) -> list[str]:
        """Text of each item."""
        config = self.config
        if config.ablation == "ids":
            return list(self._item_table["raw_id"])
        return render(ablated(self._item_table, config.ablation), config.item, "prompt.item")

    @property
    def num_proven(self) -> int:
        """Number of items whose ``tails`` suffice to verify the answers: 100 if all end in the same text, else all."""
        return 100 if self._answer else self.num_items

    def tails(self, count: int) -> list[str]:
        """Return the text from the item up to where the answer begins, for the first ``count`` items.

        It requires ``read_together``. In a list, the text starts with the last item's letter.
        """
        letter = self._choice_texts[-1] if self._choice_texts else ""
        return [f"{letter}{self._lead}{text}{self._answer}" for text in self.item_texts[:count]]

    def choices(self, count: int) -> list[list[int]]:
        """Return the token ids that precede each of ``count`` items, if ``form`` is ``list``.

        Raises:
            RecpeftError: there are fewer letters than ``count``.
        """
        if count > len(self._choices):
            raise RecpeftError(
                f"a list of {count} items was asked for, but prompt.choice has letters for {len(self._choices)}; "
                "ask for fewer."
            )
        return self._choices[:count]

    def item(self, item: int) -> list[int]:
        """Return the token ids of an item's text."""
        ids: list[int] = self.items(np.asarray([item]))[0].tolist()
        return ids

    def items(self, item: np.ndarray) -> Ragged:
        """Return the token ids of the texts of items (n,), with the tokens around each that ``form`` requires."""
        bodies = self._bodies.take(item)
        if not any(self._around):
            return bodies
        n = len(bodies)
        around = concatenate([bodies, Ragged.of(self._around)])
        order = np.stack([np.full(n, n), np.arange(n), np.full(n, n + 1)], axis=1).ravel()
        joined = around.take(order)
        return Ragged(joined.values, joined.offsets[::3])

    def user(self, history: Sequence[int], user: int = 0) -> list[int]:
        """Return the ids of a user's text from the items of ``history``, oldest first, without ratings or times."""
        histories = Histories.of_items([history])
        ids: list[int] = self.users(histories, np.asarray([0]), profiles=np.asarray([user]))[0].tolist()
        return ids

    def users(
        self,
        histories: Histories,
        user: np.ndarray,
        stop: np.ndarray | None = None,
        profiles: np.ndarray | None = None,
    ) -> Ragged:
        """Return the token ids of users' texts, each from the latest ``history`` items before a moment.

        Args:
            histories: interactions that the texts name.
            user: (n,) rows of ``histories``; a row may occur more than once.
            stop: (n,) number of the user's interactions before the moment; None is all.
            profiles: (n,) users whose profiles the texts contain; None is ``user``, -1 is no profile.
        """
        config = self.config
        profiles = user if profiles is None else profiles
        end = histories.offsets[user + 1] if stop is None else histories.offsets[user] + stop
        count = np.minimum(end - histories.offsets[user], config.history)
        position = ranges(end - count, count)  # (M,) the interactions of histories that are named, oldest first
        row = np.repeat(np.arange(len(user)), count)  # (M,) the text that names them
        pieces = self._item_pieces(histories, position)  # (M, 1 or 2)
        kept = self._fitting(row, pieces, self._room[profiles] if len(self._room) > 1 else self._room)
        order = self._order(row[kept], position[kept])
        row, position, pieces = row[kept][order], position[kept][order], pieces[kept][order]
        # A missing rating does not count as a dislike: NaN compares as False.
        disliked = histories.rating[position] < self._liked_from if config.disliked else np.zeros(len(row), bool)
        everyone = np.arange(len(user))
        sections = [(everyone, np.full(len(user), _INSTRUCTION))]
        if config.profile:
            profile = np.where(profiles < 0, _NOTHING, self._start["profiles"] + profiles)
            told = self._piece_lengths(profile) > 0
            sections = [
                (everyone, np.where(told, _OPENING, _NOTHING)),
                (everyone, profile),
                (everyone, np.where(told, _INSTRUCTION_BEHIND, _INSTRUCTION)),
            ]
        sections.append((row[~disliked], pieces[~disliked]))
        with_disliked = np.unique(row[disliked])
        sections.append((with_disliked, np.full(len(with_disliked), _DISLIKED)))
        sections.append((row[disliked], pieces[disliked]))
        sections += [(everyone, np.full(len(user), part)) for part in (_ENDING, _AFTER)]
        return self._joined(len(user), sections)

    # Pieces of a user's text ---------------------------------------------------------------------

    def _item_pieces(self, histories: Histories, position: np.ndarray) -> np.ndarray:
        """Return (M, 1) pieces, or (M, 2) with annotations."""
        item = histories.item[position]
        with_separator = self._start["segments"] + item
        if self._notes is None:
            return with_separator[:, None]
        note = self._notes.index(histories.rating[position], histories.timestamp[position])
        # The separator is part of the annotation's text: tokenised on its own, it could have other ids.
        segment = np.where(note < 0, with_separator, self._start["bare"] + item)
        return np.stack([segment, np.where(note < 0, _NOTHING, self._start["notes"] + note)], axis=1)

    def _fitting(self, row: np.ndarray, pieces: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Return (M,) bool: the latest items of each row that fit into its room; nothing older than a gap is kept."""
        lengths = self._piece_lengths(pieces).sum(axis=1)
        total = np.cumsum(lengths)
        ends = np.searchsorted(row, row, side="right") - 1 if len(row) else row  # last item of the same row
        to_newest = total[ends] - total + lengths
        return to_newest <= (room[row] if len(room) > 1 else room)

    def _order(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        if self.config.ablation == "shuffled_history":
            return np.lexsort((splitmix64(position.astype(np.uint64)), row))
        if self.config.order == "newest_first":
            return np.lexsort((-position, row))
        return np.arange(len(row))

    def _piece_lengths(self, pieces: np.ndarray) -> np.ndarray:
        return self._lengths[pieces] * (pieces != _NOTHING)

    def _joined(self, n: int, sections: list[tuple[np.ndarray, np.ndarray]]) -> Ragged:
        """Join the pieces of ``sections``, in their order, into n texts; a section is (row, piece (M,) or (M, P))."""
        flat = [(np.repeat(row, 1 if piece.ndim == 1 else piece.shape[1]), piece.ravel()) for row, piece in sections]
        row = np.concatenate([part for part, _ in flat])
        piece = np.concatenate([part for _, part in flat])
        row, piece = row[piece != _NOTHING], piece[piece != _NOTHING]
        piece = piece[np.argsort(row, kind="stable")]
        ids = self._pieces.take(piece)
        ends = offsets_of(np.bincount(row, minlength=n))
        texts = Ragged(ids.values, ids.offsets[ends])
        if n and not texts.lengths.all():
            raise RecpeftError(
                "a user's text is empty: no item of the history fits and there is no instruction; "
                "set prompt.instruction or raise prompt.max_user_tokens."
            )
        return texts

    def _room_for_items(self) -> np.ndarray:
        """Return the number of tokens left for items: (1,), or with profiles (U + 1,), the last for no profile."""
        limit = self.config.max_user_tokens
        room = np.asarray([limit - self._lengths[[_INSTRUCTION, _DISLIKED, _ENDING, _AFTER]].sum()])
        if self.config.profile:
            first = self._start["profiles"]
            of_users = self._lengths[first : first + self._user_table.height]  # type: ignore[union-attr]
            in_front = of_users + self._lengths[[_OPENING, _INSTRUCTION_BEHIND]].sum() - self._lengths[_INSTRUCTION]
            room = np.append(room - np.where(of_users > 0, in_front, 0), room)
        if room.min() <= 0:
            config = self.config
            counted = {
                "profile": config.profile,
                "instruction": True,
                "chat template": config.chat,
                "disliked": config.disliked,
                "ending": config.ending,
                "question": self.read_together,
            }
            *names, last = [name for name, has_tokens in counted.items() if has_tokens]
            what = f"{', '.join(names)} and {last} take" if names else f"the {last} alone takes"
            raise RecpeftError(
                f"prompt.max_user_tokens is {limit} but {what} {limit - room.min()}; raise it or shorten these texts."
            )
        return room

    # Texts and their ids -------------------------------------------------------------------------

    def _tokens(self, cache: Path | None, before: str) -> _token_cache.Tokens:
        """Return the token ids of the texts that differ between items or users.

        Args:
            before: the chat template's text before a user's text.
        """
        config, lead, separator = self.config, self.config.lead, self.config.separator
        texts: dict[str, Any] = {
            "items": lambda: [f"{self._lead}{text}" for text in self.item_texts],
            "segments": lambda: [f"{lead}{text}{separator}" for text in self.item_texts],
        }
        if self._notes is not None:
            notes = self._notes
            texts["bare"] = lambda: [f"{lead}{text}" for text in self.item_texts]
            texts["notes"] = lambda: [f" {text}{separator}" for text in notes.texts]
        if config.profile:
            assert self._user_table is not None
            users = self._user_table
            texts["profiles"] = lambda: [
                f"{before}{text}" if text else ""
                for text in render(users, config.profile, "prompt.profile", allow_empty=True)
            ]
        first = "items" if self._stands_alone else ""
        whole = (first, "profiles")
        if cache is None:
            return _token_cache.load_or_build(None, "", self._tokenizer, texts, whole)
        key = digest(
            {
                "tokenizer": _token_cache.identity(self._tokenizer),
                "template": config.model_dump(
                    include={"item", "profile", "annotation", "lead", "separator", "ablation"}
                ),
                "item": [self._lead, first],
                "items": frame_hash(self._item_table),
                "users": ["in front", before, frame_hash(users)] if config.profile else None,
                "notes": self._notes.texts if self._notes is not None else None,
            }
        )
        return _token_cache.load_or_build(cache, key, self._tokenizer, texts, whole)

    def _ids(self, text: str, within: bool = True) -> list[int]:
        found = _token_cache.tokenise(self._tokenizer, [text] if text else [], within=within)
        ids: list[int] = found.values.tolist()
        return ids

    def _check_names(self) -> None:
        """Check that templates name existing columns, and that users' texts and items' texts differ."""
        config, of_user = self.config, set()
        if config.profile:
            if self._user_table is None:
                raise RecpeftError("prompt.profile needs the table of users; give it, or leave profile out.")
            of_user = names_read("prompt.profile", config.profile, self._user_table.columns)
        if not config.history and not of_user:
            raise RecpeftError(
                f"prompt.history is 0 and prompt.profile {config.profile!r} names no column of the table of users, so "
                "that all users would have one text; raise history, or name a column."
            )
        # The ablation ``ids`` does not use the template.
        columns = self._item_table.columns
        if config.ablation != "ids" and not names_read("prompt.item", config.item, columns):
            raise RecpeftError(
                f"prompt.item {config.item!r} names no column, so that all items would have one text; name one of "
                f"{', '.join(columns)}."
            )

    def _chat_template(self, touches_item: bool) -> tuple[str, str]:
        """Return the chat template's text before the user's turn, and that after it up to the start of the answer.

        Args:
            touches_item: True if an item is the end of the user's turn.
        """
        if not self.read_together:
            raise RecpeftError(
                "prompt.chat is true, but the formulation reads users and items each as a text of its own, which is no "
                "turn of a conversation; set prompt.chat to false, or use one that reads them together (verbalizer)."
            )
        name = getattr(self._tokenizer, "name_or_path", "")
        whose = f"the tokenizer of {name!r}" if name else "the tokenizer"
        remedy = "set prompt.chat to false, or choose a backbone that was tuned for conversations"
        if not getattr(self._tokenizer, "chat_template", None):
            raise RecpeftError(f"prompt.chat is true, but {whose} has no chat template; {remedy}.")
        says = "@what-the-user-says@"
        try:
            whole = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": says}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template may raise anything
            raise RecpeftError(
                f"prompt.chat is true, but the chat template of {whose} cannot be rendered: {error}; {remedy}."
            ) from None
        before, *behind = whole.split(says)
        if len(behind) != 1:
            raise RecpeftError(
                f"prompt.chat is true, but the chat template of {whose} writes what the user says {len(behind)} times "
                f"and not once; {remedy}."
            )
        if touches_item and not behind[0].startswith((" ", "\n", *self._tokenizer.get_added_vocab())):
            raise RecpeftError(
                f"prompt.chat is true, and the chat template of {whose} goes on with {behind[0]!r}, whose tokens would "
                "depend on the item before it; end prompt's question in text, such as 'Answer:'."
            )
        return before, behind[0]

    def _check_bodies(self, bodies: Ragged) -> None:
        for item in np.flatnonzero(bodies.lengths == 0)[:1].tolist():
            raise RecpeftError(
                f"item {self._item_table['raw_id'][item]!r} has the text {self.item_texts[item]!r}, of which the "
                "tokenizer leaves nothing; change prompt.item or remove the item from the data."
            )


def _without_effect(config: PromptConfig, form: Form) -> set[str]:
    """Return the settings that no text depends on, or that others include: the template's keys, the chat's ids."""
    if form == "items":
        return set(PromptConfig.model_fields) - {"item", "max_item_tokens", "ablation"}
    asked = {"single": set(), "list": {"list_question", "choice"}}.get(form, {"question"})
    return {
        "template",
        "chat",
        *([] if config.disliked else ["liked_from"]),
        *({"question", "list_question", "choice"} - asked),
    }


_INSTRUCTION, _DISLIKED, _ENDING, _AFTER, _OPENING, _INSTRUCTION_BEHIND = range(6)
"""Indices of the fixed pieces; the last two exist only with profiles."""

_NOTHING = -1
"""Index of no piece."""


def _behind(text: str) -> str:
    """Return ``text`` as a segment after another: with a space before it unless it starts with white space."""
    return f" {text}" if text and not text[0].isspace() else text


@dataclass(frozen=True)
class _Notes:
    """The distinct annotations of interactions."""

    ratings: np.ndarray
    """Sorted ratings; empty if the template names no rating."""
    days: np.ndarray
    """Sorted days since 1970; empty if the template names no date."""
    codes: np.ndarray
    """(n,) sorted: index of the rating * len(days) + index of the day, for each text."""
    texts: list[str]

    @classmethod
    def of(cls, interactions: pl.DataFrame | None, template: str) -> _Notes:
        if interactions is None:
            raise RecpeftError("prompt.annotation needs the interactions; give them, or leave annotation out.")
        used = variables(template)
        rows = interactions.select(
            rating=pl.col("rating") if "rating" in used else pl.lit(None, pl.Float32),
            day=(pl.col("timestamp") // _DAY).cast(pl.Int64) if "date" in used else pl.lit(None, pl.Int64),
        )
        distinct = rows.unique().filter(pl.any_horizontal(pl.col("rating", "day").is_not_null()))
        distinct = distinct.sort("rating", "day", nulls_last=True)
        rating = distinct["rating"].fill_null(float("nan")).to_numpy()
        day = distinct["day"].fill_null(-1).to_numpy()
        nothing = np.empty(0, np.int64)
        ratings = np.unique(rating) if "rating" in used else nothing
        notes = cls(ratings, np.unique(day) if "date" in used else nothing, nothing, [])
        named = distinct.select(
            rating=pl.col("rating"), date=pl.from_epoch(pl.col("day").cast(pl.Int32), time_unit="d")
        )
        # 4.0 becomes 4 if the file has only whole stars, and Float32's 3.7 becomes 3.7, not 3.700000047683716.
        whole = interactions["rating"].drop_nulls()
        exact = pl.Int64 if (whole == whole.floor()).all() else pl.Float64
        named = named.with_columns(pl.col("rating").cast(pl.String).cast(pl.Float64).cast(exact))
        codes = notes._code(rating, day)
        texts = render(named, template, "prompt.annotation", allow_empty=True)
        order = np.argsort(codes)
        order = order[np.asarray([bool(text) for text in texts], bool)[order]]
        return cls(notes.ratings, notes.days, codes[order], [texts[place] for place in order.tolist()])

    def index(self, rating: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
        """Return the text's index for each interaction (M,); -1 if it has neither rating nor time of the template."""
        day = np.where(timestamp < 0, -1, timestamp // _DAY).astype(np.int64)
        if not len(self.codes):
            return np.full(len(rating), -1)
        code = self._code(rating, day)
        place = np.minimum(np.searchsorted(self.codes, code), len(self.codes) - 1)
        return np.where(self.codes[place] == code, place, -1)

    def _code(self, rating: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return the code of each pair (M,); -1 if its rating or its day is in no interaction."""
        by_rating, by_day = _place(self.ratings, rating), _place(self.days, day)
        return np.where((by_rating < 0) | (by_day < 0), -1, by_rating * max(len(self.days), 1) + by_day)


def _place(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the index of each of ``wanted`` in the sorted ``values``: -1 if missing; all 0 if ``values`` is empty."""
    if not len(values):
        return np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    equal = (values[place] == wanted) | (np.isnan(values[place]) & np.isnan(wanted))
    return np.where(equal, place, -1)


_DAY = 86_400


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """Return the special tokens before a text, between the two texts of a pair, and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]

    def split(ids: list[int]) -> tuple[list[int], list[int], list[int]]:
        starts = [i for i in range(len(ids)) if ids[i : i + len(bare)] == bare]
        first, last = starts[0], starts[-1]
        return ids[:first], ids[first + len(bare) : last], ids[last + len(bare) :]

    opening, _, closing = split(tokenizer("a")["input_ids"])
    _, between, _ = split(tokenizer("a", "a")["input_ids"])
    # Tokenizers such as Gemma's put the opening tokens before the second text too: there is no separator.
    opened_anew = opening and between[-len(opening) :] == opening
    return opening, [] if opened_anew else between, closing
