// SPDX-License-Identifier: GPL-2.0-only
/*
 * An IIO device without hardware whose buffers take DMABUFs
 *
 * It is made of the DMA buffer infrastructure, with the CPU in place of the DMA
 * controller. It copies what is at the DMA addresses that it got: a bounce
 * buffer if there is one. What is sent by buffer 0, an output buffer, is
 * received by buffer 1, an input buffer, block by block. Buffer 2 is an output
 * buffer that makes no promise not to write: it clears what it has sent, which
 * goes nowhere.
 */
#include <linux/cleanup.h>
#include <linux/device.h>
#include <linux/device/faux.h>
#include <linux/dma-buf.h>
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/highmem.h>
#include <linux/init.h>
#include <linux/iommu-dma.h>
#include <linux/list.h>
#include <linux/memory_hotplug.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include <linux/iio/buffer-dma.h>
#include <linux/iio/buffer.h>
#include <linux/iio/buffer_impl.h>
#include <linux/iio/iio.h>

struct iio_loopback_queue {
	struct iio_dma_buffer_queue queue;
	struct iio_loopback *loop;
	struct list_head pending;	/* blocks, P: iio_loopback::lock */
};

struct iio_loopback {
	struct mutex lock;	/* protects the lists of blocks */
	struct iio_loopback_queue *out, *in, *clear;
};

/* How far the transfer of a block is */
struct iio_loopback_pos {
	struct iio_dma_buffer_block *block;
	struct scatterlist *sg;	/* of a DMABUF */
	size_t offset;		/* in the segment, or in the memory of fileio */
	struct page *page;	/* of what is mapped, of a DMABUF */
	void *addr;		/* of what is mapped */
};

static struct iio_loopback_queue *
to_iio_loopback_queue(struct iio_buffer *buffer)
{
	return container_of(buffer, struct iio_loopback_queue, queue.buffer);
}

/*
 * What is at a DMA address has to be found without an IOMMU, DMA operations, or
 * code of the architecture, which modules cannot call.
 */
static bool iio_loopback_finds_memory(struct device *dev)
{
	return !IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA) && !get_dma_ops(dev) &&
	       !use_dma_iommu(dev);
}

/* Reserved pages are not left out, as those of bounce buffers are such */
static struct page *iio_loopback_page(struct device *dev, dma_addr_t addr)
{
	if (IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA))
		return NULL;

	return pfn_to_online_page(PHYS_PFN(dma_to_phys(dev, addr)));
}

/* Memory with "no-map" has pages, but the CPU cannot reach it */
static bool iio_loopback_reaches(struct device *dev, dma_addr_t addr)
{
	struct page *page = iio_loopback_page(dev, addr);
	void *from;
	long ret;
	u8 byte;

	if (!page)
		return false;

	from = kmap_local_page(page);
	ret = copy_from_kernel_nofault(&byte, from + offset_in_page(addr), 1);
	kunmap_local(from);

	return !ret;
}

/* Whether the first @size bytes are memory that a transfer can map */
static bool iio_loopback_is_memory(struct device *dev, struct sg_table *sgt,
				   size_t size)
{
	struct scatterlist *sg;
	dma_addr_t addr, end;
	int i;

	for_each_sgtable_dma_sg(sgt, sg, i) {
		addr = sg_dma_address(sg);
		end = addr + min_t(size_t, size, sg_dma_len(sg));
		size -= end - addr;

		for (; addr < end; addr += PAGE_SIZE - offset_in_page(addr))
			if (!iio_loopback_reaches(dev, addr))
				return false;
	}

	return !size;
}

static void iio_loopback_start(struct iio_loopback_pos *pos,
			       struct iio_dma_buffer_block *block)
{
	*pos = (struct iio_loopback_pos) {
		.block = block,
		.sg = block->fileio ? NULL : block->sg_table->sgl,
	};
}

/* Map what comes next, and return how much of @len that is */
static size_t iio_loopback_map(struct iio_loopback_pos *pos, size_t len)
{
	dma_addr_t addr;

	if (pos->block->fileio) {
		pos->addr = pos->block->vaddr + pos->offset;
		return len;
	}

	addr = sg_dma_address(pos->sg) + pos->offset;
	pos->page = iio_loopback_page(pos->block->queue->dev, addr);
	pos->addr = kmap_local_page(pos->page) + offset_in_page(addr);

	return min3(len, sg_dma_len(pos->sg) - pos->offset,
		    PAGE_SIZE - offset_in_page(addr));
}

/* Unmap it. @len bytes of it have been transferred. */
static void iio_loopback_unmap(struct iio_loopback_pos *pos, size_t len)
{
	pos->offset += len;
	if (pos->block->fileio)
		return;

	flush_dcache_page(pos->page);
	kunmap_local(pos->addr);
	if (pos->offset == sg_dma_len(pos->sg)) {
		pos->sg = sg_next(pos->sg);
		pos->offset = 0;
	}
}

static void iio_loopback_copy(struct iio_dma_buffer_block *to,
			      struct iio_dma_buffer_block *from, size_t len)
{
	struct iio_loopback_pos src, dst;
	size_t n;

	iio_loopback_start(&src, from);
	iio_loopback_start(&dst, to);

	for (; len; len -= n) {
		n = iio_loopback_map(&src, len);
		n = iio_loopback_map(&dst, n);
		memcpy(dst.addr, src.addr, n);
		iio_loopback_unmap(&dst, n);
		iio_loopback_unmap(&src, n);
	}
}

static void iio_loopback_clear(struct iio_dma_buffer_block *block)
{
	struct iio_loopback_pos pos;
	size_t len, n;

	iio_loopback_start(&pos, block);

	for (len = block->bytes_used; len; len -= n) {
		n = iio_loopback_map(&pos, len);
		memset(pos.addr, 0, n);
		iio_loopback_unmap(&pos, n);
	}
}

static void iio_loopback_done(struct iio_dma_buffer_block *block)
{
	list_del(&block->head);
	iio_dma_buffer_block_done(block);
}

static struct iio_dma_buffer_block *
iio_loopback_first(struct iio_loopback_queue *q)
{
	return list_first_entry_or_null(&q->pending,
					struct iio_dma_buffer_block, head);
}

/* Transfers as long as there are blocks on both sides */
static void iio_loopback_run(struct iio_loopback *loop)
{
	struct iio_dma_buffer_block *src, *dst;

	lockdep_assert_held(&loop->lock);

	while ((src = iio_loopback_first(loop->out)) &&
	       (dst = iio_loopback_first(loop->in))) {
		/*
		 * A cyclic one is repeated until there is another, and done
		 * then. With DMAengine it is replaced, too, but nobody says so,
		 * and its fence is not signaled before the buffer is disabled.
		 */
		if (src->cyclic &&
		    !list_is_last(&src->head, &loop->out->pending)) {
			iio_loopback_done(src);
			continue;
		}

		dst->bytes_used = min(src->bytes_used, dst->bytes_used);
		iio_loopback_copy(dst, src, dst->bytes_used);
		iio_loopback_done(dst);
		if (!src->cyclic)
			iio_loopback_done(src);
	}
}

static bool iio_loopback_has_cyclic(struct iio_loopback_queue *q)
{
	struct iio_dma_buffer_block *block;

	list_for_each_entry(block, &q->pending, head)
		if (block->cyclic)
			return true;

	return false;
}

static int iio_loopback_submit(struct iio_dma_buffer_queue *queue,
			       struct iio_dma_buffer_block *block)
{
	struct iio_loopback_queue *q = to_iio_loopback_queue(&queue->buffer);

	guard(mutex)(&q->loop->lock);

	/* One at a time, as for DMAengine */
	if (block->cyclic && iio_loopback_has_cyclic(q))
		return -EBUSY;

	/* read() enqueues a block as it was done, with less if that was less */
	if (q == q->loop->in && block->fileio)
		block->bytes_used = block->size;

	list_add_tail(&block->head, &q->pending);
	if (q == q->loop->clear) {
		iio_loopback_clear(block);
		iio_loopback_done(block);
	} else {
		iio_loopback_run(q->loop);
	}

	return 0;
}

static void iio_loopback_abort(struct iio_dma_buffer_queue *queue)
{
	struct iio_loopback_queue *q = to_iio_loopback_queue(&queue->buffer);

	guard(mutex)(&q->loop->lock);

	iio_dma_buffer_block_list_abort(queue, &q->pending);
}

static const struct iio_dma_buffer_ops iio_loopback_dma_ops = {
	.submit = iio_loopback_submit,
	.abort = iio_loopback_abort,
};

static struct iio_dma_buffer_block *
iio_loopback_attach_dmabuf(struct iio_buffer *buffer,
			   struct dma_buf_attachment *attach)
{
	/* The core has to have limited it */
	WARN_ON_ONCE(attach->limit !=
		     (buffer->direction == IIO_BUFFER_DIRECTION_IN ?
		      DMA_FROM_DEVICE : DMA_TO_DEVICE));

	if (!iio_loopback_finds_memory(attach->dev))
		return ERR_PTR(-EOPNOTSUPP);

	return iio_dma_buffer_attach_dmabuf(buffer, attach);
}

static int iio_loopback_enqueue_dmabuf(struct iio_buffer *buffer,
				       struct iio_dma_buffer_block *block,
				       struct dma_fence *fence,
				       struct sg_table *sgt,
				       size_t size, bool cyclic)
{
	if (!iio_loopback_is_memory(block->queue->dev, sgt, size))
		return -EFAULT;

	return iio_dma_buffer_enqueue_dmabuf(buffer, block, fence, sgt, size,
					     cyclic);
}

static void iio_loopback_release(struct iio_buffer *buffer)
{
	struct iio_loopback_queue *q = to_iio_loopback_queue(buffer);

	iio_dma_buffer_release(&q->queue);
	kfree(q);
}

#define IIO_LOOPBACK_ACCESS_FUNCS(_flags) {				\
	.read = iio_dma_buffer_read,					\
	.write = iio_dma_buffer_write,					\
	.set_bytes_per_datum = iio_dma_buffer_set_bytes_per_datum,	\
	.set_length = iio_dma_buffer_set_length,			\
	.request_update = iio_dma_buffer_request_update,		\
	.enable = iio_dma_buffer_enable,				\
	.disable = iio_dma_buffer_disable,				\
	.data_available = iio_dma_buffer_usage,				\
	.space_available = iio_dma_buffer_usage,			\
	.release = iio_loopback_release,				\
	.attach_dmabuf = iio_loopback_attach_dmabuf,			\
	.detach_dmabuf = iio_dma_buffer_detach_dmabuf,			\
	.cancel_dmabuf = iio_dma_buffer_cancel_dmabuf,			\
	.enqueue_dmabuf = iio_loopback_enqueue_dmabuf,			\
	.get_dma_dev = iio_dma_buffer_get_dma_dev,			\
	.lock_queue = iio_dma_buffer_lock_queue,			\
	.unlock_queue = iio_dma_buffer_unlock_queue,			\
	.modes = INDIO_BUFFER_SOFTWARE,					\
	.flags = INDIO_BUFFER_FLAG_FIXED_WATERMARK | (_flags),		\
}

/* For both directions, to show that it is without effect on input buffers */
static const struct iio_buffer_access_funcs iio_loopback_access =
	IIO_LOOPBACK_ACCESS_FUNCS(INDIO_BUFFER_FLAG_READONLY_DMABUFS);

static const struct iio_buffer_access_funcs iio_loopback_clear_access =
	IIO_LOOPBACK_ACCESS_FUNCS(0);

static const struct iio_chan_spec iio_loopback_channels[] = {
	{
		.type = IIO_VOLTAGE,
		.indexed = 1,
		.output = 1,
		.scan_index = 0,
		.scan_type = {
			.format = 'u',
			.realbits = 32,
			.storagebits = 32,
		},
	}, {
		.type = IIO_VOLTAGE,
		.indexed = 1,
		.scan_index = 1,
		.scan_type = {
			.format = 'u',
			.realbits = 32,
			.storagebits = 32,
		},
	},
};

static const struct iio_info iio_loopback_info = { };

static void iio_loopback_exit_queue(void *data)
{
	struct iio_loopback_queue *q = data;

	iio_dma_buffer_exit(&q->queue);
	iio_buffer_put(&q->queue.buffer);
}

static struct iio_loopback_queue *
iio_loopback_add_queue(struct device *dev, struct iio_dev *indio_dev,
		       enum iio_buffer_direction direction,
		       const struct iio_buffer_access_funcs *access)
{
	struct iio_loopback_queue *q;
	int ret;

	q = kzalloc_obj(*q);
	if (!q)
		return ERR_PTR(-ENOMEM);

	INIT_LIST_HEAD(&q->pending);
	q->loop = iio_priv(indio_dev);
	iio_dma_buffer_init(&q->queue, dev, &iio_loopback_dma_ops);
	q->queue.buffer.direction = direction;
	q->queue.buffer.access = access;

	ret = devm_add_action_or_reset(dev, iio_loopback_exit_queue, q);
	if (ret)
		return ERR_PTR(ret);

	ret = iio_device_attach_buffer(indio_dev, &q->queue.buffer);
	if (ret)
		return ERR_PTR(ret);

	return q;
}

static int iio_loopback_init_dma(struct device *dev)
{
	dev->dma_parms = devm_kzalloc(dev, sizeof(*dev->dma_parms), GFP_KERNEL);
	if (!dev->dma_parms)
		return -ENOMEM;

	dma_set_max_seg_size(dev, UINT_MAX);
	/* It is the CPU that copies, through its caches */
	dev_assign_dma_coherent(dev, true);

	return dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64));
}

static int iio_loopback_probe(struct faux_device *fdev)
{
	struct device *dev = &fdev->dev;
	struct iio_dev *indio_dev;
	struct iio_loopback *loop;
	int ret;

	ret = iio_loopback_init_dma(dev);
	if (ret)
		return ret;

	indio_dev = devm_iio_device_alloc(dev, sizeof(*loop));
	if (!indio_dev)
		return -ENOMEM;

	loop = iio_priv(indio_dev);
	ret = devm_mutex_init(dev, &loop->lock);
	if (ret)
		return ret;

	indio_dev->name = "dmabuf-loopback";
	indio_dev->info = &iio_loopback_info;
	indio_dev->modes = INDIO_BUFFER_SOFTWARE;
	indio_dev->channels = iio_loopback_channels;
	indio_dev->num_channels = ARRAY_SIZE(iio_loopback_channels);

	loop->out = iio_loopback_add_queue(dev, indio_dev,
					   IIO_BUFFER_DIRECTION_OUT,
					   &iio_loopback_access);
	if (IS_ERR(loop->out))
		return PTR_ERR(loop->out);

	loop->in = iio_loopback_add_queue(dev, indio_dev,
					  IIO_BUFFER_DIRECTION_IN,
					  &iio_loopback_access);
	if (IS_ERR(loop->in))
		return PTR_ERR(loop->in);

	loop->clear = iio_loopback_add_queue(dev, indio_dev,
					     IIO_BUFFER_DIRECTION_OUT,
					     &iio_loopback_clear_access);
	if (IS_ERR(loop->clear))
		return PTR_ERR(loop->clear);

	return devm_iio_device_register(dev, indio_dev);
}

static const struct faux_device_ops iio_loopback_ops = {
	.probe = iio_loopback_probe,
};

static int __init iio_loopback_init(void)
{
	struct faux_device *fdev;

	fdev = faux_device_create("iio-dmabuf-loopback", NULL,
				  &iio_loopback_ops);

	return fdev ? 0 : -ENODEV;
}
module_init(iio_loopback_init);

/*
 * There is no module_exit(): the fd of a buffer holds the device, but not the
 * module, and calls functions of it when it is closed, and later.
 */

MODULE_DESCRIPTION("IIO device that loops DMABUFs back");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("IIO_DMA_BUFFER");
