"""The order of modules, what imports what, and the form and contents of notebooks."""

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from ukbmm.core import EID_PATTERN
from ukbmm.disclosure import ENCODED, scan_file

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
NUMBER = re.compile(r"(\d\d[a-z]?)_(\w+)\.ipynb")
MODULES = {}  # number of its notebook by exported module: 13a stands between 13 and 14
for notebook in NOTEBOOKS:
    match, folder = NUMBER.fullmatch(notebook.name), notebook.parent.relative_to(ROOT / "nbs")
    source = ROOT / "ukbmm" / folder / f"{match[2]}.py" if match else None
    if match and match[2] == "main":
        source = ROOT / "ukbmm" / "__main__.py"
    if source is not None and source.is_file():
        MODULES[".".join(source.relative_to(ROOT).with_suffix("").parts)] = match[1]
EXPORTED = sorted(
    path for path in (ROOT / "ukbmm").rglob("*.py") if path.name not in ("__init__.py", "_modidx.py")
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(tree: ast.AST, module: str) -> set[str]:
    "Full names of everything that a module imports, at its top or inside functions."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def too_high(module: str, number: str, text: str) -> list[str]:
    "Modules that `module` may not import."
    names = imported(ast.parse(text), module)
    return sorted(name for name in names if name in MODULES and name != module and MODULES[name] >= number)


def test_every_exported_module_has_a_numbered_notebook():
    assert {module_name(path) for path in EXPORTED} == set(MODULES)
    assert len(MODULES) > 25 and len(set(MODULES.values())) == len(MODULES)


@pytest.mark.parametrize("path", EXPORTED, ids=module_name)
def test_a_module_imports_lower_numbers_only(path):
    module = module_name(path)
    assert too_high(module, MODULES[module], path.read_text()) == []


def test_an_upward_import_would_be_found():
    for text in ("from ukbmm.training import learner", "def f():\n    from ..training.learner import predict_rows",
                 "import ukbmm.training.learner as x", "from ..training.learner import (\n    predict_rows,\n)"):  # fmt: skip
        assert too_high("ukbmm.data.blocks", MODULES["ukbmm.data.blocks"], text) == ["ukbmm.training.learner"]
    assert too_high("ukbmm.data.blocks", "32", "from ..core import DataError") == []


@pytest.mark.parametrize("path", EXPORTED, ids=module_name)
def test_no_module_imports_everything_or_a_package_that_is_not_its_own(path):
    tree = ast.parse(path.read_text())
    stars = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert stars == []
    names = imported(tree, module_name(path))
    assert not [name for name in names if re.match(r"fastai\.(vision|medical)|fastai\.\w+\.all$", name)]


@pytest.mark.parametrize("path", EXPORTED, ids=module_name)
def test_no_function_is_longer_than_60_lines_and_each_public_one_says_what_it_does(path):
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= 60}
    assert long == {}
    mute = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)
            and not n.name.startswith("_") and ast.get_docstring(n) is None]  # fmt: skip
    assert mute == []


def test_functions_are_short_as_a_rule():
    trees = [ast.parse(path.read_text()) for path in EXPORTED]
    lengths = [
        n.end_lineno - n.body[0].lineno + 1
        for tree in trees
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef)
    ]
    assert statistics.median(lengths) <= 10 and statistics.quantiles(lengths, n=10)[8] <= 30


def loaded_by(statement: str) -> set[str]:
    "Top-level packages that are loaded in a fresh interpreter after a statement."
    code = f"import sys; {statement}; print(' '.join({{n.split('.')[0] for n in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["ukbmm.biobank.table", "ukbmm.biobank.store", "ukbmm.cohort.leakage", "ukbmm.evaluation.uncertainty"]
)  # fmt: skip
def test_reading_defining_and_scoring_need_no_torch(module):
    heavy = {"torch", "fastai", "matplotlib", "sklearn", "lightgbm", "IPython"}
    loaded = loaded_by(f"import {module}")
    assert loaded & heavy == set() and {"ukbmm", "polars"} <= loaded


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def outputs(path: Path) -> str:
    "All outputs of a notebook as a reader sees them."
    return json.dumps([output for cell in cells(path) for output in cell.get("outputs", [])])


def notebook_name(path: Path) -> str:
    return str(path.relative_to(ROOT / "nbs"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_name)
def test_no_output_of_a_notebook_shows_an_identifier_or_a_path_of_a_machine(path):
    assert scan_file(path) == []
    text = ENCODED.sub("", outputs(path))
    assert EID_PATTERN.findall(text) == []
    assert re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users|mnt)/[\w.-]+", text) == []
    assert re.findall(r" at 0x[0-9a-f]{6,}", text) == []  # the address of an object, different in each run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_name)
def test_outputs_of_a_notebook_stay_small(path):
    assert len(outputs(path)) < 400 * 1024


def test_an_identifier_in_an_output_would_be_found(tmp_path):
    output = {"output_type": "stream", "name": "stdout", "text": ["participant 4821973 has\n", "31.5\n"]}
    planted = {"cells": [{"cell_type": "code", "source": [], "outputs": [output]}]}
    (tmp_path / "planted.ipynb").write_text(json.dumps(planted))
    assert len(scan_file(tmp_path / "planted.ipynb")) == 1
    assert EID_PATTERN.findall(outputs(tmp_path / "planted.ipynb")) == ["4821973"]


def lines_of(source: str) -> int:
    "Lines of a cell that hold something, beside its imports and its directive."
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return len(lines) - sum(node.end_lineno - node.lineno + 1 for node in imports)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_name)
def test_a_notebook_has_a_title_a_subtitle_and_short_definitions(path):
    first = "\n".join("".join(cell["source"]) for cell in cells(path)[:2])  # front matter may come before
    assert re.search(r"^# .+\n+> .+", first, re.M), "a title and a subtitle"
    exported = ["".join(c["source"]) for c in cells(path) if "".join(c["source"]).startswith("#| export")]
    long = {text.splitlines()[1][:60]: lines_of(text) for text in exported if lines_of(text) > 25}
    assert long == {}


REFERENCE = [path for path in NOTEBOOKS if re.match(r"\d\d", path.stem) and path.parent.name != "tutorials"]


@pytest.mark.parametrize("path", REFERENCE, ids=notebook_name)
def test_a_reference_notebook_can_be_read_at_a_sitting(path):
    assert path.stem == "91_main" or 40 <= len(cells(path)) <= 90
