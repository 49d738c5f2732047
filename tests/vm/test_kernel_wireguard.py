"""The device contract on the kernel's WireGuard, in a virtual machine (boot.py).

Not part of `make test`: run `make vm`. The cases are those of tests/unit/overlay, unchanged.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("vm_boot", Path(__file__).with_name("boot.py"))
assert _spec is not None
assert _spec.loader is not None
boot = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(boot)

_ROOT = Path(__file__).parents[2]
# No case uses it, and it warns where it cannot write.
_NO_HYPOTHESIS = ("-p", "no:hypothesispytest")
# Fewer would mean that cases were not collected.
_CASES = 19
# Boots in 13 s and runs in 60 s on two shared cores without hardware help.
_TIMEOUT_S = 480.0


def test_the_contract_holds_on_kernel_wireguard() -> None:
    os.chdir(_ROOT)
    names = ("device_contract", "kernel_only", "kernel_routes")
    cases = [f"tests/unit/overlay/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-vv", "--color=no", *_NO_HYPOTHESIS, *cases]
    environment = {
        "COVEY_TEST_DEVICES": "kernel",
        "PYTHONPATH": str(_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    status, output = boot.run(command, environment=environment, timeout_s=_TIMEOUT_S)
    assert status == 0, output
    passed = output.count("[kernel] PASSED")
    assert passed >= _CASES, output
    assert re.search(rf"^=+ {passed} passed in ", output, re.MULTILINE), output
    print(output)
