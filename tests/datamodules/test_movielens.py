from __future__ import annotations

import dataclasses
import random
import subprocess
import sys

import polars as pl
import pytest

from datamodules.movielens import Config, load
from recpeft.errors import RecpeftError


def read(folder):
    return load(Config(source="movielens", path=folder))


def rows_of(path):
    """An atomic file's rows without its header, by nothing but str.split."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]]


# --- what is read ---


def test_both_layouts_are_read_as_written(write, tmp_path):
    dataset = read(write(tmp_path))
    # ids are ranks of the raw ids as numbers: 1, 2, 10 (as text 10 would be second)
    assert dataset.items.to_dicts() == [
        {
            "item": 0,
            "raw_id": "1",
            "title": "Toy Story",
            "year": 1995,
            "categories": ["Animation", "Children's", "Comedy"],
        },
        {
            "item": 1,
            "raw_id": "2",
            "title": 'Shawshank "Redemption, The',
            "year": 1994,
            "categories": ["Drama"],
        },
        {
            "item": 2,
            "raw_id": "10",
            "title": "Misérables, Les",
            "year": 1995,
            "categories": ["Drama", "Musical"],
        },
    ]
    assert dataset.users.select("user", "raw_id", "age", "age_group", "gender", "occupation", "zip_code").rows() == [
        (0, "1", 24, "18-24", "M", "technician", "85711"),
        (1, "2", 17, "<18", "F", "other", "T8H1N"),
        (2, "10", 56, "56+", "F", "none", "0"),
    ]
    assert dataset.interactions.rows() == [
        (0, 0, 4.0, 881250950),
        (0, 2, 5.0, 881250950),
        (1, 0, 1.0, 881250948),
        (2, 1, 3.0, 881250949),
    ]
    assert dataset.interactions.schema == {
        "user": pl.Int32,
        "item": pl.Int32,
        "rating": pl.Float32,
        "timestamp": pl.Int64,
    }
    assert dataset.items.schema["year"] == pl.Int32
    assert dataset.items.schema["categories"] == pl.List(pl.String)


def test_age_groups_are_those_of_movielens_1m(write, tmp_path):
    ages = [7, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 73]
    people = [(str(number), str(age), "F", "none", "0") for number, age in enumerate(ages)]
    users = read(write(tmp_path, people=people, ratings=[("0", "1", "1", "1")])).users
    groups = ["<18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"]
    assert users["age_group"].to_list() == [group for group in groups for _ in range(2)]


def test_irregular_films_are_the_same_in_both_layouts(write_both, tmp_path):
    write_atomic, write_official = write_both
    ratings = [("1", "267", "3", "1")]
    atomic = [
        ("267", "unkonwn", "unkonwn", "unknown"),
        ("1373", "Good Morning", "1971", "unknown"),
        ("1412", "Land Before Time III: The Time (1995)", "V", "Animation Children's"),
    ]
    official = [
        ("267", "unknown", "", "unknown"),
        ("1373", "Good  Morning", "1971", "unknown"),
        ("1412", "Land Before Time III: The Time (1995) (V)", "", "Animation Children's"),
    ]
    one = read(write_atomic(tmp_path / "a", films=atomic, ratings=ratings))
    two = read(write_official(tmp_path / "o", films=official, ratings=ratings))
    assert one.items.select("title", "year", "categories").rows() == [
        ("unknown", None, []),
        ("Good Morning", 1971, []),
        ("Land Before Time III: The Time", 1995, ["Animation", "Children's"]),
    ]
    assert one.items.equals(two.items)
    assert one.hash() == two.hash()


def test_order_of_rows_does_not_change_the_data(ml100k_dir, write_both, tmp_path):
    tables = [rows_of(ml100k_dir / f"ml-100k.{suffix}") for suffix in ("item", "user", "inter")]
    for table in tables:
        random.Random(0).shuffle(table)  # noqa: S311
    assert read(write_both[0](tmp_path, *tables)).hash() == read(ml100k_dir).hash()


def test_hash_does_not_depend_on_the_order_of_interactions(write, tmp_path):
    dataset = read(write(tmp_path))
    turned = dataclasses.replace(dataset, interactions=dataset.interactions.reverse())
    assert turned.hash() == dataset.hash()


def test_a_changed_value_changes_the_hash(write, tmp_path):
    before = read(write(tmp_path)).hash()
    seen = {before}
    changes = [
        {
            "films": [
                ("1", "Toy Story 2", "1995", "Drama"),
                ("2", "B", "1994", "Drama"),
                ("10", "C", "1995", "Drama"),
            ]
        },
        {"people": [(user, "25", "M", "other", "0") for user in ("1", "2", "10")]},
        {"ratings": [("1", "1", "4", "881250950")]},
        {"ratings": [("1", "1", "4", "881250951")]},
        {"ratings": [("1", "1", "5", "881250950")]},
    ]
    for change in changes:
        seen.add(read(write(tmp_path, **change)).hash())
    assert len(seen) == 1 + len(changes)
    assert read(write(tmp_path)).hash() == before


def test_utf8_copies_and_windows_line_ends_of_the_official_files_are_read(write_both, tmp_path):
    folder = write_both[1](tmp_path)
    before = read(folder).hash()
    text = (folder / "u.item").read_text(encoding="latin-1")
    (folder / "u.item").write_bytes(text.replace("\n", "\r\n").encode("utf-8"))
    assert read(folder).hash() == before


def test_config_is_read_without_polars_or_torch():
    code = "import datamodules.movielens, sys; sys.exit(bool({'polars', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the real data ---


def test_ml100k_has_its_known_size(ml100k_dir):
    dataset = read(ml100k_dir)
    assert (dataset.interactions.height, dataset.num_users, dataset.num_items) == (100_000, 943, 1_682)
    # counted with awk on u.data and u.user
    assert dataset.interactions["rating"].value_counts().sort("rating")["count"].to_list() == [
        6110,
        11370,
        27145,
        34174,
        21201,
    ]
    assert dataset.users["gender"].value_counts().sort("gender").rows() == [("F", 273), ("M", 670)]


def test_three_quarters_of_ml100k_share_user_and_second(ml100k_dir):
    seen = {}
    for user, _, _, second in rows_of(ml100k_dir / "ml-100k.inter"):
        seen[user, second] = seen.get((user, second), 0) + 1
    share = sum(count for count in seen.values() if count > 1) / 100_000
    assert share == pytest.approx(0.76, abs=0.005)
    rows = read(ml100k_dir).interactions
    assert rows.select("user", "timestamp").is_duplicated().mean() == share


def test_ml100k_is_the_same_in_both_layouts(ml100k_dir, write_both, tmp_path):
    films = []
    for item, title, year, genres in rows_of(ml100k_dir / "ml-100k.item"):
        if item == "267":
            title, year = "unknown", ""
        if item == "1412":
            title, year = "Land Before Time III: The Time of the Great Giving (1995) (V)", ""
        films.append((item, title, year, genres))
    people = rows_of(ml100k_dir / "ml-100k.user")
    ratings = rows_of(ml100k_dir / "ml-100k.inter")
    official = read(write_both[1](tmp_path, films, people, ratings))
    real = read(ml100k_dir)
    assert official.hash() == real.hash()
    assert real.items.filter(pl.col("raw_id") == "543")["title"].item() == "Misérables, Les"
    assert real.items["year"].null_count() == 1
    assert not real.items["title"].str.contains(r"\(\d{4}\)").any()


# --- bad input: one sentence with file, row, what was got and the remedy ---


def assert_refused(folder, *fragments):
    with pytest.raises(RecpeftError) as refused:
        read(folder)
    message = str(refused.value)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message


def test_a_missing_folder_names_the_command_that_fetches(tmp_path):
    assert_refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "`recpeft data fetch ml-100k`")


def test_a_missing_file_is_named(write, tmp_path):
    folder = write(tmp_path)
    removed = next(folder.glob("*.user"))
    removed.unlink()
    assert_refused(folder, f"lacks {removed.name} ", "`recpeft data fetch ml-100k`")


BAD_RATINGS = [
    ([("1", "99", "3", "1")] * 2, "item 99 is in no row of the item file (the first of 2 such rows)"),
    ([("99", "1", "3", "1")], "user 99 is in no row of the user file"),
    ([("1", "1", "3")], "the number of columns is 3"),
    ([("1", "1", "3", "1", "x")], "the number of columns is 5"),
    ([("1", "x", "3", "1")], "item_id is 'x'; it must be a whole number"),
    ([("1", "1", "good", "1")], "rating is 'good'; it must be a number"),
    ([("1", "1", "nan", "1")], "rating is nan; ratings are 1 to 5"),
    ([("1", "1", "6", "1")], "rating is 6.0; ratings are 1 to 5"),
    ([("1", "1", "3", "")], "timestamp is ''"),
    ([("1", "1", "3", "-1")], "timestamp is -1"),
    ([("2", "1", "3", "1"), ("2", "1", "3", "1")], "user 2 and item 1 are there already"),
]


@pytest.mark.parametrize(("ratings", "found"), BAD_RATINGS)
def test_a_bad_interaction_is_named_with_file_and_row(write, tmp_path, ratings, found):
    folder = write(tmp_path, ratings=[("1", "2", "5", "7"), *ratings])
    file = next(path for path in folder.iterdir() if path.name in ("u.data", "ml-100k.inter"))
    row = 2 + (file.name == "ml-100k.inter") + (len(ratings) == 2 and "already" in found)
    assert_refused(folder, f"{file}, row {row}: {found}")


@pytest.mark.parametrize(
    ("tables", "file", "found"),
    [
        ({"films": [("1", " ", "1995", "Drama")]}, "item", "item 1 has no title"),
        (
            {"films": [("1", "A", "1995", "Drama"), ("1", "B", "1995", "Drama")]},
            "item",
            "item 1 is there already",
        ),
        ({"people": [("1", "x", "F", "none", "0")]}, "user", "age is 'x'; it must be a whole number"),
        ({"people": [("1", "9", "?", "none", "0")]}, "user", "gender is '?'; write F or M"),
        ({"people": [("7", "9", "F", "", "0")]}, "user", "user 7 has no occupation"),
        ({"people": [("7", "9", "F", "none")]}, "user", "the number of columns is 4"),
        ({"people": []}, "user", "holds no rows"),
        ({"ratings": []}, "", "holds no rows"),
        ({"films": []}, "item", "holds no rows"),
    ],
)
def test_a_bad_user_or_item_is_named_with_its_file(write, tmp_path, tables, file, found):
    assert_refused(write(tmp_path, **tables), f".{file}", found)


def test_a_genre_or_year_that_is_none_is_named(write_both, tmp_path):
    write_atomic, write_official = write_both
    assert_refused(
        write_atomic(tmp_path / "1", films=[("1", "A", "1995", "Drama Soap")]), "row 2: class is 'Drama Soap'"
    )
    assert_refused(write_atomic(tmp_path / "2", films=[("1", "A", "199x", "Drama")]), "row 2: release_year is '199x'")
    folder = write_official(tmp_path / "3")
    (folder / "u.item").write_text((folder / "u.item").read_text("latin-1").replace("|1|", "|2|", 1), "latin-1")
    assert_refused(folder, "row 1: item 1 has a genre flag")


def test_a_header_or_encoding_that_is_wrong_is_named(write_both, tmp_path):
    folder = write_both[0](tmp_path)
    text = (folder / "ml-100k.item").read_text("utf-8")
    (folder / "ml-100k.item").write_text(text.replace("movie_title", "name"), "utf-8")
    assert_refused(folder, "ml-100k.item, row 1: the header lacks movie_title")
    (folder / "ml-100k.item").write_text(text, "latin-1")
    assert_refused(folder, "ml-100k.item, row 4: the text is not UTF-8")
