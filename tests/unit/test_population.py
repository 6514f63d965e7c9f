"Invented people: their families, genomes, ages and causes are what they are said to be."

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.population import (
    AGE_MEAN,
    AGE_SD,
    ANCESTRY,
    CAUSES,
    CENTRES,
    CHUNK,
    FAMILIES,
    GENOTYPED,
    IMAGING_CENTRES,
    N_EIDS,
    NOBODY,
    REVISIT_CENTRE,
    VISITS,
    attainable,
    causal_variants,
    cause_correlation,
    draw_eids,
    draw_genotyped,
    draw_genotypes,
    draw_panel,
    draw_pedigree,
    draw_people,
    planted,
    related_pairs,
    tree_kinship,
)
from ukbmm.core import UkbmmError

KINDS = list(FAMILIES)


@pytest.fixture(scope="module")
def people() -> pl.DataFrame:
    "Six chunks: 24,000 people."
    return pl.concat(draw_people(chunk, seed=3, variants=300) for chunk in range(6))


@pytest.fixture(scope="module")
def genomes():
    "A chunk's families, variants and genotypes, many variants so that kinship can be estimated."
    pedigree, panel = draw_pedigree(0, seed=3), draw_panel(4000, seed=3)
    parts = list(draw_genotypes(pedigree, panel, 0, seed=3))
    assert (np.concatenate([variants for variants, _ in parts]) == np.arange(4000)).all()
    return pedigree, panel, np.concatenate([copies for _, copies in parts], axis=1)


def years(later: pl.Series, earlier: pl.Series) -> np.ndarray:
    return (later - earlier).dt.total_days().to_numpy() / 365.2425


# ---- families ---------------------------------------------------------------------------------------------------


def dropped_kinship(members, rng, n: int = 40_000) -> np.ndarray:
    "Kinship by dropping labelled genes through a tree: another way than the recursion."
    genes = np.zeros((n, len(members), 2), dtype=int)
    for child, (parents, _) in enumerate(members):
        for side in (0, 1):
            own = 2 * child + side
            if parents == NOBODY:
                genes[:, child, side] = own
            else:
                genes[:, child, side] = genes[np.arange(n), parents[side], rng.integers(0, 2, n)]
    share = [[np.mean([(genes[:, a, i] == genes[:, b, j]).mean() for i in (0, 1) for j in (0, 1)])
              for b in range(len(members))] for a in range(len(members))]  # fmt: skip
    return np.array(share)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "twins"])
def test_kinship_in_a_tree_is_what_dropping_genes_through_it_gives(kind):
    expected = dropped_kinship(FAMILIES[kind][2], np.random.default_rng(0))
    np.testing.assert_allclose(tree_kinship(kind), expected, atol=0.01)


def test_identical_twins_are_one_person_genetically():
    assert tree_kinship("twins")[2, 3] == 0.5 and tree_kinship("siblings")[2, 3] == 0.25


@pytest.mark.parametrize("chunk", [0, 1, 7])
def test_a_chunk_has_the_stated_families_and_everybody_once(chunk):
    pedigree = draw_pedigree(chunk, seed=5)
    assert len(pedigree.people) == len(np.unique(pedigree.people)) == CHUNK
    families, first = np.unique(pedigree.family, return_index=True)
    counts = np.bincount(pedigree.kind[first], minlength=len(KINDS))
    assert counts[1:].tolist() == [FAMILIES[kind][0] for kind in KINDS[1:]]
    in_study = np.bincount(pedigree.family[pedigree.people], minlength=len(families))
    sizes = [sum(older is not None for _, older in FAMILIES[kind][2]) for kind in KINDS]
    assert (in_study == np.array(sizes)[pedigree.kind[first]]).all()
    of_parents = pedigree.family[pedigree.parents[pedigree.parents[:, 0] >= 0]]
    assert (
        of_parents == pedigree.family[pedigree.parents[:, 0] >= 0][:, None]
    ).all()  # no parent of another family


def test_related_pairs_are_all_pairs_of_a_family_with_their_kinship():
    pedigree = draw_pedigree(0, seed=6)
    pairs, kinship = related_pairs(pedigree)
    found = {tuple(sorted(pair)): k for pair, k in zip(pairs.tolist(), kinship, strict=True)}
    family, kind, seat = (part[pedigree.people] for part in (pedigree.family, pedigree.kind, pedigree.seat))
    by_hand = {}
    for number in np.unique(family):
        members = np.flatnonzero(family == number).tolist()
        for i, a in enumerate(members):
            for b in members[i + 1 :]:
                by_hand[a, b] = tree_kinship(KINDS[kind[a]])[seat[a], seat[b]]
    assert found == by_hand and len(found) == len(pairs)


def test_three_in_ten_have_a_relative_and_relatives_are_not_neighbours():
    pedigree = draw_pedigree(0, seed=7)
    pairs, kinship = related_pairs(pedigree)
    assert abs(len(np.unique(pairs)) / CHUNK - 0.30) < 0.01
    apart = np.abs(pairs[:, 0] - pairs[:, 1])
    assert apart.max() < 60 and np.median(apart) > 3
    counted = {k: int((kinship == k).sum()) * 500_000 / CHUNK for k in (0.5, 0.25, 0.125, 0.0625)}
    published = {0.5: 179, 0.25: 6276 + 22_666, 0.125: 11_113, 0.0625: 66_928}  # Bycroft et al. 2018
    for k, number in published.items():
        assert 0.5 < counted[k] / number < 2


# ---- genomes ----------------------------------------------------------------------------------------------------


def king_robust(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    "Kinship of pairs from genotypes alone, as KING estimates it in families (Manichaikul et al. 2010)."
    both, opposite = ((a == 1) & (b == 1)).sum(1), (np.abs(a.astype(int) - b) == 2).sum(1)
    return (both - 2 * opposite) / ((a == 1).sum(1) + (b == 1).sum(1))


def test_kinship_is_found_in_the_genotypes_alone(genomes):
    pedigree, _, copies = genomes
    pairs, kinship = related_pairs(pedigree)
    estimate = king_robust(copies[pairs[:, 0]], copies[pairs[:, 1]])
    for k in (0.5, 0.25, 0.125, 0.0625):
        assert abs(estimate[kinship == k].mean() - k) < 0.012
    strangers = np.random.default_rng(0).integers(0, CHUNK, (3000, 2))
    family = pedigree.family[pedigree.people]
    strangers = strangers[family[strangers[:, 0]] != family[strangers[:, 1]]]
    assert abs(king_robust(copies[strangers[:, 0]], copies[strangers[:, 1]]).mean()) < 0.005


def test_twins_are_alike_and_a_child_has_an_allele_of_its_parent(genomes):
    pedigree, _, copies = genomes
    pairs, kinship = related_pairs(pedigree)
    kind = pedigree.kind[pedigree.people][pairs[:, 0]]
    twins = pairs[kind == KINDS.index("twins")]
    assert len(twins) == 2 and (copies[twins[:, 0]] == copies[twins[:, 1]]).all()
    a, b = pairs[kind == KINDS.index("parent and child")].T
    assert (np.abs(copies[a].astype(int) - copies[b]) < 2).all()
    a, b = pairs[kind == KINDS.index("siblings")].T
    assert (np.abs(copies[a].astype(int) - copies[b]) == 2).any()


def test_neighbours_are_linked_and_linkage_falls_with_distance(genomes):
    _, panel, copies = genomes
    one = copies[:, panel.chromosome == 1].astype(float)
    r2 = np.corrcoef(one.T) ** 2
    near, middle, far = (np.mean([np.diagonal(r2, gap).mean() for gap in gaps])
                         for gaps in (range(1, 6), range(15, 25), range(60, 90)))  # fmt: skip
    assert near > 3 * middle > 9 * far and near > 0.06
    other = copies[:, panel.chromosome == 2].astype(float)
    between = np.corrcoef(one.T, other.T)[: one.shape[1], one.shape[1] :] ** 2
    assert between.mean() < 0.001


def test_genotypes_of_founders_are_in_hardy_weinberg_proportions(genomes):
    pedigree, panel, copies = genomes
    alone = copies[pedigree.kind[pedigree.people] == 0]
    frequency = panel.alleles.mean(axis=1)
    np.testing.assert_allclose(alone.mean(axis=0) / 2, frequency, atol=0.03)  # 4.5 standard errors
    expected = 2 * frequency * (1 - frequency)
    assert abs(((alone == 1).mean(axis=0) - expected).mean()) < 0.002


@pytest.mark.parametrize("variants", [10, 21, 22, 23, 219, 221, 1000])
def test_a_panel_has_as_many_variants_as_asked_and_both_alleles_of_each(variants):
    panel = draw_panel(variants, seed=1)
    assert panel.table.height == len(panel.alleles) == len(panel.block) == variants
    assert (np.diff(panel.chromosome) >= 0).all() and panel.chromosome.max() <= 22
    assert (panel.alleles.any(axis=1) & ~panel.alleles.all(axis=1)).all()
    assert panel.table["id"].n_unique() == variants and (panel.table["a1"] != panel.table["a2"]).all()
    copies = np.concatenate([c for _, c in draw_genotypes(draw_pedigree(0, 1), panel, 0, 1)], axis=1)
    assert copies.shape == (CHUNK, variants) and set(np.unique(copies)) <= {0, 1, 2}


def test_too_few_variants_are_refused():
    with pytest.raises(UkbmmError, match="at least 10 variants"):
        draw_panel(9, seed=1)


@pytest.mark.parametrize("seed", range(4))
def test_the_score_is_the_weighted_sum_of_causal_variants_and_standardised(seed):
    panel = draw_panel(300, seed)
    causal, effects = causal_variants(panel, seed)
    assert len(causal) == 40 and (np.diff(causal) > 0).all()
    scores = []
    for chunk in range(3):
        copies = np.concatenate(
            [c for _, c in draw_genotypes(draw_pedigree(chunk, seed), panel, chunk, seed)], axis=1
        )
        score = copies[:, causal] @ effects
        drawn = draw_people(chunk, seed, variants=300)["genetic"].to_numpy()
        np.testing.assert_allclose(score - drawn, (score - drawn)[0], atol=1e-9)  # the same but for the mean
        scores.append(drawn)
    scores = np.concatenate(scores)
    assert abs(scores.mean()) < 0.05 and abs(scores.std() - 1) < 0.05


# ---- identifiers, ages, visits ----------------------------------------------------------------------------------


def test_no_two_of_two_million_people_have_the_same_identifier():
    eids = draw_eids(np.arange(2_000_000), seed=9)
    assert len(np.unique(eids)) == 2_000_000
    assert eids.min() >= 1_000_000 and eids.max() < 6_100_000
    assert all(N_EIDS % divisor for divisor in range(2, int(N_EIDS**0.5) + 1))  # a prime
    inversions = (np.diff(eids[:10_000]) < 0).mean()
    assert 0.2 < inversions < 0.8  # in no particular order
    assert (draw_eids(np.arange(1000), seed=10) != eids[:1000]).all()


def test_ages_are_those_of_the_showcase(people):
    age = years(people["visit_0"], people["birth"])
    assert age.min() >= 40 and age.max() < 70
    assert abs(age.mean() - AGE_MEAN) < 3 * AGE_SD / len(age) ** 0.5 and abs(age.std() - AGE_SD) < 0.1
    assert abs(np.floor(age).mean() - 56.53) < 3 * AGE_SD / len(age) ** 0.5  # field 21022: completed years
    np.testing.assert_allclose(people["age_z"], (age - AGE_MEAN) / AGE_SD, atol=1e-9)
    assert np.median(age) > age.mean()  # more old people than young


def test_relatives_are_born_as_their_tree_says():
    pedigree, people = draw_pedigree(0, seed=3), draw_people(0, seed=3, variants=50)
    pairs, _ = related_pairs(pedigree)
    kind, seat = pedigree.kind[pedigree.people][pairs[:, 0]], pedigree.seat[pedigree.people][pairs[:, 0]]
    older = years(people["birth"][pairs[:, 1]], people["birth"][pairs[:, 0]])
    same_sex = (people["sex"][pairs[:, 0]] == people["sex"][pairs[:, 1]]).to_numpy()
    twins = kind == KINDS.index("twins")
    assert (older[twins] == 0).all() and same_sex[twins].all() and not same_sex.all()
    assert (people["visit_0"][pairs[twins, 0]] == people["visit_0"][pairs[twins, 1]]).all()
    parents = kind == KINDS.index("parent and child")
    assert (seat[parents] == 0).all() and older[parents].min() > 18 and older[parents].max() < 29
    assert np.abs(older[kind == KINDS.index("siblings")]).max() < 15
    assert older[kind == KINDS.index("aunt or uncle")].mean() > 6
    apart = np.abs(years(people["visit_0"][pairs[:, 1]], people["visit_0"][pairs[:, 0]]))
    assert apart.max() < 1.7


def test_visits_come_one_after_the_other_within_their_years(people):
    shares = (1, 0.0415, 0.197, 0.0135)  # somewhat more than come: some do not live to
    for i, (_, first, last) in enumerate(VISITS):
        visit = people[f"visit_{i}"].drop_nulls()
        assert str(visit.min()) >= first and str(visit.max()) <= last
        assert abs(len(visit) / people.height - shares[i]) < 3 * (shares[i] / people.height) ** 0.5
        assert (people[f"centre_{i}"].is_null() == people[f"visit_{i}"].is_null()).all()
    assert (people["visit_3"] > people["visit_2"]).drop_nulls().all()
    assert (
        people.filter(pl.col("visit_2").is_null())["visit_3"].null_count() == people["visit_2"].null_count()
    )


def test_who_comes_to_be_imaged_is_healthier(people):
    came = people["visit_2"].is_not_null()
    for cause in ("adiposity", "smoking"):
        difference = people.filter(came)[cause].mean() - people.filter(~came)[cause].mean()
        assert -0.35 < difference < -0.08
    assert abs(people.filter(came)["genetic"].mean()) < 0.05


def test_centres_exist_and_say_the_nation(people):
    labels = Dictionary.builtin().labels[10]
    codes = [code for nation in CENTRES.values() for code in nation] + [*IMAGING_CENTRES, REVISIT_CENTRE]
    assert all(str(code) in labels for code in codes)
    nation = {code: name for name, centres in CENTRES.items() for code in centres}
    assert people["centre_0"].replace_strict(nation, return_dtype=pl.String).equals(people["nation"])
    shares = dict(people["nation"].value_counts(normalize=True).rows())
    for name, share in {"England": 0.89, "Scotland": 0.07, "Wales": 0.04}.items():
        assert abs(shares[name] - share) < 0.01
    assert all(str(code) in Dictionary.builtin().labels[1001] for code in ANCESTRY)


def test_genotypes_exist_for_the_same_number_in_each_chunk():
    counts = {int(draw_genotyped(chunk, seed).sum()) for chunk in range(5) for seed in range(3)}
    assert len(counts) == 1 and counts.pop() == GENOTYPED * CHUNK and GENOTYPED * CHUNK % 4 == 0


def test_columns_are_those_that_health_and_records_take(people):
    types = {"eid": pl.Int64, "sex": pl.Int8, "birth": pl.Date, "nation": pl.String, "gp_linked": pl.Boolean,
             "lost": pl.Date, "family": pl.Int64, **{f"visit_{i}": pl.Date for i in range(4)},
             **{f"centre_{i}": pl.Int32 for i in range(4)}, **dict.fromkeys(CAUSES, pl.Float64)}  # fmt: skip
    assert {name: people.schema[name] for name in types} == types
    assert people["visit_0"].null_count() == 0 and 0 < people["lost"].count() / people.height < 0.006
    assert (
        abs(people["gp_linked"].mean() - 0.456) < 0.015 and abs((people["sex"] == 0).mean() - 0.544) < 0.015
    )


# ---- causes -----------------------------------------------------------------------------------------------------


def test_causes_have_mean_0_spread_1_and_the_stated_correlations(people):
    causes = people.select(list(CAUSES)).to_numpy()
    np.testing.assert_allclose(causes.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose(causes.std(axis=0), 1, atol=0.04)
    np.testing.assert_allclose(np.corrcoef(causes.T), cause_correlation(), atol=0.04)


def test_a_regression_on_causes_finds_their_weights(people):
    for name, others in CAUSES.items():
        if not others or name == "glycaemia":
            continue
        x = people.select(list(others)).to_numpy()
        found = np.linalg.lstsq(x, people[name].to_numpy())[0]
        np.testing.assert_allclose(found, list(others.values()), atol=0.03)


def test_the_planted_combination_is_in_glycaemia_and_in_no_main_effect(people):
    stated = {name: weight / 0.97 for name, weight in planted().items() if name != "noise"}
    table = people.with_columns((pl.col("genetic") * pl.col("adiposity")).alias("genetic x adiposity"))
    x, y = table.select(list(stated)).to_numpy(), people["glycaemia"].to_numpy()
    found, rest, *_ = np.linalg.lstsq(x, y)
    np.testing.assert_allclose(found, list(stated.values()), atol=0.02)
    reached = np.corrcoef(x @ found, y)[0, 1] * 0.97
    assert abs(reached - attainable()["r_perfect"]) < 0.01
    additive = x[:, :-1] @ np.linalg.lstsq(x[:, :-1], y)[0]
    assert abs(np.corrcoef(additive, y)[0, 1] * 0.97 - attainable()["r_perfect_additive"]) < 0.015
    assert abs(planted()["noise"] ** 2 + attainable()["r_perfect"] ** 2 - 1) < 0.001


def test_relatives_share_causes_as_they_share_genes():
    pairs, kinship, people = [], [], []
    for chunk in range(8):
        found, k = related_pairs(draw_pedigree(chunk, seed=3))
        pairs.append(found + chunk * CHUNK)
        kinship.append(k)
        people.append(draw_people(chunk, seed=3, variants=50))
    pairs, kinship, smoking = (
        np.concatenate(pairs),
        np.concatenate(kinship),
        pl.concat(people)["smoking"].to_numpy(),
    )
    for k in (0.25, 0.0625):
        a, b = pairs[kinship == k].T
        assert abs((smoking[a] * smoking[b]).mean() - 0.4 * 2 * k) < 0.06


# ---- one chunk and another --------------------------------------------------------------------------------------


def test_a_chunk_is_a_function_of_its_number_and_the_seed():
    first = draw_people(1, seed=3, variants=50)
    assert first.equals(draw_people(1, seed=3, variants=50))
    for other in (draw_people(1, seed=4, variants=50), draw_people(2, seed=3, variants=50)):
        assert not first["adiposity"].equals(other["adiposity"]) and not first["eid"].equals(other["eid"])
    assert not first["eid"].is_in(draw_people(2, seed=3, variants=50)["eid"].implode()).any()
    assert not first["family"].is_in(draw_people(2, seed=3, variants=50)["family"].implode()).any()


def test_the_number_of_variants_changes_nothing_but_what_genes_change():
    few, many = draw_people(0, seed=3, variants=50), draw_people(0, seed=3, variants=300)
    same = [name for name in few.columns if few[name].equals(many[name])]
    assert {"eid", "birth", "smoking", "adiposity", "lipids", "visit_2"} <= set(same)
    assert set(few.columns) - set(same) == {"genetic", "glycaemia", "pressure", "kidney", "imaging"}
