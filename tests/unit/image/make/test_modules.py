"""Modules come after what they need."""

from image.make.modules import in_order

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
