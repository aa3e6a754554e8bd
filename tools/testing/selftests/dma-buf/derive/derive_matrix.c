// SPDX-License-Identifier: GPL-2.0
/*
 * What the files of a dma-buf let their holder do, by exporter: the files that
 * DMA_BUF_IOCTL_DERIVE makes, and those that exporters make, for which it changes
 * nothing. On a kernel without the ioctl the rows of derived files fail, and those
 * of primary files hold, but for the ones that call it. A table of what was seen
 * comes last.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <poll.h>

#include "../../kselftest.h"
#include "derive.h"

/* What is neither 0 nor an errno */
#define NO_CELL	INT_MIN
#define SKIPPED	(INT_MIN + 1)

enum { SYSTEM, CMA, UDMABUF, VGEM, QXL, VIVID, VFIO, EXPORTERS };

/* Derived files by their access, primary files, and no file: a memfd to make one of */
enum { DERIVED_R, DERIVED_W, DERIVED_RW, PRIMARY, PRIMARY_R, MEMFD, KINDS };

struct file {
	int fd, kind;
	size_t size;
};

/* More than the system heap has in one piece, so it refuses private mappings */
static size_t buffer_size(void)
{
	size_t page = getpagesize();

	return (17 * 4096 + page - 1) / page * page;
}

static int system_alloc(int mode)
{
	return heap_alloc("system", buffer_size(), mode | O_CLOEXEC);
}

static int cma_alloc(int mode)
{
	return heap_alloc("default_cma_region", buffer_size(), mode | O_CLOEXEC);
}

/* These are O_RDWR always */
static int udma_alloc(int mode)
{
	return mode == O_RDWR ? udmabuf_alloc(buffer_size()) : -EINVAL;
}

static int vgem_alloc(int mode)
{
	return drm_export("vgem", buffer_size(), mode | DRM_CLOEXEC);
}

static int qxl_alloc(int mode)
{
	return drm_export("qxl", buffer_size(), mode | DRM_CLOEXEC);
}

/* Of more than buffer_size(), whatever others have left there */
static int set_format(int node)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	int ret = buf_ioctl(node, VIDIOC_G_FMT, &format);

	format.fmt.pix.width = 640;
	format.fmt.pix.height = 360;
	format.fmt.pix.pixelformat = V4L2_PIX_FMT_YUYV;
	return ret ?: buf_ioctl(node, VIDIOC_S_FMT, &format);
}

/* The queue has one owner, so the node stays open; each call exports its buffer anew */
static int vivid_alloc(int mode)
{
	struct v4l2_requestbuffers req = {
		.count = 1,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_MMAP,
	};
	struct v4l2_exportbuffer export = { .type = req.type, .flags = mode | O_CLOEXEC };
	static int node = -1;
	int ret;

	if (node < 0) {
		node = open_vivid(0);
		if (node < 0)
			return node;
		ret = set_format(node) ?: buf_ioctl(node, VIDIOC_REQBUFS, &req);
		if (ret)
			return ret;
	}
	ret = buf_ioctl(node, VIDIOC_EXPBUF, &export);
	return ret ?: export.fd;
}

static int bar_alloc(int mode)
{
	return vfio_alloc(buffer_size(), mode | O_CLOEXEC);
}

static const struct {
	const char *name;
	int (*alloc)(int mode);
} exporters[EXPORTERS] = {
	[SYSTEM] = { "system", system_alloc },
	[CMA] = { "cma", cma_alloc },
	[UDMABUF] = { "udmabuf", udma_alloc },
	[VGEM] = { "vgem", vgem_alloc },
	[QXL] = { "qxl", qxl_alloc },
	[VIVID] = { "vivid", vivid_alloc },
	[VFIO] = { "vfio", bar_alloc },
};

static const struct {
	const char *name, *title;
} kinds[KINDS] = {
	[DERIVED_R] = { "derived-r", "derived O_RDONLY" },
	[DERIVED_W] = { "derived-w", "derived O_WRONLY" },
	[DERIVED_RW] = { "derived-rw", "derived O_RDWR" },
	[PRIMARY] = { "primary", "primary O_RDWR" },
	[PRIMARY_R] = { "primary-r", "primary O_RDONLY" },
	[MEMFD] = { "memfd", "memfd with seals" },
};

/* The operations. They return 0, a negative errno, or SKIPPED */

static int do_map(const struct file *f, unsigned long prot)
{
	return try_mmap(f->fd, f->size, prot, MAP_SHARED);
}

static int do_map_private(const struct file *f, unsigned long prot)
{
	return try_mmap(f->fd, f->size, prot, MAP_PRIVATE);
}

static int do_mprotect(const struct file *f, unsigned long prot)
{
	void *p = mmap(NULL, f->size, PROT_READ, MAP_SHARED, f->fd, 0);
	int ret;

	if (p == MAP_FAILED)
		return -errno;
	ret = mprotect(p, f->size, prot) ? -errno : 0;
	munmap(p, f->size);
	return ret;
}

static int do_exec(const struct file *f, unsigned long flags)
{
	char path[32] = "", *argv[] = { path, NULL };

	if (!(flags & AT_EMPTY_PATH))
		snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
	execveat(f->fd, path, argv, NULL, flags);
	return -errno;
}

/* What all access modes yield, or the first other thing */
static int do_reopen(const struct file *f, unsigned long flags)
{
	static const int mode[] = { O_RDONLY, O_WRONLY, O_RDWR };
	int i, fd;

	for (i = 0; i < 3; i++) {
		fd = reopen(f->fd, mode[i] | flags);
		if (fd >= 0)
			close(fd);
		if (fd != -ENXIO)
			return fd < 0 ? fd : 0;
	}
	return -ENXIO;
}

static int do_sync(const struct file *f, unsigned long flags)
{
	return sync_cpu(f->fd, flags);
}

static int do_export_fence(const struct file *f, unsigned long flags)
{
	int fd = export_sync_file(f->fd, flags);

	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

static int do_import_fence(const struct file *f, unsigned long flags)
{
	return import_sync_file(f->fd, flags);
}

static int do_set_name(const struct file *f, unsigned long arg)
{
	char name[16];
	int ret;

	snprintf(name, sizeof(name), "name%lu%d", arg, f->kind);
	ret = set_name(f->fd, name);
	if (ret)
		return ret;
	return strcmp(name, fdinfo(f->fd, "name")) ? -ENOMSG : 0;
}

static int do_poll(const struct file *f, unsigned long events)
{
	struct pollfd pfd = { .fd = f->fd, .events = events };
	int ret = poll(&pfd, 1, 1000);

	if (ret < 0)
		return -errno;
	return pfd.revents == pfd.events ? 0 : -ETIME;
}

static int do_llseek(const struct file *f, unsigned long arg)
{
	off_t end = lseek(f->fd, arg, SEEK_END);

	if (end < 0 || lseek(f->fd, arg, SEEK_SET) < 0)
		return -errno;
	return end >= (off_t)f->size ? 0 : -ESPIPE;
}

/* The line of fdinfo that tells a derived file */
static int do_fdinfo(const struct file *f, unsigned long arg __always_unused)
{
	static const char * const access[KINDS] = {
		[DERIVED_R] = "r", [DERIVED_W] = "w", [DERIVED_RW] = "rw",
	};

	return strcmp(fdinfo(f->fd, "derived"), access[f->kind] ?: "") ? -ENOMSG : 0;
}

static int do_derive(const struct file *f, unsigned long flags)
{
	int fd = derive(f->fd, flags);

	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

/* What all of the flags yield that DERIVE does not know, or the first other thing */
static int do_derive_unknown(const struct file *f, unsigned long mode)
{
	unsigned int flag;
	int ret;

	for (flag = 1; flag; flag <<= 1) {
		if (flag & (O_ACCMODE | O_CLOEXEC))
			continue;
		ret = do_derive(f, mode | flag);
		if (ret != -EINVAL)
			return ret;
	}
	return -EINVAL;
}

static int do_prime(const struct file *f, unsigned long arg __always_unused)
{
	int ret, vgem = open_drm("vgem");

	if (vgem < 0)
		return SKIPPED;
	ret = prime_import(vgem, f->fd);
	close(vgem);
	return ret;
}

/* iommufd has no ioctls for 32-bit programs */
static int do_iommufd(const struct file *f, unsigned long flags)
{
	int ret;

	if (access("/dev/iommu", R_OK | W_OK))
		return SKIPPED;
	ret = ioas_import(f->fd, f->size, flags);
	return ret == -ENOTTY && sizeof(long) == 4 ? SKIPPED : ret;
}

static int do_udmabuf(const struct file *f, unsigned long seals)
{
	int fd = udmabuf_seal(f->size, seals);

	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

/*
 * What the core answers for a kind of file; where it lets the call through (0)
 * it is up to the exporter. "calls_derive": on the base not even of the primary
 * files.
 */
struct op {
	const char *name;
	int (*run)(const struct file *f, unsigned long arg);
	unsigned long arg;
	bool calls_derive;
	int core[KINDS];
	int exporter[EXPORTERS];
};

#define CORE(r, w, rw, primary, primary_r)					\
	.core = { r, w, rw, primary, primary_r, NO_CELL }

#define SYNC_START	DMA_BUF_SYNC_START
#define SYNC_END	DMA_BUF_SYNC_END
#define SYNC_R		DMA_BUF_SYNC_READ
#define SYNC_W		DMA_BUF_SYNC_WRITE
#define SYNC_RW		DMA_BUF_SYNC_RW
#define MAP_R		IOMMU_IOAS_MAP_READABLE
#define MAP_RW		(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

/* VFIO's dma-bufs may not be mmapped, most others not as a copy */
#define NO_MMAP		.exporter = { [VFIO] = -EINVAL }
#define NO_MPROTECT	.exporter = { [VFIO] = NO_CELL }
#define NO_COPY		.exporter = { -EINVAL, -EINVAL, -EINVAL, -EINVAL, -EINVAL, 0, -EINVAL }
/* vgem does not take the memory of a device, and iommufd nothing else */
#define NO_BAR		.exporter = { [VFIO] = -EOPNOTSUPP }
#define BAR_ONLY	.exporter = { -EOPNOTSUPP, -EOPNOTSUPP, -EOPNOTSUPP,	\
				      -EOPNOTSUPP, -EOPNOTSUPP, -EOPNOTSUPP, 0 }

static const struct op file_ops[] = {
	{ "mmap READ", do_map, PROT_READ,
	  CORE(0, -EACCES, 0, 0, 0), NO_MMAP },
	{ "mmap WRITE", do_map, PROT_WRITE,
	  CORE(-EACCES, -EACCES, 0, 0, -EACCES), NO_MMAP },
	{ "mmap READ WRITE", do_map, PROT_READ | PROT_WRITE,
	  CORE(-EACCES, -EACCES, 0, 0, -EACCES), NO_MMAP },
	{ "mmap private", do_map_private, PROT_READ | PROT_WRITE,
	  CORE(-EINVAL, -EACCES, -EINVAL, 0, 0), NO_COPY },
	{ "mmap EXEC", do_map, PROT_READ | PROT_EXEC,
	  CORE(-EPERM, -EACCES, -EPERM, -EPERM, -EPERM) },
	{ "mprotect WRITE", do_mprotect, PROT_READ | PROT_WRITE,
	  CORE(-EACCES, -EACCES, 0, 0, -EACCES), NO_MPROTECT },
	{ "exec by path", do_exec, 0,
	  CORE(-EACCES, -EACCES, -EACCES, -EACCES, -EACCES) },
	{ "exec by fd", do_exec, AT_EMPTY_PATH,
	  CORE(-EACCES, -EACCES, -EACCES, -EACCES, -EACCES) },
	{ "reopen", do_reopen, 0,
	  CORE(-ENXIO, -ENXIO, -ENXIO, -ENXIO, -ENXIO) },

	{ "SYNC START READ", do_sync, SYNC_START | SYNC_R,
	  CORE(0, -EACCES, 0, 0, 0) },
	{ "SYNC END READ", do_sync, SYNC_END | SYNC_R,
	  CORE(0, -EACCES, 0, 0, 0) },
	{ "SYNC START WRITE", do_sync, SYNC_START | SYNC_W,
	  CORE(-EACCES, 0, 0, 0, 0) },
	{ "SYNC END WRITE", do_sync, SYNC_END | SYNC_W,
	  CORE(-EACCES, 0, 0, 0, 0) },
	{ "SYNC START RW", do_sync, SYNC_START | SYNC_RW,
	  CORE(-EACCES, -EACCES, 0, 0, 0) },
	{ "SYNC END RW", do_sync, SYNC_END | SYNC_RW,
	  CORE(-EACCES, -EACCES, 0, 0, 0) },
	{ "EXPORT_SYNC_FILE", do_export_fence, SYNC_RW,
	  CORE(0, 0, 0, 0, 0) },
	{ "IMPORT_SYNC_FILE READ", do_import_fence, SYNC_R,
	  CORE(0, 0, 0, 0, 0) },
	{ "IMPORT_SYNC_FILE WRITE", do_import_fence, SYNC_W,
	  CORE(-EACCES, 0, 0, 0, 0) },
	{ "IMPORT_SYNC_FILE RW", do_import_fence, SYNC_RW,
	  CORE(-EACCES, 0, 0, 0, 0) },
	{ "SET_NAME", do_set_name, 1,
	  CORE(-EACCES, 0, 0, 0, 0) },
	{ "poll", do_poll, POLLIN | POLLOUT,
	  CORE(0, 0, 0, 0, NO_CELL) },
	{ "llseek", do_llseek, 0,
	  CORE(0, 0, 0, 0, NO_CELL) },
	{ "fdinfo", do_fdinfo, 0,
	  CORE(0, 0, 0, 0, 0) },

	{ "DERIVE O_RDONLY", do_derive, O_RDONLY, true,
	  CORE(0, -EACCES, 0, 0, 0) },
	{ "DERIVE O_WRONLY", do_derive, O_WRONLY, true,
	  CORE(-EACCES, 0, 0, 0, -EACCES) },
	{ "DERIVE O_RDWR", do_derive, O_RDWR, true,
	  CORE(-EACCES, -EACCES, 0, 0, -EACCES) },
	{ "DERIVE no access", do_derive, O_ACCMODE, true,
	  CORE(-EINVAL, -EINVAL, -EINVAL, -EINVAL, -EINVAL) },
	{ "DERIVE unknown flag", do_derive_unknown, O_RDONLY, true,
	  CORE(-EINVAL, -EINVAL, -EINVAL, -EINVAL, -EINVAL) },

	{ "import by vgem", do_prime, 0,
	  CORE(-EACCES, -EACCES, 0, 0, 0), NO_BAR },
	{ "iommufd READABLE", do_iommufd, MAP_R,
	  CORE(-EACCES, -EACCES, 0, 0, 0), BAR_ONLY },
	{ "iommufd WRITEABLE", do_iommufd, MAP_RW,
	  CORE(-EACCES, -EACCES, 0, 0, 0), BAR_ONLY },
};

#define SEALS(text, seals, expected) {						\
	.name = text, .run = do_udmabuf, .arg = seals,				\
	.core = { NO_CELL, NO_CELL, NO_CELL, NO_CELL, NO_CELL, expected },	\
	.exporter = { NO_CELL, NO_CELL, 0, NO_CELL, NO_CELL, NO_CELL, NO_CELL }	\
}

/* The seals that protect the consumer from the producer, as DERIVE does the other way */
static const struct op memfd_ops[] = {
	SEALS("no seal", 0, -EINVAL),
	SEALS("GROW", F_SEAL_GROW, -EINVAL),
	SEALS("SHRINK", F_SEAL_SHRINK, 0),
	SEALS("SHRINK WRITE", F_SEAL_SHRINK | F_SEAL_WRITE, -EINVAL),
	SEALS("SHRINK FUTURE_WRITE", F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE, -EINVAL),
};

#define MAX_OPS ARRAY_SIZE(file_ops)

static int seen[KINDS][MAX_OPS][EXPORTERS];

static const struct op *nth_op(int kind, size_t i)
{
	if (kind != MEMFD)
		return i < ARRAY_SIZE(file_ops) ? &file_ops[i] : NULL;
	return i < ARRAY_SIZE(memfd_ops) ? &memfd_ops[i] : NULL;
}

/* Whether VFIO lets its dma-bufs be mapped, which is none of DERIVE's business */
static bool vfio_maps;

/* Whether iommufd has been taught to keep to reading; its own tests hold it to that */
static bool iommufd_reads;

static int expected(int kind, const struct op *op, int exporter)
{
	bool maps = op->run == do_map || op->run == do_mprotect;
	int own = exporter == VFIO && maps && vfio_maps ? 0 : op->exporter[exporter];
	int core = op->core[kind];

	if (core == NO_CELL || own == NO_CELL ||
	    (exporter == UDMABUF && kind == PRIMARY_R))
		return NO_CELL;
	if (kind == DERIVED_R && op->run == do_iommufd && op->arg == MAP_R && iommufd_reads)
		core = 0;
	return core ?: own;
}

/* Of the row, where not all exporters agree: that of the first */
static int expected_of_row(int kind, const struct op *op, bool base)
{
	int exporter = 0;

	if (base && (kind <= DERIVED_RW || op->calls_derive))
		return -ENOTTY;
	while (expected(kind, op, exporter) == NO_CELL)
		exporter++;
	return expected(kind, op, exporter);
}

static const char *text(int value)
{
	static char number[16];

	switch (value) {
	case 0:
		return "ok";
	case NO_CELL:
	case SKIPPED:
		return "-";
	case -EOPNOTSUPP:
		return "ENOTSUP";
	default:
		snprintf(number, sizeof(number), "%d", value);
		return strerrorname_np(-value) ?: number;
	}
}

/* The file of a kind, or why there is none */
static int get_file(int exporter, int kind, int primary)
{
	static const int mode[] = { O_RDONLY, O_WRONLY, O_RDWR };

	if (primary < 0)
		return no_exporter(primary) ? SKIPPED : primary;
	switch (kind) {
	case PRIMARY:
		return dup(primary);
	case PRIMARY_R:
		return exporters[exporter].alloc(O_RDONLY | O_CLOEXEC);
	case MEMFD:
		return 0;
	default:
		return derive(primary, mode[kind] | O_CLOEXEC);
	}
}

static void test_cell(int exporter, const struct op *op, const struct file *f)
{
	int want = expected(f->kind, op, exporter);
	int *got = &seen[f->kind][op - nth_op(f->kind, 0)][exporter];
	char name[64];

	if (want == NO_CELL) {
		*got = NO_CELL;
		return;
	}
	snprintf(name, sizeof(name), "%s: %s %s", exporters[exporter].name,
		 kinds[f->kind].name, op->name);
	*got = f->fd < 0 ? f->fd : op->run(f, op->arg);
	if (*got == SKIPPED) {
		ksft_test_result_code(KSFT_SKIP, name, "%s",
				      f->fd < 0 ? "no such exporter" : "no such importer");
		return;
	}
	if (*got != want) {
		ksft_print_msg("%s, expected", text(*got));
		printf(" %s\n", text(want));
	}
	ksft_test_result(*got == want, "%s\n", name);
}

static void test_exporter(int exporter)
{
	int kind, primary = exporters[exporter].alloc(O_RDWR);
	const struct op *op;
	size_t i;

	for (kind = 0; kind < KINDS; kind++) {
		struct file f = {
			.fd = get_file(exporter, kind, primary),
			.kind = kind,
			.size = buffer_size(),
		};

		for (i = 0; (op = nth_op(kind, i)); i++)
			test_cell(exporter, op, &f);
		if (f.fd > 0)
			close(f.fd);
	}
	if (primary >= 0)
		close(primary);
}

static unsigned int count_cells(void)
{
	unsigned int n = 0;
	const struct op *op;
	int kind, exporter;
	size_t i;

	for (kind = 0; kind < KINDS; kind++)
		for (i = 0; (op = nth_op(kind, i)); i++)
			for (exporter = 0; exporter < EXPORTERS; exporter++)
				n += expected(kind, op, exporter) != NO_CELL;
	return n;
}

static void print_row(int kind, size_t i)
{
	const struct op *op = nth_op(kind, i);
	int exporter;

	if (op->core[kind] == NO_CELL)
		return;
	ksft_print_msg("  %-23s", op->name);
	printf(" %-8s", text(expected_of_row(kind, op, true)));
	printf("%-8s|", text(expected_of_row(kind, op, false)));
	for (exporter = 0; exporter < EXPORTERS; exporter++) {
		int got = seen[kind][i][exporter], want = expected(kind, op, exporter);

		printf(" %s%c%*s", text(got), got == want || got == SKIPPED ? ' ' : '!',
		       7 - (int)strlen(text(got)), "");
	}
	printf("\n");
}

static void print_table(void)
{
	int kind, exporter;
	size_t i;

	ksft_print_msg("What was seen; ! means that the series should do otherwise. base and\n");
	ksft_print_msg("series: what is expected without and with DERIVE, of the first exporter\n");
	ksft_print_msg("if they differ. ENOTSUP is EOPNOTSUPP, - was not tried.\n");
	for (kind = 0; kind < KINDS; kind++) {
		ksft_print_msg("%-25s %-8s%-8s|", kinds[kind].title, "base", "series");
		for (exporter = 0; exporter < EXPORTERS; exporter++)
			printf(" %-8s", exporters[exporter].name);
		printf("\n");
		for (i = 0; nth_op(kind, i); i++)
			print_row(kind, i);
	}
}

static bool takes_readers(void)
{
	int buf = udma_alloc(O_RDWR), r = derive(buf, O_RDONLY), ret = -EACCES;

	if (r >= 0) {
		ret = ioas_import(r, buffer_size(), MAP_R);
		close(r);
	}
	if (buf >= 0)
		close(buf);
	return ret == -EOPNOTSUPP;
}

int main(void)
{
	int exporter, bar = bar_alloc(O_RDWR);

	vfio_maps = bar >= 0 && !try_mmap(bar, buffer_size(), PROT_READ, MAP_SHARED);
	if (bar >= 0)
		close(bar);
	iommufd_reads = takes_readers();
	ksft_print_header();
	ksft_set_plan(count_cells());
	for (exporter = 0; exporter < EXPORTERS; exporter++)
		test_exporter(exporter);
	print_table();
	ksft_finished();
}
