#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The guest's side of vmtest.sh, called by init.c: "setup" before the tests, whose
# output goes to the port "ktap", "finish" after them, to the port "record".
set -u

vfio_bind() # VENDOR:DEVICE... prints the addresses of the functions
{
	for dev in /sys/bus/pci/devices/*; do
		id=$(cut -c3- "$dev/vendor"):$(cut -c3- "$dev/device")
		case " $* " in *" $id "*) ;; *) continue ;; esac
		echo vfio-pci >"$dev/driver_override"
		echo "${dev##*/}" >/sys/bus/pci/drivers_probe
		[ "$(basename "$(readlink "$dev/driver")")" = vfio-pci ] || {
			echo "# setup: ${dev##*/} ($id) was not bound to vfio-pci" >&2
			return 1
		}
		echo "${dev##*/}"
	done
}

setup()
{
	/bin/busybox --install -s /bin
	mkdir -p /usr/bin /etc
	ln -sf /bin/env /usr/bin/env
	while read -r module; do
		modprobe "$module" || return 1
	done </vm/job/modules
	# libvfio and the IOMMU tests want huge pages, udmabuf's 1024 of them
	echo 1024 >/proc/sys/vm/nr_hugepages
	edu=$(vfio_bind 1234:11e8) || return 1
	ivshmem=$(vfio_bind 1af4:1110) || return 1
	# libvfio cannot map the 256-byte BAR of ivshmem, so its tests get edu
	# shellcheck disable=SC2086
	set -- $edu
	echo "VFIO_SELFTESTS_BDF=${1:-}" >/tmp/env
	# shellcheck disable=SC2086
	set -- $ivshmem
	echo "VMTEST_IVSHMEM_BDF=${1:-}" >>/tmp/env
	dma_errors >/tmp/dma_errors
	dmesg -n 8
}

dma_errors()
{
	cat /sys/kernel/debug/dma-api/error_count 2>/dev/null || echo 0
}

finish()
{
	leak=/sys/kernel/debug/kmemleak
	if [ -e $leak ]; then
		# kmemleak reports what has been unreferenced for 5 s only
		echo scan >$leak
		sleep 6
		echo scan >$leak
		cat $leak >/tmp/leaks
		# into the kernel log, where the reports of the kernel stand
		while IFS= read -r line; do
			echo "<4>kmemleak: $line" >/dev/kmsg
		done </tmp/leaks
		echo "leaks $(grep -c '^unreferenced object' /tmp/leaks)"
	else
		echo "leaks unknown"
	fi
	echo "dma_errors $(($(dma_errors) - $(cat /tmp/dma_errors)))"
	echo "tainted $(cat /proc/sys/kernel/tainted)"
}

case $1 in
setup | finish) "$1" ;;
*) exit 1 ;;
esac
