"""A study of each kind of modality goes the whole way, from `ukbmm check` to a report that names what was read."""

import html
import re

import numpy as np
import pytest

from ukbmm.biobank.store import ingest
from ukbmm.biobank.synthetic import write_extract
from ukbmm.cli import main
from ukbmm.disclosure import show_share
from ukbmm.workflow.pipeline import TrainingPipeline
from ukbmm.workflow.run import Run
from ukbmm.workflow.spec import Spec

SPEC = """\
version: 1
name: kinds
cohort: {baseline: {visit: 2}}
modalities:
  lifestyle: {kind: phenotype, fields: [31, {field: 20116, instance: 0}, {derived: egfr}]}
  {MODALITY}
outcome: {kind: regression, field: 48, instance: 2}
validation: {kind: holdout, test: 0.3, inner: 2}
train: {epochs: 2, networks: 1, batch_size: 64}
evaluation: {draws: 100}
"""
MODALITIES = {
    "visits": "visits: {kind: visits, fields: [21001, {field: 4080, array: mean, name: systolic}]}",
    "events": "events: {kind: events, records: [diagnoses, operations], min_count: 5}",
    "snps": "genes: {kind: snps, maf_min: 0.05}",
}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    "Synthetic people who came up to three times, with genotypes and hospital records."
    folder = tmp_path_factory.mktemp("people")
    columns = [f"p{field}_i{visit}" for field in (53, 21001) for visit in range(3)]
    columns += [f"p4080_i{visit}_a{array}" for visit in range(3) for array in range(2)]
    columns += ["p31", "p34", "p52", "p20116_i0", "p48_i2", "p42000", "p30700_i0", "p21003_i0", "p21000_i0"]
    write_extract(folder / "in", 3000, 40, 3, columns=columns)
    records = sorted((folder / "in").glob("hesin*.txt"))
    return ingest(folder / "in" / "ukb40000.csv", folder / "b.biobank", records=records,
                  relatedness=next((folder / "in").glob("ukb_rel_*.dat")), genotypes=[folder / "in" / "ukb_cal"])  # fmt: skip


def expected(kind: str, people, rows: np.ndarray) -> list[tuple[str, str, int]]:
    "Title, place and how many have it, of what a kind of modality reads, counted from the raw table."
    if kind == "snps":
        have = (people.genotypes("array").samples(rows) >= 0).sum()
        return [("40 variants, of them those whose rarer allele has 5% or more in the training rows", "genotypes/array", have)]  # fmt: skip
    table = people.read(people.columns).to_pandas().iloc[rows]
    if kind == "events":
        place = "records/hesin_diag, records/hesin, records/hesin_oper, p53_i2, p34, p52"
        return [("diagnoses and operations, the latest 128 before visit 2", place, table["p53_i2"].notna().sum())]  # fmt: skip
    mass = [f"p21001_i{visit}" for visit in range(3)]
    pressure = [f"p4080_i{visit}_a{array}" for visit in range(3) for array in range(2)]
    titles = ("Body mass index (BMI)", mass), ("systolic", pressure)
    return [(title, ", ".join(names), table[names].notna().any(axis=1).sum()) for title, names in titles]


@pytest.mark.parametrize("kind", MODALITIES)
def test_a_study_goes_the_whole_way(kind, people, tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{MODALITY}", MODALITIES[kind]))
    words = [str(tmp_path / "spec.yaml"), "--biobank", str(people.path)]
    assert main(["check", *words]) == 0 and "all is well" in capsys.readouterr().out
    assert main(["run", *words, "--out", str(tmp_path)]) == 0
    run = Run.open(capsys.readouterr().out.splitlines()[-1])
    assert run.record["status"] == "finished" and set(run.metrics()["models"]) >= {
        "fusion",
        "ridge",
        "lightgbm",
    }
    text = html.unescape(re.sub(r"<[^>]+>", " ", (run.path / "report.html").read_text()))
    rows = TrainingPipeline(run.spec, people).prepare().cohort.rows
    lines = [line for line in run.about()["inputs"] if line["modality"] != "lifestyle"]
    for line, (title, place, have) in zip(lines, expected(kind, people, rows), strict=True):
        assert (line["title"], line["column"]) == (title, place) and title in text
        assert line["present"] == show_share(int(have), len(rows))
        assert line["missing"] or have == len(rows)
    assert len(run.about()["shares"]) == 3 + len(lines)


def test_a_report_of_a_run_that_is_not_finished_says_what_to_do(people, tmp_path, capsys):
    text = SPEC.replace("{MODALITY}", MODALITIES["snps"])
    pipeline = TrainingPipeline(Spec.parse(text), people, tmp_path)
    pipeline.report = killed
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    path = pipeline.run_directory.path
    assert (path / "metrics.json").is_file() and not (path / "report.json").is_file()
    capsys.readouterr()
    assert main(["report", str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "report.json of the run kinds-001: expected a finished run" in said
        and "one that is interrupted" in said
    )
    assert "Run the same `ukbmm run` again" in said and "Traceback" not in said


def killed() -> None:
    raise KeyboardInterrupt
