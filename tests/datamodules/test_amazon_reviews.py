from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from datamodules._filters import apply
from datamodules._prompts import render
from datamodules._splits import split
from datamodules.amazon_reviews import Config, load
from experiments import load_runs
from experiments.config.run import TextRun
from recpeft.errors import RecpeftError


def old_review(user, item, rating, time, **more):
    """As 2014 and 2018 have it."""
    more = {"reviewText": 'A "quoted", long\ntext', "summary": "Fine", **more}
    return {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time, **more}


def new_review(user, item, rating, time, **more):
    """As 2023 has it; a variant's asin is another than its parent's."""
    more = {"title": "Fine", "text": "A text", "images": [], "helpful_vote": 0, "verified_purchase": True, **more}
    return {"user_id": user, "asin": f"{item}X", "parent_asin": item, "rating": rating, "timestamp": time, **more}


SECOND = 1_588_687_728
REVIEWS = {
    "2014": [old_review("U2", "B1", 5.0, SECOND), old_review("U1", "B2", 1.0, SECOND + 1, helpful=[2, 3])],
    "2018": [
        old_review("U2", "B1", 5.0, SECOND, verified=True, vote="1,234", style={"Color:": " Black"}),
        old_review("U1", "B2", 1, SECOND + 1, image=["https://example.org/1.jpg"]),
    ],
    "2023": [new_review("U2", "B1", 5.0, SECOND * 1000 + 923), new_review("U1", "B2", 1, SECOND * 1000 + 1000)],
}
METADATA = {
    "2014": [
        {
            "asin": "B1",
            "title": 'Rock &amp; Roll,\n "Vol. 1"',
            "price": 12.99,
            "brand": "Café",
            "categories": [["Music", "Rock"], ["Music", "Gifts &amp; More"]],
            "description": "It's&nbsp;<b>loud</b>",
            "salesRank": {"Music": 7},
        },
        {"asin": "B2", "title": "Plain", "categories": [[""]], "related": {"also_bought": ["B1"]}},
        {"asin": "B3", "title": "Never reviewed"},
    ],
    "2018": [
        {
            "asin": "B1",
            "title": 'Rock &amp; Roll,\n "Vol. 1"',
            "price": "$12.99",
            "brand": "Café",
            "category": ["Music", "Rock", "</span></span>", "Music", "Gifts &amp; More"],
            "description": ["It's&nbsp;<b>loud</b>", ""],
            "main_cat": "Music",
        },
        {"asin": "B2", "title": "Plain", "category": [], "description": [], "price": "", "brand": ""},
        {"asin": "B3", "title": "Never reviewed"},
    ],
    "2023": [
        {
            "parent_asin": "B1",
            "title": 'Rock &amp; Roll,\n "Vol. 1"',
            "main_category": "Digital Music",
            "store": "Café",
            "categories": ["Music", "Rock", "Gifts &amp; More"],
            "features": [],
            "description": ["It's", "<b>loud</b>"],
            "price": 12.99,
            "average_rating": 4.5,
        },
        {"parent_asin": "B2", "title": "Plain", "categories": [], "description": [], "price": None, "store": None},
        {"parent_asin": "B3", "title": "Never reviewed"},
    ],
}


def lines_of(values, literal=False):
    """Values as a file has them; text stands for itself."""
    write = repr if literal else json.dumps
    return "".join(f"{value if isinstance(value, str) else write(value)}\n" for value in values).encode()


def write(folder, version, reviews=None, metadata=None, *, literal=False):
    """A category's two files, packed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values, by_repr in (
        ("Music.json.gz", REVIEWS[version] if reviews is None else reviews, False),
        ("meta_Music.json.gz", METADATA[version] if metadata is None else metadata, literal),
    ):
        (folder / name).write_bytes(gzip.compress(lines_of(values, by_repr)))
    return folder


def read(folder, version="2023", **options):
    options = {"reviews": "Music.json.gz", "metadata": "meta_Music.json.gz", **options}
    return load(Config(source="amazon_reviews", path=folder, version=version, **options))


# --- what is read ---


@pytest.mark.parametrize(("version", "literal"), [("2014", True), ("2014", False), ("2018", False), ("2023", False)])
def test_each_version_is_read_as_written(tmp_path, version, literal):
    dataset = read(write(tmp_path, version, literal=literal), version)
    assert dataset.name == f"amazon-{version}-Music"
    assert dataset.users.rows() == [(0, "U1"), (1, "U2")]
    assert dataset.items.to_dicts() == [
        {
            "item": 0,
            "raw_id": "B1",
            "title": 'Rock & Roll, "Vol. 1"',
            "brand": "Café",
            "categories": ["Music", "Rock", "Gifts & More"],
            "description": "It's loud",
            "price": 12.99,
        },
        {
            "item": 1,
            "raw_id": "B2",
            "title": "Plain",
            "brand": None,
            "categories": [],
            "description": None,
            "price": None,
        },
    ]
    assert dataset.interactions.rows() == [
        (0, 1, 1.0, SECOND + 1),
        (1, 0, 5.0, SECOND + (0.923 if version == "2023" else 0)),
    ]
    assert dataset.interactions.schema == {
        "user": pl.Int32,
        "item": pl.Int32,
        "rating": pl.Float32,
        "timestamp": pl.Float64 if version == "2023" else pl.Int64,
    }
    assert dataset.items.schema["categories"] == pl.List(pl.String)
    assert dataset.items.schema["price"] == pl.Float64
    assert dataset.dropped == {}


@pytest.mark.parametrize("packed", [True, False])
def test_a_csv_of_2023_gives_the_same_data(tmp_path, packed):
    folder = write(tmp_path, "2023")
    rows = [f"{row['user_id']},{row['parent_asin']},{row['rating']},{row['timestamp']}" for row in REVIEWS["2023"]]
    text = "\n".join(["user_id,parent_asin,rating,timestamp", *rows, ""]).encode()
    name = "Music.csv.gz" if packed else "Music.csv"
    (folder / name).write_bytes(gzip.compress(text) if packed else text)
    assert read(folder, reviews=name).hash() == read(folder).hash()


def test_unpacked_files_are_read_too(tmp_path):
    folder = write(tmp_path, "2023")
    for name in ("Music.json", "meta_Music.json"):
        (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    unpacked = read(folder, reviews="Music.json", metadata="meta_Music.json")
    assert unpacked.hash() == read(folder).hash()


@pytest.mark.parametrize(
    ("price", "found"),
    [
        ("$12.99", 12.99),
        ("$1,299.00", 1299.0),
        ("7", 7.0),
        (0.5, 0.5),
        ("$5.99 - $9.99", None),
        ("from 12.99", None),
        ("—", None),
        ("", None),
        (None, None),
        (["$5"], None),
        (float("nan"), None),
        (".a-box-inner{background-color:#fff} $3.99", None),
    ],
)
def test_a_price_is_one_amount_or_null(tmp_path, price, found):
    items = [{"parent_asin": "B1", "title": "A", "price": price}, {"parent_asin": "B2", "title": "B"}]
    assert read(write(tmp_path, "2023", metadata=items)).items["price"].to_list() == [found, None]


def test_the_first_of_repeated_metadata_is_kept_and_the_others_are_counted(tmp_path):
    rows = [{"asin": "B1", "title": title} for title in ("first", "second", "third")]
    never = [{"asin": "B3", "title": "Never reviewed"}] * 2
    dataset = read(write(tmp_path, "2018", metadata=[*rows, {"asin": "B2", "title": "B"}, *never]), "2018")
    assert dataset.items["title"].to_list() == ["first", "B"]
    assert dataset.dropped == {"repeated_metadata": 2}


def test_javascript_in_a_title_of_2018_is_no_title(tmp_path):
    script = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"
    metadata = [{"asin": "B1", "title": script}, {"asin": "B2", "title": "B"}]
    folder = write(tmp_path, "2018", metadata=metadata)
    assert_refused(folder, "2018", "meta_Music.json.gz: row 1: item B1 has no title", "data.empty_text: drop")


def test_missing_titles_and_metadata_are_dropped_and_counted_if_asked_for(tmp_path):
    reviews = [new_review("U1", item, 4, SECOND * 1000) for item in ("B1", "B2", "B4", "B5")]
    metadata = [{"parent_asin": "B1", "title": "A"}, {"parent_asin": "B2", "title": " "}, {"parent_asin": "B5"}]
    folder = write(tmp_path, "2023", reviews, metadata)
    assert_refused(folder, "2023", "2 problems: row 2: item B2 has no title", "row 3: item B5 has no title")
    assert_refused(folder, "2023", "Music.json.gz: 3 problems: row 2: item B2 is in no row", empty_text="drop")
    dataset = read(folder, empty_text="drop", unknown_ids="drop")
    assert dataset.items["title"].to_list() == ["A"]
    assert dataset.dropped == {"items_without_title": 2, "interactions_of_unknown_items": 3}


@pytest.mark.parametrize(("duplicates", "ratings"), [("first", [2.0]), ("last", [3.0]), ("keep", [1.0, 2.0, 3.0])])
def test_a_product_reviewed_again_is_refused_or_treated_as_asked_for(tmp_path, duplicates, ratings):
    times = [(1, 20), (2, 10), (3, 30)]
    reviews = [new_review("U1", "B1", rating, (SECOND + time) * 1000) for rating, time in times]
    folder = write(tmp_path, "2023", reviews)
    assert_refused(folder, "2023", "2 problems: row 2: user U1 and item B1 are there already")
    assert sorted(read(folder, duplicates=duplicates).interactions["rating"]) == ratings


def test_config_is_read_without_polars_or_torch():
    code = "import datamodules.amazon_reviews, sys; sys.exit(bool({'polars', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- bad input: one sentence with file, row, what was got and the remedy ---


def assert_refused(folder, version, *fragments, **options):
    with pytest.raises(RecpeftError) as refused:
        read(folder, version, **options)
    message = str(refused.value)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message


def test_missing_files_are_all_named_with_where_they_are_from(tmp_path):
    assert_refused(None, "2014", "data.path is missing", "Music.json.gz", "https://jmcauley.ucsd.edu/data/amazon/")
    both = "lacks Music.json.gz, meta_Music.json.gz"
    assert_refused(tmp_path, "2018", str(tmp_path), both, "https://nijianmo.github.io/amazon/")
    (write(tmp_path, "2023") / "Music.json.gz").unlink()
    assert_refused(tmp_path, "2023", "lacks Music.json.gz;", "https://amazon-reviews-2023.github.io/")


@pytest.mark.parametrize(
    ("review", "found"),
    [
        ('{"user_id": "U1", "parent_asin"', "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ('{"user_id": "U1", "parent_asin": "B1", "rating": NaN, "timestamp": 1588687728923}', "no JSON object"),
        (new_review("U1", "B1", "nan", SECOND * 1000), "rating is nan; it must be finite"),
        (new_review("U1", "B1", "-inf", SECOND * 1000), "rating is -inf; it must be finite"),
        (new_review("U1", "B1", "good", SECOND * 1000), "rating is 'good'; it must be a number"),
        (new_review("U1", "B1", [5], SECOND * 1000), "rating is '[5]'; it must be a number"),
        (new_review("U1", "B1", 6, SECOND * 1000), "rating is 6; ratings are 0 to 5"),
        (new_review("U1", "B1", None, SECOND * 1000), "no rating"),
        ({"user_id": "U1", "parent_asin": "B1", "timestamp": SECOND * 1000}, "no rating"),
        (new_review(None, "B1", 5, SECOND * 1000), "no user id"),
        (new_review("U1", None, 5, SECOND * 1000), "no item id"),
        (new_review("U1", "B1", 5, None), "no timestamp"),
        (new_review("U1", "B1", 5, "yesterday"), "timestamp is 'yesterday'"),
        (new_review("U1", "B1", 5, -1000), "timestamp is -1000"),
        (new_review("U1", "B1", 5, SECOND * 1_000_000), f"timestamp is {SECOND * 1_000_000}"),
        (new_review("U1", "B4", 5, SECOND * 1000), "item B4 is in no row of the item file"),
    ],
)
def test_a_bad_review_is_named_with_file_and_row(tmp_path, review, found):
    folder = write(tmp_path, "2023", [*REVIEWS["2023"], review, new_review("U3", "B1", 2, SECOND * 1000)])
    assert_refused(folder, "2023", f"{folder / 'Music.json.gz'}: row 3: {found}")


@pytest.mark.parametrize("version", ["2014", "2018"])
@pytest.mark.parametrize(
    ("time", "found"),
    [
        (SECOND * 1000, f"unixReviewTime is {SECOND * 1000}, which is no time in seconds"),
        (-1, "unixReviewTime is -1"),
    ],
)
def test_milliseconds_are_refused_where_times_are_in_seconds(tmp_path, version, time, found):
    folder = write(tmp_path, version, [*REVIEWS[version], old_review("U3", "B1", 5, time)])
    assert_refused(folder, version, f"{folder / 'Music.json.gz'}: row 3: {found}")


def test_seconds_are_refused_where_times_are_in_milliseconds(tmp_path):
    folder = write(tmp_path, "2023", [new_review("U1", "B1", 5, SECOND), new_review("U2", "B2", 5, SECOND + 1)])
    assert_refused(folder, "2023", "Music.json.gz: the latest timestamp is 1588687 s", "2023", "check data.version")


def test_a_files_problems_are_told_at_once(tmp_path):
    bad = [new_review(f"U{number}", "B1", 9, SECOND * 1000) for number in range(12)]
    folder = write(tmp_path, "2023", [*REVIEWS["2023"], *bad, new_review("U1", "B1", "bad", 1)])
    assert_refused(folder, "2023", "13 problems: row 3: rating is 9", "row 12: rating is 9", "; and 3 more.")
    metadata = [*METADATA["2023"], "{'parent_asin'", {"title": "No id"}, {"parent_asin": "B1", "title": "Again"}]
    metadata[1] = {"parent_asin": "B2", "title": ""}
    folder = write(tmp_path, "2023", metadata=metadata)
    assert_refused(
        folder,
        "2023",
        "meta_Music.json.gz: 3 problems: row 2: item B2 has no title",
        "row 4: no JSON object",
        "row 5: parent_asin is None",
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"parent_asin": "B1", "title": 7}, "title is '7'; it must be text"),
        ({"parent_asin": "B1", "title": "A", "store": {"name": "B"}}, "store is"),
        ({"parent_asin": "B1", "title": "A", "categories": [["A"], 3]}, "categories is '3'"),
        ({"parent_asin": "B1", "title": "A", "description": [True]}, "description is 'True'"),
        ({"parent_asin": 7, "title": "A"}, "parent_asin is 7"),
        ({"asin": "B1", "title": "A"}, "parent_asin is None; give the item's id, or check data.version"),
        ('["B1"]', "no JSON object"),
        ("{'parent_asin': 'B1', 'title': 'A'}", "no JSON object"),
    ],
)
def test_bad_metadata_are_named_with_file_and_row(tmp_path, value, found):
    folder = write(tmp_path, "2023", metadata=[METADATA["2023"][1], value])
    assert_refused(folder, "2023", f"{folder / 'meta_Music.json.gz'}: row 2: {found}")


def test_a_line_of_2014_that_is_neither_json_nor_a_dictionary_is_named(tmp_path):
    bad = ["{'asin': 'B4', 'title': open('x')}", "{'asin': ", "('asin', 'B4')"]
    folder = write(tmp_path, "2014", metadata=[*METADATA["2014"], *bad], literal=True)
    assert_refused(folder, "2014", "3 problems: row 4: no JSON or Python object", "row 5: no JSON", "row 6: no JSON")


def test_another_versions_reviews_are_named_by_the_keys_they_lack(tmp_path):
    folder = write(tmp_path, "2023", reviews=REVIEWS["2018"])
    assert_refused(folder, "2023", "has no user_id, parent_asin, rating, timestamp in any row", "data.version")
    (folder / "Music.csv").write_text("user,item,rating,timestamp\nU1,B1,5,1\n")
    assert_refused(folder, "2023", "Music.csv has no column user_id, parent_asin", reviews="Music.csv")


def test_wrong_encodings_are_named(tmp_path):
    folder = write(tmp_path, "2023")
    latin = [json.dumps({**row, "store": "Café", "user_id": "Ü"}, ensure_ascii=False) for row in METADATA["2023"]]
    (folder / "latin.json").write_bytes("\n".join(latin).encode("latin-1"))
    assert_refused(folder, "2023", "latin.json: 3 problems: row 1: no JSON object in UTF-8", metadata="latin.json")
    assert_refused(folder, "2023", "latin.json: 3 problems: row 1: byte", "is not UTF-8", reviews="latin.json")


@pytest.mark.parametrize("option", ["reviews", "metadata"])
def test_a_truncated_archive_is_named(tmp_path, option):
    folder = write(tmp_path, "2023")
    name = {"reviews": "Music.json.gz", "metadata": "meta_Music.json.gz"}[option]
    whole = (folder / name).read_bytes()
    for kept in (len(whole) // 2, len(whole) - 4):  # within the text, and within the checksum at its end
        (folder / name).write_bytes(whole[:kept])
        assert_refused(folder, "2023", f"{folder / name} could not be read")
    (folder / "cut.csv.gz").write_bytes(gzip.compress(b"user_id,parent_asin,rating,timestamp\n" * 100)[:-12])
    assert_refused(folder, "2023", "cut.csv.gz could not be read", reviews="cut.csv.gz")


def test_empty_files_are_named(tmp_path):
    folder = write(tmp_path, "2023", metadata=[])
    assert_refused(folder, "2023", "item B2 is in no row of the item file")
    for data in (b"", gzip.compress(b"")):
        (folder / "Music.json.gz").write_bytes(data)
        assert_refused(folder, "2023", "Music.json.gz")


# --- the example ---


def test_the_shops_example_runs_through_on_tiny_files(tmp_path):
    # five users who bought the same five games, one after the other; each game's metadata are irregular
    reviews = [
        new_review(f"U{user}", f"B{item}", 4 + item % 2, (SECOND + 10 * item + user) * 1000)
        for user in range(5)
        for item in range(5)
    ]
    reviews += [reviews[0], new_review("U1", "B9", 5, SECOND * 1000)]
    metadata = [{"parent_asin": f"B{item}", "title": f"Game {item}", "categories": []} for item in range(4)]
    metadata.append({"parent_asin": "B4", "title": "Game &amp; Watch", "store": "N", "categories": ["Games", "Old"]})
    metadata.append({"parent_asin": "B9", "title": None})
    (tmp_path / "Video_Games.jsonl.gz").write_bytes(gzip.compress(lines_of(reviews)))
    (tmp_path / "meta_Video_Games.jsonl.gz").write_bytes(gzip.compress(lines_of(metadata)))
    example = Path(__file__).parents[2] / "experiments" / "configs" / "shops.yaml"
    for config in load_runs(example, [f"data.path={tmp_path}"]):
        dataset, steps = apply(load(config.data), config.data.filters)
        parts = split(dataset, config.data.split)
        assert steps
        assert dataset.dropped["duplicates"] == 1
        assert (parts.train.height, parts.validation.height, parts.test.height) == (15, 5, 5)
        if isinstance(config, TextRun):
            texts = render(dataset.items, config.prompt.item, "prompt.item")
            assert (texts[0], texts[4]) == ("Game 0", "N: Old, Game & Watch")
