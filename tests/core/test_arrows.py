"""Who may import whom, read from the source: core <- algorithms, signals, ledger <- train <- integrations <- cli."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "dataflex"
TRAINING = {"core", "algorithms", "signals", "ledger", "train"}
MAY_IMPORT = {
    "core": {"core"},
    "algorithms": {"core", "algorithms"},
    "signals": {"core", "signals"},
    "ledger": {"core", "ledger"},
    "train": TRAINING,
    "integrations": {*TRAINING, "integrations"},
    "report": {"core", "ledger", "report"},
    "evaluate": {*TRAINING, "integrations", "evaluate"},
    "cli": {*TRAINING, "integrations", "report", "evaluate", "cli", "(top)"},
    "testing": {"core", "algorithms", "testing"},  # for other packages' tests; nothing of ours imports it
    "__main__": {"cli"},
    "configs": set(),
}
NUMPY_ONLY = {"core", "algorithms"}
# Libraries for what they do best, imported where a parameter asks for them, with the remedy where they are missing.
EXTRAS = {"dataflex.algorithms.neighbours": {"faiss"}, "dataflex.algorithms.select.s2l": {"sklearn"}}
HEAVY = ("torch", "transformers", "datasets")


def imports(tree: ast.Module, module: str, is_package: bool, *, eager_only: bool = False) -> Iterator[str]:
    """Every module that ``tree`` imports, absolute; ``from a import b`` gives ``a.b``."""
    parts = module.split(".")
    package = parts if is_package else parts[:-1]
    for node in eager_nodes(tree) if eager_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def eager_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not the bodies of functions, nor ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if lazy or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            continue
        yield node
        yield from eager_nodes(node)


def wrong_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the module ``dataflex.<package>...`` imports and may not, as sentences."""
    owner = module.split(".")[1]
    if owner not in MAY_IMPORT:
        return [f"{module}: the package {owner!r} has no place in MAY_IMPORT yet"]
    wrong = []
    for name in imports(ast.parse(source), module, is_package):
        root, _, rest = name.partition(".")
        if root == "dataflex":
            target = rest.split(".")[0]
            target = target if target in MAY_IMPORT else "(top)"
            if target not in MAY_IMPORT[owner] and rest != "__version__":
                wrong.append(f"{module} imports {name}: {owner} may not import {target}")
        elif owner in NUMPY_ONLY and root not in {"numpy", *sys.stdlib_module_names, *EXTRAS.get(module, ())}:
            wrong.append(f"{module} imports {name}: {owner} is numpy and the standard library only")
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_module_imports_upward_or_sideways():
    paths = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]
    assert len(paths) > 10
    wrong = [s for p in paths for s in wrong_arrows(p.read_text(), module_name(p), p.name == "__init__.py")]
    assert not wrong, "\n".join(wrong)


def test_the_top_level_imports_nothing_heavy_before_it_is_asked():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for name in imports(tree, "dataflex", True, eager_only=True):
        root, _, rest = name.partition(".")
        light = rest.split(".")[0] in NUMPY_ONLY if root == "dataflex" else root in {"numpy", *sys.stdlib_module_names}
        assert light, f"dataflex/__init__.py imports {name} eagerly; import it lazily"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dataflex.core.plan", "from dataflex.algorithms.base import State"),
        ("dataflex.core.plan", "def f():\n    import torch"),
        ("dataflex.core.plan", "import pandas as pd"),
        ("dataflex.core.plan", "from ..train import chain"),
        ("dataflex.core.plan", "from .. import ledger"),
        ("dataflex.core.plan", "from dataflex import DeltaLoss"),
        ("dataflex.algorithms.select.loss", "import dataflex.signals.loss"),
        ("dataflex.algorithms.select.loss", "from ...ledger import audit"),
        ("dataflex.signals.sweep", "from dataflex import ledger"),
        ("dataflex.ledger.audit", "from dataflex.algorithms.base import Selection"),
        ("dataflex.train.mixin", "import importlib\nimportlib.import_module('dataflex.integrations.hf')"),
        ("dataflex.train.mixin", "if True:\n    from dataflex.cli import main"),
        ("dataflex.integrations.trl", "from dataflex.cli.main import main"),
        ("dataflex.report.page", "from dataflex.train.curator import Curator"),
        ("dataflex.train.curator", "from dataflex.report import page"),
        ("dataflex.integrations.hf", "from dataflex.evaluate import judge"),
        ("dataflex.misc.helpers", "import os"),
    ],
)
def test_a_wrong_arrow_is_seen(module, source):
    assert wrong_arrows(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dataflex.core.plan", "import math\nimport numpy as np\nfrom dataflex.core.errors import ConfigError"),
        ("dataflex.algorithms.select.loss", "from ..base import State\nfrom dataflex.core.draw import draw"),
        (
            "dataflex.train.chain",
            "import torch\nfrom dataflex import ledger, signals\nfrom dataflex import __version__",
        ),
        ("dataflex.cli.main", "from dataflex.report.page import write\nfrom dataflex.evaluate import judge"),
    ],
)
def test_a_right_arrow_passes(module, source):
    assert wrong_arrows(source, module) == []


def test_core_and_the_catalog_load_without_torch_transformers_or_datasets():
    modules = [module_name(p) for p in sorted((PACKAGE / "core").rglob("*.py"))]
    modules += [module_name(p) for p in sorted((PACKAGE / "algorithms").rglob("*.py"))]
    assert "dataflex.algorithms.catalog" in modules
    code = f"import {', '.join(modules)}, sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
