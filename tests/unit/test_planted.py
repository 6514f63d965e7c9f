"""Planted effects: every fusion that can find an interaction finds it, and missing modalities cost what they must."""

import sys

import polars as pl
import pytest
import torch
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from planted import ADDITIVE, BEST, SINGLE, best_r2, draw, expected, network, r2, train

from ukbmm.models.fusion import FusionSettings
from ukbmm.models.layers import FUSIONS

pytestmark = pytest.mark.usefixtures("one_thread")

CAN = [kind for kind in FUSIONS.names() if kind != "late"]
MARGIN = 0.02  # Standard error of an R2 of 4,000 people, and a little


@pytest.fixture(scope="module")
def people():
    return draw(6144, 0), draw(4000, 1)


def test_the_ceilings_are_what_the_truth_reaches(people):
    "By least squares on the causes themselves."
    _, others = draw(2, 0), draw(200_000, 5)
    causes = others.numbers.sum(2) / 2
    terms = torch.stack([torch.ones(len(causes)), *causes.T, causes[:, 0] * causes[:, 1]], dim=1).double()
    y = others.y.double()

    def explained(columns):
        fit = torch.linalg.lstsq(terms[:, columns], y).solution
        return 1 - float(((terms[:, columns] @ fit - y) ** 2).mean() / y.var())

    assert explained([0, 1, 2, 3, 4]) == pytest.approx(BEST, abs=0.005)
    assert explained([0, 1, 2, 3]) == pytest.approx(ADDITIVE, abs=0.005)
    assert explained([0, 1]) == pytest.approx(SINGLE, abs=0.005)
    assert best_r2(others) == pytest.approx(BEST, abs=0.005)
    assert best_r2(others.without(0)) == pytest.approx((0.4**2 + 0.3**2) / 1.11, abs=0.005)
    assert expected(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, False]])).item() == pytest.approx(0.5 + 0.8 + 1.2)  # fmt: skip


@pytest.mark.parametrize("kind", FUSIONS.names())
def test_a_fusion_finds_what_it_can_represent(people, kind):
    train_on, others = people
    found = r2(train(network(kind, 0), train_on, 0, epochs=4 if kind == "late" else 12), others)
    assert found > SINGLE  # no worse than its best modality alone
    if kind in CAN:
        assert (found - ADDITIVE) / (BEST - ADDITIVE) >= 0.9
    else:
        assert (found - SINGLE) / (ADDITIVE - SINGLE) >= 0.9 and found < ADDITIVE + MARGIN


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_people_who_lack_modalities_are_worth_learning_from(people, share):
    "The default fusion, trained on everybody, against the same trained on complete cases, with as many steps."
    lacking, others = (group.lacking(share, seed) for seed, group in enumerate(people))
    complete = lacking[lacking.present.all(dim=1).nonzero()[:, 0]]
    longer = 8 * 24 // max(1, len(complete.y) // 256)
    found = r2(train(network("transformer", 0), lacking, 0, epochs=8), others)
    without = r2(train(network("transformer", 0), complete, 0, epochs=longer), others)
    assert without + MARGIN < found < best_r2(others) + MARGIN
    assert found > 0.85 * best_r2(others)


def test_modality_dropout_prepares_for_a_modality_that_nobody_has(people):
    train_on, others = people
    plain, hidden = (
        train(network("transformer", 0), train_on, 0, epochs=8, hide=hide) for hide in (0.0, 0.3)
    )
    for modality in range(3):
        lacking = others.without(modality)
        gain = MARGIN if modality < 2 else -MARGIN  # without c, which is in no product, little is lost
        assert r2(plain, lacking) + gain < r2(hidden, lacking) < best_r2(lacking) + MARGIN
        assert r2(hidden, lacking) > 0.85 * best_r2(lacking)
    assert r2(hidden, others) > 0.9 * BEST


def test_the_table_of_results_keeps_the_rows_of_other_runs(tmp_path, monkeypatch):
    import fusions

    monkeypatch.setattr(fusions, "RESULTS", tmp_path / "results" / "fusions.tsv")
    rows = [("planted", kind, "everything", "everything", 0, 10, 0.12346, 0.5) for kind in ("late", "mean")]
    fusions.keep(rows)
    fusions.keep([(*rows[0][:6], 0.4, 0.5), ("biobank", *rows[0][1:])])
    kept = pl.read_csv(fusions.RESULTS, separator="\t")
    assert kept["r2"].to_list() == [0.1235, 0.4, 0.1235] and kept["study"].to_list() == [
        "biobank",
        "planted",
        "planted",
    ]


def results(**chosen) -> pl.DataFrame:
    table = pl.read_csv(REPOSITORY / "benchmarks" / "results" / "fusions.tsv", separator="\t")
    return table.filter(**chosen)


ALL, PLAIN = "everything", "everything, no modality dropout"


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", FUSIONS.names())
def test_the_table_of_results_says_of_every_fusion_what_the_page_says(kind, seed):
    mine = results(fusion=kind, seed=seed)
    tests = 12 if seed == 0 or kind == FusionSettings().kind else 8
    assert mine.filter(study="planted").height == mine.filter(study="biobank").height == tests
    (planted, best), (biobank, told) = (
        mine.filter(study=study, trained_on=trained_on, tested_on=ALL)["r2", "best"].row(0)
        for study, trained_on in (("planted", PLAIN), ("biobank", ALL))
    )
    alone = results(seed=seed).filter(pl.col("fusion").str.starts_with("only "))
    assert planted > alone.filter(study="planted")["r2"].max()
    assert biobank > alone.filter(study="biobank")["r2"].max()
    ridge = results(study="biobank", fusion="ridge", trained_on=ALL, tested_on=ALL, seed=seed)["r2"].item()
    share = (biobank - ridge) / (told - ridge)
    assert share >= 0.9 if kind in CAN else share > -0.01
    assert (planted - ADDITIVE) / (best - ADDITIVE) >= 0.9 if kind in CAN else planted < ADDITIVE + MARGIN
