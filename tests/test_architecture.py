"""The import rules that keep the house liveable (DESIGN: straight data flow)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "models", "services")
STAGES = ("capture", "detect", "track", "embed", "index", "search", "alert", "archive", "evaluate")
SHARED = ("types", "errors", "ports", "geometry")
PIPELINE_MAY = {"numpy", "scipy", "pipeline"}
HOMES = {  # one home per library
    "av": "services/adapters/pyav_capture.py",
    "faiss": "services/adapters/faiss_",
    "ultralytics": "models/ultralytics_detector.py",
    "faster_whisper": "models/speech.py",
    "typer": "services/cli",
    "kafka": "services/adapters/kafka_",
    "prometheus_client": "services/metrics.py",
    "opentelemetry": "services/tracing.py",
    "starlette": "services/api/",
    "uvicorn": "services/api/",
}
# The networks as torch trains them; what runs them (runtime.py, words.py) needs onnxruntime and numpy alone.
TORCH_ONLY = {f"models/detector_retriever/{name}.py" for name in ("base", "network", "losses", "conditioning", "export", "torch_runtime")}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def modules(package: str) -> Iterator[Path]:
    yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def imports_at_once(path: Path) -> Iterator[str]:
    """What importing the module imports: not what stands in functions or under TYPE_CHECKING."""
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            is_for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            waiting += node.orelse if is_for_types and isinstance(node, ast.If) else list(ast.iter_child_nodes(node))


def test_pipeline_imports_only_numpy_scipy_and_the_standard_library() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules("pipeline")
        for name in imports(path)
        if (top := name.split(".")[0]) not in PIPELINE_MAY and top not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_models_do_not_import_services() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}" for path in modules("models") for name in imports(path) if name.split(".")[0] == "services"
    ]
    assert wrong == []


def test_stages_do_not_import_each_other() -> None:
    wrong = []
    for path in modules("pipeline"):
        own = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "pipeline" and len(parts) > 1 and parts[1] in STAGES and own in STAGES and parts[1] != own:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_outside_library_has_one_home(library: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in modules(package)
        if any(name.split(".")[0] == library for name in imports(path))
    }
    strays = {user for user in users if not user.startswith(HOMES[library])}
    assert strays == set(), f"{library} belongs in {HOMES[library]}"


def test_no_module_is_called_utils() -> None:
    names = {path.stem for package in PACKAGES for path in modules(package)}
    assert names & FORBIDDEN_NAMES == set()


def test_only_wiring_and_the_adapters_themselves_import_adapters() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules("services")
        if path.parent.name != "adapters"
        and path.name not in ("wiring.py", "__main__.py")
        and not path.name.startswith(("bench_", "evaluate_"))
        for name in imports(path)
        if name.startswith("services.adapters")
    ]
    assert wrong == []


def test_torch_is_imported_by_its_networks_and_training_alone() -> None:
    """At module level; models/two_stage_peer.py, which measures torch, imports it when it is used."""
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in modules(package)
        for name in imports_at_once(path)
        if name.split(".")[0] in ("torch", "torchvision")
    }
    assert {user for user in users if not user.startswith("models/training/")} - TORCH_ONLY - {"models/two_stage_peer.py"} == set()
    assert users >= TORCH_ONLY, "a module that needs no torch any more is no exemption"


def test_importing_everything_touches_nothing(tmp_path: Path) -> None:
    """Nothing happens at import: no file, no connection, no environment; optional libraries are not needed."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in modules(package)
        if path.stem != "__main__" and "training" not in path.parts and str(path.relative_to(ROOT)) not in TORCH_ONLY
    ]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "bad = [m for m in ('torch', 'ultralytics', 'faster_whisper', 'transformers') if m in sys.modules]\nassert not bad, bad"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []
