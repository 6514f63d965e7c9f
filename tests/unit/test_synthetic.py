"The synthetic biobank is a function of its seed, has real families, and holds the truth that it states."

import json

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LinearRegression

from ukbmm.biobank.genotypes import open_bed, read_bed, unpack
from ukbmm.biobank.synthetic import (
    COEFFICIENTS,
    FAMILY_KINDS,
    draw_causes,
    draw_genotypes,
    draw_pedigree,
    outcome_of,
    related_pairs,
    synthetic_biobank,
    write_extract,
)
from ukbmm.core import UkbmmError, rng_for

FILES = ["extract.csv", "genotypes.bed", "genotypes.bim", "genotypes.fam", "relatedness.dat", "truth.json"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "3,000 people at 400 variants."
    return synthetic_biobank(tmp_path_factory.mktemp("large") / "b", participants=3000, variants=400, seed=4)


def copies_of(biobank, rows):
    "Copies of A1, NaN where missing."
    store = biobank.genotypes()
    copies = unpack(store.packed(rows), store.variants).astype(float)
    return np.where(copies < 0, np.nan, copies)


def files(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_extract(tmp_path / name, participants=120, variants=60, seed=seed)
    first, again, other = (files(tmp_path / name) for name in "abc")
    assert first == again
    assert [name for name in FILES if first[name] == other[name]] == []


def test_what_is_returned_is_what_is_written(tmp_path):
    truth = write_extract(tmp_path, participants=60, variants=50, seed=3)
    assert json.loads((tmp_path / "truth.json").read_text()) == truth
    assert (
        truth["coefficients"] == COEFFICIENTS and len(truth["causal_variants"]) == len(truth["effects"]) == 40
    )


@pytest.mark.parametrize("size", [(49, 10), (50, 9), (0, 0)])
def test_too_small_a_biobank_is_refused(tmp_path, size):
    with pytest.raises(UkbmmError, match="at least 50 participants and 10 variants"):
        write_extract(tmp_path / "x", *size)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("n", [50, 51, 400, 1000])
def test_people_belong_to_families_of_one_to_three(n):
    pedigree = draw_pedigree(n, rng_for(0, "p"))
    sizes = np.bincount(pedigree.family)
    assert len(pedigree.family) == n and sizes.min() >= 1 and sizes.max() <= 3
    child = pedigree.founder < 0
    assert ((pedigree.parents >= 0).all(1) == child).all()
    assert pedigree.parents.max() < pedigree.n_founders
    pairs = {tuple(sorted(pair)) for pair in related_pairs(pedigree).tolist()}
    by_hand = {(i, j) for i in range(n) for j in range(i + 1, n) if pedigree.family[i] == pedigree.family[j]}
    assert pairs == by_hand and len(related_pairs(pedigree)) == len(by_hand)


def test_families_are_of_the_stated_kinds():
    pedigree = draw_pedigree(20_000, rng_for(1, "p"))
    sizes = np.bincount(np.bincount(pedigree.family), minlength=4)[1:] / (pedigree.family.max() + 1)
    expected = [sum(share for _, share, size in FAMILY_KINDS if size == n) for n in (1, 2, 3)]
    np.testing.assert_allclose(sizes, expected, atol=0.02)


def test_a_child_never_lacks_both_alleles_of_its_parent():
    pedigree = draw_pedigree(2000, rng_for(2, "p"))
    copies = draw_genotypes(pedigree, 100, rng_for(2, "g"))
    assert copies.min() == 0 and copies.max() == 2
    in_study = {founder: person for person, founder in enumerate(pedigree.founder) if founder >= 0}
    pairs = [
        (in_study[mother], child) for child, (mother, _) in enumerate(pedigree.parents) if mother in in_study
    ]
    assert len(pairs) > 300
    parent, child = np.array(pairs).T
    assert (np.abs(copies[parent].astype(int) - copies[child]) < 2).all()
    siblings = np.abs(copies[1:].astype(int) - copies[:-1])[np.diff(pedigree.family) == 0]
    assert (siblings == 2).any()  # siblings may


@pytest.mark.parametrize("variants", [10, 19, 20, 21, 100])
def test_every_variant_has_as_many_columns_as_asked(variants):
    copies = draw_genotypes(draw_pedigree(60, rng_for(0, "p")), variants, rng_for(0, "g"))
    assert copies.shape == (60, variants) and copies.dtype == np.int8


def test_relatives_share_half_of_their_genotypes_and_strangers_none(large):
    rows = np.arange(3000)
    copies = copies_of(large, rows)
    z = np.nan_to_num((copies - np.nanmean(copies, 0)) / np.nanstd(copies, 0))
    known = large.genotypes().present(rows)
    pairs = large.relatives.filter(pl.col("kinship") > 0.2).select("row_a", "row_b").to_numpy()
    pairs = pairs[known[pairs].all(1)]
    assert len(pairs) > 800
    shared = (z[pairs[:, 0]] * z[pairs[:, 1]]).mean(1)
    strangers = np.random.default_rng(0).permutation(np.flatnonzero(known))[:2000].reshape(2, -1)
    apart = (z[strangers[0]] * z[strangers[1]]).mean(1)
    # z of a missing call is 0, which takes 2% off; 0.01 is about one standard error
    assert abs(shared.mean() - 0.5) < 0.04 and abs(apart.mean()) < 0.03


def test_the_stated_kinship_is_that_of_first_degree(large):
    kinship = large.relatives["kinship"].to_numpy()
    assert abs(kinship.mean() - 0.25) < 0.002 and abs(kinship.std() - 0.01) < 0.002


def test_variants_of_a_block_are_linked_and_those_of_other_chromosomes_are_not():
    copies = draw_genotypes(draw_pedigree(3000, rng_for(5, "p")), 200, rng_for(5, "g"))
    r2 = np.corrcoef(copies.T.astype(float)) ** 2
    block = np.arange(200) // 20
    within = r2[(block[:, None] == block) & ~np.eye(200, dtype=bool)]
    far = r2[np.abs(block[:, None] - block) > 5]
    assert within.mean() > 10 * far.mean() and far.mean() < 0.02


def test_a_regression_on_all_causes_finds_the_stated_coefficients():
    copies = draw_genotypes(draw_pedigree(8000, rng_for(6, "p")), 300, rng_for(6, "g"))
    causes, causal, effects = draw_causes(copies, rng_for(6, "c"))
    hba1c, reach = outcome_of(causes, rng_for(6, "o"))
    names = [name for name in COEFFICIENTS if name not in ("noise", "genes x adiposity")]
    x = np.column_stack([*(causes[name] for name in names), causes["genes"] * causes["adiposity"]])
    y = (hba1c - 36) / 5
    fit = LinearRegression().fit(x, y)
    expected = [COEFFICIENTS[name] for name in [*names, "genes x adiposity"]]
    np.testing.assert_allclose(fit.coef_, expected, atol=0.03)  # five standard errors
    assert abs((y - fit.predict(x)).std() - COEFFICIENTS["noise"]) < 0.02
    assert abs(fit.score(x, y) ** 0.5 - reach["r_perfect"]) < 0.005
    additive = LinearRegression().fit(x[:, :-1], y).score(x[:, :-1], y) ** 0.5
    assert abs(additive - reach["r_perfect_additive"]) < 0.01
    weighted = copies[:, causal] @ effects
    assert abs(np.corrcoef(weighted, causes["genes"])[0, 1] - 1) < 1e-9 and abs(weighted.std() - 1) < 1e-9
    assert abs(np.cov(causes["age"], causes["adiposity"])[0, 1]) < 0.05  # causes are drawn independently


def test_the_planted_effects_are_found_in_the_files_alone(large):
    truth = json.loads((large.path / "truth.json").read_text())
    rows = np.arange(3000)
    copies = copies_of(large, rows)
    genes = (
        np.where(np.isnan(copies), np.nanmean(copies, 0), copies)[:, truth["causal_variants"]]
        @ truth["effects"]
    )
    table = large.read(["p30750_i0", "p21003_i0", "p21001_i0"]).to_numpy().astype(float)
    use = ~np.isnan(table).any(1) & large.genotypes().present(rows)
    assert use.sum() > 2300
    y, age, adiposity = (table[use, 0] - 36) / 5, (table[use, 1] - 56) / 8, (table[use, 2] - 27) / 4.5
    genes = genes[use] - genes[use].mean()
    found = LinearRegression().fit(np.column_stack([age, adiposity, genes, genes * adiposity]), y).coef_
    stated = truth["coefficients"]
    kept = 4.5**2 / (4.5**2 + 0.8**2)  # adiposity is seen with an error
    expected = [
        stated["age"],
        stated["adiposity"] * kept,
        stated["genes"],
        stated["genes x adiposity"] * kept,
    ]
    np.testing.assert_allclose(found, expected, atol=0.06)  # four standard errors


def test_gaps_are_as_frequent_as_stated(large):
    share = {name: large.read([name])[name].is_null().mean() for name in large.columns}
    assert abs(share["p30750_i0"] - 0.04) < 0.015 and share["p31"] == share["p21003_i0"] == 0
    blood = large.read(["p30690_i0", "p30760_i0", "p30870_i0"])
    together = blood.select(pl.all_horizontal(pl.all().is_null())).to_series().mean()
    assert abs(together - 0.15) < 0.02 and abs(share["p30690_i0"] - (1 - 0.85 * 0.94)) < 0.025
    answers = large.read(["p1070_i0"])["p1070_i0"]
    for value, expected in {-10: 0.05, -1: 0.02, -3: 0.01}.items():
        assert abs((answers == value).mean() - expected) < 0.012
    assert abs(large.genotypes().present(np.arange(3000)).mean() - 0.92) < 0.001
    missing = large.genotypes().code_counts(np.arange(3000))[:, 3].sum() / (2760 * 400)
    assert abs(missing - 0.01) < 0.001


def test_the_extract_is_as_uk_biobank_delivers_one(tmp_path):
    write_extract(tmp_path, participants=200, variants=30, seed=7)
    table = pl.read_csv(tmp_path / "extract.csv", infer_schema=False)
    eids = table["eid"].cast(pl.Int64)
    assert eids.n_unique() == 200 and eids.min() >= 1_000_000 and eids.max() < 6_000_000
    assert not eids.is_sorted() and table.columns[:3] == ["eid", "31-0.0", "53-0.0"]
    bed = open_bed(tmp_path / "genotypes")
    assert bed.samples["eid"].to_list()[-2:] == [-1, -2]  # two redacted people
    assert set(bed.samples["eid"].to_list()[:-2]) <= set(eids) and bed.samples.height == 186
    assert (read_bed(bed)[-2:] == -1).all()
    sexes = dict(zip(eids, table["31-0.0"], strict=True))
    assert all({"0": 2, "1": 1}[sexes[eid]] == sex for eid, sex in bed.samples.rows()[:-2])
