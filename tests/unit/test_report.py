"""A report of every kind of outcome, from a run that is made by hand: complete, in words, and without a small count."""

import json
import re

import numpy as np
import polars as pl
import pytest

from ukbmm.evaluation.metrics import of_outcome
from ukbmm.evaluation.uncertainty import evaluate
from ukbmm.workflow.report import compare, report_values, write_report
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
    risks = [
        hazards[:, [cause]] / total * (1 - np.exp(-total * HORIZONS)) for cause in range(hazards.shape[1])
    ]
    return np.column_stack([times.min(axis=1), times.argmin(axis=1)]), np.concatenate(risks, axis=1)


def outcomes(kind: str) -> tuple[np.ndarray, dict[str, np.ndarray], dict, str]:
    "Targets, predictions by model, what the pipeline notes, and the outcome in the plan."
    rng = np.random.default_rng(5)
    x = rng.normal(size=N)
    noisy = x + rng.normal(size=N)
    if kind == "regression":
        return (
            36 + 5 * x,
            {"fusion": 36 + 4 * noisy, "ridge": 36 + 3 * rng.normal(size=N)},
            {},
            "field: 30750",
        )
    if kind == "binary":
        return (
            (rng.random(N) < sigmoid(x - 2)) * 1.0,
            {"fusion": sigmoid(x - 2), "lightgbm": sigmoid(noisy - 2)},
            {},
            "field: 2443",
        )
    if kind in ("multiclass", "ordinal"):
        names = ["never", "previous", "current", "prefers not to answer"]
        make = lambda value: softmax(np.outer(value, [-1.5, 0, 1.5, 0]) + [0, 0, -1, -6.0])  # noqa: E731
        target = (make(x).cumsum(axis=1) < rng.random((N, 1))).sum(axis=1).astype(float)
        target[:4] = 3  # at least four
        target[4:] = np.minimum(target[4:], 2)
        return target, {"fusion": make(x), "covariates": make(noisy)}, {"classes": names}, "field: 20116"
    if kind == "multilabel":
        names, levels = (
            ["hypertension", "diabetes", "angina", "a rare syndrome of the eye"],
            np.array([0, 2, 3, 20.0]),
        )
        target = (rng.random((N, 4)) < sigmoid(x[:, None] - levels)) * 1.0
        target[7:10, 3] = 1  # three people
        target[:300, 1] = np.nan
        predictions = {"fusion": sigmoid(x[:, None] - levels), "ridge": sigmoid(noisy[:, None] - levels)}
        return (
            target,
            predictions,
            {"classes": names},
            "labels: [{field: 6150}, {field: 2443}, {field: 131296}, {field: 131306}]",
        )
    hazards = np.column_stack([0.02 * np.exp(x), np.full(N, 0.02)])[:, : 1 if kind == "survival" else 2]
    target, risks = followed(rng, hazards)
    worse = followed(
        rng, np.column_stack([0.02 * np.exp(0.6 * noisy), hazards[:, -1]])[:, : hazards.shape[1]]
    )[1]
    about = {"horizons": HORIZONS}
    if kind == "survival":
        return target, {"fusion": risks, "covariates": worse}, about, "field: 130708"
    return (
        target,
        {"fusion": risks, "covariates": worse},
        about | {"classes": ["diabetes", "death"]},
        "{field: 130708, competing: [40000]}",
    )


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
    table = pl.DataFrame(
        {"row": row, "family": row // 2, "fold": row % 3, "split": ["test"] * N, "target": target, **columns}
    )
    curves = [
        (f, 0, e, None if e == 0 else 1.0 - 0.02 * e, 1 - 0.05 * e + 0.004 * e * e, e == 6, 0.5)
        for f in range(3)
        for e in range(10)
    ]
    history = pl.DataFrame(
        curves,
        schema=["fold", "network", "epoch", "train_loss", "valid_loss", "kept", "seconds"],
        orient="row",
    )
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


def text_of(path) -> str:
    "What a reader sees, without pictures and style."
    return re.sub('(?s)base64,[^"]*|<style>.*?</style>|<pre>.*?</pre>|<[^>]*>', " ", path.read_text())


def only(run: Run) -> dict:
    "What is said of the outcome of a run of one."
    (outcome,) = report_values(run)["outcomes"]
    return outcome


KINDS = ("regression", "binary", "multiclass", "ordinal", "multilabel", "survival", "competing_risks")


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_every_kind_has_its_figures_its_numbers_and_no_gap(kind, tmp_path):
    run = made_run(tmp_path, kind)
    html = write_report(run).read_text()
    assert html.count("data:image/png") == 6
    metrics, text = run.metrics(), text_of(run.path / "report.html")
    for found in metrics["models"].values():
        for metric in found.values():
            assert f"{metric['value']:.3f}" in text
    assert "not defined" not in text and "None" not in text and "nan" not in text.split("Training")[0]
    assert "{" not in text and "the last horizon" not in text
    assert ("By " in text) == ("parts" in metrics)
    assert list(metrics["models"]) == [row["name"] for row in only(run)["models"]]


def test_a_title_names_the_fields_of_every_label_and_competing_event(tmp_path):
    titles = {
        kind: report_values(made_run(tmp_path, kind))["title"]
        for kind in ("binary", "multilabel", "competing_risks")
    }
    assert titles["binary"].endswith("type 2 diabetes (field 2443)")
    assert titles["multilabel"].endswith("(fields 6150, 2443, 131296 and 131306)")
    assert titles["competing_risks"].endswith("(fields 130708 and 40000)")


def test_horizons_and_events_are_named_in_words(tmp_path):
    values = only(made_run(tmp_path, "competing_risks"))
    assert "the risk of diabetes within 5 and 10 years with concordance of diabetes" in values["verdict"][0]
    assert values["metric_titles"][2] == "Brier score of diabetes at 10 years"
    assert [row["names"] for row in values["parts"]["rows"]][::2] == [
        [f"{event}, {year} years", "fusion"] for event in ("diabetes", "death") for year in (5, 10)
    ]
    alone = only(made_run(tmp_path, "survival"))
    assert "the risk of type 2 diabetes within 5 and 10 years" in alone["verdict"][0]
    assert [row["names"][0] for row in alone["parts"]["rows"]][::2] == ["5 years", "10 years"]


def test_counts_are_of_the_table_and_small_ones_are_hidden_with_what_would_tell_them(tmp_path):
    run = made_run(tmp_path, "multiclass")
    classes = np.bincount(run.predictions()["target"].to_numpy().astype(int))
    assert classes[3] == 4 and run.metrics()["n"]["classes"] == classes.tolist()
    said = only(run)["counts"]
    assert f"never {classes[0]}, previous {classes[1]}, current" in said and "answer <5" in said
    assert f"current {classes[2]}" not in said  # the rest of 1,200 would tell the four
    hidden = made_run(tmp_path, "ordinal", {"participants": "1,190-1,209 participants"})
    percent = re.findall(r"(\d+)%", only(hidden)["counts"])
    assert [int(p) for p in percent] == [*(round(100 * c / N) for c in classes[:3]), 1]  # <1% of the last


def test_three_people_with_a_label_are_neither_counted_nor_scored(tmp_path):
    run = made_run(tmp_path, "multilabel")
    assert run.metrics()["n"]["cases"][3] == 3
    rows = only(run)["parts"]["rows"]
    assert rows[3]["names"] == ["a rare syndrome of the eye", "100%", "<5"]
    assert [cell["text"] for cell in rows[3]["cells"]] == ["too few", "too few"]
    diabetes = run.predictions()["target"].to_numpy()[:, 1]
    assert rows[1]["names"] == ["diabetes", "75%", str(int(np.nansum(diabetes)))]


def test_events_that_compete_are_counted_by_cause(tmp_path):
    run = made_run(tmp_path, "competing_risks")
    events = run.predictions()["target"].to_numpy()[:, 1]
    first, second = ((events == cause).sum() for cause in (1, 2))
    assert f"of them {first} with diabetes and {second} with death first" in only(run)["counts"]


def test_a_network_alone_has_a_report_and_no_section_of_differences(tmp_path):
    run = made_run(tmp_path, "survival", only=("fusion",))
    text = text_of(write_report(run))
    assert "Is the network better?" not in text and "Observed risk and calibration" in text


def test_a_horizon_that_nobody_reached_is_said_to_be_not_defined(tmp_path):
    run = made_run(tmp_path, "survival")
    table = run.predictions().with_columns(
        target=np.minimum(run.predictions()["target"].to_numpy(), [7.0, 1.0])
    )
    table = table.with_columns(
        target=np.where(table["target"].to_numpy()[:, :1] >= 7, [7.0, 0.0], table["target"].to_numpy())
    )
    table.write_parquet(run.path / "predictions.parquet")
    (run.path / "metrics.json").write_text(
        json.dumps(evaluate(table, "survival", "fusion", 30, horizons=HORIZONS))
    )
    text = text_of(write_report(run))
    assert "not defined" in text and "not defined to" not in text
    assert (
        run.metrics()["parts"][0]["models"]["fusion"]["brier_horizon"]["value"] is not None
    )  # at 5 years it is


def several_run(folder, kinds: tuple[str, ...]) -> Run:
    "A run of several outcomes, each as `made_run` makes it and unknown for a sixth of the people."
    runs = [made_run(folder, kind) for kind in kinds]
    table = runs[0].predictions().select("row", "family", "fold", "split")
    metrics, noted, fields = [], [], []
    for number, run in enumerate(runs, 1):
        own = run.predictions()
        target = own["target"].to_numpy().copy()
        target[number::6] = np.nan
        own = own.with_columns(target=target)
        names = [name for name in own.columns if name.startswith(("target", "prediction_"))]
        table = table.with_columns(own.select(pl.col(names).name.suffix(f"_{number}")))
        known, about = of_outcome(table, number), run.about()
        found = evaluate(known, run.metrics()["task"], "fusion", 60, horizons=about.get("horizons"))
        metrics.append({"outcome": f"outcome {number}", **found})
        noted.append({**about, "outcome": f"outcome {number}", "tested": f"{known.height} participants"})
        fields.append((run.path / "plan.yaml").read_text().split("outcome:")[1].strip().strip("{}"))
    run = runs[0]
    outcomes = "".join(f"    - {{{text}}}\n" for text in fields)
    (run.path / "plan.yaml").write_text(PLAN + "outcome:\n  outcomes:\n" + outcomes)
    (run.path / "metrics.json").write_text(json.dumps({"task": "several", "outcomes": metrics}))
    (run.path / "report.json").write_text(json.dumps({**ABOUT, "outcomes": noted}))
    table.write_parquet(run.path / "predictions.parquet")
    return run


def test_a_report_of_several_outcomes_has_a_section_of_each_and_what_they_share_once(tmp_path):
    kinds = ("regression", "binary", "multiclass", "multilabel", "survival", "competing_risks")
    run = several_run(tmp_path, kinds)
    html = write_report(run).read_text()
    assert html.count("data:image/png") == 4 * len(kinds) + 2
    assert html.count("<h3>Models on the same participants</h3>") == len(kinds)
    assert [html.count(f"<h2>outcome {i + 1}</h2>") for i in range(len(kinds))] == [1] * len(kinds)
    assert html.count("<h2>Training</h2>") == html.count("<h2>Participants</h2>") == 1
    text = text_of(run.path / "report.html")
    for found in run.metrics()["outcomes"]:
        assert all(
            f"{one['value']:.3f}" in text for model in found["models"].values() for one in model.values()
        )
    verdicts = [one["verdict"][0] for one in report_values(run)["outcomes"]]
    assert (
        "predicts outcome 1 with Pearson r" in verdicts[0]
        and "outcome 5 within 5 and 10 years" in verdicts[4]
    )
    assert "nan" not in text.split("Training")[0] and "None" not in text
    assert "(fields 30750, 2443, 20116, 6150, 131296 and 3 more)" in text


def test_each_of_several_outcomes_is_counted_among_those_for_whom_it_is_known(tmp_path):
    run = several_run(tmp_path, ("regression", "binary"))
    target = run.predictions()["target_2"].to_numpy()
    known, cases = int((~np.isnan(target)).sum()), int(np.nansum(target))
    assert known == 1000 and run.metrics()["outcomes"][1]["n"]["participants"] == known
    counts = report_values(run)["outcomes"][1]["counts"]
    assert counts == f"Tested: 1000 participants, {cases} of them cases; 3 folds."


def test_what_is_worse_is_worse_by_positive_numbers():
    verdict = compare(
        {
            "first": "fusion",
            "second": "ridge",
            "metric": "concordance",
            "difference": -0.024,
            "ci95": [-0.047, -0.006],
        }
    )
    assert verdict.endswith("is worse by 0.024 (0.006 to 0.047).")
