"""The shape of the package: no import climbs back up, no file is too long, and README's map is the territory."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlx_phi4"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 300  # lines of a module
MOST_AT_TOP = 14  # modules at the top level


def module(path: Path) -> str:
    """A file's name in imports; a package is its ``__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a file that run: those under ``if TYPE_CHECKING:`` do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", None) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from (other, *statements(other))
        else:
            yield from (child, *statements(child))


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports, also inside its functions."""
    package = path.parent.relative_to(ROOT).parts
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            # a submodule is imported itself, any other name from where it is taken
            found |= {inner if (inner := f"{source}.{alias.name}") in MODULES else source for alias in node.names}
    return found & MODULES.keys()


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in turn, the first one again at the end; empty if there are none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (visit(other, [*way, name]) for other in sorted(graph[name]))), [])
        done.add(name)
        return found

    return next(filter(None, (visit(name, []) for name in graph)), [])


def test_the_imports_are_found():
    assert {"mlx_phi4.model", "mlx_phi4.converter.first_use"} <= GRAPH["mlx_phi4.loading"]  # of modules
    assert "mlx_phi4.commands.cli" in GRAPH["mlx_phi4.commands.generate"]  # of a module from its package
    assert "mlx_phi4.loading" in GRAPH["mlx_phi4.commands.ranks"]  # inside a function
    assert "mlx_phi4.api" in GRAPH["mlx_phi4"] and "mlx_phi4.model" not in GRAPH["mlx_phi4.commands.chat"]  # types only


def test_no_module_imports_itself_by_way_of_others():
    assert not (found := circle(GRAPH)), " -> ".join(found)


def test_a_circle_would_be_found():
    assert circle({"a": {"b", "d"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_statements_that_tools_can_read():
    for path in FILES:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        named = {getattr(node, "id", getattr(node, "attr", None)) for node in nodes}
        assert named.isdisjoint({"import_module", "__import__"}), path


def test_modules_are_short_and_the_top_level_is_small():
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_TOP


def constants(path: Path) -> Iterator[tuple[str, str]]:
    """Names and values of a module's constants, values as they are spelled."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]
            for name, value in pairs:
                if isinstance(name, ast.Name) and name.id.isupper() and not name.id.startswith("_"):
                    yield name.id, ast.unparse(value)


def test_a_constant_means_the_same_wherever_its_name_is_used():
    known: dict[str, tuple[str, Path]] = {}
    for path in FILES:
        for name, value in constants(path):
            before, there = known.setdefault(name, (value, path))
            assert value == before, f"{name} is {before} in {there} and {value} in {path}"


def mapped() -> set[str]:
    """Files and folders, relative to the package, that the map in README names: the words that begin its lines."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Map of the code.*?```\n(.*?)```", text, re.DOTALL)
    found, folders = [], {}
    for line in block.splitlines():
        depth = len(line) - len(line.lstrip())
        above = "".join(name for indent, name in sorted(folders.items()) if indent < depth)
        for name in re.match(r"\s*((?:[\w.]+(?:\.py|/)(?:\s+|$))*)", line)[1].split():
            found.append(above + name)
            if name.endswith("/"):
                folders = {indent: other for indent, other in folders.items() if indent < depth} | {depth: name}
    assert len(found) == len(set(found))
    return {name.removeprefix("mlx_phi4/") for name in found if name.startswith("mlx_phi4/")} - {""}


def test_the_map_in_readme_names_every_module_and_nothing_else():
    there = {
        path.relative_to(PACKAGE).as_posix() for path in FILES if path.name != "__init__.py" or path.parent == PACKAGE
    }
    there |= {
        f"{path.relative_to(PACKAGE).as_posix()}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    assert mapped() == there | {"assets/"}
