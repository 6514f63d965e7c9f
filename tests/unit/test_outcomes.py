"""An event by its date: who had it before is not at risk, whatever the date says; hand-worked."""

import datetime
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from ukbmm.biobank.store import Biobank, ingest
from ukbmm.cohort.cohort import Baseline, CohortSettings, Condition, define_cohort
from ukbmm.cohort.leakage import audit
from ukbmm.cohort.outcomes import (
    BinaryOutcome,
    CompetingOutcome,
    MulticlassOutcome,
    MultilabelOutcome,
    OrdinalOutcome,
    OutcomeSettings,
    RegressionOutcome,
    SeveralOutcome,
    SurvivalOutcome,
    read_outcome,
)
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.core import CohortError, SplitError

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


# Time to an infarction, everybody seen on 2010-06-01, records to the end of 2020: infarction, death on either certificate, lost; years and event
END = datetime.date(2020, 12, 31)
FOLLOWED = {
    "event": ("2012-06-01", "", "", "", 731, 1),
    "event and death on one day": ("2012-06-01", "2012-06-01", "", "", 731, 1),
    "event after death was noted": ("2014-01-01", "2012-06-01", "", "", 731, 0),
    "death": ("", "2015-06-01", "", "", 1826, 0),
    "death on the second certificate, earlier": ("", "2015-06-01", "2012-06-01", "", 731, 0),
    "lost": ("", "", "", "2011-06-01", 365, 0),
    "event after loss": ("2013-01-01", "", "", "2011-06-01", 365, 0),
    "nothing": ("", "", "", "", 3866, 0),
    "event after the end of records": ("2021-05-05", "", "", "", 3866, 0),
    "prevalent": ("2009-01-01", "", "", "", None, None),
    "on the day": ("2010-06-01", "", "", "", None, None),
    "date unknown": ("1900-01-01", "", "", "", None, None),
    "lost before": ("", "", "", "2010-05-01", None, None),
    "dead on the day": ("", "2010-06-01", "", "", None, None),
    "withdrawn": ("2012-06-01", "", "", "", None, None),
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Biobank:
    folder = tmp_path_factory.mktemp("followed")
    lines = ["eid,53-0.0,131298-0.0,40000-0.0,40000-1.0,191-0.0,30750-0.0,20116-0.0"]
    for i, (event, death, second, lost, *_) in enumerate(FOLLOWED.values()):
        lines.append(
            f"{1_000_001 + i},2010-06-01,{event},{death},{second},{lost},{30 + i if i % 7 else ''},{(-3, 0, 1, 2)[i % 4]}"
        )
    (folder / "extract.csv").write_text("\n".join(lines) + "\n")
    (folder / "withdrawn.csv").write_text("1000015\n")
    return ingest(folder / "extract.csv", folder / "followed.biobank", withdrawals=folder / "withdrawn.csv")


def test_time_to_an_event_by_hand(followed):
    outcome = read_outcome(followed, SurvivalOutcome(field=INFARCTION, end_of_follow_up=END, horizons=[2, 8]))
    assert not outcome.known.any() and outcome.dated  # times follow from the index date
    cohort = define_cohort(followed, outcome)
    expected = {i: (days, event) for i, (*_, days, event) in enumerate(FOLLOWED.values()) if days is not None}
    assert cohort.rows.tolist() == list(expected)
    days = (cohort.target[:, 0] * 365.25).round().astype(int).tolist()
    assert list(zip(days, cohort.target[:, 1], strict=True)) == list(expected.values())
    steps = {step.reason.split(" (")[0]: step.excluded for step in cohort.steps}
    assert (
        steps["had it by visit 0"] == 2
        and steps["not followed after visit 0"] == 2
        and steps["withdrawn"] == 1
    )
    assert steps["had it already, from birth or at a date that nobody knows"] == 1
    assert outcome.units == "years" and outcome.horizons == (2.0, 8.0)
    assert set(outcome.columns) == {"p131298"} and cohort.strata.tolist() == cohort.target[:, 1].tolist()


def test_death_as_the_event_does_not_end_follow_up_as_well(followed):
    cohort = define_cohort(
        followed, read_outcome(followed, SurvivalOutcome(field=40000, end_of_follow_up=END))
    )
    died = {list(FOLLOWED)[row] for row, event in zip(cohort.rows, cohort.target[:, 1], strict=True) if event}
    assert died == {
        "event and death on one day",
        "event after death was noted",
        "death",
        "death on the second certificate, earlier",
    }


def test_competing_risks_take_what_comes_first(followed):
    settings = CompetingOutcome(field=INFARCTION, competing=[40000], end_of_follow_up=END)
    outcome = read_outcome(followed, settings)
    cohort = define_cohort(followed, outcome)
    found = {list(FOLLOWED)[row]: event for row, event in zip(cohort.rows, cohort.target[:, 1], strict=True)}
    assert found["event"] == found["event and death on one day"] == 1
    assert found["death"] == found["event after death was noted"] == 2
    assert found["lost"] == found["nothing"] == 0 and "dead on the day" not in found
    assert len(outcome.classes) == 2 and set(outcome.columns) == {"p131298", "p40000_i0", "p40000_i1"}
    assert settings.field_ids == [INFARCTION, 40000]


def test_what_survival_needs_is_asked_for_by_name(followed, dated):
    with pytest.raises(
        CohortError, match="field 40000, death of the outcome: expected a column of dates, found none"
    ):
        read_outcome(dated, SurvivalOutcome(field=INFARCTION, end_of_follow_up=END))
    alone = read_outcome(
        dated, SurvivalOutcome(field=INFARCTION, end_of_follow_up=END, death=None, lost=None)
    )
    assert define_cohort(dated, alone).target[:, 1].sum() == 2
    with pytest.raises(CohortError, match="field 31, the event of the outcome: expected a column of dates"):
        read_outcome(dated, SurvivalOutcome(field=31, end_of_follow_up=END, death=None, lost=None))


def test_classes_and_grades_are_numbers_of_their_entries(followed):
    smoking = read_outcome(followed, OrdinalOutcome(field=20116, ordered=[2, [0, 1]]))
    raw = np.array([(-3, 0, 1, 2)[i % 4] for i in range(len(FOLLOWED))])
    np.testing.assert_array_equal(smoking.values[:-1], np.select([raw == 2, raw >= 0], [0, 1], np.nan)[:-1])
    assert smoking.classes == ("Current", "Never or Previous")
    classes = read_outcome(followed, MulticlassOutcome(field=20116, classes=[0, 1]))
    assert np.isnan(classes.values[raw == 2]).all() and classes.kind == "multiclass"
    with pytest.raises(ValidationError, match="code 1 is in more than one class"):
        OrdinalOutcome(field=20116, ordered=[1, [0, 1]])


def test_a_label_that_somebody_had_before_is_unknown_and_the_others_stay(followed):
    labels = [BinaryOutcome(field=INFARCTION, incident=True), BinaryOutcome(field=30750, above=35)]
    outcome = read_outcome(followed, MultilabelOutcome(labels=labels))
    cohort = define_cohort(followed, outcome)
    prevalent = list(FOLLOWED).index("on the day")
    place = cohort.rows.tolist().index(prevalent)
    assert np.isnan(cohort.target[place, 0]) and cohort.outcome.matrix.shape[1] == 2
    assert np.isnan(cohort.target[:, 0]).sum() == 3  # prevalent, on the day, date unknown
    assert cohort.strata is None


def test_several_outcomes_side_by_side_are_audited_and_split_where_each_can_be_scored(followed):
    parts = [SurvivalOutcome(field=INFARCTION, end_of_follow_up=END), RegressionOutcome(field=30750)]
    outcome = read_outcome(followed, SeveralOutcome(outcomes=parts))
    cohort = define_cohort(followed, outcome)
    assert cohort.target.shape[1] == 3 and outcome.columns == ("p131298", "p30750_i0")
    known = ~np.isnan(cohort.target)
    assert known.any(axis=1).all() and not known.all() and (known[:, 0] == known[:, 1]).all()
    with pytest.raises(SplitError, match="of Date I21 .*: expected cases and controls"):
        split_cohort(cohort, followed, KFold(folds=2, inner=2), 0)  # fourteen people, too few events
    split = split_cohort(
        replace(cohort, outcome=cohort.outcome.parts[1]), followed, KFold(folds=2, inner=2), 0
    )
    found = dict(audit(followed, cohort, split, ["p30750_i0"]).select("check", "status").iter_rows())
    assert found["outcome"] == "leak"


def test_parts_that_are_called_the_same_are_refused(followed):
    parts = [RegressionOutcome(field=30750), RegressionOutcome(field=30750)]
    with pytest.raises(
        CohortError, match="several outcomes: expected each of its own name, found two called"
    ):
        read_outcome(followed, SeveralOutcome(outcomes=parts))
    parts[1] = RegressionOutcome(field=30750, name="the same again")
    assert read_outcome(followed, SeveralOutcome(outcomes=parts)).matrix.shape[1] == 2
    yes = BinaryOutcome(field=30750, above=36, name="high")
    with pytest.raises(CohortError, match="a multilabel outcome: .*two called 'high'"):
        read_outcome(followed, MultilabelOutcome(labels=[yes, yes]))


@pytest.mark.parametrize(
    "words",
    [
        {"kind": "survival", "field": 131298, "end_of_follow_up": "2022-10-31", "horizons": [5, 10]},
        {"kind": "competing_risks", "field": 131298, "competing": [40000], "end_of_follow_up": "2022-10-31"},
        {"kind": "multiclass", "field": 20116, "classes": [0, 1, 2]},
        {"kind": "ordinal", "field": 20116, "ordered": [0, [1, 2]]},
        {
            "kind": "multilabel",
            "labels": [{"field": 20116, "cases": [2]}, {"field": 131298, "incident": True}],
        },
        {
            "kind": "several",
            "outcomes": [{"kind": "regression", "field": 50}, {"kind": "binary", "field": 30690, "above": 6}],
        },
    ],
    ids=lambda words: words["kind"],
)
def test_a_spec_can_ask_for_each_kind_and_unknown_keys_are_errors(words):
    adapter = TypeAdapter(OutcomeSettings)
    assert adapter.validate_python(words).kind == words["kind"]
    with pytest.raises(ValidationError, match="horizon"):
        adapter.validate_python({**words, "horizon": 3})
