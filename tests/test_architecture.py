"""The house stands as it is drawn: floors, doors, sizes, no import circle even for types."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "gateway").rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}

# A module may import its own floor or a lower one. The longest matching prefix counts.
FLOORS = {
    "gateway.primitives": 1,
    "gateway.generation": 1,
    "gateway.modes": 1,
    "gateway.errors": 1,
    "gateway.clock": 1,
    "gateway.events": 2,
    "gateway.sse": 2,
    "gateway.tool_calls": 2,
    "gateway.assembly": 2,
    "gateway.stores": 2,
    "gateway.transport": 2,
    "gateway.detectors": 3,
    "gateway.providers": 3,
    "gateway.telemetry": 3,
    "gateway.policies": 4,
    "gateway.simulator": 4,
    "gateway.middleware": 5,
    "gateway.registry": 5,
    "gateway.server.options": 1,
    "gateway.config": 6,
    "gateway.config_tables": 6,
    "gateway.pipeline": 6,
    "gateway": 7,
    "gateway.openai_api": 7,
    "gateway.server": 8,
    "gateway.demo": 8,
    "gateway.check": 8,
    "gateway.simulate": 8,
    "gateway.plot": 8,
    "gateway.timeline": 8,
    "gateway.report": 7,
    "gateway.scenarios": 7,
    "gateway.faultlab": 8,
    "gateway.faultlab_cli": 9,
    "gateway.cli": 9,
    "gateway.keys_cli": 9,
    "gateway.__main__": 9,
}

# One door per library.
DOORS = {
    "httpx": {"gateway.transport.httpx"},
    "httptools": {"gateway.transport.http1", "gateway.server.connection"},
    "aiobreaker": {"gateway.policies.breaker"},
    "cachetools": {"gateway.stores.memory"},
    "structlog": {"gateway.telemetry.logs"},
    "redis": {"gateway.stores.valkey"},
    "sqlite3": {"gateway.stores.sqlite", "gateway.stores.shared_file"},
    "prometheus_client": {
        "gateway.telemetry.metrics",
        "gateway.telemetry.kept",
        "gateway.telemetry.worker_metrics",
    },
    "opentelemetry": {"gateway.telemetry.traces"},
    "xllamacpp": {"gateway.providers.llama_server"},
    "matplotlib": {"gateway.plot"},
    "typer": {"gateway.cli", "gateway.faultlab_cli", "gateway.keys_cli"},
    "torch": set(),
    "numpy": set(),
    "openai": set(),
    "training": set(),
}

# What `import gateway` must not cost.
HEAVY = ("httpx", "torch", "numpy", "structlog", "typer", "rich", "sqlite3", "matplotlib", "redis")

LONGEST = 380
LONGER = {"gateway.gateway": 500}  # the face: half of it says what its arguments mean
LONGEST_FUNCTION = 75


def imports(path: Path, *, lazily: bool = True) -> set[str]:
    """Every module a file imports; with `lazily`, inside functions and TYPE_CHECKING too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def ours(path: Path, *, lazily: bool = True) -> set[str]:
    return {name for name in imports(path, lazily=lazily) if name in MODULES}


def floor(module: str) -> int:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return FLOORS[module]


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_higher_floor(module: str) -> None:
    # The registry and the Gateway load optional parts lazily by name: that is what they are for.
    above = {name for name in ours(MODULES[module]) if floor(name) > floor(module)}
    assert not above, f"{module} (floor {floor(module)}) imports {above}"


def test_no_import_circle() -> None:
    # Lazy and type-only imports count: a reader meets them all the same.
    graph = {
        module: ours(path) - {module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    graph = {module: {name for name in names if name in graph} for module, names in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    allowed = DOORS[library]
    # Types of httpx may be named where they stand in our own signatures.
    if library == "httpx":
        users -= {"gateway.gateway"}
    assert users <= allowed, f"{library} is used outside its door by {users - allowed}"


def test_policies_never_await() -> None:
    for module, path in MODULES.items():
        if module.startswith(("gateway.policies", "gateway.primitives")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            waits = [n for n in ast.walk(tree) if isinstance(n, (ast.Await, ast.AsyncFunctionDef))]
            assert not waits, f"{module} awaits"
            assert "asyncio" not in imports(path), f"{module} imports asyncio"


TRAINING = sorted((ROOT / "training").rglob("*.py"))
# What training may take from the gateway: what decides, nothing that does I/O.
SHARED = (
    "gateway.clock",
    "gateway.detectors.failures",
    "gateway.policies",
    "gateway.primitives",
    "gateway.simulator",
    "gateway.telemetry.metrics",
)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_training_takes_from_the_gateway_only_what_decides(path: Path) -> None:
    taken = {name for name in imports(path) if name in MODULES and name != "gateway"}
    assert not {name for name in taken if not name.startswith(SHARED)}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_training_has_no_import_circle() -> None:
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in TRAINING
        if path.name != "__init__.py"
    }
    graph = {name: imports(path) & names.keys() - {name} for name, path in names.items()}
    TopologicalSorter(graph).prepare()


def test_importing_training_loads_no_torch() -> None:
    code = "import sys, training; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.strip() == "[]"


def test_primitives_import_nothing_of_ours() -> None:
    for module, path in MODULES.items():
        if module.startswith("gateway.primitives."):
            assert not {n for n in ours(path) if not n.startswith("gateway.primitives")}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_and_functions_stay_small(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= LONGER.get(module, LONGEST), f"{module} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_FUNCTION, f"{module}.{node.name} has {length} lines"


def test_the_face_is_complete() -> None:
    import gateway

    assert len(gateway.__all__) <= 30
    assert gateway.__all__ == sorted(gateway.__all__)
    assert all(hasattr(gateway, name) for name in gateway.__all__)


def test_import_gateway_is_light() -> None:
    code = "import sys, gateway; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert not loaded & set(HEAVY)
