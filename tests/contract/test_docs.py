"""The pages in docs/: their commands are commands, their files are there, their example builds."""

import re
import shlex

import pytest
import torch
import yaml

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import build_network
from stitchkit.cli import _parser
from tests.support import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def commands(page):
    """The lines in a page's shell blocks that begin with our command, also behind torchrun."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"^(?:torchrun .* -m )?stitchkit (.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_pages_have_the_flags_they_use(page):
    for arguments in commands(page):
        _, rest = _parser().parse_known_args(arguments)
        assert not rest, f"{page.name}: {arguments}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_are_there(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    for link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"
    for path in re.findall(r"\b(?:configs|results)/[\w/.-]+\.\w+", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_job_in_the_page_builds():
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/jobs.md").read_text(), re.DOTALL)
    assert block is not None
    config = JobConfig.parse(yaml.safe_load(block[1]))
    with torch.device("meta"):
        network = build_network(config.network, num_classes=10, pretrained=False)
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in trained} == {"parts.1", "head.linear"}
