# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
# Sourced by the programs of bin/ and checks/: paths, the base's description, messages.

set -euo pipefail
export LC_ALL=C

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
base=${BASE:-7.3}
build=$top/build
cache=$(realpath -m "${CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/dma-buf-series}")
patches=$top/patches/$base
me=${0##*/}

# Exit codes are those of the runner: 1 a test failed, 2 infrastructure or usage.
die() { printf '%s: %s\n' "$me" "$*" >&2; exit 2; }
say() { printf '%s: %s\n' "$me" "$*" >&2; }

# base_var NAME: a value of bases/$base.mk
base_var() {
	local v
	v=$(sed -n "s/^$1 := //p" "$top/bases/$base.mk") || true
	[ -n "$v" ] || die "bases/$base.mk has no $1"
	printf '%s\n' "$v"
}

need() {
	local t
	for t; do
		command -v "$t" >/dev/null ||
			die "the program '$t' is missing: run bin/install-packages (Debian: apt-get install), then try again"
	done
}

# need_space DIR GIB: refuse before a long step fills the disk
need_space() {
	local have
	mkdir -p "$1" || die "cannot create $1: choose another folder with CACHE= or free the path"
	have=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$have" -ge "$2" ] ||
		die "$1 has $have GiB free and this step needs $2 GiB: free some space, or move the cache with CACHE=DIR"
}

# base_tree: the unpatched kernel's tree beside build/linux, written once; prints its path
base_tree() {
	local dir=$build/base/linux
	if [ "$(git -C "$dir" rev-parse HEAD 2>/dev/null)" != "$(git -C "$build/linux" rev-parse base)" ] ||
		[ -n "$(git -C "$dir" status --porcelain -uno)" ]; then
		need_space "$build" 4
		rm -rf "$dir" "$dir.part"
		mkdir -p "$build/base"
		say "writing the base kernel's tree $dir (once)"
		pgit clone -q -b base "$build/linux" "$dir.part" || die "cannot write $dir.part (is the disk full?)"
		mv "$dir.part" "$dir"
	fi
	printf '%s\n' "$dir"
}

# tests_tree: the base with the tests of kernel code that the series has, and nothing else of it, in
# build/tests/linux; prints its path
tests_tree() {
	local dir=$build/tests/linux commits=() c change
	for c in $(git -C "$build/linux" rev-list --reverse base..series); do
		# Not of selftests alone, and of the base's files those of tests and builds only
		change=$(git -C "$build/linux" diff-tree --no-commit-id --name-status -r "$c" | grep -vE $'\t(tools/testing/|MAINTAINERS$)') || continue
		grep -E '^M' <<<"$change" | grep -vE '/(st-[^/]*|Kconfig|Makefile)$' >/dev/null || commits+=("$c")
	done
	if [ "$(cat "$dir/.git/tests" 2>/dev/null)" != "${commits[*]}" ] ||
		[ -n "$(git -C "$dir" status --porcelain -uno)" ]; then
		if [ ! -e "$dir/.git" ]; then
			need_space "$build" 4
			rm -rf "$dir.part"
			mkdir -p "$build/tests"
			say "writing the tree $dir (once)"
			pgit clone -q -b base "$build/linux" "$dir.part"
			mv "$dir.part" "$dir"
		fi
		pgit -C "$dir" fetch -q origin series
		pgit -C "$dir" reset -q --hard origin/base
		pgit -C "$dir" -c user.name=x -c user.email=x@localhost.invalid cherry-pick -X theirs "${commits[@]}" >/dev/null ||
			die "the series' tests do not apply to the base alone: see $dir"
		echo "${commits[*]}" >"$dir/.git/tests"
	fi
	printf '%s\n' "$dir"
}

# git without the user's configuration, ~/.config/git and the caller's repository (a hook sets it):
# what it writes must be the same everywhere
# shellcheck disable=SC2046
! command -v git >/dev/null || unset $(git rev-parse --local-env-vars)
unset GIT_EXTERNAL_DIFF GIT_DIFF_OPTS
export GIT_CONFIG_COUNT=4 \
	GIT_CONFIG_KEY_0=core.excludesFile GIT_CONFIG_VALUE_0=/dev/null \
	GIT_CONFIG_KEY_1=core.attributesFile GIT_CONFIG_VALUE_1=/dev/null \
	GIT_CONFIG_KEY_2=safe.directory GIT_CONFIG_VALUE_2='*' \
	GIT_CONFIG_KEY_3=gc.auto GIT_CONFIG_VALUE_3=0
pgit() {
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 git "$@"
}

[ -f "$top/bases/$base.mk" ] || die "no base '$base': bases/ has $(cd "$top/bases" && echo *.mk)"
