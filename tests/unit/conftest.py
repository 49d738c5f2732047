"""How all unit tests run: hypothesis without its deadline, numpy in one thread, no fsync.

The machines are shared: threads that multiply small matrices together wait for each other and
spin, for longer than one alone would take.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

# Read when numpy is imported, which is after this.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("covey", deadline=None)
settings.load_profile("covey")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage in the million objects that a collection makes: they live to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Skip fsync (5 ms a file); identity/test_keyfile.py tests that it is called, and when."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One self-test of llama.cpp for all engines of a run; engine/test_selftest.py tests that."""
    return str(tmp_path_factory.mktemp("cache"))
