"""An event by its date: who had it before is not at risk, whatever the date says; hand-worked."""

import numpy as np
import pytest
from pydantic import ValidationError

from ukbmm.biobank.store import Biobank, ingest
from ukbmm.cohort.cohort import Baseline, CohortSettings, Condition, define_cohort
from ukbmm.cohort.leakage import audit
from ukbmm.cohort.outcomes import BinaryOutcome, RegressionOutcome, read_outcome
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.core import CohortError

INFARCTION = 131298  # date of I21, coding 819
# Twelve invented people: visit 2010-06-01, and the date of an infarction.
PEOPLE = {
    "after the visit": "2012-01-01",
    "the day after": "2010-06-02",
    "the day itself": "2010-06-01",
    "before the visit": "2003-04-05",
    "no date": "1900-01-01",
    "before birth": "1901-01-01",
    "at birth": "1902-02-02",
    "soon after birth": "1903-03-03",
    "placeholder": "1909-09-09",
    "placeholder in the future": "2037-07-07",
    "never": "",
    "withdrawn": "",
}
SAYS = dict(zip(PEOPLE, [1, 1, None, None, None, None, None, None, 0, 0, 0, None], strict=True))


@pytest.fixture(scope="module")
def dated(tmp_path_factory) -> Biobank:
    folder = tmp_path_factory.mktemp("dated")
    lines = ["eid,53-0.0,31-0.0,131298-0.0,42000-0.0,30750-0.0"]
    for i, day in enumerate(PEOPLE.values()):
        lines.append(
            f"{1_000_001 + i},2010-06-01,{i % 2},{day},{day if day == '1900-01-01' else ''},{30 + i}"
        )
    (folder / "extract.csv").write_text("\n".join(lines) + "\n")
    (folder / "withdrawn.csv").write_text("1000012\n")
    return ingest(folder / "extract.csv", folder / "dated.biobank", withdrawals=folder / "withdrawn.csv")


def test_only_those_at_risk_are_in_the_cohort_and_the_flow_says_who_was_not(dated):
    outcome = read_outcome(dated, BinaryOutcome(field=INFARCTION, incident=True))
    cohort = define_cohort(dated, outcome)
    expected = {i: said for i, said in enumerate(SAYS.values()) if said is not None}
    assert dict(zip(cohort.rows.tolist(), cohort.target.tolist(), strict=True)) == expected
    steps = {step.reason.split(" (")[0]: step.excluded for step in cohort.steps}
    assert steps["had it already, from birth or at a date that nobody knows"] == 4
    assert steps["had it by visit 0"] == 2 and steps["withdrawn"] == 1
    assert cohort.n_start - sum(step.excluded for step in cohort.steps) == len(cohort)


def test_nobody_with_a_disease_of_unknown_date_is_a_control_in_any_coding(dated):
    ado = read_outcome(dated, BinaryOutcome(field=42000, incident=True))  # coding 272
    has_it = list(PEOPLE).index("no date")
    assert has_it not in define_cohort(dated, ado).rows and ado.already.tolist().index(True) == has_it
    assert np.isnan(ado.values[has_it])


def test_a_condition_on_the_date_of_a_disease_counts_those_whose_date_is_unknown(dated):
    sugar = read_outcome(dated, RegressionOutcome(field=30750))
    healthy = define_cohort(dated, sugar, CohortSettings(exclude=[Condition(field=INFARCTION)]))
    assert healthy.rows.tolist() == [8, 9, 10]  # placeholders and never
    ill = define_cohort(dated, sugar, CohortSettings(include=[Condition(field=INFARCTION)]))
    assert ill.rows.tolist() == list(range(8))


def test_a_later_visit_has_others_at_risk(dated, tmp_path):
    text = "eid,53-2.0,131298-0.0\n" + "".join(
        f"{1_000_001 + i},2014-01-01,{day}\n" for i, day in enumerate(["2012-01-01", "2015-01-01", ""])
    )
    (tmp_path / "a.csv").write_text(text)
    later = ingest(tmp_path / "a.csv", tmp_path / "later.biobank")
    outcome = read_outcome(later, BinaryOutcome(field=INFARCTION, incident=True))
    assert define_cohort(later, outcome, CohortSettings(baseline=Baseline(visit=2))).rows.tolist() == [1, 2]
    with pytest.raises(CohortError, match="expected an index date, found no column p53_i0"):
        define_cohort(later, outcome)


def test_a_date_is_an_outcome_only_where_it_is_said_to_be_one(dated):
    with pytest.raises(
        CohortError, match="131298 .*expected codes or numbers, found a date field.*incident: true"
    ):
        read_outcome(dated, BinaryOutcome(field=INFARCTION, above=3))
    with pytest.raises(CohortError, match="field 31 .*expected a date, found a categorical single field"):
        read_outcome(dated, BinaryOutcome(field=31, incident=True))
    for wrong in ({"cases": [1]}, {"above": 1.0}, {"controls": [1]}):
        with pytest.raises(ValidationError, match="expected either|goes with"):
            BinaryOutcome(field=INFARCTION, incident=True, **wrong)


def test_the_audit_takes_an_event_as_any_other_outcome(tmp_path):
    rows = [f"{1_000_001 + i},2010-06-01,{'2012-01-01' if i % 2 else ''},{30 + i}" for i in range(24)]
    (tmp_path / "a.csv").write_text("\n".join(["eid,53-0.0,131298-0.0,30750-0.0", *rows]) + "\n")
    many = ingest(tmp_path / "a.csv", tmp_path / "many.biobank")
    cohort = define_cohort(many, read_outcome(many, BinaryOutcome(field=INFARCTION, incident=True)))
    split = split_cohort(cohort, many, KFold(folds=2, inner=2), 0)
    found = dict(audit(many, cohort, split, ["p30750_i0", "p131298"]).select("check", "status").iter_rows())
    assert found["outcome"] == "leak" and found["withdrawn"] == "ok"
    found = dict(audit(many, cohort, split, ["p30750_i0"]).select("check", "status").iter_rows())
    assert found["outcome"] == found["time"] == "ok"
