"""Manifests come back as they were written, and what is none is named in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from recpeft.errors import RecpeftError
from slurm import Cell, Manifest, Options, cell_of, find_manifests, new_folder, now, read_manifest, write_manifest


def manifest(num_cells: int = 2) -> Manifest:
    cells = tuple(
        Cell(index=index, run_id=f"run{index}", config={"adapter": {"rank": 8}, "k": [5, 10]}, label=f"lora {index}")
        for index in range(num_cells)
    )
    return Manifest(
        study="demo",
        out="/runs",
        working_directory="/work",
        created=now(),
        options=Options(time="90", setup=("module load cuda",)),
        cells=cells,
    )


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    written = manifest().with_job("12", "0-1%2").with_job("15", "1")
    write_manifest(path, written)
    read = read_manifest(path)
    assert read == written
    assert read.job_ids == ("12", "15")
    assert cell_of(read, 1).config == {"adapter": {"rank": 8}, "k": [5, 10]}


def test_cells_are_numbered_without_gaps() -> None:
    cells = manifest(3).cells
    with pytest.raises(ValidationError, match="not numbered"):
        Manifest(**(dict(manifest()) | {"cells": (cells[0], cells[2])}))


@pytest.mark.parametrize("index", [-1, 2])
def test_a_cell_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(RecpeftError, match=f"no cell {index}; it has 0 to 1"):
        cell_of(manifest(), index)


def changed(**values: object) -> str:
    return json.dumps(json.loads(manifest().model_dump_json()) | values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "no manifest of schema 1"),
        (changed(schema_version=2), "no manifest of schema 1"),
        (changed(cells=[]).replace('"study"', '"studie"'), "no manifest .*(study|studie)"),
        (changed(cells=[{"index": 1, "run_id": "a", "config": {}, "label": "a"}]), "cells are not numbered"),
        (changed(options={"time": "soon"}), "options.time"),
    ],
)
def test_what_is_no_manifest_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(RecpeftError, match=rf"manifest\.json .*{words}|manifest\.json {words}"):
        read_manifest(path)
    with pytest.raises(RecpeftError, match="there is no file"):
        read_manifest(tmp_path / "other.json")


def test_each_submission_has_a_folder_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match="was not submitted"):
        find_manifests(tmp_path)
    folders = [new_folder(tmp_path) for _ in range(3)]
    assert [folder.name for folder in folders] == ["001", "002", "003"]
    assert all((folder / "logs").is_dir() for folder in folders)
    for folder in (folders[2], folders[0]):
        write_manifest(folder / "manifest.json", manifest())
    assert find_manifests(tmp_path) == [folders[0] / "manifest.json", folders[2] / "manifest.json"]
