from __future__ import annotations

import polars as pl
import pytest

from datamodules._tables import scan
from datamodules._triples import TriplesConfig, read_names, readable, with_facts
from recpeft.errors import RecpeftError

ITEMS = "item,title\n1,Heat\n2,Up\n3,Big\n"
LINKS = "item,entity\n1,m.1\n2,m.2\n3,m.3\n"


def table(folder, name, text):
    (folder / name).write_text(text)
    return scan(folder / name)


def facts(folder, triples, links=LINKS, names=None, items=ITEMS, unknown_ids="error", **config):
    """item -> facts, of the triples ``head relation tail; …``."""
    rows = "head,relation,tail\n" + "".join(",".join(row.split()) + "\n" for row in triples.split(";"))
    if names is not None:
        (folder / "names.txt").write_text(names)
        config["entity_names"] = "names.txt"
    options = TriplesConfig(**config)
    found = with_facts(
        table(folder, "items.csv", items),
        table(folder, "kg.csv", rows),
        options,
        links=None if links is None else table(folder, "links.csv", links),
        names=read_names(folder, options),
        unknown_ids=unknown_ids,
    )
    return dict(found.collect().select("item", "facts").rows())


@pytest.mark.parametrize(
    ("relation", "text"),
    [
        ("film.film.directed_by", "directed by"),
        ("film/film/directed_by", "directed by"),
        ("<http://dbpedia.org/ontology/directed_by>", "directed by"),
        ("http://www.w3.org/ns#directed_by", "directed by"),
        ("http://dbpedia.org/ontology/genre/", "genre"),
        ("genre", "genre"),
        ("_", "_"),
    ],
)
def test_relations_are_made_readable(relation, text):
    assert readable(relation) == text


def test_an_item_is_told_as_head_and_as_tail(tmp_path):
    found = facts(tmp_path, "m.2 film.sequel m.1")
    assert found == {"1": "sequel of: Up", "2": "sequel: Heat", "3": None}


def test_a_name_is_the_linked_items_title_else_the_files_else_none(tmp_path):
    triples = "m.1 genre m.8; m.1 like m.2; m.1 genre m.9"
    names = "m.8\tcrime\nm.2\tnot its title\n"
    assert facts(tmp_path, triples, names=names)["1"] == "genre: crime; like: Up"
    assert facts(tmp_path, triples, names=names, unnamed="keep")["1"] == "genre: crime, m.9; like: Up"
    assert facts(tmp_path, triples)["1"] == "like: Up"


def test_facts_are_in_order_of_relation_and_name_whatever_the_files_order(tmp_path):
    rows = ["m.1 b x", "m.1 a z", "m.1 a y", "m.2 b m.1", "m.1 a.a y"]
    expected = "a: y, z; b: x; b of: Up"
    for order in (rows, rows[::-1]):
        assert facts(tmp_path, ";".join(order), unnamed="keep")["1"] == expected


def test_relations_are_chosen_and_ordered_as_written(tmp_path):
    triples = "m.1 film.genre x; m.1 film.directed_by y; m.1 film.actor z; m.2 film.actor m.1"
    found = facts(tmp_path, triples, unnamed="keep", relations=("film.genre", "actor"))
    assert found["1"] == "genre: x; actor: z; actor of: Up"
    with pytest.raises(RecpeftError, match=r"kg.csv says writer of no item; .* actor, directed by, genre"):
        facts(tmp_path, triples, relations=("writer", "actor"))


def test_the_first_facts_are_kept_up_to_the_largest_number(tmp_path):
    triples = ";".join(f"m.1 actor p{number}" for number in range(9)) + ";m.2 actor q"
    found = facts(tmp_path, triples, unnamed="keep", max_facts=3)
    assert found == {"1": "actor: p0, p1, p2", "2": "actor: q", "3": None}
    assert facts(tmp_path, triples, unnamed="keep")["1"] == "actor: p0, p1, p2, p3, p4"


def test_two_items_of_one_entity_have_its_facts_both(tmp_path):
    found = facts(tmp_path, "m.1 genre x", links="item,entity\n1,m.1\n2,m.1\n", unnamed="keep")
    assert found == {"1": "genre: x", "2": "genre: x", "3": None}


def test_without_links_the_entities_are_the_items_ids(tmp_path):
    assert facts(tmp_path, "1 sequel 2; 1 genre g", links=None) == {
        "1": "sequel: Up",
        "2": "sequel of: Heat",
        "3": None,
    }


def test_a_fact_is_told_once(tmp_path):
    assert facts(tmp_path, "m.1 genre x; m.1 genre x; m.1 film.genre x", unnamed="keep")["1"] == "genre: x"


def test_links_to_unknown_items_are_told_or_dropped(tmp_path):
    links = LINKS + "8,m.8\n9,m.9\n"
    with pytest.raises(RecpeftError, match=r"links.csv: 2 problems: row 5: item 8 is in no row .*; row 6: item 9 "):
        facts(tmp_path, "m.1 a m.8", links=links)
    assert facts(tmp_path, "m.1 a m.8; m.1 a m.2", links=links, unknown_ids="drop")["1"] == "a: Up"


def test_empty_cells_are_told(tmp_path):
    with pytest.raises(RecpeftError, match=r"kg.csv: 2 problems: row 2: no head; .*; row 3: no relation; "):
        with_facts(
            table(tmp_path, "i.csv", ITEMS),
            table(tmp_path, "kg.csv", "head,relation,tail\n,a,b\n1,,b\n"),
            TriplesConfig(),
        )


def test_whole_numbers_as_ids_are_those_of_text(tmp_path):
    pl.DataFrame({"item": [1, 2], "title": ["Heat", "Up"]}).write_parquet(tmp_path / "i.parquet")
    found = with_facts(
        scan(tmp_path / "i.parquet"), table(tmp_path, "kg.csv", "head,relation,tail\n1,like,2\n"), TriplesConfig()
    )
    assert found.collect()["facts"].to_list() == ["like: Up", "like of: Heat"]


def test_a_column_of_that_name_is_not_overwritten(tmp_path):
    with pytest.raises(RecpeftError, match="has a column facts"):
        facts(tmp_path, "m.1 a b", items="item,facts\n1,x\n2,y\n3,z\n")
