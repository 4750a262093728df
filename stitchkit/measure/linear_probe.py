"""Classes of images by a linear classifier on their features."""

from __future__ import annotations

import torch
from torch.nn import functional as F

STEPS = 100


def linear_probe(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """The class of each query by a linear classifier trained on the bank.

    It is multinomial logistic regression on features standardised by the bank, with a penalty of half the weights'
    squared norm divided by N (scikit-learn's C = 1), fitted by at most 100 steps of L-BFGS from zeros.
    """
    mean, deviation = bank.mean(0), bank.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, deviation.max().clamp_min(1e-12))
    x = (bank - mean) / deviation
    weight = x.new_zeros(x.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = x.new_zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, labels) + weight.square().sum() / (2 * len(x))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return ((queries - mean) / deviation @ weight + bias).argmax(1)
