"""Make what the playbooks' tests need and can only be made with the network: roots and wheels.

`python tests/ansible/prepare.py`, before the sandbox that has no network; all of it is cached.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(REPOSITORY)]

import roots  # noqa: E402

from agent.engine import llama_build  # noqa: E402
from agent.errors import CoveyError  # noqa: E402
from image.make import wheels  # noqa: E402


def wheelhouse() -> Path:
    """Return a folder with wheels of all that Covey needs, llama.cpp's for this CPU.

    The machines have the Python that the appliance has, so they share its wheels.
    """
    requirements = REPOSITORY / "requirements"
    cache = roots.cached().parents[1]
    found = wheels.fetch(requirements / "runtime.txt", cache / "image")
    llama = llama_build.build(requirements / "llama.txt", cache, requirements / "build.txt")
    folder = roots.cached().parent / f"wheels-{found[0].parent.name}-{llama.parent.name}"
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in (*found, llama):
        (folder / wheel.name).unlink(missing_ok=True)
        (folder / wheel.name).symlink_to(wheel)
    return folder


def main() -> int:
    """Make all of it."""
    try:
        print(roots.make())
        print(wheelhouse())
    except roots.RootFault as fault:
        print(f"{fault}.", file=sys.stderr)
        return 1
    except CoveyError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
