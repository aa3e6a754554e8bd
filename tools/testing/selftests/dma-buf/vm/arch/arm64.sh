# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
kernel_arch=arm64
cross_compile=aarch64-linux-gnu-
user_arch=arm64
user_cross=aarch64-linux-gnu-
triplet=aarch64-linux-gnu
elf_machine=AArch64
kernel_image=arch/arm64/boot/Image
qemu="qemu-system-aarch64"
console=ttyAMA0
# what a kernel says that dies before it has its console
append="earlycon=pl011,0x9000000 coherent_heap.regions=fw-pool@72000000"
machine=(-M "virt,iommu=smmuv3,gic-version=3" -cpu max)
# the machine's own device tree gets these nodes, of dt/
default_dt=reserved-memory.dtso
