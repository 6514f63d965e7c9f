"""A training that is killed with SIGKILL, wherever that is, ends with the same bits when it is started again."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastcore.foundation import L
from processes import forked, in_a_process, status_of

from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import RunError
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training import checkpoint
from ukbmm.training.checkpoint import Checkpoint, random_state, set_random_state
from ukbmm.training.learner import fusion_learner

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ModelSettings(fusion=FusionSettings(dim=8), hidden=8, dropout=0.3)


class Witness(Callback):
    "Count what happens, and end the process where that was planned."

    order = 200

    def __init__(self, kill_at=None):
        self.kill_at, self.count = kill_at, 0

    def happened(self):
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    before_epoch = before_train = before_batch = after_pred = before_step = happened
    after_batch = after_train = after_epoch = happened

    def state_dict(self):
        return {}  # each start counts by itself

    def load_state_dict(self, state):
        pass


class Interrupted(Witness):
    "Give up where that was planned, as Ctrl-C does."

    def happened(self):
        self.count += 1
        if self.count == self.kill_at:
            raise KeyboardInterrupt

    before_epoch = before_train = before_batch = after_pred = before_step = happened
    after_batch = after_train = after_epoch = happened


@pytest.fixture(scope="module")
def loaders(biobank):
    "Function from the number of workers to loaders; what reads with polars is done before any fork."
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    rows = np.random.default_rng(0).permutation(np.flatnonzero(outcome.known))
    recipe = MultiModalDataBlock(
        (PhenotypeBlock([31, 21003, 21001, 30690, 30760]), SNPBlock(every=2), OutcomeBlock(outcome))
    )
    made = {
        workers: recipe.dataloaders(
            biobank, rows[:230], rows[230:300], bs=32, seed=3, num_workers=workers, device="cpu"
        )
        for workers in (0, 2)
    }
    for dls in made.values():
        dls.one_batch()
    return made


def anew(dls):
    "Loaders that have not given out anything."
    return type(dls)(dls.train.new(), dls.valid.new(), device="cpu")


def train(dls, folder: Path, cbs=(), every=3, fit=None, **settings):
    "Train with checkpoints; returns the learner."
    cbs = [*cbs, Checkpoint(folder / "checkpoints", every=every)]
    settings = {"seed": 5, "patience": 3, "history": folder / "history.csv", **settings}
    learn = fusion_learner(dls, SMALL, cbs=cbs, **settings)
    if hasattr(learn, "best_weights"):
        learn.best_weights.margin = 0.0  # any gain is kept: what is compared has been trained to the end
    with learn.no_bar(), learn.no_logging():
        fit(learn) if fit else learn.fit_one_cycle(4, 3e-3)
    return learn


def outcome_of(learn, folder: Path) -> dict:
    "Everything that a training ends with."
    lines = (folder / "history.csv").read_text().splitlines()
    keep = learn.best_weights
    return {
        "weights": learn.model.state_dict(),
        "optimizer": [{k: v for k, v in one.items()} for one in learn.opt.state_dict()["state"]],
        "losses": torch.stack(learn.recorder.losses),
        "rates": [float(lr) for lr in learn.recorder.lrs],
        "momenta": [float(mom) for mom in learn.recorder.hps["mom"]]
        if hasattr(learn.recorder, "hps")
        else [],
        "values": [list(one) for one in learn.recorder.values],
        "validation": keep.losses,
        "best": [keep.best_epoch, keep.best_loss],
        "history": [line.rsplit(",", 1)[0] for line in lines],  # but for the time it took
        "next numbers": [torch.rand(3), *np.random.rand(2).tolist()],
    }


def trained(dls, folder: Path, kill_at=None, **settings) -> int:
    "Train in a process, which writes what came out; returns its exit status."
    folder.mkdir(parents=True, exist_ok=True)

    def work():
        witness = Witness(kill_at)
        learn = train(dls, folder, [witness], **settings)
        torch.save(outcome_of(learn, folder), folder / "outcome.pt")
        (folder / "events.json").write_text(json.dumps(witness.count))

    return in_a_process(work)


def same(one, other) -> bool:
    "Are two outcomes the same, to the last bit?"
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def differences(folder: Path, reference: Path) -> list[str]:
    one, other = (torch.load(path / "outcome.pt") for path in (folder, reference))
    return [name for name in other if not same(one[name], other[name])]


def check_kills(dls, tmp_path: Path, kills: int, **settings) -> None:
    "Kill a training some times, each time somewhere in what is left, and compare with one that nobody killed."
    assert trained(dls, tmp_path / "whole", **settings) == 0
    events = json.loads((tmp_path / "whole" / "events.json").read_text())
    for point in np.random.default_rng(kills).choice(np.arange(1, events + 1), kills, replace=False):
        folder = tmp_path / f"killed-{point}"
        assert trained(dls, folder, int(point), **settings) == -signal.SIGKILL
        assert not (folder / "outcome.pt").exists()
        assert trained(dls, folder, **settings) == 0
        assert differences(folder, tmp_path / "whole") == [], f"killed at event {point} of {events}"
        assert len(Checkpoint(folder / "checkpoints").files()) == 3
        assert not list((folder / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize(
    ("workers", "settings"),
    [
        (0, {}),
        (2, {"every": 5}),
        (0, {"amp": "bf16", "accumulate": 3, "clip": 1.0, "every": 4}),
        (0, {"every": None, "fit": lambda learn: learn.fine_tune(3, 5e-3)}),
    ],
    ids=["plain", "workers", "bf16-accumulated", "fine-tune"],
)
def test_a_killed_training_ends_with_the_same_bits(loaders, tmp_path, workers, settings):
    check_kills(loaders[workers], tmp_path, 2, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_random_kills_of_ten_end_with_the_same_bits(loaders, tmp_path, workers):
    check_kills(loaders[workers], tmp_path, 10, amp="bf16", accumulate=2)


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bits(loaders, tmp_path):
    assert trained(loaders[0], tmp_path / "whole") == 0
    kills = 0
    while trained(loaders[0], tmp_path / "often", kill_at=60) == -signal.SIGKILL:
        kills += 1
        assert kills < 20
    assert kills > 2 and differences(tmp_path / "often", tmp_path / "whole") == []


class Noise(Callback):
    "A technique that draws from all generators."

    order = 1

    def after_pred(self):
        if self.learn.training:
            self.learn.pred = self.learn.pred * (1 + 0.1 * random.random() + 0.1 * np.random.rand())


class Stop(Callback):
    "Give up after some batches."

    def after_batch(self):
        if self.learn.training and self.learn.train_iter == 11:
            raise KeyboardInterrupt


def interrupted(dls, folder: Path) -> torch.Tensor:
    "The weights of a training that was interrupted and taken up when other things had been drawn."
    with pytest.raises(KeyboardInterrupt):
        train(dls, folder, [Noise(), Stop()])
    torch.rand(5), np.random.rand(5), random.random()
    return train(dls, folder, [Noise()]).model.state_dict()


@pytest.mark.parametrize("left_out", ["torch", "numpy", "python"])
def test_every_generator_is_needed(loaders, tmp_path, monkeypatch, left_out):
    def partly(state):
        set_random_state({**state, left_out: random_state()[left_out]})

    whole = train(anew(loaders[0]), tmp_path / "whole", [Noise()]).model.state_dict()
    assert same(whole, interrupted(anew(loaders[0]), tmp_path / "with"))
    monkeypatch.setattr(checkpoint, "set_random_state", partly)
    assert not same(whole, interrupted(anew(loaders[0]), tmp_path / "without"))


class Falling(Callback):
    "What people write: it counts, keeps a tensor and a list, and lowers the rate by what it has counted."

    order = 50

    def __init__(self):
        self.seen, self.mean, self.levels = 0, None, L()

    def before_fit(self):
        self.weights = [*self.learn.model.parameters(), *self.learn.model.state_dict().values()]

    def after_loss(self):
        if self.learn.training:
            loss = self.learn.loss.detach()
            self.mean = loss if self.mean is None else 0.9 * self.mean + 0.1 * loss
            self.seen += 1
            self.levels.append(float(self.mean))

    def before_step(self):
        self.learn.opt.hypers[-1]["lr"] = 1e-3 * float(self.mean) / (1 + len(self.levels))

    def after_epoch(self):
        for weight in self.weights:
            weight.data.mul_(0.999)


STATEFUL = {
    "early stopping": (lambda: EarlyStoppingCallback(patience=2), 2e-2),
    "plateau": (lambda: ReduceLROnPlateau(patience=1, factor=10), 5e-2),
    "best model": (lambda: SaveModelCallback(fname="best"), 5e-2),
    "accumulation": (lambda: GradientAccumulation(100), 8e-3),
    "a user's own": (Falling, 8e-3),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_callbacks_of_others_go_on_where_they_were(loaders, tmp_path, kind):
    make, lr = STATEFUL[kind]

    def go(folder, *cbs):
        settings = {"patience": None, "path": tmp_path / folder, "fit": lambda learn: learn.fit(7, lr)}
        return train(loaders[0], tmp_path / folder, [make(), *cbs], every=1, **settings)

    whole = go("whole")
    for kill_at in (100, 9, 10):  # events: an epoch has 45 at most
        with pytest.raises(KeyboardInterrupt):
            go("often", Interrupted(kill_at))
    again = go("often")
    assert same(again.model.state_dict(), whole.model.state_dict())
    assert same([list(one) for one in again.recorder.values], [list(one) for one in whole.recorder.values])


def test_a_callback_is_made_as_it_is_made_now_and_goes_on_with_what_it_had_counted(loaders, tmp_path):
    class Count(Callback):
        def __init__(self, title):
            self.title, self.batches, self.labels = title, 0, {"kept": [1, 2]}

        def after_batch(self):
            self.batches += self.learn.training

    with pytest.raises(KeyboardInterrupt):
        train(loaders[0], tmp_path, [Count("before"), Stop()])
    now = Count("after")
    train(loaders[0], tmp_path, [now])
    assert (now.title, now.batches) == ("after", 4 * len(loaders[0].train))
    state = torch.load(Checkpoint(tmp_path / "checkpoints").files()[-1], weights_only=True)
    assert set(state["observed"]["count 0"]) == {"batches"}


@pytest.mark.parametrize("what", [object(), {1}, np.zeros(3), torch.nn.Linear(1, 1)])
def test_a_callback_whose_state_cannot_be_kept_is_refused_by_name(loaders, tmp_path, what):
    class Odd(Callback):
        def before_fit(self):
            self.thing = what

    with pytest.raises(RunError, match="callback 'odd', its 'thing'.*found .*state_dict and load_state_dict"):
        train(loaders[0], tmp_path, [Odd()])
    with pytest.raises(RunError, match="'csv_logger', its 'file'.*found TextIOWrapper"):
        train(loaders[0], tmp_path, [CSVLogger(tmp_path / "log.csv")])
    assert not (tmp_path / "checkpoints").exists()


def test_sigterm_writes_a_checkpoint_and_ends_with_143(loaders, tmp_path):
    class Warned(Callback):
        order = 5

        def after_pred(self):
            if self.learn.training and self.learn.epoch == 1 and self.learn.iter == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    def work():
        train(loaders[0], tmp_path / "warned", [Warned()], every=None)

    (tmp_path / "warned").mkdir()
    assert trained(loaders[0], tmp_path / "whole", every=None) == 0
    assert in_a_process(work) == 143
    last = Checkpoint(tmp_path / "warned" / "checkpoints").newest()
    assert (last["place"]["epoch"], last["place"]["batch"]) == (1, 5)  # the step it was at was finished
    assert trained(loaders[0], tmp_path / "warned", every=None) == 0
    assert differences(tmp_path / "warned", tmp_path / "whole") == []


def test_the_handler_of_sigterm_is_put_back(loaders, tmp_path):
    def mine(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        train(loaders[0], tmp_path)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_is_killed_from_outside_while_it_writes(loaders, tmp_path):
    assert trained(loaders[0], tmp_path / "whole", every=1) == 0
    folder, chance = tmp_path / "killed", np.random.default_rng(1)
    folder.mkdir()

    def work():
        train(loaders[0], folder, every=1)

    for _ in range(3):
        process = forked(work)
        time.sleep(0.2 + chance.random())
        os.kill(process, signal.SIGKILL)
        status_of(process)
    assert trained(loaders[0], folder, every=1) == 0
    assert differences(folder, tmp_path / "whole") == []


def test_all_damaged_means_from_the_beginning_and_is_said(loaders, tmp_path, caplog):
    assert trained(loaders[0], tmp_path / "whole") == 0
    assert trained(loaders[0], tmp_path / "killed", 150) == -signal.SIGKILL
    files = Checkpoint(tmp_path / "killed" / "checkpoints").files()
    for path in files:
        path.write_bytes(path.read_bytes()[:-100])
    assert trained(loaders[0], tmp_path / "killed") == 0
    assert differences(tmp_path / "killed", tmp_path / "whole") == []
    assert {path.stem for path in files} == {
        p.stem for p in (tmp_path / "killed" / "checkpoints").glob("*.damaged")
    }


@pytest.mark.parametrize(
    ("other", "what"),
    [({"seed": 6}, "plan"), ({"wd": 0.5}, "plan"), ({"accumulate": 2}, "plan"), ({"patience": None}, "plan")],
)
def test_a_checkpoint_of_another_training_is_refused(loaders, tmp_path, other, what):
    train(loaders[0], tmp_path)
    with pytest.raises(RunError, match=f"another {what}.*Choose another folder"):
        train(loaders[0], tmp_path, **other)


def test_a_checkpoint_of_other_people_or_another_network_is_refused(loaders, tmp_path):
    dls = loaders[0]
    train(dls, tmp_path)
    rows = dls.train.rows
    try:
        dls.train.rows = rows[::-1].copy()
        with pytest.raises(RunError, match="another participants"):
            train(dls, tmp_path)
    finally:
        dls.train.rows = rows
    learn = fusion_learner(dls, seed=5, patience=3, cbs=[Checkpoint(tmp_path / "checkpoints", every=3)])
    with learn.no_bar(), learn.no_logging(), pytest.raises(RunError, match="another network"):
        learn.fit_one_cycle(4, 8e-3)


def test_a_search_for_a_learning_rate_leaves_checkpoints_alone(loaders, tmp_path):
    learn = fusion_learner(
        loaders[0], SMALL, seed=5, cbs=[Checkpoint(tmp_path / "checkpoints")], path=tmp_path
    )
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=10, show_plot=False)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_is_read_without_running_code(loaders, tmp_path):
    train(loaders[0], tmp_path)
    state = torch.load(Checkpoint(tmp_path / "checkpoints").files()[-1], weights_only=True)
    assert state["place"]["epoch"] == 3 and len(state["random"]) == 1
