"""Notebooks are literature: a title alone in the first cell, words, tests, and nothing empty."""

import ast
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).resolve().parents[2] / "nbs"
NOTEBOOKS = sorted(NBS.rglob("*.ipynb"))
REFERENCE = [path for path in NOTEBOOKS if path.stem[:2].isdigit() and path.parent.name != "tutorials"]


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(params=NOTEBOOKS, ids=name_of)
def cells(request) -> list:
    return nbformat.read(request.param, as_version=4).cells


def test_the_first_cell_is_a_title_and_a_subtitle_and_nothing_else(cells):
    # nbdev makes front matter of the first cell: whatever else stands in it is not on the site
    title, blank, *subtitle = cells[0].source.split("\n")
    assert cells[0].cell_type == "markdown" and title.startswith("# ") and blank == ""
    assert subtitle[0].startswith("> ") and all(line.strip() for line in subtitle)


def test_no_cell_is_empty(cells):
    assert all(cell.source.strip() for cell in cells)


@pytest.mark.parametrize("path", REFERENCE, ids=name_of)
def test_a_reference_notebook_explains_and_tests_what_it_exports(path):
    cells = nbformat.read(path, as_version=4).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    exported = sum(
        cell.source.count("\ndef ") + cell.source.count("\nclass ")
        for cell in cells
        if "#| export" in cell.source
    )
    tested = sum(
        any(word in cell.source for word in ("test_eq", "test_close", "expect_fail", "assert"))
        for cell in cells
    )
    assert words >= (30 if path.stem == "91_main" else 200)
    assert tested >= min(3, exported)


@pytest.mark.parametrize("path", sorted((NBS.parent / "ukbmm" / "data").glob("*.py")), ids=name_of)
def test_what_only_the_examples_of_a_notebook_use_is_not_imported_by_the_module(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {name.asname or name.name.split(".")[0] for node in imports for name in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert imported - used <= {"annotations"}
