"""Modules come after what they need."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from image.make import initramfs
from image.make.modules import RASPBERRY_PI, in_order

DEP = """\
kernel/fs/overlayfs/overlay.ko:
kernel/drivers/scsi/sd_mod.ko: kernel/drivers/scsi/scsi_mod.ko kernel/lib/common.ko
kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz
kernel/drivers/scsi/scsi_mod.ko: kernel/lib/common.ko
kernel/drivers/block/virtio-blk.ko:
"""


def test_the_innermost_is_first() -> None:
    assert in_order(DEP, ["sd_mod", "nvme"]) == [
        "kernel/lib/common.ko",
        "kernel/drivers/scsi/scsi_mod.ko",
        "kernel/drivers/scsi/sd_mod.ko",
        "kernel/drivers/nvme/host/nvme-core.ko.xz",
        "kernel/drivers/nvme/host/nvme.ko.xz",
    ]


def test_each_comes_once_and_built_in_ones_are_passed_over() -> None:
    names = ["scsi_mod", "virtio_blk", "squashfs", "sd_mod"]
    found = in_order(DEP, names)
    assert len(found) == len(set(found)) == 4
    assert found[2].endswith("virtio-blk.ko")


def test_a_raspberry_pi_finds_its_card(tmp_path: Path) -> None:
    """Its modules are beside those that every machine has, and in its initramfs alone."""
    folder = tmp_path / "lib/modules/6.1"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(
        "mmc/sdhci-iproc.ko: mmc/sdhci.ko\nmmc/sdhci.ko:\nnvme.ko:\n"
    )
    for name in ("mmc/sdhci-iproc.ko", "mmc/sdhci.ko", "nvme.ko", "../../../bin/busybox"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    archive = gzip.decompress(initramfs.make(tmp_path, "6.1", RASPBERRY_PI))
    found = re.findall(rb"modules/\d\d-[\w-]+\.ko", archive)
    assert found == [b"modules/00-sdhci.ko", b"modules/01-sdhci-iproc.ko", b"modules/02-nvme.ko"]
    assert b"sdhci" not in gzip.decompress(initramfs.make(tmp_path, "6.1"))
