"""Histories against a plain construction in pandas; rare codes against sets of people; nothing from after the index date."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import ukbmm.data.events as module
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.store import ingest
from ukbmm.biobank.synthetic import write_extract
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import DataError, StoreError
from ukbmm.data.blocks import OutcomeBlock
from ukbmm.data.events import (
    N_SPECIAL,
    NOW,
    OTHER,
    EventBlock,
    EventSettings,
    ages_at,
    hierarchy_of,
    lanes_for,
    people_by_node,
)
from ukbmm.data.loaders import fitted_loaders

N = 300
EVERYBODY = torch.arange(N)
TRAINING = np.arange(0, 200)
COLUMNS = ["p34", "p52", "p53_i0", "p53_i1", "p53_i2", "p21003_i0", "p30750_i0", "p42000"]


@pytest.fixture(scope="module")
def extract(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    write_extract(folder / "in", N, 10, 7, columns=COLUMNS)
    return folder


def files(folder) -> list:
    return [
        path
        for path in sorted((folder / "in").glob("*.txt"))
        if path.name.startswith(("hesin", "death", "gp_"))
    ]


@pytest.fixture(scope="module")
def recorded(extract):
    return ingest(extract / "in" / "ukb40000.csv", extract / "b.biobank", records=files(extract))


def index_dates(biobank, visit: int = 0) -> pd.Series:
    return biobank.read([f"p53_i{visit}"])[f"p53_i{visit}"].to_pandas()


def plain(biobank, kinds, visit=0, same_day=False, first_only=False, length=None) -> list[list[tuple]]:
    "Each person's events (-days before the index date, vocabulary, code, source), the earliest first."
    index, people = index_dates(biobank, visit), [set() for _ in range(len(biobank))]
    born = biobank.read(["p34", "p52"]).to_pandas()
    for kind in kinds:
        for event in biobank.events(kind).collect().to_pandas().dropna(subset=["date", "code"]).itertuples():
            days = (index[event.row] - event.date).days if not pd.isna(index[event.row]) else -1
            before_birth = (event.date.year, event.date.month) < (
                born["p34"][event.row],
                born["p52"][event.row],
            )
            if days >= (0 if same_day else 1) and not before_birth:
                people[event.row].add((-days, event.vocabulary, event.code, event.source))
    histories = [sorted(events) for events in people]
    if first_only:
        histories = [[e for i, e in enumerate(h) if e[1:3] not in {o[1:3] for o in h[:i]}] for h in histories]
    return [history[-length:] if length else history for history in histories]


def read_back(block) -> list[list[tuple]]:
    "The same from a block."
    codes, found = block.hierarchy.codes, []
    offsets, numbers, days, sources = (part.tolist() for part in block._histories)
    for start, stop in zip(offsets, offsets[1:], strict=False):
        found.append(
            [(-days[e], *codes.row(numbers[e]), module.SOURCES[sources[e] - 1]) for e in range(start, stop)]
        )
    return found


@pytest.mark.parametrize(
    ("kinds", "visit", "options"),
    [
        (["diagnoses"], 0, {}),
        (["diagnoses", "operations"], 0, {"length": 5}),
        (["primary care", "prescriptions"], 0, {}),
        (["operations", "diagnoses", "primary care"], 2, {"first_only": True}),
        (["diagnoses"], 0, {"on_index_date": True}),
        (["diagnoses", "prescriptions"], 0, {"first_only": True, "length": 7}),
    ],
)
def test_histories_equal_loops_over_events(recorded, kinds, visit, options):
    block = EventBlock(kinds, until=visit, **{"length": 8000, **options}).open(recorded)
    same_day = options.get("on_index_date", False)
    expected = plain(
        recorded, kinds, visit, same_day, options.get("first_only", False), options.get("length")
    )
    assert read_back(block) == expected and sum(map(len, expected)) > 100


def test_reading_some_people_at_a_time_gives_the_same(recorded, monkeypatch):
    whole = EventBlock(["diagnoses", "primary care"]).open(recorded)
    monkeypatch.setattr(module, "PEOPLE_AT_ONCE", 37)
    parts = EventBlock(["diagnoses", "primary care"]).open(recorded)
    assert all(torch.equal(a, b) for a, b in zip(whole._histories, parts._histories, strict=True))
    assert whole.hierarchy.codes.equals(parts.hierarchy.codes)


def test_events_after_the_index_date_change_nothing_and_those_of_the_day_only_if_asked_for(extract, recorded):
    index = index_dates(recorded)
    eids = pl.read_csv(extract / "in" / "ukb40000.csv", columns=["eid"])["eid"].sort().to_list()
    days = {"hesin": (0, 1, 400), "gp_clinical": (0, 1, 400)}
    planted = extract / "planted"
    planted.mkdir(exist_ok=True)
    for path in files(extract):
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        more = []
        for eid, date in zip(eids, index, strict=True):
            for later in days["hesin"] if not pd.isna(date) else ():
                day = (date + pd.Timedelta(days=later)).strftime("%d/%m/%Y")
                key = {"eid": str(eid), "ins_index": str(900 + later)}
                more += {"hesin": [{**key, "epistart": day}],
                         "hesin_diag": [{**key, "arr_index": "0", "level": "1", "diag_icd10": "Q999"}],
                         "gp_clinical": [{"eid": str(eid), "data_provider": "1", "event_dt": day, "read_2": "Zz..."}]}.get(path.stem, [])  # fmt: skip
        table = pd.concat([table, pd.DataFrame(more, columns=table.columns)]) if more else table
        table.to_csv(planted / path.name, sep="\t", index=False)
    other = ingest(
        extract / "in" / "ukb40000.csv", extract / "planted.biobank", records=sorted(planted.iterdir())
    )
    for kinds in (["diagnoses"], ["primary care"], ["diagnoses", "operations", "primary care"]):
        blocks = [EventBlock(kinds, min_count=5).fit(one, TRAINING) for one in (recorded, other)]
        batches = [[*block.batch(EVERYBODY), block.present(EVERYBODY), block.paths] for block in blocks]
        assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))
        seen = EventBlock(kinds, on_index_date=True, min_count=5).fit(other, TRAINING).describe()
        assert set(seen.filter(pl.col("name").is_in(["Q999", "Zz"]))["people"]) <= {
            (~index[:200].isna()).sum()
        }
        assert seen.filter(pl.col("name").is_in(["Q999", "Zz"])).height == len(
            {"diagnoses", "primary care"} & set(kinds)
        )


def test_a_rare_code_becomes_its_nearest_group_that_is_frequent_enough(recorded):
    block = EventBlock(["diagnoses"], min_count=15, length=8000).fit(recorded, TRAINING)
    dictionary = Dictionary.builtin()
    trees = {"ICD10": dictionary.tree(19), "ICD9": dictionary.tree(87)}
    histories, above, people = plain(recorded, ["diagnoses"]), {}, {}
    for row, history in enumerate(histories):
        for _, vocabulary, code, _ in history:
            if (vocabulary, code) not in above:
                tree = trees[vocabulary].with_codes([code])
                names = (
                    [tree[code].name, *(node.name for node in tree.ancestors(code))]
                    if code in tree
                    else [code]
                )
                above[vocabulary, code] = [(vocabulary, name) for name in (*names, vocabulary)]
            for node in above[vocabulary, code]:
                people.setdefault(node, set()).add(row)
    training = {node: len(rows & set(TRAINING.tolist())) for node, rows in people.items()}
    names = [
        *[None] * N_SPECIAL,
        *block.hierarchy.nodes[block.tokens.nodes].select("vocabulary", "name").rows(),
    ]
    assert set(names[N_SPECIAL:]) == {node for node, count in training.items() if count >= 15}
    fell_back = 0
    for number, (vocabulary, code) in enumerate(block.hierarchy.codes.rows()):
        line = [node for node in above[vocabulary, code] if training[node] >= 15]
        token = int(block.tokens.of_code[number])
        if not line:
            assert token == OTHER
            continue
        assert [names[t] for t in block.paths[token].tolist() if t] == line
        fell_back += line[0] != above[vocabulary, code][0]
    assert fell_back > 20
    counts = {name: count for *name, _, _, count in map(list, block.describe().select("vocabulary", "name", "label", "level", "people").rows()) for name in [tuple(name)]}  # fmt: skip
    assert counts == {node: count for node, count in training.items() if count >= 15}


def test_nothing_is_learned_from_people_outside_the_training_rows(recorded):
    block = EventBlock(["diagnoses", "operations"], min_count=10).fit(recorded, TRAINING)
    few = block.copy()
    start = block._histories.offsets[len(TRAINING)]
    cut = block._histories.codes.clone()
    cut[start:] = 0
    few._histories = block._histories._replace(codes=cut)
    few.fit(recorded, TRAINING)
    assert torch.equal(few.tokens.of_code, block.tokens.of_code) and torch.equal(few.paths, block.paths)
    assert not torch.equal(few.copy().fit(recorded, np.arange(250)).paths[-1], block.paths[-1])


def test_a_batch_is_a_rectangle_of_tokens_ages_and_sources(recorded):
    block = EventBlock(["diagnoses", "primary care"], min_count=5).fit(recorded, TRAINING)
    rows = torch.tensor([9, 0, 299, 9, 41])
    tokens, times, sources, lanes = block.transform(block.batch(rows))
    index = index_dates(recorded).to_numpy().astype("datetime64[D]")
    ages = ages_at(recorded, 0, index)
    offsets, codes, days, wrote = block._histories
    for line, row in enumerate(rows.tolist()):
        mine = slice(int(offsets[row]), int(offsets[row + 1]))
        n = mine.stop - mine.start
        assert tokens[line].tolist() == [
            NOW,
            *block.tokens.of_code[codes[mine].long()].tolist(),
            *[0] * (tokens.shape[1] - n - 1),
        ]
        years = np.array([0, *days[mine].tolist()]) / 365.25
        np.testing.assert_allclose(times[line, : n + 1, 1], years, atol=1e-5)
        np.testing.assert_allclose(times[line, : n + 1, 0], ages[row] - years, atol=1e-4)
        assert sources[line].tolist() == [0, *wrote[mine].tolist(), *[0] * (tokens.shape[1] - n - 1)]
        assert times[line, n + 1 :].abs().sum() == 0
    assert lanes.sum(1).tolist() == [1] * 5
    design = block.design(block.batch(rows))
    for line in range(len(rows)):
        has = {int(t) for token in tokens[line, 1:] for t in block.paths[token] if t}
        assert set((design[line].nonzero()[:, 0] + OTHER).tolist()) == has


def test_batches_of_one_of_nobody_with_events_and_of_none_have_a_form(recorded):
    block = EventBlock(["operations"], min_count=5).fit(recorded, TRAINING)
    empty = (block._histories.offsets.diff() == 0).nonzero()[:3, 0]
    tokens, times, sources, lanes = block.transform(block.batch(empty))
    assert tokens.tolist() == [[NOW]] * 3 and lanes.shape == (3, 3) and times.shape == (3, 1, 2)
    assert block.transform(block.batch(empty[:1]))[3].tolist() == [[True]]
    nobody = block.transform(block.batch(empty[:0]))
    assert [len(part) for part in nobody] == [0] * 4
    assert block.design(block.batch(empty)).abs().sum() == 0


def test_lanes_hold_everybody_once_and_are_nearly_full():
    rng = np.random.default_rng(0)
    for size in (1, 2, 17, 300, 1000):
        for most in (1, 3, 40, 129):
            lengths = 1 + rng.negative_binomial(0.5, 0.03, size).clip(max=most - 1)
            lanes, used = lanes_for(lengths)
            filled = np.bincount(lanes, lengths, minlength=used)
            least = -(-int(lengths.sum()) // int(lengths.max()))
            assert filled.max() <= lengths.max() and (filled > 0).all() and len(filled) == used
            assert (
                used <= 11 / 9 * least + 1
            )  # first fit decreasing (Dosa 2007), against a bound below the best


def test_who_is_present_depends_on_who_is_linked(extract, recorded):
    index = index_dates(recorded)
    assert EventBlock(["diagnoses"]).open(recorded).present(EVERYBODY).tolist() == (~index.isna()).tolist()
    practice = EventBlock(["primary care"]).open(recorded).present(EVERYBODY).tolist()
    assert practice == [len(history) > 0 for history in plain(recorded, ["primary care"])]
    second = EventBlock(["diagnoses"], until=2).open(recorded).present(EVERYBODY).tolist()
    assert second == (~index_dates(recorded, 2).isna()).tolist() and 0 < sum(second) < N
    eid = pl.read_csv(extract / "in" / "ukb40000.csv", columns=["eid"])["eid"].sort()[2]
    (extract / "gone.csv").write_text(f"{eid}\n")
    gone = ingest(extract / "in" / "ukb40000.csv", extract / "gone.biobank", records=files(extract), withdrawals=extract / "gone.csv")  # fmt: skip
    block = EventBlock(["diagnoses"]).open(gone)
    assert not block.present(torch.tensor([2])).item() and block._histories.offsets[2:4].diff().item() == 0
    assert read_back(block)[3:] == read_back(EventBlock(["diagnoses"]).open(recorded))[3:]


def test_ages_come_from_the_date_of_birth_or_else_from_the_age_at_the_visit(extract, recorded):
    table = pl.read_csv(extract / "in" / "ukb40000.csv", infer_schema=False)
    for drop, name in ((["34-0.0"], "age"), (["34-0.0", "21003-0.0"], "none")):
        table.drop(drop).write_csv(extract / f"{name}.csv")
    by_visit = ingest(extract / "age.csv", extract / "age.biobank", records=files(extract))
    index = index_dates(recorded).to_numpy().astype("datetime64[D]")
    assert EventBlock(["operations"]).open(by_visit).columns == ["p53_i0", "p21003_i0"]
    born, visit = ages_at(recorded, 0, index), ages_at(by_visit, 0, index)
    assert np.nanmax(np.abs(born - visit)) < 0.6 and np.isnan(born).sum() == np.isnat(index).sum()
    without = ingest(extract / "none.csv", extract / "none.biobank", records=files(extract))
    with pytest.raises(DataError, match="ages of health records.*Add fields 34 and 52"):
        EventBlock(["operations"]).open(without)
    bare = ingest(extract / "in" / "ukb40000.csv", extract / "bare.biobank")
    with pytest.raises(StoreError, match="records 'hesin_diag'"):
        EventBlock().open(bare)


def test_an_event_weighs_five_bytes_and_folds_share_them(recorded):
    block = EventBlock(["diagnoses", "prescriptions"]).open(recorded)
    assert [part.element_size() for part in block._histories[1:]] == [2, 2, 1]
    folds = [block.copy().fit(recorded, rows) for rows in (TRAINING, np.arange(100, 300))]
    assert folds[0]._histories is folds[1]._histories and folds[0].n_tokens != folds[1].n_tokens
    sent = pickle.loads(pickle.dumps(folds[0]))
    assert sent._biobank is None and all(torch.equal(*pair) for pair in zip(sent.batch(EVERYBODY), folds[0].batch(EVERYBODY), strict=True))  # fmt: skip


def test_loaders_show_and_sum_up_events_and_workers_read_the_same(recorded):
    target = OutcomeBlock(read_outcome(recorded, RegressionOutcome(field=30750)))
    known = np.flatnonzero(target.outcome.known)
    target = target.fit(recorded, known)
    block = EventBlock(["diagnoses"], min_count=5).fit(recorded, known)
    dls = fitted_loaders({"hospital": block}, target, known[:-20], known[-20:], bs=32, device="cpu")
    summary = dls.summary()
    assert "EventBlock 'events' of diagnoses before visit 0" in summary and "bytes a participant" in summary
    dls.show_batch()
    one, two = ([batch[0]["hospital"] for batch in dls.train.new(num_workers=n)] for n in (0, 1))
    assert len(one) == len(two) and all(torch.equal(*pair) for a, b in zip(one, two, strict=True) for pair in zip(a, b, strict=True))  # fmt: skip


def test_a_code_without_a_tree_and_one_that_is_none_stay_by_themselves():
    codes = pl.DataFrame(
        {"vocabulary": ["CTV3", "DMD", "ICD10", "OPCS4"], "code": ["XE0Ub", "123", "??", "W371"]}
    )
    found = hierarchy_of(codes, Dictionary.builtin())
    names = [[found.nodes["name"][int(i)] for i in path if i >= 0] for path in found.paths]
    assert names == [
        ["XE0Ub", "CTV3"],
        ["123", "DMD"],
        ["??", "ICD10"],
        ["W371", "W37", "Chapter W", "OPCS4"],
    ]
    none = hierarchy_of(codes.head(0), Dictionary.builtin())
    assert none.nodes.height == 0 and len(none.paths) == 0
    empty = module.Histories(torch.zeros(4, dtype=torch.long), *(torch.zeros(0, dtype=torch.int16),) * 3)
    assert people_by_node(empty, none, np.arange(3)).shape == (0,)


@pytest.mark.parametrize("wrong", [{"records": ["deaths"]}, {"min_count": 4}, {"length": 0}, {"records": []}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        EventSettings(**wrong)
