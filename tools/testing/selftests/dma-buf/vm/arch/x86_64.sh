# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
kernel_arch=x86_64
cross_compile=
user_arch=x86_64
user_cross=
triplet=x86_64-linux-gnu
elf_machine=X86-64
kernel_image=arch/x86/boot/bzImage
qemu="qemu-system-x86_64"
console=ttyS0
# Under TCG the TSC is not stable; saying so saves the complaint of the watchdog.
# The timer check at boot panics when a loaded host is late with the first ticks.
append="tsc=unstable no_timer_check"
default_dt=
# With 5-level page tables KASAN reports an interrupt that comes while
# identify_cpu() has the CPU's features cleared (pgtable_l5_enabled() is one).
# The IOMMU has to come before the devices behind it.
machine=(-M "q35,kernel-irqchip=split" -cpu "max,la57=off"
	-device "intel-iommu,intremap=on,caching-mode=on")
# A DRM device with its driver, whose dma-bufs are TTM's. Only this QEMU has it.
devices+=(-device "qxl,ram_size=16777216,vram_size=8388608,vgamem_mb=8")
