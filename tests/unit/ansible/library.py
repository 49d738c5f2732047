"""Loads the playbooks' own modules, which need ansible-core to run and not to be tested."""

import sys
from importlib.util import find_spec
from types import ModuleType

from tests.unit.ansible.load import load


def library(name: str) -> ModuleType:
    """Return a module of ansible/library."""
    for place in ("ansible", "ansible.module_utils", "ansible.module_utils.basic"):
        if place not in sys.modules and (place != "ansible" or find_spec("ansible") is None):
            sys.modules[place] = ModuleType(place)
    sys.modules["ansible.module_utils.basic"].__dict__.setdefault("AnsibleModule", object)
    sys.modules["ansible.module_utils.covey_agent"] = load("module_utils/covey_agent.py")
    return load(f"library/{name}.py")
