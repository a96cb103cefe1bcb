"""The house as drawn in docs/architecture.md: which room may import which, and who may catch everything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "agenthelm"
MODULES = sorted(PACKAGE.rglob("*.py"))

BELOW = {
    "exceptions": set(),
    "telling": set(),
    "lazy": set(),
    "sqlite": set(),
    "copies": set(),
    "config": {"exceptions"},
    "_runtime": {"exceptions", "telling", "config"},
    "tracing": {"exceptions", "telling", "config", "lazy", "copies"},
    "core": {"_runtime", "tracing", "exceptions", "telling", "config", "lazy", "sqlite", "copies"},
    "memory": {"_runtime", "tracing", "exceptions", "telling", "config", "sqlite"},
    "agent": {"core", "memory", "_runtime", "tracing", "exceptions", "telling", "config", "lazy"},
    "orchestration": {
        "agent", "core", "memory", "_runtime", "tracing", "exceptions", "telling", "config", "lazy", "copies"
    },
    "testing": {"orchestration", "agent", "core", "memory", "_runtime", "tracing", "exceptions", "config", "lazy"},
    "cli": {"orchestration", "agent", "core", "memory", "_runtime", "tracing", "exceptions", "telling", "config"},
    "__main__": {"cli"},
}  # fmt: skip
"""Each room, and the rooms it may import."""

ONLY_IN = {
    "dspy": ("agent/", "testing/", "memory/embedders.py"),
    "opentelemetry": ("tracing/",),
    "redis": ("memory/",),
    "chromadb": ("memory/",),
    "asyncio": (),
    "trio": (),
    "sniffio": (),
}
"""Each outside library, and the only places that may import it."""

CATCH_ALL = {
    "copies:own": "a value that can't be copied is shared",
    "telling:_text": "somebody else's __str__",
    "orchestration.values:decode": "the form that is handed out instead is as good as before",
    "orchestration.values:encode": "what a value's own methods raise makes it opaque, by name",
    "orchestration.unwind:Unwinder._verdict.ask": "an answer that failed is no answer: the doubt stays",
    "_runtime.context:report": "an observer's failure is nobody's, and stops no undo",
    "_runtime.retry:asked_delay": "what can't be read of an error does not take its place",
    "_runtime.groups:in_child.body": "carries the error out of its task group, where it is raised bare",
    "_runtime.groups:beside": "as above",
    "_runtime.apart:_Apart._run": "carries the error out of its task, to whoever awaits it",
    "_runtime.groups:named.one": "keeps each task's error for the caller, who raises or returns it",
    "_runtime.workers:Outlasted.run": "carries the error out of its thread, to whoever asked for the call",
    "agent.metering:_Door._complete": "asks again, or `retry_after` raises it",
    "agent.metering:_Door.complete_async": "as above",
    "agent.metering:_Door.stream": "as above",
    "agent.metering:_AsyncDoor.stream": "as above",
    "agent.metering:Meter._close_half_read": "is nobody's, and said in the log",
    "agent.tool_loop:ToolLoop._observe": "what a tool raises is what the model sees; a stop is raised first",
    "cli._loop:_watched": "carries the error out of its task group, where it is raised bare",
    "cli._session:agent_names": "a shell that completes a word must not see a traceback",
    "core.approval:_required": "a predicate that can't say no says yes",
    "core.approval:_ask": "a handler that breaks has not said yes",
    "core.binding:own_copy": "the others are copied one by one",
    "core.process:reported": "carries the error out of its process",
    "core.process:_portable": "an error that does not pickle is told by a class that does",
    "core.binding:Binding.unfit": "a validator that breaks says nothing about the value; the call itself will",
    "core.executor:ToolExecutor.verify": "an answer that failed is no answer: the doubt stays, on record",
    "core.digest:digest": "what JSON can't hold is told apart in another way",
    "core.digest:_exact": "a value that fails when it is looked at is told by its repr",
    "core.digest:_shown": "a value without a repr is told by its identity",
    "core.digest:_apart": "as above",
    "memory.hub:MemoryHub.health.ask": "a store that breaks has not answered; what it raised is its state",
    "tracing.redaction:_Masking.named": "what somebody's hook can't handle is not shown",
    "tracing.redaction:_Masking.value": "a value that can't be shown must not fail the call it is recorded for",
    "tracing.site:Site.__enter__": "what a host's telemetry raises is logged, and costs no run its outcome",
    "tracing.site:Site.__exit__": "as above",
    "tracing.site:Site.set": "as above",
    "tracing.site:Site.fail": "as above",
    "tracing.site:_hex": "as above",
    "core.sensitive:carries_secret": "what can't be looked through may hold a secret",
    "orchestration.journal:ResultForm.of": "a result that can't be looked through is opaque, and its effect finished",
    "core.storage.writer:Writer._work": "handed to the task that waits for it",
    "core.storage.writer:Writer._results": "handed to the tasks that wait for it",
    "core.webhook:WebhookHandler.request_approval": "whatever a peer does, it has not said yes",
    "orchestration.unwind:Unwinder._undo": "one failed compensation never stops the others; it is stuck, by name",
}
"""Who catches ``Exception`` or more and does not raise: module:function -> why that hides nothing."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every module a file imports, wherever it does: under TYPE_CHECKING, inside functions, by name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node)}: imports are absolute"
            assert node.module is not None
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names if node.module == "agenthelm")
        elif isinstance(node, ast.Call) and _name(node.func).endswith("import_module"):
            yield from ((node, text.value) for text in node.args[:1] if isinstance(text, ast.Constant))


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_import_contracts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # It would silence every logger there is, also for the tests after this one.
    monkeypatch.setattr("logging.config.dictConfig", lambda settings: None)
    assert lint_imports(no_logo=True, no_cache=True) == 0


def test_arrows_point_down_also_under_type_checking_and_inside_functions() -> None:
    upward = [
        f"{where(path, node)}: {room(path)} imports {name}"
        for path in MODULES
        if path != PACKAGE / "__init__.py"
        for node, name in imports(path)
        if name.startswith("agenthelm.")
        and (target := name.split(".")[1]) in BELOW
        and target != room(path)
        and target not in BELOW[room(path)]
    ]
    assert upward == []


def test_every_room_is_on_the_picture() -> None:
    rooms = {room(path) for path in MODULES if path.parent != PACKAGE or path.name != "__init__.py"}
    assert rooms <= BELOW.keys()


def test_the_package_root_is_above_everything() -> None:
    importers = [
        where(path, node)
        for path in MODULES
        if room(path) not in ("cli", "testing", "__init__")
        for node, name in imports(path)
        if name == "agenthelm"
    ]
    assert importers == []


def test_outside_libraries_are_imported_only_where_they_are_at_home() -> None:
    strays = [
        f"{where(path, node)}: {name}"
        for path in MODULES
        for node, name in imports(path)
        if (library := name.split(".")[0]) in ONLY_IN
        and not str(path.relative_to(PACKAGE).as_posix()).startswith(ONLY_IN[library] or ("nowhere",))
    ]
    assert strays == []


def test_dspy_settings_are_never_changed_for_the_whole_process() -> None:
    calls = [
        where(path, node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and _name(node.func) in ("dspy.configure", "dspy.settings.configure")
    ]
    assert calls == []


def _catch_all(path: Path) -> Iterator[tuple[str, ast.ExceptHandler]]:
    """Handlers of everything in which nothing is raised, with the function they stand in."""

    def visit(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, ast.ExceptHandler]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if isinstance(child, ast.ExceptHandler) and _everything(child) and not _raises(child):
                module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
                yield f"{module}:{'.'.join(inside)}", child
            yield from visit(child, (*inside, child.name) if named else inside)

    yield from visit(ast.parse(path.read_text("utf-8")), ())


def _raises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def _everything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or _name(kind) in ("Exception", "BaseException") for kind in kinds)


def test_nobody_swallows_what_he_does_not_know() -> None:
    found = {name: where(path, handler) for path in MODULES for name, handler in _catch_all(path)}
    assert {name: place for name, place in found.items() if name not in CATCH_ALL} == {}
    assert [name for name in CATCH_ALL if name not in found] == []


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function, or in a part of one, but not in the functions inside it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _own(child)


def _yields(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in _own(node))


def _opens_a_span(item: ast.withitem) -> bool:
    called = item.context_expr.func if isinstance(item.context_expr, ast.Call) else item.context_expr
    name = _name(called)
    return name.startswith(("spans.", "tracer.")) or name.split(".")[-1] in (
        "Site", "attach", "prepared", "start_as_current_span", "use_span"
    )  # fmt: skip


def _held_open(source: str) -> Iterator[ast.AST]:
    """Spans that are in force while a function yields to whoever iterates it, or waits in its ``with`` block."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in _own(function):
                opened = isinstance(block, ast.With | ast.AsyncWith) and any(map(_opens_a_span, block.items))
                if opened and _yields(block):
                    yield block


def test_no_span_is_held_open_over_a_yield() -> None:
    """Between two events of a stream the caller's code runs, often in another context: it must not see our span."""
    assert [where(path, block) for path in MODULES for block in _held_open(path.read_text("utf-8"))] == []
    held = "async def stream(self):\n with spans.chat('m') as span:\n  async for event in self.events: yield event"
    assert len(list(_held_open(held))) == 1
    assert list(_held_open("with spans.chat('m'):\n def events(): yield 1")) == []


def test_the_old_name_is_gone() -> None:
    texts = [
        path
        for top in ("agenthelm", "tests", "docs", "examples")
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".md", ".toml") and path != Path(__file__).resolve()
    ]
    stale = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*texts, ROOT / "README.md", ROOT / "pyproject.toml"]
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if "nexus" in line.replace("NEXUS_TRACE", "").lower()
    ]
    assert stale == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []
