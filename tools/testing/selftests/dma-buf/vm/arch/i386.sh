# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034,SC2154
# i386 user space on the kernel and machine of x86_64: the compat ioctls
# shellcheck source=x86_64.sh
. "$vm/arch/x86_64.sh"
user_arch=i386
user_cross=i686-linux-gnu-
triplet=i386-linux-gnu
elf_machine="Intel 80386"
# suites that do not support it, or of what has no compat ioctls
without=(vfio iommu dma-buf/vm)
