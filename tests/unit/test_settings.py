"""Settings of training: each name reaches what it names, nothing asked for changes nothing, and what cannot work is refused early."""

import warnings

import numpy as np
import polars as pl
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from torch import nn

from ukbmm.cohort.outcomes import BinaryOutcome, RegressionOutcome, SeveralOutcome, read_outcome
from ukbmm.config import ConfigError, Document
from ukbmm.core import MissingExtraError, UkbmmError, get_logger
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training import settings as module
from ukbmm.training.callbacks import MixedPrecision
from ukbmm.training.learner import by_encoder, fusion_learner, predict_rows
from ukbmm.training.settings import TrainSettings, check_training, contradictions, learner_for
from ukbmm.training.techniques import EMA, SWA
from ukbmm.training.watching import TRACKERS, Tracker
from ukbmm.workflow.pipeline import TrainingPipeline
from ukbmm.workflow.run import Run
from ukbmm.workflow.spec import Spec, check_spec

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ModelSettings(fusion=FusionSettings(dim=8), hidden=8)
EVERYTHING = {"average": "ema", "ema_decay": 0.9, "freeze": {"blood": 1}, "lrs": {"snps": 1e-3}, "modulation": 0.3,
              "recompute": ["snps"], "accumulate": 2, "clip": 1.0}  # fmt: skip


@pytest.fixture
def loaders(biobank):
    "Function that makes loaders of phenotypes, blood and genotypes: 225 people to train on."

    def make(kind=None, bs=32):
        outcome = read_outcome(biobank, kind or RegressionOutcome(field=30750))
        rows = np.random.default_rng(0).permutation(np.flatnonzero(outcome.known))
        blocks = (PhenotypeBlock([31, 21003, 21001]), PhenotypeBlock([30690, 30760], name="blood"),
                  SNPBlock(every=2), OutcomeBlock(outcome))  # fmt: skip
        return MultiModalDataBlock(blocks).dataloaders(
            biobank, rows[:225], rows[225:300], bs=bs, seed=3, device="cpu"
        )

    return make


@pytest.fixture
def make(loaders, tmp_path):
    "Function from settings to a learner."

    def learner(dls=None, cbs=(), model=SMALL, **settings):
        return learner_for(
            TrainSettings(**settings), dls or loaders(), model, seed=1, folder=tmp_path, cbs=cbs
        )

    return learner


def quiet(learn, work=lambda learn: learn.fit_one_cycle(3)):
    with learn.no_bar(), learn.no_logging():
        work(learn)
    return learn


def weights(module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in module.state_dict().values()])


def test_nothing_asked_for_is_the_bare_learner_to_the_bit(make, loaders):
    watched, bare = quiet(make()), quiet(fusion_learner(loaders(), SMALL, seed=1))
    assert torch.equal(weights(watched.model), weights(bare.model))
    assert watched.best_weights.losses == bare.best_weights.losses
    other = quiet(make(lrs={"snps": 1e-4}))
    assert not torch.equal(weights(other.model), weights(bare.model))


def test_every_name_reaches_what_it_names(make):
    learn = make(
        **{**EVERYTHING, "amp": "bf16", "strict": True, "patience": 4, "weight_decay": 0.1, "lr": 2e-3}
    )
    assert learn.ema.decay == 0.9 and learn.frozen_encoders.frozen_for == {"blood": 1}
    assert learn.gradient_modulation.alpha == 0.3 and learn.recompute.encoders == ["snps"]
    assert learn.lr == [2e-3, 2e-3, 1e-3, 2e-3] and learn.wd == 0.1 and learn.splitter is by_encoder
    assert (learn.accumulate.batches, learn.clip.max_norm, learn.best_weights.patience) == (2, 1.0, 4)
    assert learn.mixed_precision.precision == "bf16" and hasattr(learn, "strict")
    assert make(average="swa", swa_start=0.5).swa.share == 0.5
    names = {type(cb) for cb in make().cbs}
    assert not names & {EMA, SWA}


def test_a_modality_has_its_own_rate_all_along_the_schedule(make):
    seen = []

    class Rates(Callback):
        run_valid = False

        def before_step(self):
            seen.append([group["lr"] for group in self.learn.opt.hypers])

    quiet(make(lrs={"snps": 3e-4}, lr=3e-3, cbs=[Rates()]))
    rates = np.array(seen)
    np.testing.assert_allclose(rates[:, 2] * 10, rates[:, 0])
    np.testing.assert_array_equal(rates[:, 0], rates[:, 3])
    assert rates[:, 0].max() == pytest.approx(3e-3, rel=1e-2) and rates[:, 0].min() < 1e-3


def test_contradictions_are_named_with_their_place():
    found = dict(contradictions(
        TrainSettings(lrs={"snp": 1e-3, "blood": 1e-3}, freeze={"blood": None, "x": 1}, recompute=["snps", "bloood"],
                      average="swa", epochs=3, modulation=0.1), ["blood", "snps"]))  # fmt: skip
    assert set(found) == {("lrs", "snp"), ("lrs", "blood"), ("freeze", "x"), ("recompute", 1), ("average",)}
    assert "'snps'" in found["lrs", "snp"] and "'blood'" in found["recompute", 1]
    assert "lower swa_start to 0.67" in found["average",]
    assert [place for place, _ in contradictions(TrainSettings(modulation=0.1), ["snps"])] == [
        ("modulation",)
    ]
    assert list(contradictions(TrainSettings(**EVERYTHING), ["blood", "snps"])) == []


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("start", [0.0, 0.5, 0.75, 0.9])
def test_swa_is_refused_just_where_it_would_average_nothing(make, epochs, start):
    refused = bool(
        list(contradictions(TrainSettings(average="swa", swa_start=start, epochs=epochs), ["snps"]))
    )
    assert refused == (not any(epoch >= start * epochs for epoch in range(epochs)))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"batch_size": 1}, "2 participants or more"),
        ({"trackers": ["tensorbord"]}, "tensorboard"),
        ({"freeze": {"snps": 0}}, "greater than or equal to 1"),
        ({"lrs": {"snps": 0.0}}, "greater than 0"),
        ({"modulation": 0.0}, "greater than 0"),
        ({"ema_decay": 1.0}, "less than 1"),
        ({"average": "mean"}, "ema"),
    ],
)
def test_settings_have_their_limits(wrong, match):
    with pytest.raises(ValueError, match=match):
        TrainSettings(**wrong)


def test_what_a_machine_lacks_is_refused_before_anything_is_built(make, monkeypatch):
    def absent(name, extra):
        raise MissingExtraError(f"the package {name!r}", "it to be installed", "none")

    monkeypatch.setattr("ukbmm.training.watching.require_extra", absent)
    with pytest.raises(MissingExtraError, match="mlflow"):
        make(trackers=["mlflow"])
    with pytest.raises(
        UkbmmError, match="train.average: swa, train.modulation, train.batch_size: auto: expected.*FSDP"
    ):
        check_training(TrainSettings(average="swa", modulation=0.2, batch_size="auto"), sharded=True)
    check_training(TrainSettings(freeze={"snps": 1}, lrs={"snps": 1.0}, recompute=["snps"]), sharded=True)
    with pytest.raises(UkbmmError, match="train.freeze.snp: .*Did you mean 'snps'"):
        make(freeze={"snp": 1})


def test_auto_takes_what_trains_well_and_less_where_memory_is_short(make, loaders):
    assert [module.wanted_batch_size(TrainSettings(batch_size="auto"), n) for n in (50, 12_800, 30_000, 10**6)] == [
        128, 128, 300, 4096,
    ]  # fmt: skip
    learn = make(batch_size="auto")
    assert (learn.dls.train.bs, learn.dls.valid.bs, len(learn.dls.train)) == (128, 128, 2)
    same = make(loaders(bs=128), batch_size=128)
    assert torch.equal(weights(quiet(learn).model), weights(quiet(same).model))  # nothing was left behind
    learn = make()

    def look(_, inputs):
        if len(inputs[0]) > 50:
            raise torch.OutOfMemoryError("out of memory")

    learn.model.head.register_forward_pre_hook(look)
    module.fit_batch_size(learn)
    assert 40 <= learn.dls.train.bs <= 50 and learn.dls.train.bs == learn.dls.valid.bs


# -- what a fastai user expects, with everything that settings can name


def test_a_fastai_user_finds_everything(make, loaders, tmp_path):
    import matplotlib.pyplot as plt

    learn = make(**EVERYTHING)
    learn.path = tmp_path
    before = weights(learn.model)
    quiet(learn, lambda learn: learn.lr_find(num_it=30, show_plot=False))
    assert torch.equal(weights(learn.model), before)
    quiet(learn, lambda learn: learn.fine_tune(2, 3e-3, freeze_epochs=1))
    assert len(learn.recorder.values) == 2
    learn.freeze_to(2)
    assert learn.opt.frozen_idx == 2
    learn.unfreeze()
    quiet(learn, lambda learn: learn.fit_one_cycle(1, slice(1e-4, 1e-3)))
    rates = [group["lr"] for group in learn.opt.hypers]
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(10) / 3, rtol=1e-3)
    predicted, target = quiet_preds(learn)
    np.testing.assert_allclose(
        learn.dls.outcome.decode(predicted.double().numpy()),
        predict_rows(learn, learn.dls.valid.rows),
        rtol=1e-4,
    )
    assert len(target) == 75
    with learn.no_bar(), learn.no_logging():
        learn.show_results(max_n=4)
    assert len(plt.gcf().axes[0].lines[0].get_xdata()) == 4
    plt.close("all")


def quiet_preds(learn):
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds()


def test_frozen_groups_of_fastai_are_modalities(make):
    moved = []

    class Moved(Callback):
        def before_train(self):
            self.before = {name: weights(part) for name, part in self.learn.model.encoders.items()}

        def after_train(self):
            encoders = self.learn.model.encoders.items()
            moved.append(
                [name for name, part in encoders if not torch.equal(weights(part), self.before[name])]
            )

    learn = make(cbs=[Moved(), module.Freeze()])
    for number in (0, 3, 2):
        learn.freeze_to(number)
        quiet(learn, lambda learn: learn.fit(1))
    assert moved == [["phenotype", "blood", "snps"], [], ["snps"]]


def test_an_export_with_everything_on_holds_nobody_and_predicts(make, loaders, tmp_path):
    dls = loaders()
    learn = quiet(make(dls, **EVERYTHING))
    learn.path = tmp_path
    expected = predict_rows(learn, dls.valid.rows)
    learn.export("export.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_learner(tmp_path / "export.pkl")
    assert lengths(loaded) & {225, 75, 300, 400} == set()  # trained on, validated with, both, all
    assert lengths(learn) >= {225, 75}  # or the search would find nothing at all
    loaded.dls = dls
    np.testing.assert_array_equal(predict_rows(loaded, dls.valid.rows), expected)


def lengths(learn) -> set[int]:
    "First lengths of all tensors and arrays that a learner holds."
    found = set()
    seen, waiting = set(), [learn]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor | np.ndarray):
            found.add(len(value) if value.ndim else 0)
        elif isinstance(value, dict):
            waiting += list(value.values())
        elif isinstance(value, list | tuple | set):
            waiting += list(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            waiting += list(vars(value).values())
    return found


# -- with other parts of the network


@pytest.mark.parametrize(
    "more", [{}, {"modulation": 0.4, "average": "swa", "swa_start": 0.0, "recompute": ["snps"]}]
)
def test_auxiliary_heads_and_techniques_go_with_several_outcomes(make, loaders, more):
    kind = SeveralOutcome(outcomes=[RegressionOutcome(field=30750), BinaryOutcome(field=30750, above=36)])
    model = ModelSettings(fusion=FusionSettings(dim=8, auxiliary=0.5), hidden=8)
    learn = make(loaders(kind), model=model, **more)
    start = learn.model.single.answer.weight.clone()
    quiet(learn, lambda learn: learn.fit(3, 3e-3))
    assert not torch.equal(learn.model.single.answer.weight, start)
    assert learn.recorder.values[-1][1] < learn.best_weights.losses[0]
    assert predict_rows(learn, learn.dls.valid.rows).shape == (75, 2)


def test_auxiliary_losses_of_several_outcomes_are_those_by_hand(make, loaders):
    "Each modality's two losses, weighted by the network's own variances, which learn nothing from them."
    kind = SeveralOutcome(outcomes=[RegressionOutcome(field=30750), BinaryOutcome(field=30750, above=36)])
    learn = make(loaders(kind), model=ModelSettings(fusion=FusionSettings(dim=8, auxiliary=0.5), hidden=8))
    x, y = learn.dls.one_batch()
    with torch.no_grad():
        learn.model.head.log_variance.copy_(torch.tensor([0.3, -0.2]))
    model = learn.model.train()
    pred = model(x).detach()
    answers = model.answers.detach().clone()
    expected = 0.0
    for i in range(3):
        there = x["present"][:, i : i + 1]
        first = torch.where(there, answers[:, i, :1], pred[:, :1])
        second = torch.where(there, answers[:, i, 1:2], pred[:, 1:2])
        losses = (
            nn.functional.mse_loss(first, y[:, :1]),
            nn.functional.binary_cross_entropy_with_logits(second, y[:, 1:]),
        )
        parts = [
            loss if part.factor is None else part.factor * torch.exp(-s) * loss + 0.5 * s
            for part, loss, s in zip(learn.loss_func.parts, losses, torch.tensor([0.3, -0.2]), strict=True)
        ]
        expected += sum(parts) / 3
    learn.xb, learn.yb, learn.pred, learn.loss_grad = (x,), (y,), pred, torch.zeros(())
    learn.training, learn.dl = True, learn.dls.train
    learn.auxiliary_loss.after_loss()
    assert float(learn.loss_grad.detach()) == pytest.approx(0.5 * float(expected), rel=1e-5)


def test_a_compiled_training_goes_with_every_technique(make):
    compiled, plain = (
        make(compile=compile, model=ModelSettings(fusion=FusionSettings(dim=8, dropout=0.0), hidden=8, dropout=0.0),
             **EVERYTHING) for compile in (True, False)
    )  # fmt: skip
    compiled.compile.options["backend"] = "aot_eager"
    for learn in (compiled, plain):
        for layer in learn.model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        quiet(learn, lambda learn: learn.fit_one_cycle(2))
    torch.testing.assert_close(weights(compiled.model), weights(plain.model), atol=1e-4, rtol=1e-3)


# -- in a run

STUDY = """\
version: 1
name: small
modalities:
  lifestyle: {kind: phenotype, fields: [31, 21003, 21001]}
  blood: {kind: phenotype, fields: [30690, 30760]}
  snps: {kind: snps, every: 2}
outcome: {kind: regression, field: 30750, name: HbA1c}
validation: {kind: holdout, inner: 2}
train: {networks: 2, epochs: 3, batch_size: 32, device: cpu}
baselines: [ridge]
evaluation: {draws: 100}
"""
ALL = ["train.average=ema", "train.freeze={blood: 1}", "train.lrs={snps: 0.001}", "train.modulation=0.3",
       "train.recompute=[snps]", "train.batch_size=auto", "train.amp=bf16"]  # fmt: skip


class Told(Tracker):
    "A tracker that keeps what it is told."

    runs: list = []

    def open(self):
        self.runs.append({"name": self.title, "folder": self.folder, "settings": self.given, "rows": []})
        return self.runs[-1]["rows"]

    def note(self, row, epoch):
        self.writer.append(dict(row))

    def close(self):
        self.writer.append("closed")


def test_a_run_with_everything_on_is_watched_and_recorded(biobank, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRACKERS.entries, "tensorboard", Told)
    monkeypatch.setattr("ukbmm.training.watching.require_extra", lambda *names: None)
    monkeypatch.setattr(Told, "runs", [])
    get_logger()
    spec = Spec.parse(STUDY, [*ALL, "train.trackers=[tensorboard]"])
    run = TrainingPipeline(spec, biobank, tmp_path).run()
    history = run.history()
    assert history["samples_per_s"].null_count() == 2 and (history["samples_per_s"].drop_nulls() > 1).all()
    people = (pl.col("seconds") * pl.col("samples_per_s")).round(
        3
    )  # the same in each epoch: seconds were measured
    assert (
        history.filter(pl.col("epoch") > 0).group_by("fold", "network").agg(people.n_unique())["seconds"] == 1
    ).all()
    assert history.filter(pl.col("epoch") > 0)["seconds"].n_unique() > 1
    assert (
        history["waiting"].drop_nulls().is_between(0, 1).all()
        and (history["peak_gib"].drop_nulls() > 0.01).all()
    )
    assert run.record["batch_size"] == 128
    assert [told["name"] for told in Told.runs] == [f"small-001-fold-00-network-{i}" for i in range(2)]
    for told in Told.runs:
        assert told["folder"] == run.path and told["rows"][-1] == "closed"
        assert [
            set(row) >= {"train_loss", "valid_loss", "lr", "samples_per_s"} for row in told["rows"][:-1]
        ] == [True] * 3
        assert told["settings"]["train.lrs.snps"] == 0.001 and str(tmp_path) not in str(told["settings"])
    said = capsys.readouterr()
    assert said.out == "" and "epoch" not in said.err  # a line for the fold, and none for its epochs


def test_a_run_with_everything_off_has_the_numbers_of_the_bare_learner(biobank, tmp_path):
    pipeline = TrainingPipeline(Spec.parse(STUDY), biobank, tmp_path)
    run = pipeline.run()
    assert "batch_size" not in run.record
    assert set(run.history().columns[-3:]) == {"samples_per_s", "waiting", "peak_gib"}


def test_the_batch_size_that_was_found_is_kept_when_a_run_goes_on(biobank, tmp_path, monkeypatch):
    asked = []

    def find(learn, limit):
        asked.append(limit)
        return 40 if len(asked) == 1 else 64

    monkeypatch.setattr(module, "find_batch_size", find)
    pipeline = TrainingPipeline(Spec.parse(STUDY, ["train.batch_size=auto"]), biobank, tmp_path)
    make = pipeline._learner

    class GiveUp(Callback):
        def after_batch(self):
            raise KeyboardInterrupt

    pipeline._learner = lambda *parts: make(*parts).add_cb(GiveUp())
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    assert Run.open(tmp_path / "small-001").record["batch_size"] == 40
    run = TrainingPipeline(Spec.parse(STUDY, ["train.batch_size=auto"]), biobank, tmp_path).run()
    assert run.path.name == "small-001" and run.record["batch_size"] == 40 and asked == [128]


def test_a_nan_ends_a_run_with_row_numbers_in_its_folder(biobank, tmp_path):
    pipeline = TrainingPipeline(Spec.parse(STUDY), biobank, tmp_path)
    make = pipeline._learner

    class Spoil(Callback):
        order = 7

        def after_backward(self):
            self.learn.loss = self.learn.loss * torch.nan

    pipeline._learner = lambda *parts: make(*parts).add_cb(Spoil())
    with pytest.raises(UkbmmError, match="the loss is nan"):
        pipeline.run()
    assert (tmp_path / "small-001" / "stopped_batch.json").is_file()


def test_short_memory_ends_a_run_with_an_encoder_and_a_remedy(biobank, tmp_path):
    pipeline = TrainingPipeline(Spec.parse(STUDY), biobank, tmp_path)
    make = pipeline._learner

    def short(*parts):
        raise torch.OutOfMemoryError("out of memory")

    def planted(*parts):
        learn = make(*parts)
        learn.model.encoders["snps"].register_forward_pre_hook(
            lambda module, inputs: short() if module.training else None
        )
        return learn

    pipeline._learner = planted
    with pytest.raises(UkbmmError, match=r"of 32 participants.*train.batch_size: auto.*train.recompute: \['"):
        pipeline.run()


def test_a_spec_that_names_what_is_not_there_is_refused_with_its_line(biobank):
    text = STUDY.replace("device: cpu", "device: cpu, freeze: {bloood: 1}, lrs: {snp: 0.1}, average: swa")
    with pytest.raises(ConfigError) as caught:
        Spec.parse(text)
    problems = {problem.path: problem for problem in caught.value.problems}
    assert set(problems) == {"train.freeze.bloood", "train.lrs.snp", "train.average"}
    assert all(problem.line == 9 for problem in problems.values())
    assert "Did you mean 'blood'?" in problems["train.freeze.bloood"].message


def test_a_tracker_that_is_not_installed_is_found_by_a_check_and_a_run_can_still_be_read(
    biobank, monkeypatch
):
    def absent(name, extra):
        raise MissingExtraError(
            f"the package {name!r}", "it to be installed", "none", f"pip install 'ukbmm[{extra}]'"
        )

    monkeypatch.setattr("ukbmm.training.watching.require_extra", absent)
    text = STUDY.replace("device: cpu", "device: cpu, trackers: [wandb]")
    (problem,) = check_spec(Document(text), biobank)
    assert problem.path == "train.trackers.0" and problem.line == 9 and "ukbmm[wandb]" in problem.message
    assert Spec.parse(text).train.trackers == ["wandb"]  # whoever reads a report needs no tracker


def test_tensorboard_has_a_run_for_each_network(biobank, tmp_path):
    pytest.importorskip("tensorboard")
    run = TrainingPipeline(Spec.parse(STUDY, [*ALL, "train.trackers=[tensorboard]"]), biobank, tmp_path).run()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for number in range(2):
        events = EventAccumulator(
            str(run.path / "tensorboard" / f"small-001-fold-00-network-{number}")
        ).Reload()
        own = run.history().filter((run.history()["network"] == number) & (run.history()["epoch"] > 0))
        np.testing.assert_allclose(
            [event.value for event in events.Scalars("train_loss")], own["train_loss"], rtol=1e-5
        )


def test_a_learner_freezes_by_encoder_from_the_start(loaders):
    learn = fusion_learner(loaders(), seed=0)
    learn.freeze()
    layers = [part for part in learn.model.encoders.modules() if isinstance(part, nn.Linear)]
    assert layers and not any(part.weight.requires_grad for part in layers)  # fastai trains norms on
    assert learn.model.head.net[-1].weight.requires_grad
    learn.unfreeze()
    assert any(part.weight.requires_grad for part in layers)


def test_fastais_switches_and_predict_do_what_they_say_or_refuse(loaders):
    learn = fusion_learner(loaders(), seed=0).to_bf16()
    assert [cb.precision for cb in learn.cbs if isinstance(cb, MixedPrecision)] == ["bf16"]
    assert not [cb for cb in learn.to_fp32().cbs if isinstance(cb, MixedPrecision)]
    with pytest.raises(UkbmmError, match="Use predict_rows"):
        learn.predict(3)
