"""The main job on real data: 1,814 mice, their genotypes and five of their phenotypes, against independent models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import networkx
import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank.store import Biobank

# Pearson r of kernel ridge on SNPs and covariates, the last column of the mice's REFERENCE.md
REFERENCE = {"body_length": 0.343, "bmi": 0.517, "alp": 0.571, "hdl": 0.647}


def ukbmm(*words) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ukbmm", *map(str, words)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mice(tmp_path_factory) -> Path:
    source, out = shared_data("hs_mice"), tmp_path_factory.mktemp("mice") / "hs_mice.biobank"
    ukbmm("ingest", source / "phenotypes.csv", "--fields", source / "extra_fields.tsv", "--codings", source / "extra_codings.tsv",
          "--relatedness", source / "relatedness.dat", "--genotypes", source / "genotypes", "--out", out)  # fmt: skip
    return out


def study(name: str, mice: Path, out: Path, repository: Path, *more: str) -> tuple[Path, dict]:
    "Run a spec of configs/hs_mice; returns its directory and its metrics."
    spec = repository / "configs" / "hs_mice" / f"{name}.yaml"
    path = Path(ukbmm("run", spec, "--biobank", mice, "--out", out, *more).splitlines()[-1])
    return path, json.loads((path / "metrics.json").read_text())


def difference(metrics: dict, metric: str, second: str = "ridge") -> list[float]:
    "The interval of the network's advantage over another model."
    found = metrics["comparisons"]
    return next(c["ci95"] for c in found if (c["second"], c["metric"]) == (second, metric))


def test_describe_counts_what_the_mice_s_readme_says(mice):
    shown = ukbmm("describe", mice)
    assert "1,814 participants" in shown and "10,346 variants" in shown


@pytest.mark.parametrize(
    "name",
    [name if name == "body_length" else pytest.param(name, marks=pytest.mark.slow) for name in REFERENCE],
)
def test_ridge_is_as_good_as_an_independent_one_and_the_network_no_worse(name, mice, tmp_path, repository):
    path, metrics = study(name, mice, tmp_path, repository)
    assert metrics["n"]["folds"] == 10
    assert metrics["models"]["ridge"]["pearson_r"]["value"] >= REFERENCE[name] - 0.03
    assert difference(metrics, "pearson_r")[1] >= 0
    families_stay_together(path, mice)


@pytest.mark.slow
def test_the_network_is_no_worse_than_ridge_on_a_binary_outcome(mice, tmp_path, repository):
    path, metrics = study("high_hdl", mice, tmp_path, repository)
    assert metrics["models"]["ridge"]["auc"]["value"] > 0.75
    assert difference(metrics, "auc")[1] >= 0
    assert difference(metrics, "log_loss")[1] >= 0
    families_stay_together(path, mice)


@pytest.mark.slow
def test_random_labels_give_nothing_but_noise(mice, tmp_path, repository):
    _, metrics = study("bmi", mice, tmp_path, repository, "--set", "control=permuted_labels")
    noise = 4 / metrics["n"]["participants"] ** 0.5
    for model in ("fusion", "ridge", "lightgbm", "covariates"):
        assert abs(metrics["models"][model]["pearson_r"]["value"]) < noise


def families_stay_together(path: Path, mice: Path) -> None:
    "No family of the relatedness file, found by networkx, is in two folds."
    biobank = Biobank.open(mice)
    fold = dict(pl.read_parquet(path / "split.parquet").select("row", "fold").rows())
    graph = networkx.Graph(
        biobank.relatives.filter(pl.col("kinship") > 0.0442).select("row_a", "row_b").rows()
    )
    families = [
        [fold[row] for row in family if row in fold] for family in networkx.connected_components(graph)
    ]
    assert len(families) > 100
    assert all(len(set(folds)) <= 1 for folds in families)
