"""Blocks against scikit-learn, numpy and the raw columns."""

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from sklearn.preprocessing import StandardScaler

from ukbmm.biobank.dictionary import Field
from ukbmm.biobank.genotypes import GenotypeStore, a1_frequency, unpack
from ukbmm.biobank.store import Biobank, ingest
from ukbmm.cohort.outcomes import BinaryOutcome, RegressionOutcome, read_outcome
from ukbmm.core import DataError, UkbmmError
from ukbmm.data.blocks import (
    FieldChoice,
    OutcomeBlock,
    PhenotypeBlock,
    SNPBlock,
    SNPSettings,
    chosen_variants,
)

NUMBERS = [21003, 21001, FieldChoice(field=4080, array="mean")]


@pytest.fixture(scope="module")
def rows(biobank):
    return np.sort(np.random.default_rng(0).permutation(len(biobank))[:250])


@pytest.fixture(scope="module")
def copies(biobank):
    "Copies of A1 of everybody [participant, variant], NaN where missing or not genotyped."
    store = biobank.genotypes()
    found = unpack(store.packed(np.arange(len(biobank))), store.variants).astype(float)
    return np.where(found < 0, np.nan, found)


def read(block, rows):
    return block.transform(block.batch(torch.as_tensor(rows)))


def test_numbers_equal_scikit_learns_standardising_of_the_training_rows(biobank, rows):
    block = PhenotypeBlock(NUMBERS).fit(biobank, rows)
    raw = biobank.read(["p21003_i0", "p21001_i0", "p4080_i0_a0", "p4080_i0_a1"]).cast(pl.Float64)
    pressure = np.nanmean(raw[:, 2:].to_numpy().astype(float), axis=1)  # the second reading lacks for some
    values = np.column_stack([raw[:, :2].to_numpy(), pressure])
    expected = StandardScaler().fit(values[rows]).transform(values)
    numbers, levels = read(block, np.arange(len(biobank)))
    np.testing.assert_allclose(numbers, expected, atol=2e-3)  # half precision
    assert levels.shape == (len(biobank), 0) and numbers.dtype == torch.float32
    assert np.isnan(expected).any()


class MemoryBiobank(Biobank):
    "A Biobank of columns in memory: those of a numpy array as quantities, and one code."

    special_values = None

    def __init__(self, values: np.ndarray):
        columns = {f"p{i}": pl.Series(f"p{i}", column) for i, column in enumerate(values.T)}
        code = f"p{values.shape[1]}"
        columns[code] = pl.Series(code, np.arange(len(values), dtype=np.int32) % 7)
        kinds = ["continuous"] * values.shape[1] + ["categorical_single"]
        self.fields = {name: Field(i, name, kinds[i]) for i, name in enumerate(columns)}
        self.series = columns
        self.manifest = {"n_participants": len(values), "columns": dict.fromkeys(columns, "memory")}

    def field(self, column):
        return self.fields[column]

    def read(self, columns, rows=None):
        return pl.DataFrame([self.series[name] for name in columns])


@pytest.fixture(scope="module")
def wide():
    "1,000 people with 500 numbers, a tenth of them missing, and a code."
    rng = np.random.default_rng(2)
    values = rng.normal(rng.normal(0, 100, 500), rng.uniform(1e-3, 1e3, 500), (1000, 500))
    return values, MemoryBiobank(np.where(rng.random(values.shape) < 0.1, np.nan, values))


def test_a_number_takes_four_bytes_and_two_in_each_fold_and_little_more_while_it_is_fitted(wide):
    values, held = wide
    block = PhenotypeBlock(list(range(501))).open(held)
    assert block._raw[0].nbytes == 4 * values.size
    tracemalloc.start()
    fold = block.copy().fit(held, np.arange(800))
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fold._packed.numbers.nbytes == 2 * values.size
    assert (
        left < 2.2 * values.size and peak < 4.5 * values.size
    )  # two, and 16 columns of 500 in double precision


def test_single_precision_changes_nothing_that_half_precision_would_show():
    chance = np.random.default_rng(3)
    values = np.column_stack(
        [
            chance.integers(2**24, 2**27, 500) | 1,  # whole numbers that single precision does not hold
            chance.integers(1937, 1970, 500) + 0.5,
            50_000 + chance.normal(0, 10, 500),  # a spread of a five-thousandth
            chance.lognormal(0, 1, 500) * 1e20,
        ]
    )
    assert (values[:, 0].astype(np.float32) != values[:, 0]).any()
    block = PhenotypeBlock(list(range(4))).fit(MemoryBiobank(values), np.arange(400))
    expected = StandardScaler().fit(values[:400]).transform(values)
    found = read(block, np.arange(500))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=2**-11, atol=3e-4)


def test_numbers_are_the_same_whether_their_kinds_are_asked_for_or_not(biobank, rows):
    fields = [field_id for field_id, field in biobank.fields.items() if field.is_number]
    chosen = [
        FieldChoice(field=column.field_id, instance=column.instance, array=column.array)
        for field_id in fields
        for column in biobank.by_field[field_id].values()
    ]
    one_way, other_way = (PhenotypeBlock(chosen, kinds=kinds).fit(biobank, rows) for kinds in (False, True))
    assert len(chosen) >= 10
    np.testing.assert_array_equal(one_way._raw.numbers, other_way._raw.numbers)
    assert torch.equal(one_way._present, other_way._present)


def test_codes_stay_codes_and_special_values_are_unknown(biobank, rows):
    block = PhenotypeBlock([20116, 31], min_count=1).fit(biobank, rows)
    _, levels = read(block, np.arange(len(biobank)))
    raw = biobank.read(["p20116_i0", "p31"])
    smoking = raw["p20116_i0"].to_list()
    assert {None, -3} & set(smoking)
    assert levels[:, 0].tolist() == [0 if code in (None, -3) else code + 1 for code in smoking]
    assert levels[:, 1].tolist() == [code + 1 for code in raw["p31"]]


def test_a_code_that_is_rare_in_training_is_unknown(biobank):
    smoking = biobank.read(["p20116_i0"])["p20116_i0"].to_numpy()
    current, others = np.flatnonzero(smoking == 2), np.flatnonzero(smoking == 0)
    block = PhenotypeBlock([20116], min_count=5).fit(biobank, np.sort([*current[:4], *others]))
    assert block.levels.codes == [[0]]
    assert read(block, current)[1].unique().tolist() == [0]


def test_values_of_other_rows_change_nothing_that_a_block_gives_for_training_rows(tmp_path):
    rng = np.random.default_rng(0)
    blocks = []
    for number, shift in enumerate((0, 500)):
        lines = ["eid,21001-0.0,20116-0.0"]
        for i in range(40):
            value, code = 25 + (i * 7) % 11, i % 3
            lines.append(f"{1_000_001 + i},{value + shift * (i >= 30)},{2 if shift and i >= 30 else code}")
        (tmp_path / f"{number}.csv").write_text("\n".join(lines) + "\n")
        small = ingest(tmp_path / f"{number}.csv", tmp_path / f"{number}.biobank")
        blocks.append(PhenotypeBlock([21001, 20116], min_count=2).fit(small, np.arange(30)))
    training = rng.permutation(30)
    for before, after in zip(*(read(block, training) for block in blocks), strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(read(blocks[0], np.arange(30, 40))[0], read(blocks[1], np.arange(30, 40))[0])


def test_missing_numbers_are_nan_and_presence_is_having_anything(biobank, rows):
    block = PhenotypeBlock([30690, 30760, 30870]).fit(biobank, rows)
    raw = biobank.read(["p30690_i0", "p30760_i0", "p30870_i0"])
    everybody = torch.arange(len(biobank))
    numbers, _ = read(block, everybody)
    null = np.column_stack([raw[name].is_null().to_numpy() for name in raw.columns])
    assert np.array_equal(np.isnan(numbers), null)
    assert np.array_equal(block.present(everybody), ~null.all(axis=1))
    assert 0.8 < block.present(everybody).float().mean() < 0.95


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([53], "input field 53 .*expected a quantity, a single or a multiple choice, found a date field"),
        ([21001, 21001], "expected each column once, found p21001_i0 twice"),
        ([FieldChoice(field=21001, array="mean")], "array: mean"),
    ],
)
def test_columns_that_cannot_be_inputs_are_refused(biobank, rows, fields, message):
    with pytest.raises(DataError, match=message):
        PhenotypeBlock(fields).fit(biobank, rows)


def test_codes_have_no_mean(tmp_path):
    lines = [f"{1_000_001 + i},{i % 2},{(i + 1) % 2}" for i in range(12)]
    (tmp_path / "a.csv").write_text("\n".join(["eid,4081-0.0,4081-0.1", *lines]) + "\n")
    coded = ingest(tmp_path / "a.csv", tmp_path / "a.biobank")
    message = r"input field 4081 \(Method of .*: mean: expected a quantity, found a single choice.* array: 0"
    with pytest.raises(DataError, match=message):
        PhenotypeBlock([FieldChoice(field=4081, array="mean")]).open(coded)
    second = PhenotypeBlock([FieldChoice(field=4081, array=1)], min_count=1).fit(coded, np.arange(12))
    assert read(second, np.arange(4))[1][:, 0].tolist() == [2, 1, 2, 1]


def expected_genotypes(copies: np.ndarray, rows: np.ndarray, variants: np.ndarray) -> np.ndarray:
    "(x - 2p) / sqrt(2p(1 - p)) with frequencies of the training rows, 0 where missing."
    x = copies[:, variants]
    p = np.nanmean(x[rows], axis=0) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((x - 2 * p) / np.sqrt(2 * p * (1 - p)), nan=0, posinf=0, neginf=0)


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])  # in memory, and on disk
@pytest.mark.parametrize("choice", ["all", "maf", "chromosomes", "list", "every", "together"])
def test_genotypes_are_standardised_by_training_frequencies_and_chosen_as_numpy_does(
    biobank, rows, copies, choice, memory_gib
):
    table = biobank.genotypes().variants
    maf = np.nanmean(copies[rows], axis=0) / 2
    maf = np.minimum(maf, 1 - maf)
    names, chromosome = table["id"].to_numpy(), table["chromosome"].to_numpy()
    listed = names[[150, 3, 77, 4]].tolist()
    settings, expected = {
        "all": ({}, np.arange(200)),
        "maf": ({"maf_min": 0.2}, np.flatnonzero(maf >= 0.2)),
        "chromosomes": (
            {"chromosomes": ["2", "11", "22"]},
            np.flatnonzero(np.isin(chromosome, ["2", "11", "22"])),
        ),
        "list": ({"variants": listed}, np.array([3, 4, 77, 150])),
        "every": ({"every": 7}, np.arange(0, 200, 7)),
        "together": (
            {"chromosomes": [str(c) for c in range(1, 12)], "every": 2, "maf_min": 0.1},
            np.array(
                [
                    i
                    for i in np.flatnonzero(np.isin(chromosome, [str(c) for c in range(1, 12)]))[::2]
                    if maf[i] >= 0.1
                ]
            ),  # fmt: skip
        ),
    }[choice]
    block = SNPBlock(**settings, memory_gib=memory_gib).fit(biobank, rows)
    assert block.reads_disk() == (memory_gib == 0)
    assert block.variants["id"].to_list() == names[expected].tolist()
    have = block.present(torch.arange(len(biobank))).numpy()
    assert np.array_equal(have, ~np.isnan(copies).all(axis=1)) and 0 < have.mean() < 1
    chosen = np.flatnonzero(have)
    reference = expected_genotypes(copies, rows, expected)[chosen]
    np.testing.assert_allclose(read(block, chosen), reference, atol=1e-4)
    raw, n = block.batch(torch.as_tensor(chosen)), block.n_variants
    pieces = [block.transform(raw, start, start + 5) for start in range(0, n, 5)]
    np.testing.assert_allclose(torch.cat(pieces, dim=1), reference, atol=1e-4)


def test_a_missing_call_is_zero_and_there_are_some(biobank, rows, copies):
    have = np.flatnonzero(~np.isnan(copies).all(axis=1))
    missing = np.isnan(copies[have])
    assert missing.any()
    block = SNPBlock().fit(biobank, rows)
    assert (read(block, have).numpy()[missing] == 0).all()


def test_a_variant_that_does_not_vary_in_training_is_zero_and_not_infinite(biobank, copies):
    variant = int(np.nanargmin(np.nanmean(copies, axis=0)))
    none = np.flatnonzero(copies[:, variant] == 0)
    block = SNPBlock(variants=[biobank.genotypes().variants["id"][variant]]).fit(biobank, none)
    assert (read(block, np.flatnonzero(~np.isnan(copies).all(axis=1))) == 0).all()


def test_variants_that_are_not_there_are_counted_and_the_first_is_named(biobank, rows):
    with pytest.raises(DataError, match="2 of 3 that are not there, the first rsX"):
        SNPBlock(variants=["rs100003", "rsX", "rsY"]).fit(biobank, rows)
    elsewhere = SNPBlock(variants=["rs100003"], chromosomes=["22"])
    with pytest.raises(DataError, match="modality 'snps': expected variants, found none that were chosen"):
        elsewhere.fit(biobank, rows)
    with pytest.raises(DataError, match="none with a frequency of 0.499"):
        SNPBlock(variants=["rs100003"], maf_min=0.499).fit(biobank, rows)


def test_chromosomes_are_known_by_any_of_their_names_and_those_that_are_not_there_are_refused(biobank):
    table = pl.DataFrame({"chromosome": ["1", "2", "2", "X", "MT"], "id": list("abcde")})
    for names, expected in (
        (["chr2"], [1, 2]),
        (["02", "CHRx"], [1, 2, 3]),
        ([23, 26, 1], [0, 3, 4]),
        (["chrM"], [4]),
    ):
        assert chosen_variants(table, SNPSettings(chromosomes=names)).tolist() == expected
    with pytest.raises(DataError, match="chromosomes: expected some of 1, 2, X, MT, found 22, Y"):
        chosen_variants(table, SNPSettings(chromosomes=[24, "chr22", 2]))
    with pytest.raises(DataError, match="found X"):
        SNPBlock(chromosomes=[22, 23]).open(biobank)


def test_thinning_counts_what_was_chosen_before(biobank):
    table = biobank.genotypes().variants
    picked = chosen_variants(table, SNPSettings(chromosomes=[3], every=2))
    assert picked.tolist() == np.flatnonzero(table["chromosome"].to_numpy() == "3")[::2].tolist()


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_a_block_survives_pickling_and_a_copy_learns_on_its_own(biobank, rows, memory_gib):
    block = SNPBlock(memory_gib=memory_gib).fit(biobank, rows)
    some = rows[:20]
    assert torch.equal(read(pickle.loads(pickle.dumps(block)), some), read(block, some))
    before = read(block, some)
    block.copy().fit(biobank, rows[:50])
    assert torch.equal(read(block, some), before) and np.array_equal(block.rows, rows)


def forbidden(self):
    raise AssertionError("genotypes were read")


def test_genotypes_are_not_read_before_they_are_needed_and_then_once_for_all_copies(
    biobank, rows, monkeypatch
):
    names = biobank.genotypes().variants["id"].to_list()
    with monkeypatch.context() as no_reading:
        no_reading.setattr(GenotypeStore, "bytes", property(forbidden))
        block = SNPBlock(variants=names[1:200:3]).open(biobank)  # 67: the last byte is not full
        assert block.n_chosen == 67 and not block.reads_disk()
        assert 0 < block.present(torch.arange(len(biobank))).sum() < len(biobank)
        with pytest.raises(AssertionError, match="genotypes were read"):
            SNPBlock(memory_gib=0).fit(biobank, rows)
    folds = [rows, rows[::2], np.arange(len(biobank))]
    expected = [a1_frequency(biobank.genotypes().code_counts(fold))[1:200:3] for fold in folds]
    block.copy().fit(biobank, folds[0])
    monkeypatch.setattr(GenotypeStore, "bytes", property(forbidden))
    for fold, frequency in zip(folds, expected, strict=True):
        again = block.copy().fit(
            biobank, fold
        )  # counts over what is in memory, and finds the same to the last digit
        assert np.array_equal(again.frequency, frequency) and 0 < frequency.max() < 1
        assert again.batch(torch.as_tensor(rows)).shape == (len(rows), 17)


def test_a_worker_process_is_sent_what_was_learned_and_not_what_it_was_learned_from(wide):
    values, held = wide
    block = PhenotypeBlock(list(range(501))).fit(held, np.arange(800))
    sent = pickle.dumps(block)
    assert 2 * values.size < len(sent) < 2.3 * values.size
    again, some = pickle.loads(sent), np.arange(995, 1000)
    for got, expected in zip(read(again, some), read(block, some), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again.present(torch.as_tensor(some)), block.present(torch.as_tensor(some)))
    fold = block.copy().fit(held, np.arange(500))  # a copy in this process still shares what was read
    assert fold._raw is block._raw is not None
    anew = again.fit(held, np.arange(500))  # and what was sent can be fitted: it reads again
    assert torch.equal(anew._packed.levels, fold._packed.levels)
    assert np.array_equal(anew.standardiser.mean, fold.standardiser.mean)


def test_genotypes_are_sent_to_a_worker_process_without_the_biobank(biobank, rows):
    block = SNPBlock(every=2).fit(biobank, rows)
    again = pickle.loads(pickle.dumps(block))
    assert b"manifest" not in pickle.dumps(block) and block._biobank is biobank
    assert torch.equal(read(again, rows), read(block, rows)) and again.variants.equals(block.variants)


def test_a_quantity_is_standardised_and_comes_back_and_a_yes_or_no_is_left_alone(biobank, rows):
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    known = rows[outcome.known[rows]]
    block = OutcomeBlock(outcome).fit(biobank, known)
    y = block.batch(torch.as_tensor(known)).numpy()
    np.testing.assert_allclose(
        y, StandardScaler().fit_transform(outcome.values[known][:, None]), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(block.decode(y)[:, 0], outcome.values[known], rtol=1e-5)
    assert np.array_equal(block.present(torch.arange(len(biobank))), outcome.known)
    case = read_outcome(biobank, BinaryOutcome(field=20116, cases=[2]))
    answered = rows[case.known[rows]]
    binary = OutcomeBlock(case).fit(biobank, answered)
    assert np.array_equal(binary.batch(torch.as_tensor(answered))[:, 0], case.values[answered])
    assert binary.decode(np.array([[0.25]])).tolist() == [[0.25]]


def test_an_outcome_that_does_not_vary_in_training_is_refused(biobank):
    outcome = read_outcome(biobank, RegressionOutcome(field=21003))
    same = np.flatnonzero(outcome.values == 60)
    with pytest.raises(DataError, match="one value in all training rows"):
        OutcomeBlock(outcome).fit(biobank, same)


def test_a_block_that_was_not_fitted_says_so():
    with pytest.raises(DataError, match="to be fitted"):
        SNPBlock().n_variants
    assert "not fitted" in repr(SNPBlock()) and "not fitted" in repr(PhenotypeBlock([31]))


def test_a_block_that_is_fitted_to_another_biobank_reads_that_one(tmp_path):
    values = []
    for number, start in enumerate((20, 60)):
        lines = [f"{1_000_001 + i},{start + i},{i % 2}" for i in range(12)]
        (tmp_path / f"{number}.csv").write_text("\n".join(["eid,21003-0.0,31-0.0", *lines]) + "\n")
        values.append(ingest(tmp_path / f"{number}.csv", tmp_path / f"{number}.biobank"))
    block = PhenotypeBlock([21003]).fit(values[0], np.arange(12))
    block.fit(values[1], np.arange(12))
    assert block.standardiser.mean.tolist() == [65.5]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    "200 invented people: readings at two visits, codes in an order, two multiple choices, causes of death; and all of it for pandas."
    chance, n = np.random.default_rng(5), 200
    raw = pd.DataFrame({"eid": np.arange(1_000_001, 1_000_001 + n)})
    for visit in (0, 1):
        for place in (0, 1):
            raw[f"4080-{visit}.{place}"] = np.where(
                chance.random(n) < 0.3, np.nan, chance.integers(90, 180, n)
            )
    raw["21002-0.0"], raw["50-0.0"] = chance.normal(80, 10, n).round(1), chance.normal(170, 10, n).round(1)
    raw["21001-0.0"] = (raw["21002-0.0"] / (raw["50-0.0"] / 100) ** 2).round(3)
    raw["1558-0.0"] = chance.choice([1, 2, 3, 4, 5, 6, -3], n)
    raw["1568-0.0"] = np.where(raw["1558-0.0"].isin([1, 2, 3]), chance.integers(0, 9, n), np.nan)
    raw["6150-0.0"] = chance.choice([1, 2, 3, 4, -7, -3], n, p=[0.1, 0.1, 0.02, 0.3, 0.4, 0.08])
    raw["6150-0.1"] = np.where((raw["6150-0.0"] > 0) & (chance.random(n) < 0.5), 4.0, np.nan)
    raw["6150-0.1"] = raw["6150-0.1"].where(raw["6150-0.0"] != 4)
    for place, name in enumerate(("40002-0.1", "40002-0.2")):
        raw[name] = np.where(
            chance.random(n) < 0.5 + 0.3 * place, None, chance.choice(["I219", "I10", "E119", "E112"], n)
        )
    raw["135-0.0"] = np.where(chance.random(n) < 0.5, 0, 1)
    raw["20002-0.0"] = np.where(raw["135-0.0"] == 1, chance.choice([1065, 1111], n), np.nan)
    raw["30890-0.0"] = np.where(chance.random(n) < 0.8, np.nan, chance.normal(50, 9, n))
    folder = tmp_path_factory.mktemp("answers")
    raw.to_csv(folder / "a.csv", index=False)
    return ingest(folder / "a.csv", folder / "answers.biobank"), raw


def unscaled(block: PhenotypeBlock, column: int = 0) -> np.ndarray:
    numbers = read(block, np.arange(200))[0].numpy()
    return numbers[:, column] * block.standardiser.scale[column] + block.standardiser.mean[column]


@pytest.mark.parametrize("how", ["mean", "max", "min", "first", "last"])
def test_positions_become_one_as_pandas_does_it(answers, how):
    held, raw = answers
    two = raw[["4080-0.0", "4080-0.1"]]
    expected = {"first": two.bfill(axis=1).iloc[:, 0], "last": two.ffill(axis=1).iloc[:, 1]}.get(how)
    expected = getattr(two, how)(axis=1) if expected is None else expected
    block = PhenotypeBlock([FieldChoice(field=4080, instance=0, array=how)]).fit(held, np.arange(150))
    np.testing.assert_allclose(unscaled(block), expected, rtol=2e-3)
    assert block.columns == ["p4080_i0_a0", "p4080_i0_a1"]


@pytest.mark.parametrize(
    ("which", "until", "order"), [("first", None, (0, 1)), ("last", None, (1, 0)), ("last", 0, (0,))]
)
def test_occasions_become_one_and_none_after_the_last_to_look_at_is_read(answers, which, until, order):
    held, raw = answers
    by_visit = [raw[[f"4080-{visit}.0", f"4080-{visit}.1"]].mean(axis=1) for visit in order]
    expected = by_visit[0] if len(by_visit) == 1 else by_visit[0].fillna(by_visit[1])
    choice = FieldChoice(field=4080, instance=which, until=until, array="mean")
    block = PhenotypeBlock([choice]).fit(held, np.arange(150))
    np.testing.assert_allclose(unscaled(block), expected, rtol=2e-3)
    assert {name.split("_")[1] for name in block.columns} == {f"i{visit}" for visit in order}


def test_multiple_choices_are_the_dummies_of_pandas_and_missing_only_where_nothing_was_answered(answers):
    held, raw = answers
    block = PhenotypeBlock(
        [21002, 6150, FieldChoice(field=40002, instance=0, array="any", prefix=3)], min_count=8
    )
    block.fit(held, np.arange(150))
    numbers, levels = read(block, np.arange(200))
    heart = pd.DataFrame(
        {code: (raw[["6150-0.0", "6150-0.1"]] == code).any(axis=1) for code in (1, 2, 3, 4)}
    ).astype(float)
    heart = heart[[code for code in heart if heart[code][:150].sum() >= 8]]
    heart[raw["6150-0.0"] == -3] = np.nan
    causes = raw[["40002-0.1", "40002-0.2"]].apply(lambda part: part.str[:3])
    several = pd.DataFrame({code: (causes == code).any(axis=1) for code in ("E11", "I10", "I21")}).astype(
        float
    )
    several[causes.isna().all(axis=1)] = np.nan
    np.testing.assert_array_equal(numbers[:, 1:], np.hstack([heart, several]))
    assert heart.shape[1] == 3 and levels.shape[1] == 0 and numbers.shape[1] == len(block.number_names) == 7
    assert (
        raw["6150-0.0"] == -7
    ).any() and "Vascular/heart problems diagnosed by doctor: Angina" in block.number_names
    assert block.batch(torch.arange(2)).bits.shape == (2, 2)


def test_a_block_of_multiple_choices_alone_survives_pickling_and_learns_from_its_rows_only(answers):
    held, raw = answers
    rare = np.flatnonzero((raw["6150-0.0"] == 3).to_numpy())
    others = np.setdiff1d(np.arange(200), rare)
    block = PhenotypeBlock([6150], min_count=2).fit(held, others)
    assert block.hots[0].codes == [1, 2, 4] and np.array_equal(block.hots[0].rows, others)
    again = pickle.loads(pickle.dumps(block))
    torch.testing.assert_close(read(again, rare)[0], read(block, rare)[0], rtol=0, atol=0, equal_nan=True)
    assert block.copy().fit(held, np.arange(200)).hots[0].codes == [1, 2, 3, 4] and block.hots[0].codes == [
        1,
        2,
        4,
    ]


def test_a_code_in_an_order_is_a_number_and_a_derived_field_is_what_its_formula_gives(answers):
    held, raw = answers
    block = PhenotypeBlock([FieldChoice(field=1558, ordered=True), FieldChoice(derived="bmi")]).fit(
        held, np.arange(150)
    )
    drinks = (6 - raw["1558-0.0"]).where(raw["1558-0.0"] > 0)
    np.testing.assert_allclose(unscaled(block, 0), drinks, atol=5e-3)
    np.testing.assert_allclose(unscaled(block, 1), raw["21001-0.0"], rtol=2e-3)
    assert block.number_names == ["Alcohol intake frequency.", "Body mass index"]
    assert block.columns == ["p1558_i0", "p21002_i0", "p50_i0"]  # every source, for the audit


def test_answers_that_follow_are_filled_where_asked_and_their_parents_are_among_the_columns(answers):
    held, raw = answers
    expected = raw["1568-0.0"].mask(raw["1558-0.0"] == 6, 0)
    plain, filled = (
        PhenotypeBlock([1568, 20002], min_count=1, fill=fill).fit(held, np.arange(150))
        for fill in (False, True)
    )
    np.testing.assert_allclose(unscaled(filled), expected, atol=5e-3)
    np.testing.assert_allclose(unscaled(plain), raw["1568-0.0"], atol=5e-3)
    assert plain.columns == ["p1568_i0", "p20002_i0"]
    assert filled.columns == ["p1568_i0", "p20002_i0", "p1558_i0", "p135_i0"]
    illness = [read(block, np.arange(200))[0][:, 1].isnan().numpy() for block in (plain, filled)]
    assert np.array_equal(illness[0], raw["135-0.0"] == 0) and not illness[1].any()


def test_inputs_are_winsorised_and_left_out_by_what_the_training_rows_say_and_the_block_says_so(answers):
    held, raw = answers
    fields = [
        FieldChoice(derived="bmi"),
        21001,
        21002,
        30890,
        FieldChoice(field=4080, instance=0, array="mean"),
        1558,
        6150,
    ]
    block = PhenotypeBlock(fields, winsorise=0.05, drop_sparse=0.5, drop_redundant=0.99).fit(
        held, np.arange(150)
    )
    assert [name.split(":")[0] for name in block.number_names[:3]] == [
        "Body mass index",
        "Weight",
        "Systolic blood pressure, automated reading",
    ]
    weight = raw["21002-0.0"].to_numpy()
    low, high = np.quantile(weight[:150], [0.05, 0.95])
    np.testing.assert_allclose(unscaled(block, 1), np.clip(weight, low, high), rtol=2e-3)
    about = {row["input"]: row for row in block.describe().to_dicts()}
    assert about["Body mass index (BMI)"]["left out"] == "follows Body mass index"
    assert about["Vitamin D"]["left out"] == f"missing for {raw['30890-0.0'][:150].isna().mean():.0%}"
    assert (about["Weight"]["low"], about["Weight"]["high"]) == pytest.approx((low, high))
    assert about["Weight"]["mean"] == pytest.approx(np.clip(weight[:150], low, high).mean(), rel=1e-5)
    assert about["Alcohol intake frequency."]["codes"] == 6
    other = PhenotypeBlock([20002, 21002], drop_sparse=0.3).fit(held, np.arange(150))
    assert other.describe().filter(kind="choices")["left out"].to_list() == ["missing for more than 30%"]
    assert other.number_names == ["Weight"] and read(other, np.arange(3))[0].shape == (3, 1)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"field": 40002, "instance": 0, "array": "mean"}, "single choice, which has no mean"),
        (
            {"field": 4080, "instance": 0, "array": "any"},
            "array: any: expected a single choice, found a quantity",
        ),
        ({"field": 6150, "prefix": 3}, "prefix: 3: expected a multiple choice of codes that are text"),
        ({"field": 4080, "array": "mean"}, "positions of one occasion"),
        ({"field": 34, "instance": "last"}, "instance: last: expected occasions, found none"),
        ({"field": 6150, "ordered": True}, "coding whose codes have an order"),
        ({"derived": "egfr"}, "derived field 'egfr' at visit 0: expected columns"),
        ({"derived": "bmi", "instance": 1}, "derived field 'bmi' at visit 1"),
    ],
)
def test_what_no_input_can_be_made_of_is_refused_by_name(answers, choice, message):
    with pytest.raises(UkbmmError, match=message):
        PhenotypeBlock([FieldChoice(**choice)]).open(answers[0])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "either `field` or `derived`"),
        ({"field": 31, "derived": "bmi"}, "either `field` or `derived`"),
        ({"derived": "bmj"}, "Did you mean 'bmi'"),
        ({"derived": "bmi", "array": "mean"}, "`derived` goes with an instance"),
        ({"field": 4080, "until": 2}, "`until` goes with"),
        ({"field": 4080, "array": "median"}, "mean"),
    ],
)
def test_a_choice_that_contradicts_itself_is_refused(choice, message):
    with pytest.raises(ValidationError, match=message):
        FieldChoice(**choice)
