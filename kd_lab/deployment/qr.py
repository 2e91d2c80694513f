"""Draw a packed network as a QR code, which holds the bytes of its file. Needs segno."""

import io
from pathlib import Path
from typing import Any

from kd_lab.environment import optional
from kd_lab.errors import StorageError
from kd_lab.formats.kdz import read_packed, unpack
from kd_lab.storage import file_path, write_safely

MAX_BYTES = 2_953  # in the largest code, version 40 at error correction level L (ISO/IEC 18004, table 7)


class QrCode:
    """Show a QR code in a notebook, and save it as a picture."""

    def __init__(self, code: Any):
        self.code = code  # segno's

    def save(self, path: Path) -> None:
        """Write the code as a picture, a .png or an .svg, as its name ends."""
        path = file_path(path)
        if path.suffix not in (".png", ".svg"):
            raise StorageError(f"{path} must end in .png or .svg.")
        write_safely(path, self._picture(path.suffix[1:]))

    def _repr_svg_(self) -> str:
        return self._picture("svg").decode()

    def _picture(self, kind: str) -> bytes:
        picture = io.BytesIO()
        self.code.save(
            picture, kind=kind, scale=4, light="white"
        )  # else a dark page behind it would make it unreadable
        return picture.getvalue()


def to_qr(path: Path) -> QrCode:
    """Draw the QR code that holds a network's .kdz file, byte for byte.

    Raises a StorageError for a file that is damaged, that is no .kdz file, or that has more than 2,953 bytes, and a
    SetupError where segno is missing.
    """
    path = file_path(path)
    content = read_packed(path)
    unpack(content, str(path))
    if len(content) > MAX_BYTES:
        raise StorageError(
            f"{path} has {len(content):,} bytes, {len(content) - MAX_BYTES:,} too many: a QR code holds {MAX_BYTES:,}."
        )
    return QrCode(optional("segno", "segno").make_qr(content, error="l", mode="byte", boost_error=False))
