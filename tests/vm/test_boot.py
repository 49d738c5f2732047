"""What boot.py does where something is missing or goes wrong: it says so, with what was shown."""

from __future__ import annotations

from pathlib import Path

import boot
import pytest
from test_guest import GuestFailure, Run


def install(root: Path, release: str, *modules: str) -> Path:
    kernel = root / f"vmlinuz-{release}"
    kernel.touch()
    for name in modules:
        file = root / release / "kernel" / f"{name}.ko"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return kernel


def test_the_newest_kernel_that_has_all(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-9-amd64", "wireguard", "9p")
    newest = install(tmp_path, "6.1.0-56-amd64", "wireguard", "9p")
    install(tmp_path, "6.1.0-56-cloud-amd64", "wireguard")
    install(tmp_path, "6.12.1-amd64", "9p")
    install(tmp_path, "6.13.0-removed-amd64")
    assert boot.find_kernel(tmp_path, tmp_path) == newest


def test_without_such_a_kernel_the_package_is_named(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-56-cloud-amd64", "wireguard")
    with pytest.raises(boot.VmFault, match=r"install the package linux-image-amd64$"):
        boot.find_kernel(tmp_path, tmp_path)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("fs/9p.ko.xz: net/9pnet.ko.xz net/cache.ko.xz\n")
    files = boot.module_files(tmp_path, ["built_in", "9p"])
    assert [file.name for file in files] == ["cache.ko.xz", "9pnet.ko.xz", "9p.ko.xz"]


def test_a_tree_that_a_guest_cannot_see_is_refused() -> None:
    folder = Path("/tmp/clone")
    with pytest.raises(boot.VmFault, match="/tmp/clone lies in /tmp"):
        boot.start(["true"], folder=folder, environment={}, files={}).__enter__()


@pytest.mark.timeout(300)
def test_a_guest_that_ends_early_fails_its_cases_with_the_console() -> None:
    command = ["sh", "-c", "echo out of order; exit 3"]
    with boot.start(command, folder=Path("/"), environment={}, files={}) as guest:
        with pytest.raises(GuestFailure, match=r"(?s)ended before this case.*\nout of order\n"):
            Run(guest).result("a case")
        assert guest.wait(10) == 3


@pytest.mark.timeout(300)
def test_a_guest_that_does_not_boot_fails_its_cases_with_the_console(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boot, "_MODULES", ())
    with boot.start(["true"], folder=Path("/"), environment={}, files={}) as guest:
        with pytest.raises(GuestFailure, match=r"(?s)insmod.*the guest could not be set up\n"):
            Run(guest).result("a case")
        with pytest.raises(boot.VmFault, match="did not run the command"):
            guest.wait(10)
