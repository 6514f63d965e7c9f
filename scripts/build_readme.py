"""Write README.md from nbs/index.ipynb, as `nbdev_readme` does where Quarto is installed.

Links to other notebooks and to images are made to work from the root of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
LOCAL = re.compile(r"\]\((?!https?://|#)([^)]+)\)")


def _code(source: str, outputs: list) -> str:
    "A code cell and what it printed, as Markdown."
    parts = [f"```python\n{source}\n```"]
    for output in outputs:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        parts += [f"```text\n{text.rstrip()}\n```"] if text.strip() else []
    return "\n\n".join(parts)


def readme(path: Path = ROOT / "nbs" / "index.ipynb") -> str:
    "The text of README.md."
    parts = ["<!-- Written by scripts/build_readme.py from nbs/index.ipynb. Do not edit. -->"]
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(LOCAL.sub(r"](nbs/\1)", cell.source))
        elif cell.cell_type == "code" and not cell.source.startswith("#| hide"):
            parts.append(_code(cell.source, cell.outputs))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
