#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The guest's side of vmtest.sh, called by init.c: "setup" before the tests, whose
# output goes to the port "ktap", "finish" after them, to the port "record".
set -u

# vfio_bind NAME VENDOR:DEVICE: all such functions; their addresses to VMTEST_NAME_BDF,
# and one by one to VMTEST_NAME1_BDF and so on
vfio_bind()
{
	bdf=
	nr=0
	for dev in /sys/bus/pci/devices/*; do
		[ "$(cut -c3- "$dev/vendor"):$(cut -c3- "$dev/device")" = "$2" ] || continue
		echo vfio-pci >"$dev/driver_override"
		echo "${dev##*/}" >/sys/bus/pci/drivers_probe
		[ "$(basename "$(readlink "$dev/driver")")" = vfio-pci ] || {
			echo "# setup: ${dev##*/} ($2) was not bound to vfio-pci" >&2
			return 1
		}
		bdf="$bdf${bdf:+ }${dev##*/}"
		nr=$((nr + 1))
		echo "VMTEST_$1${nr}_BDF=${dev##*/}" >>/tmp/env
	done
	echo "VMTEST_$1_BDF=$bdf" >>/tmp/env
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
	vfio_bind IVSHMEM 1af4:1110 || return 1
	vfio_bind NVME 1b36:0010 || return 1
	vfio_bind BOCHS 1234:1111 || return 1
	vfio_bind EDU 1234:11e8 || return 1
	# libvfio cannot map the 256-byte BAR of ivshmem, so its tests get edu
	echo "VFIO_SELFTESTS_BDF=${bdf%% *}" >>/tmp/env
	# what waits for long in a slow guest does not hang yet
	echo $((60 * ${vmtest_slow:-1})) >/proc/sys/kernel/hung_task_timeout_secs
	dma_errors >/vm/dma_errors
}

dma_errors()
{
	cat /sys/kernel/debug/dma-api/error_count 2>/dev/null || echo 0
}

finish()
{
	leak=/sys/kernel/debug/kmemleak
	# kmemleak reports what has been unreferenced for 5 s only
	if [ -e $leak ] && echo scan >$leak && sleep 6 && echo scan >$leak &&
	   cat $leak >/vm/leaks; then
		# into the kernel log, where the reports of the kernel stand
		while IFS= read -r line; do
			echo "<4>kmemleak: $line" >/dev/kmsg
		done </vm/leaks
		echo "leaks $(grep -c '^unreferenced object' /vm/leaks)"
	else
		echo "leaks unknown"
	fi
	echo "dma_errors $(($(dma_errors) - $(cat /vm/dma_errors)))"
	echo "tainted $(cat /proc/sys/kernel/tainted)"
}

case $1 in
setup | finish) "$1" ;;
*) exit 1 ;;
esac
