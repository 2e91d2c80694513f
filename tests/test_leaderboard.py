"""The leaderboard believes no name: it loads each file and lets it read the test digits."""

import hashlib

import pytest
import torch
from digits import MNIST

from kd_lab.checkpoints import load_trained
from kd_lab.compression import score_leaderboard, submit
from kd_lab.compression.leaderboard import PUBLISHED, submissions
from kd_lab.data import Mnist
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.evaluation import accuracy
from kd_lab.formats.kdz import pack
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import prune, remove_channels
from kd_lab.results import RESULTS, load_results

SMALL = Mnist(MNIST.train[:10], MNIST.validation[:10], MNIST.test[:500])
NETWORK = remove_channels(load_trained("mlp128"), {"fc1": torch.arange(16)})  # small, so that it is packed at once


@pytest.fixture(scope="module")
def content():
    return pack(NETWORK)


def test_a_file_is_scored_by_what_it_reads_and_kept(content, tmp_path):
    path = tmp_path / "cnn_with_one_byte_and_no_error.kdz"
    path.write_bytes(content)
    entry = submit(path, "Group 3", SMALL)
    expected = accuracy(NETWORK, SMALL.test)
    assert (entry.label, entry.network, entry.bytes, entry.accuracy) == ("Group 3", "mlp128", len(content), expected)
    assert entry.error == pytest.approx(100 - 100 * expected.value)
    assert score_leaderboard("mlp128", SMALL).entries == [entry] and score_leaderboard("cnn", SMALL).entries == []
    assert [kept.read_bytes() for kept in submissions().iterdir()] == [content]


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
    "call, expected",
    [
        (lambda path: submit(None, "me", SMALL), "submit(): 'path' must be the path of a file"),
        (lambda path: submit(path, "me", SMALL.test), "submit(): 'data' must be what load_mnist() returns"),
        (lambda path: score_leaderboard("cnn", SMALL.test), "score_leaderboard(): 'data' must be what"),
    ],
)
def test_bad_arguments_are_named(content, tmp_path, call, expected):
    (tmp_path / "a.kdz").write_bytes(content)
    with pytest.raises(ParameterError) as error:
        call(tmp_path / "a.kdz")
    assert expected in str(error.value) and not submissions().exists()


@pytest.mark.parametrize("label", ["", "a/b", "../up", "x" * 31, None, "a.b", "_0"])
def test_a_label_is_a_few_letters_and_digits(content, tmp_path, label):
    (tmp_path / "a.kdz").write_bytes(content)
    with pytest.raises(ParameterError, match=r"submit.*'label' must be 1 to 30 letters"):
        submit(tmp_path / "a.kdz", label, SMALL)
    assert not submissions().exists()


def test_the_shipped_files_are_those_of_seed_0_and_stand_beside_the_papers():
    board = score_leaderboard("lenet300", SMALL)
    chosen = {
        row["files"]
        for row in load_results("deep_compression")["reached"].values()
        if row["network"] == "lenet300" and row["way"] == "taught"
    }
    sizes = sorted((RESULTS / "deep_compression" / f"{name}_0.kdz").stat().st_size for name in chosen)
    assert [entry.bytes for entry in board.entries] == sizes and "kd_lab, within 1.64 %" in repr(board)
    axes = board.plot()
    texts = {text.get_text() for text in axes.texts}
    assert {entry.label for entry in board.entries} <= texts and "Deep Compression" in texts and "MIRACLE" not in texts
    assert "arXiv 1510.00149" in repr(board)
    assert axes.lines[0].get_ydata().tolist() == [1.58, 1.94, 1.9]


def test_one_file_within_two_limits_is_one_entry(monkeypatch):
    row = load_results("deep_compression")["reached"]["lenet5_taught_0_80"]
    monkeypatch.setattr(
        "kd_lab.compression.leaderboard.load_results",
        lambda _name: {"reached": {limit: row | {"limit": limit} for limit in (0.8, 1.0)}},
    )
    (entry,) = score_leaderboard("lenet5", SMALL).entries
    assert entry.label == "kd_lab, within 0.8 % and 1.0 %"


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
