"""The pages in docs/: their commands are commands, their files are there, their example builds."""

import re
from importlib.util import find_spec

import torch
import yaml

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import build_network
from stitchkit.cli import _parser
from stitchkit.model.snnet import SNNet
from tests.pages import commands
from tests.support import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "studies").rglob("*.md")])


def test_commands_in_pages_have_the_flags_they_use():
    """Also behind torchrun."""
    wrong = []
    for page in PAGES:
        for words in commands(page.read_text()):
            if words[0] in ("stitchkit", "torchrun"):
                given = words[words.index("stitchkit") + 1 :]
                _, rest = _parser(given[0]).parse_known_args(given)
                wrong += [f"{page.name}: {words}: {rest}"] if rest else []
            elif words[:2] == ["python", "-m"]:
                wrong += [] if find_spec(words[2]) else [f"{page}: {words}"]
    assert not wrong, "\n".join(wrong)


def test_pages_name_files_that_are_there():
    named = []
    for page in PAGES:
        text = page.read_text()
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        named += [page.parent / link for link in re.findall(r"\]\(([^)#]+)", prose) if "://" not in link]
        named += [ROOT / path for path in re.findall(r"(?<!\w/)\b(?:configs|results|studies)/[\w/.-]+\.\w+", text)]
    assert not [path for path in named if not path.exists()]


def test_links_into_pages_lead_to_a_heading():
    pages = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("stitching_*/README.md"), *ROOT.glob("results/*/README.md")]
    lost = []
    for page in pages:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for path, anchor in re.findall(r"\]\(([^)\s#]*)#([^)\s]+)\)", prose):
            target = page.parent / path if path else page
            if "://" not in path and target.suffix == ".md":
                lost += [] if anchor in headings(target.read_text()) else [f"{page.name}: {path}#{anchor}"]
    assert not lost


def headings(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in words}


def test_the_map_reaches_every_page_and_the_readme_is_one_page():
    index = (ROOT / "docs/index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")} - {"index.md"}
    assert not sorted(page for page in pages if f"({page}" not in index)
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_rule_of_ones_own_in_the_page_works(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rules.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) < 40
    found: dict[str, object] = {}
    with torch.no_grad():
        exec(code, found)
    logits, model = found["logits"], found["model"]
    assert isinstance(logits, torch.Tensor)
    assert isinstance(model, SNNet)
    x = torch.zeros(1, 3, 224, 224)
    stitch = model.space.find("deit_tiny_patch16_224[0:6] > deit_small_patch16_224[6:12]")
    assert torch.equal(logits, model.extract(stitch)(x))
    assert capsys.readouterr().out.count("\n") == len(model.space) == 7


def test_the_job_in_the_page_builds():
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/jobs.md").read_text(), re.DOTALL)
    assert block is not None
    config = JobConfig.parse(yaml.safe_load(block[1]))
    with torch.device("meta"):
        network = build_network(config.network, num_classes=10, pretrained=False)
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in trained} == {"parts.1", "head.linear"}


def test_the_job_of_several_tasks_in_the_page_builds():
    (block,) = [
        block
        for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/jobs.md").read_text(), re.DOTALL)
        if "  tasks:" in block
    ]
    config = JobConfig.parse(yaml.safe_load(block))
    size = (3, *config.train_config.resolved_tasks[0].data_preprocessing.size)
    with torch.device("meta"):
        wanted = config.wanted([10, 10, 1])
        network = build_network(config.network, num_classes=wanted, input_size=size, pretrained=False)
        found = [list(output.shape) for output in network(torch.zeros(2, *size))]
    assert found == [[2, 10], [2, 10, 8, 8], [2, 1, 8, 8]]
