# SPDX-License-Identifier: GPL-2.0
# The base that patches/7.3/ applies to. Read by make and by bin/lib.sh: one NAME := VALUE a line.
BASE_VERSION := 7.3.4
# where it comes from: Debian's source package, the suites that may carry it, in this order
BASE_PACKAGE := linux-source-7.3
BASE_DEB_VERSION := 7.3.4-1~bpo13+1
BASE_SUITES := trixie-backports sid forky experimental
# sha256 of linux-source-7.3.tar.xz in that package
BASE_SHA256 := 76df1affb19f24926949369be1d74b60071c963c598ce8780bddd4bbf0fc3bc4
# git's id of the unpacked tree; the import commit below it is deterministic too
BASE_TREE := 5b1b93321fb4c4dd9c489ce15c4f3caaadd798d7
# upstream tag for base-commit. Debian changes none of the files that the series touches.
BASE_TAG := v7.3.4
# The commit of that tag is not known without a clone of upstream's repository. Who has one can put
# it here (git rev-parse v7.3.4^{commit}) as BASE_COMMIT, for the base-commit of mails; until then
# that is the id of the import, and says so. LINUX=CLONE takes the clone's commit.
BASE_DATE := 2026-11-15T00:00:00Z
# the neutral author of every stored patch; the submitter's own name is put in at export
BASE_FROM_NAME := dma-buf series
BASE_FROM_EMAIL := dma-buf-series@localhost.invalid
