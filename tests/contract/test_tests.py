"""How the tests are built: each module stands alone, and what several need is in a typed module beside them."""

from tests.source_code import imports
from tests.support import ROOT

TESTS = ROOT / "tests"


def test_no_test_module_imports_another_one():
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in TESTS.rglob("*.py")
        for module in imports(path)
        if module.startswith("tests.") and any(part.startswith("test_") for part in module.split("."))
    ]
    assert not found, "\n".join(found)
