from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from datamodules import _filters
from datamodules._prompts import PromptConfig
from datamodules._splits import split
from datamodules.tabular import Config, load
from experiments import load_runs
from recpeft.errors import RecpeftError
from recpeft.validation import validate

CONFIGS = Path(__file__).resolve().parents[2] / "experiments" / "configs"

RATINGS = [(1, 10, 4.0, 100), (1, 20, 3.5, 200), (2, 10, 5.0, 300), (3, 30, 1.0, 400)]
ITEMS = [(10, "Heat", "Crime|Drama", 1995), (20, 'Up, "up"', "", 2009), (30, "Misérables", "Musical", 2012)]
USERS = [(1, 30, "M"), (2, 17, "F"), (3, 44, "F")]
TABLES = {
    "ratings": (["user", "film", "stars", "ts"], RATINGS),
    "films": (["film", "name", "genres", "year"], ITEMS),
    "people": (["user", "age", "gender"], USERS),
}
MAPPING = {
    "columns": {"user": "user", "item": "film", "rating": "stars", "timestamp": "ts"},
    "item_id": "film",
    "user_id": "user",
    "title": "name",
    "categories": "genres",
    "category_separator": "|",
}


def frame(name):
    columns, rows = TABLES[name]
    return pl.DataFrame(rows, columns, orient="row")


def write_csv(folder, name):
    frame(name).write_csv(folder / f"{name}.csv")
    return f"{name}.csv"


def write_gz(folder, name):
    text = frame(name).write_csv(separator="\t")
    (folder / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return f"{name}.tsv.gz"


def write_without_header(folder, name):
    frame(name).write_csv(folder / f"{name}.tsv", separator="\t", include_header=False)
    return f"{name}.tsv"


def write_latin_1(folder, name):
    (folder / f"{name}.csv").write_text(frame(name).write_csv(), encoding="latin-1")
    return f"{name}.csv"


def write_parquet(folder, name):
    frame(name).write_parquet(folder / f"{name}.parquet")
    return f"{name}.parquet"


def write_parts(folder, name):
    parts = folder / name
    parts.mkdir()
    table = frame(name)
    for number, part in enumerate((table[:2], table[2:])):
        part.write_parquet(parts / f"part-{number}.snappy.parquet")
        (parts / f".part-{number}.snappy.parquet.crc").write_bytes(b"crc")
    (parts / "_SUCCESS").touch()
    return name


def write_jsonl(folder, name):
    frame(name).write_ndjson(folder / f"{name}.jsonl")
    return f"{name}.jsonl"


HEADERS = {key: TABLES[name][0] for key, name in (("interactions", "ratings"), ("items", "films"), ("users", "people"))}
KINDS = {
    "csv": (write_csv, {}),
    "gz": (write_gz, {}),
    "no header": (write_without_header, {"header": HEADERS}),
    "latin-1": (write_latin_1, {"encoding": "latin-1"}),
    "parquet": (write_parquet, {}),
    "parts": (write_parts, {}),
    "jsonl": (write_jsonl, {}),
}


def read(folder, **options):
    return load(validate(Config, {"source": "tabular", "path": folder, **options}))


def read_films(folder, kind):
    writer, options = KINDS[kind]
    files = {key: writer(folder, name) for key, name in zip(HEADERS, ("ratings", "films", "people"), strict=True)}
    return read(folder, **files, **MAPPING, **options)


def refusal(folder, **options):
    with pytest.raises(RecpeftError) as error:
        read(folder, **options)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_files_give_the_same_data_set(tmp_path, kind):
    data = read_films(tmp_path, kind)
    assert data.interactions.rows() == [(0, 0, 4.0, 100), (0, 1, 3.5, 200), (1, 0, 5.0, 300), (2, 2, 1.0, 400)]
    assert data.items.to_dicts() == [
        {"item": 0, "raw_id": "10", "year": 1995, "title": "Heat", "categories": ["Crime", "Drama"]},
        {"item": 1, "raw_id": "20", "year": 2009, "title": 'Up, "up"', "categories": []},
        {"item": 2, "raw_id": "30", "year": 2012, "title": "Misérables", "categories": ["Musical"]},
    ]
    assert data.users.rows() == [(0, "1", 30, "M"), (1, "2", 17, "F"), (2, "3", 44, "F")]
    (tmp_path / "csv").mkdir()
    assert data.hash() == read_films(tmp_path / "csv", "csv").hash()


def test_several_files_are_one_table(tmp_path):
    for number, part in enumerate((frame("ratings")[:3], frame("ratings")[3:])):
        part.write_csv(tmp_path / f"{number}.csv")
    data = read(tmp_path, interactions=["0.csv", "1.csv"], columns=MAPPING["columns"])
    assert data.interactions.height == 4
    assert data.items.columns == ["item", "raw_id"]


def test_columns_become_numbers_where_every_value_is_one(tmp_path):
    items = "item_id,whole,fraction,code,mixed,none,sign\n1,1,1.5,007,1,,-1\n2,,2e3,1,x,,0\n"
    (tmp_path / "i.csv").write_text(items)
    (tmp_path / "r.csv").write_text("user_id,item_id\n1,1\n")
    data = read(tmp_path, interactions="r.csv", items="i.csv")
    assert data.items.drop("item").to_dicts() == [
        {"raw_id": "1", "whole": 1, "fraction": 1.5, "code": "007", "mixed": "1", "none": None, "sign": -1},
        {"raw_id": "2", "whole": None, "fraction": 2000.0, "code": "1", "mixed": "x", "none": None, "sign": 0},
    ]


def test_lists_are_categories_as_they_are_and_objects_are_left_out(tmp_path):
    rows = [
        {"item_id": "a", "title": "A", "tags": ["x", "", "y"], "details": {"brand": "b"}},
        {"item_id": "b", "title": "B", "tags": None, "details": {"brand": None}},
    ]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.csv").write_text("user_id,item_id\n1,a\n")
    data = read(tmp_path, interactions="r.csv", items="i.jsonl", title="title", categories="tags")
    assert data.items.columns == ["item", "raw_id", "title", "categories"]
    assert data.items["categories"].to_list() == [["x", "y"], []]
    data.hash()


def test_text_without_a_separator_is_one_category(tmp_path):
    (tmp_path / "i.csv").write_text("item_id,genre\n1,Sci Fi\n2,\n")
    (tmp_path / "r.csv").write_text("user_id,item_id\n1,1\n")
    data = read(tmp_path, interactions="r.csv", items="i.csv", categories="genre")
    assert data.items["categories"].to_list() == [["Sci Fi"], []]


# --- columns within the interactions ---

FLAT = "user_id,item_id,gender,title,genre\n1,a,M,Heat,\n2,a,F,Heat,Crime\n1,b,,Up,Family\n"


def test_text_in_the_interactions_becomes_the_items_and_users(tmp_path):
    (tmp_path / "r.csv").write_text(FLAT)
    data = read(
        tmp_path,
        interactions="r.csv",
        item_columns=["title", "genre"],
        user_columns=["gender"],
        title="title",
        categories="genre",
    )
    assert data.items.rows() == [(0, "a", "Heat", ["Crime"]), (1, "b", "Up", ["Family"])]
    assert data.users.rows() == [(0, "1", "M"), (1, "2", "F")]


def test_rows_that_say_different_things_of_an_item_are_told_and_counted(tmp_path):
    (tmp_path / "r.csv").write_text(FLAT + "3,a,M,Hate,Crime\n4,a,M,Hate,Crime\n5,b,M,Up,Drama\n")
    text = refusal(tmp_path, interactions="r.csv", item_columns=["title", "genre"], title="title")
    assert text.startswith(f"{tmp_path}/r.csv: 3 problems: row 5: item a has the title 'Hate', but 'Heat' in a row")
    assert "row 7: item b has the genre 'Drama', but 'Family' in a row before" in text
    text = refusal(tmp_path, interactions="r.csv", user_columns=["title"])
    assert "user 1 has the title 'Up', but 'Heat' in a row before" in text


# --- what is refused ---


def test_a_missing_column_is_told_with_those_there_are(tmp_path):
    write_csv(tmp_path, "ratings")
    text = refusal(tmp_path, interactions="ratings.csv", columns={"user": "user", "item": "movie", "rating": "star"})
    assert text.startswith(f"{tmp_path}/ratings.csv has no column movie, star; it has user, film, stars, ts; ")
    write_csv(tmp_path, "films")
    files = {"interactions": "ratings.csv", "items": "films.csv", "columns": MAPPING["columns"]}
    assert "films.csv has no column item_id; it has film, name" in refusal(tmp_path, **files)
    assert "has no column titel; " in refusal(tmp_path, **files, item_id="film", title="titel")
    assert "has no column kinds; " in refusal(tmp_path, **files, item_id="film", categories="kinds")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_bad_rows_are_told_whatever_the_kind(tmp_path, kind):
    table = pl.DataFrame(
        {"user_id": [1, 2, 3], "item_id": [1, 2, None], "r": [5.0, float("inf"), 1.0], "t": [1, -2, 3]}
    )
    if kind == "jsonl":
        table = table.with_columns(pl.col("r").replace(float("inf"), None).cast(pl.String).fill_null("inf"))
    path = tmp_path / f"r.{kind}"
    {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[kind](path)
    text = refusal(tmp_path, interactions=path.name, columns={"rating": "r", "timestamp": "t"})
    first = 2 if kind == "csv" else 1
    assert text.startswith(f"{path}: 3 problems: row {first + 1}: r is ")
    assert f"row {first + 1}: t is -2; " in text
    assert f"row {first + 2}: no item id" in text


def test_milliseconds_are_told_and_the_remedy_helps(tmp_path):
    (tmp_path / "r.csv").write_text("user_id,item_id,t\n1,1,1262304000999\n")
    files = {"interactions": "r.csv", "columns": {"timestamp": "t"}}
    assert "no time in seconds; set data.time_unit to what it counts: ms, where" in refusal(tmp_path, **files)
    (tmp_path / "us.csv").write_text("user_id,item_id,t\n1,1,1262304000999999\n")
    text = refusal(tmp_path, **{**files, "interactions": "us.csv"}, time_unit="ms")
    assert "no time in ms; set data.time_unit to what it counts" in text
    assert read(tmp_path, **files, time_unit="ms").interactions["timestamp"].to_list() == [1262304000.999]


def test_latin_1_is_told_and_the_remedy_helps(tmp_path):
    write_latin_1(tmp_path, "films")
    write_csv(tmp_path, "ratings")
    files = {"interactions": "ratings.csv", "items": "films.csv", **MAPPING}
    text = refusal(tmp_path, **files)
    assert f"{tmp_path}/films.csv: row 4: byte 7 is not UTF-8; " in text
    assert "data.encoding: latin-1" in text
    assert "Misérables" in read(tmp_path, **files, encoding="latin-1").items["title"].to_list()


def test_ids_as_floats_are_refused_with_a_sentence(tmp_path):
    frame("ratings").with_columns(pl.col("film").cast(pl.Float64)).write_parquet(tmp_path / "r.parquet")
    text = refusal(tmp_path, interactions="r.parquet", columns=MAPPING["columns"])
    assert "r.parquet: the column film holds Float64, but ids are whole numbers or text" in text


def test_an_attribute_under_a_name_that_is_taken_is_told(tmp_path):
    (tmp_path / "r.csv").write_text("user_id,item_id\n1,1\n")
    (tmp_path / "i.csv").write_text("item_id,id,title,name\n1,2,A,B\n")
    assert "id cannot be the name of an attribute" in refusal(tmp_path, interactions="r.csv", items="i.csv")
    (tmp_path / "i.csv").write_text("item_id,title,name\n1,A,B\n")
    text = refusal(tmp_path, interactions="r.csv", items="i.csv", title="name")
    assert "data.title is name, but there is a column title too" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": "i.csv", "item_columns": ["title"]}, "the items have the file i.csv; set one of the two"),
        ({"title": "title"}, "title needs text of the items; set items to their file, or item_columns"),
        ({"separater": ";"}, "did you mean separator"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_before_any_file_is_read(tmp_path, options, message):
    with pytest.raises(RecpeftError, match=message):
        validate(Config, {"source": "tabular", "interactions": "r.csv", **options})


def test_a_path_is_needed():
    with pytest.raises(RecpeftError, match=r"data\.path is not set"):
        load(Config(source="tabular", interactions="r.csv"))


def test_the_config_is_read_without_polars():
    code = "import sys, datamodules.tabular, datamodules.recbole_atomic; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- triples, and the example ---


def test_triples_of_the_items_become_facts(tmp_path):
    for name in ("ratings", "films"):
        write_csv(tmp_path, name)
    (tmp_path / "kg.csv").write_text("s,p,o\n10,film/directed_by,Q1\n20,sequel,10\n10,film/genre,Q2\n")
    (tmp_path / "names.txt").write_text("Q1\tMichael Mann\n")
    triples = {"file": "kg.csv", "head": "s", "relation": "p", "tail": "o", "entity_names": "names.txt"}
    data = read(tmp_path, interactions="ratings.csv", items="films.csv", triples=triples, **MAPPING)
    facts = dict(data.items.select("title", "facts").rows())
    assert facts == {
        "Heat": 'directed by: Michael Mann; sequel of: Up, "up"',
        'Up, "up"': "sequel: Heat",
        "Misérables": None,
    }
    text = refusal(tmp_path, interactions="ratings.csv", items="films.csv", triples={"file": "kg.csv"}, **MAPPING)
    assert "kg.csv has no column head, relation, tail; it has s, p, o; " in text


def test_the_music_example_runs_to_the_split(tmp_path):
    artists = ["id\tname\turl\tpictureURL"]
    artists += [f'{number}\tArtist "{number}\thttp://www.last.fm/{number}\t' for number in range(1, 11)]
    plays = ["userID\tartistID\tweight"]
    plays += [f"{user}\t{artist}\t{user + artist * 7}" for user in range(2, 14) for artist in range(1, 11)]
    (tmp_path / "artists.dat").write_text("\n".join(artists) + "\n")
    (tmp_path / "user_artists.dat").write_text("\r\n".join(plays) + "\r\n")
    runs = load_runs(CONFIGS / "music.yaml", [f"data.path={tmp_path}"])
    config = runs[-1].data
    data = load(config)
    assert (data.num_users, data.num_items, data.interactions.height) == (12, 10, 120)
    assert data.items["title"].to_list()[0] == 'Artist "1'
    data, steps = _filters.apply(data, config.filters)
    assert steps[0]["after"]["interactions"] == 119  # all but user 2 and artist 1, 2 + 7 plays
    parts = split(data, config.split)
    assert parts.train.height > parts.test.height > 0
    assert PromptConfig(item=runs[-1].prompt.item)


@pytest.mark.parametrize("kind", ["ms", "us", "ns", "s", "iso text", "isoformat", "datetimes"])
def test_events_within_a_second_keep_the_order_of_their_times(tmp_path, kind):
    """20 users with ten events 90 ms apart: each is tested on the last."""
    milliseconds = [1_700_000_000_000 + 90 * place for place in range(10)]
    rows = pl.DataFrame(
        [(user, (7 * place + user) % 13, time) for user in range(20) for place, time in enumerate(milliseconds)],
        ["user", "item", "time"],
        orient="row",
    )
    datetimes = pl.from_epoch("time", time_unit="ms")
    written = {
        "iso text": datetimes.dt.to_string("%Y-%m-%dT%H:%M:%S%.3f"),
        # As Python writes it, which leaves a fraction of zero out.
        "isoformat": datetimes.dt.to_string("%Y-%m-%dT%H:%M:%S%.6f").str.replace(".000000", "", literal=True),
        "datetimes": datetimes,
        "ms": pl.col("time"),
        "us": pl.col("time") * 1000,
        "ns": pl.col("time") * 10**6,
        "s": pl.col("time") / 1000,
    }
    table = rows.with_columns(time=written[kind]).sample(fraction=1.0, shuffle=True, seed=3)
    if kind == "isoformat":
        table = table.sort(pl.col("time").str.len_chars())  # the first one has no fraction
    name = "rows.parquet" if kind == "datetimes" else "rows.csv"
    table.write_parquet(tmp_path / name) if kind == "datetimes" else table.write_csv(tmp_path / name, float_precision=3)
    unit = {"time_unit": kind} if kind in ("ms", "us", "ns") else {}
    columns = {"user": "user", "item": "item", "timestamp": "time"}
    data = read(tmp_path, interactions=name, columns=columns, **unit)
    parts = split(data, "leave_one_out")
    tested = dict(zip(*(parts.test[key].to_list() for key in ("user", "item")), strict=True))
    users, items = data.users["raw_id"].to_list(), data.items["raw_id"].to_list()
    assert {int(users[user]): int(items[item]) for user, item in tested.items()} == {
        user: (7 * 9 + user) % 13 for user in range(20)
    }
    assert data.interactions["timestamp"].max() == pytest.approx(1_700_000_000.81, abs=1e-6)
    assert parts.audit()["users_out_of_order"] == 0


def test_a_first_row_of_data_is_told_with_the_key_that_names_columns(tmp_path):
    (tmp_path / "r.tsv").write_text("2\t51\t13883\n2\t52\t11690\n3\t51\t10\n")
    sentence = "r.tsv has no header: its first row, 2, 51, 13883, is data; name its columns in data.header.interactions"
    assert sentence in refusal(tmp_path, interactions="r.tsv")
    # Whoever took these for names would lose the first interaction.
    named = {"user": "2", "item": "51", "rating": "13883"}
    assert sentence in refusal(tmp_path, interactions="r.tsv", columns=named)
    header = {"interactions": ["user_id", "item_id", "rating"]}
    columns = {"rating": "rating"}
    assert read(tmp_path, interactions="r.tsv", header=header, columns=columns).interactions.height == 3
    (tmp_path / "films.csv").write_text("51,1995,Heat\n52,2009,Up\n")
    films = {"items": "films.csv", "item_id": "id", "title": "title"}
    assert "data.header.items" in refusal(tmp_path, interactions="r.tsv", header=header, **films)
    # A row of titles and a number may be one of names: both ways are told.
    (tmp_path / "films.csv").write_text("51,Heat,Drama\n52,Up,Comedy\n")
    both = "set data.item_id to the column of the item's id, or where its first row is data, name its columns in"
    assert f"{both} data.header.items" in refusal(tmp_path, interactions="r.tsv", header=header, **films)
    # A year beside names is a name, and so is what pandas calls columns without one.
    (tmp_path / "p.csv").write_text("0,1,2\n2,51,13883\n")
    assert read(tmp_path, interactions="p.csv", columns={"user": "0", "item": "1"}).interactions.height == 1
    (tmp_path / "y.csv").write_text("user,item,2019\n2,51,13883\n")
    assert "has no column user_id, item_id; it has user, item, 2019" in refusal(tmp_path, interactions="y.csv")


def test_each_file_may_have_its_own_separator_and_quotes(tmp_path):
    (tmp_path / "r.dat").write_text("user_id::item_id\n1::7\n2::8\n")
    (tmp_path / "films.txt").write_text('item_id|name\n7|Say "Yes\n8|A::B\n')
    (tmp_path / "people.csv").write_text('user_id,job\n1,"clerk, retired"\n2,nurse\n')
    files = {"interactions": "r.dat", "items": "films.txt", "users": "people.csv", "title": "name"}
    formats = {"interactions": {"separator": "::"}, "items": {"separator": "|", "quotes": False}}
    data = read(tmp_path, **files, formats=formats)
    assert data.items["title"].to_list() == ['Say "Yes', "A::B"]
    assert data.users["job"].to_list() == ["clerk, retired", "nurse"]
    assert data.interactions.select("user", "item").rows() == [(0, 0), (1, 1)]


LISTED = [(0, 1, None, 0), (0, 0, None, 1), (0, 2, None, 2), (1, 2, None, 0)]
"""User 1 met 642, 77 and 3437, in the order 642, 77, 3437 below; user 2 met 3437."""


def write_lists_of_csv(folder):
    (folder / "lists.csv").write_text('user,items\n1,"[642, 77]"\n2,"[\'3437\']"\n1,"[3437]"\n3,[]\n')
    return {"interactions": "lists.csv", "layout": "lists", "columns": {"user": "user", "item": "items"}}


def write_lists_of_parquet(folder):
    table = pl.DataFrame({"user": [1, 2, 3], "items": [[642, 77, 3437], [3437], []]})
    table.write_parquet(folder / "lists.parquet")
    return {"interactions": "lists.parquet", "layout": "lists", "columns": {"user": "user", "item": "items"}}


def write_dictionary_of_lists(folder):
    (folder / "lists.json").write_text(json.dumps({"1": [642, 77, 3437], "2": [3437], "3": []}))
    return {"interactions": "lists.json", "layout": "lists", "columns": {"user": "key", "item": "value"}}


def write_sequences(folder):
    (folder / "lines.txt").write_text("1 642 77 3437\n\n2\t3437 \n3\n")
    return {"interactions": "lines.txt", "layout": "sequences"}


def write_adjacency(folder):
    (folder / "lines.csv").write_text("1,642,77,3437\n2,3437\n3\n")
    return {"interactions": "lines.csv", "layout": "adjacency", "separator": ","}


LAYOUTS = [
    write_lists_of_csv, write_lists_of_parquet, write_dictionary_of_lists, write_sequences, write_adjacency
]  # fmt: skip


@pytest.mark.parametrize("write", LAYOUTS)
def test_lists_and_lines_become_one_interaction_an_item_in_order(tmp_path, write):
    data = read(tmp_path, **write(tmp_path))
    met = [(1, "642", 0), (1, "77", 1), (1, "3437", 2), (2, "3437", 0)]
    if write is write_adjacency:  # says nothing of order
        met = [(user, item, None) for user, item, _ in met]
    raw = data.interactions.join(data.users, on="user").join(data.items, on="item", suffix="_item")
    found = raw.select(pl.col("raw_id").cast(pl.Int64), "raw_id_item", "timestamp").rows()
    assert sorted(found, key=str) == sorted(met, key=str)


def test_ratings_and_times_in_lists_go_with_their_items_and_uneven_lists_name_the_row(tmp_path):
    columns = {"user": "user", "item": "items", "rating": "stars", "timestamp": "at"}
    options = {"interactions": "a.csv", "layout": "lists", "columns": columns}
    (tmp_path / "a.csv").write_text('user,items,stars,at\n1,"[7, 8]","[4, 2.5]",100\n2,"[7]","[3]",200\n')
    assert read(tmp_path, **options).interactions.rows() == [(0, 0, 4.0, 100), (0, 1, 2.5, 100), (1, 0, 3.0, 200)]
    (tmp_path / "a.csv").write_text('user,items,stars,at\n1,"[7, 8]","[4]",100\n2,"[7]","[3]",200\n')
    assert "row 2: items and stars hold no lists of equal length" in refusal(tmp_path, **options)
    (tmp_path / "a.csv").write_text('user,items,stars,at\n1,"[7, 8]","[4, \'x\']",100\n2,7,"[3]",200\n')
    assert "row 3: items is '7', which is no list" in refusal(tmp_path, **options)
    (tmp_path / "a.csv").write_text('user,items,stars,at\n1,"[7, 8, 9]","[4, \'x\', 3]",100\n')
    assert "row 2: stars is 'x'; it must be a number" in refusal(tmp_path, **options)


def test_a_layout_without_times_refuses_what_needs_them(tmp_path):
    for options in ({"split": "global_temporal"}, {"filters": [{"since": "2024-01-01"}]}):
        with pytest.raises(RecpeftError, match="needs times, but layout sequences"):
            read(tmp_path, interactions="a.txt", layout="sequences", **options)
    with pytest.raises(RecpeftError, match=r"columns\.rating is set, but layout adjacency has lines of ids alone"):
        read(tmp_path, interactions="a.txt", layout="adjacency", columns={"rating": "stars"})
    (tmp_path / "a.txt").write_text("1,2\n1,3\n")
    assert "no line has a user and an item with white space" in refusal(
        tmp_path, interactions="a.txt", layout="sequences"
    )


def test_json_holds_records_in_an_array_in_a_dictionary_or_to_a_line(tmp_path):
    records = [{"film": 10, "name": "Heat", "genres": ["Crime"]}, {"film": 20, "name": "Up"}]
    (tmp_path / "r.json").write_text(json.dumps([{"user": 1, "film": 10}, {"user": 2, "film": 20}]))
    by_key = {str(record["film"]): {"name": record["name"]} for record in records}
    options = {"interactions": "r.json", "columns": {"user": "user", "item": "film"}, "title": "name"}
    for text, item_id in (
        (json.dumps(records, indent=1), "film"),
        ("\n".join(map(json.dumps, records)), "film"),
        (json.dumps(by_key), "key"),
    ):
        (tmp_path / "items.json").write_text(text)
        data = read(tmp_path, items="items.json", item_id=item_id, **options)
        assert data.items.select("raw_id", "title").rows() == [("10", "Heat"), ("20", "Up")]
        assert data.interactions.select("user", "item").rows() == [(0, 0), (1, 1)]
    (tmp_path / "items.json").write_text(json.dumps({"10": ["<a_1>", "<b_2>"], "20": ["<a_1>", "<b_3>"]}))
    lists = {**options, "items": "items.json", "item_id": "key", "title": "value"}
    assert "data.title is value, which holds lists; name a column of text" in refusal(tmp_path, **lists)
    (tmp_path / "items.json").write_text('[{"film": 10}, 3]')
    assert "items.json: row 2: no object" in refusal(tmp_path, items="items.json", item_id="film", **options)
    for text, reason in (
        ('[{"film": 10},', "items.json is no JSON"),
        ('{"10": {"name": "Heat"}, "10": {"name": "Up"}}', "the key '10' is there twice"),
        ('{"film": {"0": 10, "1": 20}}', "holds columns, as pandas writes them"),
    ):
        (tmp_path / "items.json").write_text(text)
        assert reason in refusal(tmp_path, items="items.json", item_id="film", **options)


def test_named_columns_of_csv_hold_lists(tmp_path):
    (tmp_path / "r.csv").write_text("user_id,item_id\n1,10\n1,20\n")
    (tmp_path / "items.csv").write_text("item_id,genres\n10,\"['Crime', 'Drama']\"\n20,[]\n")
    data = read(
        tmp_path, interactions="r.csv", items="items.csv", categories="genres", list_columns=["genres"]
    )  # fmt: skip
    assert data.items["categories"].to_list() == [["Crime", "Drama"], []]
    options = {"interactions": "r.csv", "items": "items.csv", "categories": "genres"}
    assert "the column genres holds lists; set data.list_columns: [genres]" in refusal(tmp_path, **options)
    assert "names genre, which no file has" in refusal(tmp_path, **options, list_columns=["genre"])


def test_lists_that_no_layout_names_are_no_ids_and_attributes_may_be_lists_beside_items(tmp_path):
    (tmp_path / "a.csv").write_text(
        "user_id,item_id,name,place\n1,\"[7, 8]\",\"['Heat', 'Up']\",home\n2,[8],['Up'],home\n"
    )
    assert "the column item_id holds lists; set data.layout: lists" in refusal(tmp_path, interactions="a.csv")
    named = {"interactions": "a.csv", "layout": "lists", "item_columns": ["name", "place"], "title": "name"}
    data = read(tmp_path, **named)
    assert data.items.select("raw_id", "title", "place").rows() == [("7", "Heat", "home"), ("8", "Up", "home")]
    assert data.interactions.rows() == [(0, 0, None, 0), (0, 1, None, 1), (1, 1, None, 0)]
    (tmp_path / "a.txt").write_text("1,7,,8\n")
    lines = {"interactions": "a.txt", "layout": "adjacency", "separator": ","}
    assert "a.txt: row 1: no item id" in refusal(tmp_path, **lines)
