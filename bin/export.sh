# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154
# Sourced by bin/pq: the series in the forms that its users take. All are materialised: they apply to
# the pristine base. They are made from patches/ and the overlay alone, twice the same bytes.

formats='mail mbox quilt debian single'
signer_name='' signer_email='' signer_trailers=()

# read_signer FORMAT: SIGNOFF, TRAILERS and VERSION
read_signer() {
	local t name='[^[:cntrl:][:space:]<>@"][^[:cntrl:]<>@"]*' word='[^[:cntrl:][:space:]<>@]'
	printf '%s' "${SIGNOFF-}${TRAILERS-}" | iconv -f UTF-8 -t UTF-8 >/dev/null 2>&1 || die "SIGNOFF= and TRAILERS= must be UTF-8"
	if [ -z "${SIGNOFF-}" ]; then
		[ "$1" != mail ] || die 'a mail needs SIGNOFF="Name <name@example.org>", which becomes its From and Signed-off-by: the act of the one who submits it (Documentation/process/submitting-patches.rst)'
		[ -z "${TRAILERS-}" ] || die "TRAILERS= needs SIGNOFF=: without it the patches are exported as they are stored"
		signer_name=$from_name signer_email=$from_email
		return
	fi
	[[ $SIGNOFF =~ ^($name)\ \<($word+@$word+\.$word+)\>$ ]] || die "SIGNOFF='$SIGNOFF' is not of the form \"Name <name@example.org>\""
	signer_name=${BASH_REMATCH[1]} signer_email=${BASH_REMATCH[2]}
	while IFS= read -r t; do
		[[ $t =~ ^[[:space:]]*([A-Z][A-Za-z-]*:\ [^[:cntrl:]]*[^[:cntrl:][:space:]]|)[[:space:]]*$ ]] ||
			die "TRAILERS: '$t' is not of the form \"Assisted-by: text\"; several have a semicolon or a new line between them"
		[ -z "${BASH_REMATCH[1]}" ] || signer_trailers+=(--trailer "${BASH_REMATCH[1]}")
	done < <(tr ';' '\n' <<<"${TRAILERS-}")
	signer_trailers+=(--trailer "Signed-off-by: $SIGNOFF")
}

trailers() { pgit interpret-trailers --no-divider "${signer_trailers[@]}"; }

# sign: the commits of $work/tree again, as the submitter's
sign() {
	local id when t tree=$work/tree tip=$base_id
	[ ${#signer_trailers[@]} -gt 0 ] || return 0
	for id in $(pgit -C "$tree" rev-list --reverse "$base_id..series"); do
		when=$(pgit -C "$tree" log -1 --format=%aD "$id")
		tip=$(pgit -C "$tree" log -1 --format=%B "$id" | trailers |
			GIT_AUTHOR_NAME=$signer_name GIT_AUTHOR_EMAIL=$signer_email GIT_AUTHOR_DATE=$when \
				GIT_COMMITTER_NAME=$signer_name GIT_COMMITTER_EMAIL=$signer_email GIT_COMMITTER_DATE=$when \
				pgit -C "$tree" commit-tree -p "$tip" "$id^{tree}") || die "git cannot sign $id"
		for t in "${selected[@]}"; do
			[ "${tips[$t]}" != "$id" ] || tips["$t"]=$tip
		done
	done
	pgit -C "$tree" update-ref refs/heads/series "$tip"
}

# commits TOPIC...: those topics in $work/tree, to be written as text
commits() {
	local odd
	selected=("$@")
	scan "$top"
	fatal problems stale
	rm -rf "$work/tree"
	materialise "$top"
	{ pgit -C "$work/tree" cat-file blob "$base_id:.gitattributes" 2>/dev/null || true; } >"$work/tree/.git/info/attributes"
	odd=$(pgit -C "$work/tree" diff --no-renames --numstat "$base_id" series | sed -n 's/^-\t-\t//p' | paste -sd' ')
	[ -z "$odd" ] || refuse "not text, so that neither mail nor patch(1) can carry it: $odd"
	sign
}

# base_lines COVER: what git says there of the base and of the topics before this one
base_lines() {
	local id tag='' pin
	pin=$(sed -n 's/^BASE_COMMIT := \([0-9a-f]\{40\}\)$/\1/p' "$top/bases/$base.mk")
	if id=$(pgit --git-dir="$base_git" config pq.commit); then
		:
	elif ! pinned; then
		id=$base_id tag="unknown; the base-commit is an import of a tree that is not $(base_var BASE_TAG)"
	elif [ -n "$pin" ]; then
		id=$pin
	else
		id=$base_id tag="$(base_var BASE_TAG); the base-commit is not upstream's but the import of Debian's
 $(base_var BASE_PACKAGE) $(base_var BASE_DEB_VERSION) that bin/fetch-base of the series makes"
	fi
	echo
	echo "base-commit: $id"
	[ -z "$tag" ] || echo "base-tag: $tag"
	sed -n '/^prerequisite-patch-id: /p' "$1"
}

# maintainers_tree: what get_maintainer.pl looks at. It asks of each path in MAINTAINERS if it is a folder.
maintainers_tree() {
	local tree=$work/tree list
	mapfile -t list < <(pgit -C "$tree" ls-tree -r --name-only series -- MAINTAINERS .mailmap .get_maintainer.ignore scripts/get_maintainer.pl)
	[[ " ${list[*]} " == *" scripts/get_maintainer.pl "* ]] || die "the base kernel has no scripts/get_maintainer.pl to find the recipients with"
	rm -rf "$work/kernel"
	mkdir "$work/kernel"
	pgit -C "$tree" archive series -- "${list[@]}" | tar -x -C "$work/kernel"
	(
		cd "$work/kernel" || exit
		comm -12 <(sed -n 's/^[FX]:[[:space:]]*//p' MAINTAINERS | sort) <(pgit -C "$tree" ls-tree -r -d --name-only series | sort) |
			xargs -r -d '\n' mkdir -p
	)
}

# recipients PATCH TOPIC: an address a line, the kernel's and then those of the project's index. The
# order of the keys of perl's hashes, which is another one each time, is that of equal maintainers.
# It takes a second: what it said of a patch is kept, as checkpatch's words are.
recipients() {
	local said
	said=$cache/maintainers/$(find "$work/kernel" -type f | sort | xargs cat "$1" | sha256sum | cut -d' ' -f1)
	if [ ! -e "$said" ]; then
		mkdir -p "${said%/*}"
		(cd "$work/kernel" && HOME=$work PERL_HASH_SEED=0 PERL_PERTURB_KEYS=0 perl scripts/get_maintainer.pl --no-tree --nogit --nogit-fallback --norolestats --nofixes "$1") >"$said.$$" ||
			die "scripts/get_maintainer.pl of the tree failed for $2/${1##*/}"
		mv "$said.$$" "$said"
	fi
	cat "$said"
	index | awk -F'\t' -v t="$2" '$1 == t && $2 == "L" { print $3 }'
}

# headers: the recipients on stdin as To: people, Cc: lists
headers() {
	perl -MEncode -e '
		my (%seen, %to);
		while (<>) {
			chomp;
			next if $seen{lc $_}++;
			my $kind = /</ ? "To" : "Cc";
			s/^"?(.*?)"? </encode("MIME-Q", decode("UTF-8", $1)) . " <"/e if /[^\x00-\x7f]/;
			push @{$to{$kind}}, $_;
		}
		$to{To} = delete $to{Cc} if !$to{To};
		for (grep { $to{$_} } "To", "Cc") { print "$_: ", join(",\n\t", @{$to{$_}}), "\n" }'
}

# assemble FILE FROM: a mail of git format-patch with $work/headers and, at its end, $work/base. git's
# headers come on one line each: b4 0.12 stumbles over a folded subject in a local mailbox.
assemble() {
	awk -v headers="$work/headers" -v from="$2" '
	function flush() { if (last ~ /^From: / && from != "") last = from; if (last != "") print last; last = "" }
	NR == 1 { print; while ((getline line <headers) > 0) print line; next }
	/^$/ { flush(); body = 1 }
	body { print; next }
	/^ / { last = last $0; next }
	{ flush(); last = $0 }' "$1"
	cat "$work/base"
}

# mails TOPIC DIR: its cover letter and patches, with recipients and threading
mails() {
	local cover=$top/$pdir/$1/0000-cover-letter.txt tree=$work/tree from=$base_id f id n list
	[ -f "$cover" ] || refuse "$pdir/$1/0000-cover-letter.txt is missing: the subject in its first line, an empty line, the text"
	# shellcheck disable=SC2046
	commits $(with_needs "$1")
	[ ${#selected[@]} = 1 ] || from=${tips[${selected[-2]}]}
	rm -rf "$work/raw"
	mkdir -p "$2"
	pgit -C "$tree" config branch.series.description "$(trailers <"$cover")"
	GIT_COMMITTER_NAME=$signer_name GIT_COMMITTER_EMAIL=$signer_email GIT_COMMITTER_DATE=$(pgit -C "$tree" log -1 --format=%aD series) \
		pgit -C "$tree" format-patch -q --cover-letter --cover-from-description=subject --base="$base_id" \
		--zero-commit --no-signature --abbrev=12 -M ${VERSION:+-v "$VERSION"} -o "$work/raw" "$from..series"
	list=("$work/raw"/*)
	base_lines "${list[0]}" >"$work/base"
	printf '%s\n' "$(sed '/^base-commit: /,$d' "${list[0]}")" >"$work/cover"
	mv "$work/cover" "${list[0]}"
	if [ -n "${SIGNOFF-}" ]; then
		maintainers_tree
		for f in "${list[@]:1}"; do recipients "$f" "$1" >"$f.to"; done
		cat "$work/raw"/*.to >"${list[0]}.to"
	fi
	id=$1-v${VERSION:-1}-$({ cat "$cover"; echo "$base_id ${tips[$1]}"; } | pgit hash-object --stdin | cut -c1-12)@${signer_email#*@}
	# The cover letter comes last: git encodes the names in a patch's From, but not in that of a cover letter.
	for ((n = ${#list[@]} - 1; n >= 0; n--)); do
		f=${list[n]}
		{
			[ -z "${SIGNOFF-}" ] || headers <"$f.to"
			echo "Message-ID: <$n-$id>"
			[ $n = 0 ] || printf '%s: <0-%s>\n' In-Reply-To "$id" References "$id"
		} >"$work/headers"
		from=
		[ $n != 0 ] || from=$(sed -n '/^From: /{p;q}' "$2/${list[1]##*/}")
		assemble "$f" "$from" >"$2/${f##*/}"
	done
}

# quilt_topics DIR PREFIX: the selected topics' patches as DIR/PREFIX/TOPIC/*.patch, and DIR/series
quilt_topics() {
	local t f from=$base_id
	for t in "${selected[@]}"; do
		pgit -C "$work/tree" format-patch -q -N -k --no-renames --no-encode-email-headers --abbrev=12 \
			--zero-commit --no-signature -o "$1/$2$t" "$from..${tips[$t]}"
		from=${tips[$t]}
		for f in "$1/$2$t"/*; do echo "${f#"$1/"}"; done >>"$1/series"
	done
}

# dep3 FILE...: adds what Debian wants to know
dep3() {
	local f
	for f; do
		awk '
		NR == 1 { next }
		/^Date: / { day = sprintf("%s-%02d-%02d", $5, (index("JanFebMarAprMayJunJulAugSepOctNovDec", $4) + 2) / 3, $3) }
		/^Link: / && !link { link = $2 }
		{ line[NR] = $0 }
		END {
			for (i = 2; i <= NR; i++) {
				if (line[i] == "" && !done++) print "Forwarded: " (link ? link : "no") "\nLast-Update: " day
				print line[i]
			}
		}' "$f" >"$work/dep3"
		cp "$work/dep3" "$f"
	done
}

single() {
	echo "$title"
	echo
	pgit -C "$work/tree" log --reverse --format='  %s' "$base_id..series"
	echo '---'
	pgit -C "$work/tree" diff --stat -p --no-renames --abbrev=12 "$base_id" series
}

how_to() {
	case $format in
	mail) cat <<-END ;;
		A thread per folder. Read every mail, then, with git send-email (Debian: git-email):
		    git send-email --dry-run FOLDER/*.patch
		From, To, Cc, Message-ID and threading stand in the mails. VERSION=2 makes [PATCH v2].
	END
	mbox) cat <<-END ;;
		In $base_name, in git:
		    git am *.mbox
		A .cover file is the cover letter of the mailbox of that name.
	END
	quilt) cat <<-END ;;
		In $base_name:
		    QUILT_PATCHES=THIS_FOLDER quilt push -a --fuzz=0
	END
	debian) cat <<-END ;;
		In Debian's source package of it:
		    cp -r THIS_FOLDER/features debian/patches/
		    cat THIS_FOLDER/series >>debian/patches/series
	END
	single) cat <<-END ;;
		In $base_name:
		    patch -p1 -F0 <THIS_FOLDER/${topic:-series}.patch
	END
	esac
}

export_series() {
	local format=${1-} topic='' out='' title base_name t n=0 list
	[[ -n $format && " $formats " == *" $format "* ]] || die "export: '$format' is no format; there is: $formats"
	shift
	while [ $# -gt 0 ]; do
		case $1 in
		--topic | --out)
			[ -n "${2-}" ] || die "$1 needs a value: pq help"
			if [ "$1" = --out ]; then out=$2; else topic=$2; fi
			shift
			;;
		*) die "export: unknown argument '$1': pq help" ;;
		esac
		shift
	done
	out=$(realpath -m "${out:-$build/series/$format${topic:+-$topic}}")
	from_name=$(base_var BASE_FROM_NAME) from_email=$(base_var BASE_FROM_EMAIL)
	read_signer "$format"
	[[ ${VERSION:-1} =~ ^[1-9][0-9]?$ ]] || die "VERSION=$VERSION is no version of a mailed series: 1 to 99"
	need perl tar iconv
	open_base
	read_series
	fatal cat "$work/series"
	choose "$topic"
	[ ${#topics[@]} -gt 0 ] || refuse "$pdir/series names no topic: there is nothing to export"
	[ ! -e "$out" ] || [ -z "$(ls -A "$out")" ] || grep -qs '^Made by bin/pq export' "$out/README" ||
		die "$out is not what an earlier export made: delete it, or choose another folder"
	{ mkdir -p "$(dirname "$out")" && part=$(mktemp -d "$out.XXXXXX"); } || die "cannot write $out: choose another folder with --out"
	chmod 755 "$part"
	base_name="a tree of Linux $(base_var BASE_VERSION)"
	pinned || base_name="the tree that LINUX= or TARBALL= gave"

	case $format in
	mail | mbox)
		list=("${topics[@]}")
		[ -z "$topic" ] || list=("$topic")
		title="${list[*]}: for $base_name"
		for t in "${list[@]}"; do
			n=$((n + 1))
			mails "$t" "$part/$(printf '%02d-%s' $n "$t")"
		done
		;;
	*)
		title="${selected[*]}: for $base_name"
		commits "${selected[@]}"
		;;
	esac
	case $format in
	mbox)
		for t in "$part"/*; do
			list=("$t"/*)
			mv "${list[0]}" "$t.cover"
			cat "${list[@]:1}" >"$t.mbox"
			rm -r "$t"
		done
		;;
	quilt) quilt_topics "$part" '' ;;
	debian)
		quilt_topics "$part" features/all/dma-buf/
		dep3 "$part"/features/all/dma-buf/*/*
		;;
	single) single >"$part/${topic:-series}.patch" ;;
	esac
	{
		echo "Made by bin/pq export $format. Topics $title."
		echo
		how_to
	} >"$part/README"

	trap '' INT TERM HUP
	rm -rf "$out"
	mv -T "$part" "$out"
	trap - INT TERM HUP
	part=
	say "$out has ${title%%:*}; its README says how to use it"
}
