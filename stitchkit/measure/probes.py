"""Classes of images by labelled ones: their nearest neighbours, or a linear classifier on their features."""

from __future__ import annotations

import torch
from torch.nn import functional as F

NEIGHBOURS = 20
TEMPERATURE = 0.07
STEPS = 100
_SIMILARITIES = 2**25  # numbers that may be held at a time: 128 MiB


def knn(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """The class of each query by a vote of its nearest neighbours in a bank `[N, C]`, weighted by similarity.

    Source: DINO (Caron et al., ICCV 2021), `eval_knn.py`: a neighbour's vote is exp(cosine / 0.07); 20 neighbours.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    count, classes, predictions = min(NEIGHBOURS, len(bank)), int(labels.max()) + 1, []
    for part in torch.split(queries, max(1, _SIMILARITIES // max(len(bank), classes))):
        nearest = (part @ bank.T).topk(count)
        votes = part.new_zeros(len(part), classes)
        votes.scatter_add_(1, labels[nearest.indices], (nearest.values / TEMPERATURE).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


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
