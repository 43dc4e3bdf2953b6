from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoTokenizer

from datamodules._assembler import PromptAssembler
from datamodules._filters import apply
from datamodules._prompts import render
from datamodules._splits import split
from datamodules.movielens import Config, load
from experiments import load_runs
from experiments.config.run import TextRun
from recpeft.errors import RecpeftError


def read(folder, **options):
    return load(Config(source="movielens", path=folder, **options))


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


# --- 1M, and 20M and later ---

USERS_1M = ["1::F::1::10::48067", "2::M::56::16::70072", "10::M::25::0::55117"]
MOVIES_1M = [
    "1::Toy Story (1995)::Animation|Children's|Comedy",
    '2::"Shawshank, "Redemption", The (1994)::Drama',
    "10::Misérables,  Les (1995)::Musical|Drama",
]
RATINGS_1M = ["10::2::3::978300760", "1::10::5::978302109", "1::1::4::978301968"]


def write_1m(folder, users=USERS_1M, movies=MOVIES_1M, ratings=RATINGS_1M):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("users", users), ("movies", movies), ("ratings", ratings)):
        (folder / f"{name}.dat").write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
    return folder


MOVIES = [
    "1,Toy Story (1995),Adventure|Animation",
    '2,"Shawshank ""Redemption"", The (1994)",Drama',
    "10,Misérables: Les &c.,(no genres listed)",
    "11,Doctor Who (2006–2007),IMAX",
]
RATINGS_CSV = ["7,2,0.5,1147880044", "7,10,5.0,1147868817", "70,1,3.5,1147868828"]
TAGS = [
    *("7,1,Pixar,1", "70,1,pixar ,2", "7,1, FUN,1", "70,1,toys,1", "70,1,,1"),
    *(f"7,2,tag {letter},1" for letter in "kjihgfedcba"),
    '70,2,"tag  k",3',
    "7,999,nowhere,1",
]


def write_csv(folder, movies=MOVIES, ratings=RATINGS_CSV, tags=TAGS):
    headers = {
        "movies": ("movieId,title,genres", movies),
        "ratings": ("userId,movieId,rating,timestamp", ratings),
        "tags": ("userId,movieId,tag,timestamp", tags),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (header, lines) in headers.items():
        (folder / f"{name}.csv").write_bytes("\r\n".join([header, *lines, ""]).encode())
    return folder


def test_1m_is_read_with_its_codes_as_words(tmp_path):
    dataset = read(write_1m(tmp_path), version="ml-1m")
    assert dataset.name == "ml-1m"
    assert dataset.users.rows() == [
        (0, "1", "<18", "F", "K-12 student", "48067"),
        (1, "2", "56+", "M", "self-employed", "70072"),
        (2, "10", "25-34", "M", "other", "55117"),
    ]
    assert dataset.users.columns == ["user", "raw_id", "age_group", "gender", "occupation", "zip_code"]
    assert dataset.items.select("raw_id", "title", "year", "categories").rows() == [
        ("1", "Toy Story", 1995, ["Animation", "Children's", "Comedy"]),
        ("2", '"Shawshank, "Redemption", The', 1994, ["Drama"]),
        ("10", "Misérables, Les", 1995, ["Musical", "Drama"]),
    ]
    assert dataset.interactions.rows() == [(0, 0, 4.0, 978301968), (0, 2, 5.0, 978302109), (2, 1, 3.0, 978300760)]


def test_1m_has_the_age_groups_and_occupations_of_its_readme(tmp_path):
    ages = [1, 18, 25, 35, 45, 50, 56]
    users = [f"{code + 1}::F::{ages[code % 7]}::{code}::0" for code in range(21)]
    table = read(write_1m(tmp_path, users=users, ratings=["1::1::4::1"]), version="ml-1m").users
    assert table["age_group"].to_list() == ["<18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"] * 3
    # some of the README's list, by their numbers there
    words = dict(enumerate(table["occupation"]))
    assert (words[1], words[6], words[12], words[17], words[20]) == (
        "academic/educator",
        "doctor/health care",
        "programmer",
        "technician/engineer",
        "writer",
    )
    assert len(set(words.values())) == 21


@pytest.mark.parametrize("version", ["ml-20m", "ml-25m", "ml-32m", "ml-latest-small"])
def test_later_versions_are_read_from_csv(tmp_path, version):
    dataset = read(write_csv(tmp_path), version=version)
    assert dataset.name == version
    assert dataset.items.columns == ["item", "raw_id", "title", "year", "categories"]
    assert dataset.items.drop("item").rows() == [
        ("1", "Toy Story", 1995, ["Adventure", "Animation"]),
        ("2", 'Shawshank "Redemption", The', 1994, ["Drama"]),
        ("10", "Misérables: Les &c.", None, []),
        ("11", "Doctor Who (2006–2007)", None, ["IMAX"]),
    ]
    assert dataset.users.rows() == [(0, "7"), (1, "70")]
    assert dataset.interactions.rows() == [(0, 1, 0.5, 1147880044), (0, 2, 5.0, 1147868817), (1, 0, 3.5, 1147868828)]
    assert dataset.items.schema["categories"] == pl.List(pl.String)


def test_tags_are_the_ten_most_frequent_and_equal_ones_in_alphabetical_order(tmp_path):
    items = read(write_csv(tmp_path), version="ml-25m", tags=True).items
    assert items["tags"].to_list() == [
        ["pixar", "fun", "toys"],
        # k is there twice; j, the last of the others, is the eleventh
        ["tag k", *(f"tag {letter}" for letter in "abcdefghi")],
        [],
        [],
    ]


def test_a_version_that_has_no_tags_refuses_them():
    for version in ("ml-100k", "ml-1m"):
        with pytest.raises(ValueError, match=f"tags is true, but {version} has none"):
            Config(source="movielens", version=version, tags=True)


def test_a_version_that_cannot_be_fetched_names_its_files_and_where_they_are_from(tmp_path):
    url = "https://files.grouplens.org/datasets/movielens/"
    assert_refused(None, "data.path is missing", f"{url}ml-32m.zip", "ratings.csv, movies.csv", version="ml-32m")
    assert_refused(tmp_path / "nowhere", "is not a folder", f"{url}ml-1m.zip", "users.dat", version="ml-1m")
    folder = write_csv(tmp_path)
    for name in ("movies.csv", "tags.csv"):
        (folder / name).unlink()
    assert_refused(folder, "lacks movies.csv, tags.csv of the ml-25m files", version="ml-25m", tags=True)
    assert_refused(folder, "lacks movies.csv of the ml-25m files", version="ml-25m")
    (write_csv(folder) / "tags.csv").unlink()
    assert_refused(
        folder,
        "lacks tags.csv",
        "ratings.csv, movies.csv, tags.csv, or set data.tags: false",
        version="ml-25m",
        tags=True,
    )


@pytest.mark.parametrize(
    ("table", "lines", "found"),
    [
        ("users", ["1::F::17::0::0"], "users.dat: row 1: age is '17'"),
        ("users", ["1::F::18::21::0"], "users.dat: row 1: occupation is '21'"),
        ("users", ["1::X::18::2::0"], "users.dat: row 1: gender is 'X'"),
        ("users", ["1::F::18::2::0", "2::F::18::2"], "users.dat: row 2: 4 cells, where there are 5 columns"),
        ("users", ["1::F::18::2::0", "1::M::18::2::0"], "users.dat: row 2: user 1 is there already"),
        ("movies", ["1::A (1990)::Drama", "2::B::1990::Drama"], "movies.dat: row 2: 4 cells"),
        ("movies", ["1::A (1990)::Drama", "2::(1990)::Drama"], "movies.dat: row 2: item 2 has no title"),
        ("movies", ["1::A (1990)::"], "movies.dat: row 1: item 1 has no genres"),
        ("ratings", ["1::1::0.5::1"], "ratings.dat: row 1: rating is 0.5; ratings are 1 to 5"),
        ("ratings", ["1::1::5::1", "1::1::5::2"], "ratings.dat: row 2: user 1 and item 1 are there already"),
        ("ratings", ["1::9::5::1"], "ratings.dat: row 1: item 9 is in no row of the item file"),
    ],
)
def test_a_bad_row_of_1m_is_named(tmp_path, table, lines, found):
    assert_refused(write_1m(tmp_path, **{table: lines}), found, version="ml-1m")


@pytest.mark.parametrize(
    ("table", "lines", "found"),
    [
        ("ratings", ["1,1,0,1"], "ratings.csv: row 2: rating is 0; ratings are 0.5 to 5"),
        ("ratings", ["1,1,nan,1"], "ratings.csv: row 2: rating is nan; it must be finite"),
        ("ratings", ["1,1,4,1", "1,2,4,1147880044000"], "row 3: timestamp is 1147880044000, which is no time in seco"),
        ("ratings", ["1,1,4"], "ratings.csv: row 2: 3 cells, where there are 4 columns"),
        ("ratings", ["u1,1,4,1"], "ratings.csv: row 2: user is 'u1'; it must be a whole number"),
        ("ratings", ["1,12,4,1"], "ratings.csv: row 2: item 12 is in no row of the item file"),
        ("movies", ["1,A (1990),Drama", "one,B (1990),Drama"], "movies.csv: row 3: item is 'one'"),
        ("movies", ["1,,Drama"], "movies.csv: row 2: item 1 has no title"),
        ("movies", ["1,A,Drama", "1,B,Drama"], "movies.csv: row 3: item 1 is there already"),
    ],
)
def test_a_bad_row_of_a_later_version_is_named(tmp_path, table, lines, found):
    assert_refused(write_csv(tmp_path, **{table: lines}), found, version="ml-25m")


def test_a_column_that_is_missing_or_an_encoding_that_is_wrong_is_named_in_a_later_version(tmp_path):
    folder = write_csv(tmp_path)
    text = (folder / "movies.csv").read_text("utf-8")
    (folder / "movies.csv").write_text(text.replace("title", "name"), "utf-8")
    assert_refused(folder, "movies.csv has no column title; it has movieId, name, genres", version="ml-25m")
    (folder / "movies.csv").write_bytes(text.replace("–", "-").encode("latin-1"))
    assert_refused(folder, "movies.csv: row 4: byte 7 is not UTF-8", version="ml-25m")
    folder = write_csv(tmp_path)
    (folder / "ratings.csv").write_text("userId,movieId,rating\n1,1,4\n")
    assert_refused(folder, "ratings.csv has no column timestamp", version="ml-25m")


def test_the_films_example_runs_through_on_tiny_files(tmp_path):
    # six users rate six films each: four before 2018, one in either half of it
    days = [
        date(2015, 1, 1),
        date(2016, 1, 1),
        date(2017, 1, 1),
        date(2017, 12, 31),
        date(2018, 3, 1),
        date(2018, 9, 1),
    ]
    times = [int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) for day in days]
    ratings = [f"{user},{film},{4 + film % 2},{times[film]}" for user in range(6) for film in range(6)]
    movies = [f"{film},Film {film} (2000),Drama" for film in range(6)]
    folder = write_csv(tmp_path, movies=movies, ratings=ratings, tags=[f"1,{film},dark,1" for film in range(6)])
    example = Path(__file__).parents[2] / "experiments" / "configs" / "films.yaml"
    for config in load_runs(example, [f"data.path={folder}"]):
        dataset, steps = apply(load(config.data), config.data.filters)
        parts = split(dataset, config.data.split)
        assert steps
        assert (parts.train.height, parts.validation.height, parts.test.height) == (24, 6, 6)
        if isinstance(config, TextRun):
            texts = render(dataset.items, config.prompt.item, "prompt.item")
            assert texts[0] == "Film 0 (2000), Drama: dark"


def test_the_films_example_needs_no_tags(tmp_path, tiny_backbone):
    folder = write_csv(tmp_path)
    (folder / "tags.csv").unlink()
    example = Path(__file__).parents[2] / "experiments" / "configs" / "films.yaml"
    config = load_runs(example, [f"data.path={folder}", "data.tags=false"])[-1]
    data, tokenizer = load(config.data), AutoTokenizer.from_pretrained(tiny_backbone)
    texts = PromptAssembler(tokenizer, data.items, optional=data.optional, item=config.prompt.item).item_texts
    assert texts[0] == "Toy Story (1995), Adventure Animation"
    with pytest.raises(RecpeftError, match=r"names tags, which is not there"):  # who does not ask wants them
        PromptAssembler(tokenizer, data.items, optional=data.optional, item="{{ title }} {{ tags | join(' ') }}")


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


def assert_refused(folder, *fragments, **options):
    with pytest.raises(RecpeftError) as refused:
        read(folder, **options)
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
    ([("1", "99", "3", "1")], "item 99 is in no row of the item file"),
    ([("99", "1", "3", "1")], "user 99 is in no row of the user file"),
    ([("1", "1", "3")], "3 cells, where there are 4 columns"),
    ([("1", "1", "3", "1", "x")], "5 cells, where there are 4 columns"),
    ([("1", "x", "3", "1")], "item is 'x'; it must be a whole number"),
    ([("1.5", "1", "3", "1")], "user is '1.5'; it must be a whole number"),
    ([("", "1", "3", "1")], "no user id"),
    ([("1", "1", "good", "1")], "rating is 'good'; it must be a number"),
    ([("1", "1", "nan", "1")], "rating is nan; it must be finite"),
    ([("1", "1", "-inf", "1")], "rating is -inf; it must be finite"),
    ([("1", "1", "6", "1")], "rating is 6; ratings are 1 to 5"),
    ([("1", "1", "0.5", "1")], "rating is 0.5; ratings are 1 to 5"),
    ([("1", "1", "", "1")], "no rating"),
    ([("1", "1", "3", "")], "no timestamp"),
    ([("1", "1", "3", "soon")], "timestamp is 'soon'"),
    ([("1", "1", "3", "881250949000")], "timestamp is 881250949000, which is no time in seconds"),
    ([("1", "1", "3", "-1")], "timestamp is -1"),
    ([("2", "1", "3", "1"), ("2", "1", "3", "1")], "user 2 and item 1 are there already"),
]


@pytest.mark.parametrize(("ratings", "found"), BAD_RATINGS)
def test_a_bad_interaction_is_named_with_file_and_row(write, tmp_path, ratings, found):
    folder = write(tmp_path, ratings=[("1", "2", "5", "7"), *ratings])
    file = next(path for path in folder.iterdir() if path.name in ("u.data", "ml-100k.inter"))
    row = 2 + (file.name == "ml-100k.inter") + (len(ratings) == 2 and "already" in found)
    assert_refused(folder, f"{file}: row {row}: {found}")


def test_a_files_problems_are_told_at_once_ten_of_them_with_their_rows(write, tmp_path):
    ratings = [("1", "1", "6", "1"), ("2", "1", "nan", "1"), *[("x", "1", "3", "1")] * 10]
    folder = write(tmp_path / "ratings", ratings=ratings)
    assert_refused(folder, "12 problems: row", "rating is 6;", "rating is nan;", "user is 'x'", "; and 2 more.")
    people = [("1", "old", "?", "none", "0"), ("2", "24", "M", "", "0"), ("2", "24", "M", "none", "0")]
    folder = write(tmp_path / "people", people=people)
    assert_refused(
        folder, "4 problems", "age is 'old'", "gender is '?'", "has no occupation", "user 2 is there already"
    )


def test_an_unknown_film_or_an_empty_title_is_dropped_and_counted_if_asked_for(write, tmp_path):
    ratings = [("1", "99", "3", "1"), ("1", "1", "4", "2"), ("99", "1", "3", "1"), ("2", "2", "3", "1")]
    films = [("1", "Toy Story", "1995", "Drama"), ("2", " ", "1994", "Drama")]
    folder = write(tmp_path, ratings=ratings, films=films)
    dataset = read(folder, unknown_ids="drop", empty_text="drop")
    assert dataset.dropped == {
        "items_without_title": 1,
        "interactions_of_unknown_users": 1,
        "interactions_of_unknown_items": 2,
    }
    assert dataset.interactions.rows() == [(0, 0, 4.0, 2)]


@pytest.mark.parametrize(("duplicates", "ratings"), [("first", [2.0]), ("last", [4.0]), ("keep", [3.0, 2.0, 4.0])])
def test_the_first_or_last_rating_by_time_is_kept_or_all_are(write, tmp_path, duplicates, ratings):
    rows = [("1", "1", "3", "20"), ("1", "1", "2", "10"), ("1", "1", "4", "30")]
    found = read(write(tmp_path, ratings=rows), duplicates=duplicates).interactions["rating"].to_list()
    assert sorted(found) == sorted(ratings)


EMPTY = ("holds no rows", "holds no interactions", "is empty")


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
        ({"people": [("1", "9", "F", "none", "0"), ("7", "9", "F", "none")]}, "user", "4 cells, where there are 5"),
        ({"people": []}, "user", EMPTY),
        ({"ratings": []}, "", EMPTY),
        ({"films": []}, "item", EMPTY),
    ],
)
def test_a_bad_user_or_item_is_named_with_its_file(write, tmp_path, tables, file, found):
    with pytest.raises(RecpeftError, match=f"[.]{file}") as refused:
        read(write(tmp_path, **tables))
    assert any(text in str(refused.value) for text in ([found] if isinstance(found, str) else found))


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
    assert_refused(folder, "ml-100k.item: row 4: byte 7 is not UTF-8")
