"""Loaders: everybody once, in an order of seed and epoch, the same however they are read."""

import re
from multiprocessing.reduction import ForkingPickler

import matplotlib
import numpy as np
import pytest
import torch
from processes import in_a_process

from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import DataError
from ukbmm.data.batch import check_batch
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock, MultiModalLoader, epoch_batches

pytestmark = pytest.mark.usefixtures("one_thread")

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def parts(biobank):
    "Two modalities and an outcome; rows to learn from and to check on, in no order."
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    rows = np.random.default_rng(0).permutation(np.flatnonzero(outcome.known))
    blocks = {"blood": PhenotypeBlock([30690, 30760], name="blood"), "snps": SNPBlock()}
    blocks = {name: block.fit(biobank, rows[:250]) for name, block in blocks.items()}
    return blocks, OutcomeBlock(outcome).fit(biobank, rows[:250]), rows[:250], rows[250:]


def loader(parts, bs=64, **settings) -> MultiModalLoader:
    blocks, outcome, train, _ = parts
    return MultiModalLoader(blocks, outcome, train, bs, **{"shuffle": True, "seed": 3, **settings})


def rows_of(batches) -> list[int]:
    return [row for x, *_ in batches for row in x["row"].tolist()]


@pytest.mark.parametrize(("n", "bs"), [(10, 3), (10, 5), (10, 20), (1, 4)])
def test_an_epoch_has_every_position_once(n, bs):
    batches = epoch_batches(n, bs, seed=1, epoch=0)
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert [len(b) for b in batches] == [bs] * (n // bs) + [n % bs] * (n % bs > 0)
    assert [len(b) for b in epoch_batches(n, bs, 1, 0, drop_last=True)] == [bs] * (n // bs)
    assert torch.cat(epoch_batches(n, bs, 1, 0, shuffle=False)).tolist() == list(range(n))


def test_order_is_a_function_of_seed_and_epoch():
    order = {
        (s, e): tuple(torch.cat(epoch_batches(50, 8, s, e)).tolist()) for s in range(3) for e in range(3)
    }
    assert len(set(order.values())) == 9
    assert order[1, 2] == tuple(torch.cat(epoch_batches(50, 7, 1, 2)).tolist())  # whatever the batch size


def test_each_participant_is_seen_once_an_epoch_in_another_order(parts):
    train = loader(parts)
    first, second = rows_of(train), rows_of(train)
    assert sorted(first) == sorted(second) == sorted(parts[2].tolist()) and first != second
    assert len(train) == 4 and [len(x["row"]) for x, _ in train] == [64, 64, 64, 58]
    again = loader(parts)
    assert (rows_of(again), rows_of(again)) == (first, second)
    assert rows_of(loader(parts, seed=4)) != first


def test_an_unshuffled_loader_keeps_the_order_of_its_rows(parts):
    plain = loader(parts, shuffle=False)
    assert rows_of(plain) == rows_of(plain) == parts[2].tolist()


def test_an_epoch_that_was_given_up_does_not_repeat(parts):
    train, other = loader(parts), loader(parts)
    next(iter(train))
    rows_of(other)
    assert rows_of(train) == rows_of(other)  # both are at the second epoch


def test_batches_hold_what_direct_reading_gives(parts):
    blocks, outcome, *_ = parts
    for x, y in loader(parts, bs=100):
        rows = x["row"]
        for got, want in zip(x["blood"], blocks["blood"].transform(blocks["blood"].batch(rows)), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(x["snps"], blocks["snps"].transform(blocks["snps"].batch(rows)))
        assert torch.equal(
            x["present"], torch.stack([blocks["blood"].present(rows), blocks["snps"].present(rows)], 1)
        )
        np.testing.assert_allclose(outcome.decode(y.numpy())[:, 0], outcome.outcome.values[rows], rtol=1e-5)


def same(first, second) -> bool:
    "Are two batches equal, missing values included?"
    (x, y), (other, target) = first, second
    pairs = [*zip(x["blood"], other["blood"], strict=True), (y, target)]
    pairs += [(x[name], other[name]) for name in ("snps", "present", "row")]
    return all(torch.equal(a.nan_to_num(99.0), b.nan_to_num(99.0)) for a, b in pairs)


def test_worker_processes_give_the_same_batches_in_every_epoch(parts):
    alone, helped = loader(parts), loader(parts, num_workers=2)
    for _ in range(3):
        pairs = list(zip(alone, helped, strict=True))
        assert len(pairs) == 4 and all(same(*pair) for pair in pairs)
        next(iter(alone)), next(iter(helped))  # an epoch that is given up


def test_worker_processes_work_in_a_process_that_was_forked_after_tensors_were_shared(parts):
    pickled = ForkingPickler.dumps(torch.zeros(3))  # from here on this process hands out its open files
    expected = list(loader(parts))

    def work():
        assert all(same(*pair) for pair in zip(expected, loader(parts, num_workers=2), strict=True))

    assert in_a_process(work) == 0
    del pickled


def test_reading_ahead_from_disk_gives_the_same_batches(parts, biobank):
    blocks, outcome, train, _ = parts
    on_disk = {**blocks, "snps": SNPBlock(memory_gib=0).fit(biobank, train)}
    pairs = list(zip(loader(parts), MultiModalLoader(on_disk, outcome, train, 64, True, seed=3), strict=True))
    assert len(pairs) == 4 and all(same(*pair) for pair in pairs)


def test_a_failure_while_reading_ahead_reaches_the_caller(parts, biobank):
    class Broken(SNPBlock):
        def batch(self, rows):
            raise OSError("the disk is gone")

    blocks, outcome, train, _ = parts
    broken = {"snps": Broken(memory_gib=0).fit(biobank, train)}
    with pytest.raises(OSError, match="the disk is gone"):
        list(MultiModalLoader(broken, outcome, train, 64))


@pytest.fixture(scope="module")
def recipe(biobank):
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    blocks = (PhenotypeBlock([31, 21003, 21001]), SNPBlock(), OutcomeBlock(outcome))
    return MultiModalDataBlock(blocks)


def test_blocks_are_fitted_on_the_training_rows_of_each_fold_anew(recipe, biobank, parts):
    *_, train, valid = parts
    first = recipe.dataloaders(biobank, train, valid, bs=50, device="cpu")
    second = recipe.dataloaders(biobank, train[:100], valid, bs=50, device="cpu")
    assert {name: len(rows) for name, rows in first.fitted_rows.items()} == {
        "phenotype": 250,
        "snps": 250,
        "outcome": 250,
    }
    assert all(np.array_equal(rows, train[:100]) for rows in second.fitted_rows.values())
    assert first.blocks["snps"]._panel.codes is second.blocks["snps"]._panel.codes  # read once
    assert all(block.rows is None for block in recipe.inputs.values())


def test_a_test_loader_has_no_target_and_uses_what_was_fitted_in_training(recipe, biobank, parts):
    *_, train, valid = parts
    dls = recipe.dataloaders(biobank, train, valid, bs=50, device="cpu")
    test = dls.test_dl(valid[::-1])
    assert rows_of(test) == valid[::-1].tolist() and all(len(batch) == 1 for batch in test)
    assert test.blocks["snps"] is dls.blocks["snps"]


def test_the_same_modality_twice_and_a_recipe_without_outcome_are_refused(biobank):
    outcome = OutcomeBlock(read_outcome(biobank, RegressionOutcome(field=30750)))
    with pytest.raises(DataError, match="'phenotype' twice"):
        MultiModalDataBlock((PhenotypeBlock([31]), PhenotypeBlock([21003]), outcome))
    with pytest.raises(DataError, match="1 inputs and 0 outcomes"):
        MultiModalDataBlock((PhenotypeBlock([31]),))
    with pytest.raises(DataError, match="expected participants, found none"):
        MultiModalLoader({"p": PhenotypeBlock([31])}, outcome, np.array([], dtype=int)).one_batch()


def test_batches_keep_the_contract(recipe, biobank, parts):
    dls = recipe.dataloaders(biobank, *parts[2:], bs=50, device="cpu")
    x, y = dls.one_batch()
    check_batch(x)
    assert y.shape == (50, 1) and x.modalities == ["phenotype", "snps"]


def test_the_summary_gives_counts_and_no_identifier_row_or_value(recipe, biobank, parts):
    dls = recipe.dataloaders(biobank, *parts[2:], bs=50, device="cpu")
    text = dls.summary()
    assert "250 participants in 5 batches of 50" in text and "present 100%" in text
    assert f"{-(-200 // 4)} bytes a participant" in text  # 200 variants, four in a byte
    assert not re.search(r"\d{7}|\d\.\d{3}", text)


def test_showing_a_batch_draws_pictures_without_rows_or_identifiers(recipe, biobank, parts):
    import matplotlib.pyplot as plt

    dls = recipe.dataloaders(biobank, *parts[2:], bs=50, device="cpu")
    dls.show_batch(max_n=6)
    figure = plt.gcf()
    words = [text.get_text() for axis in figure.axes for text in axis.findobj(matplotlib.text.Text)]
    plt.close(figure)
    assert len(figure.axes) == 3 and {"column", "standardised"} <= set(words)
    assert not any(re.search(r"\d{4,}", word) for word in words)
    assert all(len(axis.get_yticks()) == 0 for axis in figure.axes)
