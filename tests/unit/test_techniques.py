"""Techniques: averages against torch's own, frozen to the bit, gradients by the paper's formula, memory that runs out where planted."""

import copy
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler  # noqa: F401, gives the learner fit_one_cycle
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ukbmm.cohort.outcomes import BinaryOutcome, RegressionOutcome, read_outcome
from ukbmm.core import ModelError
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.training.callbacks import BestWeights, MixedPrecision
from ukbmm.training.learner import by_encoder, fusion_learner
from ukbmm.training.techniques import (
    EMA,
    SWA,
    BatchMemoryError,
    ExplainMemory,
    Freeze,
    GradientModulation,
    Recompute,
    find_batch_size,
    is_memory_error,
    lrs_by_encoder,
    memory_by_part,
    modulation,
    untouched,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class WithNorm(nn.Module):
    "An encoder with batch normalisation and dropout around another one."

    def __init__(self, inner, dim):
        super().__init__()
        self.inner, self.norm, self.drop = inner, nn.BatchNorm1d(dim), nn.Dropout(0.3)

    def additive(self, value):
        return self.inner.additive(value)

    def forward(self, value, additive):
        return self.drop(self.norm(self.inner(value, additive)))


@pytest.fixture
def make(biobank, tmp_path):
    "Function from callbacks to a learner of phenotypes, blood and genotypes; `norm` adds batch normalisation."

    def learner(*cbs, patience=None, norm=False, kind=None, **options):
        outcome = read_outcome(biobank, kind or RegressionOutcome(field=30750))
        rows = np.flatnonzero(outcome.known)
        blocks = (PhenotypeBlock([31, 21003, 21001]), PhenotypeBlock([30690, 30760], name="blood"),
                  SNPBlock(every=2), OutcomeBlock(outcome))  # fmt: skip
        dls = MultiModalDataBlock(blocks).dataloaders(biobank, rows[:200], rows[200:280], bs=40, device="cpu")
        learn = fusion_learner(dls, patience=patience, cbs=list(cbs), path=tmp_path, seed=2, **options)
        if norm:
            learn.model.encoders["snps"] = WithNorm(learn.model.encoders["snps"], 32)
        learn.remove_cb(learn.progress)
        return learn

    return learner


def fit(learn, epochs=3, lr=3e-3, **options):
    with learn.no_logging():
        learn.fit(epochs, lr, **options)
    return learn


def state(module) -> torch.Tensor:
    "All weights and running means as one vector."
    return torch.cat([v.flatten() for v in module.state_dict().values() if v.is_floating_point()])


class Follow(Callback):
    "Average beside a learner with torch's own class, and keep what it has after each step and each epoch."

    order = 40

    def __init__(self, every, **rule):
        self.every, self.rule, self.at_epochs, self.trained = every, rule, [], []

    def before_train(self):
        if self.epoch == 0:
            vars(self)["peer"] = AveragedModel(self.learn.model, use_buffers=True, **self.rule)

    def after_step(self):
        if self.every == "step":
            self.peer.update_parameters(self.learn.model)

    def after_train(self):
        if self.every == "epoch":
            self.peer.update_parameters(self.learn.model)
        self.at_epochs.append(state(self.peer.module))
        self.trained.append(state(self.learn.model))


@pytest.mark.parametrize("norm", [False, True])
def test_ema_is_that_of_torch_where_the_warm_up_has_no_say(make, norm):
    follow = Follow("step", multi_avg_fn=get_ema_multi_avg_fn(0.08))
    learn = fit(make(follow, EMA(0.08), norm=norm))
    torch.testing.assert_close(state(learn.model), follow.at_epochs[-1], rtol=0, atol=1e-7)
    assert not torch.allclose(state(learn.model), follow.trained[-1], atol=1e-5)


def test_the_warm_up_of_ema_is_the_one_that_is_described(make):
    share = lambda mean, now, n: mean + (1 - min(0.9, (1 + float(n)) / (10 + float(n)))) * (now - mean)  # noqa: E731
    follow = Follow("step", avg_fn=share)
    learn = fit(make(follow, EMA(0.9)), 4)
    torch.testing.assert_close(state(learn.model), follow.at_epochs[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("start", "averaged"), [(0.0, [0, 1, 2, 3]), (0.5, [2, 3]), (0.6, [3]), (0.75, [3])])
def test_swa_is_the_mean_of_the_last_epochs(make, start, averaged):
    follow = Follow("epoch")
    learn = fit(make(follow, SWA(start)), 4)
    mean = torch.stack([follow.trained[i].double() for i in averaged]).mean(0)
    torch.testing.assert_close(state(learn.model).double(), mean, rtol=0, atol=1e-6)


def test_training_goes_on_from_its_own_weights(make):
    plain, averaged = Follow("epoch"), Follow("epoch")
    fit(make(plain)), fit(make(averaged, EMA(0.9)))
    assert all(torch.equal(a, b) for a, b in zip(plain.trained, averaged.trained, strict=True))


def test_best_weights_sees_the_losses_of_averages_and_keeps_the_best_of_them(make):
    follow = Follow("step", multi_avg_fn=get_ema_multi_avg_fn(0.08))
    peers = []
    follow.after_validate = lambda: peers.append(copy.deepcopy(follow.peer.module))
    learn = fit(make(follow, EMA(0.08), BestWeights(9, margin=-1e9)), 5, 2e-3)
    keep = learn.best_weights

    def loss(model):
        model.eval()
        with torch.no_grad():
            parts = [(model(x) - y).square().flatten() for x, y in learn.dls.valid]
        return float(torch.cat(parts).mean())

    assert keep.losses[1:] == pytest.approx([loss(peer) for peer in peers], rel=1e-4)
    best = min(range(5), key=lambda i: keep.losses[i + 1])
    assert keep.best_epoch == best + 1
    torch.testing.assert_close(state(learn.model), state(peers[best]), rtol=0, atol=1e-6)


def test_a_fit_that_patience_ends_leaves_the_best_averages(make):
    keep = BestWeights(patience=1, margin=-1e9)
    learn = fit(make(EMA(0.9), keep), 10, 0.3)
    assert len(keep.losses) < 11
    assert all(torch.equal(v, keep.weights[n]) for n, v in learn.model.state_dict().items())
    assert learn.ema.averages is None and learn.ema.own is None


class Snapshot(Callback):
    "Keep what a checkpoint would, after an epoch."

    order = 90

    def __init__(self, epoch):
        self.at = epoch

    def after_epoch(self):
        if self.epoch == self.at:
            learn = self.learn
            parts = {
                "model": learn.model.state_dict(),
                "opt": learn.opt.state_dict(),
                "rng": torch.get_rng_state(),
            }
            vars(self)["kept"] = copy.deepcopy(parts)
            self.kept["average"] = next(cb for cb in learn.cbs if isinstance(cb, EMA | SWA)).state_dict()


@pytest.mark.parametrize("average", [lambda: EMA(0.9), lambda: SWA(0.25)])
def test_a_resumed_fit_has_the_same_averages_to_the_bit(make, average):
    snapshot = Snapshot(1)
    whole = fit(make(snapshot, average()), 4)
    resumed = average()
    learn = make(resumed)
    learn.create_opt()
    learn.model.load_state_dict(snapshot.kept["model"])
    learn.opt.load_state_dict(snapshot.kept["opt"])
    resumed.load_state_dict(snapshot.kept["average"])
    learn.remove_cb(learn.seed_fit)
    torch.set_rng_state(snapshot.kept["rng"])
    fit(learn, 4, start_epoch=2)
    assert torch.equal(state(learn.model), state(whole.model))


def test_a_second_fit_averages_anew(make):
    once, twice = make(SWA(0.0)), make(SWA(0.0))
    fit(fit(twice, 2), 1)
    fit(fit(once, 2), 1)
    follow = Follow("epoch")
    once.add_cb(follow)
    twice.add_cb(Follow("epoch"))
    fit(once, 1), fit(twice, 1)
    assert torch.equal(state(once.model), follow.trained[-1])  # the mean of one epoch is that epoch


def test_searching_a_learning_rate_leaves_the_weights_alone(make):
    learn = make(EMA(0.5))
    before = state(learn.model)
    with learn.no_logging():
        learn.lr_find(num_it=8, show_plot=False)
    assert torch.equal(before, state(learn.model))


@pytest.mark.parametrize(("cls", "value"), [(EMA, 1.0), (EMA, -0.1), (SWA, 1.0)])
def test_shares_out_of_bounds_are_refused(cls, value):
    with pytest.raises(ModelError, match="expected 0 <="):
        cls(value)


def test_groups_hold_every_trained_weight_once_in_the_order_of_modalities(make):
    learn = make()
    frozen = learn.model.encoders["blood"].linear.weight.requires_grad_(False)
    groups = by_encoder(learn.model)
    inside = [id(weight) for group in groups for weight in group]
    assert sorted(inside) == sorted(id(w) for w in learn.model.parameters() if w is not frozen)
    encoders = list(learn.model.encoders.values())
    for group, encoder in zip(groups[:-1], encoders, strict=True):
        assert {id(w) for w in group} <= {id(w) for w in encoder.parameters()}
    assert {id(w) for w in groups[-1]} == {
        id(w) for part in (learn.model.fusion, learn.model.head) for w in part.parameters()
    }


def test_each_group_is_stepped_with_its_own_rate(make):
    learn = make()
    lrs = lrs_by_encoder(learn.model, {"blood": 0.0}, 1e-2)
    before = {name: state(part) for name, part in learn.model.encoders.items()}
    fit(learn, 1, lrs)
    moved = {name: not torch.equal(before[name], state(part)) for name, part in learn.model.encoders.items()}
    assert moved == {"phenotype": True, "blood": False, "snps": True}
    with pytest.raises(ModelError, match="Did you mean 'blood'"):
        lrs_by_encoder(learn.model, {"blod": 1e-3}, 1e-2)


def test_freeze_and_fine_tune_work_by_modality_as_fastai_users_know_them(make):
    learn = make()
    learn.splitter, learn.train_bn = by_encoder, False
    before = state(learn.model.encoders), state(learn.model.head)
    learn.create_opt()
    learn.freeze()
    fit(learn, 1)
    assert torch.equal(before[0], state(learn.model.encoders)) and not torch.equal(
        before[1], state(learn.model.head)
    )
    learn.freeze_to(2)
    assert [any(w.requires_grad for w in e.parameters()) for e in learn.model.encoders.values()] == [
        False,
        False,
        True,
    ]
    with learn.no_logging():
        learn.fine_tune(1)
    assert not torch.equal(before[0], state(learn.model.encoders))


@pytest.mark.parametrize("norm", [False, True])
def test_frozen_encoders_do_not_change_by_a_bit(make, norm):
    learn = fit(make(norm=norm), 1)  # momentum and gradients are there
    learn.add_cb(Freeze({"snps": None}))
    before = copy.deepcopy(learn.model.encoders["snps"].state_dict()), state(learn.model.encoders["blood"])
    fit(learn, 2)
    after = learn.model.encoders["snps"].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before[0].items())
    assert not torch.equal(before[1], state(learn.model.encoders["blood"]))
    assert all(weight.requires_grad for weight in learn.model.encoders["snps"].parameters())


def test_what_fastai_froze_stays_too(make):
    learn = make(norm=True)
    learn.splitter = by_encoder
    fit(learn, 1)
    learn.freeze()
    learn.add_cb(Freeze())
    before = copy.deepcopy(learn.model.encoders.state_dict())
    fit(learn, 2)
    after = learn.model.encoders.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_encoders_thaw_after_some_epochs_and_what_was_frozen_before_stays_frozen(make):
    learn = make(Freeze({"snps": 1}))
    learn.model.encoders["snps"].linear.weight.requires_grad_(False)
    states = []
    learn.add_cb(
        type(
            "Keep",
            (Callback,),
            {"after_train": lambda self: states.append(state(self.learn.model.encoders["snps"]))},
        )()
    )
    start = state(learn.model.encoders["snps"])
    fit(learn, 2)
    assert torch.equal(start, states[0]) and not torch.equal(start, states[1])
    assert not learn.model.encoders["snps"].linear.weight.requires_grad
    with pytest.raises(ModelError, match="Did you mean 'snps'"):
        fit(make(Freeze({"snp": 1})), 1)


def test_the_coefficients_are_those_of_the_paper():
    # Peng et al. 2022, eq. 10: k = 1 - tanh(alpha * rho) for rho > 1. By hand: rho = 0.6 / 0.3 = 2, tanh(0.2) = 0.19738
    torch.testing.assert_close(
        modulation(torch.tensor([0.3, 0.6]), 0.1), torch.tensor([1.0, 0.80262]), atol=1e-5, rtol=0
    )
    # three modalities: 0.9 against the mean of 0.3 and 0.6 is 2, 0.6 against 0.6 is 1 and not more
    torch.testing.assert_close(
        modulation(torch.tensor([0.9, 0.3, 0.6]), 0.1), torch.tensor([0.80262, 1.0, 1.0]), atol=1e-5, rtol=0
    )
    nobody = torch.tensor([0.6, torch.nan, 0.3])
    torch.testing.assert_close(modulation(nobody, 0.1), torch.tensor([0.80262, 1.0, 1.0]), atol=1e-5, rtol=0)
    alone = torch.tensor([0.6, torch.nan])
    assert modulation(alone, 0.1).tolist() == [1.0, 1.0]


class Gradients(Callback):
    "Keep the batch, the weights and the gradients of the first step."

    order = 10.7

    def before_step(self):
        if not hasattr(type(self), "_") and "grads" not in vars(self):
            model = self.learn.model
            vars(self)["grads"] = {
                n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None
            }
            vars(self)["batch"] = (self.learn.xb[0], self.learn.yb[0])
            vars(self)["weights"] = copy.deepcopy(model.state_dict())


def paper_scores(model, x, y):
    "Mean probability of the truth from each modality alone, the others absent from the batch."
    model = model.eval()
    found = []
    for i in range(x["present"].shape[1]):
        alone = torch.zeros_like(x["present"])
        alone[:, i] = x["present"][:, i]
        with torch.no_grad():
            p = model({**x, "present": alone}).sigmoid()
        found.append(float((p * y + (1 - p) * (1 - y))[x["present"][:, i]].mean()))
    return found


def test_gradients_are_multiplied_by_the_papers_formula_and_no_others(make):
    kind = BinaryOutcome(field=30750, above=36)
    plain, slowed = Gradients(), Gradients()
    models = [
        make(cb, *extra, kind=kind)
        for cb, extra in ((plain, []), (slowed, [GradientModulation(0.4, noise=False)]))
    ]
    for learn in models:
        for layer in learn.model.modules():
            if isinstance(layer, nn.Dropout):  # else scores are those of encoders that dropped other values
                layer.p = 0.0
        with torch.no_grad():  # else every modality predicts the same constant
            learn.model.head.net[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
        fit(learn, 1)
    x, y = plain.batch
    model = models[0].model
    model.load_state_dict(plain.weights)
    s = paper_scores(model, x, y)
    for i, name in enumerate(model.encoders):
        rho = s[i] / np.mean([v for j, v in enumerate(s) if j != i])
        k = 1 - np.tanh(0.4 * rho) if rho > 1 else 1.0
        for weight in (n for n in plain.grads if n.startswith(f"encoders.{name}.")):
            torch.testing.assert_close(slowed.grads[weight], plain.grads[weight] * k, rtol=1e-4, atol=1e-9)
    for weight in (n for n in plain.grads if not n.startswith("encoders.")):
        assert torch.equal(slowed.grads[weight], plain.grads[weight])
    assert any(not torch.equal(slowed.grads[n], plain.grads[n]) for n in plain.grads)


def test_noise_has_the_size_of_the_gradients_and_comes_again_with_the_seed(make):
    runs = [Gradients() for _ in range(4)]
    options = [dict(noise=False), dict(noise=True), dict(noise=True), dict(noise=True, seed=1)]
    for cb, option in zip(runs, options, strict=True):
        fit(make(cb, GradientModulation(1e-6, **option)), 1)
    name = "encoders.snps.linear.weight"  # the head starts at zero, so others have none yet
    plain, noisy, again, other = (cb.grads[name] for cb in runs)
    assert torch.equal(noisy, again) and not torch.equal(noisy, other)
    assert float((noisy - plain).std() / plain.std()) == pytest.approx(1, abs=0.2)


def test_modulation_leaves_the_generator_and_a_single_modality_alone(make):
    plain, modulated = fit(make(), 1), fit(make(GradientModulation(1e-9, noise=False)), 1)
    torch.testing.assert_close(
        state(plain.model), state(modulated.model), rtol=0, atol=1e-6
    )  # the same dropout
    learn = make(GradientModulation())
    for name in ("blood", "snps"):
        del learn.model.encoders[name]
    with pytest.raises(ModelError, match="two modalities or more, found 1"):
        fit(learn, 1)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("names", [None, ["snps"], ["phenotype", "blood"]])
def test_recomputed_encoders_learn_the_same_to_the_bit(make, names, norm):
    plain, saved = fit(make(norm=norm), 2), fit(make(Recompute(names), norm=norm), 2)
    for (name, a), b in zip(plain.model.state_dict().items(), saved.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not any("forward" in vars(encoder) for encoder in saved.model.encoders.values())


def test_recomputing_runs_the_encoder_twice_and_keeps_less(make):
    counted = []
    learn = make(Recompute(["snps"]))
    learn.model.encoders["snps"].linear.register_forward_hook(lambda *_: counted.append(1))
    learn.model.encoders["snps"].local.register_forward_hook(lambda *_: counted.append(2))
    learn.recompute.before_fit()
    x, y = learn.dls.one_batch()
    (learn.model.train()(x) - y).square().mean().backward()
    assert counted.count(2) == 2  # once forwards, once backwards
    less = memory_by_part(learn)
    learn.recompute.after_fit()
    more = memory_by_part(learn)
    assert less["encoder 'snps'"] < more["encoder 'snps'"] and less["head"] == more["head"]
    with pytest.raises(ModelError, match="Did you mean 'snps'"):
        fit(make(Recompute(["snp"])), 1)


class Plain(nn.Linear):
    "A head that is a linear layer and nothing else."

    def forward(self, fused, additive):
        return super().forward(fused)


def test_what_a_linear_layer_keeps_is_counted_by_hand(make):
    learn = make()
    learn.model.fusion.forward = lambda z, present: z[:, 0]
    learn.model.head = Plain(32, 1)
    x = learn.dls.one_batch()[0]
    kept = memory_by_part(learn, bs=16)["head"]
    assert kept * 16 == 16 * len(x.modalities) * 32 * 4  # its input: a slice of the stacked representations


def short_above(learn, most, error=None):
    "Plant a limit: a larger batch finds no memory."

    def look(module, inputs):
        if len(inputs[0]) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    learn.model.head.register_forward_pre_hook(look)


@pytest.mark.parametrize("most", [2, 7, 8, 33, 100, 127, 128, 180])
def test_the_batch_size_is_just_below_the_planted_limit(make, most):
    learn = make()
    short_above(learn, most)
    found = find_batch_size(learn, headroom=0.0)
    assert most - max(1, most // 16) <= found <= most
    with_room = find_batch_size(learn, headroom=0.25)
    assert with_room == int(found / 1.25) or most == 2


def test_no_batch_is_larger_than_the_limit_or_the_training_rows(make):
    assert find_batch_size(make()) == 200
    assert find_batch_size(make(), limit=64) == 64


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_short_memory_of_a_processor_is_known_as_such(make, error):
    learn = make()
    short_above(learn, 50, error)
    assert 47 <= find_batch_size(learn, headroom=0.0) <= 50
    assert is_memory_error(error) and not is_memory_error(RuntimeError("a shape is wrong"))


def test_where_nothing_fits_or_something_else_is_wrong_it_is_said(make):
    learn = make()
    short_above(learn, 1)
    with pytest.raises(BatchMemoryError, match="room for two participants"):
        find_batch_size(learn)
    learn = make()
    short_above(learn, 10, ValueError("a shape is wrong"))
    with pytest.raises(ValueError, match="a shape is wrong"):
        find_batch_size(learn)


def everything(learn):
    "All that finding a batch size might disturb."
    weights = [w for w in learn.model.parameters()]
    opt = learn.opt.state_dict() if learn.opt else None
    return copy.deepcopy({
        "state": learn.model.state_dict(), "grads": [w.grad for w in weights], "modes": [m.training for m in learn.model.modules()],
        "asks": [w.requires_grad for w in weights], "opt": opt, "torch": torch.get_rng_state(), "numpy": np.random.get_state(),
        "python": random.getstate(), "epoch": learn.dls.train.epoch, "order": [x["row"] for x, _ in learn.dls.valid],
    })  # fmt: skip


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) or type(a).__name__ == "L":
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("trained", [False, True])
def test_finding_a_batch_size_leaves_everything_as_it_was_to_the_bit(make, trained):
    learn = make(norm=True)
    if trained:
        fit(learn, 1)
        learn.model.encoders["blood"].eval()
        learn.model.encoders["blood"].linear.weight.requires_grad_(False)
    short_above(learn, 90)
    before, optimizer = everything(learn), learn.opt
    find_batch_size(learn)
    assert learn.opt is optimizer and learn.dls.train.bs == 40
    after = everything(learn)
    assert [name for name in before if not same(before[name], after[name])] == []


def test_untouched_holds_where_an_error_passes(make):
    learn = make(norm=True)
    before = everything(learn)
    with pytest.raises(KeyError), untouched(learn):
        for weight in learn.model.parameters():
            weight.data.add_(1.0)
        learn.model.encoders["snps"].norm.running_mean.add_(1.0)
        torch.rand(3), np.random.rand(3), random.random()
        raise KeyError
    after = everything(learn)
    assert [name for name in before if not same(before[name], after[name])] == []


class Short(torch.autograd.Function):
    "Memory runs out when gradients pass."

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def raise_short(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def plant(learn, where):
    "Let memory run out in one place."
    if where.startswith("encoder"):
        learn.model.encoders[where.split("'")[1]].net = Greedy()
    elif where == "the backward pass":
        learn.model.head.register_forward_pre_hook(lambda module, inputs: (Short.apply(inputs[0]),))
    elif where == "the step of the optimizer":
        learn.create_opt()
        learn.opt.cbs.append(raise_short)
    else:
        learn.loss_func = raise_short


class Greedy(nn.Module):
    def forward(self, x):
        raise_short()


@pytest.mark.parametrize("amp", ["no", "bf16"])
@pytest.mark.parametrize(
    "where",
    ["encoder 'phenotype'", "encoder 'blood'", "the backward pass", "the loss"],
)
def test_an_error_of_memory_says_where_and_what_to_change(make, where, amp):
    learn = make(ExplainMemory(), amp=amp)
    plant(learn, where)
    with pytest.raises(BatchMemoryError) as raised:
        fit(learn, 1)
    text = str(raised.value)
    assert f"memory ran out in {where}" in text and "epoch 1, batch 1 of 40 participants" in text
    assert "Take fewer than 40 participants" in text and "train.recompute: ['" in text
    if where.startswith("encoder"):
        assert f"train.recompute: [{where.removeprefix('encoder ')}]" in text
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError) and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("amp", ["no", "bf16"])
def test_memory_that_runs_out_in_the_step_of_the_optimizer_is_a_matter_of_weights(make, amp):
    learn = make(ExplainMemory(), amp=amp)
    learn.model.encoders["blood"].wide = nn.Linear(3000, 50)
    plant(learn, "the step of the optimizer")
    with pytest.raises(BatchMemoryError) as raised:
        fit(learn, 1)
    text = str(raised.value)
    own, everything = (
        sum(w.numel() for w in part.parameters()) for part in (learn.model.encoders["blood"], learn.model)
    )
    assert f"of the optimizer; encoder 'blood' has {own:,} of {everything:,} weights" in text
    assert "SGD" in text and "FSDP" in text and "fewer than" not in text and "recompute" not in text


def test_an_encoder_that_cannot_be_found_is_not_made_up(make, monkeypatch):
    monkeypatch.setattr("ukbmm.training.techniques.memory_by_part", raise_short)
    learn = make(ExplainMemory())
    plant(learn, "the backward pass")
    with pytest.raises(BatchMemoryError, match="train.amp: bf16, or a narrower encoder") as raised:
        fit(learn, 1)
    assert "recompute" not in str(raised.value) and "..." not in str(raised.value)


def test_other_errors_pass_as_they_are_and_cancelling_works(make):
    learn = make(ExplainMemory())
    learn.loss_func = lambda *_: [][0]
    with pytest.raises(IndexError):
        fit(learn, 1)
    learn = fit(make(ExplainMemory(), patience=1), 3, 10.0)  # stopped by patience
    assert "_do_epoch" not in vars(learn)
    assert isinstance(MixedPrecision("bf16"), Callback)
