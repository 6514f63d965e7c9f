"""The learner as a fastai user knows it, and the techniques that change a step: against what was computed otherwise."""

import pickle
import re
import warnings

import numpy as np
import polars as pl
import pytest
import torch
from fastai.callback.core import Callback
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from torch import nn

from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import DataError, ModelError, UkbmmError
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.genotype import GenotypeSettings
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training.callbacks import BestWeights
from ukbmm.training.learner import FusionLearner, fusion_learner, predict_rows
from ukbmm.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ModelSettings(fusion=FusionSettings(dim=8), hidden=8)


@pytest.fixture(scope="module")
def study(biobank):
    "Function from a batch size to loaders."
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    rows = np.random.default_rng(0).permutation(np.flatnonzero(outcome.known))
    recipe = MultiModalDataBlock(
        (PhenotypeBlock([31, 21003, 21001, 30690, 30760]), SNPBlock(every=2), OutcomeBlock(outcome))
    )

    def loaders(bs=32, **settings):
        return recipe.dataloaders(biobank, rows[:225], rows[225:300], bs=bs, seed=3, device="cpu", **settings)

    loaders.test = rows[300:]
    return loaders


def without_dropout(learn):
    for module in learn.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # of attention
            module.dropout = 0.0
    return learn


def quiet(learn, work):
    with learn.no_bar(), learn.no_logging():
        return work(learn)


def weights(learn) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


@pytest.mark.parametrize(("bs", "group", "whole"), [(16, 4, 64), (32, 3, 96), (50, 2, 100)])
def test_a_step_over_several_batches_is_one_over_a_large_batch(study, bs, group, whole):
    "225 people: the last group is incomplete, and its last batch is smaller (of 1 person where bs is 16 or 32)."
    parts = without_dropout(fusion_learner(study(bs), SMALL, seed=1, patience=None, accumulate=group))
    once = without_dropout(fusion_learner(study(whole), SMALL, seed=1, patience=None))
    for learn in (parts, once):
        quiet(learn, lambda learn: learn.fit(2, 3e-3))
    torch.testing.assert_close(weights(parts), weights(once), atol=2e-5, rtol=1e-4)


def test_a_mean_of_batch_means_would_be_another_step(study):
    class Unweighted(Callback):
        order = 6

        def before_backward(self):
            cb = self.learn.accumulate
            group = min(cb.batches, self.learn.n_iter - self.learn.iter // cb.batches * cb.batches)
            self.learn.loss_grad = self.learn.loss_grad / cb.share / group

    wrong = fusion_learner(study(32), SMALL, seed=1, patience=None, accumulate=3, cbs=[Unweighted()])
    once = without_dropout(fusion_learner(study(96), SMALL, seed=1, patience=None))
    for learn in (without_dropout(wrong), once):
        quiet(learn, lambda learn: learn.fit(2, 3e-3))
    assert (weights(wrong) - weights(once)).abs().max() > 1e-4


def test_gradients_are_clipped_to_the_norm(study):
    norms = []

    class Norm(Callback):
        order = 20

        def before_step(self):
            grads = [p.grad.flatten() for p in self.learn.model.parameters() if p.grad is not None]
            norms.append(float(torch.cat(grads).norm()))

    quiet(fusion_learner(study(), SMALL, clip=0.01, patience=None, cbs=[Norm()]), lambda learn: learn.fit(1))
    assert len(norms) == 8 and max(norms) <= 0.01 * (1 + 1e-4)


def test_a_strict_training_names_what_is_not_deterministic(study):
    class Put(Callback):
        def after_pred(self):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    learn = fusion_learner(study(), SMALL, strict=True, patience=None)
    quiet(learn, lambda learn: learn.fit(1))  # nothing of ours is refused
    with pytest.raises(UkbmmError, match="operation put_.*deterministic kernel"):
        quiet(learn.add_cb(Put()), lambda learn: learn.fit(1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_compiled_training_comes_to_the_same_and_leaves_the_model_as_it_was(study):
    compiled, plain = (
        without_dropout(fusion_learner(study(), SMALL, seed=1, patience=3, compile=compile))
        for compile in (True, False)
    )
    compiled.compile.options["backend"] = "aot_eager"  # traced and differentiated, without a compiler
    for learn in (compiled, plain):
        quiet(learn, lambda learn: learn.fit_one_cycle(2, 3e-3))
    torch.testing.assert_close(weights(compiled), weights(plain), atol=1e-5, rtol=1e-4)
    assert "forward" not in vars(compiled.model)


def test_what_a_killed_compiler_could_leave_half_written_is_not_written(study):
    "torch takes any compiled header that it finds for a whole one, and writing 150 MB takes seconds."
    import torch._inductor.config as inductor

    before, seen = inductor.cpp_cache_precompile_headers, []

    def compiler(graph, inputs):
        seen.append(inductor.cpp_cache_precompile_headers)
        return graph.forward

    learn = fusion_learner(study(), SMALL, seed=1, patience=None, compile=True)
    learn.compile.options["backend"] = compiler
    quiet(learn, lambda learn: learn.fit(1))
    assert seen and not any(seen) and inductor.cpp_cache_precompile_headers == before


def test_predictions_are_in_32_bits_after_a_training_in_16(study):
    learn = fusion_learner(study(), SMALL, seed=1, patience=None, amp="bf16")
    quiet(learn, lambda learn: learn.fit(1))
    loader = learn.dls.test_dl(study.test)
    with torch.no_grad():
        expected = torch.cat([learn.model.eval()(x) for (x,) in loader])
    np.testing.assert_array_equal(
        predict_rows(learn, study.test), learn.dls.outcome.decode(expected.double().numpy())
    )
    assert not torch.equal(quiet(learn, lambda learn: learn.get_preds(dl=loader))[0], expected)


def test_what_a_fastai_user_expects_works(study, tmp_path):
    learn = fusion_learner(study(), SMALL, seed=1, patience=3, path=tmp_path)
    assert isinstance(learn, FusionLearner)
    quiet(learn, lambda learn: learn.lr_find(num_it=20, show_plot=False))
    quiet(learn, lambda learn: learn.fine_tune(2, 3e-3, freeze_epochs=1))
    assert len(learn.recorder.values) == 2 and len(learn.recorder.losses) == 16
    preds, targets, losses = quiet(learn, lambda learn: learn.get_preds(with_loss=True))
    torch.testing.assert_close(losses, (preds - targets).square()[:, 0], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(
        learn.dls.outcome.decode(preds.double().numpy()), predict_rows(learn, learn.dls.valid.rows), rtol=1e-4
    )
    quiet(learn, lambda learn: learn.show_results(max_n=5))
    saved = learn.save("weights")
    before = weights(learn)
    quiet(learn, lambda learn: learn.remove_cbs(BestWeights).fit(1))  # they may be those before the fit
    assert not torch.equal(weights(learn), before)
    assert saved.is_file() and torch.equal(weights(learn.load("weights")), before)


def test_an_export_predicts_and_holds_nobody(study, tmp_path):
    dls = study()
    learn = fusion_learner(dls, SMALL, seed=1, patience=3, history=tmp_path / "h.csv", path=tmp_path)
    quiet(learn, lambda learn: learn.fit_one_cycle(2, 3e-3))
    learn.validate()
    expected = predict_rows(learn, study.test)
    learn.export("export.pkl")
    assert torch.equal(torch.from_numpy(expected), torch.from_numpy(predict_rows(learn, study.test)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_learner(tmp_path / "export.pkl")
    counts = {
        225,
        75,
        300,
        len(dls.outcome._values),
    }  # of those who were trained on, of those to validate, of all
    assert sizes(loaded) & counts == set()
    assert sizes(learn) & counts != set()  # or the search would find nothing at all
    for work in (
        lambda learn: predict_rows(learn, study.test),
        lambda learn: learn.get_preds(),
        lambda learn: learn.get_preds(0),
        lambda learn: learn.validate(),
        lambda learn: learn.fit(1),
    ):
        with pytest.raises(DataError, match="an exported learner holds nobody's data.*learn.dls = dls"):
            quiet(loaded, work)
    mine = dls.test_dl(study.test)
    assert torch.equal(
        quiet(loaded, lambda loaded: loaded.get_preds(dl=mine))[0],
        quiet(learn, lambda learn: learn.get_preds(dl=mine))[0],
    )
    loaded.dls = dls
    np.testing.assert_array_equal(predict_rows(loaded, study.test), expected)


def sizes(learn) -> set[int]:
    "Lengths of all tensors, arrays and lists of numbers that a pickle of a learner holds."
    found = set()

    class Sizes(pickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, torch.Tensor | np.ndarray):
                found.add(len(value) if value.ndim else 0)
            return NotImplemented

    class Nowhere:
        def write(self, data):
            return len(data)

    learn._end_cleanup()
    opt, learn.opt = learn.opt, None
    parts = {k: v for k, v in learn.__getstate__().items() if k not in ("logger",)}
    for value in parts.values():
        try:
            Sizes(Nowhere()).dump(value)
        except (pickle.PicklingError, AttributeError, TypeError):
            continue
    learn.opt = opt
    return found


def test_every_epoch_of_the_history_is_written_once_and_whole(study, tmp_path):
    class GiveUp(Callback):
        def after_pred(self):
            if self.learn.epoch == 2:
                raise KeyboardInterrupt

    learn = fusion_learner(study(), SMALL, history=tmp_path / "h.csv", cbs=[GiveUp()])
    with pytest.raises(KeyboardInterrupt):
        quiet(learn, lambda learn: learn.fit(4))
    assert pl.read_csv(tmp_path / "h.csv")["epoch"].to_list() == [0, 1]
    assert not list(tmp_path.glob("*.partial"))


def test_settings_of_training_have_their_limits():
    assert TrainSettings(accumulate=4, clip=1.0, strict=True, compile=True, checkpoint=100).clip == 1.0
    for wrong in ({"accumulate": 0}, {"clip": 0.0}, {"checkpoint": 0}):
        with pytest.raises(ValueError, match="greater than"):
            TrainSettings(**wrong)


def test_a_callback_surrounds_a_fit_and_no_validation(study):
    import contextlib

    seen = []

    class Around(Callback):
        @contextlib.contextmanager
        def around_fit(self):
            seen.append("in")
            try:
                yield
            finally:
                seen.append("out")

        def after_pred(self):
            if "fail" in seen:
                raise KeyboardInterrupt

    learn = fusion_learner(study(), SMALL, patience=None, cbs=[Around()])
    quiet(learn, lambda learn: learn.validate())
    assert seen == []
    quiet(learn, lambda learn: learn.fit(1))
    assert seen == ["in", "out"]
    seen.append("fail")
    with pytest.raises(KeyboardInterrupt):
        quiet(learn, lambda learn: learn.fit(1))
    assert seen == ["in", "out", "fail", "in", "out"]


def test_predictions_come_with_inputs_and_losses_in_the_order_of_the_rows(study):
    learn = fusion_learner(study(), SMALL, seed=1, patience=None)
    quiet(learn, lambda learn: learn.fit(1))
    for loader in (learn.dls.valid, learn.dls.train):  # the second one shuffles
        x, preds, targets, losses = quiet(
            learn, lambda learn, dl=loader: learn.get_preds(dl=dl, with_input=True, with_loss=True)
        )
        assert x["row"].tolist() == loader.rows.tolist()
        expected = predict_rows(learn, loader.rows)
        np.testing.assert_allclose(learn.dls.outcome.decode(preds.double().numpy()), expected, rtol=1e-4)
        assert torch.equal(targets, learn.dls.outcome.batch(torch.from_numpy(loader.rows)))
        torch.testing.assert_close(losses, (preds - targets).square()[:, 0], atol=1e-5, rtol=1e-4)
        with torch.no_grad():  # what is given is what a network can be given
            torch.testing.assert_close(learn.model.eval()(x), preds, atol=1e-5, rtol=1e-4)
    few = learn.dls.test_dl(study.test[:5], bs=2, with_labels=True)
    preds, targets = quiet(learn, lambda learn: learn.get_preds(dl=few))
    assert len(preds) == 5 and torch.equal(targets, learn.dls.outcome.batch(torch.from_numpy(study.test[:5])))
    assert quiet(learn, lambda learn: learn.get_preds(dl=learn.dls.test_dl(study.test[:5])))[1] is None


def test_what_a_model_gets_most_wrong_is_found_as_fastai_finds_it(study):
    learn = fusion_learner(study(), SMALL, seed=1, patience=None)
    quiet(learn, lambda learn: learn.fit(1))
    losses, places, rows = quiet(
        learn, lambda learn: Interpretation.from_learner(learn).top_losses(3, items=True)
    )
    expected = quiet(learn, lambda learn: learn.get_preds(with_loss=True))[2]
    assert torch.equal(losses, expected.sort(descending=True).values[:3])
    assert list(rows) == learn.dls.valid.rows[places.numpy()].tolist()
    x, _, targets, _, one = quiet(learn, lambda learn: Interpretation.from_learner(learn)[places])
    assert x["row"].tolist() == list(rows) and torch.equal(one, losses)
    assert torch.equal(targets, learn.dls.outcome.batch(torch.tensor(list(rows))))


class Order(Callback):
    "Note the rows of each training epoch, in their order."

    def __init__(self):
        self.epochs = []

    def before_train(self):
        self.epochs.append([])

    def before_batch(self):
        if self.learn.training:
            self.epochs[-1] += self.learn.x["row"].tolist()


def order_of(study, work) -> list[list[int]]:
    "The order of rows in each epoch of what is done with a new learner."
    learn = fusion_learner(study(), SMALL, seed=1, patience=None, cbs=[Order()])
    quiet(learn, work)
    return [epoch for epoch in learn.order.epochs if len(epoch) == 225]


def test_what_was_looked_at_before_does_not_change_a_training(study, tmp_path):
    def trained(before):
        learn = fusion_learner(study(), SMALL, seed=1, patience=None, path=tmp_path)
        quiet(learn, before)
        quiet(learn, lambda learn: learn.fit_one_cycle(2))
        return weights(learn)

    plain = trained(lambda learn: None)
    for look in (
        lambda learn: learn.lr_find(num_it=20, show_plot=False),
        lambda learn: next(iter(learn.dls.train)),
        lambda learn: learn.validate(ds_idx=0),
    ):
        assert torch.equal(trained(look), plain)


def test_every_epoch_of_every_fit_has_an_order_of_its_own(study):
    twice = order_of(study, lambda learn: (learn.fit(2), learn.fit(3)))
    once = order_of(study, lambda learn: learn.fit(5))
    assert twice == once and len(set(map(tuple, once))) == 5
    assert order_of(study, lambda learn: learn.fine_tune(4)) == once


def test_a_fit_that_passes_over_epochs_finds_the_others_in_their_order(study):
    whole = order_of(study, lambda learn: learn.fit(4))
    assert order_of(study, lambda learn: learn.fit(4, start_epoch=2)) == whole[2:]


def test_a_fit_after_one_that_was_given_up_has_another_order(study):
    class GiveUp(Callback):
        def before_batch(self):
            if self.learn.epoch == 1 and self.learn.iter == 3:
                raise KeyboardInterrupt

    def work(learn):
        with pytest.raises(KeyboardInterrupt):
            learn.fit(4, cbs=GiveUp())
        learn.fit(2)

    whole = order_of(study, lambda learn: learn.fit(4))
    assert order_of(study, work) == [whole[0], *whole[2:]]


def test_settings_of_an_encoder_that_is_not_there_are_refused(study):
    with pytest.raises(ModelError, match=r"modality 'snp'.*found none.*Did you mean 'snps'\?"):
        fusion_learner(study(), SMALL, encoders={"snp": GenotypeSettings(block=8)})
    learn = fusion_learner(study(), SMALL, encoders={"snps": GenotypeSettings(block=8)})
    assert learn.model.encoders["snps"].local.block == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"amp": "bf61"}, "mixed precision: expected bf16 or fp16, found 'bf61'"),
        ({"clip": -1.0}, "clip of the learner: expected a number above 0, found -1.0"),
        ({"lr": -1.0}, "lr of the learner: expected a number of at least 0"),
        ({"accumulate": 0}, "accumulate of the learner: expected a number of at least 1, found 0"),
        ({"patience": -1}, "patience of the learner: expected a number of at least 1"),
        ({"lr": float("nan")}, "lr of the learner"),
    ],
)
def test_numbers_that_no_training_can_have_are_refused(study, given, message):
    with pytest.raises(UkbmmError, match=re.escape(message)):
        fusion_learner(study(), SMALL, **given)


def test_a_summary_tells_the_shapes_of_the_network(study):
    assert "Total params" in str(fusion_learner(study(), SMALL).summary())
