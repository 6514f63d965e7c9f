"""Build the documentation site into _docs/ without Quarto: nbdev prepares the notebooks, smalldocs renders them.

Where Quarto is installed, `nbdev_docs` builds the same site from the same `_quarto.yml`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]


def build_docs(site: Path = ROOT / "_docs") -> Path:
    "Render every notebook; the old site is replaced only by a whole new one."
    prepared = proc_nbs(str(ROOT / "nbs"), force=True)
    command = [str(Path(sys.executable).parent / "smalldocs"), "render", str(prepared)]
    subprocess.run(command, check=True)
    rendered = prepared / "_docs"
    pages, notebooks = len(list(rendered.rglob("*.html"))), len(list(prepared.rglob("*.ipynb")))
    if pages < notebooks:
        sys.exit(f"{notebooks} notebooks gave {pages} pages only")
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(rendered, site)
    return site


if __name__ == "__main__":
    site = build_docs()
    print(f"{site.name}/index.html: {len(list(site.rglob('*.html')))} pages")
