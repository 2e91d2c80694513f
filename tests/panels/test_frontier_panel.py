"""The frontier panel shows the best file known within a budget: what is drawn and written is measured or recorded."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.faults import count_widgets
from kd_lab.compression import known, submit
from kd_lab.compression.known import KnownFile, error_frontier, recorded_files
from kd_lab.compression.leaderboard import submissions
from kd_lab.data import Mnist
from kd_lab.errors import KdLabError, ParameterError
from kd_lab.evaluation import accuracy, paired_difference, predict_classes
from kd_lab.formats.kdz import pack, save_packed, unpack
from kd_lab.networks.zoo import build_model
from kd_lab.panels import FrontierPanel
from kd_lab.panels import frontier as module
from kd_lab.panels.frontier import BIASES, FILTERS, HEIGHT, REST, filters, mosaic
from kd_lab.panels.measurement import percent, points

BEST = error_frontier(recorded_files())


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:100], mnist.validation[:1125], mnist.test[:100])


@pytest.fixture(scope="module")
def shared(part, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # the user's own cache may have submissions
        patch.setenv("KD_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        panel = FrontierPanel(part)
        panel.flush()
    yield panel
    panel.close()


def answers(panel, budget):
    panel.flush()  # one at a time: only its worker measures
    return list(panel.measure(budget))


def of_the_kit(file):
    """Return the network in a file if it has a name in the kit: no other can be packed in all ways."""
    model = unpack(file.content)
    return model if model.architecture != "sequence" else None


def tiny():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 7, 7), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10))
    for tensor in model.parameters():
        tensor.data.mul_(8).round_().div_(8)
    return model


@pytest.mark.parametrize("place", range(len(BEST)))
def test_it_reads_the_file_of_the_smallest_recorded_error_beside_the_next_larger(panel, part, place):
    chosen, other = BEST[place], BEST[place + 1] if place + 1 < len(BEST) else BEST[place - 1]
    first, *_, last = answers(panel, chosen.bytes)
    one, two = (unpack(each.content) for each in (chosen, other))
    assert (last.chosen, last.other) == (chosen, other) and last.setting == (chosen.name, chosen.bytes)
    assert first.comparison.accuracy == accuracy(one, part.validation[:1000])
    assert last.comparison.accuracy == accuracy(one, part.validation)
    assert last.comparison.difference == paired_difference(one, two, part.validation)
    assert list(last.comparisons) == ["this file", "next larger" if place + 1 < len(BEST) else "next smaller"]


def test_between_two_sizes_the_smaller_file_is_the_best(panel):
    assert answers(panel, BEST[1].bytes - 1)[-1].chosen == BEST[0]
    assert answers(panel, BEST[-1].bytes + 1)[-1].chosen == BEST[-1]


def test_the_tables_say_what_was_measured_and_recorded(panel, part):
    answer = answers(panel, BEST[0].bytes)[-1]
    tables, model = panel.draw(answer).tables, unpack(BEST[0].content)
    for text in (
        percent(accuracy(model, part.validation)),
        points(answer.comparison, answer.comparison.dense),
        f"{BEST[0].error:.2f} % (5)",
        f"{BEST[1].bytes:,}",
        "not read for this setting",
        "In order: " + " → ".join(name for name, _ in model.named_children()),
    ):
        assert text in tables
    weight = next(model.parameters())
    assert f"{int((weight != 0).sum()):,} of {weight.numel():,}" in tables and "…" not in tables


def test_the_bytes_of_all_layers_are_those_of_the_file(panel):
    parts = answers(panel, BEST[0].bytes)[-1].parts
    assert sum(parts.values()) == BEST[0].bytes and min(parts.values()) > 0
    assert [*parts][-2:] == [BIASES, REST]
    model = unpack(BEST[0].content)
    before = len(pack(model, module.COMPACT if BEST[0].content[3:4] == b"4" else "range"))
    next(model.parameters()).data.zero_()
    assert next(iter(parts.values())) == before - len(
        pack(model, "compact" if BEST[0].content[3:4] == b"4" else "range")
    )


def test_the_bytes_of_a_file_that_is_packed_another_way_add_up_too(panel):
    panel.flush()
    content = pack(next(filter(None, map(of_the_kit, BEST))), "huffman")
    *_, parts = panel._bytes_by_layer(KnownFile("huffman", (content,), 1.0, 1))
    assert sum(parts.values()) == len(content)


def test_the_picture_shows_the_known_files_the_chosen_one_and_its_filters(panel):
    answer = answers(panel, BEST[0].bytes)[-1]
    panel.draw(answer)
    drawing, right = panel._drawing, answer.comparison.accuracy
    assert {tuple(point) for point in drawing._known.get_xydata()} == {
        (each.bytes, each.error) for each in panel._files
    }
    assert len(drawing._line.get_xdata()) == len(BEST)
    budget, bar, point, ring = (line.get_xydata().tolist() for line in drawing._traces.lines)
    assert budget[0][0] == BEST[0].bytes and ring == [[BEST[0].bytes, BEST[0].error]]
    assert point[0][1] == pytest.approx(100 - 100 * right.value)
    assert [end for _, end in bar] == pytest.approx([100 - 100 * end for end in right.interval])
    drawn, expected = drawing._filters.get_array(), mosaic(filters(unpack(BEST[0].content)), *FILTERS)
    assert np.array_equal(np.ma.filled(drawn, np.nan), expected, equal_nan=True)


def test_digits_under_the_picture_are_those_read_wrongly(panel, part, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "digit_strip", lambda *given: shown.append(given) or np.zeros((74, 640, 3), np.uint8))
    panel.draw(answers(panel, BEST[0].bytes)[-1])
    wrong = predict_classes(unpack(BEST[0].content), part.validation.images) != part.validation.labels
    assert shown[0][3].tolist() == wrong.nonzero().flatten().tolist()


def test_what_is_submitted_is_measured_and_takes_its_place(part, tmp_path, capsys):
    save_packed(tmp_path / "tiny.kdz", tiny(), "compact")
    submit(tmp_path / "tiny.kdz", "tiny", part)
    for place, content in enumerate((pack(build_model("mlp128"))[:-1], b"kdz")):
        (submissions() / f"bad {place}.01234567.kdz").write_bytes(content)
    panel = FrontierPanel(part)
    assert capsys.readouterr().out.count("Left out: ") == 2
    size = (tmp_path / "tiny.kdz").stat().st_size
    assert size < BEST[0].bytes and panel.controls["budget"].stops[0] == size
    panel.set(budget=size)
    assert panel.flush().title.startswith(f"tiny, {size:,} bytes: ")
    (mine,) = [each for each in panel._files if each.name == "tiny"]
    assert mine.error == pytest.approx(100 - 100 * accuracy(tiny(), part.validation).value)
    assert "3" in re.findall(r"Conv2d 1-(\d), 7×7, stride 7", panel.shown.tables)
    panel.close()


def test_a_submission_that_cannot_read_is_named_and_the_panel_goes_on(panel, capsys):
    broken = KnownFile("broken", (BEST[0].content[:20],), None, 1)
    panel._submitted.append(broken)
    assert answers(panel, BEST[0].bytes)[-1].chosen == BEST[0]
    assert "Left out: broken" in capsys.readouterr().out and broken not in panel._submitted


def test_only_the_button_reads_the_test_part(panel, part, button, reads):
    panel.flush()
    assert reads == []
    button(panel, "Reveal test").click()
    model = unpack(error_frontier(panel._files)[(len(BEST) - 1) // 2].content)
    assert percent(accuracy(model, part.test)) in panel.flush().tables and len(reads) == 1


@pytest.mark.parametrize("value", [0, BEST[0].bytes - 1, 2.5, None, "500"])
def test_a_slider_refuses_what_it_cannot_stand_at(panel, value):
    before = panel.flush()
    with pytest.raises(ParameterError, match=r"FrontierPanel\.set\(\): 'budget' must be a whole number in"):
        panel.set(budget=value)
    assert panel.flush() == before


def test_a_budget_below_any_file_is_refused_in_words(panel):
    with pytest.raises(ParameterError, match=f"'budget' must be {BEST[0].bytes:,}|'budget' must be"):
        answers(panel, 10)


@pytest.mark.parametrize("data", [None, "mnist", 3, (torch.zeros(3, 1, 28, 28), torch.zeros(3))])
def test_bad_input_gets_one_clear_error_and_leaves_no_widget(data):
    before = count_widgets()
    with pytest.raises(ParameterError) as error:
        FrontierPanel(data)
    assert str(error.value).startswith("FrontierPanel(): ") and count_widgets() == before


def test_without_a_recorded_file_it_says_so(monkeypatch, tmp_path, part):
    monkeypatch.setattr(known, "RESULTS", tmp_path)
    with pytest.raises(KdLabError, match="none of the files"):
        FrontierPanel(part)


def test_one_known_file_stands_alone(monkeypatch, part):
    monkeypatch.setattr(module, "recorded_files", lambda: [replace(BEST[0])])
    panel = FrontierPanel(part)
    panel.flush()
    (answer, *_) = panel.measure(BEST[0].bytes)
    assert list(answer.comparisons) == ["this file"] and "next" not in panel.shown.tables
    panel.close()


@pytest.mark.parametrize("shape", [(6, 5, 5), (1, 3, 200), (24, 28, 28), (1, 1, 1), (1, 600, 30), (9, 200, 100)])
def test_filters_are_drawn_whole_where_there_is_room(shape):
    windows = np.linspace(-1, 1, np.prod(shape)).reshape(shape)
    drawn = mosaic(windows, *FILTERS)
    seen = set(drawn[~np.isnan(drawn)])
    assert drawn.shape == FILTERS
    whole = shape[0] * shape[1] < 1000 and shape[1] < FILTERS[0]
    assert seen == set((windows if whole else windows[0, : FILTERS[0]]).flatten())


@pytest.mark.parametrize(
    "name, shape", [("lenet5", (20, 5, 5)), ("lenet300", (24, 28, 28)), ("lstm", (1, 512, 28)), ("cnn", (16, 3, 3))]
)
def test_the_windows_of_a_first_layer(name, shape):
    found = filters(build_model(name))
    assert found.shape == shape and np.abs(found).max() == 1


def test_the_picture_keeps_its_size_and_moves(panel):
    pictures = []
    for each in BEST[:2]:
        panel.set(budget=each.bytes)
        pictures.append(np.asarray(Image.open(io.BytesIO(panel.flush().png)).convert("RGB")))
    assert {picture.shape for picture in pictures} == {(HEIGHT, 800, 3)}
    assert 0.001 < (pictures[0] != pictures[1]).any(axis=2).mean() < 0.3


def test_where_no_widgets_are_a_picture_is(panel):
    assert {"image/png", "text/plain"} <= set(panel._repr_mimebundle_())
