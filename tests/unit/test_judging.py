"""Features judged without a classifier, each judge against a plain reference."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stitchkit.measure.agreement import agreement
from stitchkit.measure.probes import knn, linear_probe


def clusters(count, seed, width=6, classes=5, spread=1.4):
    """Features around a centre for each class, of different scales, with their classes."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0)) * 1.5
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=random)
    x = centres[labels] + spread * torch.randn(count, width, generator=random)
    return x * torch.logspace(-2, 2, width) + 3, labels


def test_agreement_is_the_mean_cosine_and_the_cka_of_the_kernels():
    x, y = clusters(40, 1)[0], clusters(40, 2)[0]
    a, b = x.double().numpy(), y.double().numpy()
    cosines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(a, b, strict=True)]
    centre = np.eye(40) - 1 / 40
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    found = agreement(x, y)
    assert found.cosine == pytest.approx(100 * np.mean(cosines), rel=1e-5)
    assert found.cka == pytest.approx(100 * np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)), rel=1e-4)


def test_equal_features_agree_whatever_their_scale_and_opposed_ones_do_not():
    x = clusters(40, 1)[0]
    assert agreement(x, x) == pytest.approx((100, 100))
    assert agreement(x, 3 * x) == pytest.approx((100, 100))
    assert agreement(x, -x) == pytest.approx((-100, 100))
    assert agreement(x, x).cosine <= 100


@pytest.mark.parametrize("count", [300, 7])
def test_knn_is_the_vote_that_dino_counts(count, monkeypatch):
    monkeypatch.setattr("stitchkit.measure.probes._SIMILARITIES", 10 * count)  # queries in several portions
    (bank, labels), queries = clusters(count, 1), clusters(45, 2)[0]
    a, b = (x.double().numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (bank, queries))
    expected = []
    for query in b:
        similarities = a @ query
        votes = np.zeros(5)
        for place in np.argsort(-similarities)[:20]:
            votes[labels[place]] += np.exp(similarities[place] / 0.07)
        expected.append(int(votes.argmax()))
    assert len(set(expected)) > 2
    assert knn(bank, labels, queries).tolist() == expected


def test_the_linear_probe_is_the_logistic_regression_of_scikit_learn():
    (bank, labels), (queries, _) = clusters(200, 1), clusters(300, 2)
    bank = torch.cat([bank, torch.full((200, 1), 7.0)], 1)  # a channel that never varies
    queries = torch.cat([queries, torch.full((300, 1), 9.0)], 1)
    scale = StandardScaler().fit(bank[:, :-1])
    reference = LogisticRegression(max_iter=1000, tol=1e-8).fit(scale.transform(bank[:, :-1]), labels)
    expected = reference.predict(scale.transform(queries[:, :-1])).tolist()
    with torch.no_grad():
        found = linear_probe(bank, labels, queries).tolist()
    assert len(set(expected)) == 5
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1


def test_classes_may_be_missing_in_the_bank():
    bank, queries = torch.eye(3), torch.eye(3)
    labels = torch.tensor([4, 0, 2])
    assert linear_probe(bank, labels, queries).tolist() == [4, 0, 2]
    assert knn(bank, labels, queries).tolist() == [4, 0, 2]
    assert knn(bank[:1], labels[:1], queries).tolist() == [4, 4, 4]
