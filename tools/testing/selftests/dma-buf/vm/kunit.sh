#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# kunit:run of the guest: loads a module of KUnit suites, which run at once,
# prints their results, each of them KTAP with a plan of its own, and unloads it.
# A test with parameters has no plan; the total that follows is made one.
set -eu
modprobe "$1"
cat /sys/kernel/debug/kunit/*/results >/tmp/kunit
awk '
/# Subtest: / { name = $3; no_plan = 1 }
/^ *1\.\./ { no_plan = 0 }
{ print }
no_plan && $2 == name ":" && match($0, /total:[0-9]+$/) {
	total = substr($0, RSTART + 6)
	sub(/#.*/, "")
	print $0 "    1.." total
}' /tmp/kunit
rmmod "$1"
