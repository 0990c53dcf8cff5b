"""Print the floors of the package's import graph; fail on an upward arrow, a circle, or torch outside the reference.

Usage: ``python .ci/floors.py [PACKAGE_FOLDER]``. Every import counts: inside a function, and under ``TYPE_CHECKING``.
"""

import ast
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

PUBLIC = "__init__"  # how "" is shown
# From the top. A room may import from its own floor and from those below, and no two rooms may import each other.
# The longest prefix decides. "" is the package's `__init__`, the public names.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("command", "command_line"),
    ("",),
    ("report", "serving", "reference_run", "tuning"),
    ("runs",),
    ("algorithms",),
    ("agents", "imagination", "planning", "evaluation", "engine", "reference", "cuda"),
    ("model",),
    ("replay", "networks", "products", "renormalisation", "environments"),
    ("config",),
    ("bulk", "draws", "trees", "statistics", "packages", "strict_json", "simulators", "errors"),
)
# The only room that may import torch, and the modules outside it that may import torch or that room.
TORCH_ROOM = "reference"
TORCH_GUESTS = frozenset({"reference_run", "serving.export.torchscript"})
# (module, what it imports): arrows that break a rule today. One that has gone must be deleted here: the list only shrinks.
EXCEPTIONS: frozenset[tuple[str, str]] = frozenset()

Arrows = dict[str, set[str]]


def read(package: Path) -> tuple[Arrows, set[str]]:
    """Return what each module imports of the package, by dotted names below it, and the modules that import torch."""
    files = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    arrows: Arrows = {}
    torch = set()
    for module, path in files.items():
        names = set(imports(path, f"{package.name}.{module}".rstrip("."), path.name == "__init__.py"))
        if any(name == "torch" or name.startswith("torch.") for name in names):
            torch.add(module)
        inside = {name.removeprefix(package.name).lstrip(".") for name in names if f"{name}.".startswith(f"{package.name}.")}
        arrows[module] = {module_of(name, files) for name in inside} - {module}
    return arrows, torch


def name_of(path: Path, package: Path) -> str:
    """Return a file's dotted name below the package; a folder's for its `__init__.py`."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, module: str, is_package: bool) -> Iterable[str]:
    """Yield the absolute dotted name of everything that a file imports; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            yield from (".".join([*up, *filter(None, [node.module]), alias.name]) for alias in node.names)


def module_of(name: str, files: Iterable[str]) -> str:
    """Return the longest prefix of a dotted name that is a module; "" is the package."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    """Return the room of a module, the longest prefix in FLOORS; "?" where there is none."""
    rooms = [room for floor in FLOORS for room in floor]
    return max((room for room in rooms if room == module or (room and module.startswith(f"{room}."))), key=len, default="?")


def circles(arrows: Arrows) -> list[list[str]]:
    """Return the strongly connected components of two nodes or more (Tarjan 1972), each sorted."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(arrows.get(node, ())):
            if target not in order:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[-len(component) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return sorted(found)


def violations(arrows: Arrows, torch: set[str], exceptions: Collection[tuple[str, str]] = EXCEPTIONS) -> list[str]:
    """Return one sentence for each broken rule."""
    floor = {room: height for height, rooms in enumerate(reversed(FLOORS)) for room in rooms}
    rooms = {module: room_of(module) for module in arrows}
    found = [
        f"{module} has no floor: name its room in FLOORS of {Path(__file__).name}" for module in arrows if rooms[module] == "?"
    ]
    pairs = {(module, target) for module, targets in arrows.items() for target in targets}
    found += [f"{module} no longer imports {target}: delete the exception" for module, target in sorted({*exceptions} - pairs)]

    modules: Arrows = {}
    between: Arrows = {}
    for module, target in sorted(pairs.difference(exceptions)):
        room, below = rooms[module], rooms[target]
        modules.setdefault(module, set()).add(target)
        if room == below or "?" in (room, below):
            continue
        between.setdefault(room, set()).add(below)
        if floor[below] > floor[room]:
            found.append(f"{module or PUBLIC} imports {target or PUBLIC}, which is above it")
        if below == TORCH_ROOM and module not in TORCH_GUESTS:
            found.append(f"{module or PUBLIC} imports {target}, the PyTorch twin")
    found += [f"{module or PUBLIC} imports torch" for module in sorted(torch - TORCH_GUESTS) if rooms[module] != TORCH_ROOM]
    found += [f"modules import each other: {', '.join(name or PUBLIC for name in each)}" for each in circles(modules)]
    found += [f"rooms import each other: {', '.join(name or PUBLIC for name in each)}" for each in circles(between)]
    return found


def main(words: list[str]) -> int:
    """Print the floors and the violations; return the exit status."""
    package = Path(words[0]) if words else Path(__file__).parents[1] / "mbrl_jax"
    arrows, torch = read(package)
    for rooms in FLOORS:
        for room in rooms:
            modules = [module for module in arrows if room_of(module) == room]
            below = sorted({room_of(target) or PUBLIC for module in modules for target in arrows[module]} - {room})
            if modules:
                print(f"{room or PUBLIC:18} {len(modules):3} modules → {', '.join(below) or 'nothing'}")
        print()
    found = violations(arrows, torch)
    print("\n".join(found) or f"{sum(map(len, arrows.values()))} arrows, all downward; no circle.")
    for module, target in sorted(EXCEPTIONS):
        print(f"exception: {module} imports {target}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
