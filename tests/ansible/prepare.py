"""Make what the playbooks' tests need and can only be made with the network: roots and wheels.

`python tests/ansible/prepare.py`, before the sandbox that has no network; all of it is cached.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(REPOSITORY)]

import compiled  # noqa: E402
import roots  # noqa: E402

from agent.engine import llama_build  # noqa: E402
from agent.errors import CoveyError  # noqa: E402
from image.make import wheels  # noqa: E402


def wheelhouse() -> Path:
    """Return a folder with wheels of all that Covey needs, llama.cpp's for this CPU.

    Machines with Debian 12 have the Python that the appliance has, so they share its wheels; those
    with Debian 13 have their own Python's.
    """
    requirements = REPOSITORY / "requirements"
    runtime = requirements / "runtime.txt"
    cache = roots.cached().parents[1]
    found = wheels.fetch(runtime, cache / "image")
    llama = llama_build.build(requirements / "llama.txt", cache, requirements / "build.txt")
    digest = hashlib.sha256(runtime.read_bytes()).hexdigest()[:16]
    newer = cache / "ansible" / f"wheels-{roots.TRIXIE.name}-{digest}"
    if not newer.exists():
        compiled.wheels(roots.TRIXIE, runtime, newer)
    folder = roots.cached().parent / f"wheels-{digest}-{llama.parent.name}"
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in (*newer.glob("*.whl"), *found, llama):
        (folder / wheel.name).unlink(missing_ok=True)
        (folder / wheel.name).symlink_to(wheel)
    return folder


def main() -> int:
    """Make all of it."""
    try:
        for distribution in roots.ALL:
            print(roots.make(distribution))
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
