"""The leaderboard believes no name: it loads each file and lets it read the test digits."""

import hashlib
import os
from dataclasses import replace
from statistics import mean

import pytest
import torch
from digits import MNIST

from kd_lab.checkpoints import load_trained
from kd_lab.compression import Entry, leaderboard, score_leaderboard, submit
from kd_lab.compression.leaderboard import PUBLISHED, PUBLISHED_OPEN, submissions
from kd_lab.compression.records import load_records, record_frontier, standing_record
from kd_lab.compression.rules import Rule, score_files
from kd_lab.data import Mnist, Split
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.evaluation import Accuracy, accuracy, correct_answers
from kd_lab.formats.kdz import load_packed, pack
from kd_lab.networks.copies import copied
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import prune, remove_channels
from kd_lab.results import RESULTS

SHIPPED = RESULTS / "deep_compression" / "lenet300_plain_1_0.kdz"
SMALL = Mnist(MNIST.train[:10], MNIST.validation[:10], MNIST.test[:500])
NETWORK = remove_channels(load_trained("mlp128"), {"fc1": torch.arange(16)})  # small, so that it is packed at once


@pytest.fixture(scope="module")
def content():
    return pack(NETWORK)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Return the paths of five files that differ a little."""
    folder, paths = tmp_path_factory.mktemp("seeds"), []
    for seed in range(5):
        model = copied(NETWORK)
        with torch.no_grad():
            model.fc2.bias[seed] += 1e-3
        paths.append(folder / f"seed_{seed}.kdz")
        paths[-1].write_bytes(pack(model))
    return paths


def test_a_file_is_scored_by_what_it_reads_and_kept(content, tmp_path):
    path = tmp_path / "cnn_with_one_byte_and_no_error.kdz"
    path.write_bytes(content)
    entry = submit(path, "Group 3", SMALL)
    expected = accuracy(NETWORK, SMALL.test)
    assert (entry.label, entry.network, entry.bytes, entry.accuracy) == ("Group 3", "mlp128", len(content), expected)
    assert entry.error == pytest.approx(100 - 100 * expected.value)
    assert score_leaderboard("mlp128", SMALL).entries == [entry] and score_leaderboard("cnn", SMALL).entries == []
    (kept,) = submissions().iterdir()
    assert kept.read_bytes() == content and kept.name == f"Group 3.{hashlib.sha256(content).hexdigest()[:8]}.kdz"


@pytest.mark.slow
def test_it_grows_and_the_smallest_file_stands_first(content, tmp_path):
    for sparsity in (0.5, 0.9, 0.95):
        (tmp_path / "a.kdz").write_bytes(pack(prune(load_trained("mlp128"), sparsity)))
        submit(tmp_path / "a.kdz", "me", SMALL)
        submit(tmp_path / "a.kdz", "me", SMALL)  # the same again is the same
    board = score_leaderboard("mlp128", SMALL)
    sizes = [entry.bytes for entry in board.entries]
    assert len(sizes) == 3 and sizes == sorted(sizes) and {entry.label for entry in board.entries} == {"me"}
    assert all(f"{size:,}" in repr(board) for size in sizes) and "<table>" in board._repr_html_()


@pytest.mark.parametrize(
    "damage, error",
    [
        (lambda content: content[:-1], DamagedFileError),
        (lambda content: b"", StorageError),
        (lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:], DamagedFileError),
    ],
)
def test_a_file_that_cannot_be_loaded_is_not_kept(content, tmp_path, damage, error):
    (tmp_path / "a.kdz").write_bytes(damage(content))
    with pytest.raises(error, match=r"a\.kdz"):
        submit(tmp_path / "a.kdz", "me", SMALL)
    assert not submissions().exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: bytes(500)])
def test_a_file_that_was_damaged_since_is_named_and_the_others_stay(content, tmp_path, capsys, damage):
    (tmp_path / "a.kdz").write_bytes(content)
    submit(tmp_path / "a.kdz", "me", SMALL)
    submit(tmp_path / "a.kdz", "you", SMALL)
    (mine,) = submissions().glob("me.*")
    mine.write_bytes(damage(content))
    assert [entry.label for entry in score_leaderboard("mlp128", SMALL).entries] == ["you"]
    assert f"Left out: {mine} is" in capsys.readouterr().out and mine.exists()


def test_a_submission_that_is_no_network_is_named_and_the_others_stay(content, tmp_path, capsys):
    (tmp_path / "a.kdz").write_bytes(content)
    submit(tmp_path / "a.kdz", "me", SMALL)
    body = b"mlp128 zip\n"
    (submissions() / "you.kdz").write_bytes(content[:4] + hashlib.sha256(body).digest()[:16] + body)
    assert [entry.label for entry in score_leaderboard("mlp128", SMALL).entries] == ["me"]
    assert "you.kdz holds no network of the kit" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["<b>.kdz", "$x$.kdz", "a.b.c.kdz", ".kdz", "x" * 31 + ".kdz", "me.12345678.5.kdz", "\udcff.kdz"]
)
def test_a_file_with_a_name_that_submit_never_gives_is_named_and_the_others_stay(content, tmp_path, capsys, name):
    (tmp_path / "a.kdz").write_bytes(content)
    submit(tmp_path / "a.kdz", "me", SMALL)
    (submissions() / name).write_bytes(content)
    assert [entry.label for entry in score_leaderboard("mlp128", SMALL).entries] == ["me"]
    assert (
        f"Left out: {str(submissions() / name)!r} is no file with a name as submit() gives it."
        in capsys.readouterr().out
    )


def test_folders_pipes_and_dead_links_are_named_and_the_others_stay(content, tmp_path, capsys):
    (tmp_path / "a.kdz").write_bytes(content)
    submit(tmp_path / "a.kdz", "me", SMALL)
    (submissions() / "one.kdz").mkdir()
    os.mkfifo(submissions() / "two.kdz")
    (submissions() / "three.kdz").symlink_to(tmp_path / "nowhere")
    assert [entry.label for entry in score_leaderboard("mlp128", SMALL).entries] == ["me"]
    assert capsys.readouterr().out.count("Left out: ") == 3


def test_a_network_that_answers_no_numbers_is_named_and_the_others_stay(content, tmp_path, capsys):
    broken = remove_channels(load_trained("mlp128"), {"fc1": torch.arange(127)})
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(1e30)
    (tmp_path / "a.kdz").write_bytes(content)
    submit(tmp_path / "a.kdz", "me", SMALL)
    (submissions() / "you.kdz").write_bytes(pack(broken))
    assert [entry.label for entry in score_leaderboard("mlp128", SMALL).entries] == ["me"]
    assert "you.kdz can't be scored: the model answers NaN or infinite logits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "call, expected",
    [
        (lambda path: submit(None, "me", SMALL), "submit(): 'path' must be the path of a file"),
        (lambda path: submit(path, "me", SMALL.test), "submit(): 'data' must be what load_mnist() returns"),
        (lambda path: score_leaderboard("cnn", SMALL.test), "score_leaderboard(): 'data' must be what"),
        (lambda path: submit([], "me", SMALL), "submit(): 'path' must be the path of a file, or a list of 1 to 20"),
        (lambda path: submit([path] * 21, "me", SMALL), "submit(): 'path' must be the path of a file, or a list of 1"),
        (lambda path: submit([path] * 5, "me", SMALL), "submit(): each seed must have a file of its own."),
        (lambda path: submit([path, SHIPPED], "me", SMALL), "submit(): the files of one recipe must hold one net"),
        (lambda path: submit([path, 5], "me", SMALL), "submit(): 'path' must be the path of a file. Got 5"),
        (lambda path: submit({path}, "me", SMALL), "submit(): 'path' must be the path of a file"),
        (lambda path: submit(path, "me", SMALL, chosen_on="tests"), "'chosen_on' must be one of"),
        (lambda path: submit(path, "me", SMALL, command=""), "submit(): 'command' must be the command"),
    ],
)
def test_bad_arguments_are_named(content, tmp_path, call, expected):
    (tmp_path / "a.kdz").write_bytes(content)
    with pytest.raises(ParameterError) as error:
        call(tmp_path / "a.kdz")
    assert expected in str(error.value) and not submissions().exists()


def test_files_of_several_seeds_are_one_entry_with_the_mean_of_all(seeds):
    entry = submit(seeds, "ours", SMALL)
    scores = score_files([(str(path), path.read_bytes()) for path in seeds], SMALL)
    assert entry.bytes == round(mean(path.stat().st_size for path in seeds))
    assert entry.error == pytest.approx(scores.error) and entry.errors == tuple(scores.errors.values)
    assert entry.interval == scores.errors.interval and "mean of 5 seeds" in repr(entry)
    kept = sorted(submissions().iterdir())
    assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in seeds]
    assert score_leaderboard("mlp128", SMALL).entries == [entry]
    kept[2].write_bytes(b"kdz")
    assert score_leaderboard("mlp128", SMALL).entries == []


def test_a_single_file_meets_few_rules_and_what_is_not_said_is_not_said(content, tmp_path):
    (tmp_path / "a.kdz").write_bytes(content)
    entry = submit(tmp_path / "a.kdz", "me", SMALL)
    assert [rule.met for rule in entry.rules[:4]] == [None, False, True, None] and entry.record_of == []
    assert {rule.board for rule in entry.rules[4:]} == {"open"}  # no board has records of mlp128
    said = repr(entry).splitlines()
    assert said[0].startswith(f"me: mlp128, {len(content):,} bytes, test error ") and said[1] == "Not a record:"
    assert [line.split()[0] for line in said[2:]] == [
        "not",
        "no",
        "yes",
        "not",
        *("yes" if rule.met else "no" for rule in entry.rules[4:]),
    ]


def test_each_submission_under_a_label_reads_the_test_part_again(seeds):
    for path, met in ((seeds[0], True), (seeds[0], True), (seeds[1], False), (seeds, False)):
        assert submit(path, "me", SMALL).rules[2].met is met
    assert submit(seeds[1], "me too", SMALL).rules[2].met  # another label


@pytest.mark.parametrize(("more", "boards"), [(1, ["open"]), (-1, [])])
def test_five_files_that_beat_the_record_before_them_are_a_record(seeds, monkeypatch, more, boards):
    """The one before reads the same images wrongly, in a byte more or less each."""
    right = correct_answers(NETWORK, SMALL.test).nonzero().flatten().repeat(10)  # of few images the interval is wide
    easy = SMALL._replace(test=Split(*(part[right] for part in SMALL.test)))
    scores = score_files([(str(path), path.read_bytes()) for path in seeds], easy)
    before = replace(scores, sizes=[size + more for size in scores.sizes])
    monkeypatch.setattr(leaderboard, "load_records", lambda: [replace(load_records()[0], limit=0.45, scores=before)])
    entry = submit(seeds, "ours", easy, command="make ours", chosen_on="validation")
    assert entry.error <= 0.45 and entry.record_of == boards
    assert repr(entry).splitlines()[1] == ("A record of open." if boards else "Not a record:")
    assert submit(seeds, "ours", easy, command="make ours").record_of == []


def test_an_interval_of_seeds_ends_where_errors_do():
    entry = Entry("ours", "lenet5", 900, Accuracy(499, 500), errors=(0.0, 0.0, 0.0, 0.0, 1.0))
    assert entry.interval[0] == 0 and entry.interval[1] == pytest.approx(0.2 + 2.7764451051977987 * 0.2)
    assert replace(entry, errors=(99.0, 100.0)).interval[1] == 100


def test_a_record_is_one_on_each_board_whose_rules_are_met():
    rules = [
        Rule("a", True, ""),
        Rule("b", True, "", "lenet5"),
        Rule("c", True, "", "open"),
        Rule("d", True, "", "open"),
    ]
    entry = Entry("ours", "lenet5", 900, Accuracy(99, 100), rules=tuple(rules))
    assert entry.record_of == ["lenet5", "open"] and "A record of lenet5 and of open." in repr(entry)
    for place, left in ((0, []), (1, ["open"]), (2, ["lenet5"]), (3, ["lenet5"])):
        for met in (False, None):
            changed = [*rules[:place], rules[place]._replace(met=met), *rules[place + 1 :]]
            assert replace(entry, rules=tuple(changed)).record_of == left


@pytest.mark.parametrize("label", ["", "a/b", "../up", "x" * 31, None, "a.b", "_0"])
def test_a_label_is_a_few_letters_and_digits(content, tmp_path, label):
    (tmp_path / "a.kdz").write_bytes(content)
    with pytest.raises(ParameterError, match=r"submit.*'label' must be 1 to 30 letters"):
        submit(tmp_path / "a.kdz", label, SMALL)
    assert not submissions().exists()


def test_the_means_of_the_records_stand_beside_the_papers():
    board = score_leaderboard("lenet300", SMALL)
    sizes = [round(record.scores.bytes) for record in record_frontier(load_records(), "lenet300")]
    assert [entry.bytes for entry in board.entries] == sizes and "kd_lab, within 1.64 %" in repr(board)
    axes = board.plot()
    texts = {text.get_text() for text in axes.texts}
    standing = {entry.label for entry in board.entries if "earlier" not in entry.label}  # that may find no room
    assert standing <= texts and "Deep Compression" in texts and "MIRACLE" not in texts
    assert "arXiv 1510.00149" in repr(board)
    assert axes.lines[0].get_ydata().tolist() == [1.58, 1.94, 1.9]


def test_a_record_whose_place_another_took_is_called_earlier():
    entries = score_leaderboard("lenet300", SMALL).entries
    standing = standing_record(load_records(), "lenet300", 1.9)
    assert {entry.label: entry.bytes for entry in entries if "within 1.9 %" in entry.label} == {
        "kd_lab, within 1.9 %": round(standing.scores.bytes),
        "kd_lab, within 1.9 %, earlier": 3788,
    }


@pytest.mark.parametrize("count", [300, 10_000])
def test_of_a_record_the_errors_of_all_seeds_count_on_the_images_that_are_read(count, mnist, monkeypatch):
    record = standing_record(load_records(), "lenet5", 1.0)
    monkeypatch.setattr(leaderboard, "load_records", lambda: [record])
    data = mnist._replace(test=Split(*(each[:count] for each in mnist.test)))
    (entry,) = score_leaderboard("lenet5", data).entries
    readers = [load_packed(RESULTS / name) for name in record.files]
    errors = [100 - 100 * accuracy(reader, data.test).value for reader in readers]
    assert entry.errors == pytest.approx(errors) and entry.error == pytest.approx(mean(errors))


def test_files_that_are_a_record_within_two_limits_are_one_entry(monkeypatch):
    record = next(each for each in load_records() if each.board == "lenet300")
    monkeypatch.setattr(leaderboard, "load_records", lambda: [record, replace(record, limit=1.9)])
    (entry,) = score_leaderboard("lenet300", SMALL).entries
    assert entry.label == "kd_lab, within 1.64 % and 1.9 %"


def test_on_the_open_board_stands_any_network_with_its_bytes(content, tmp_path):
    (tmp_path / "a.kdz").write_bytes(content)
    entry = submit(tmp_path / "a.kdz", "me", SMALL)
    board = score_leaderboard("open", SMALL)
    sizes = [round(record.scores.bytes) for record in record_frontier(load_records(), "open")]
    assert [each.bytes for each in board.entries] == sorted([*sizes, entry.bytes]) and entry in board.entries
    rows = repr(board).splitlines()
    assert rows[0].split() == ["open", "bytes", "network", "test", "error,", "%", "95", "%", "interval"]
    assert any("697 parameters as float32 (JoshWarn" in row and "2,788" in row and "0.97" in row for row in rows)
    assert any("BitNetMCU, 11.0 kB" in row and "11,264" in row and "0.45" in row for row in rows)
    axes = replace(board, entries=[each for each in board.entries if each != entry]).plot()
    assert axes.get_legend().get_texts()[0].get_text() == "published; bare parameters as float32"
    labels = {each.label for each in (*PUBLISHED_OPEN, *board.entries)} - {"me"}
    standing = {label for label in labels if "earlier" not in label}  # that may find no room
    assert standing <= {text.get_text() for text in axes.texts} <= labels
    assert "me" in {text.get_text() for text in board.plot().texts}


def test_every_published_file_of_the_open_board_names_its_source():
    assert [each.bytes for each in PUBLISHED_OPEN] == [2_788, 7_744, 2_300, 5_360, 11_264]
    assert all("/" in each.source and 0 < each.error <= 2 for each in PUBLISHED_OPEN)


def test_a_network_without_files_has_an_empty_board():
    board = score_leaderboard("cnn", SMALL)
    assert board.entries == [] and board.plot().get_title() == "cnn"


def test_an_unknown_network_is_named():
    with pytest.raises(ParameterError, match="Did you mean 'lenet300'"):
        score_leaderboard("lenet30", SMALL)


def test_published_figures_name_their_source_and_a_network_of_the_kit():
    for paper in PUBLISHED:
        assert "arXiv" in paper.source and paper.network in MODELS
    deep = next(paper for paper in PUBLISHED if paper.label == "Deep Compression" and paper.network == "lenet300")
    dense = 4 * sum(parameter.numel() for parameter in build_model("lenet300").parameters())
    assert 26_000 < dense / deep.ratio < 28_000  # 27 KB in the paper
