// SPDX-License-Identifier: GPL-2.0
/*
 * Umems of dma-bufs: by which fd a driver gets one for what, in which direction it is
 * mapped, also when the dma-buf moves, and what a device then reaches by DMA address.
 */
#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/file.h>
#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <rdma/ib_umem.h>
#include <rdma/ib_verbs.h>
#include <uapi/rdma/ib_user_ioctl_verbs.h>

#include "../../dma-buf/exporter.h"
#include "../../dma-buf/st-derive.h"

/* The umem begins and ends within pages, and within segments of the dma-buf */
#define SEGMENT		(4 * PAGE_SIZE)
#define SIZE		(4 * SEGMENT)
#define OFFSET		(3 * PAGE_SIZE + 512)
#define LENGTH		(6 * PAGE_SIZE)
#define FIRST_PAGE	(3 * PAGE_SIZE)
#define ALL_PAGES	(7 * PAGE_SIZE)

/**
 * struct mover - what a dma-buf of these tests is
 * @data: two places that it can be at
 * @at: the one where it is
 * @pins: how often it is pinned
 * @mapped: how many mappings there are of each direction
 */
struct mover {
	void *data[2];
	unsigned int at;
	int pins;
	int mapped[DMA_NONE];
};

/* What user space can name the dma-buf by */
enum { PRIMARY, READ_ONLY, WRITE_ONLY, READ_WRITE, FDS };

/* How a driver can get a umem */
enum umem_kind { DYNAMIC, PINNED, DMA_DEVICE, REVOCABLE, KINDS };

struct fixture {
	struct ib_device *ibdev;
	struct dma_buf *buf;
	struct mover *mover;
	int fd[FDS];
	int invalidated;
	int revoked;
};

static int mover_pin(struct dma_buf_attachment *attach)
{
	struct mover *m = attach->dmabuf->priv;

	dma_resv_assert_held(attach->dmabuf->resv);
	m->pins++;
	return 0;
}

static void mover_unpin(struct dma_buf_attachment *attach)
{
	struct mover *m = attach->dmabuf->priv;

	dma_resv_assert_held(attach->dmabuf->resv);
	m->pins--;
}

static struct sg_table *mover_map(struct dma_buf_attachment *attach,
				  enum dma_data_direction dir)
{
	struct mover *m = attach->dmabuf->priv;
	struct sg_table *sgt = kzalloc_obj(*sgt);
	struct scatterlist *sg;
	int i, ret;

	if (!sgt)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table(sgt, SIZE / SEGMENT, GFP_KERNEL);
	if (ret)
		goto err_sgt;
	for_each_sgtable_sg(sgt, sg, i)
		sg_set_page(sg, virt_to_page(m->data[m->at] + i * SEGMENT), SEGMENT, 0);
	ret = dma_map_sgtable(attach->dev, sgt, dir, DMA_BUF_MAP_ATTRS);
	if (ret)
		goto err_table;
	m->mapped[dir]++;
	return sgt;

err_table:
	sg_free_table(sgt);
err_sgt:
	kfree(sgt);
	return ERR_PTR(ret);
}

static void mover_unmap(struct dma_buf_attachment *attach, struct sg_table *sgt,
			enum dma_data_direction dir)
{
	struct mover *m = attach->dmabuf->priv;

	m->mapped[dir]--;
	dma_unmap_sgtable(attach->dev, sgt, dir, DMA_BUF_MAP_ATTRS);
	sg_free_table(sgt);
	kfree(sgt);
}

static void mover_free(struct mover *m)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(m->data); i++)
		if (m->data[i])
			free_pages_exact(m->data[i], SIZE);
	kfree(m);
}

static void mover_release(struct dma_buf *buf)
{
	mover_free(buf->priv);
}

static const struct dma_buf_ops mover_ops = {
	.pin = mover_pin,
	.unpin = mover_unpin,
	.map_dma_buf = mover_map,
	.unmap_dma_buf = mover_unmap,
	.release = mover_release,
};

static struct mover *mover_alloc(void)
{
	struct mover *m = kzalloc_obj(*m);
	int i;

	if (!m)
		return NULL;
	for (i = 0; i < ARRAY_SIZE(m->data); i++) {
		m->data[i] = alloc_pages_exact(SIZE, GFP_KERNEL | __GFP_ZERO);
		if (!m->data[i]) {
			mover_free(m);
			return NULL;
		}
	}
	return m;
}

static struct dma_buf *mover_export(void)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct mover *m = mover_alloc();
	struct dma_buf *buf;

	if (!m)
		return ERR_PTR(-ENOMEM);
	exp_info.ops = &mover_ops;
	exp_info.size = SIZE;
	exp_info.flags = O_RDWR;
	exp_info.priv = m;
	buf = dma_buf_export(&exp_info);
	if (IS_ERR(buf))
		mover_free(m);
	return buf;
}

/* Only what is in the pages of the umem has the value, so that others are noticed */
static void mover_fill(struct mover *m, u8 value)
{
	memset(m->data[m->at], ~value, SIZE);
	memset(m->data[m->at] + FIRST_PAGE, value, ALL_PAGES);
}

/* To where nothing is left that a device may have been told before */
static void mover_move(struct dma_buf *buf, u8 value)
{
	struct mover *m = buf->priv;

	dma_resv_lock(buf->resv, NULL);
	dma_buf_invalidate_mappings(buf);
	memset(m->data[m->at], ~value, SIZE);
	m->at = !m->at;
	mover_fill(m, value);
	dma_resv_unlock(buf->resv);
}

static void expect_mapped(struct kunit *test, int to_device, int bidirectional)
{
	struct fixture *f = test->priv;

	KUNIT_EXPECT_EQ(test, f->mover->mapped[DMA_TO_DEVICE], to_device);
	KUNIT_EXPECT_EQ(test, f->mover->mapped[DMA_BIDIRECTIONAL], bidirectional);
	KUNIT_EXPECT_EQ(test, f->mover->mapped[DMA_FROM_DEVICE], 0);
}

static void expect_device_reads(struct kunit *test, struct ib_umem_dmabuf *umem_dmabuf,
				u8 value)
{
	struct sg_table *sgt = &umem_dmabuf->umem.sgt_append.sgt;
	struct scatterlist *sg;
	size_t length = 0;
	int i;

	for_each_sgtable_dma_sg(sgt, sg, i)
		length += sg_dma_len(sg);
	KUNIT_EXPECT_EQ(test, length, ALL_PAGES);
	KUNIT_EXPECT_TRUE(test, st_device_reads(umem_dmabuf->attach, sgt, value));
}

static int map_pages(struct ib_umem_dmabuf *umem_dmabuf)
{
	int ret;

	ib_umem_dmabuf_revoke_lock(umem_dmabuf);
	ret = ib_umem_dmabuf_map_pages(umem_dmabuf);
	ib_umem_dmabuf_revoke_unlock(umem_dmabuf);
	return ret;
}

/* As a driver does that maps again when its device needs the pages */
static void invalidate(struct dma_buf_attachment *attach)
{
	struct ib_umem_dmabuf *umem_dmabuf = attach->importer_priv;
	struct fixture *f = umem_dmabuf->private;

	if (f)
		f->invalidated++;
	ib_umem_dmabuf_unmap_pages(umem_dmabuf);
}

static const struct dma_buf_attach_ops attach_ops = {
	.invalidate_mappings = invalidate,
};

static void revoke(void *priv)
{
	struct fixture *f = priv;

	f->revoked++;
}

/* As a driver gets one, with its pages mapped; DMA_TO_DEVICE is what it promises */
static struct ib_umem_dmabuf *get(struct fixture *f, enum umem_kind kind, int fd, int access,
				  enum dma_data_direction dir)
{
	struct device *dma_device = f->ibdev->dma_device;
	struct ib_umem_dmabuf *umem_dmabuf;
	int ret;

	switch (kind) {
	case PINNED:
		return ib_umem_dmabuf_get_pinned(f->ibdev, OFFSET, LENGTH, fd, access, dir);
	case DMA_DEVICE:
		return ib_umem_dmabuf_get_pinned_with_dma_device(f->ibdev, dma_device, OFFSET,
								 LENGTH, fd, access, dir);
	case REVOCABLE:
		umem_dmabuf = ib_umem_dmabuf_get_pinned_revocable_and_lock(f->ibdev, OFFSET,
									   LENGTH, fd,
									   access, dir);
		if (IS_ERR(umem_dmabuf))
			return umem_dmabuf;
		ib_umem_dmabuf_set_revoke_locked(umem_dmabuf, revoke, f);
		ib_umem_dmabuf_revoke_unlock(umem_dmabuf);
		return umem_dmabuf;
	default:
		umem_dmabuf = ib_umem_dmabuf_get(f->ibdev, OFFSET, LENGTH, fd, access, dir,
						 &attach_ops);
		if (IS_ERR(umem_dmabuf))
			return umem_dmabuf;
		umem_dmabuf->private = f;
		ret = map_pages(umem_dmabuf);
		if (!ret)
			return umem_dmabuf;
		ib_umem_release(&umem_dmabuf->umem);
		return ERR_PTR(ret);
	}
}

static void release(void *data)
{
	struct ib_umem_dmabuf *umem_dmabuf = data;

	ib_umem_release(&umem_dmabuf->umem);
}

/* Until the end of the test, or put_umem() */
static struct ib_umem_dmabuf *get_umem(struct kunit *test, enum umem_kind kind, int fd, int access,
				       enum dma_data_direction dir)
{
	struct ib_umem_dmabuf *umem_dmabuf = get(test->priv, kind, fd, access, dir);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, umem_dmabuf);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, release, umem_dmabuf), 0);
	return umem_dmabuf;
}

static void put_umem(struct kunit *test, struct ib_umem_dmabuf *umem_dmabuf)
{
	kunit_release_action(test, release, umem_dmabuf);
}

/* What one call leaves, whether it has been refused or what it returned was released */
static void expect_nothing_left(struct kunit *test, long refs)
{
	struct fixture *f = test->priv;

	expect_mapped(test, 0, 0);
	KUNIT_EXPECT_EQ(test, f->mover->pins, 0);
	KUNIT_EXPECT_EQ(test, file_count(f->buf->file), refs);
}

static const struct {
	int flags;
	bool writes;
} accesses[] = {
	{ 0 },
	{ IB_ACCESS_REMOTE_READ },
	{ IB_ACCESS_REMOTE_READ | IB_ACCESS_RELAXED_ORDERING },
	{ IB_ACCESS_LOCAL_WRITE, true },
	{ IB_ACCESS_REMOTE_WRITE, true },
	{ IB_ACCESS_REMOTE_READ | IB_ACCESS_REMOTE_ATOMIC, true },
	{ IB_ACCESS_MW_BIND, true },
};

static void expect_umem(struct kunit *test, struct ib_umem_dmabuf *umem_dmabuf, enum umem_kind kind,
			bool writes, enum dma_data_direction dir)
{
	struct fixture *f = test->priv;

	expect_mapped(test, dir == DMA_TO_DEVICE, dir == DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_EQ(test, f->mover->pins, kind != DYNAMIC);
	KUNIT_EXPECT_EQ(test, umem_dmabuf->attach->limit, dir);
	KUNIT_EXPECT_EQ(test, (bool)umem_dmabuf->umem.writable, writes);
	expect_device_reads(test, umem_dmabuf, 0x5a);
}

/* Whether the driver promises to keep to the access flags, or just has some */
static void access_with(struct kunit *test, enum umem_kind kind, int fd, int access, bool promises)
{
	int flags = accesses[access].flags;
	bool writes = accesses[access].writes, good = fd == PRIMARY || fd == READ_WRITE;
	enum dma_data_direction dir = promises ? ib_access_dma_dir(flags) : DMA_BIDIRECTIONAL;
	struct fixture *f = test->priv;
	struct ib_umem_dmabuf *umem_dmabuf;
	long refs = file_count(f->buf->file);

	if (fd == READ_ONLY)
		good = promises && !writes;
	umem_dmabuf = get(f, kind, f->fd[fd], flags, dir);
	KUNIT_EXPECT_EQ_MSG(test, PTR_ERR_OR_ZERO(umem_dmabuf), good ? 0 : -EACCES,
			    "kind %d, fd %d, flags %#x, promises %d", kind, fd, flags, promises);
	if (!IS_ERR(umem_dmabuf)) {
		expect_umem(test, umem_dmabuf, kind, writes, dir);
		ib_umem_release(&umem_dmabuf->umem);
	}
	expect_nothing_left(test, refs);
}

/* Who gets a umem by which fd, and in which direction it is mapped and unmapped */
static void umem_dmabuf_test_access(struct kunit *test)
{
	struct fixture *f = test->priv;
	int kind, fd, access;

	mover_fill(f->mover, 0x5a);
	for (access = 0; access < ARRAY_SIZE(accesses); access++)
		KUNIT_EXPECT_EQ(test, ib_access_dma_dir(accesses[access].flags),
				accesses[access].writes ? DMA_BIDIRECTIONAL : DMA_TO_DEVICE);
	for (kind = 0; kind < KINDS; kind++)
		for (fd = 0; fd < FDS; fd++)
			for (access = 0; access < ARRAY_SIZE(accesses); access++) {
				access_with(test, kind, fd, access, false);
				access_with(test, kind, fd, access, true);
			}
}

/* A buffer that has moved is mapped as it was before, and read from where it is now */
static void umem_dmabuf_test_moves(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct ib_umem_dmabuf *umem_dmabuf;
	int i;

	mover_fill(f->mover, 1);
	umem_dmabuf = get_umem(test, DYNAMIC, f->fd[READ_ONLY], IB_ACCESS_REMOTE_READ,
			       DMA_TO_DEVICE);
	for (i = 2; i < 5; i++) {
		expect_mapped(test, 1, 0);
		mover_move(f->buf, i);
		KUNIT_EXPECT_EQ(test, f->invalidated, i - 1);
		expect_mapped(test, 0, 0);
		KUNIT_ASSERT_EQ(test, map_pages(umem_dmabuf), 0);
		expect_device_reads(test, umem_dmabuf, i);
	}
	/* what is mapped already is not mapped again */
	KUNIT_EXPECT_EQ(test, map_pages(umem_dmabuf), 0);
	expect_mapped(test, 1, 0);
}

/* One that is revoked is unmapped as it was mapped, and stays so */
static void umem_dmabuf_test_revoke(struct kunit *test)
{
	struct fixture *f = test->priv;
	long refs = file_count(f->buf->file);
	struct ib_umem_dmabuf *umem_dmabuf;

	umem_dmabuf = get_umem(test, REVOCABLE, f->fd[READ_ONLY], 0, DMA_TO_DEVICE);
	expect_mapped(test, 1, 0);
	KUNIT_EXPECT_EQ(test, f->mover->pins, 1);
	mover_move(f->buf, 1);
	KUNIT_EXPECT_EQ(test, f->revoked, 1);
	expect_mapped(test, 0, 0);
	KUNIT_EXPECT_EQ(test, f->mover->pins, 0);
	KUNIT_EXPECT_EQ(test, map_pages(umem_dmabuf), -EINVAL);
	put_umem(test, umem_dmabuf);
	KUNIT_EXPECT_EQ(test, f->revoked, 1);
	expect_nothing_left(test, refs);

	/* a driver can revoke, too */
	umem_dmabuf = get_umem(test, REVOCABLE, f->fd[READ_ONLY], 0, DMA_TO_DEVICE);
	ib_umem_dmabuf_revoke(umem_dmabuf);
	KUNIT_EXPECT_EQ(test, f->revoked, 2);
	expect_mapped(test, 0, 0);
	put_umem(test, umem_dmabuf);
	expect_nothing_left(test, refs);
}

/* A umem that may be written to is nothing that another fd can be used for */
static void umem_dmabuf_test_alternating(struct kunit *test)
{
	struct ib_umem_dmabuf *writer, *reader, *refused;
	struct fixture *f = test->priv;
	int round;

	for (round = 1; round <= KINDS; round++) {
		long refs = file_count(f->buf->file);

		mover_fill(f->mover, 0x5a);
		writer = get_umem(test, round % KINDS, f->fd[READ_WRITE], IB_ACCESS_LOCAL_WRITE,
				  DMA_BIDIRECTIONAL);
		refused = get(f, round % KINDS, f->fd[READ_ONLY], IB_ACCESS_LOCAL_WRITE,
			      DMA_BIDIRECTIONAL);
		KUNIT_EXPECT_EQ(test, PTR_ERR(refused), -EACCES);
		reader = get_umem(test, round % KINDS, f->fd[READ_ONLY], 0, DMA_TO_DEVICE);
		expect_mapped(test, 1, 1);
		KUNIT_EXPECT_EQ(test, writer->attach->limit, DMA_BIDIRECTIONAL);
		KUNIT_EXPECT_EQ(test, reader->attach->limit, DMA_TO_DEVICE);
		put_umem(test, reader);
		expect_mapped(test, 0, 1);
		st_device_write(writer->attach, &writer->umem.sgt_append.sgt, round);
		put_umem(test, writer);
		expect_nothing_left(test, refs);

		reader = get_umem(test, round % KINDS, f->fd[READ_ONLY], 0, DMA_TO_DEVICE);
		expect_device_reads(test, reader, round);
		put_umem(test, reader);
		expect_nothing_left(test, refs);
	}
}

/* A driver that promises what it cannot keep gets nothing, and a WARN */
static void umem_dmabuf_test_promises(struct kunit *test)
{
	static const enum dma_data_direction dirs[] = {
		DMA_TO_DEVICE, DMA_FROM_DEVICE, DMA_NONE,
	};
	struct fixture *f = test->priv;
	long refs = file_count(f->buf->file);
	struct ib_umem_dmabuf *umem_dmabuf;
	int i, fd, access;

	for (i = 0; i < ARRAY_SIZE(dirs); i++)
		for (access = 0; access < ARRAY_SIZE(accesses); access++) {
			if (dirs[i] == DMA_TO_DEVICE && !accesses[access].writes)
				continue;
			for (fd = 0; fd < FDS; fd++) {
				kunit_warning_suppress(test) {
					umem_dmabuf = get(f, PINNED, f->fd[fd],
							  accesses[access].flags, dirs[i]);
					KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
				}
				KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(umem_dmabuf), -EINVAL);
				if (!IS_ERR(umem_dmabuf))
					ib_umem_release(&umem_dmabuf->umem);
				expect_nothing_left(test, refs);
			}
		}
}

/* Nobody can make more of the attachment than was asked for */
static void umem_dmabuf_test_limit(struct kunit *test)
{
	struct fixture *f = test->priv;
	struct ib_umem_dmabuf *umem_dmabuf;
	struct sg_table *sgt;

	umem_dmabuf = get_umem(test, DYNAMIC, f->fd[READ_ONLY], 0, DMA_TO_DEVICE);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(umem_dmabuf->attach, DMA_BIDIRECTIONAL),
			-EACCES);
	ib_umem_dmabuf_revoke_lock(umem_dmabuf);
	kunit_warning_suppress(test) {
		sgt = dma_buf_map_attachment(umem_dmabuf->attach, DMA_BIDIRECTIONAL);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	if (!IS_ERR(sgt))
		dma_buf_unmap_attachment(umem_dmabuf->attach, sgt, DMA_BIDIRECTIONAL);
	ib_umem_dmabuf_revoke_unlock(umem_dmabuf);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(sgt), -EACCES);
	expect_mapped(test, 1, 0);
}

/* Queues and the like need full access, whatever flags a driver has for them */
static void umem_dmabuf_test_desc(struct kunit *test)
{
	struct fixture *f = test->priv;
	long refs = file_count(f->buf->file);
	int fd, access;

	for (fd = 0; fd < FDS; fd++)
		for (access = 0; access < ARRAY_SIZE(accesses); access++) {
			bool good = fd == PRIMARY || fd == READ_WRITE;
			struct ib_uverbs_buffer_desc desc = {
				.type = IB_UVERBS_BUFFER_TYPE_DMABUF,
				.fd = f->fd[fd],
				.addr = OFFSET,
				.length = LENGTH,
			};
			struct ib_umem *umem;

			umem = ib_umem_get_desc(f->ibdev, &desc, accesses[access].flags);
			KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(umem), good ? 0 : -EACCES);
			expect_mapped(test, 0, good);
			if (!IS_ERR(umem))
				ib_umem_release(umem);
			expect_nothing_left(test, refs);
		}
}

/* A memory region does not get other access flags later */
static void umem_dmabuf_test_rereg(struct kunit *test)
{
	static const int flags[] = {
		IB_MR_REREG_ACCESS, IB_MR_REREG_PD, IB_MR_REREG_TRANS,
		IB_MR_REREG_ACCESS | IB_MR_REREG_PD | IB_MR_REREG_TRANS,
	};
	struct fixture *f = test->priv;
	struct ib_umem_dmabuf *umem_dmabuf;
	int i, access;

	umem_dmabuf = get_umem(test, PINNED, f->fd[READ_ONLY], 0, DMA_TO_DEVICE);
	for (i = 0; i < ARRAY_SIZE(flags); i++)
		for (access = 0; access < ARRAY_SIZE(accesses); access++)
			KUNIT_EXPECT_EQ(test, ib_umem_check_rereg(&umem_dmabuf->umem, flags[i],
								  accesses[access].flags),
					-EOPNOTSUPP);
	expect_mapped(test, 1, 0);
}

/* What is not within the buffer is refused as before, and leaves nothing behind */
static void umem_dmabuf_test_bounds(struct kunit *test)
{
	static const struct {
		unsigned long offset;
		size_t size;
	} bad[] = {
		{ 0, 0 },
		{ 0, SIZE + 1 },
		{ SIZE, 1 },
		{ SIZE - 1, 2 },
		{ ULONG_MAX, 2 },
	};
	struct fixture *f = test->priv;
	long refs = file_count(f->buf->file);
	struct ib_umem_dmabuf *umem_dmabuf;
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		umem_dmabuf = ib_umem_dmabuf_get_pinned(f->ibdev, bad[i].offset, bad[i].size,
							f->fd[READ_ONLY], 0, DMA_TO_DEVICE);
		KUNIT_EXPECT_EQ_MSG(test, PTR_ERR_OR_ZERO(umem_dmabuf), -EINVAL, "%d", i);
		if (!IS_ERR(umem_dmabuf))
			ib_umem_release(&umem_dmabuf->umem);
		expect_nothing_left(test, refs);
	}
	umem_dmabuf = ib_umem_dmabuf_get_pinned(f->ibdev, 0, SIZE, -1, 0, DMA_TO_DEVICE);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(umem_dmabuf), -EBADF);
}

/* A device that reaches memory as the importers of exporters' tests do */
static struct ib_device *new_ib_device(struct kunit *test, struct dma_buf *buf)
{
	struct ib_device *ibdev = kunit_kzalloc(test, sizeof(*ibdev), GFP_KERNEL);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);

	KUNIT_ASSERT_NOT_NULL(test, ibdev);
	ibdev->dma_device = attach->dev;
	st_detach(test, attach);
	return ibdev;
}

static int umem_dmabuf_test_init(struct kunit *test)
{
	struct fixture *f = kunit_kzalloc(test, sizeof(*f), GFP_KERNEL);
	int fd;

	KUNIT_ASSERT_NOT_NULL(test, f);
	f->buf = mover_export();
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, f->buf);
	f->mover = f->buf->priv;
	fd = dma_buf_fd(f->buf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(f->buf);
	f->fd[PRIMARY] = until_the_end(test, fd);
	f->fd[READ_ONLY] = st_derive(test, fd, O_RDONLY);
	f->fd[WRITE_ONLY] = st_derive(test, fd, O_WRONLY);
	f->fd[READ_WRITE] = st_derive(test, fd, O_RDWR);
	f->ibdev = new_ib_device(test, f->buf);
	test->priv = f;
	return 0;
}

/* This module can be unloaded when the last buffer has ended, after what is derived from it */
static void umem_dmabuf_test_suite_exit(struct kunit_suite *suite)
{
	flush_delayed_fput();
	flush_delayed_fput();
}

static struct kunit_case umem_dmabuf_test_cases[] = {
	KUNIT_CASE_PARAM(umem_dmabuf_test_access, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_moves, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_revoke, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_alternating, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_promises, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_limit, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_desc, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_rereg, st_device_gen_params),
	KUNIT_CASE_PARAM(umem_dmabuf_test_bounds, st_device_gen_params),
	{}
};

static struct kunit_suite umem_dmabuf_test_suite = {
	.name = "umem-dmabuf",
	.init = umem_dmabuf_test_init,
	.suite_exit = umem_dmabuf_test_suite_exit,
	.test_cases = umem_dmabuf_test_cases,
};

kunit_test_suite(umem_dmabuf_test_suite);

MODULE_DESCRIPTION("KUnit tests for umems of dma-bufs");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
