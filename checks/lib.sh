# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
# Sourced by the gates that judge the patched tree: what it changes, and the form of the results.
# The tree is build/linux as it stands, or the one that is given as the argument.
# shellcheck source-path=SCRIPTDIR source=../bin/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../bin/lib.sh"

# Debian's packages go before what a user has of the same name: checkpatch asks python3 for the
# dictionary and the licenses, and does without them in silence.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH PYTHONDONTWRITEBYTECODE=1
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES ARCH CROSS_COMPILE KBUILD_OUTPUT O CFLAGS LDFLAGS

[ $# != 0 ] || [ -e "$build/linux/.git" ] || "$top/bin/pq" apply >&2
linux=$(realpath "${1:-$build/linux}")
[ -e "$linux/.git" ] || die "$linux is no git tree"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nr=0 failed=0

# changed FILTER [PATHSPEC...]: the files that the series adds (A) or edits (M)
changed() {
	git -C "$linux" diff --name-only --no-renames --diff-filter="$1" base HEAD -- "${@:2}"
}

# new_lines OLD NEW: the lines of NEW that OLD has not, whatever line numbers stand in them
new_lines() {
	awk '{ key = $0; gsub(/:[0-9]+/, "", key) } FILENAME == ARGV[1] { old[key]; next }
		!(key in old) && !seen[$0]++' "$1" "$2"
}

# rule TEXT COMMAND...: the command prints what is wrong, and nothing else. If it fails without a
# word the rule could not be checked, and that is no pass either.
rule() {
	local text=$1 code
	shift
	nr=$((nr + 1))
	set +e
	(set -e && "$@") >"$work/complaints" 2>&1 </dev/null
	code=$?
	set -e
	[ $code = 0 ] || [ -s "$work/complaints" ] || echo "exit code $code" >"$work/complaints"
	if [ -s "$work/complaints" ]; then
		failed=$((failed + 1))
		echo "not ok $nr - $text"
		sed 's/^/#   /' "$work/complaints"
	else
		echo "ok $nr - $text"
	fi
}

# summary: the last line
summary() {
	echo "$((nr - failed)) passed, $failed failed, 0 skipped"
	[ $failed = 0 ]
}
