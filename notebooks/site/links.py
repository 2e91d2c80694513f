"""Look through built pages for links that lead nowhere, for what is missing, and for what comes from elsewhere."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SOURCES = {"a": "href", "link": "href", "object": "data"} | dict.fromkeys(
    ("script", "img", "iframe", "source", "embed"), "src"
)
IN_CSS = re.compile(r"url\(\s*['\"]?(?!data:)([^)'\"]+)|@import\s+['\"]([^'\"]+)")
LOADED = ("stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "manifest")  # of <link>


class Page(HTMLParser):
    """What a page leads to and what it loads, (tag, address) each, and the anchors in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.anchors = path, {"", "top"}
        self.leads: list[tuple[str, str]] = []
        self.loads: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note an element's anchor and address."""
        known = dict(attributes)
        self.anchors |= {anchor for anchor in (known.get("id"), tag == "a" and known.get("name")) if anchor}
        address = known.get(SOURCES.get(tag, ""))
        if address is not None:
            loaded = tag != "a" and (tag != "link" or any(kind in LOADED for kind in (known.get("rel") or "").split()))
            (self.loads if loaded else self.leads).append((tag, address))

    @property
    def files(self) -> list[Path]:
        """Return the files that the page loads, without those that are written into it."""
        return [target(self.path, address)[0] for _tag, address in self.loads if not urlsplit(address).scheme]


@cache
def read(path: Path) -> Page:
    """Return a page, read once."""
    return Page(path)


def target(page: Path, address: str) -> tuple[Path, str]:
    """Return the file that an address on a page leads to, and the anchor in it."""
    parts = urlsplit(address)
    return ((page.parent / unquote(parts.path)).resolve() if parts.path else page), unquote(parts.fragment)


def faults(folder: Path) -> list[str]:
    """Say of all pages in a folder which links lead nowhere, and what would be fetched from elsewhere."""
    read.cache_clear()
    folder = folder.resolve()
    pages = sorted(folder.rglob("*.html"))
    found = [f"{page.relative_to(folder)}: {fault}" for page in pages for fault in _faults_of(read(page), folder)]
    return found + [
        f"{sheet.relative_to(folder)}: {fault}" for sheet in sorted(folder.rglob("*.css")) for fault in _in(sheet)
    ]


def _faults_of(page: Page, folder: Path) -> list[str]:
    found = []
    for tag, address in page.leads + page.loads:
        scheme, place, *_rest = urlsplit(address)
        if (scheme or place) and (tag, address) in page.loads and scheme != "data":
            found.append(f"<{tag}> fetches {address}")
        elif not scheme and not place and (missing := _missing(page, address, folder)):
            found.append(f"<{tag}> {address}: {missing}")
    return found


def _missing(page: Page, address: str, folder: Path) -> str:
    file, anchor = target(page.path, address)
    if not file.is_relative_to(folder) or not file.is_file():
        return "no such file"
    if anchor and file.suffix == ".html" and anchor not in read(file).anchors:
        return "no such anchor"
    return ""


def _in(sheet: Path) -> list[str]:
    addresses = [one or other for one, other in IN_CSS.findall(sheet.read_text(encoding="utf-8"))]
    return [
        f"url({each})"
        for each in addresses
        if not each.startswith("#") and (urlsplit(each).scheme or not target(sheet, each)[0].is_file())
    ]


def weight(path: Path) -> int:
    """Return the bytes of a page with all that it loads, frames with what they load, and style sheets with theirs."""
    seen: set[Path] = set()
    waiting = [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in seen and file.is_file():
            seen.add(file)
            if file.suffix == ".html":
                waiting += read(file).files
            elif file.suffix == ".css":
                css = file.read_text(encoding="utf-8")
                waiting += [target(file, one or other)[0] for one, other in IN_CSS.findall(css)]
    return sum(file.stat().st_size for file in seen)
