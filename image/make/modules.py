"""Which kernel modules are needed, and in what order they are loaded. A core."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What it takes to find a disk and to mount a slot, whatever the disk hangs on. Those that the
# kernel has built in, or lacks, are passed over.
FIRST = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "ahci", "ata_piix", "nvme", "sd_mod", "usb_storage",
    "uas", "xhci_pci", "ehci_pci", "sdhci_pci", "mmc_block", "hv_storvsc", "xen_blkfront",
    "squashfs", "overlay",
)  # fmt: skip
# A Raspberry Pi's card and its ports for USB, and what gives power to them; and the network ports
# that a Pi 3 has on USB, since what comes there late finds no driver otherwise.
RASPBERRY_PI = (
    "bcm2835", "sdhci_iproc", "fixed", "gpio_regulator", "reset_raspberrypi", "phy_generic", "dwc2",
    "smsc95xx", "lan78xx",
)  # fmt: skip


def in_order(modules_dep: str, names: Iterable[str]) -> list[str]:
    """Return the paths of modules and of all they need, by depmod's modules.dep."""
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {_name(path): path for path in needs}
    ordered: dict[str, None] = {}
    for path in (by_name[name] for name in names if name in by_name):
        # All that is needed is listed, the innermost last.
        ordered.update(dict.fromkeys([*reversed(needs[path]), path]))
    return list(ordered)


def _name(path: str) -> str:
    return re.sub(r"\.ko.*$", "", path.rpartition("/")[2]).replace("-", "_")
