"""The repository keeps its promises: hooks that clean notebooks, a README made from the index, a schema for editors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

from ukbmm.workflow.spec import write_spec_schema


def program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def git(folder: Path, *words: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the merge driver is a program of the venv
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dirty_notebook(path: Path) -> None:
    "Write a notebook as an editor leaves it: counts, metadata, a memory address."
    output = nbformat.v4.new_output(
        "execute_result", {"text/plain": "<Thing at 0x7f12ab34cd56>"}, execution_count=7
    )
    cell = nbformat.v4.new_code_cell(
        "1 + 1", execution_count=7, metadata={"scrolled": True}, outputs=[output]
    )
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}}
        ),
        path,
    )


def small_project(folder: Path, repository: Path) -> Path:
    "A clone-like project with the repository's settings and one notebook."
    (folder / "nbs").mkdir(parents=True)
    for name in ("settings.ini", "pyproject.toml"):
        (folder / name).write_text((repository / name).read_text())
    git(folder, "init", "-q")
    return folder


def test_a_dirty_notebook_comes_out_clean(tmp_path, repository):
    project = small_project(tmp_path / "clone", repository)
    path = project / "nbs" / "explore.ipynb"
    dirty_notebook(path)
    subprocess.run([program("nbdev_clean")], cwd=project, check=True)
    cell = json.loads(path.read_text())["cells"][0]
    assert cell["execution_count"] is None and cell["metadata"] == {}
    assert "0x7f" not in json.dumps(cell) and cell["outputs"]


def test_the_hooks_of_the_contributing_guide_are_installed_by_its_command(tmp_path, repository):
    assert "nbdev_install_hooks" in (repository / "CONTRIBUTING.md").read_text()
    project = small_project(tmp_path / "clone", repository)
    subprocess.run([program("nbdev_install_hooks")], cwd=project, check=True, capture_output=True)
    assert "*.ipynb merge=nbdev-merge" in (project / ".gitattributes").read_text()
    config = git(project, "config", "--includes", "--list")
    assert "nbdev_merge" in config
    hook = project / ".git" / "hooks" / "post-merge"
    assert "nbdev_trust" in hook.read_text()


def test_two_people_who_edit_different_cells_merge_without_conflict(tmp_path, repository):
    project = small_project(tmp_path / "clone", repository)
    subprocess.run([program("nbdev_install_hooks")], cwd=project, check=True, capture_output=True)
    git(project, "config", "user.email", "nobody@example.org")
    git(project, "config", "user.name", "nobody")
    path = project / "nbs" / "explore.ipynb"
    cells = [nbformat.v4.new_code_cell(f"{name} = 1", id=f"cell-{name}") for name in "abcd"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)

    def commit(branch: str, position: int) -> None:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[position].source += f"  # by {branch}"
        notebook.cells[position].execution_count = position
        nbformat.write(notebook, path)
        git(project, "commit", "-qam", branch)

    git(project, "add", "-A")
    git(project, "commit", "-qm", "start")
    git(project, "branch", "-M", "main")
    git(project, "checkout", "-qb", "other")
    commit("other", 0)
    git(project, "checkout", "-q", "main")
    commit("main", 3)
    git(project, "merge", "-q", "other")
    merged = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    assert merged == ["a = 1  # by other", "b = 1", "c = 1", "d = 1  # by main"]


def test_the_schema_for_editors_is_the_one_of_the_code(tmp_path, repository):
    write_spec_schema(tmp_path / "spec.schema.json")
    written = (repository / "configs" / "spec.schema.json").read_text()
    assert (tmp_path / "spec.schema.json").read_text() == written


def test_every_spec_of_the_repository_starts_with_its_launch_line(repository):
    specs = [
        repository / "configs" / "demo.yaml",
        *sorted((repository / "configs" / "hs_mice").glob("*.yaml")),
    ]
    assert len(specs) == 6
    for path in specs:
        assert f"ukbmm run {path.relative_to(repository)} --biobank" in path.read_text(), path.name
