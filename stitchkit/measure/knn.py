"""Classes of images by their nearest neighbours among labelled ones."""

from __future__ import annotations

import torch
from torch.nn import functional as F

NEIGHBOURS = 20
TEMPERATURE = 0.07
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
