"""The text of the project reads as a native engineer writes it: short, active, the noun first."""

import re
import subprocess

from tests.support import ROOT

CLAUSES = re.compile(r"\b(?:of|by|in|from|with|to|for|on|at|after|before|through) which\b", re.IGNORECASE)
PHRASES = re.compile(
    r"\bleave (?:it|them|one) out\b|\bgo(?:es)? on\b|\bcannot be had\b|\bmade anew\b|\b(?:is|are) told (?!apart)"
    r"|\bpassed over\b|\bnot at hand\b|\bfor want of\b|\bwhat came out\b|\bis to be\b|\ball alike\b",
    re.IGNORECASE,
)
ALLOWED = ("When torchrun is told to stop",)


def lines():
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        # The table of anchors quotes what timm says of its models.
        if not name.startswith("tests/") and name not in ("CHANGELOG.md", "docs/anchors.md"):
            for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
                yield f"{name}:{number}: {line.strip()}", line


def test_clauses_with_which_are_rare():
    shown = list(lines())
    clauses = [place for place, line in shown if CLAUSES.search(line)]
    assert len(clauses) <= 0.5 * len(shown) / 1000, "\n".join(clauses)


def test_no_text_has_a_phrase_of_the_old_dialect():
    phrases = [place for place, line in lines() if PHRASES.search(line) and not any(text in line for text in ALLOWED)]
    assert not phrases, "\n".join(phrases)
