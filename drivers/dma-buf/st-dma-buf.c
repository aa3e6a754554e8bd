// SPDX-License-Identifier: GPL-2.0
/*
 * What every exporter has to do for its importers and for the CPU, shown with the
 * smallest one that does it: it has pages, and syncs each mapping as it was mapped.
 */
#include <linux/atomic.h>
#include <linux/dma-buf.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "exporter.h"
#include "st-importer.h"

static atomic_t st_buffers;

struct st_buffer {
	void *vaddr;
	size_t size;
	struct mutex lock;	/* protects mappings */
	struct list_head mappings;
};

struct st_mapping {
	struct sg_table table;
	struct list_head list;
	struct device *dev;
	enum dma_data_direction dir;
};

static struct sg_table *st_map(struct dma_buf_attachment *attach,
			       enum dma_data_direction dir)
{
	struct st_buffer *b = attach->dmabuf->priv;
	struct st_mapping *m = kzalloc_obj(*m);
	struct scatterlist *sg;
	int i, ret;

	if (!m)
		return ERR_PTR(-ENOMEM);
	m->dev = attach->dev;
	m->dir = dir;
	ret = sg_alloc_table(&m->table, b->size / PAGE_SIZE, GFP_KERNEL);
	if (ret)
		goto err_alloc;
	for_each_sgtable_sg(&m->table, sg, i)
		sg_set_page(sg, vmalloc_to_page(b->vaddr + i * PAGE_SIZE), PAGE_SIZE, 0);

	mutex_lock(&b->lock);
	ret = dma_map_sgtable(m->dev, &m->table, dir, DMA_BUF_MAP_ATTRS);
	if (!ret)
		dma_buf_add_mapping(&m->list, &b->mappings, dir);
	mutex_unlock(&b->lock);
	if (!ret)
		return &m->table;
	sg_free_table(&m->table);
err_alloc:
	kfree(m);
	return ERR_PTR(ret);
}

static void st_unmap(struct dma_buf_attachment *attach, struct sg_table *table,
		     enum dma_data_direction dir)
{
	struct st_mapping *m = container_of(table, typeof(*m), table);
	struct st_buffer *b = attach->dmabuf->priv;

	mutex_lock(&b->lock);
	list_del(&m->list);
	dma_unmap_sgtable(m->dev, table, dir, DMA_BUF_MAP_ATTRS);
	mutex_unlock(&b->lock);
	sg_free_table(table);
	kfree(m);
}

static int st_begin_cpu_access(struct dma_buf *buf, enum dma_data_direction dir)
{
	struct st_buffer *b = buf->priv;
	struct st_mapping *m;
	int ret = dma_buf_wait_for_devices(buf, dir);

	if (ret)
		return ret;

	mutex_lock(&b->lock);
	list_for_each_entry(m, &b->mappings, list)
		dma_buf_sync_for_cpu(m->dev, &m->table, m->dir, dir);
	mutex_unlock(&b->lock);
	return 0;
}

static int st_end_cpu_access(struct dma_buf *buf, enum dma_data_direction dir)
{
	struct st_buffer *b = buf->priv;
	struct st_mapping *m;

	mutex_lock(&b->lock);
	list_for_each_entry(m, &b->mappings, list)
		dma_buf_sync_for_device(m->dev, &m->table, m->dir, dir);
	mutex_unlock(&b->lock);
	return 0;
}

static int st_mmap(struct dma_buf *buf, struct vm_area_struct *vma)
{
	struct st_buffer *b = buf->priv;

	return remap_vmalloc_range(vma, b->vaddr, vma->vm_pgoff);
}

static void st_release(struct dma_buf *buf)
{
	struct st_buffer *b = buf->priv;

	vfree(b->vaddr);
	kfree(b);
	atomic_dec(&st_buffers);
}

static const struct dma_buf_ops st_ops = {
	.map_dma_buf = st_map,
	.unmap_dma_buf = st_unmap,
	.begin_cpu_access = st_begin_cpu_access,
	.end_cpu_access = st_end_cpu_access,
	.mmap = st_mmap,
	.release = st_release,
};

KUNIT_DEFINE_ACTION_WRAPPER(put_buffer, dma_buf_put, struct dma_buf *);

/**
 * st_dma_buf_alloc() - make a buffer of the reference exporter
 * @test: the test
 * @size: of the buffer, in bytes, whole pages
 *
 * Context: The thread of a test.
 * Return: the buffer, until the end of the test, or st_dma_buf_put().
 */
struct dma_buf *st_dma_buf_alloc(struct kunit *test, size_t size)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct st_buffer *b = kzalloc_obj(*b);
	struct dma_buf *buf;

	KUNIT_ASSERT_NOT_NULL(test, b);
	mutex_init(&b->lock);
	INIT_LIST_HEAD(&b->mappings);
	b->size = size;
	b->vaddr = vmalloc_user(size);
	exp_info.ops = &st_ops;
	exp_info.size = size;
	exp_info.flags = O_RDWR;
	exp_info.priv = b;
	buf = b->vaddr ? dma_buf_export(&exp_info) : ERR_PTR(-ENOMEM);
	if (IS_ERR(buf)) {
		vfree(b->vaddr);
		kfree(b);
	}
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, buf);
	atomic_inc(&st_buffers);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_buffer, buf), 0);
	return buf;
}

/**
 * st_dma_buf_put() - drop the reference of st_dma_buf_alloc() before the end of the test
 * @test: the test
 * @buf: the buffer
 *
 * Context: The thread of a test.
 */
void st_dma_buf_put(struct kunit *test, struct dma_buf *buf)
{
	kunit_release_action(test, put_buffer, buf);
}

/**
 * st_dma_buf_count() - how many buffers of the reference exporter there are
 *
 * Return: their number; a buffer counts until the exporter's release() has run.
 */
int st_dma_buf_count(void)
{
	return atomic_read(&st_buffers);
}

static int st_suite_init(struct kunit_suite *suite)
{
	return st_open(NULL);
}

static int st_init(struct kunit *test)
{
	test->priv = st_dma_buf_alloc;
	return 0;
}

static struct kunit_case st_cases[] = {
	ST_EXPORTER_CASES,
	{}
};

static struct kunit_suite dma_buf_test_suite = {
	.name = "dma-buf",
	.suite_init = st_suite_init,
	.suite_exit = st_close,
	.init = st_init,
	.test_cases = st_cases,
};

kunit_test_suite(dma_buf_test_suite);

MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
