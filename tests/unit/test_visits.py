"""Visits against a plain construction in pandas, person by person; nothing later than the index visit is read."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from ukbmm.biobank.store import Biobank, ingest
from ukbmm.biobank.synthetic import synthetic_biobank
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import DataError
from ukbmm.data.blocks import OutcomeBlock
from ukbmm.data.loaders import fitted_loaders
from ukbmm.data.visits import VisitBlock, VisitSettings, last_values, time_since_last, visit_dates

FIELDS = [21001, {"field": 4080, "array": "mean"}, {"field": 1558, "ordered": True, "name": "alcohol"}]
TRAINING = np.arange(0, 260)


@pytest.fixture(scope="module")
def visited(tmp_path_factory):
    columns = [f"p{field}_i{visit}" for field in (53, 21001, 1558, 20116) for visit in range(3)]
    columns += [f"p4080_i{visit}_a{array}" for visit in range(3) for array in range(2)]
    return synthetic_biobank(
        tmp_path_factory.mktemp("visits") / "b.biobank", 400, 20, 5, [*columns, "p30750_i0"]
    )


def plain(biobank, until: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Raw values [person, time, channel], years and elapsed, by loops over people; index date needed."
    table = biobank.read(biobank.columns).to_pandas()
    n = len(table)
    values = np.full((n, until + 1, 3), np.nan)
    years, elapsed = np.full((n, until + 1), np.nan), np.zeros((n, until + 1, 3))
    for i, person in table.iterrows():
        if pd.isna(person[f"p53_i{until}"]):
            continue
        first, last_seen = None, [None] * 3
        for visit in range(until + 1):
            when = person[f"p53_i{visit}"]
            if pd.isna(when):
                continue
            first = first or when
            years[i, visit] = (when - first).days / 365.25
            readings = [person[f"p4080_i{visit}_a{array}"] for array in range(2)]
            readings = [reading for reading in readings if not pd.isna(reading)]
            alcohol = person[f"p1558_i{visit}"]
            found = [person[f"p21001_i{visit}"], np.mean(readings) if readings else np.nan,
                     np.nan if alcohol == -3 else -alcohol]  # fmt: skip
            for channel, value in enumerate(found):
                elapsed[i, visit, channel] = (when - (last_seen[channel] or first)).days / 365.25
                if not pd.isna(value):
                    values[i, visit, channel], last_seen[channel] = value, when
    return values, years, elapsed


@pytest.mark.parametrize("until", [0, 1, 2])
def test_values_mask_and_times_equal_loops_over_people(visited, until):
    block = VisitBlock(FIELDS, until=until).fit(visited, TRAINING)
    value, mask, elapsed, years = block.transform(block.batch(torch.arange(400)))
    expected, when, since = plain(visited, until)
    mean, scale = (f(expected[TRAINING].reshape(-1, 3), axis=0) for f in (np.nanmean, np.nanstd))
    standard = (expected - mean) / scale
    np.testing.assert_array_equal(mask.numpy() == 1, ~np.isnan(expected))
    np.testing.assert_allclose(value.numpy(), np.nan_to_num(standard), atol=4e-3)
    np.testing.assert_allclose(years.numpy(), when, atol=1e-5)
    np.testing.assert_allclose(elapsed.numpy(), since, atol=1e-4)
    there = ~np.isnan(when[:, until]) & ~np.isnan(expected).all(axis=(1, 2))
    np.testing.assert_array_equal(block.present(torch.arange(400)).numpy(), there)
    assert block.batch(torch.arange(2)).values.dtype == torch.float16 and 0 < there.sum()


def test_only_the_index_visit_and_earlier_ones_are_ever_asked_for(visited, monkeypatch):
    asked = []
    for method in ("read", "clean"):
        whole = getattr(Biobank, method)

        def watched(self, names, *rest, whole=whole):
            names = list(names)
            asked.extend(names)
            return whole(self, names, *rest)

        monkeypatch.setattr(Biobank, method, watched)
    block = VisitBlock(FIELDS, until=1).fit(visited, TRAINING)
    assert asked and not [name for name in [*asked, *block.columns] if "_i2" in name]
    assert {"p53_i1", "p4080_i1_a1", "p21001_i0"} <= set(block.columns) <= set(asked)


def test_nothing_is_learned_from_people_outside_the_training_rows(visited):
    block = VisitBlock(FIELDS, until=2)
    fitted = block.fit(visited, TRAINING)
    before = fitted.batch(torch.from_numpy(TRAINING)).values.clone()
    other = block.copy()
    other._raw = block._raw.copy()
    other._raw[len(TRAINING) :] = 1000.0
    after = other.fit(visited, TRAINING).batch(torch.from_numpy(TRAINING)).values
    assert torch.equal(before.nan_to_num(9), after.nan_to_num(9))
    assert fitted.copy().fit(visited, TRAINING[:50]).standardiser.mean[0] != fitted.standardiser.mean[0]


def own(folder, name: str, lines: list[str]):
    header = "eid,53-0.0,53-1.0,53-2.0,21001-0.0,21001-1.0,21001-2.0"
    (folder / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    return ingest(folder / f"{name}.csv", folder / f"{name}.biobank")


def test_a_visit_dated_after_the_index_visit_counts_as_not_attended_and_who_lacks_the_index_visit_is_absent(
    tmp_path,
):
    lines = ["1000001,2008-05-01,2012-05-01,2016-05-01,21,22,23", "1000002,2008-05-01,2019-05-01,2016-05-01,24,25,26",
             "1000003,2008-05-01,2012-05-01,,27,28,29", "1000004,2008-05-01,,2016-05-01,30,31,32"]  # fmt: skip
    biobank = own(tmp_path, "t", lines)
    block = VisitBlock([21001], until=2).fit(biobank, np.arange(4))
    assert block.present(torch.arange(4)).tolist() == [True, True, False, True]
    known = ~block.batch(torch.arange(4)).values[:, :, 0].isnan()
    assert known.tolist() == [[True] * 3, [True, False, True], [False] * 3, [True, False, True]]
    assert np.isnat(visit_dates(biobank, 2)).sum() == 5
    (tmp_path / "w.csv").write_text("1000001\n")
    gone = ingest(tmp_path / "t.csv", tmp_path / "w.biobank", withdrawals=tmp_path / "w.csv")
    assert not VisitBlock([21001], until=2).open(gone).present(torch.tensor([0])).item()


def test_time_since_last_and_last_values_equal_loops():
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(50, 5, 4, generator=generator) < 0.5
    years = torch.rand(50, 5, generator=generator).cumsum(1)
    years[:, 0] = 0
    away = torch.rand(50, 5, generator=generator) < 0.3
    away[:, 0] = False
    years[away], known[away] = torch.nan, False
    found = time_since_last(known, years)
    value = torch.randn(50, 5, 4, generator=generator) * known
    shown = last_values(value, known.float())
    for i in range(50):
        for channel in range(4):
            before, last = 0.0, None
            for step in range(5):
                if not years[i, step].isnan():
                    assert found[i, step, channel].item() == pytest.approx(
                        (years[i, step] - before).item(), abs=1e-6
                    )
                if known[i, step, channel]:
                    before, last = years[i, step], value[i, step, channel].item()
            assert shown[i, channel].item() == (last or 0.0) and shown[i, 4 + channel].item() == (
                last is None
            )


def test_a_block_travels_and_serves_loaders_with_workers(visited):
    block = VisitBlock(FIELDS, until=2).fit(visited, TRAINING)
    sent = pickle.loads(pickle.dumps(block))
    assert sent._raw is None and sent._biobank is None
    rows = torch.tensor([3, 1, 399])
    pairs = zip(sent.transform(sent.batch(rows)), block.transform(block.batch(rows)), strict=True)
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in pairs)
    target = OutcomeBlock(read_outcome(visited, RegressionOutcome(field=30750)))
    known = np.flatnonzero(target.outcome.known & block.present(torch.arange(400)).numpy())
    target = target.fit(visited, known)
    dls = fitted_loaders({"body": block}, target, known[:-10], known[-10:], bs=16, device="cpu")
    summary = dls.summary()
    assert "VisitBlock 'visits': 3 fields at visits 0 to 2" in summary and "[16, 3, 3]" in summary
    dls.show_batch()
    one, two = (next(iter(dls.train.new(num_workers=n)))[0]["body"] for n in (0, 1))
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("fields", "until", "word"),
    [
        ([20116], 2, "expected a quantity, found a categorical single field"),
        ([30750], 2, None),
        ([999999], 1, "field 999999 of a modality of visits"),
        ([21001, 21001], 1, "modality 'visits': expected each column once"),
        ([21001], 5, "a column p53_i5"),
    ],
)
def test_what_cannot_be_followed_over_visits_is_refused(visited, fields, until, word):
    if word is None:  # measured at one visit only
        assert VisitBlock(fields, until=until).open(visited)._raw.shape == (400, 3, 1)
        return
    with pytest.raises(DataError, match=word):
        VisitBlock(fields, until=until).open(visited)


@pytest.mark.parametrize(
    "wrong", [{"field": 1, "instance": 0}, {"derived": "bmi"}, {"field": 1, "array": "any"}]
)
def test_occasions_formulas_and_multiple_choices_are_refused_by_the_settings(wrong):
    with pytest.raises(ValueError, match="every visit is taken"):
        VisitSettings(fields=[wrong])


def test_what_was_learned_can_be_read(visited):
    block = VisitBlock(FIELDS, until=2, winsorise=0.01).fit(visited, TRAINING)
    table = block.describe()
    assert table["input"].to_list()[2] == "alcohol" and table.columns[-1] == "measured at visit 2"
    expected, when, _ = plain(visited, 2)
    share = (~np.isnan(expected[:, 1, 0])).sum() / (~np.isnan(when[:, 1])).sum()
    assert table["measured at visit 1"][0] == pytest.approx(share)
    assert np.isfinite(block.standardiser.low).all()
