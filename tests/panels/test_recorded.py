"""A page of recorded answers holds what the panel measured and nothing else, and leaves the panel as it was."""

import base64
import io
import json
import re
from collections import Counter, namedtuple
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist
from kd_lab.errors import ParameterError, StorageError
from kd_lab.evaluation import predict_classes
from kd_lab.panels import DrawingPanel, PruningPanel, StructuredPruningPanel
from kd_lab.panels import pad as pad_module
from kd_lab.panels.canvas import Canvas, new_figure
from kd_lab.panels.controls import FractionSlider, WholeSlider, dropdown
from kd_lab.panels.measurement import table
from kd_lab.panels.panel import Panel, Shown
from kd_lab.panels.recorded import _change

Setting = namedtuple("Setting", ["x", "share", "kind"])
HOSTILE = "</script><img src=x onerror=alert(1)> {{data}} \"'&"
VOID = {"meta", "link", "img", "br", "input"}


@dataclass(frozen=True)
class Answer:
    setting: Setting


class Toy(Panel):
    """Measure nothing, and fail at 666."""

    def __init__(self):
        controls = {
            "x": WholeSlider(label="x", max=1000, value=5),
            "share": FractionSlider(label="share", value=0.5),
            "kind": dropdown("kind", ["plain", HOSTILE, "never"]),
        }
        super().__init__(controls, (8, 8), 8)
        self.measured = []

    def measure(self, x, share, kind):
        self.measured.append((x, share, kind))
        if x == 666:
            raise RuntimeError("no such x")
        yield Answer(Setting(x, share, kind))

    def draw(self, answer):
        x, share, kind = answer.setting
        canvas = Canvas(new_figure(8, 8), [])
        png = canvas.png(np.full((1 + x % 7, 2, 3), 200 + x % 50, np.uint8))
        pinned = f" pinned {self.pinned.setting.x}" if self.pinned else ""
        return Shown(f"{x} {share:g} {kind}{pinned}", png, table([[kind, str(x)]], ["kind", "x"]))


@pytest.fixture
def toy():
    toy = Toy()
    yield toy
    toy.close()


class Tags(HTMLParser):
    """Look whether every element is closed where it should be, and keep the tags, their attributes and all texts."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def read(path):
    """Return the page's own data, and the picture that it begins with."""
    page = path.read_text("utf-8")
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    return data, re.search('<img [^>]*src="data:image/png;base64,([^"]*)"', page)[1]


def picture(text):
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA")


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def answers(path):
    """Return what the page shows at each setting: title, picture as the page puts it together, and tables."""
    data, first = read(path)
    return {
        tuple(setting): (
            title,
            np.asarray(Image.alpha_composite(picture(first), picture(data["pictures"][place])).convert("RGB")),
            data["tables"][rows],
        )
        for setting, (title, place, rows) in zip(data["settings"], data["answers"], strict=True)
    }


def rows(tables):
    return [row.replace(" ", "") for row in re.findall("<tr>(.*?)</tr>", tables)]


def test_the_page_shows_what_the_panel_shows_at_each_setting(mnist, tmp_path, reads, monkeypatch):
    monkeypatch.setattr("kd_lab.panels.pruning.CURVE", (0.0, 0.5, 0.99))
    panel = PruningPanel(load_trained("mlp128"), Mnist(mnist.train[:100], mnist.validation[:1200], mnist.test[:100]))
    panel.set(sparsity=0.3)
    panel.pin()
    panel.refresh(reveal=True)
    panel.flush()
    reads.clear()
    settings = [{"sparsity": 0.5}, {"sparsity": 0.95, "scope": "per_layer"}, {"importance": "random"}]
    panel.save_html(tmp_path / "page.html", settings)
    found = answers(tmp_path / "page.html")
    assert reads == [] and panel.pinned.setting.sparsity == 0.3 and len(panel.tests) == 1
    assert panel.setting == {"sparsity": 0.3, "importance": "magnitude", "scope": "global"}
    own = panel.flush()
    assert own.title.startswith("30 % pruned") and "against pinned" in own.tables and "test part" in own.tables
    panel.pin()
    assert [*found] == [(0.5, "magnitude", "global"), (0.95, "magnitude", "per_layer"), (0.3, "random", "global")]
    for values, (title, shown, tables) in found.items():
        panel.set(**dict(zip(panel.controls, values, strict=True)))
        live = panel.flush()
        assert title == live.title and np.array_equal(shown, pixels(live.png))
        assert rows(tables) == [row for row in rows(live.tables) if "test" not in row]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "on 1,200 validation images" in page and "<b>recorded</b> 3 settings, measured on 20" in page
    panel.close()


def test_without_javascript_the_first_answer_is_there(toy, tmp_path):
    toy.save_html(tmp_path / "page.html", [{"x": 3}, {"x": 4}])
    page = (tmp_path / "page.html").read_text("utf-8")
    body = page.partition("<script")[0]
    _, first = read(tmp_path / "page.html")
    toy.set(x=3)
    shown = toy.flush()
    assert f"<b>{shown.title}</b>" in body and f'alt="{shown.title}"' in body and shown.tables in body
    assert np.array_equal(np.asarray(picture(first).convert("RGB")), pixels(shown.png))
    assert "only the first of them" in body[body.index("<noscript>") : body.index("</noscript>")]


def test_what_a_setting_leaves_out_is_as_the_panel_has_it_and_nothing_between_is_measured(toy, tmp_path):
    toy.set(x=7, share=0.25)
    toy.save_html(tmp_path / "page.html", [{"x": 1, "share": 0.75}, {"kind": HOSTILE}, {}])
    assert toy.measured == [(1, 0.75, "plain"), (7, 0.25, HOSTILE), (7, 0.25, "plain")]
    assert [*answers(tmp_path / "page.html")] == toy.measured
    assert toy.setting == {"x": 7, "share": 0.25, "kind": "plain"} and toy.shown is None and toy._worker is None


def test_a_panel_that_is_shown_goes_on_from_its_own_setting(toy, tmp_path):
    toy.flush()
    toy.save_html(tmp_path / "page.html", [{"x": 1}])
    assert toy.flush().title == "5 0.5 plain"
    toy.set(x=2)  # from now on every move is followed, without a flush
    assert toy._worker and toy.flush().title == "2 0.5 plain"


def test_a_setting_given_twice_is_recorded_once(toy, tmp_path):
    toy.save_html(tmp_path / "page.html", [{"x": 1}, {"x": 2}, {"x": 1, "share": 0.5}])
    assert [setting[0] for setting in read(tmp_path / "page.html")[0]["settings"]] == [1, 2]
    assert [x for x, *_ in toy.measured] == [1, 2]
    assert "2 settings, measured" in (tmp_path / "page.html").read_text("utf-8")


def test_what_is_the_same_is_stored_once(toy, tmp_path):
    toy.save_html(tmp_path / "page.html", [{"share": share / 20} for share in range(20)])
    data, _ = read(tmp_path / "page.html")
    assert len(data["answers"]) == 20 and len(data["pictures"]) == len(data["tables"]) == 1


BAD = {
    "none": (None, "'settings' must be a list of settings"),
    "a dict": ({"x": 1}, "'settings' must be a list of settings"),
    "empty": ([], "'settings' must be a list of one setting or more"),
    "no setting": ([{"x": 1}, 5], r"settings\[1\] is none of this panel: 'setting' must be a dict"),
    "a control": ([{}, {"shere": 1}], r"settings\[1\] is none of this panel: .* Did you mean 'share'\?"),
    "a value": ([{"x": 1}, {"share": 50}], r"settings\[1\] is none of this panel: 'share' must be .* mean 0.5\?"),
    "an option": ([{"kind": "plane"}], r"settings\[0\] is none of this panel: 'kind' must be one of plain"),
    "not whole": ([{"x": 0.5}], r"settings\[0\] is none of this panel: 'x' must be a whole number"),
}


@pytest.mark.parametrize("settings, message", BAD.values(), ids=BAD)
def test_settings_that_the_panel_does_not_have_are_refused_before_anything_is_measured(
    toy, tmp_path, settings, message
):
    (tmp_path / "page.html").write_text("before")
    with pytest.raises(ParameterError, match=rf"^Toy\.save_html\(\): {message}"):
        toy.save_html(tmp_path / "page.html", settings)
    assert toy.measured == [] and [each.read_text() for each in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_setting_that_can_not_be_measured_is_named_and_nothing_is_written(toy, tmp_path, begun):
    if begun:
        toy.pin()
    (tmp_path / "page.html").write_text("before")
    with pytest.raises(ParameterError, match=r"settings\[1\], x 666, share 0.25, can't be measured: no such x"):
        toy.save_html(tmp_path / "page.html", [{"x": 1}, {"x": 666, "share": 0.25}, {"x": 2}])
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]
    assert toy.flush().title.startswith("5 0.5 plain") and bool(toy.pinned) is begun


def test_a_place_that_can_not_be_written_is_refused_before_anything_is_measured(toy, tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path, "it is a folder"), (tmp_path / "file" / "page.html", "is no folder that you may")):
        with pytest.raises(StorageError, match=message):
            toy.save_html(path, [{}])
    with pytest.raises(ParameterError, match="'path' must be the path of a file"):
        toy.save_html(5, [{}])
    assert toy.measured == []


def test_an_old_page_stays_whole_where_writing_fails(toy, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "page.html").write_text("before")
    monkeypatch.setattr("kd_lab.storage.os.replace", fail)
    with pytest.raises(StorageError):
        toy.save_html(tmp_path / "page.html", [{}])
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]


def test_a_closed_panel_says_so(toy, tmp_path):
    toy.close()
    with pytest.raises(AttributeError, match="This panel is closed"):
        toy.save_html(tmp_path / "page.html", [{}])


def test_no_name_breaks_the_page_and_nothing_is_asked_for(toy, tmp_path):
    toy.save_html(tmp_path / "page.html", [{"kind": HOSTILE}, {"kind": "plain"}])
    data, _ = read(tmp_path / "page.html")
    page = Tags((tmp_path / "page.html").read_text("utf-8"))
    counts = Counter(tag for tag, _ in page.tags)
    assert counts["script"] == 2 and counts["img"] == counts["main"] == counts["html"] == 1
    assert data["controls"][2]["options"][1] == HOSTILE and f"5 0.5 {HOSTILE}" in page.texts
    assert next(attributes["alt"] for tag, attributes in page.tags if tag == "img") == f"5 0.5 {HOSTILE}"
    assert all(given["src"].startswith("data:") for _, given in page.tags if "src" in given)
    assert all(given["href"] == "data:," for _, given in page.tags if "href" in given)
    assert any("default-src 'none'" in (given.get("content") or "") for _, given in page.tags)


def test_every_layer_keeps_its_ratio_while_others_are_recorded(mnist, tmp_path, quick_latency):
    data = Mnist(mnist.train[:100], mnist.validation[:100], mnist.test[:10])
    panel = StructuredPruningPanel(load_trained("lenet300"), data)
    _, one, other = panel.controls["layer"].options
    panel.set(layer=one, ratio=0.25)
    before = panel.setting
    panel.save_html(tmp_path / "page.html", [{"layer": "all layers", "ratio": 0.9}, {"layer": other, "ratio": 0.75}])
    assert panel.setting == before and panel.controls["layer"].value == one and panel.controls["ratio"].value == 0.25
    of_layers = [tables.rpartition("<table>")[2] for *_, tables in answers(tmp_path / "page.html").values()]
    assert [re.findall(r"> *([\d.]+) %</td>", tables) for tables in of_layers] == [["90", "90"], ["25", "75"]]
    panel.close()


def test_a_picture_of_too_many_colours_is_stored_too():
    whole, other = (np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8) for seed in (0, 1))
    for picture_now in (other, whole, np.where(np.arange(30)[:, None] < 3, other, whole)):
        change = Image.open(io.BytesIO(_change(picture_now, whole))).convert("RGBA")
        together = Image.alpha_composite(Image.fromarray(whole).convert("RGBA"), change)
        assert np.array_equal(np.asarray(together.convert("RGB")), picture_now)


@pytest.fixture
def drawing(mnist, monkeypatch):
    monkeypatch.setattr(pad_module, "latency", lambda *_: 0.00123)
    monkeypatch.setattr(pad_module, "real_images", lambda *_: mnist.validation.images[:1])
    panel = DrawingPanel({"dense": load_trained("mlp128"), HOSTILE: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))})
    yield panel
    panel.close()


def test_recorded_digits_are_answered_as_the_networks_answer_them(drawing, mnist, tmp_path):
    digits = mnist.validation[20:26]
    drawing.save_html(tmp_path / "page.html", digits)
    data, _ = read(tmp_path / "page.html")
    assert data["controls"] == [{"label": "digit", "factor": 1, "unit": "of 6"}]
    found = answers(tmp_path / "page.html")
    assert [*found] == [(number,) for number in range(1, 7)] and len(data["pictures"]) == 6
    read_as = predict_classes(load_trained("mlp128"), digits.images)
    for (title, _, tables), label, answer in zip(found.values(), digits.labels, read_as, strict=True):
        assert title.startswith(f"This {label} is read as ") and f">{answer}," in rows(tables)[1]
    assert drawing.setting == {"digit": ()} and drawing.flush().title.startswith("This example is read as")
    Tags((tmp_path / "page.html").read_text("utf-8"))
    drawing.set(digit=tuple((digits.images[0] * pad_module.STD + pad_module.MEAN).clamp(0, 1).flatten().tolist()))
    assert drawing.flush().title.startswith("Your digit")  # again


def test_what_is_no_digit_is_not_recorded(drawing, mnist, tmp_path):
    digits = mnist.validation[:2]
    for settings in (
        [{"digit": ()}],
        digits.images,
        None,
        mnist.validation[:0],
        digits._replace(images=digits.images[:, :, :20]),
    ):
        with pytest.raises(ParameterError, match=r"^DrawingPanel\.save_html\(\): 'settings' must be"):
            drawing.save_html(tmp_path / "page.html", settings)
    assert list(tmp_path.iterdir()) == []
