"""Planted leaks: each has to be found, and a clean study must pass."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank.store import ingest
from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.leakage import audit, refuse_leaks
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.cohort.splits import HoldOut, KFold, Split, split_cohort
from ukbmm.core import LeakageError


@pytest.fixture(scope="module")
def study(biobank):
    cohort = define_cohort(biobank, read_outcome(biobank, RegressionOutcome(field=30750)))
    return biobank, cohort, split_cohort(cohort, biobank, KFold(folds=4, inner=3), 0)


def status(findings: pl.DataFrame) -> dict[str, str]:
    return dict(findings.select("check", "status").iter_rows())


def refused(findings: pl.DataFrame) -> str:
    with pytest.raises(LeakageError) as error:
        refuse_leaks(findings)
    return str(error.value)


def test_a_clean_study_passes(study):
    findings = audit(*study, ["p31", "p21003_i0", "p21001_i0", "p22189"])
    assert status(findings) == dict.fromkeys(["families", "withdrawn", "outcome", "time", "copies"], "ok")
    assert refuse_leaks(findings) is findings


@pytest.mark.parametrize("name", ["p30750_i0", "p30750_i1", "p30750_i0_a1", "p30750"])
def test_the_outcomes_field_at_any_occasion_or_position_is_a_leak(study, name):
    biobank, cohort, split = study
    findings = audit(biobank, cohort, split, ["p31", name])
    assert status(findings)["outcome"] == "leak"
    assert f"{name} is of the outcome's field 30750" in refused(findings)


def test_a_field_whose_number_only_begins_like_the_outcomes_is_no_leak(study):
    biobank, cohort, split = study
    other = replace(cohort, outcome=replace(cohort.outcome, column="p3_i0"))
    assert status(audit(biobank, other, split, ["p31", "p30690_i0"]))["outcome"] == "ok"


def test_a_binary_outcome_is_traced_to_its_field(study):
    biobank, cohort, split = study
    from_limit = replace(cohort, outcome=replace(cohort.outcome, kind="binary", name="p30750_i0_case"))
    assert status(audit(biobank, from_limit, split, ["p30750_i0"]))["outcome"] == "leak"


def swap_one_family(split: Split, inner: bool) -> Split:
    "Move one member of a family to another fold."
    table = split.table
    family = table.filter(pl.col("fold") == 1)["family"].value_counts().filter(pl.col("count") > 1)["family"]
    member = table.filter(pl.col("family") == family[0])["row"][0]
    column = "inner_0" if inner else "fold"
    moved = pl.when(pl.col("row") == member).then((pl.col(column) + 1) % 3).otherwise(pl.col(column))
    return Split(table.with_columns(moved.alias(column)), split.inner)


@pytest.mark.parametrize("inner", [False, True])
def test_one_relative_in_another_fold_is_a_leak(study, inner):
    biobank, cohort, split = study
    findings = audit(biobank, cohort, swap_one_family(split, inner), ["p31"])
    assert status(findings)["families"] == "leak"
    assert "<5 families are cut" in refused(findings)  # and the count of one is not shown


def test_relatives_in_training_who_are_never_tested_count_too(study):
    biobank, cohort, _ = study
    split = split_cohort(cohort, biobank, HoldOut(test=0.3, inner=2), 0)
    assert status(audit(biobank, cohort, split, ["p31"]))["families"] == "ok"
    shuffled = split.table.with_columns(fold=pl.col("fold").shuffle(seed=1))
    assert status(audit(biobank, cohort, Split(shuffled, 2), ["p31"]))["families"] == "leak"


def test_a_split_with_the_kinship_that_was_asked_for_is_not_refused(study):
    biobank, cohort, _ = study
    pairs = biobank.relatives.with_columns(kinship=pl.lit(0.06))  # cousins, and sisters of nobody
    distant = type("Distant", (), {"relatives": pairs, "withdrawn": biobank.withdrawn, "manifest": biobank.manifest,
                                   "field": biobank.field, "__len__": lambda self: len(biobank)})()  # fmt: skip
    split = split_cohort(cohort, distant, KFold(folds=4, inner=3, kinship=0.1), 0)
    findings = audit(distant, cohort, split, ["p31"])
    assert status(findings)["families"] == "look"
    assert "no family is cut by the split; by pairs of third degree" in findings["detail"][0]
    same = Split(split.table, split.inner)  # as if the third degree had been asked for
    assert status(audit(distant, cohort, same, ["p31"]))["families"] == "leak"


@pytest.mark.parametrize(("scale", "noise", "expected"), [(1, 0, "look"), (-3, 0, "look"), (1, 0.1, "ok")])
def test_a_number_that_is_the_outcome_under_another_field_is_looked_at(study, scale, noise, expected):
    biobank, cohort, split = study
    weight = biobank.read(["p21001_i0"])["p21001_i0"].cast(pl.Float64).to_numpy()
    spread = noise * np.nanstd(weight) * np.random.default_rng(0).normal(size=len(weight))
    other = replace(cohort, outcome=replace(cohort.outcome, values=scale * weight + spread))
    findings = audit(biobank, other, split, ["p31", "p21001_i0"])
    assert status(findings)["copies"] == expected
    assert ("p21001_i0: the same as the outcome" in findings["detail"].to_list()[-1]) == (expected == "look")


def test_a_cohort_with_somebody_who_withdrew_is_a_leak(study):
    biobank, cohort, split = study
    gone = np.zeros(len(biobank), dtype=bool)
    gone[cohort.rows[7]] = True
    later = type("Later", (), {"relatives": biobank.relatives, "withdrawn": gone, "manifest": biobank.manifest,
                               "field": biobank.field, "__len__": lambda self: len(biobank)})()  # fmt: skip
    assert "<5 participants of the cohort have withdrawn" in refused(audit(later, cohort, split, ["p31"]))


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    "People with values of two visits, and a field that no visit belongs to."
    folder = tmp_path_factory.mktemp("visits")
    rng = np.random.default_rng(0)
    lines = ["eid,31-0.0,53-0.0,53-1.0,191-0.0,21001-0.0,21001-1.0,30750-0.0,40008-0.0"]
    for i in range(60):
        numbers = ",".join(f"{x:.2f}" for x in rng.normal(27, 3, 4))
        lines.append(f"{1_000_001 + i},{i % 2},2007-01-02,2012-01-02,2014-01-02,{numbers}")
    (folder / "extract.csv").write_text("\n".join(lines) + "\n")
    return ingest(folder / "extract.csv", folder / "visits.biobank")


def test_a_value_measured_after_the_index_visit_is_a_leak(visits):
    cohort = define_cohort(visits, read_outcome(visits, RegressionOutcome(field=30750)))
    split = split_cohort(cohort, visits, KFold(folds=3, inner=2), 0)
    findings = audit(visits, cohort, split, ["p21001_i0", "p21001_i1"])
    assert "p21001_i1 measured after visit 0" in refused(findings) and "p21001_i0" not in refused(findings)


def test_a_value_measured_after_the_outcome_is_a_leak_even_at_the_index_visit(visits):
    cohort = define_cohort(visits, read_outcome(visits, RegressionOutcome(field=30750)))
    split, at_second = split_cohort(cohort, visits, KFold(folds=3, inner=2), 0), replace(cohort, visit=1)
    assert "p21001_i1 measured after visit 0, the outcome's" in refused(
        audit(visits, at_second, split, ["p21001_i1"])
    )
    assert status(audit(visits, at_second, split, ["p21001_i0"]))["time"] == "ok"
    of_second = replace(at_second, outcome=replace(cohort.outcome, column="p21001_i1"))
    assert status(audit(visits, of_second, split, ["p30750_i0"]))["time"] == "ok"


def test_dates_and_fields_without_a_visit_are_for_a_person_to_look_at(visits):
    cohort = define_cohort(visits, read_outcome(visits, RegressionOutcome(field=30750)))
    split = split_cohort(cohort, visits, KFold(folds=3, inner=2), 0)
    findings = audit(visits, cohort, split, ["p31", "p191", "p40008_i0"])
    detail = dict(findings.select("check", "detail").iter_rows())["time"]
    assert status(findings)["time"] == "look" and "p191" in detail and "p40008_i0" in detail
    assert "p31" not in detail
    assert status(findings)["families"] == "look"  # no relatedness file was ingested


def test_the_date_of_a_visit_says_how_far_a_modality_looks_back_from(visits):
    cohort = define_cohort(visits, read_outcome(visits, RegressionOutcome(field=30750)))
    split = split_cohort(cohort, visits, KFold(folds=3, inner=2), 0)
    assert status(audit(visits, cohort, split, ["p31", "p53_i0"]))["time"] == "ok"
    assert "p53_i1 measured after visit 0" in refused(audit(visits, cohort, split, ["p31", "p53_i1"]))


def test_anything_fitted_on_a_tested_row_is_a_leak(study):
    biobank, cohort, split = study
    good = {fold: {"table": split.development(fold), "snps": split.train(fold, 0)} for fold in split.folds}
    assert status(audit(biobank, cohort, split, ["p31"], good))["fitting"] == "ok"
    bad = {**good, 2: {**good[2], "snps": np.append(good[2]["snps"], split.test(2)[0])}}
    assert "snps (fold 2) saw rows that are tested" in refused(audit(biobank, cohort, split, ["p31"], bad))


def test_no_finding_names_a_row_or_a_value(study):
    biobank, cohort, split = study
    findings = audit(biobank, cohort, swap_one_family(split, False), ["p31", "p30750_i0"])
    assert not findings["detail"].str.contains(r"row \d|\d{7}").any()
