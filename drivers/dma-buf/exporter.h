/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For exporters of memory that importers map by the DMA API: what has to be the same
 * for all of them, see "CPU access" in dma-buf.c.
 */
#ifndef DMA_BUF_EXPORTER_H
#define DMA_BUF_EXPORTER_H

#include <linux/dma-buf.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/sizes.h>

/*
 * Each importer maps the same pages, and the CPU has them mapped, too. Exporters sync
 * for that, so it is not the mistake that CONFIG_DMA_API_DEBUG takes it for.
 */
#define DMA_BUF_MAP_ATTRS	DMA_ATTR_DEBUGGING_IGNORE_CACHELINES

/**
 * dma_buf_max_segment() - how long a segment may be that a device maps
 * @dev: the importer
 *
 * Longer ones are against what the device says it takes, or do not fit into the
 * buffers for bouncing. It is an answer for every device: some have no DMA mask and
 * import without ever mapping, some say less than a page and get pages all the same.
 *
 * Return: whole pages, in bytes, at most 2 GiB.
 */
static inline unsigned int dma_buf_max_segment(struct device *dev)
{
	size_t max = dma_max_mapping_size(dev) ?: SIZE_MAX;

	max = min3(max, (size_t)dma_get_max_seg_size(dev), (size_t)SZ_2G);
	return max_t(size_t, round_down(max, PAGE_SIZE), PAGE_SIZE);
}

/**
 * dma_buf_add_mapping() - put a mapping into the order in which mappings are synced
 * @entry: of the mapping, on no list
 * @mappings: all mappings of the buffer
 * @dir: in which it is mapped
 *
 * Where DMA is bounced, a sync for the CPU brings back all of the buffer, and the last
 * one wins. So a mapping that is there for nothing but to be written to comes last.
 * That is right if its device has written all of the buffer; with several mappings
 * that can be written to, no order is right for all.
 */
static inline void dma_buf_add_mapping(struct list_head *entry, struct list_head *mappings,
				       enum dma_data_direction dir)
{
	if (dir == DMA_FROM_DEVICE)
		list_add_tail(entry, mappings);
	else
		list_add(entry, mappings);
}

/**
 * dma_buf_wait_for_devices() - wait for the fences of accesses that the CPU must not meet
 * @dmabuf: the buffer
 * @cpu: direction of the CPU's access
 *
 * dma_buf_begin_cpu_access() waits, too, but after &dma_buf_ops.begin_cpu_access: what
 * that syncs before a device is done is not what the device has written. Devices with
 * explicit synchronization have no fences there; to wait for them is up to others.
 *
 * Context: Process context, without locks of the exporter. May sleep.
 * Return: 0, or -ERESTARTSYS.
 */
static inline int dma_buf_wait_for_devices(struct dma_buf *dmabuf, enum dma_data_direction cpu)
{
	long ret = dma_resv_wait_timeout(dmabuf->resv,
					 dma_resv_usage_rw(cpu != DMA_FROM_DEVICE),
					 true, MAX_SCHEDULE_TIMEOUT);

	return ret < 0 ? ret : 0;
}

/**
 * dma_buf_sync_for_cpu() - sync a mapping, at the beginning of an access by the CPU
 * @dev: that has mapped
 * @sgt: what it has mapped
 * @dir: in which it has
 * @cpu: direction of the CPU's access: DMA_FROM_DEVICE reads, DMA_TO_DEVICE writes
 *
 * A CPU that does not read needs nothing, and what others write at the same time is
 * not to be lost for it.
 */
static inline void dma_buf_sync_for_cpu(struct device *dev, struct sg_table *sgt,
					enum dma_data_direction dir,
					enum dma_data_direction cpu)
{
	if (cpu != DMA_TO_DEVICE)
		dma_sync_sgtable_for_cpu(dev, sgt, dir);
}

/**
 * dma_buf_sync_for_device() - sync a mapping, at the end of an access by the CPU
 * @dev: that has mapped
 * @sgt: what it has mapped
 * @dir: in which it has
 * @cpu: direction of the CPU's access: DMA_FROM_DEVICE reads, DMA_TO_DEVICE writes
 *
 * A CPU that has only read has nothing for a device, and must not overwrite what the
 * device writes meanwhile. But there are CPUs whose caches are invalidated here and
 * not in dma_buf_sync_for_cpu(): those that do not speculate. DMA_FROM_DEVICE does
 * that, and copies nothing to a bounce buffer. It is not the direction of the map,
 * with which CONFIG_DMA_API_DEBUG agrees unless the device has mapped a page twice.
 */
static inline void dma_buf_sync_for_device(struct device *dev, struct sg_table *sgt,
					   enum dma_data_direction dir,
					   enum dma_data_direction cpu)
{
	if (dir == DMA_FROM_DEVICE || cpu != DMA_FROM_DEVICE)
		dma_sync_sgtable_for_device(dev, sgt, dir);
	else if (dir == DMA_BIDIRECTIONAL && !dev_is_dma_coherent(dev))
		dma_sync_sgtable_for_device(dev, sgt, DMA_FROM_DEVICE);
}

#endif
