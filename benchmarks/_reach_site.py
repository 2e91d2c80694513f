"""Build the site from nothing, and measure what a reader gets: broken links, minutes, the heaviest page."""

import tempfile
from pathlib import Path

from benchmarks._tables import table
from notebooks.lab import LESSONS
from notebooks.site import links
from notebooks.site.__main__ import build_site

HEAVY = 5  # pages to name


def site_figures() -> dict[str, float]:
    """Build the site in a fresh folder, panels recorded from nothing, print a table and return the figures."""
    with tempfile.TemporaryDirectory(prefix="kd_lab_site_") as folder:
        seconds = build_site(Path(folder), check=False)
        pages = Path(folder) / "html"
        broken = links.faults(pages)
        weights = {str(page.relative_to(pages)): links.weight(page) / 1000 for page in pages.rglob("*.html")}
    heaviest = sorted(weights, key=weights.__getitem__, reverse=True)[:HEAVY]
    rows = [[f"{name}, s", f"{each:.0f}"] for name, each in seconds.items()]
    rows += [["pages", len(weights)], ["lessons", len(LESSONS)], ["broken links", len(broken)]]
    print(table(["site", ""], rows + [[f"{name}, kB", f"{weights[name]:.0f}"] for name in heaviest]), *broken, sep="\n")
    return {
        "reach.site.broken_links": len(broken),
        "reach.site.minutes": round(sum(seconds.values()) / 60, 2),
        "reach.site.heaviest_page_kb": round(weights[heaviest[0]]),
    }


if __name__ == "__main__":
    print(site_figures())
