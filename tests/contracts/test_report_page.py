"""The page of a report: parses, needs nothing else, escapes what the data say, has a bound, and a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pyarrow as pa
import pytest

import hostile_text
from annotation_tables import annotation_row, annotations_table
from pairwright.data.profile.counts import count
from pairwright.data.profile.profile_page import render
from pairwright.data.profile.profile_schema import TableMetrics
from report_tables import HOSTILE, metrics_of, random_rows

SCHEMA = Path(__file__).parents[2] / "schemas" / "table_report.v1.json"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
VOID = {"meta", "link", "br", "img", "hr", "input"}
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
    "--window-size=1200,900",
]
# Lays the page out at a width, and writes what a test wants to know of it into the document.
PROBE = """<!doctype html><meta charset="utf-8"><style>iframe{border:0;width:WIDTHpx;height:900px}</style>
<iframe src="PAGE"></iframe><pre id="found"></pre><script>
document.querySelector("iframe").onload = event => {
  const held = event.target.contentDocument, root = held.documentElement;
  held.querySelectorAll("details").forEach(one => one.open = true);
  const style = event.target.contentWindow.getComputedStyle(held.body);
  document.querySelector("#found").textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth, background: style.backgroundColor, text: style.color,
    height: root.scrollHeight, sections: held.querySelectorAll("section").length,
  });
};</script>"""


def hostile_rows() -> list[dict[str, Any]]:
    rows = random_rows(60, annotators=(HOSTILE, "long" * 80, None))
    for row in rows:
        row |= {"subset": HOSTILE, "prompt": [{"role": "user", "content": HOSTILE}]}
        row["scores"] = [float(-rank) for rank in row["ranks"]]
        row["completions"][0]["model"] = HOSTILE
    return rows


@pytest.fixture(scope="module")
def metrics() -> TableMetrics:
    return metrics_of(hostile_rows(), name=HOSTILE)


@pytest.fixture(scope="module")
def page(metrics: TableMetrics) -> str:
    return render(metrics)


def test_the_page_shows_control_characters_and_marks_of_direction_as_escapes_and_isolates_names() -> None:
    rows = hostile_rows()
    for row in rows:
        row |= {"annotator": hostile_text.HOSTILE, "subset": hostile_text.HOSTILE}
        row["prompt"] = [{"role": "user", "content": hostile_text.HOSTILE}]
        row["completions"][0]["model"] = hostile_text.HOSTILE
    page = render(metrics_of(rows, name=hostile_text.HOSTILE))
    hostile_text.check_shown(page.replace(hostile_text.FORGED, ""))  # where a line of HTML begins means nothing
    assert page.count("<bdi") == page.count("</bdi>")
    assert page.count('<bdi class="name">evil\\x1b]0;OWNED') >= 4


class Parsed(HTMLParser):
    """What a page consists of; fails on a tag that is closed without having been opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    parsed = Parsed(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "img", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), attributes
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_what_the_data_say_is_text_and_nothing_else(page: str) -> None:
    assert "<script" not in page
    assert "<img" not in page
    text = "".join(Parsed(page).text)
    for place in (f"/{HOSTILE}", f"{HOSTILE} 0", f'{{"id": "{HOSTILE}'):
        assert place in text
    assert text.count("<script>") >= 8


def test_every_link_of_the_page_leads_somewhere(page: str) -> None:
    parsed = Parsed(page)
    anchors = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    targets = [(attributes["href"] or "") for tag, attributes in parsed.tags if tag == "a"]
    assert targets
    assert {target.removeprefix("#") for target in targets} <= anchors


def test_tables_have_headings_and_pictures_have_words(page: str) -> None:
    parsed = Parsed(page)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in parsed.tags if tag == "th")
    pictures = [attributes for _, attributes in parsed.tags if attributes.get("role") == "img"]
    assert len(pictures) == 2
    assert all(attributes["aria-label"] for attributes in pictures)


def test_the_page_of_a_large_table_is_no_longer_than_its_bound() -> None:
    def many(number: int) -> str:
        rows = []
        for i in range(number):
            row = annotation_row(str(i), [f"a{i}", f"b{i} longer"], [1, 2], prompt=f"p{i}", annotator=f"annotator {i}")
            row |= {"subset": f"subset {i}", "scores": [i / 7, 0.0]}
            for k, completion in enumerate(row["completions"]):
                completion["model"] = f"model {(i + k) % number}"
            rows.append(row)
        return render(metrics_of(rows))

    small, large = many(300), many(1500)
    assert len(large) < 1.1 * len(small)
    assert len(large) < 400_000
    assert "1,400 more are not shown" in large


def test_a_table_without_annotations_has_a_page() -> None:
    empty = metrics_of([])
    assert "holds no annotations" in empty.highlights[0].text
    assert Parsed(render(empty)).tags


def test_the_json_keeps_its_contract(metrics: TableMetrics) -> None:
    written = json.loads(msgspec.json.encode(metrics))
    jsonschema.validate(written, json.loads(SCHEMA.read_text()), jsonschema.Draft202012Validator)
    assert msgspec.convert(written, TableMetrics) == metrics


def test_counts_of_one_kind_add_up(metrics: TableMetrics) -> None:
    total = metrics.totals
    for rows in (metrics.by_subset, metrics.by_num_completions):
        assert sum(row.comparisons for row in rows) == total["comparisons"]
    assert sum(row.annotations for row in metrics.annotators) == total["annotations"]
    assert sum(row.annotations for row in metrics.tied_shares) == total["annotations"]
    assert sum(row.groups for row in metrics.annotations_per_group) == total["groups"]
    assert sum(row.completions for row in metrics.scores.histogram) == total["completions"]
    assert 2 * sum(row.decisive for row in metrics.longer_by_ratio) <= 2 * total["decisive"]


def seen_in_a_browser(page: str, folder: Path, scheme: str, number: int, probe: str = PROBE) -> dict[str, Any]:
    """Return what a probe finds in a page on a phone, which fits it, logs nothing and has the scheme's colours."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "probe.html").write_text(probe.replace("PAGE", "page.html").replace("WIDTH", "390"))
    shown = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--blink-settings=preferredColorScheme={number}",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            f"file://{folder / 'probe.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    match = re.search(r'<pre id="found">(\{.*?\})</pre>', shown.stdout)
    assert match, shown.stdout[-2000:] + shown.stderr[-2000:]
    found = json.loads(match[1])
    assert found["overflow"] == 0
    assert not re.findall(r".*CONSOLE.*", shown.stderr)
    brightness = [sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("background", "text")]
    assert (
        (brightness[0] > 600 > 300 > brightness[1])
        if scheme == "light"
        else (brightness[0] < 150 < 500 < brightness[1])
    )
    return found


@pytest.mark.skipif(not CHROMIUM, reason="no browser: apt-get install chromium, to look at the page in one")
@pytest.mark.parametrize(("scheme", "number"), [("light", 1), ("dark", 0)])
def test_a_browser_shows_the_page_on_a_phone_without_errors(
    scheme: str, number: int, page: str, tmp_path: Path
) -> None:
    found = seen_in_a_browser(page, tmp_path, scheme, number)
    assert found["sections"] == 12
    assert found["height"] > 3000


def test_the_aggregates_of_no_annotation_have_every_column() -> None:
    """What a version without annotations leaves out would be missing on the driver."""
    some, none = count(annotations_table(hostile_rows()), {}), count(annotations_table([]), {})
    for name, table in none.items():
        assert isinstance(table, pa.Table)
        assert table.column_names == some[name].column_names, name
