"""A reader finds in the QR code the bytes of the file, which load and answer the same; what doesn't fit is refused."""

import io
import sys

import pytest
import torch
import zxingcpp
from PIL import Image

from kd_lab.deployment import to_qr
from kd_lab.errors import DamagedFileError, SetupError, StorageError
from kd_lab.formats import load_packed, save_packed, unpack
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import small_student
from kd_lab.results import RESULTS

SMALL, LARGE = (RESULTS / "deep_compression" / f"{name}.kdz" for name in ("lenet5_taught_2_0", "lenet300_taught_7_1"))


def read(picture: bytes) -> bytes:
    (found,) = zxingcpp.read_barcodes(Image.open(io.BytesIO(picture)))
    return found.bytes


def test_a_reader_finds_the_bytes_which_load_and_answer_the_same(tmp_path, validation):
    to_qr(SMALL).save(tmp_path / "code.png")
    content = read((tmp_path / "code.png").read_bytes())
    assert content == SMALL.read_bytes()
    images = validation.images[:200]
    assert torch.equal(predict(unpack(content), images), predict(load_packed(SMALL), images))


def test_a_notebook_shows_it(tmp_path):
    code = to_qr(SMALL)
    code.save(tmp_path / "code.svg")
    assert "<svg" in code._repr_svg_() and (tmp_path / "code.svg").read_text() == code._repr_svg_()


def test_what_does_not_fit_is_refused_with_how_many_bytes_are_too_many(tmp_path):
    save_packed(tmp_path / "a.kdz", small_student(1))
    size = (tmp_path / "a.kdz").stat().st_size
    assert size > 2953  # 784 weights of their own
    with pytest.raises(StorageError, match=rf"a\.kdz has {size:,} bytes, {size - 2953:,} too many"):
        to_qr(tmp_path / "a.kdz")
    with pytest.raises(StorageError, match=r"4,\d\d\d bytes, 1,\d\d\d too many: a QR code holds 2,953"):
        to_qr(LARGE)


def test_other_files_are_refused(tmp_path):
    damaged = bytearray(SMALL.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "a.kdz").write_bytes(damaged)
    with pytest.raises(DamagedFileError, match="is damaged"):
        to_qr(tmp_path / "a.kdz")
    (tmp_path / "b.kdz").write_bytes(b"PK\x03\x04")
    with pytest.raises(StorageError, match=r"is no \.kdz file"):
        to_qr(tmp_path / "b.kdz")
    with pytest.raises(StorageError, match="No such file"):
        to_qr(tmp_path / "c.kdz")


def test_a_picture_of_another_kind_and_a_missing_package(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match=r"code\.gif must end in \.png or \.svg"):
        to_qr(SMALL).save(tmp_path / "code.gif")
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(SetupError, match=r"segno is not installed\. Run: pip install segno"):
        to_qr(SMALL)
    assert not list(tmp_path.glob("code*"))
