"""Who may import whom: the rules of docs/contributing.md, checked on the source itself."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
# What does I/O, waits, or asks the machine; a core gets time and randomness as arguments.
IO_MODULES = frozenset(
    """
    socket asyncio trio aiohttp subprocess threading select selectors ssl http urllib requests time
    secrets os sys signal tempfile shutil mmap fcntl multiprocessing concurrent libp2p kademlia
    rpcudp pyroute2 llama_cpp click rich
    """.split()
)
# Parts of those that only compute; a bare package is what `from package.part import …` names too.
PURE_PARTS = ("urllib.parse", "kademlia.node", "kademlia.routing")
# These have to be cores; others become one by saying "A core" in their docstring.
REQUIRED_CORES = frozenset(
    """
    agent.errors agent.health agent.peers agent.endpoint agent.identity.keys
    agent.identity.addresses agent.membership.certificate agent.membership.ticket
    agent.membership.invites agent.membership.issuer agent.membership.join agent.discovery.seal
    agent.discovery.record agent.discovery.store agent.control.frames agent.overlay.device
    agent.overlay.reconcile agent.overlay.endpoints agent.engine.frames agent.engine.generation
    agent.engine.spec agent.placement.plan agent.deploy.messages agent.deploy.heads gateway.routing
    """.split()
)


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("agent", "gateway", "image"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(modules())


@cache
def tree(name: str) -> ast.Module:
    """Return a module's syntax; read when a test asks, since every worker collects this file."""
    return ast.parse(MODULES[name].read_text())


def imported(name: str) -> set[str]:
    """Return the dotted names that a module imports, wherever in it; not those for types alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            module = node.module or ""
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(name))
    return found


@cache
def imports() -> dict[str, set[str]]:
    return {name: imported(name) for name in MODULES}


@cache
def docstrings() -> dict[str, str]:
    return {name: ast.get_docstring(tree(name)) or "" for name in MODULES}


@cache
def cores() -> frozenset[str]:
    return REQUIRED_CORES | {name for name, text in docstrings().items() if "A core" in text}


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, text in docstrings().items() if not text] == []


def test_the_required_cores_exist() -> None:
    assert REQUIRED_CORES - MODULES.keys() == set()


def test_a_core_does_no_io() -> None:
    found = {(n, i) for n in cores() for i in imports()[n] if i.split(".")[0] in IO_MODULES}
    assert {(n, i) for n, i in found if not i.startswith(PURE_PARTS)} == set()


def test_a_core_gets_its_randomness_as_an_argument() -> None:
    """`random.Random` may be named as a type; the module's own functions may not be called."""
    for name in cores():
        nodes = list(ast.walk(tree(name)))
        if not any(isinstance(n, ast.Import) and n.names[0].name == "random" for n in nodes):
            continue
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "random" or node.attr == "Random", name


def test_a_core_imports_cores_only() -> None:
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    found = {(n, i) for n in cores() for i in imports()[n] if i in MODULES}
    assert {(n, i) for n, i in found if i not in cores() | packages} == set()


def test_the_gateway_imports_nothing_of_the_agent_but_its_client_and_the_page() -> None:
    found = {
        (name, i)
        for name, names in imports().items()
        if name.startswith("gateway")
        for i in names
        if i.split(".")[0] == "agent"
    }
    assert {i for _, i in found if not i.startswith(("agent.client", "agent.page"))} == set()
    assert len({name for name, i in found if i.startswith("agent.client")}) == 1


def test_the_page_imports_nothing_else_of_the_agent() -> None:
    """So the gateway does not either, by way of the page that both serve."""
    found = {i for name in MODULES if name.startswith("agent.page") for i in imports()[name]}
    assert {i for i in found if i.startswith("agent.") and not i.startswith("agent.page")} == set()


def test_the_image_imports_only_cores_of_the_agent() -> None:
    """What runs on the appliance beside the agent, and what builds it, load nothing heavy."""
    found = {
        i
        for name, names in imports().items()
        if name.startswith("image") and name != "image.node.agentstart"
        for i in names
        if i.startswith("agent") and i in MODULES
    }
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    # Made of the standard library alone, since it runs before anything is installed.
    builder = {"agent.engine.llama_build"}
    assert found - packages - cores() - builder == set()
    # It becomes the agent.
    assert {i for i in imports()["image.node.agentstart"] if i in MODULES} == {
        "agent.cli", "agent.cli.loading",
    }  # fmt: skip


def test_dependencies_point_one_way() -> None:
    """cli → daemon → services → core: nobody imports what is above it."""
    for name, names in imports().items():
        if name.startswith(("agent.cli", "agent.__main__", "agent.demo", "image.node.agentstart")):
            continue
        above = {i for i in names if i.startswith(("agent.cli", "agent.demo", "gateway"))}
        assert name.startswith("gateway") or above == set(), name
        if name != "agent.daemon":
            assert {i for i in names if i.startswith("agent.daemon")} == set(), name


def test_only_the_engine_process_loads_llama_cpp() -> None:
    """llama.cpp may crash, the agent may not: nothing that the daemon imports leads to it."""
    reached, waiting = set(), ["agent.daemon"]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        parents = {name.rpartition(".")[0]}
        waiting += [i for i in imports()[name] | parents if i in MODULES]
    loading = {name for name in reached if any(i.startswith("llama_cpp") for i in imports()[name])}
    assert loading == set()


def test_libp2p_is_imported_in_its_own_thread_only() -> None:
    """It takes 1–2 s and 70 MB, so only modules that are imported lazily name it."""
    users = {n for n, names in imports().items() if any(i.split(".")[0] == "libp2p" for i in names)}
    assert users
    assert all(name.startswith("agent.control.") for name in users)


def test_pyroute2_is_imported_in_part_only() -> None:
    """Whoever asks the package itself for something has all of it imported (agent/hollow.py)."""
    users = {n for n, names in imports().items() if any(i.startswith("pyroute2") for i in names)}
    assert users == {"agent.overlay.netlink"}


def test_no_wait_swallows_a_cancellation() -> None:
    """Python 3.11's wait_for loses a cancel that comes as its wait ends, and a stop then hangs.

    `asyncio.timeout` does not (cpython issue 86296).
    """
    users = {n for n, p in MODULES.items() if "asyncio.wait_for(" in p.read_text()}
    assert users == set()
