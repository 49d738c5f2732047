"""Loads the playbooks' own modules, which need ansible-core to run and not to be tested."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from tests.unit.ansible.load import load

BASIC = "ansible.module_utils.basic"


def library(name: str) -> ModuleType:
    """Return a module of ansible/library."""
    if BASIC not in sys.modules and find_spec("ansible") is not None:
        import_module(BASIC)
    elif BASIC not in sys.modules:
        for place in ("ansible", "ansible.module_utils", BASIC):
            sys.modules[place] = ModuleType(place)
        sys.modules[BASIC].__dict__["AnsibleModule"] = object
    sys.modules["ansible.module_utils.covey_agent"] = load("module_utils/covey_agent.py")
    return load(f"library/{name}.py")
