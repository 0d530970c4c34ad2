"""A report as one HTML file: it holds all rows, needs nothing from elsewhere, and no name in it becomes markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from commands import expect_refusal, lines_of, on_a_terminal, succeed

from runtime.report import markdown, page, plots, summary
from runtime.results import Report
from trainers.manifest import UserError

GOLDEN = Path(__file__).parent / "golden" / "report-2.json"
HOSTILE = [
    template.format(word)
    for word in ("script", "img", "svg", "iframe", "a")
    for template in (
        "<{0}>alert(1)</{0}>", "\"><{0} onload=alert(1)>", "'><{0} src=x onerror=alert(1)>", "</td></table><{0}>",
        "</style><{0}>", "</title><{0}>", "{{{{ {0} }}}}", "{{% {0} %}}", "<!--<{0}>", "&lt;{0}&gt;",
    )
]  # fmt: skip


class Seen(HTMLParser):
    """Counts elements and keeps attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report() -> Report:
    return Report.load(GOLDEN)


def written(report: Report, folder: Path) -> Seen:
    page.write(report, folder / "page.html")
    return Seen((folder / "page.html").read_text())


def renamed(report: Report, name: str) -> Report:
    """With this for the name of the first subject, its model and its path."""
    first = report.subjects[0]
    old, new = first.name, f"{name}-{first.name}"
    subjects = tuple(
        msgspec.structs.replace(s, name=new if s.name == old else s.name, model=name, path=f"{name}/{s.path}")
        for s in report.subjects
    )
    rows = tuple(
        msgspec.structs.replace(row, cell=msgspec.structs.replace(row.cell, artifact=new))
        if row.cell.artifact == old else row
        for row in report.measurements
    )  # fmt: skip
    return msgspec.structs.replace(report, subjects=subjects, measurements=rows, command=f"-m runtime bench {name}")


def test_the_page_holds_every_row_and_the_answer_first(report: Report, tmp_path: Path) -> None:
    seen = written(report, tmp_path)
    rows = [row for model in report.models() for row in report.of(model) if row.valid]
    conditions = sum(len(report.conditions(model)) for model in report.models())
    assert seen.elements["tr"] == len(rows) + conditions
    answers = summary.sentences(report)
    assert answers
    assert all(answer in seen.text for answer in answers)
    assert seen.text.index(answers[0]) < seen.text.index("All rows")
    anchors = {value for name, value in seen.attributes if name == "id"}
    links = {value.removeprefix("#") for name, value in seen.attributes if name == "href"}
    assert links
    assert links <= anchors, "a click on a point leads to its row"


def test_the_plot_of_batch_sizes_is_marked_at_those_measured(report: Report) -> None:
    rows = [row for row in report.of(report.models()[0]) if row.valid]
    larger = [msgspec.structs.replace(row, cell=msgspec.structs.replace(row.cell, batch=3)) for row in rows]
    plot = plots.sweep(report, rows + larger)
    assert plot is not None
    assert [text for _, text in plot.x.ticks] == [f"{row.cell.batch}" for row in (rows[0], larger[0])]
    assert {name.split()[1] for name in (line.name for line in plot.lines)} == {"in"}


def test_nothing_is_loaded_from_elsewhere(report: Report, tmp_path: Path) -> None:
    seen = written(report, tmp_path)
    assert not {"link", "img", "iframe", "object"} & set(seen.elements)
    assert not [value for name, value in seen.attributes if name in ("src", "srcset") or "://" in value]
    assert (tmp_path / "page.html").stat().st_size < 3_000_000


def test_no_name_becomes_markup(report: Report, tmp_path: Path) -> None:
    plain = written(renamed(report, "model"), tmp_path)
    assert plain.elements["script"] == 2
    for name in HOSTILE:
        seen = written(renamed(report, name), tmp_path)
        assert seen.elements == plain.elements, name
        assert not [attribute for attribute, _ in seen.attributes if attribute.startswith("on")], name
        assert name in seen.text


def test_markdown_says_the_same_and_keeps_its_columns(report: Report) -> None:
    text = markdown.render(renamed(report, "a|b"))
    assert all(sentence in text for sentence in summary.sentences(renamed(report, "a|b")))
    for table in ("\n".join(part) for part in _tables(text)):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def _tables(text: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [part for part in found if part]


def test_an_axis_has_round_ticks_inside_it() -> None:
    for low, high in ((0.013, 7.1), (0.9, 1.1), (3.0, 4000.0)):
        log = plots.Axis(low, high, 0, 100, log=True)
        assert all(0 <= at <= 100 for at, _ in log.ticks)
        linear = plots.Axis(-low, high, 100, 0)
        assert len(linear.ticks) >= 3
        assert all(0 <= at <= 100 for at, _ in linear.ticks)
    assert [text for _, text in plots.Axis(0.9, 12.0, 0, 100, log=True).ticks] == ["1", "2", "5", "10"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rounds_s": [[]], "processes": []}, "a round without samples"),
        ({"rounds_s": [[0.0, 1.0]], "processes": []}, "no time"),
        ({"rounds_s": [[1.0], [1.0]], "processes": [0]}, "2 rounds, of 1 processes"),
        ({"cell": "another artifact"}, "no subject"),
    ],
)
def test_a_report_that_no_run_has_left_is_refused(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    document = json.loads(GOLDEN.read_text())
    row = document["measurements"][0]
    row.update(changed if "cell" not in changed else {"cell": {**row["cell"], "artifact": changed["cell"]}})
    (tmp_path / "edited.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=says):
        Report.load(tmp_path / "edited.json")


def test_the_front_is_what_nothing_beats_in_time_and_accuracy() -> None:
    points = [(1.0, 2.0), (2.0, 1.0), (2.5, 1.5), (4.0, 0.0), (5.0, 0.0)]
    assert plots._front(points) == [(1.0, 2.0), (2.0, 1.0), (4.0, 0.0)]


def test_samples_drawn_are_the_rows_own(report: Report) -> None:
    named = [("a", "KEEP", row) for row in report.of(report.models()[0]) if row.valid][:1]
    (strip,) = plots.distributions(report, named).strips
    values = np.concatenate([np.asarray(turn) for turn in named[0][2].rounds_s])
    assert len(strip.samples) == min(plots.SHOWN, len(values))
    assert strip.samples == sorted(strip.samples)
    assert strip.quartiles[0] <= strip.quartiles[1] <= strip.quartiles[2]


@pytest.mark.slow
def test_the_command_writes_the_page_and_refuses_two_forms(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runtime", "report", str(GOLDEN)]
    done = subprocess.run([*command, "--html", str(tmp_path / "r.html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    done = subprocess.run([*command, "--md", "--csv"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give one" in done.stderr


@pytest.mark.slow
def test_two_reports_show_what_changed_and_rows_go_to_tensorboard(report: Report, tmp_path: Path) -> None:
    slower = tuple(
        msgspec.structs.replace(row, rounds_s=tuple(tuple(2 * value for value in turn) for turn in row.rounds_s))
        for row in report.measurements
    )
    new = tmp_path / "new.json"
    msgspec.structs.replace(report, measurements=slower).save(new)
    command = [sys.executable, "-m", "runtime", "report", str(GOLDEN), str(new), "--html", str(tmp_path / "r.html"),
               "--logs", str(tmp_path / "logs")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "REGRESSION" in done.stdout
    assert "| REGRESSION |" in succeed("runtime", "report", GOLDEN, new, "--md").stdout
    expect_refusal("runtime", "report", GOLDEN, new, "--csv", says="python -m runtime compare OLD NEW --json")
    text = Seen((tmp_path / "r.html").read_text()).text
    assert f"What changed since {GOLDEN}" in text
    assert text.count("REGRESSION") >= len([row for row in report.of(report.models()[0]) if row.valid])
    rows = [row for model in report.models() for row in report.of(model) if row.valid]
    assert len(list((tmp_path / "logs").rglob("events.out.tfevents.*"))) == len(rows)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_table_fits_the_terminal(width: int) -> None:
    status, said = on_a_terminal(width, "-m", "runtime", "report", GOLDEN, NO_COLOR="1")
    assert status == 0
    lines = lines_of(said)
    head = next(number for number, line in enumerate(lines) if line.startswith(" backend"))
    rows = lines[head : next(number for number, line in enumerate(lines) if line.startswith(("left", "warning")))]
    assert sum(row.startswith((" onnxruntime", " eager")) for row in rows) == 3
    assert max(map(len, rows)) <= width
    joined = re.sub(r"\s", "", "".join(row[15:24] if width == 60 else row for row in rows))  # names go on below
    assert joined.count("dynamo-exact-int8") == joined.count("torch-exact-fp32") == 1, "no name is cut"
    assert any(line.startswith("left out") for line in lines) == (width < 200)
    assert "\x1b[3" not in said, "NO_COLOR"


def test_colour_is_for_terminals_alone() -> None:
    _, said = on_a_terminal(100, "-m", "runtime", "report", GOLDEN)
    assert "\x1b[" in said
    done = succeed("runtime", "report", GOLDEN)
    assert "\x1b" not in done.stdout + done.stderr
