"""The package's imports, also those inside functions: they point down the list of its parts, and hold no circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1] / "src" / "ldae"
# From the bottom up: each part imports only from itself and from those before it.
ORDER = (
    "errors places stopping files shards remote options sections processes shared_work results checkpoints models "
    "schedulers data hub pipelines tokenizers evaluation reports extraction export training deconstruct demo verbs "
    "cli __main__"
).split()


def imported_names(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the dotted names of the modules, and of the names in modules, that a syntax tree imports when it runs."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) + 1 - node.level] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{source}.{alias.name}" for alias in node.names)
    elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from imported_names(child, package)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Each module's imports from the package, without `ldae` itself, its public face."""
    found = {}
    for path in ROOT.rglob("*.py"):
        *package, stem = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(package if stem == "__init__" else [*package, stem])
        found[name] = set(imported_names(ast.parse(path.read_text(encoding="utf-8")), package))
    modules = found.keys() - {"ldae"}
    return {
        name: {other if other in modules else other.rpartition(".")[0] for other in found[name]} & modules - {name}
        for name in modules
    }


def test_imports_hold_no_circle(imports):
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' <- '.join(error.args[1])}") from None


def test_imports_point_down(imports):
    def floor(module: str) -> int:
        part = module.split(".")[1]
        assert part in ORDER, f"{part} is a new part of the package; place it in ORDER"
        return ORDER.index(part)

    upward = [f"{name} -> {other}" for name in imports for other in imports[name] if floor(name) < floor(other)]
    assert not upward, sorted(upward)
