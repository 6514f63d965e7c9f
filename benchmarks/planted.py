"""People whose outcome is known to the last digit: effects of three modalities and of a product of two of them.

`y = 0.5 a + 0.4 b + 0.3 c + 0.6 a b + noise`, where a, b and c are standard normal and each is a direction in its
modality's numbers. Given any set of modalities, the best possible prediction is the sum of the terms that it knows,
since what is not known is independent of it and has mean zero. So the best R2 is known for every pattern of presence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ukbmm.data.batch import MultiModalBatch
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.heads import loss_for
from ukbmm.models.layers import FUSIONS
from ukbmm.models.multimodal import ModelSettings, MultiModalModel, build_head, hide_modalities
from ukbmm.models.tabular import TabularEncoder, TabularSettings

NAMES, EFFECTS, PRODUCT, NOISE = ("a", "b", "c"), (0.5, 0.4, 0.3), 0.6, 0.5
VARIANCE = sum(effect**2 for effect in EFFECTS) + PRODUCT**2 + NOISE**2


@dataclass
class People:
    "Invented people: numbers of each modality, who has which, the outcome, and the best prediction of it."

    x: MultiModalBatch
    y: Tensor  # float32 [batch, 1]
    best: Tensor  # float32 [batch, 1]: the expectation of y given what is present

    def __getitem__(self, rows: Tensor) -> "People":
        x = {name: tuple(part[rows] for part in value) if isinstance(value, tuple) else value[rows]
             for name, value in self.x.items()}  # fmt: skip
        return People(MultiModalBatch(x), self.y[rows], self.best[rows])

    def showing(self, present: Tensor) -> "People":
        "The same people, of whom no more than `present` is known."
        there = self.x["present"] & present
        return People(MultiModalBatch({**self.x, "present": there}), self.y, expected(self.x["causes"], there))


def expected(causes: Tensor, present: Tensor) -> Tensor:
    "The expectation of the outcome, given the causes that are present."
    known = torch.where(present, causes, 0.0)
    return (known @ torch.tensor(EFFECTS) + PRODUCT * known[:, 0] * known[:, 1])[:, None]


def draw(n: int, missing: float = 0.0, width: int = 4, seed: int = 0) -> People:
    "Invent people who lack each modality at random, but never all."
    chance = torch.Generator().manual_seed(seed)
    numbers = [torch.randn(n, width, generator=chance) for _ in NAMES]
    causes = torch.stack([part.sum(1) / width**0.5 for part in numbers], dim=1)
    lot = torch.rand(n, 3, generator=chance)
    present = (lot >= missing) | (lot == lot.amax(dim=1, keepdim=True))
    y = expected(causes, torch.ones_like(present)) + NOISE * torch.randn(n, 1, generator=chance)
    codes = torch.zeros(n, 0, dtype=torch.long)
    x = {name: (part, codes) for name, part in zip(NAMES, numbers, strict=True)}
    people = MultiModalBatch({**x, "present": present, "row": torch.arange(n)})
    return Causes(people, y, causes, present)
