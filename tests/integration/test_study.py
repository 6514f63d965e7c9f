"""A whole study on an invented biobank: what was planted is found, noise is not, and a killed run goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from ukbmm.biobank.store import Biobank, ingest
from ukbmm.biobank.synthetic import synthetic_biobank
from ukbmm.disclosure import scan_text
from ukbmm.workflow.pipeline import TrainingPipeline
from ukbmm.workflow.run import Run
from ukbmm.workflow.spec import Spec

STUDY = """\
version: 1
name: hba1c
modalities:
  lifestyle: {kind: phenotype, fields: [31, 21003, 21001, 20116]}
  blood: {kind: phenotype, fields: [30690, 30760, 30870]}
  snps: {kind: snps, maf_min: 0.01}
outcome: {kind: regression, field: 30750, name: HbA1c}
validation: {kind: kfold, folds: 3, inner: 4}
train: {networks: 1}
evaluation: {draws: 200}
"""


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Biobank:
    path = tmp_path_factory.mktemp("people") / "people.biobank"
    return synthetic_biobank(path, participants=3000, variants=120, seed=0)


@pytest.fixture(scope="module")
def finished(people, tmp_path_factory) -> Run:
    return TrainingPipeline(Spec.parse(STUDY), people, tmp_path_factory.mktemp("runs")).run()


def r_of(run: Run, model: str) -> float:
    return run.metrics()["models"][model]["pearson_r"]["value"]


def test_the_planted_combination_is_found_by_the_network_and_by_no_linear_model(finished, people):
    truth = json.loads((people.path / "truth.json").read_text())
    assert r_of(finished, "covariates") < r_of(finished, "ridge") < truth["r_perfect_additive"] + 0.03
    assert r_of(finished, "ridge") + 0.03 < r_of(finished, "fusion") < truth["r_perfect"] + 0.03
    against_ridge = next(
        c for c in finished.metrics()["comparisons"]
        if (c["second"], c["metric"]) == ("ridge", "pearson_r")
    )  # fmt: skip
    assert against_ridge["ci95"][0] > 0


def test_nothing_is_found_where_outcomes_were_dealt_out_anew(people, tmp_path):
    spec = Spec.parse(STUDY, ["control=permuted_labels", "train.epochs=4", "baselines=[ridge]"])
    run = TrainingPipeline(spec, people, tmp_path).run()
    noise = 4 / np.sqrt(run.metrics()["n"]["participants"])
    assert abs(r_of(run, "fusion")) < noise and abs(r_of(run, "ridge")) < noise


def test_the_metrics_are_those_of_the_prediction_table(finished):
    table = finished.predictions()
    for model, found in finished.metrics()["models"].items():
        predicted = table[f"prediction_{model}"]
        own = table.select(
            pl.col("target", predicted.name) - pl.col("target", predicted.name).mean().over("fold")
        )
        assert found["pearson_r"]["value"] == pytest.approx(np.corrcoef(own.to_numpy().T)[0, 1])
        assert found["pearson_r"]["pooled"] == pytest.approx(np.corrcoef(table["target"], predicted)[0, 1])
        assert found["r2"]["value"] == pytest.approx(r2_score(table["target"], predicted))
        assert found["mae"]["value"] == pytest.approx(mean_absolute_error(table["target"], predicted))


def test_everybody_is_tested_once_and_no_family_is_in_two_folds(finished, people):
    table = finished.predictions()
    assert table["row"].n_unique() == table.height == finished.metrics()["n"]["participants"]
    fold = dict(table.select("row", "fold").rows())
    for a, b in people.relatives.select("row_a", "row_b").rows():
        assert fold.get(a, -1) == fold.get(b, -1) or -1 in (fold.get(a, -1), fold.get(b, -1))


def test_the_report_is_one_file_that_names_every_model_and_no_participant(finished, people):
    text = (finished.path / "report.html").read_text()
    assert scan_text(text) == []
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)  # needs no other file
    for word in ("fusion", "ridge", "lightgbm", "covariates", "HbA1c"):
        assert word in text
    for eid in pl.read_parquet(people.path / "participants.parquet")["eid"].head(200):
        assert not re.search(rf"\b{eid}\b", text)


def test_the_same_spec_gives_the_same_predictions_and_another_seed_others(finished, people, tmp_path):
    short = ["train.epochs=2", "baselines=[ridge]", "validation.folds=2"]
    first, second, other = (
        TrainingPipeline(Spec.parse(STUDY, [*short, f"seed={seed}"]), people, tmp_path / name).run()
        for name, seed in (("a", 0), ("b", 0), ("c", 2345678))  # as long as an identifier
    )
    assert first.predictions().equals(second.predictions())
    assert first.metrics() == second.metrics()
    assert not first.predictions().equals(other.predictions())


def test_three_who_withdrew_cannot_be_counted_from_the_report(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        f"{1_000_001 + i},{i % 2},{x:.2f},{y:.2f}" for i, (x, y) in enumerate(rng.normal(30, 4, (77, 2)))
    ]
    (tmp_path / "extract.csv").write_text("\n".join(["eid,31-0.0,21001-0.0,30750-0.0", *lines]) + "\n")
    (tmp_path / "w1_20260101.csv").write_text("1000003\n1000010\n1000020\n")
    biobank = ingest(
        tmp_path / "extract.csv", tmp_path / "few.biobank", withdrawals=tmp_path / "w1_20260101.csv"
    )
    spec = Spec.parse(
        "version: 1\nname: few\nmodalities: {body: {kind: phenotype, fields: [31, 21001]}}\n"
        "outcome: {kind: regression, field: 30750}\nvalidation: {kind: kfold, folds: 2, inner: 2}\n"
        "train: {epochs: 1, networks: 1}\nbaselines: []\nevaluation: {draws: 100}\n"
    )
    run = TrainingPipeline(spec, biobank, tmp_path / "runs").run()
    assert run.metrics()["n"]["participants"] == 74
    text = re.sub('base64,[^"]*|(?s:<style>.*?</style>)', "", (run.path / "report.html").read_text())
    assert "withdrawn" in text and "77" in text and not re.search(r"\b74\b", text)


def launch(folder: Path, people: Biobank) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "ukbmm",
        "run",
        folder / "study.yaml",
        "--biobank",
        people.path,
        "--out",
        folder / "runs",
    ]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def test_a_killed_run_goes_on_with_the_missing_folds_and_ends_with_the_same_numbers(people, tmp_path):
    text = STUDY.replace("networks: 1", "networks: 1, epochs: 2").replace("folds: 3", "folds: 5")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.yaml").write_text(text)
    part = tmp_path / "killed" / "runs" / "hba1c-001" / "parts" / "fold-01.parquet"
    process = launch(tmp_path / "killed", people)
    deadline = time.monotonic() + 240
    while not part.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done_before = {path.name: path.stat().st_mtime_ns for path in part.parent.glob("*.parquet")}
    assert part.is_file() and len(done_before) < 5  # it was killed half way
    assert not (part.parent.parent / "metrics.json").exists()
    again = launch(tmp_path / "killed", people)
    shown, messages = again.communicate(timeout=240)
    assert again.returncode == 0, messages
    assert Path(shown.splitlines()[-1]).name == "hba1c-001" and "going on" in messages
    for name, written in done_before.items():
        assert (part.parent / name).stat().st_mtime_ns == written  # what was done was not done again
    assert launch(tmp_path / "whole", people).communicate(timeout=240)
    whole, killed = (Run.open(tmp_path / name / "runs" / "hba1c-001") for name in ("whole", "killed"))
    assert whole.predictions().equals(killed.predictions())
    assert whole.metrics() == killed.metrics()
    assert killed.record["resumed"] and killed.record["status"] == "finished"


def test_a_finished_run_is_not_written_over(finished, people):
    again = TrainingPipeline(
        Spec.parse(STUDY, ["train.epochs=1", "baselines=[]"]), people, finished.path.parent
    ).run()
    assert again.path.name == "hba1c-002"
