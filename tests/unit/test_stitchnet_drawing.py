"""Drawings of composed networks: no text leaves its box or the picture, whatever the names and joints."""

import re
import string
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from PIL import ImageFont

from stitchnet.drawing import Text, draw
from stitchnet.net import FragmentSummary

SVG = "{http://www.w3.org/2000/svg}"
FONTS = {"normal": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}
LONG = "vit_base_patch16_clip_quickgelu_224"
KEPT = "14 × 14 to 28 × 28, tokens to images, own map 768 × 768 × 2048"


def font(weight, size):
    """The font that browsers on Linux take for sans-serif, wider than those of other systems."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{FONTS[weight]}", size)


def step(network, index=0, joint=""):
    return FragmentSummary(network, index, 14, 0.9, joint, (768, 14, 14), 115_000_000, 32_800_000)


def right_edge(text):
    """Where a text of a drawing ends."""
    words = font(text.get("font-weight"), int(text.get("font-size"))).getlength(text.text)
    return float(text.get("x")) + words


def boxes(drawing):
    """Left and right edge of each box, and the three texts in it."""
    parts = list(drawing)
    for place, part in enumerate(parts):
        if part.tag == f"{SVG}rect" and part.get("x"):
            left = float(part.get("x"))
            yield left, left + float(part.get("width")), parts[place + 1 : place + 4]


STEPS = {
    "a long name": [step(LONG), step(LONG, 1, KEPT)],
    "a kept joint in the last column": [step("a"), step("b", 1, KEPT), step("b", 2, KEPT)],
    "capitals": [step("W" * 40), step("M" * 50, 1)],
    "other letters": [step("сеть_网络" * 6), step("b", 1)],
    "there and back": [step("a"), step(LONG, 1, KEPT), step("a", 2, KEPT)],
    "short": [step("a"), step("b", 1)],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_no_text_leaves_its_box_or_the_picture(steps):
    drawing = ET.fromstring(draw(steps, (3, 224, 224), 0.66))
    for text in drawing.iter(f"{SVG}text"):
        assert right_edge(text) <= float(drawing.get("width")), text.text
    found = list(boxes(drawing))
    assert len(found) == len(steps)
    for left, right, texts in found:
        assert right <= float(drawing.get("width"))
        for text in texts:
            assert left < float(text.get("x")) < right_edge(text) <= right, text.text


def test_boxes_of_short_names_keep_their_width():
    drawing = ET.fromstring(draw(STEPS["short"], (3, 224, 224), 0.66))
    assert [right - left for left, right, _ in boxes(drawing)] == [250, 250]
    assert drawing.get("width") == "572"


def test_no_label_lies_on_its_arrow():
    drawing = ET.fromstring(draw(STEPS["there and back"], (3, 224, 224), 0.66))
    arrows = [[float(line.get(key)) for key in ("x1", "y1", "x2", "y2")] for line in drawing.iter(f"{SVG}line")]
    labels = [text for text in drawing.iter(f"{SVG}text") if re.match("score", text.text)]
    assert len(arrows) == len(labels) == 2
    for (x1, y1, x2, y2), label in zip(arrows, labels, strict=True):
        top, bottom = float(label.get("y")) - int(label.get("font-size")), float(label.get("y"))
        for x in (float(label.get("x")), min(right_edge(label), max(x1, x2))):
            y = y1 + (y2 - y1) * (x - x1) / (x2 - x1)
            assert not top < y < bottom
        assert y1 < top < bottom < y2


@pytest.mark.parametrize("weight", FONTS)
def test_no_character_is_wider_than_it_is_taken_for(weight):
    for char in string.printable.strip() + " ×äßя":
        assert font(weight, 1000).getlength(char) <= Text(0, 0, char, size=1000, weight=weight).right, char


def test_fragments_are_counted_as_in_names():
    texts = [
        text.text for text in ET.fromstring(draw([step("a"), step("b", 13)], (3, 224, 224), 0.5)).iter(f"{SVG}text")
    ]
    assert [text for text in texts if "of 14" in text] == ["a[0] of 14 fragments", "b[13] of 14 fragments"]
    assert texts[0] == "2 fragments of 2 networks, score 0.500"
    assert "1 fragment of 1 network, score" in draw([step("a")], (3, 224, 224), 0.5)
