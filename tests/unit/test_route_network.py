"""The network of one stitch in the terms of timm: its features, its head, another classifier."""

import copy

import pytest
import torch
from torch import nn

from stitchkit.errors import InputError
from stitchkit.model.snnet import SNNet
from stitchkit.networks.families import anchor_of
from stitchkit.routes import Stitch, StitchSpace
from tests.support import SPACES, family_snnet, mostly_full

QUICK = ["vit without final norm, all pairs", "headless vit", "headless, traced", "NHWC", "NCHW, batch norm"]
FAMILY = pytest.mark.parametrize("family", mostly_full(SPACES, quick=QUICK))


@FAMILY
@torch.no_grad()
def test_law_6_features_and_head_in_turn_are_the_stitch(family):
    model = family_snnet(family)
    x = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(5))
    for cfg_id in (0, model.space.ids[-1]):
        net = model.extract(cfg_id)
        features = net.forward_features(x)
        assert torch.equal(net.forward_head(features), model(x, cfg_id))
        assert net.num_features in features.shape[1:]
        if not model.num_classes:
            assert torch.equal(net.forward_head(features, pre_logits=True), model(x, cfg_id))


@FAMILY
@torch.no_grad()
def test_law_1_those_of_an_anchor_are_timms(family):
    model = family_snnet(family)
    x = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(5))
    for cfg_id, anchor in enumerate(model.views.values()):
        net, own = model.extract(cfg_id), anchor.model
        features = own.forward_features(x)
        assert torch.equal(net.forward_features(x), features)
        for pre_logits in (False, True):
            found = net.forward_head(features, pre_logits=pre_logits)
            assert torch.equal(found, own.forward_head(features, pre_logits=pre_logits))
        assert (net.num_features, net.num_classes) == (own.num_features, own.num_classes)


@FAMILY
@torch.no_grad()
def test_a_new_classifier_takes_the_place_of_the_old(family):
    model = family_snnet(family)
    x = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(5))
    net = model.extract(model.space.ids[-1])
    features = net.forward_features(x)
    pooled = net.forward_head(features, pre_logits=True)
    for number in (7, 0, 3):
        net.reset_classifier(number)
        assert net.num_classes == number
        assert torch.equal(net.forward_features(x), features)
        assert torch.equal(net(x), net.forward_head(features))
        assert net(x).shape == (2, number) if number else torch.equal(net(x), pooled)
    weights = {id(weight) for weight in net.parameters()}
    assert weights.isdisjoint(map(id, model.parameters())), "the SN-Net keeps its own"
    assert any(weight.shape[0] == 3 for name, weight in net.named_parameters() if name.startswith("head"))


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


class _Own(nn.Module):
    """A network of one's own, with a child of the most likely name."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(_Block(), _Block(), _Block())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward(self, x):
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


class _LikeTimm(_Own):
    """One with timm's methods, whose classifier is inside a sequence, as in MViTv2."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Sequential(nn.Dropout(), nn.Linear(8, 4))

    def forward_features(self, x):
        return self.norm(self.blocks(self.stem(x)))

    def forward_head(self, x, pre_logits=False):
        x = self.pool(x).flatten(1)
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def uncut(network):
    anchor = anchor_of(network.eval(), label="own", input_size=(3, 16, 16))
    return SNNet([anchor], StitchSpace({0: Stitch.parse("own[0:3]")}, {}, 1)).eval()


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_network_of_ones_own_gives_the_output_of_its_last_block():
    network = _Own()
    net = uncut(network).extract(0)
    features = net.forward_features(X)
    assert torch.equal(features, network.blocks(network.stem(X)))
    assert torch.equal(net.forward_head(features), network(X))
    assert torch.equal(net.forward_head(features, pre_logits=True), network.pool(features).flatten(1))
    assert (net.num_features, net.num_classes) == (8, 4)
    net.reset_classifier(7)
    assert net(X).shape == (2, 7)
    net.reset_classifier(0)
    assert torch.equal(net(X), network.pool(features).flatten(1))
    with pytest.raises(InputError, match="anchor 'own' has no classifier that could be replaced, and does not say"):
        net.reset_classifier(3)


@torch.no_grad()
def test_timms_methods_decide_wherever_they_are():
    network = _LikeTimm()
    net = uncut(network).extract(0)
    features = net.forward_features(X)
    assert torch.equal(features, network.forward_features(X))
    assert torch.equal(net.forward_head(features), network(X))
    assert torch.equal(net.forward_head(features, pre_logits=True), network.pool(features).flatten(1))
    assert {"head.part.norm.weight", "head.part.fc.1.weight"} <= net.state_dict().keys()


@torch.no_grad()
def test_a_head_that_ends_otherwise_has_no_pre_logits():
    class Scaled(_Own):
        def forward(self, x):
            return 2 * super().forward(x)

    net = uncut(Scaled()).extract(0)
    assert torch.equal(net.forward_head(net.forward_features(X)), net(X))
    with pytest.raises(InputError, match=r"anchor 'own' does not end in a classifier that is known.*num_classes=0"):
        net.forward_head(net.forward_features(X), pre_logits=True)


class _Features(_Own):
    def forward_features(self, x):
        return self.blocks(self.stem(x)).relu()

    def forward(self, x):
        return self.fc(self.pool(self.forward_features(x)).flatten(1))


class _More(_LikeTimm):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize("kind", [_Features, _More])
@torch.no_grad()
def test_others_with_such_methods_are_not_taken_for_timms(kind):
    """Without a `forward_head`, or with something behind it."""
    network = kind()
    net = uncut(network).extract(0)
    features = net.forward_features(X)
    assert torch.equal(features, network.blocks(network.stem(X)))
    assert torch.equal(net.forward_head(features), network(X))


@torch.no_grad()
def test_a_copy_has_its_own_head():
    net = family_snnet("vit").extract(3)
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 16, 16)
    twin.reset_classifier(7)
    assert (net(x).shape, twin(x).shape) == ((2, 4), (2, 7))
    for weight in twin.parameters():
        weight.zero_()
    assert not twin.forward_features(x).any()
    assert net.forward_features(x).any()
