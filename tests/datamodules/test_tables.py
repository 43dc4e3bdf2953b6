from __future__ import annotations

import gzip
from datetime import UTC, date, datetime

import polars as pl
import pytest

from datamodules._build import build
from datamodules._source import SourceConfig
from datamodules._tables import PART, Problems, scan, without_empty
from recpeft.errors import RecpeftError


def write(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows(table):
    return table.collect().rows()


def refusal(function, *args, **options):
    with pytest.raises(RecpeftError) as error:
        function(*args, **options)
    return str(error.value)


def collect(path, **options):
    return scan(path, **options).collect()


# --- scan ---


def test_cells_are_trimmed_text_and_null_where_empty(tmp_path):
    table = scan(write(tmp_path / "a.csv", 'user,item\n 1 ,"x, y"\n007,\n'))
    assert rows(table) == [(2, "1", "x, y"), (3, "007", None)]
    assert table.columns == ["user", "item"]


def test_rows_are_counted_as_an_editor_counts_lines(tmp_path):
    assert rows(scan(write(tmp_path / "a.csv", "\na\n\n1\n\n2\n"))) == [(4, "1"), (6, "2")]
    assert rows(scan(write(tmp_path / "b.csv", "1\n\n2\n"), columns=["a"])) == [(1, "1"), (3, "2")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path, end):
    text = "\ufeffuser,item" + end + "1,2" + end
    assert rows(scan(write(tmp_path / "a.csv", text))) == [(2, "1", "2")]


def test_a_long_separator_divides_cells(tmp_path):
    path = write(tmp_path / "r.dat", "1::2\n3::4:5\n")
    assert rows(scan(path, separator="::", columns=["a", "b"])) == [(1, "1", "2"), (2, "3", "4:5")]


def test_latin_1_is_read_where_it_is_said(tmp_path):
    path = write(tmp_path / "a.csv", "item\nMisérables\n", "latin-1")
    assert rows(scan(path, encoding="latin-1")) == [(2, "Misérables")]
    path = write(tmp_path / "a.jsonl", '{"item": "Misérables"}\n', "latin-1")
    assert rows(scan(path, encoding="latin-1")) == [(1, "Misérables")]


def test_bytes_that_are_not_utf_8_are_told_with_rows_and_remedy(tmp_path):
    text = refusal(collect, write(tmp_path / "a.csv", "item\na\né\nb\né\n", "latin-1"))
    assert text.startswith(f"{tmp_path}/a.csv: 2 problems: row 3: byte 1 is not UTF-8; ")
    assert "row 5: " in text
    assert "data.encoding: latin-1" in text


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_utf_16_is_called_by_its_name(tmp_path, name, encoding):
    text = refusal(collect, write(tmp_path / name, "item\na\n", "utf-16"), encoding=encoding)
    assert text == f"{tmp_path}/{name} is UTF-16, as some editors save what they call Unicode; save it as UTF-8."


@pytest.mark.parametrize("text", ["a,b\r1,2\r3,4\r", "a,b\n1,2\r3,4\n5,6\n"])
def test_rows_that_end_in_a_carriage_return_alone_are_told(tmp_path, text):
    row = 1 if text.startswith("a,b\r") else 2
    refused = refusal(collect, write(tmp_path / "a.csv", text))
    assert refused.startswith(f"{tmp_path}/a.csv: row {row} has a carriage return (CR) with no line feed")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_a_gzip_that_was_cut_off_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"")[:2])
    assert refusal(collect, tmp_path / name).endswith(
        "could not be read (Compressed file ended before the end-of-stream marker was reached); check it, or fetch it "
        "again."
    )


def test_a_name_that_no_disk_takes_is_a_sentence(tmp_path):
    text = refusal(collect, tmp_path / f"{'x' * 300}.csv")
    assert text.endswith("could not be read (File name too long); name another file.")
    assert len(text) < 200


def test_a_zero_byte_in_an_id_is_told_with_its_row(tmp_path):
    interactions = scan(write(tmp_path / "a.csv", "user,item\n1,a\n1,b\0\n"))
    items = scan(write(tmp_path / "b.csv", "item\na\nb\0\n"))
    text = refusal(build, "x", SourceConfig(source="tabular"), interactions)
    assert f"{tmp_path}/a.csv: row 3: item is 'b\\x00'; leave out the zero byte (NUL)" in text
    text = refusal(build, "x", SourceConfig(source="tabular"), interactions, None, items)
    assert f"{tmp_path}/b.csv: row 3: item is 'b\\x00'; leave out the zero byte (NUL)" in text


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_rows_that_are_too_short_or_too_long_are_all_told(tmp_path, name):
    text = refusal(scan, write(tmp_path / name, 'a,b,c\n1,2,3\n4,5\n"6,7",8,9\n1,2,3,4\n'))
    assert "2 problems: row 3: 2 cells, where there are 3 columns; mend it; row 5: 4 cells" in text


def test_the_first_ten_bad_rows_are_told_and_the_others_counted(tmp_path):
    text = refusal(scan, write(tmp_path / "a.csv", "a,b\n" + "1\n" * 13))
    assert "13 problems: row 2: " in text
    assert "row 11: " in text
    assert "row 12: " not in text
    assert text.endswith("; and 3 more.")


def test_a_line_break_within_a_cell_is_no_short_row(tmp_path):
    assert rows(scan(write(tmp_path / "a.csv", 'a,b\n1,"x\ny"\n2,z\n'))) == [(2, "1", "x\ny"), (3, "2", "z")]


@pytest.mark.parametrize("line", ['2,"Up', '2,5" disc', '2,"Up" "x'])
def test_an_unpaired_quote_is_told_with_its_row_and_can_be_switched_off(tmp_path, line):
    path = write(tmp_path / "a.csv", f"item,title\n1,Heat\n{line}\n3,Big\n")
    text = refusal(collect, path)
    assert "row 3: " in text
    assert "data.quotes: false" in text
    assert scan(path, quotes=False).collect()["title"].to_list() == ["Heat", line[2:], "Big"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_told(tmp_path, name, text):
    assert refusal(collect, write(tmp_path / name, text)) == f"{tmp_path}/{name} is empty; give a file with rows."


def test_rows_that_are_no_json_objects_are_all_told(tmp_path):
    text = refusal(collect, write(tmp_path / "a.jsonl", '{"a": 1}\nnope\n[1]\n{"a": NaN}\n'))
    assert "3 problems: row 2: no JSON object" in text
    assert "row 3: no JSON object" in text
    assert "row 4: no JSON object" in text


def test_a_file_that_is_not_there_or_of_an_unknown_kind_is_told(tmp_path):
    assert refusal(scan, tmp_path / "a.csv").startswith(f"there is no file {tmp_path}/a.csv; ")
    path = write(tmp_path / "a.xlsx", "x")
    assert f"{path} is of an unknown kind" in refusal(scan, path)
    path = write(tmp_path / "a.parquet", "x")
    assert f"{path} could not be read" in refusal(scan, path)
    path = tmp_path / "b.csv.gz"
    path.write_bytes(gzip.compress(b"a\n" + bytes(range(1, 255)) * 99)[:-20])
    assert f"{path} could not be read" in refusal(scan, path)


def test_columns_with_one_name_or_a_name_too_few_are_told(tmp_path):
    path = write(tmp_path / "a.csv", "a,b,a\n1,2,3\n")
    assert "2 columns named 'a'" in refusal(scan, path)
    assert "has 3 columns, but 2 names are given: x, y" in refusal(scan, path, columns=["x", "y"])
    assert "column named row" in refusal(scan, write(tmp_path / "b.csv", "row\n1\n"))
    assert "column named row" in refusal(scan, write(tmp_path / "b.jsonl", '{"row": 1}\n'))


def test_a_folder_of_parts_is_one_table_without_markers_checksums_and_empty_parts(tmp_path):
    folder = tmp_path / "out.parquet"
    folder.mkdir()
    for number, ids in enumerate(([1, 2], [3])):
        pl.DataFrame({"id": ids}).write_parquet(folder / f"part-0000{number}.snappy.parquet")
        (folder / f".part-0000{number}.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    (folder / "part-00002.parquet").touch()
    assert [row[1] for row in rows(scan(folder))] == [1, 2, 3]


def test_whole_numbers_and_fractions_of_parts_go_together_and_other_columns_do_not(tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "0.parquet")
    pl.DataFrame({"a": [0.5]}).write_parquet(tmp_path / "1.parquet")
    assert scan(tmp_path).collect()["a"].to_list() == [1.0, 0.5]
    pl.DataFrame({"b": [0.5]}).write_parquet(tmp_path / "2.parquet")
    assert "2.parquet has the columns b, but 0.parquet has a" in refusal(scan, tmp_path)


def test_a_key_may_be_missing_from_a_whole_part(tmp_path):
    parts = [write(tmp_path / "0.jsonl", '{"a": 1}\n'), write(tmp_path / "1.jsonl", '{"a": 2, "b": "x"}\n')]
    with pytest.raises(RecpeftError):
        scan([parts[0], write(tmp_path / "c.csv", "a\n1\n")])
    assert scan(parts).collect().select("a", "b").rows() == [(1, None), (2, "x")]


def test_a_row_of_several_files_is_told_with_its_file(tmp_path):
    write(tmp_path / "0.csv", "user,item,rating\n1,1,5\n")
    write(tmp_path / "1.csv", "user,item,rating\n1,2,5\n1,3,five\n")
    text = refusal(build, "x", config(), scan([tmp_path / "0.csv", tmp_path / "1.csv"]))
    assert text == f"{tmp_path}: 1.csv, row 3: rating is 'five'; it must be a number."
    text = refusal(build, "x", config(), scan(tmp_path))
    assert "1.csv, row 3: " in text


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path):
    write(tmp_path / "a[1].csv", "a\n1\n")
    write(tmp_path / "a1.csv", "a\n2\n")
    assert rows(scan(tmp_path / "a[1].csv")) == [(2, "1")]


def test_require_names_every_missing_column_and_those_there_are(tmp_path):
    table = scan(write(tmp_path / "a.csv", "a,b\n1,2\n"))
    text = refusal(table.require, ["a", "x", "y"], "set them")
    assert text == f"{tmp_path}/a.csv has no column x, y; it has a, b; set them."


# --- Problems ---


def test_problems_tell_one_row_or_the_first_ten_in_order(tmp_path):
    problems = Problems(tmp_path / "a.csv")
    problems.check()
    problems.note(1, [(7, "odd")])
    assert refusal(problems.check) == f"{tmp_path}/a.csv: row 7: odd."
    frame = pl.DataFrame({"row": range(20, 0, -1), "x": ["{a}"] * 20})
    problems.rows(frame, pl.col("row") > 8, "x is {x!r}")
    text = refusal(problems.check)
    assert "13 problems: row 7: odd; row 9: x is '{a}'; mend the row; row 10: " in text
    assert text.endswith("; and 3 more.")


def test_problems_of_several_files_name_the_file(tmp_path):
    problems = Problems(tmp_path, parts=(tmp_path / "0.csv", tmp_path / "1.csv"))
    problems.note(1, [(PART + 3, "odd")])
    assert refusal(problems.check) == f"{tmp_path}: 1.csv, row 3: odd."


def test_lists_lose_empty_entries_and_null_is_an_empty_list():
    frame = pl.DataFrame({"a": [" x |y", "", None, "|"]})
    found = frame.select(without_empty(pl.col("a").str.split("|")))["a"].to_list()
    assert found == [["x", "y"], [], [], []]


# --- build ---


def config(**options):
    return SourceConfig(source="movielens", **options)


def dataset(tmp_path, text, time_unit="s", users=None, items=None, **options):
    """From the text of CSV files."""
    tables = [
        None if part is None else scan(write(tmp_path / f"{name}.csv", part))
        for name, part in (("inter", text), ("user", users), ("item", items))
    ]
    return build("made", config(**options), *tables, time_unit=time_unit)


def from_parquet(tmp_path, **columns):
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2]}).with_columns(**columns)
    frame.write_parquet(tmp_path / "inter.parquet")
    return build("made", config(), scan(tmp_path / "inter.parquet"))


def test_dense_ids_are_ranks_of_the_numbers_and_tables_without_a_file_are_the_ids(tmp_path):
    data = dataset(tmp_path, "user,item,rating,timestamp\n10,7,4,100\n9,8,3.5,200\n")
    assert data.users.rows() == [(0, "9"), (1, "10")]
    assert data.items.rows() == [(0, "7"), (1, "8")]
    assert data.interactions.rows() == [(0, 1, 3.5, 200), (1, 0, 4.0, 100)]
    assert data.interactions.schema == {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
    assert data.dropped == {}


@pytest.mark.parametrize("odd", ["007", "+7", "7.0", "x7", "99999999999999999999"])
def test_one_id_that_is_no_plain_number_makes_all_of_its_kind_text(tmp_path, odd):
    data = dataset(tmp_path, f"user,item\n9,1\n10,1\n{odd},2\n")
    assert data.users["raw_id"].to_list() == sorted(["9", "10", odd])
    assert data.items["raw_id"].to_list() == ["1", "2"]


def test_ids_of_two_files_are_compared_as_written(tmp_path):
    text = refusal(dataset, tmp_path, "user,item\n1,7\n", items="item,title\n007,Bond\n")
    assert "item 7 is in no row of the item file" in text
    data = dataset(tmp_path, "user,item\n1,007\n", items="item,title\n007,Bond\n")
    assert data.items.rows() == [(0, "007", "Bond")]


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Date, pl.List(pl.Int64), pl.Boolean])
def test_ids_of_a_type_that_is_none_are_refused(tmp_path, dtype):
    ids = pl.Series([1, 2]).cast(pl.Int32).reshape((2, 1)).arr.to_list() if dtype == pl.List(pl.Int64) else [1, 0]
    text = refusal(from_parquet, tmp_path, item=pl.Series(ids, strict=False).cast(dtype))
    assert f"inter.parquet: the column item holds {dtype}, but ids are whole numbers or text" in text


def test_ids_of_64_bits_without_sign_stay_what_they_are(tmp_path):
    data = from_parquet(tmp_path, item=pl.Series([2**64 - 1, 5], dtype=pl.UInt64))
    assert data.items["raw_id"].to_list() == ["18446744073709551615", "5"]


def test_everything_wrong_with_the_interactions_is_told_at_once_under_the_files_own_names(tmp_path):
    lines = ["u,i,stars,ts", "1,1,5,10", ",2,5,10", "1,,5,10", "1,4,five,10", "1,5,NaN,10", "1,6,inf,10"]
    lines += ["1,7,1e39,10", "1,8,5,soon", "1,10,5,-1", "1,11,5,1262304000000", "1,12,x,y"]
    path = write(tmp_path / "r.csv", "\n".join(lines))
    table = scan(path).select(user="u", item="i", rating="stars", timestamp="ts")
    text = refusal(build, "made", config(), table)
    told = text.removeprefix(f"{path}: 11 problems: ").split("; row ")
    assert len(told) == 10
    assert told[0] == "row 3: no user id; give one or remove the row"
    assert told[1].startswith("4: no item id")
    assert told[2] == "5: stars is 'five'; it must be a number"
    assert [line.split(";")[0] for line in told[3:6]] == ["6: stars is NaN", "7: stars is inf", "8: stars is 1e39"]
    assert told[6].startswith("9: ts is 'soon'; it must be a number of seconds")
    assert told[7].startswith("10: ts is -1; ")
    assert told[8].startswith("11: ts is 1262304000000, which is no time in seconds; if these are milliseconds, divide")
    assert text.endswith("; and 1 more.")


def test_missing_ratings_and_times_are_null(tmp_path):
    data = dataset(tmp_path, "user,item,rating,timestamp\n1,1,,\n")
    assert data.interactions.rows() == [(0, 0, None, None)]


@pytest.mark.parametrize(
    ("unit", "number"),
    [("s", "1262304000.999999"), ("ms", 1262304000999), ("us", 1262304000999999), ("ns", 1262304000999999999)],
)
def test_times_are_read_in_their_unit_and_kept_to_the_microsecond(tmp_path, unit, number):
    data = dataset(tmp_path, f"user,item,timestamp\n1,1,{number}\n", unit)
    expected = 1262304000.999 if unit == "ms" else 1262304000.999999
    assert data.interactions["timestamp"].to_list() == pytest.approx([expected], abs=5e-7)


def test_whole_seconds_are_whole_numbers_and_parts_of_one_make_another_data_set(tmp_path):
    whole = dataset(tmp_path, "user,item,timestamp\n1,1,1262304000000\n", "ms")
    assert whole.interactions.schema["timestamp"] == pl.Int64
    (tmp_path / "parts").mkdir()
    parts = dataset(tmp_path / "parts", "user,item,timestamp\n1,1,1262304000001\n", "ms")
    assert parts.hash() != whole.hash()


@pytest.mark.parametrize(
    "text", ["2010-01-01", "2010-01-01 00:00:00", "2010-01-01T00:00:00Z", "2010-01-01T02:00:00+02:00"]
)
def test_dates_in_text_are_utc(tmp_path, text):
    data = dataset(tmp_path, f"user,item,timestamp\n1,1,{text}\n")
    assert data.interactions["timestamp"].to_list() == [1262304000]


def test_a_date_that_is_none_is_told(tmp_path):
    text = refusal(dataset, tmp_path, "user,item,timestamp\n1,1,2010-01-01\n1,2,2010-13-01\n1,3,5\n")
    assert "2 problems: row 3: timestamp is '2010-13-01'" in text
    assert "row 4: timestamp is '5'" in text


@pytest.mark.parametrize(
    ("times", "dtype"),
    [
        ([datetime(2010, 1, 1, 0, 0, 0)] * 2, pl.Datetime("us")),
        ([datetime(2010, 1, 1)] * 2, pl.Datetime("ms")),
        ([datetime(2010, 1, 1)] * 2, pl.Datetime("ns")),
        ([datetime(2010, 1, 1, tzinfo=UTC)] * 2, pl.Datetime("us", "Europe/Berlin")),
        ([date(2010, 1, 1)] * 2, pl.Date),
        ([1262304000] * 2, pl.Int32),
        ([1262304000.0] * 2, pl.Float64),
    ],
)
def test_times_of_parquet_are_seconds_of_utc(tmp_path, times, dtype):
    series = pl.Series(times)
    series = series.dt.convert_time_zone("Europe/Berlin") if str(dtype).count("Berlin") else series.cast(dtype)
    data = from_parquet(tmp_path, timestamp=series)
    assert data.interactions["timestamp"].to_list() == [1262304000] * 2


def test_a_type_that_is_no_rating_or_time_is_refused(tmp_path):
    text = refusal(from_parquet, tmp_path, rating=pl.Series([date(2010, 1, 1)] * 2))
    assert "the column rating holds Date, but ratings are numbers" in text
    text = refusal(from_parquet, tmp_path, timestamp=pl.Series([True, False]))
    assert "the column timestamp holds Boolean, but times are" in text


TWICE = "user,item,rating,timestamp\n1,1,1,30\n1,1,2,10\n1,2,9,10\n1,1,3,20\n"


def test_duplicates_are_told_unless_one_is_chosen_by_time(tmp_path):
    text = refusal(dataset, tmp_path, TWICE)
    assert "2 problems: row 3: user 1 and item 1 are there already" in text
    assert "row 5: " in text
    assert "data.duplicates" in text
    for choice, rating in (("first", 2.0), ("last", 1.0)):
        data = dataset(tmp_path, TWICE, duplicates=choice)
        assert data.interactions["rating"].to_list() == [rating, 9.0]
        assert data.dropped == {"duplicates": 2}
    data = dataset(tmp_path, TWICE, duplicates="keep")
    assert sorted(data.interactions["rating"]) == [1.0, 2.0, 3.0, 9.0]
    assert data.dropped == {}


@pytest.mark.parametrize(("choice", "rating"), [("first", 1.0), ("last", 2.0)])
def test_the_files_order_decides_between_duplicates_without_times(tmp_path, choice, rating):
    data = dataset(tmp_path, "user,item,rating\n1,1,1\n1,1,2\n", duplicates=choice)
    assert data.interactions["rating"].to_list() == [rating]


def test_unknown_ids_are_told_or_dropped_and_counted(tmp_path):
    text = "user,item\n1,1\n1,5\n6,1\n1,7\n"
    files = {"users": "user,age\n1,30\n", "items": "item,title\n1,Heat\n2,Up\n"}
    found = refusal(dataset, tmp_path, text, **files)
    assert "user 6 is in no row of the user file" in found
    found = refusal(dataset, tmp_path, text.replace("6,", "1,").replace("1,1\n1,7", "1,7"), **files)
    assert "2 problems: row 3: item 5 is in no row of the item file" in found
    data = dataset(tmp_path, text, unknown_ids="drop", **files)
    assert data.interactions.select("user", "item").rows() == [(0, 0)]
    assert data.dropped == {"interactions_of_unknown_users": 1, "interactions_of_unknown_items": 2}
    assert data.items["title"].to_list() == ["Heat", "Up"]


def test_items_without_title_are_told_or_dropped_with_their_interactions(tmp_path):
    text, items = "user,item\n1,1\n1,2\n", "item,title\n1,Heat\n2,\n3,  \n"
    found = refusal(dataset, tmp_path, text, items=items)
    assert "2 problems: row 3: item 2 has no title" in found
    assert "data.empty_text: drop" in found
    found = refusal(dataset, tmp_path, text, items=items, empty_text="drop")
    assert "item 2 is in no row of the item file" in found
    data = dataset(tmp_path, text, items=items, empty_text="drop", unknown_ids="drop")
    assert data.items["title"].to_list() == ["Heat"]
    assert data.dropped == {"items_without_title": 2, "interactions_of_unknown_items": 1}


def test_an_id_missing_or_twice_in_its_own_file_is_told(tmp_path):
    found = refusal(dataset, tmp_path, "user,item\n1,1\n", users="user,age\n1,3\n,4\n1,5\n")
    assert "user.csv: 2 problems: row 3: no user id" in found
    assert "row 4: user 1 is there already" in found


def test_a_file_without_interactions_is_told(tmp_path):
    assert "holds no interactions" in refusal(dataset, tmp_path, "user,item\n")


def test_the_order_of_the_rows_changes_nothing(tmp_path):
    lines = [f"{user},{item},{user + item},{user * item}" for user in range(9) for item in range(user)]
    header = "user,item,rating,timestamp\n"
    first = dataset(tmp_path, header + "\n".join(lines))
    assert dataset(tmp_path, header + "\n".join(reversed(lines))).hash() == first.hash()


def test_all_that_is_wrong_with_the_interactions_is_told_in_one_sentence(tmp_path):
    """Cells, unknown ids and duplicates: nobody mends a file once for each kind."""
    (tmp_path / "rows.csv").write_text("user,item,rating,timestamp\n1,7,x,5\n1,7,4,5\n2,7,4,-1\n1,7,4,6\n1,9,4,6\n")
    (tmp_path / "items.csv").write_text("item,title\n7,Seven\n")
    names = {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}
    interactions = scan(tmp_path / "rows.csv").select(**names)
    items = scan(tmp_path / "items.csv").select(item="item", title="title")
    with pytest.raises(RecpeftError) as caught:
        build("made", SourceConfig.model_validate({"source": "tabular"}), interactions, items=items)
    message = str(caught.value)
    assert "rows.csv: 4 problems: row 2: rating is 'x'" in message
    assert "row 4: timestamp is -1" in message
    assert "row 5: user 1 and item 7 are there already" in message
    assert "row 6: item 9 is in no row of the item file" in message


def test_a_bad_row_is_named_with_its_own_file_where_files_of_other_folders_have_the_same_name(tmp_path):
    for number, time in enumerate(("10", "soon")):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number) / "r.csv", f"user,item,timestamp\n1,{number},{time}\n")
    table = scan([tmp_path / "0" / "r.csv", tmp_path / "1" / "r.csv"])
    assert f"{tmp_path}: 1/r.csv, row 2: timestamp is 'soon'" in refusal(build, "made", config(), table)


def test_of_several_parquet_files_the_damaged_one_is_named(tmp_path):
    pl.DataFrame({"user": [1], "item": [1]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no parquet")
    assert f"{tmp_path / 'b.parquet'} could not be read" in refusal(scan, tmp_path)
