# SPDX-License-Identifier: GPL-2.0
# The front door. "make" alone tells what there is.

export CACHE LINUX TARBALL ARCH CONFIG TREE TOPIC TESTS TEST PROG ARGS CMDLINE DT BASE \
	VMTEST_SCALE VMTEST_TIMEOUT FORMAT SIGNOFF TRAILERS VERSION

.PHONY: help run check check-full vm shell tree refresh prove bench series
.DEFAULT_GOAL := help

help:
	@echo 'make run      play the demonstration on the patched kernel, in QEMU'
	@echo 'make check    the tests: everything that a submission must pass'
	@echo 'make check-full  the same on every architecture and configuration, on the base too (hours)'
	@echo 'make vm       one VM run: ARCH= CONFIG= TREE=base|series TOPIC= TESTS="..."'
	@echo '              CMDLINE="swiotlb=force" DT=FILE: kernel command line, device tree overlay'
	@echo '              PROG=FILE [ARGS="..."] runs a static program instead of the tests'
	@echo 'make shell    the same with a shell on the console'
	@echo 'make prove    TEST=x: fails on the base, passes on the series'
	@echo 'make bench    what some calls take on the series, against the base, in instructions'
	@echo 'make tree     the patched kernel as a git branch in build/linux, to work in'
	@echo 'make refresh  the branch back into patches/ and the new files'
	@echo 'make series   FORMAT=mail|mbox|quilt|debian|single [TOPIC=]: for its users, in build/series'
	@echo '              mail: SIGNOFF="Name <name@example.org>" [TRAILERS=] [VERSION=2]'
	@echo 'LINUX=DIR or TARBALL=FILE: the base from there; CACHE=DIR: where downloads are kept'

run:
	@bin/vm -d

check:
	@bin/check

check-full:
	@bin/check --full

vm:
	@bin/vm

shell:
	@bin/vm -i

prove:
	@bin/prove

bench:
	@bin/bench

tree:
	@bin/install-packages
	@bin/pq apply

refresh:
	@bin/pq refresh

series:
	@bin/install-packages
	@bin/pq export "$$FORMAT" $${TOPIC:+--topic "$$TOPIC"}

.DEFAULT:
	@echo "make: unknown target '$@'; plain make tells what there is" >&2; exit 2
