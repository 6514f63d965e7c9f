"""Watching: what is written is what fastai recorded, what is measured is what passed, and a planted NaN is found where it was planted."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler  # noqa: F401, gives the learner fit_one_cycle

from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import MissingExtraError, UkbmmError, get_logger
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.training import watching
from ukbmm.training.divergence import DivergenceError, StopOnNaN, norm_by_part
from ukbmm.training.learner import fusion_learner
from ukbmm.training.watching import (
    TRACKERS,
    LearningCurve,
    Speed,
    TextProgress,
    Tracker,
    epoch_rows,
    flat_settings,
    plot_learning,
    trackers,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make(biobank, tmp_path):
    "Function from callbacks to a learner of phenotypes, blood and genotypes: 5 batches of 40 to train on."

    def learner(*cbs, patience=None, bs=40, **options):
        outcome = read_outcome(biobank, RegressionOutcome(field=30750))
        rows = np.flatnonzero(outcome.known)
        blocks = (PhenotypeBlock([31, 21003, 21001]), PhenotypeBlock([30690, 30760], name="blood"),
                  SNPBlock(every=2), OutcomeBlock(outcome))  # fmt: skip
        dls = MultiModalDataBlock(blocks).dataloaders(biobank, rows[:200], rows[200:280], bs=bs, device="cpu")
        learn = fusion_learner(dls, patience=patience, cbs=list(cbs), path=tmp_path, seed=2, **options)
        learn.remove_cb(learn.progress)
        return learn

    return learner


def fit(learn, epochs=3, lr=3e-3, **options):
    with learn.no_logging():
        learn.fit(epochs, lr, **options)
    return learn


def test_rows_of_epochs_are_those_of_fastais_own_csv(make, tmp_path):
    learn = fit(make(history=tmp_path / "history.csv"))
    written = pl.read_csv(tmp_path / "history.csv").drop("time").to_dicts()
    assert epoch_rows(learn) == [pytest.approx(row) for row in written]
    assert [row["epoch"] for row in epoch_rows(fit(make(), 5, start_epoch=2))][-1] == 4


class Keep(Tracker):
    "A tracker that keeps what it is given."

    def open(self):
        self.opened = self.run_id
        self.run_id = self.run_id or "first"
        return []

    def note(self, row, epoch):
        self.writer.append((epoch, dict(row)))

    def close(self):
        self.noted = self.writer


def test_a_tracker_is_given_what_the_recorder_has_the_rate_and_the_speed(make):
    keep = Keep()
    learn = fit(make(keep, Speed()))
    assert [epoch for epoch, _ in keep.noted] == [0, 1, 2]
    for (_, row), values in zip(keep.noted, learn.recorder.values, strict=True):
        assert [row[n] for n in ("train_loss", "valid_loss", "pearson_r")] == pytest.approx(list(values))
        assert row["lr"] == 3e-3 and row["samples_per_s"] > 0 and 0 <= row["waiting"] < 1


def test_a_tracker_opens_for_fits_alone_and_resumes_its_run(make):
    keep = Keep()
    learn = make(keep)
    with learn.no_logging():
        learn.validate()
        learn.lr_find(num_it=6, show_plot=False)
    assert not hasattr(keep, "noted")
    fit(learn, 1)
    assert (keep.opened, keep.run_id, len(keep.noted)) == (None, None, 1)
    keep.load_state_dict({"run_id": "before"})
    fit(learn, 1)
    assert keep.opened == "before"


def test_only_the_first_process_writes(make, monkeypatch):
    monkeypatch.setattr(watching, "rank_distrib", lambda: 1)
    keep = Keep()
    fit(make(keep), 1)
    assert not hasattr(keep, "noted")


def test_unknown_trackers_and_absent_packages_are_errors_with_a_remedy(monkeypatch, tmp_path):
    with pytest.raises(UkbmmError, match="Did you mean 'mlflow'"):
        trackers(["mlfow"], tmp_path)
    for name in TRACKERS.names():
        if name in ("tensorboard", "mlflow", "wandb"):
            monkeypatch.setitem(sys.modules, name, None)
            with pytest.raises(MissingExtraError, match=rf"ukbmm\[{name}\]"):
                trackers([name], tmp_path)


def test_settings_become_one_level_without_paths():
    nested = {
        "a": {"b": {"c": 1}, "file": "/home/somebody/x"},
        "kind": "gated",
        "on": True,
        "no": None,
        "many": (1, "x"),
    }
    assert flat_settings(nested) == {"a.b.c": 1, "kind": "gated", "on": True, "many": '[1, "x"]'}


SETTINGS = {"train": {"lr": 3e-3, "epochs": 3}, "fusion": "gated", "path": "/secret/place"}


def watched(make, name, tmp_path):
    "A fit with one tracker; its recorder's values."
    (tracker,) = trackers([name], tmp_path, "study", SETTINGS)
    learn = fit(make(tracker))
    return [list(values) for values in learn.recorder.values]


@pytest.fixture
def somebody(monkeypatch, tmp_path):
    "Somebody's account, in whose home the study is; and a machine with a name."
    for name in ("USER", "LOGNAME", "USERNAME", "LNAME"):
        monkeypatch.setenv(name, "somebody-special")
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-seven")
    monkeypatch.setattr("platform.node", lambda: "ward-seven")
    monkeypatch.chdir(tmp_path)


def machine_in(folder) -> list[str]:
    "What of this machine or its user stands in the name or the content of any file of a folder, or in where a link leads."
    real = os.uname().nodename
    words = ["somebody-special", "ward-seven", str(folder.parent), str(Path.home()) + os.sep, "/secret/place"]
    words += [real] if len(real) > 3 else []
    found = []
    for path in folder.rglob("*"):
        text = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_bytes().decode("latin1")  # fmt: skip
        found += [f"{word} in {path.name}" for word in words if word in path.name or word in text]
    return found


def test_tensorboard_holds_what_the_recorder_has(make, tmp_path, somebody):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = watched(make, "tensorboard", tmp_path)
    (tracker,) = trackers(["tensorboard"], tmp_path, "study")
    second = make(tracker)
    fit(second, 5, start_epoch=2)  # as if the first had been interrupted in its third epoch
    values = values[:2] + [list(row) for row in second.recorder.values[-3:]]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "study")).Reload()
    for i, name in enumerate(["train_loss", "valid_loss", "pearson_r"]):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [0, 1, 2, 3, 4]
        assert [s.value for s in scalars] == pytest.approx([row[i] for row in values], rel=1e-6)
    (said,) = events.Tensors("settings/text_summary")[:1]
    assert b"train.lr: 0.003" in said.tensor_proto.string_val[0]
    assert machine_in(tmp_path / "tensorboard") == []


def test_mlflow_holds_what_the_recorder_has(make, tmp_path, monkeypatch, somebody):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = watched(make, "mlflow", tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as base:
        for i, name in enumerate(["train_loss", "valid_loss", "pearson_r"]):
            found = base.execute(
                "select step, value from metrics where key = ? order by step", [name]
            ).fetchall()
            assert [step for step, _ in found] == [0, 1, 2]
            assert [value for _, value in found] == pytest.approx([row[i] for row in values])
        params = dict(base.execute("select key, value from params").fetchall())
        assert params == {"train.lr": "0.003", "train.epochs": "3", "fusion": "gated"}
        assert base.execute("select status, name from runs").fetchall() == [("FINISHED", "study")]
        assert {key for (key,) in base.execute("select key from tags")} <= {"mlflow.runName"}
    assert machine_in(tmp_path / "run") == []


def test_wandb_holds_what_the_recorder_has_and_nothing_of_the_machine(make, tmp_path, somebody):
    values = watched(make, "wandb", tmp_path / "run")
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    numbers = [f"{value:.9g}"[:8].encode() for row in values for value in row]  # are written as text, in full
    until = time.monotonic() + 60  # a process of its own writes, and may be late where many others run
    while not all(number in written.read_bytes() for number in numbers) and time.monotonic() < until:
        time.sleep(0.1)
    content = written.read_bytes()
    assert [number for number in numbers if number not in content] == []
    assert b"fusion" in content and b"train.lr" in content
    assert machine_in(tmp_path / "run") == []


def test_packages_of_trackers_are_told_to_send_nothing_before_they_are_imported(monkeypatch):
    "MLflow and W&B report how they are used to their makers, unless the environment forbids it."
    show = "import os, sys, ukbmm.training.watching as watching; assert 'mlflow' not in sys.modules; "
    show += "watching.trackers(['mlflow', 'wandb'], '.'); from mlflow.telemetry import get_telemetry_client as client; "
    show += "from wandb.env import error_reporting_enabled as reports; print(client(), reports())"
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", *watching.QUIET):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]


class Clock:
    "A clock that moves only when it is told to."

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_speed_counts_what_passes_between_batches_as_waiting(make, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watching.time, "perf_counter", clock)
    speed = Speed()
    learn = make(speed)

    class Work(Callback):
        order, run_valid = 99, False

        def after_pred(self):
            clock.now += 3.0

        def after_validate(self):
            clock.now += 1000.0

    reader = learn.dls.train._reader
    read = type(reader).__getitem__

    def slow(self, rows):
        clock.now += 1.0
        return read(self, rows)

    monkeypatch.setattr(type(reader), "__getitem__", slow)
    learn.add_cb(Work())
    fit(learn, 2)
    assert [(row["samples_per_s"], row["waiting"]) for row in speed.epochs] == [
        pytest.approx((10.0, 0.25))
    ] * 2
    assert all(0.01 < row["peak_gib"] < 200 for row in speed.epochs)
    assert fit(learn, 1) and len(speed.epochs) == 1  # a new fit, a new list


def lines(capsys, learn, epochs):
    "What a fit writes into the log."
    get_logger()
    capsys.readouterr()
    learn.fit(epochs, 3e-3)
    said = capsys.readouterr()
    assert said.out == ""  # fastai's table is not printed besides
    return said.err.splitlines()


def test_a_log_has_a_line_for_each_epoch_and_none_for_each_batch(make, capsys):
    learn = make(TextProgress(every=1e9))
    said = lines(capsys, learn, 3)
    rows = epoch_rows(learn)
    assert [line.split("; ")[0] for line in said] == [
        f"epoch {i + 1} of 3: train_loss {row['train_loss']:.4g}, valid_loss {row['valid_loss']:.4g}, pearson_r {row['pearson_r']:.4g}"
        for i, row in enumerate(rows)
    ]


def test_a_log_tells_how_much_is_left(make, capsys):
    said = lines(capsys, make(TextProgress(every=0.0)), 2)
    shares = [int(line.split(": ")[1].split("%")[0]) for line in said if line.startswith("training: ")]
    batches = 2 * (5 + 2)
    assert shares == [100 * i // batches for i in range(1, batches)]
    assert all("left" in line for line in said if line.startswith("training: "))


def test_progress_is_silent_when_logging_is_off_and_after_a_fit(make, capsys):
    learn = make(TextProgress(every=1e9))
    fit(learn, 1)
    learn.validate()
    assert capsys.readouterr().err == "" and learn.text_progress.ticks is None


def test_progress_and_history_write_side_by_side(make, tmp_path, capsys):
    learn = make(TextProgress(every=1e9), history=tmp_path / "history.csv")
    assert len(lines(capsys, learn, 2)) == 2
    assert pl.read_csv(tmp_path / "history.csv").height == 2


def test_the_curve_draws_what_was_recorded_and_is_replaced_whole(make, tmp_path):
    path = tmp_path / "curve.png"
    sizes = []
    after = type(
        "After", (Callback,), {"order": 80, "after_epoch": lambda self: sizes.append(path.stat().st_size)}
    )
    learn = fit(make(LearningCurve(path), after(), patience=9), 3)
    assert len(set(sizes)) == 3 and [p.name for p in tmp_path.glob("*curve*")] == ["curve.png"]
    axis = plot_learning(epoch_rows(learn), learn.best_weights.losses[0])
    train, valid, best = axis.lines
    assert list(valid.get_ydata()) == pytest.approx(learn.best_weights.losses, rel=1e-5)
    assert list(train.get_xdata()) == [1, 2, 3] and list(valid.get_xdata()) == [0, 1, 2, 3]
    assert best.get_ydata()[0] == min(valid.get_ydata())


class NaNGradient(torch.autograd.Function):
    "Gives what it is given, and NaN gradients."

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


def plant(learn, where):
    "Spoil one place of a network."
    model = learn.model
    if where.startswith("the output of encoder"):
        name = where.split("'")[1]
        model.encoders[name].register_forward_hook(lambda module, inputs, out: out * torch.nan)
    elif where == "the output of fusion":
        model.fusion.register_forward_hook(lambda module, inputs, out: out * torch.inf)
    elif where.startswith("the weights of encoder"):
        next(model.encoders[where.split("'")[1]].parameters()).data.view(-1)[0] = torch.nan
    elif where.startswith("the gradient of encoder"):
        encoder = model.encoders[where.split("'")[1]]
        encoder.register_forward_hook(lambda module, inputs, out: NaNGradient.apply(out))
    elif where.startswith("the input"):
        block = learn.dls.train.blocks[where.split("'")[1]]
        transform = block.transform
        block.transform = lambda raw: tuple(
            part * torch.inf if part.is_floating_point() else part for part in transform(raw)
        )
    else:
        loss = learn.loss_func
        learn.loss_func = lambda *args: loss(*args) * torch.nan


class Plant(Callback):
    "Spoil a place before a certain batch."

    order, run_valid = -5, False

    def __init__(self, where, epoch, batch):
        self.place = where, epoch, batch

    def before_batch(self):
        where, epoch, batch = self.place
        if (self.epoch, self.iter) == (epoch, batch):
            vars(self)["weights"] = {n: w.clone() for n, w in self.learn.model.named_parameters()}
            vars(self)["rows"] = self.learn.xb[0]["row"].tolist()
            plant(self.learn, where)


CULPRITS = [
    "the output of encoder 'phenotype'",
    "the output of encoder 'snps'",
    "the output of fusion",
    "the weights of encoder 'blood'",
    "the gradient of encoder 'snps'",
    "the loss alone",
]


@pytest.mark.parametrize("amp", ["no", "bf16"])
@pytest.mark.parametrize("culprit", CULPRITS)
def test_a_planted_nan_stops_the_fit_and_is_named(make, tmp_path, culprit, amp):
    planted = Plant(culprit, 1, 3)
    learn = make(planted, StopOnNaN(tmp_path / "run"), amp=amp)
    with pytest.raises(DivergenceError) as raised:
        fit(learn, 4)
    text = str(raised.value)
    assert (
        f"epoch 2, batch 4: {'a gradient is not finite' if 'gradient' in culprit else 'the loss is nan'}"
        in text
    )
    assert f"not so first in {culprit};" in text and "Lower the learning rate" in text
    kept = json.loads((tmp_path / "run" / "stopped_batch.json").read_text())
    assert kept["rows"] == planted.rows and (kept["epoch"], kept["batch"], kept["first"]) == (2, 4, culprit)
    assert set(kept) == {"epoch", "batch", "what", "first", "gradient_norms", "rows"}
    if "weights" not in culprit:  # no step was made with it
        assert all(torch.equal(planted.weights[n], w) for n, w in learn.model.named_parameters())


def test_an_infinite_input_is_named_and_a_missing_one_is_not(make, tmp_path):
    learn = make(StopOnNaN(tmp_path))
    plant(learn, "the input of modality 'blood'")
    with pytest.raises(DivergenceError, match="not so first in the input of modality 'blood'"):
        fit(learn, 1)
    assert any(
        part.isnan().any() for x, _ in make().dls.train for part in x["blood"]
    )  # missing values are there


def test_a_nan_while_validating_does_not_stop_training(make, tmp_path):
    learn = make(StopOnNaN(tmp_path))
    learn.dls.valid.outcome = learn.dls.train.outcome.copy()
    learn.dls.valid.outcome._values = learn.dls.train.outcome._values * torch.nan
    fit(learn, 2)
    assert not (tmp_path / "stopped_batch.json").exists()


class Losses(Callback):
    "Let losses be what a test has planned."

    order, run_valid = 0, False

    def __init__(self, plan):
        self.plan = plan

    def after_loss(self):
        self.learn.loss = self.learn.loss * 0 + self.plan[self.learn.train_iter]


@pytest.mark.parametrize(
    ("plan", "stopped"),
    [
        ([1.0] * 60, None),
        ([1.0] * 20 + [10.9] * 40, None),  # 1 + 10 * 1 = 11
        ([1.0] * 20 + [11.1] * 40, 40),
        ([1.0] * 30 + [1e3] * 30, 40),  # the last 20 batches must be there
        ([1.0] * 45 + [1e3] * 15, 46),  # then one is enough if it is bad enough: (19 + 1000) / 20 > 11
        ([0.01] * 20 + [9.0] * 40, None),  # below one, the rise counts as it is
        ([-5.0] * 20 + [44.0] * 40, None),  # a likelihood below zero: -5 + 10 * 5
        ([-5.0] * 20 + [46.0] * 40, 40),
        ([1e6] * 20 + [1e5] * 40, None),
    ],
)
def test_a_loss_that_rises_ten_times_stops_the_fit(make, tmp_path, plan, stopped):
    learn = make(Losses(plan), StopOnNaN(tmp_path))
    if stopped is None:
        fit(learn, 12)
        return
    epoch, batch = (stopped - 1) // 5 + 1, (stopped - 1) % 5 + 1
    with pytest.raises(DivergenceError, match=f"epoch {epoch}, batch {batch}: the loss has risen"):
        fit(learn, 12)


def test_losses_so_far_are_kept_by_a_checkpoint_and_forgotten_by_a_new_fit(make, tmp_path):
    plan = [1.0] * 25 + [50.0] * 35
    first = StopOnNaN(tmp_path)
    fit(make(Losses(plan), first), 4)
    resumed = StopOnNaN(tmp_path)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed.levels["first"] == [1.0] * 20 and resumed.levels == first.levels
    with pytest.raises(DivergenceError):
        fit(make(Losses([50.0] * 60), resumed), 12, start_epoch=4)
    fit(make(Losses([50.0] * 60), resumed), 12)


def test_watching_changes_no_number(make, tmp_path):
    plain = fit(make())
    seen = fit(make(StopOnNaN(tmp_path), Speed(), TextProgress(), LearningCurve(tmp_path / "x.svg"), Keep()))
    assert all(
        torch.equal(a, b) for a, b in zip(plain.model.parameters(), seen.model.parameters(), strict=True)
    )
    assert plain.recorder.values == seen.recorder.values


def test_norms_by_part_add_up_to_the_norm_of_all(make):
    learn = make()
    x, y = learn.dls.one_batch()
    (learn.model(x) - y).square().mean().backward()
    total = torch.nn.utils.clip_grad_norm_(learn.model.parameters(), 1e9)
    assert sum(norm**2 for norm in norm_by_part(learn.model).values()) ** 0.5 == pytest.approx(
        float(total), rel=1e-5
    )


def test_a_learner_stops_at_nan_unless_that_is_left_out(make, tmp_path):
    with pytest.raises(DivergenceError, match="epoch 1, batch .*finite"):
        fit(make(), lr=1e7)
    assert json.loads((tmp_path / "stopped_batch.json").read_text())["epoch"] == 1
    learn = make()
    learn.remove_cbs(StopOnNaN)
    fit(learn, lr=1e7)  # all epochs, as fastai does
    assert len(learn.recorder.values) == 3 and np.isnan(learn.recorder.values[-1][0])
    own = StopOnNaN(tmp_path / "own", times=3.0)
    assert [cb for cb in make(own).cbs if isinstance(cb, StopOnNaN)] == [own]
