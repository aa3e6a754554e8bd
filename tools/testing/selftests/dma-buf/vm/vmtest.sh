#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build a kernel, boot it in QEMU with emulated PCI functions, run kselftests in
# it and judge what came out. See README.rst.

set -euo pipefail
export LC_ALL=C
# What a make around this was called with is not for the makes in here; the
# Makefiles of selftests (sync's TESTS) and of the kernel take variables from it.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES ARCH CROSS_COMPILE TARGETS TESTS
unset KBUILD_OUTPUT O CFLAGS LDFLAGS OUTPUT

vm=$(realpath "$(dirname "$0")")
tests_tree=$(realpath "$vm/../../../../..")
kernel_tree=$tests_tree
host=$(uname -m | sed s/aarch64/arm64/)
arch=$host
config=plain
out=
tests_out=
topics=$(for f in "$vm"/{tests,expect,config}.d/*; do
	[ ! -f "$f" ] || { f=${f##*/}; echo "${f%%.*}"; }
done | sort -u | sed '/^base$/d')
mode=tests
tests=()
prog=
args=()
record=
dt=
cmdline=
sysroot=${VMTEST_SYSROOT:-}
exact=
without=()
nobuild=
cpus=
icount=
scale=${VMTEST_SCALE:-1}
jobs=$(nproc)

usage()
{
	cat <<USAGE
$0 [options] [-p PROG [ARG...] | -m [ARG...]]
  -t TEST    run this only: COLLECTION, COLLECTION:PROG, the last part of
             either, PROG with any arguments, or the last argument; may be repeated
  -l         list the tests, or those that -t selects
  -n         build nothing: run what the last run has built
  -d         the demonstration: the tests of demo.d, their comments only
  -p PROG    run a static program as root instead of the tests; what it prints
             appears unchanged, its exit status is the result
  -m         call make for the configured kernel, with the arguments that
             follow, and do nothing else
  -i         an interactive shell on the serial console instead of the tests
  -a ARCH    $(known arch .sh)(default: $host)
  -c CONFIG  $(known configs .config)(default: plain)
  -s CPUS    default: 1, or what the configuration says
  -I         count instructions: a nanosecond of the guest's clock is one, on one
             CPU, and a run repeats
  -A WORDS   more words for the kernel's command line, such as swiotlb=force
             or cma=16M
  -D FILE    the machine's device tree gets this overlay instead of the one
             in dt/ that the architecture names ("": none)
  -S DIR     libraries and static programs of the guest's architecture stand
             here (usr/include, usr/lib/TRIPLET, bin); needed where it is not
             the host's
  -k TREE    kernel source (default: the tree of this script). The tests are
             those of this script's tree all the same.
  -T TOPICS  the topics that TREE has, separated by spaces (default: all that
             this directory knows): their tests run, and their results are
             expected, on top of those of the base
  -o DIR     build here (default: vm/build/ARCH-CONFIG next to this script)
  -O DIR     build the tests here (default: that of -o)
  -x         the results must be exactly those recorded: better ones are red too
  -r FILE    write the results as a record to compare with (expect.d/)
Environment: VMTEST_SCALE multiplies the rounds of stress tests and all time
limits (default 1), VMTEST_TIMEOUT sets the limit of each test in seconds,
VMTEST_SYSROOT is that of -S.
Exit code: 0 pass, 1 a test failed, 2 infrastructure or usage, 3 kernel splat,
crash or leak, 4 nothing was tested.
USAGE
}

known() # DIR SUFFIX: the names of data files
{
	local f
	for f in "$vm/$1"/*"$2"; do
		f=${f##*/}
		printf '%s ' "${f%"$2"}"
	done
}

die()
{
	printf 'vmtest: %s\n' "$*" >&2
	exit 2
}

say()
{
	printf 'vmtest: %s\n' "$*" >&2
}

# quietly LOG CMD...: the output goes to a file, whose end is shown on an error
quietly()
{
	local log=$out/$1
	shift
	"$@" >"$log" 2>&1 || {
		tail -n 30 "$log" >&2
		die "failed: $* (all of its output: $log)"
	}
}

# keyword WORD FILE...: the arguments of WORD's lines
keyword()
{
	local word=$1
	shift
	sed -n "s/^$word //p" "$@"
}

# data_files DIR SUFFIX...: the files of the base and of the topics, in that order
data_files()
{
	local t f
	for t in base $topics; do
		for f in "${@:2}"; do
			[ ! -f "$vm/$1/$t$f" ] || echo "$vm/$1/$t$f"
		done
	done
}

# fragments: later topics may only add to the configuration
fragments()
{
	local f
	for f in kernel "arch/$kernel_arch" "configs/$config" "arch/$kernel_arch.$config"; do
		[ ! -f "$vm/$f.config" ] || echo "$vm/$f.config"
	done
	data_files config.d .config
}

# shellcheck disable=SC2317 # quietly calls it
kmake()
{
	make -C "$kernel_tree" O="$out/kernel" ARCH="$kernel_arch" \
		CROSS_COMPILE="$cross_compile" CC="$cc" -j"$jobs" "${variables[@]}" "$@"
}

# check_config: refuse a configuration that dropped something asked for. Of what
# is said of a symbol the last holds.
check_config()
{
	local line missing=0
	while IFS= read -r line; do
		grep -qxF "$line" "$out/kernel/.config" || {
			say "the configuration did not take $line"
			missing=1
		}
	done < <(awk -F= '/^CONFIG_/ { last[$1] = $0 } END { for (s in last) print last[s] }' "$@")
	[ $missing = 0 ] || die "change the fragments, or see what these symbols depend on"
}

configure()
{
	local id frag
	mapfile -t frag < <(fragments)
	id=$(cat "${frag[@]}" | sha256sum)
	mkdir -p "$out/kernel"
	# The stamp comes last: what an interrupted step left is not trusted.
	if [ "$(cat "$out/kernel/.vmtest" 2>/dev/null)" != "$id" ]; then
		(cd "$kernel_tree" && ARCH=$kernel_arch quietly config.log \
			scripts/kconfig/merge_config.sh -n -O "$out/kernel" "${frag[@]}")
		check_config "${frag[@]}"
		echo "$id" >"$out/kernel/.vmtest"
	fi
	quietly config.log kmake olddefconfig
	check_config "${frag[@]}"
}

build_kernel()
{
	say "building the kernel of $kernel_tree ($arch, $config; log: $out/build.log)"
	configure
	quietly build.log kmake "${kernel_image##*/}" modules
	rm -rf "$out/guest/lib/modules"
	quietly modules.log kmake modules_install INSTALL_MOD_PATH="$out/guest" INSTALL_MOD_STRIP=1
}

build_tests()
{
	local b=$tests_out/tests targets user=(USERLDFLAGS=-static)
	[ -z "$sysroot" ] || user=(USERCFLAGS="-I$sysroot/usr/include"
		USERLDFLAGS="-static -L$sysroot/usr/lib/$triplet")
	# Of all topics, so that a test can be run on a kernel that lacks its topic
	targets=$(keyword target "$vm"/tests.d/* | paste -sd' ')
	say "building the tests of $tests_tree (log: $out/tests.log)"
	mkdir -p "$b/build"
	quietly headers.log make -C "$tests_tree" O="$b/build" ARCH="$user_arch" -j"$jobs" headers
	rm -rf "$b/root"
	quietly tests.log make -C "$tests_tree/tools/testing/selftests" O="$b/build" \
		ARCH="$user_arch" \
		CROSS_COMPILE="$user_cross" TARGETS="$targets" FORCE_TARGETS=1 \
		"${user[@]}" INSTALL_PATH="$b/root/kselftest" install
	install -D "$vm/kunit.sh" "$b/root/kselftest/kunit/run"
	echo timeout=300 >"$b/root/kselftest/kunit/settings"
}

build_guest()
{
	local g=$out/guest f path
	mkdir -p "$g/bin" "$g/vm" "$g/lib"
	for f in busybox bash-static; do
		path=$sysroot/bin/$f
		[ -n "$sysroot" ] || path=$(command -v $f)
		! grep -q INTERP < <(readelf -l "$path") ||
			die "$path is linked dynamically: install busybox-static and bash-static"
		cp "$path" "$g/bin/${f%-static}"
	done
	ln -sf busybox "$g/bin/sh"
	# shellcheck disable=SC2016
	printf '#!/bin/sh\n# memfd/run_fuse_test.sh calls: fusermount -u DIR\numount "$2"\n' \
		>"$g/bin/fusermount"
	chmod +x "$g/bin/fusermount"
	cp "$vm/guest.sh" "$g/vm/"
	quietly init.log "${user_cross}gcc" -static -O2 -Wall -o "$g/init" "$vm/init.c"
}

# tests_of FILE...: what the files of tests.d name, COLLECTION:PROG [ARG...] a line.
# A program of a suite that another file names is that topic's.
tests_of()
{
	local f target line found
	local list=$tests_out/tests/root/kselftest/kselftest-list.txt
	for f; do
		for target in $(keyword target "$f"); do
			[[ " ${without[*]} " != *" $target "* ]] || continue
			found=$(grep "^$target:" "$list") || {
				say "the suite '$target' of $f has no tests"
				return 1
			}
			grep -vxFf <(keyword '\(run\|more\)' "$vm"/tests.d/*) <<<"$found" || true
		done
		while IFS= read -r line; do
			[[ " ${without[*]} " == *" ${line%%:*} "* ]] || echo "$line"
		done < <(keyword '\(run\|more\)' "$f")
	done
}

# left_out: what is not tested here, COLLECTION:, and what takes too long for every run, if
# this is one
left_out()
{
	[ ${#without[@]} = 0 ] || printf '%s:\n' "${without[@]}"
	[ "$scale" = 1 ] || return 0
	keyword more "$vm"/tests.d/*
	keyword '# more' "$vm/configs/$config.config"
}

# select_tests: those that -t names, or all of the topics
select_tests()
{
	local t found line coll name files
	mapfile -t files < <(data_files tests.d '')
	[ ${#tests[@]} -gt 0 ] || {
		tests_of "${files[@]}" >"$out/all" || return 1
		left_out | grep -vxFf - "$out/all" || true
		return
	}
	tests_of "$vm"/tests.d/* >"$out/all" || return 1
	for t in "${tests[@]}"; do
		found=0
		while IFS= read -r line; do
			coll=${line%%:*}
			name=${line#*:}
			case $t in
			"$line" | "$coll" | "${coll##*/}" | "$name" | "${name%% *}" | \
			"${coll##*/}:$name" | "${line##* }")
				echo "$line"
				found=1
				;;
			esac
		done <"$out/all"
		[ $found = 1 ] || {
			say "no test '$t'; there are:"
			cat "$out/all" >&2
			return 1
		}
	done | awk '!seen[$0]++'
}

pack() # DIR FILE: DIR as an initramfs archive
{
	(cd "$1" && find . | cpio -o -H newc -R 0:0 --quiet) >"$2"
}

job()
{
	local j=$run/job/vm/job files
	mkdir -p "$j"
	# of the kernel's topics: others it has not
	mapfile -t files < <(data_files tests.d '')
	keyword module "${files[@]}" >"$j/modules"
	case $mode in
	tests) cp "$out/selected" "$j/tests" ;;
	demo)
		cat "$vm"/demo.d/[0-9]* 2>/dev/null | sed '/^#/d' >"$j/tests" ||
			die "there is no demonstration in $vm/demo.d"
		;;
	prog)
		cp "$prog" "$j/prog"
		chmod +x "$j/prog"
		[ ${#args[@]} = 0 ] || printf '%s\n' "${args[@]}" >"$j/args"
		;;
	esac
	pack "$out/guest" "$run/guest.cpio"
	pack "$tests_out/tests/root" "$run/tests.cpio"
	pack "$run/job" "$run/job.cpio"
	cat "$run/guest.cpio" "$run/tests.cpio" "$run/job.cpio" >"$run/initrd"
	rm "$run/guest.cpio" "$run/tests.cpio" "$run/job.cpio"
}

# slow_config: how much longer things take in this configuration
slow_config()
{
	keyword '# slow' "$vm/configs/$config.config" | grep . || echo 1
}

# rounds_config: what stress tests divide their rounds by
rounds_config()
{
	keyword '# rounds' "$vm/configs/$config.config" | grep . || slow_config
}

# slowness: how much longer than on a real machine they do
slowness()
{
	local factor=4
	[ "$(accel)" = tcg ] || factor=1
	echo $((factor * $(slow_config)))
}

# limit: seconds after which QEMU is ended: what the tests may take, and some more
limit()
{
	local sum=0 dir t	# and slow, of boot()
	while IFS= read -r t; do
		dir=$tests_out/tests/root/kselftest/${t%%:*}
		t=$(sed -n 's/^timeout=//p' "$dir/settings" 2>/dev/null || true)
		[ "${t:-45}" != 0 ] || t=3600
		sum=$((sum + ${VMTEST_TIMEOUT:-$((${t:-45} * slow * scale))}))
	done < <(cat "$run/job/vm/job/tests" 2>/dev/null)
	[ "$mode" != prog ] || sum=${VMTEST_TIMEOUT:-$((600 * slow * scale))}
	[ "$mode" != shell ] || sum=864000
	echo $((sum + 180 * slow))
}

# kvm_boots: QEMU's own exit status says nothing
kvm_boots()
{
	timeout -k 5 15 "$qemu" "${machine[@]}" -accel kvm -m 1G -nodefaults -display none \
		-no-reboot -serial stdio -kernel "$out/kernel/$kernel_image" \
		-append "console=$console panic=-1" </dev/null >"$out/kvm.log" 2>&1 || true
	grep -q 'Unable to mount root' "$out/kvm.log"
}

# accel: KVM if this kernel boots under it up to the lack of a root, else TCG.
# That /dev/kvm exists proves nothing: some machines have one that hangs.
accel()
{
	local asked answer=$out/accel
	asked="$(cat /proc/sys/kernel/random/boot_id) $qemu"
	if [ "$(head -n 1 "$answer" 2>/dev/null)" != "$asked" ]; then
		printf '%s\ntcg\n' "$asked" >"$answer.new"
		if [ "$kernel_arch" = "$host" ] && [ -w /dev/kvm ] &&
		   kvm_boots; then
			printf '%s\nkvm\n' "$asked" >"$answer.new"
		fi
		mv "$answer.new" "$answer"
	fi
	tail -n 1 "$answer"
}

# device_tree: the machine's own tree with our overlay
device_tree()
{
	local tree=$run/dt
	quietly dt.log "$qemu" "${machine[@]}" -M "dumpdtb=$tree.machine" -m "$memory" \
		-smp "$cpus" -nodefaults -display none
	quietly dt.log dtc -q -I dts -O dtb -o "$tree.overlay" "$dt"
	quietly dt.log fdtoverlay -i "$tree.machine" -o "$tree" "$tree.overlay"
	cmd+=(-dtb "$tree")
}

# The PCI functions; README.rst tells what each is for
devices=(
	-device "pcie-root-port,id=rp1,chassis=1"
	-device "edu,bus=rp1,dma_mask=0xffffffffffffffff"
	-device "pcie-root-port,id=rp2,chassis=2"
	-object "memory-backend-file,id=ivshmem,size=4M,share=on,mem-path=ivshmem"
	-device "ivshmem-plain,bus=rp2,memdev=ivshmem"
	-device "pcie-root-port,id=rp3,chassis=3"
	-device "edu,bus=rp3,addr=0.0,multifunction=on,dma_mask=0xffffffffffffffff"
	-object "memory-backend-file,id=ivshmem2,size=1G,share=on,mem-path=ivshmem2"
	-device "ivshmem-plain,bus=rp3,addr=0.1,memdev=ivshmem2"
	-device "pcie-root-port,id=rp4,chassis=4"
	-object "memory-backend-ram,id=pmr,size=16M,share=on"
	-device "nvme,bus=rp4,serial=vmtest,pmrdev=pmr"
	-device "pcie-root-port,id=rp5,chassis=5"
	-device "bochs-display,bus=rp5"
	-device "virtio-gpu-pci"
)

# story: the comments of tests, and what went wrong
story()
{
	sed -un -e '/# Subtest:\|# Totals:\|, [a-z0-9 ]* s$\|# host-file/d' -e 's|^ *# ||p' \
		-e '/^ *not ok/p'
}

boot()
{
	local serial=(-serial "file:$run/serial") ktap=(-chardev "file,id=ktap,path=/dev/stdout")
	local words cmd slow limit accel status=0
	[ "$mode" != shell ] || {
		serial=(-serial mon:stdio)
		ktap=(-chardev "file,id=ktap,path=$run/ktap")
	}
	slow=$(slowness)
	accel=(-accel "$(accel)")
	[ -z "$icount" ] || {
		accel=(-accel "tcg,thread=single" -icount "shift=0,sleep=off" -seed 1
			-rtc "base=2026-01-01,clock=vm")
		append+=" nokaslr norandmaps random.trust_cpu=off"
	}
	# A test that lowers the level of the console must hide nothing.
	words="console=$console ignore_loglevel panic=-1 $append $cmdline"
	words+=" vmtest_mode=$mode vmtest_slow=$slow"
	words+=" VMTEST_SLOW=$(rounds_config) VMTEST_SCALE=$scale"
	words+=" KSFT_TIMEOUT_SCALE=$slow"
	# a case of the fence chains is quadratic
	words+=" kunit.timeout=$((300 * slow))"
	# a loaded host is as slow as a CPU that hangs; 60 is the most that there is
	words+=" watchdog_thresh=$((slow < 6 ? 10 * slow : 60))"
	words+="${VMTEST_TIMEOUT:+ vmtest_timeout=$VMTEST_TIMEOUT}"
	truncate -s 4M "$run/ivshmem"
	truncate -s 1G "$run/ivshmem2"
	cmd=("$qemu" "${machine[@]}" "${accel[@]}" -m "$memory" -smp "$cpus"
		-nodefaults -no-user-config -display none -no-reboot
		-kernel "$out/kernel/$kernel_image" -initrd "$run/initrd"
		-append "$words"
		"${serial[@]}" "${ktap[@]}" -device virtio-serial-pci
		-device "virtserialport,chardev=ktap,name=ktap"
		-chardev "file,id=record,path=$run/record"
		-device "virtserialport,chardev=record,name=record"
		"${devices[@]}")
	[ -z "$dt" ] || device_tree
	printf '%q ' cd "$run" >"$run/command"
	printf '&& ' >>"$run/command"
	printf '%q ' "${cmd[@]}" >>"$run/command"
	say "$(cat "$run/command")"
	touch "$run/ktap" "$run/serial" "$run/record"
	cd "$run"
	limit=(timeout --foreground -k 10 "$(limit)")
	case $mode in
	shell) "${cmd[@]}" || status=$? ;;
	*) "${limit[@]}" "${cmd[@]}" </dev/null 2>"$run/qemu" | tee "$run/ktap" |
		if [ "$mode" = demo ]; then story; else cat; fi || status=$? ;;
	esac
	echo $status >"$run/status"
}

# decode: the traces in the log of the kernel with file and line
decode()
{
	grep -q 'Call trace:\|Call Trace:' "$run/serial" || return 0
	CROSS_COMPILE=$cross_compile "$kernel_tree/scripts/decode_stacktrace.sh" \
		"$out/kernel/vmlinux" "$kernel_tree" "$out/kernel" \
		<"$run/serial" >"$run/serial.decoded" 2>"$run/decode" ||
		say "the traces could not be decoded: see $run/decode"
}

verdict()
{
	local expect line words opt=()
	read -ra words <<<"$cmdline"
	mapfile -t expect < <(data_files expect.d '' ".$arch" ".$config" ".$arch.$config" \
		"${words[@]/#/.}")
	[ -z "$exact" ] || opt+=(--exact)
	[ "$mode" != prog ] || opt+=(--prog "$(basename "$prog")")
	[ -z "$record" ] || opt+=(--record "$record")
	[ "$mode" != tests ] || [ ${#tests[@]} -gt 0 ] || {
		opt+=(--all)
		while IFS= read -r line; do
			opt+=(--left-out "$line")
		done < <(left_out)
	}
	python3 -B "$vm/verdict.py" \
		--run "$run" --splats "$vm/splats" "${opt[@]}" "${expect[@]}"
}

while getopts t:lndp:mia:c:s:IA:D:S:k:T:o:O:xr:h opt; do
	case $opt in
	t) tests+=("$OPTARG") ;;
	l) mode=list ;;
	n) nobuild=1 ;;
	d) mode=demo ;;
	p) mode=prog prog=$OPTARG ;;
	m) mode="make" ;;
	i) mode=shell ;;
	a) arch=$OPTARG ;;
	c) config=$OPTARG ;;
	s) cpus=$OPTARG ;;
	I) icount=1 ;;
	A) cmdline=$OPTARG ;;
	D) dt=${OPTARG:-none} ;;
	S) sysroot=$OPTARG ;;
	k) kernel_tree=$OPTARG ;;
	T) topics=$OPTARG ;;
	o) out=$OPTARG ;;
	O) tests_out=$OPTARG ;;
	x) exact=1 ;;
	r) record=$OPTARG ;;
	h) usage; exit 0 ;;
	*) usage >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))
args=("$@")
[[ $mode = prog || $mode = make || $# = 0 ]] || { usage >&2; exit 2; }

[ -f "$vm/arch/$arch.sh" ] || die "unknown architecture '$arch'; there is: $(known arch .sh)"
[ -f "$vm/configs/$config.config" ] ||
	die "unknown config '$config'; there is: $(known configs .config)"
[ -f "$kernel_tree/Kbuild" ] || die "$kernel_tree is no kernel tree"
kernel_tree=$(realpath "$kernel_tree")
mapfile -t variables < <(keyword '# make' "$vm/configs/$config.config")
cpus=${cpus:-$(keyword '# cpus' "$vm/configs/$config.config" | grep . || echo 1)}
[ -z "$icount" ] || cpus=1
memory=$(keyword '# memory' "$vm/configs/$config.config" | grep . || echo 4G)
for n in "$scale" "$cpus" "${VMTEST_TIMEOUT:-1}"; do
	[[ $n =~ ^[1-9][0-9]*$ ]] ||
		die "VMTEST_SCALE, VMTEST_TIMEOUT and -s are whole numbers from 1 on, not '$n'"
done
# shellcheck source=arch/x86_64.sh
. "$vm/arch/$arch.sh"
mapfile -t -O ${#without[@]} without < <(keyword '# without' "$vm/configs/$config.config")
case $dt in
none) dt= ;;
'') [ -z "$default_dt" ] || dt=$vm/dt/$default_dt ;;
*)
	[ -f "$dt" ] || die "-D: there is no file '$dt'"
	dt=$(realpath "$dt")
	;;
esac
[ -z "$dt" ] || [ -n "$default_dt" ] || die "-D: the machine of $arch has no device tree"
if [ -n "$sysroot" ]; then
	sysroot=$(realpath "$sysroot")
	[ -x "$sysroot/bin/busybox" ] || die "-S: $sysroot has no bin/busybox: see README.rst"
elif [ "$user_arch" != "$host" ] && [ "$mode" != make ]; then
	die "$arch needs a folder of its libraries and static programs: -S, see README.rst"
fi
if [ "$mode" = prog ]; then
	[ -f "$prog" ] || die "PROG: there is no file '$prog'"
	grep -q "Machine: .*$elf_machine" < <(readelf -h "$prog" 2>/dev/null) ||
		die "PROG: '$prog' is no program for $arch"
	! grep -q INTERP < <(readelf -l "$prog") ||
		die "PROG: '$prog' needs libraries, which the guest has not: link it with -static"
	for n in "${args[@]}"; do
		if [ ${#n} -ge 1000 ] || [ ${#args[@]} -gt 60 ] || [[ $n == *$'\n'* ]]; then
			die "PROG can get 60 arguments of less than 1000 bytes, without newlines"
		fi
	done
fi

out=$(realpath -m "${out:-$vm/build/$arch-$config}")
tests_out=$(realpath -m "${tests_out:-$out}")
[ -z "$record" ] || record=$(realpath -m "$record")
tools=("$qemu" "${cross_compile}gcc" "${user_cross}gcc" make flex bison bc cpio rsync depmod)
tools+=(python3 readelf)
[ -n "$sysroot" ] || [ "$mode" = make ] || tools+=(busybox bash-static)
[ -z "$dt" ] || tools+=(dtc fdtoverlay)
for tool in "${tools[@]}"; do
	command -v "$tool" >/dev/null ||
		die "the program '$tool' is missing: see README.rst for the packages"
done
cc=${cross_compile}gcc
! command -v ccache >/dev/null || cc="ccache $cc"
# pkg-config's answers are those for the guest
if [ -n "$sysroot" ]; then
	export PKG_CONFIG_SYSROOT_DIR=$sysroot PKG_CONFIG_LIBDIR=$sysroot/usr/lib/$triplet/pkgconfig
fi
# for reproducible images, and for the cache of ccache
export KBUILD_BUILD_TIMESTAMP='2026-01-01' KBUILD_BUILD_USER=vmtest KBUILD_BUILD_HOST=vmtest
# (whose objects are good for every folder: the debug information is of paths below the tree)
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$(dirname "$kernel_tree")} CCACHE_NOHASHDIR=1

mkdir -p "$out" "$tests_out"
exec 8>"$out/lock" 9>"$tests_out/lock.tests"
if ! flock -n 8 || ! flock -n 9; then
	die "another run uses $out or $tests_out; wait for it to end"
fi

if [ "$mode" = make ]; then
	configure
	kmake "${args[@]}"
	exit
fi

# The stamp stands for kernel, modules, tests and init, of one build that went well.
if [ -n "$nobuild" ]; then
	[ -f "$out/built" ] || die "-n: nothing has been built in $out, or not completely"
else
	rm -f "$out/built"
	build_tests
fi
select_tests >"$out/selected" || exit 2
[ "$mode" != list ] || { cat "$out/selected"; exit; }
if [ -z "$nobuild" ]; then
	build_kernel
	build_guest
	touch "$out/built"
fi

run=$out/run
rm -rf "$run"
mkdir -p "$run"
job
boot
rm -f "$run/initrd"
[ "$mode" != shell ] || exit 0
code=0
verdict || code=$?
[ $code -le 4 ] || code=2
[ $code != 3 ] || decode
exit $code
