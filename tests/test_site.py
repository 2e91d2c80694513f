"""The static site: lessons that were not run are named, links lead somewhere, formulas need no script."""

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
import yaml

from kd_lab.errors import SetupError
from notebooks import build
from notebooks.lab import LESSONS
from notebooks.site import __main__ as site
from notebooks.site import links, recordings, reference, stage
from notebooks.site.mathml import to_mathml

PAGE = '<!DOCTYPE html><html><head><link rel="stylesheet" href="{css}"></head><body id="here">{body}</body></html>'


@pytest.fixture
def pages(tmp_path):
    """Return a function that writes pages, and what is found in them."""

    def write(body, css="style.css", **others):
        files = {"index.html": PAGE.format(css=css, body=body), "style.css": "body {}"}
        for name, text in (files | {name.replace("_", "."): text for name, text in others.items()}).items():
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """Return a function that puts a changed copy of lesson 01 in the place of all lessons."""

    def change(edit):
        notebook = nbformat.read(LESSONS[1], as_version=4)
        edit(notebook.cells)
        path = tmp_path / LESSONS[1].name
        nbformat.write(notebook, path)
        monkeypatch.setattr(site, "LESSONS", [path])

    return change


def clear_outputs(cells):
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def drop_pictures(cells):
    for cell in cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)


def test_every_committed_lesson_can_be_shown():
    assert [fault for path in LESSONS for fault in site.lesson_faults(path)] == []


@pytest.mark.parametrize(
    ("edit", "said"), [(clear_outputs, "not run once from top to bottom"), (drop_pictures, "no picture")]
)
def test_a_lesson_without_outputs_or_pictures_is_named_before_anything_is_made(lesson, edit, said, tmp_path):
    lesson(edit)
    with pytest.raises(SystemExit, match=rf"01_magnitude_pruning\.ipynb: .*{said}"):
        site.build_site(tmp_path / "built")
    assert not (tmp_path / "built").exists()


def test_links_that_lead_somewhere_pass(pages):
    body = '<a href="other.html#place">a</a><a href="#here">b</a><a href="https://example.org">c</a><img src="a.png">'
    assert links.faults(pages(body, other_html="<p id='place'>", a_png="")) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<a href="gone.html">a</a>', "<a> gone.html: no such file"),
        ('<a href="other.html#gone">a</a>', "<a> other.html#gone: no such anchor"),
        ('<a href="#gone">a</a>', "<a> #gone: no such anchor"),
        ('<img src="gone.png">', "<img> gone.png: no such file"),
        ('<noscript><img src="gone.png"></noscript>', "<img> gone.png: no such file"),
        ('<iframe src="gone.html"></iframe>', "<iframe> gone.html: no such file"),
        ('<a href="../outside.html">a</a>', "<a> ../outside.html: no such file"),
        ('<script src="https://cdn.example/a.js"></script>', "<script> fetches https://cdn.example/a.js"),
        ('<img src="//cdn.example/a.png">', "<img> fetches //cdn.example/a.png"),
    ],
)
def test_what_is_broken_or_comes_from_elsewhere_is_named(pages, body, said):
    folder = pages(body, other_html="<p>")
    (folder.parent / "outside.html").write_text("<p>")
    assert links.faults(folder) == [f"index.html: {said}"]


def test_a_style_sheet_may_load_only_what_is_there(pages):
    folder = pages("", css="other.css", other_css="@import 'https://fonts.example/a.css'; p { src: url(gone.woff) }")
    assert links.faults(folder) == ["other.css: url(https://fonts.example/a.css)", "other.css: url(gone.woff)"]


def test_the_weight_of_a_page_is_that_of_all_that_it_loads_once(pages):
    folder = pages('<img src="a.png"><img src="a.png"><iframe src="frame.html"></iframe>', a_png="12345",
                   frame_html='<img src="b.png">', b_png="123")  # fmt: skip
    sizes = sum((folder / name).stat().st_size for name in ("index.html", "style.css", "frame.html"))
    assert links.weight(folder / "index.html") == sizes + 5 + 3


def test_a_formula_becomes_mathml():
    mathml = to_mathml(r"\frac{z^2}{2n} \pm \sqrt{x_i}", "block")
    assert mathml.startswith("<math") and 'display="block"' in mathml and "<mo>&#x000B1;</mo>" in mathml
    assert {"<mfrac>", "<msup>", "<msqrt>", "<msub>"} <= set(re.findall(r"<m\w+>", mathml))


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"\frac{a", r"\begin{nothing}"])
def test_a_formula_that_cannot_be_read_is_refused(latex):
    with pytest.raises(ValueError, match="formula"):
        to_mathml(latex)


def test_a_docstring_is_prose_with_code():
    lines = ["Return |w|·g of `a_b` and *c*, `x`s.", "", "    model = prune(model, 0.5)  # `a`", "Then_ more."]
    assert reference.to_rst(lines) == [
        r"Return \|w\|·g of \ ``a_b``\  and \*c\*, \ ``x``\ s.",
        *("", "::", "", "    model = prune(model, 0.5)  # `a`", ""),
        r"Then\_ more.",
    ]  # fmt: skip


def test_the_reference_has_all_that_a_lesson_imports():
    pages = "\n".join(reference.module_pages().values())
    documented = re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)$", pages, re.MULTILINE)
    wanted = {(home.split(".")[1], name) for home, name in reference.imported() if home.startswith("kd_lab.")}
    assert wanted <= {(name.split(".")[1], name.split(".")[-1]) for name in documented}
    assert len(documented) == len(set(documented))


@pytest.mark.parametrize("recording", recordings.RECORDINGS, ids=lambda each: each.name)
def test_a_recorded_panel_stands_in_its_lesson_where_the_live_one_would(recording):
    path = next(path for path in LESSONS if path.stem == recording.lesson)
    cells = json.loads(stage.lesson_page(path, [recording]))["cells"]
    shown = next(cell for cell in cells if cell["id"] == recording.cell)["outputs"][-1]["data"]
    frame = "".join(shown["text/html"])
    assert f'<iframe src="../panels/{recording.name}.html" loading="lazy" title="Recorded panel. ' in frame
    assert f'<noscript><img src="../panels/{recording.name}.png"' in frame and "image/png" not in shown


def test_every_panel_of_the_lessons_is_recorded():
    made = [
        (path.stem, cell.id)
        for path in LESSONS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and re.search(r"(?<!Prediction)Panel\(", cell.source)
    ]
    assert [(each.lesson, each.cell) for each in recordings.RECORDINGS] == made


def test_a_panel_that_there_is_not_is_named(tmp_path):
    with pytest.raises(ValueError, match="no panel is called 13_nothing; there are: 01_pruning"):
        recordings.record_all(tmp_path, ["13_nothing"])


def test_a_panel_that_cannot_be_recorded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "ProcessPoolExecutor", lambda *_options: ThreadPoolExecutor(1))
    monkeypatch.setattr(recordings, "make_panel", lambda _recording: 1 / 0)
    with pytest.raises(SetupError, match=r"own_pruning could not be recorded\. ZeroDivisionError: division by zero"):
        recordings.record_all(tmp_path, ["own_pruning"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["", "https://github.com/someone/kd_lab"])
def test_pages_are_published_only_once_an_address_is_set(address, tmp_path):
    jobs = yaml.safe_load((build.ROOT / ".github" / "workflows" / "site.yml").read_text())["jobs"]
    (tmp_path / "pyproject.toml").write_text(f'[tool.kd_lab]\nrepository = "{address}"\n')
    said = tmp_path / "said"
    look = jobs["address"]["steps"][-1]["run"]
    subprocess.run(["bash", "-e", "-c", look], cwd=tmp_path, env=os.environ | {"GITHUB_OUTPUT": str(said)}, check=True)
    assert said.read_text() == f"is_set={str(bool(address)).lower()}\n"
    assert jobs["build"]["if"] == "needs.address.outputs.is_set == 'true'" and jobs["publish"]["needs"] == "build"
