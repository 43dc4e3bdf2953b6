from __future__ import annotations

from pathlib import Path

import pytest

from datamodules import _filters
from datamodules._splits import split
from datamodules.movielens import Config as MovieLensConfig
from datamodules.movielens import load as load_movielens
from datamodules.recbole_atomic import Config, load
from experiments import load_runs
from recpeft.errors import RecpeftError
from recpeft.validation import validate

CONFIGS = Path(__file__).resolve().parents[2] / "experiments" / "configs"

INTER = [
    "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    "u1\t10\t4\t100",
    "u1\t20\t3.5\t2e2",
    "u2\t10\t5\t300",
]
ITEM = [
    "item_id:token\tmovie_title:token_seq\tyear:float\tclass:token_seq\tplot:token_seq\tvector:float_seq",
    '10\tHeat "n\t1995\tCrime Drama\ta long night\t1 -2.5',
    "20\tUp\t\t\t\t",
]
USER = ["user_id:token\tage:float\tzip:token", "u1\t24\t007", "u2\t\tT8H"]


def write(folder, **files):
    """``inter=…`` is ``tiny.inter``; two underscores are a dot."""
    for suffix, lines in files.items():
        (folder / f"tiny.{suffix.replace('__', '.')}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(folder, **options):
    return load(validate(Config, {"source": "recbole_atomic", "path": folder, **options}))


def refusal(folder, **options):
    with pytest.raises(RecpeftError) as error:
        read(folder, **options)
    return str(error.value)


def test_each_field_is_read_by_its_type(tmp_path):
    write(tmp_path, inter=INTER, item=ITEM, user=USER)
    data = read(tmp_path, title="movie_title", categories="class")
    assert data.name == "tiny"
    assert data.interactions.rows() == [(0, 0, 4.0, 100), (0, 1, 3.5, 200), (1, 0, 5.0, 300)]
    assert data.items.drop("item").to_dicts() == [
        {
            "raw_id": "10",
            "year": 1995.0,
            "plot": "a long night",
            "vector": [1.0, -2.5],
            "categories": ["Crime", "Drama"],
            "title": 'Heat "n',
        },
        {"raw_id": "20", "year": None, "plot": None, "vector": None, "categories": [], "title": "Up"},
    ]
    assert data.users.rows() == [(0, "u1", 24.0, "007"), (1, "u2", None, "T8H")]


def test_ml_100k_is_the_same_as_by_its_own_source(tiny_data):
    data = read(tiny_data, title="movie_title", categories="class")
    own = load_movielens(MovieLensConfig(source="movielens", path=tiny_data))
    assert data.interactions.rows() == own.interactions.rows()
    assert data.items["title"].to_list() == own.items["title"].to_list()
    assert data.users["raw_id"].to_list() == own.users["raw_id"].to_list()


def test_without_a_file_of_items_they_have_ids_alone(tmp_path):
    write(tmp_path, inter=INTER)
    data = read(tmp_path)
    assert data.items.rows() == [(0, "10"), (1, "20")]
    assert "there is no " in refusal(tmp_path, title="movie_title")


def test_other_fields_may_be_user_item_rating_and_time(tmp_path):
    inter = ["visitor:token\tpage:token\tlabel:float\tms:float", "1\t5\t1\t1262304000999"]
    write(tmp_path, inter=inter)
    fields = {"user": "visitor", "item": "page", "rating": "label"}
    data = read(tmp_path, **fields, timestamp="ms", time_unit="ms")
    assert data.interactions.rows() == [(0, 0, 1.0, 1262304000.999)]
    data = read(tmp_path, **{**fields, "rating": None}, timestamp=None)
    assert data.interactions.rows() == [(0, 0, None, None)]
    text = refusal(tmp_path, **fields)
    assert "has no column timestamp; it has visitor, page, label, ms; " in text
    text = refusal(tmp_path, **fields, timestamp="ms")
    assert "ms is 1262304000999, which is no time in seconds" in text
    assert "set data.time_unit to what it counts: ms, where" in text


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("part1", "part2", "part3")])
def test_benchmark_parts_are_read_together_where_the_whole_is_absent(tmp_path, names):
    parts = {f"{name}__inter": [INTER[0], row] for name, row in zip(names, INTER[1:], strict=True)}
    write(tmp_path, item=ITEM, **parts)
    data = read(tmp_path, title="movie_title")
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole", inter=INTER, item=ITEM)
    assert data.name == "tiny"
    assert data.hash() == read(tmp_path / "whole", title="movie_title").hash()
    write(tmp_path, inter=INTER[:2])
    assert read(tmp_path, title="movie_title").interactions.height == 1


def test_a_bad_row_of_a_part_is_told_with_the_part(tmp_path):
    write(tmp_path, train__inter=INTER[:2], valid__inter=[INTER[0], "u9\t10\tgood\t5"])
    assert "tiny.valid.inter, row 2: rating is 'good'" in refusal(tmp_path)


def test_of_several_data_sets_one_is_named(tmp_path):
    write(tmp_path, inter=INTER)
    (tmp_path / "other.inter").write_text("\n".join(INTER[:2]))
    text = refusal(tmp_path)
    assert "has several data sets: other, tiny; set data.dataset" in text
    assert read(tmp_path, dataset="other").interactions.height == 1
    assert "has no third.inter; set data.dataset to one of other, tiny" in refusal(tmp_path, dataset="third")
    (tmp_path / "empty").mkdir()
    assert "has no .inter file" in refusal(tmp_path / "empty")


def test_the_title_is_never_guessed_and_the_fields_are_listed(tmp_path):
    write(tmp_path, inter=INTER, item=ITEM)
    text = refusal(tmp_path)
    assert "data.title is not set" in text
    assert "one of movie_title, class, plot." in text
    assert "data.title is name, but the fields" in refusal(tmp_path, title="name")
    assert "data.categories is year, but the fields" in refusal(tmp_path, title="movie_title", categories="year")


@pytest.mark.parametrize("field", ["item_id", "item_id:word", ":token"])
def test_a_header_without_types_is_told(tmp_path, field):
    write(tmp_path, inter=[INTER[0].replace("item_id:token", field), *INTER[1:]])
    text = refusal(tmp_path)
    assert f"tiny.inter, row 1: {field} must be a field's name, a colon and one of token, token_seq, float" in text


def test_numbers_that_are_none_are_all_told_with_field_and_type(tmp_path):
    item = [ITEM[0], "10\tHeat\tMCM\t\t\t1 x", "20\t\t1\t\t\t", "20\tUp\t1\t\t\t2"]
    write(tmp_path, inter=INTER, item=item)
    text = refusal(tmp_path, title="movie_title")
    assert text.startswith(f"{tmp_path}/tiny.item: 4 problems: row 2: vector is '1 x'; write numbers, as its type is ")
    assert "row 2: year is 'MCM'; write numbers, as its type is float" in text
    assert "row 3: item 20 has no title" in text
    assert "row 4: item 20 is there already" in text


def test_cells_that_pandas_wrote_in_quotes_are_read_where_it_is_said(tmp_path):
    write(tmp_path, inter=INTER, item=[ITEM[0], '10\t"12"" mix"\t\t\t\t', "20\tUp\t\t\t\t"])
    assert read(tmp_path, title="movie_title").items["title"].to_list() == ['"12"" mix"', "Up"]
    assert read(tmp_path, title="movie_title", quotes=True).items["title"].to_list() == ['12" mix', "Up"]


def test_categories_may_have_a_separator_of_their_own(tmp_path):
    write(tmp_path, inter=INTER, item=[ITEM[0], "10\tHeat\t\tCrime Film, Drama\t\t", "20\tUp\t\t\t\t"])
    data = read(tmp_path, title="movie_title", categories="class", category_separator=",")
    assert data.items["categories"].to_list() == [["Crime Film", "Drama"], []]


KG = [
    "head_id:token\trelation_id:token\ttail_id:token",
    "m.1\tfilm.film.directed_by\tm.9",
    "m.2\tfilm.film.sequel\tm.1",
    "m.7\tfilm.film.genre\tm.8",
]
LINK = ["item_id:token\tentity_id:token", "10\tm.1", "20\tm.2"]


def test_the_graph_becomes_facts(tmp_path):
    write(tmp_path, inter=INTER, item=ITEM, kg=KG, link=LINK)
    data = read(tmp_path, title="movie_title", triples={})
    assert data.items["facts"].to_list() == ["sequel of: Up", 'sequel: Heat "n']
    (tmp_path / "names.txt").write_text("m.9\tMichael Mann\n")
    data = read(tmp_path, title="movie_title", triples={"entity_names": "names.txt", "relations": ["directed by"]})
    assert data.items["facts"].to_list() == ["directed by: Michael Mann", None]


def test_a_link_to_an_unknown_item_is_told_or_dropped(tmp_path):
    write(tmp_path, inter=INTER, item=ITEM, kg=KG, link=[*LINK, "77\tm.5"])
    text = refusal(tmp_path, title="movie_title", triples={})
    assert text.startswith(f"{tmp_path}/tiny.link: row 4: item 77 is in no row of the item file; ")
    read(tmp_path, title="movie_title", triples={}, unknown_ids="drop")


def test_a_missing_graph_is_told(tmp_path):
    write(tmp_path, inter=INTER, item=ITEM)
    assert f"there is no file {tmp_path}/tiny.kg" in refusal(tmp_path, title="movie_title", triples={})


def test_the_news_example_runs_to_the_split(tmp_path):
    """MIND as RecSysDatasets converts it."""
    item = [
        "item_id:token\tcategory:token_seq\tsub_category:token_seq\ttitle:token_seq\tabstract:token_seq\t"
        "url:token_seq\ttitle_entities:token_seq\tabstract_entities:token_seq"
    ]
    item += [f'{n}\tsports\tgolf\tHeadline "{n}\t\thttps://x/{n}\t[{{"Label": "PGA"}}]\t[]' for n in range(1, 13)]
    inter = ["user_id:token\titem_id:token\tlabel:float\ttimestamp:float"]
    for user in range(1, 11):
        for n in range(1, 13):
            inter += [f"{user}\t{n}\t0\t{1573_000_000 + 1000 * n}", f"{user}\t{n}\t1\t{1573_000_500 + 1000 * n}"]
    for suffix, lines in (("item", item), ("inter", inter)):
        (tmp_path / f"mind_small_train.{suffix}").write_text("\n".join(lines) + "\n")
    runs = load_runs(CONFIGS / "news.yaml", [f"data.path={tmp_path}"])
    config = runs[-1].data
    data = load(config)
    assert data.interactions.height == 240
    data, _ = _filters.apply(data, config.filters)
    assert (data.num_users, data.num_items, data.interactions.height) == (10, 12, 120)
    assert data.items["title"].to_list()[0] == 'Headline "1'
    assert data.items["categories"].to_list()[0] == ["sports"]
    parts = split(data, config.split)
    assert parts.train["timestamp"].max() < parts.validation["timestamp"].min()
    assert parts.validation["timestamp"].max() < parts.test["timestamp"].min()
