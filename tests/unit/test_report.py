"""A report of every kind of outcome, from a run that is made by hand: complete, in words, and without a small count."""

import json
import re

import numpy as np
import polars as pl
import pytest

from ukbmm.evaluation.uncertainty import evaluate
from ukbmm.workflow.report import report_values, write_report
from ukbmm.workflow.run import Run

HORIZONS = [5.0, 10.0]
N = 1200


def softmax(logits: np.ndarray) -> np.ndarray:
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    return chance / chance.sum(axis=1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def followed(rng, hazards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Times of events with planted hazards [person, cause], follow-up of 8 to 14 years; and true risks."
    ends = rng.uniform(8, 14, len(hazards))
    times = np.column_stack([ends, *(rng.exponential(1 / hazard) for hazard in hazards.T)])
    total = hazards.sum(axis=1, keepdims=True)
    risks = [hazards[:, [cause]] / total * (1 - np.exp(-total * HORIZONS)) for cause in range(hazards.shape[1])]
    return np.column_stack([times.min(axis=1), times.argmin(axis=1)]), np.concatenate(risks, axis=1)


def outcomes(kind: str) -> tuple[np.ndarray, dict[str, np.ndarray], dict, str]:
    "Targets, predictions by model, what the pipeline notes, and the outcome in the plan."
    rng = np.random.default_rng(5)
    x = rng.normal(size=N)
    noisy = x + rng.normal(size=N)
    if kind == "regression":
        return 36 + 5 * x, {"fusion": 36 + 4 * noisy, "ridge": 36 + 3 * rng.normal(size=N)}, {}, "field: 30750"
    if kind == "binary":
        return (rng.random(N) < sigmoid(x - 2)) * 1.0, {"fusion": sigmoid(x - 2), "lightgbm": sigmoid(noisy - 2)}, {}, "field: 2443"
    if kind in ("multiclass", "ordinal"):
        names = ["never", "previous", "current", "prefers not to answer"]
        make = lambda value: softmax(np.outer(value, [-1.5, 0, 1.5, 0]) + [0, 0, -1, -6.0])  # noqa: E731
        target = (make(x).cumsum(axis=1) < rng.random((N, 1))).sum(axis=1).astype(float)
        target[:4] = 3  # at least four
        target[4:] = np.minimum(target[4:], 2)
        return target, {"fusion": make(x), "covariates": make(noisy)}, {"classes": names}, "field: 20116"
    if kind == "multilabel":
        names, levels = ["hypertension", "diabetes", "angina", "a rare syndrome of the eye"], np.array([0, 2, 3, 20.0])
        target = (rng.random((N, 4)) < sigmoid(x[:, None] - levels)) * 1.0
        target[7:10, 3] = 1  # three people
        target[:300, 1] = np.nan
        predictions = {"fusion": sigmoid(x[:, None] - levels), "ridge": sigmoid(noisy[:, None] - levels)}
        return target, predictions, {"classes": names}, "labels: [{field: 6150}, {field: 2443}, {field: 131296}, {field: 131306}]"
    hazards = np.column_stack([0.02 * np.exp(x), np.full(N, 0.02)])[:, : 1 if kind == "survival" else 2]
    target, risks = followed(rng, hazards)
    worse = followed(rng, np.column_stack([0.02 * np.exp(0.6 * noisy), hazards[:, -1]])[:, : hazards.shape[1]])[1]
    about = {"horizons": HORIZONS}
    if kind == "survival":
        return target, {"fusion": risks, "covariates": worse}, about, "field: 130708"
    return target, {"fusion": risks, "covariates": worse}, about | {"classes": ["diabetes", "death"]}, "{field: 130708, competing: [40000]}"


ABOUT = {"outcome": "type 2 diabetes", "units": "", "flow": [["in the Biobank", "", "1,300"], ["outcome unknown", "100", "1,200"]],
         "participants": "1,200 participants in 600 families", "design": ["Three folds; no family is cut."], "shares": {"age": 1.0, "genotypes": 0.92},
         "inputs": [{"modality": "lifestyle", "title": "age", "column": "p21003_i0", "present": "100%", "missing": ""}],
         "audit": [{"check": "families", "status": "ok", "detail": "no family is cut by the split"}]}  # fmt: skip
PLAN = """name: invented_study
question: Is it any good?
control: none
evaluation: {draws: 60}
train: {networks: 1, start: ridge, epochs: 9}
validation: {kind: kfold}
"""
RECORD = {"status": "finished", "started": "2026-01-01T00:00:00+00:00", "seconds": 61.0, "seed": 3, "code": "0.1.0",
          "environment": {"gpus": [], "threads": 2, "system": "Linux", "python": "3.11", "packages": {"torch": "2"}, "git_commit": None},
          "data": {"sources": [{"file": "extract.csv", "sha256": "ab" * 32}]}}  # fmt: skip


def made_run(folder, kind: str, change: dict | None = None, only: tuple[str, ...] | None = None) -> Run:
    "A run directory of a kind of outcome."
    target, predictions, about, outcome = outcomes(kind)
    predictions = {name: values for name, values in predictions.items() if only is None or name in only}
    row = np.arange(N)
    columns = {f"prediction_{name}": values for name, values in predictions.items()}
    table = pl.DataFrame({"row": row, "family": row // 2, "fold": row % 3, "split": ["test"] * N, "target": target, **columns})
    curves = [(f, 0, e, None if e == 0 else 1.0 - 0.02 * e, 1 - 0.05 * e + 0.004 * e * e, e == 6, 0.5) for f in range(3) for e in range(10)]
    history = pl.DataFrame(curves, schema=["fold", "network", "epoch", "train_loss", "valid_loss", "kept", "seconds"], orient="row")
    metrics = evaluate(table, kind, "fusion", 60, horizons=about.get("horizons"))
    path = folder / f"{kind}-001"
    path.mkdir()
    texts = {"plan.yaml": PLAN + f"outcome:\n  {outcome}\n", "record.json": json.dumps(RECORD),
             "report.json": json.dumps({**ABOUT, **about, **(change or {})}), "metrics.json": json.dumps(metrics)}  # fmt: skip
    for name, text in texts.items():
        (path / name).write_text(text)
    table.write_parquet(path / "predictions.parquet")
    history.write_csv(path / "history.csv")
    return Run.open(path)
