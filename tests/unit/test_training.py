"""Training: which weights are kept, when it stops, that it can be repeated, and what the history says."""

import numpy as np
import polars as pl
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from sklearn.metrics import mean_squared_error, roc_auc_score
from torch import nn

from ukbmm.biobank.synthetic import synthetic_biobank
from ukbmm.cohort.outcomes import BinaryOutcome, RegressionOutcome, read_outcome
from ukbmm.core import UkbmmError
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.losses import RegressionLoss
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training.callbacks import BestWeights, MixedPrecision, beats
from ukbmm.training.learner import fusion_learner, predict_rows

pytestmark = pytest.mark.usefixtures("one_thread")


class Constant(nn.Module):
    "A model whose whole knowledge is one number."

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * 0 + self.level


class Follow(Callback):
    "Set the model's number after each epoch's training to what a test has planned."

    order = 60

    def __init__(self, plan):
        self.plan = plan

    def after_train(self):
        self.learn.model.level.data.fill_(self.plan[self.learn.epoch])


def scripted(plan, patience=2, margin=0.0, spread=0.0):
    "A learner whose validation loss after epoch i is plan[i] squared, and 1 before (all targets 0)."
    torch.manual_seed(0)
    x, y = torch.zeros(8, 1), spread * torch.randn(8, 1)
    data = torch.utils.data.TensorDataset(x, y)
    dls = DataLoaders(*(torch.utils.data.DataLoader(data, batch_size=4) for _ in range(2)))
    model = Constant()
    model.level.data.fill_(1.0)
    keep = BestWeights(patience, margin)
    learn = Learner(dls, model, RegressionLoss(), lr=0.0, cbs=[Follow(plan), keep])
    with learn.no_bar(), learn.no_logging():
        learn.fit(len(plan), lr=0.0)
    return learn, keep


@pytest.mark.parametrize(
    ("plan", "patience", "epochs", "best"),
    [
        ([0.9, 0.8, 0.7], 2, 3, 3),  # always better: nothing stops it
        ([0.5, 0.6, 0.7, 0.1], 2, 3, 1),  # two epochs after the best it stops, and never sees 0.1
        ([0.5, 0.6, 0.4, 0.6, 0.6, 0.1], 2, 5, 3),
        ([0.5, 0.6, 0.7, 0.1], 3, 4, 4),  # one more epoch of patience finds it
        ([1.5, 1.4, 1.3], 2, 2, 0),  # never better than untrained
        ([0.5, 0.5, 0.5, 0.5], 3, 4, 1),  # as good is not better
    ],
)
def test_the_best_weights_are_kept_and_patience_counts_from_them(plan, patience, epochs, best):
    learn, keep = scripted(plan, patience)
    levels = [1.0, *plan]
    assert keep.losses == pytest.approx([level**2 for level in levels[: epochs + 1]])
    assert keep.best_epoch == best and learn.model.level.item() == pytest.approx(levels[best])


def test_a_gain_within_the_noise_does_not_beat_the_untrained_state():
    assert scripted([0.98], margin=0.0, spread=0.5)[1].best_epoch == 1
    assert scripted([0.98], margin=1e4, spread=0.5)[1].best_epoch == 0
    assert scripted([0.2], margin=1.0, spread=0.5)[1].best_epoch == 1


def test_beats_compares_the_mean_gain_with_its_paired_standard_error():
    gain = torch.tensor([0.1, 0.3, -0.1, 0.5])
    error = np.std(gain.numpy(), ddof=1) / 2
    before, after = gain + 3, torch.full((4,), 3.0)
    assert beats(before, after, margin=float(0.2 / error) * 0.99)
    assert not beats(before, after, margin=float(0.2 / error) * 1.01)
    assert not beats(after, after) and beats(torch.ones(1), torch.zeros(1))


def test_a_second_fit_starts_to_count_anew_and_a_validation_does_not():
    learn, keep = scripted([0.5, 0.6, 0.7, 0.1])
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        assert len(keep.losses) == 4 and learn.model.level.item() == pytest.approx(0.5)
        learn.follow.plan = [0.4, 0.3]
        learn.fit(2, lr=0.0)
    assert keep.losses == pytest.approx([0.25, 0.16, 0.09])


def study_of(biobank, n_train, n_valid):
    "Function from an outcome to loaders and rows to test on."

    def prepare(definition=None):
        outcome = read_outcome(biobank, definition or RegressionOutcome(field=30750))
        rows = np.random.default_rng(0).permutation(np.flatnonzero(outcome.known))
        blocks = (PhenotypeBlock([31, 21003, 21001, 30690, 30760]), SNPBlock(every=2), OutcomeBlock(outcome))
        train, valid, test = np.split(rows, [n_train, n_train + n_valid])
        dls = MultiModalDataBlock(blocks).dataloaders(biobank, train, valid, bs=64, device="cpu")
        return dls, test, outcome

    return prepare


@pytest.fixture(scope="module")
def study(biobank):
    return study_of(biobank, 220, 80)


@pytest.fixture(scope="module")
def more_people(tmp_path_factory):
    "Enough of them to learn from."
    folder = tmp_path_factory.mktemp("more")
    return study_of(synthetic_biobank(folder / "b.biobank", participants=1600, variants=60, seed=1), 900, 200)


SMALL = ModelSettings(fusion=FusionSettings(dim=8), hidden=8)


def train(study, epochs=3, definition=None, patience=None, **settings):
    dls, test, outcome = study(definition)
    learn = fusion_learner(dls, SMALL, **{"seed": 5, "patience": patience, **settings})
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 5e-3)
    return learn, test, outcome


def weights(learn) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(study):
    first = weights(train(study)[0])
    torch.rand(17), np.random.rand(3)
    assert torch.equal(first, weights(train(study)[0]))
    assert not torch.equal(first, weights(train(study, seed=6)[0]))


def test_training_lowers_the_loss_and_predicts_people_nobody_saw(more_people):
    learn, test, outcome = train(more_people, epochs=14, patience=14)
    keep = learn.best_weights
    assert min(keep.losses) < 0.85 * keep.losses[0]
    predicted = predict_rows(learn, test)[:, 0]
    assert np.corrcoef(predicted, outcome.values[test])[0, 1] > 0.3
    assert abs(predicted.mean() - outcome.values[test].mean()) < 2  # in mmol/mol, not standardised


def test_predictions_follow_the_order_of_rows_and_not_the_batch_size(study):
    learn, test, _ = train(study, epochs=1)
    once = predict_rows(learn, test)
    np.testing.assert_allclose(predict_rows(learn, test[::-1], bs=7)[::-1], once, rtol=1e-4, atol=1e-4)
    assert predict_rows(learn, test[:0]).shape == (0, 1)


def test_losses_that_were_noted_are_those_of_the_validation_rows(study):
    learn, *_ = train(study, epochs=2, patience=5)
    rows, y = learn.dls.valid.rows, learn.dls.outcome
    target = y.batch(torch.from_numpy(rows)).numpy()
    standard = y.standardiser(predict_rows(learn, rows))
    assert learn.best_weights.best_loss == pytest.approx(mean_squared_error(target, standard), rel=1e-3)


def test_the_history_has_a_line_for_each_epoch_with_losses_and_the_metric(study, tmp_path):
    learn, *_ = train(study, epochs=3, history=tmp_path / "history.csv")
    history = pl.read_csv(tmp_path / "history.csv")
    assert history.columns == ["epoch", "train_loss", "valid_loss", "pearson_r", "time"]
    assert history["epoch"].to_list() == [0, 1, 2]
    rows = learn.dls.valid.rows
    predicted, target = predict_rows(learn, rows)[:, 0], learn.dls.outcome.outcome.values[rows]
    assert history["pearson_r"][2] == pytest.approx(np.corrcoef(predicted, target)[0, 1], abs=1e-4)


class Spy(Callback):
    "Note in what precision the head computes."

    def __init__(self):
        self.seen = set()

    def before_fit(self):
        self.learn.model.head.net.register_forward_hook(lambda module, x, out: self.seen.add(out.dtype))


def test_bf16_on_the_processor_trains_really_in_16_bits(study):
    in_16_bits, in_32_bits = Spy(), Spy()
    half = weights(train(study, epochs=2, amp="bf16", cbs=[in_16_bits])[0])
    full = weights(train(study, epochs=2, cbs=[in_32_bits])[0])
    assert in_16_bits.seen == {torch.bfloat16} and in_32_bits.seen == {torch.float32}
    assert half.dtype == torch.float32 and half.isfinite().all() and not torch.equal(half, full)
    assert torch.corrcoef(torch.stack([half, full]))[0, 1] > 0.99


def test_fp16_without_a_gpu_is_refused_with_a_remedy(study):
    with pytest.raises(UkbmmError, match="fp16.*CUDA.*Use bf16"):
        train(study, epochs=1, amp="fp16")


def test_a_failing_model_does_not_leave_16_bits_switched_on():
    class Broken(Constant):
        def forward(self, x):
            raise RuntimeError("out of memory")

    data = torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1))
    dls = DataLoaders(*(torch.utils.data.DataLoader(data, batch_size=4) for _ in range(2)))
    learn = Learner(dls, Broken(), RegressionLoss(), cbs=[MixedPrecision("bf16")])
    before = torch.is_autocast_enabled("cpu")
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError, match="out of memory"):
        learn.fit(1)
    assert not before and not torch.is_autocast_enabled("cpu")
    assert "forward" not in vars(learn.model)


def test_a_failing_loss_does_not_leave_16_bits_switched_on(study):
    class Broken(RegressionLoss):
        def __call__(self, output, target):
            raise RuntimeError("no loss")

    spy = Spy()
    learn, test, _ = train(study, epochs=1, amp="bf16", cbs=[spy])
    learn.loss_func = Broken()
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError, match="no loss"):
        learn.fit(1)
    spy.seen.clear()
    learn.loss_func = RegressionLoss()
    predict_rows(learn, test)
    assert spy.seen == {torch.float32}


def test_the_start_is_measured_in_the_precision_of_the_epochs(study):
    learn, *_ = train(study, epochs=1, amp="bf16", patience=3)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.0, wd=0.0)
    start, after = learn.best_weights.losses
    assert start == pytest.approx(after, abs=1e-7)


def test_a_yes_or_no_is_learned_and_predicted_as_a_probability(more_people):
    definition = BinaryOutcome(field=30750, above=36)
    learn, test, outcome = train(more_people, epochs=8, definition=definition)
    chance = predict_rows(learn, test)[:, 0]
    assert ((chance >= 0) & (chance <= 1)).all() and learn.metrics[0].name == "auc"
    assert roc_auc_score(outcome.values[test] == 1, chance) > 0.6


def test_random_labels_teach_nothing(study):
    dls, test, outcome = study()
    shuffled = dls.outcome.copy()
    shuffled._values = dls.outcome._values.clone()
    known = np.flatnonzero(outcome.known)
    order = np.random.default_rng(1).permutation(known)
    shuffled._values[known] = dls.outcome._values[order]
    for loader in (dls.train, dls.valid):
        loader.outcome = shuffled
    learn = fusion_learner(dls, SMALL, seed=5, patience=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(6, 5e-3)
    keep = learn.best_weights
    assert keep.best_loss > 0.9 * keep.losses[0]
