"""The report's page and plots, from the records of real runs: in Chromium, and as files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from experiments import load_runs
from experiments.reporting import _figures, make_report, write_report
from experiments.reporting._figures import draw, front
from experiments.reporting._runs import read
from experiments.study.serial import run_study

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = Path("/usr/bin/chromium")
ALERT = "<script>alert(1)</script>"


def record_of(method: str, study: Path) -> Path:
    (path,) = (path for path in study.glob("*/result.json") if json.loads(path.read_text())["method"] == method)
    return path


@pytest.fixture(scope="module")
def study(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds, a ranker and a control; every film's title is a script, and one run has failed."""
    folder = tmp_path_factory.mktemp("page")
    data = next(Path(line.split('"')[1]) for line in study_file.read_text().splitlines() if line.startswith("data:"))
    shutil.copytree(data, folder / "data")
    items = folder / "data" / "ml-100k.item"
    header, *lines = items.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    items.write_text("\n".join([header, *("\t".join([c[0], f"{ALERT} {c[1]}", *c[2:]]) for c in cells)]) + "\n")
    settings = [
        f"data.path={folder / 'data'}",
        "seeds=[0, 1]",
        "references=[popularity, frozen]",
        "evaluation.groups=[gender]",
        "include=[{adapter.rank: 4}, {adapter: {method: bottleneck, bottleneck_dim: 4}}]",
    ]
    assert run_study(load_runs(study_file, settings), folder / "runs") == 0
    path = record_of("popularity", folder / "runs" / "tiny")
    certificate = {"code": {"commit": "abc", "files": ["a.py", "b.py"]}, "empty": {}, "none": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"certificate": certificate}))
    records = (folder / "runs" / "tiny").glob("*/result.json")
    path = next(path for path in records if json.loads(path.read_text())["method"] == "frozen")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"certificate": None}))  # of a version before it
    failed = {"schema": 2, "status": "failed", "run_id": "0" * 12, "method": "lora", "width": "int8", "config": {}}
    path = folder / "runs" / "tiny" / failed["run_id"] / "result.json"
    path.parent.mkdir()
    path.write_text(json.dumps(failed | {"error": f"RuntimeError: {ALERT}\nsecond line"}))
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(study, to=folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        reason = f"needs Debian's chromium: there is no {CHROMIUM}"
        pytest.fail(reason) if os.environ.get("RECPEFT_CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[Path], Any]]:
    """Opens a page; whatever it says, asks for or fails at is a failure of the test."""
    heard: list[str] = []
    context = browser.new_context()

    def listen(tab: Any) -> None:
        tab.on("console", lambda message: heard.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: heard.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: heard.append(f"request: {request.url}"))

    def opened(path: Path) -> Any:
        tab = context.new_page()
        listen(tab)
        tab.goto(path.as_uri())
        assert heard.pop(0) == f"request: {path.as_uri()}"
        return tab

    yield opened
    context.close()
    # Pictures within the page are requests too, which go nowhere.
    assert [line for line in heard if not line.startswith("request: data:")] == []


def shown(tab: Any, table: str, column: int) -> list[str]:
    rows = tab.locator(f"#{table} tbody tr:visible").all()
    return [row.locator("td").nth(column).inner_text() for row in rows]


def changed(study: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the study with other records."""
    shutil.copytree(study, folder)
    for path in folder.glob("*/result.json"):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
    return folder


def test_the_page_opens_without_a_word_on_the_console_or_a_request(page: Path, visit: Callable[[Path], Any]) -> None:
    tab = visit(page)
    assert shown(tab, "quality", 0) == ["popularity", "control (frozen)", "bottleneck", "lora"]
    widths = tab.eval_on_selector_all("img", "images => images.map(image => image.complete && image.naturalWidth)")
    assert len(widths) >= 7
    assert min(widths) > 0


def test_every_plot_says_what_it_shows(page: Path, visit: Callable[[Path], Any]) -> None:
    alts = visit(page).eval_on_selector_all("img", "images => images.map(image => image.alt)")
    assert min(map(len, alts)) > 30
    assert any("on the Pareto front: " in alt for alt in alts)


def test_a_click_on_a_header_sorts_by_the_number_and_a_second_one_turns_it_round(
    page: Path, visit: Callable[[Path], Any]
) -> None:
    """As text 1,191 would stand before 31. Popularity has no parameters and stays last.

    The head has 31, two bottlenecks 2 x (64 x 4 + 4 + 4 x 64 + 64) more, LoRA 7,168 as in test_study.
    """
    tab = visit(page)
    header = tab.locator("#cost th").nth(2)
    assert header.inner_text() == "trainable"
    header.locator("button").click()
    numbers = shown(tab, "cost", 2)
    assert numbers == ["31", "1,191", "7,199", "–"]
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    assert shown(tab, "cost", 2) == [*numbers[2::-1], "–"]
    assert header.get_attribute("aria-sort") == "descending"


def test_the_keyboard_sorts_too(page: Path, visit: Callable[[Path], Any]) -> None:
    tab = visit(page)
    tab.locator("#quality th button").first.focus()
    tab.keyboard.press("Enter")
    assert shown(tab, "quality", 0) == ["bottleneck", "control (frozen)", "lora", "popularity"]
    tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    assert tab.locator("#quality th[aria-sort]").inner_text() == "width"


def test_filters_leave_the_rows_that_match_in_both_tables(page: Path, visit: Callable[[Path], Any]) -> None:
    tab = visit(page)
    tab.locator("#filter").fill("LoRa none")
    for table in ("quality", "cost"):
        assert shown(tab, table, 0) == ["lora"]
    assert tab.locator("#shown").inner_text() == "1 of 4 rows"
    tab.locator("#filter").fill("")
    tab.locator("select[data-column=method]").select_option("bottleneck")
    assert shown(tab, "quality", 0) == ["bottleneck"]
    tab.locator("select[data-column=width]").select_option("–")
    assert shown(tab, "quality", 0) == []
    tab.locator("select[data-column=method]").select_option("")
    assert shown(tab, "quality", 0) == ["popularity"]


def test_differences_are_a_plot_with_a_line_at_0_and_a_table(page: Path, visit: Callable[[Path], Any]) -> None:
    tab = visit(page)
    alt = tab.locator("#differences img").get_attribute("alt")
    rows = [row.locator("td").all_inner_texts() for row in tab.locator("#compared tbody tr").all()]
    assert len(rows) == 2
    for compared, difference, interval, _, _, result, *_ in rows:
        assert f"{compared}: {difference} {interval}  {result}" in alt
    sizes = [abs(float(row[1])) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert {row[0].partition(" minus ")[0] for row in rows} == {"lora, none", "bottleneck, none"}


def test_without_a_script_the_tables_are_there_and_no_filter_that_does_nothing(page: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("#overview tbody tr:visible").count() == tab.locator("#quality tbody tr:visible").count() == 4
    assert tab.locator("#compared tbody tr:visible").count() == 2
    assert tab.locator("form:visible").count() == 0
    context.close()


def test_a_film_whose_title_is_a_script_stays_text(page: Path, visit: Callable[[Path], Any]) -> None:
    tab = visit(page)
    tab.locator("#examples details").first.locator("summary").click()
    assert tab.locator("#examples li:visible").first.inner_text().startswith(f"{ALERT} ")
    assert tab.locator("#failed td").last.inner_text() == f"RuntimeError: {ALERT} second line"
    assert tab.locator("script").count() == 1


def test_markup_in_any_name_stays_text(study: Path, tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    quoted = f"\"'>{ALERT}<img src=x onerror=alert(2)>"

    def change(record: dict[str, Any]) -> None:
        record["width"] = quoted  # a run_id with such signs is no record's
        if record["status"] == "done":
            record["config"] |= {"study": quoted, "variant": f"{quoted} {record['method']}"}
            record["certificate"] = {"reload": {}, quoted: {quoted: [quoted], "list": [{quoted: quoted}]}}
            record["audit"] = record["data"]["name"] = record["device"] = quoted
            record["test"] |= {f"ndcg_{quoted}={quoted}@5": 0.5, f"ndcg_{quoted}=other@5": 0.25}
        if record["method"] == "popularity":
            record["method"] = quoted

    write_report(changed(study, tmp_path / "runs" / "tiny", change), to=tmp_path)
    tab = visit(tmp_path / "report.html")
    assert tab.title() == f"recpeft: {quoted}"
    assert tab.locator("h1").inner_text() == quoted
    assert quoted in shown(tab, "quality", 0)
    assert tab.locator("script").count() == 1
    assert tab.locator("img:not([src^='data:'])").count() == 0
    assert tab.evaluate("document.querySelectorAll('[onerror]').length") == 0
    assert tab.locator("#certificates").text_content().count(ALERT) >= 5 * 7


def test_a_certificate_is_shown_as_a_tree(page: Path, visit: Callable[[Path], Any]) -> None:
    tab = visit(page)
    tab.locator("#certificates > details > summary").first.click()
    first = tab.locator("#certificates > details").first
    assert first.locator("th:visible").all_inner_texts() == ["code", "commit", "files", "empty", "none"]
    assert first.locator("td td").nth(1).inner_text() == "a.py, b.py"
    assert tab.locator("#certificates").text_content().count("holds no certificate") == 1
    assert tab.locator("#certificates").get_by_text("padding").count() > 0  # the others have their own


def test_the_page_and_its_plots_ask_nothing_of_the_network(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href|action)=["'](?!data:|#)""", text)
    for plot in (page.parent / "figures").glob("*.svg"):
        assert not re.search(r"""href=["'](?!#)|url\((?!#)|<script""", plot.read_text()), plot


def test_the_same_records_give_the_same_files_and_others_stay(page: Path, study: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.txt").write_text("of the paper's own")
    write_report(study, to=tmp_path)
    (tmp_path / "figures" / "mine.txt").unlink()  # raises where it is gone
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".md", ".csv", ".tex", ".html", ".svg", ".png"}
    for path in files:
        assert (tmp_path / path).read_bytes() == (page.parent / path).read_bytes(), path


def test_quality_is_plotted_against_each_cost_and_every_group_has_its_bars(page: Path) -> None:
    plots = {path.stem for path in (page.parent / "figures").glob("*.png")}
    assert plots == {path.stem for path in (page.parent / "figures").glob("*.svg")}
    costs = ("trainable", "memory", "time", "diversity", "gap_gender")
    assert plots >= {"curves", "groups_gender", *(f"pareto_{cost}" for cost in costs)}


def test_no_bar_is_cut_off(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels share their axis: the longest bar may stand in the last one."""
    finish, seen = _figures._finish, []

    def look(figure: Any, name: str, *rest: Any) -> Any:
        if name.startswith("groups_"):
            for axes in figure.axes:
                seen.extend((bar.get_width(), axes.get_xlim()) for bar in axes.patches)
        return finish(figure, name, *rest)

    monkeypatch.setattr(_figures, "_finish", look)
    report = make_report(*read([study]))
    report.rows[0].values["ndcg_gender=M@5"] = 0.9
    draw(report)
    assert 0.9 in [width for width, _ in seen]
    assert [(width, ends) for width, ends in seen if not ends[0] == 0 <= width <= ends[1]] == []


def crowd(study: Path, folder: Path, count: int) -> Path:
    """``count`` rankers with names of 30 letters: one by itself, and the others next to one another in a corner."""
    source = record_of("popularity", study)
    for number in range(count):
        copy = shutil.copytree(source.parent, folder / f"{number}")
        record = json.loads(source.read_text()) | {"method": f"a ranker with a long name, {number:04d}"}
        record |= {"run_id": f"{number}"}
        record["config"]["ranker"]["name"] = record["method"]
        record["test"] = {key: value for key, value in record["test"].items() if "=" not in key}  # no bars of groups
        record["test"]["ndcg@5"] = 0.1 + 0.001 * number if number else 0.01
        record["costs"] |= {"peak_memory_bytes": 2**30 if number else 2**29, "train_seconds": 1.0 if number else 0.5}
        (copy / "result.json").write_text(json.dumps(record))
    return folder


def test_labels_of_a_crowded_plot_overlap_nowhere(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for all, the legend has the others."""
    count = 16
    finish, seen = _figures._finish, []

    def look(figure: Any, name: str, *rest: Any) -> Any:
        if name.startswith("pareto_"):
            for dpi in (72, 100, 160):
                figure.set_dpi(dpi)
                figure.draw_without_rendering()
                (axes,) = figure.axes
                renderer = FigureCanvasAgg(figure).get_renderer()
                boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]
                named = [text.get_text() for part in figure.legends for text in part.get_texts()]
                seen.append((boxes, axes.get_window_extent().frozen(), len(named)))
            figure.set_dpi(100)
        return finish(figure, name, *rest)

    monkeypatch.setattr(_figures, "_finish", look)
    draw(make_report(*read([crowd(study, tmp_path / "tiny", count)])))
    assert len(seen) >= 3 * 3
    for boxes, axes, listed in seen:
        assert len(boxes) + listed == count
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert not [
            (box.x0, box.x1, axes.x0, axes.x1) for box in boxes if not (axes.x0 <= box.x0 and box.x1 <= axes.x1)
        ]
        assert len(boxes) >= 6


def test_the_front_has_what_nothing_else_beats() -> None:
    """Cost and quality: (1, 1) and (2, 3) and (4, 4) lead; (3, 3) pays more than (2, 3) for as much, twice is equal."""
    points = [(1, 1), (2, 3), (3, 3), (4, 4), (4, 2), (2, 3)]
    assert front(points, lower_x=True, lower_y=False) == [0, 1, 3, 5]
    assert front(points, lower_x=False, lower_y=False) == [3]
    assert front(points, lower_x=True, lower_y=True) == [0]


def test_many_rows_leave_the_plots_in_order_and_a_dollar_is_no_formula(study: Path, tmp_path: Path) -> None:
    """More names than colours: markers of the second round are hollow, and a legend has the names."""
    source = record_of("popularity", study)
    names = [rf"$\frac$ {number}" for number in range(20)]
    for name in names:
        folder = shutil.copytree(source.parent, tmp_path / "tiny" / name[-2:].strip())
        record = json.loads(source.read_text()) | {"method": name, "run_id": folder.name}
        record["config"]["ranker"]["name"] = name
        (folder / "result.json").write_text(json.dumps(record))
    plots = draw(make_report(*read([tmp_path / "tiny"])))
    memory = next(plot for plot in plots if plot.name == "pareto_memory")
    assert all(f"<!-- {name} -->" in memory.svg for name in names)
