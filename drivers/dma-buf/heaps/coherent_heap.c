// SPDX-License-Identifier: GPL-2.0
/*
 * DMA-BUF heaps of coherent reserved memory: one for each region that its driver, or
 * the administrator, has given to user space.
 */
#define pr_fmt(fmt) "coherent_heap: " fmt

#include <linux/dma-buf.h>
#include <linux/dma-buf-mapping.h>
#include <linux/dma-heap.h>
#include <linux/dma-map-ops.h>
#include <linux/err.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>

static char *regions;
module_param(regions, charp, 0444);
MODULE_PARM_DESC(regions,
		 "Reserved memory regions to make heaps of: names of their nodes, separated by commas, or \"all\" (default: none)");

/**
 * struct coherent_heap - a heap of one region
 * @heap:	as user space has it
 * @mem:	pool of the region
 * @ref:	one for the heap itself, and one for each of its buffers
 * @list:	in own_heaps
 * @name:	of the region, and of its buffers, which can be there for longer than @heap
 */
struct coherent_heap {
	struct dma_heap *heap;
	struct dma_coherent_mem *mem;
	struct kref ref;
	struct list_head list;
	char name[];
};

struct coherent_heap_buffer {
	struct coherent_heap *heap;
	phys_addr_t phys;
	void *vaddr;
	size_t len;
};

/* Those of the module parameter */
static LIST_HEAD(own_heaps);

static const char *region_name(const struct device_node *np)
{
	return kbasename(of_node_full_name(np));
}

static void coherent_heap_release(struct kref *ref)
{
	kfree(container_of(ref, struct coherent_heap, ref));
}

static void coherent_heap_put(struct coherent_heap *heap)
{
	kref_put(&heap->ref, coherent_heap_release);
}

static struct sg_table *coherent_heap_map_dma_buf(struct dma_buf_attachment *attach,
						  enum dma_data_direction dir)
{
	struct coherent_heap_buffer *buffer = attach->dmabuf->priv;

	return dma_buf_phys_to_sgt(attach, buffer->phys, buffer->len, dir);
}

static int coherent_heap_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct coherent_heap_buffer *buffer = dmabuf->priv;

	if (!(vma->vm_flags & (VM_SHARED | VM_MAYSHARE)))
		return -EINVAL;

	/* As the kernel has it: one memory must not be mapped in two ways */
	vma->vm_page_prot = pgprot_writecombine(vma->vm_page_prot);
	return remap_pfn_range(vma, vma->vm_start, PHYS_PFN(buffer->phys) + vma->vm_pgoff,
			       vma->vm_end - vma->vm_start, vma->vm_page_prot);
}

static int coherent_heap_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct coherent_heap_buffer *buffer = dmabuf->priv;

	/* All of the region is mapped */
	iosys_map_set_vaddr(map, buffer->vaddr);
	return 0;
}

static void coherent_heap_buffer_free(struct coherent_heap_buffer *buffer)
{
	dma_coherent_mem_free(buffer->heap->mem, buffer->len, buffer->vaddr);
	coherent_heap_put(buffer->heap);
	kfree(buffer);
}

static void coherent_heap_dma_buf_release(struct dma_buf *dmabuf)
{
	coherent_heap_buffer_free(dmabuf->priv);
}

/*
 * There is nothing to sync: the CPU does not have the memory in a cache. And there is no
 * struct page to hold: who looks up what is behind a mapping must not keep that.
 */
static const struct dma_buf_ops coherent_heap_buf_ops = {
	.mmap_revocable = true,
	.map_dma_buf = coherent_heap_map_dma_buf,
	.unmap_dma_buf = dma_buf_free_sgt,
	.mmap = coherent_heap_mmap,
	.vmap = coherent_heap_vmap,
	.release = coherent_heap_dma_buf_release,
};

/* As long as nobody has killed the process meanwhile */
static int coherent_heap_clear(void *vaddr, size_t len)
{
	size_t done, n;

	for (done = 0; done < len; done += n) {
		if (fatal_signal_pending(current))
			return -EINTR;
		n = min_t(size_t, len - done, SZ_1M);
		memset(vaddr + done, 0, n);
		cond_resched();
	}
	return 0;
}

static struct dma_buf *coherent_heap_allocate(struct dma_heap *dma_heap, unsigned long len,
					      u32 fd_flags, u64 heap_flags)
{
	struct coherent_heap *heap = dma_heap_get_drvdata(dma_heap);
	struct coherent_heap_buffer *buffer;
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct dma_buf *dmabuf;
	int ret;

	buffer = kzalloc_obj(*buffer);
	if (!buffer)
		return ERR_PTR(-ENOMEM);

	buffer->len = len;
	buffer->vaddr = dma_coherent_mem_alloc(heap->mem, len, &buffer->phys);
	if (!buffer->vaddr) {
		kfree(buffer);
		return ERR_PTR(-ENOMEM);
	}
	buffer->heap = heap;
	kref_get(&heap->ref);

	ret = coherent_heap_clear(buffer->vaddr, len);
	if (ret)
		goto err;

	exp_info.exp_name = heap->name;
	exp_info.ops = &coherent_heap_buf_ops;
	exp_info.size = len;
	exp_info.flags = fd_flags;
	exp_info.priv = buffer;
	dmabuf = dma_buf_export(&exp_info);
	if (!IS_ERR(dmabuf))
		return dmabuf;

	ret = PTR_ERR(dmabuf);
err:
	coherent_heap_buffer_free(buffer);
	return ERR_PTR(ret);
}

static const struct dma_heap_ops coherent_heap_ops = {
	.allocate = coherent_heap_allocate,
};

/* Names of other heaps, whether those are there or not: user space relies on them */
static bool name_is_taken(const char *name)
{
	static const char * const names[] = {
		"system", "system_cc_shared", "default_cma_region", "reserved",
	};

	return match_string(names, ARRAY_SIZE(names), name) >= 0;
}

/**
 * coherent_heap_add() - make a heap of a reserved memory region
 * @np: node of the region, a "shared-dma-pool" that is not reusable
 *
 * For the driver that the region belongs to. The heap has the name of the node. It
 * allocates from what dma_alloc_coherent() gives to the devices of the region: who
 * may open the heap may use up their memory. A driver that uses the region by its
 * address, as those of remote processors do, does not allocate it, so that buffers
 * would be the same memory: there must be no heap for such a region.
 *
 * Context: Process context. May sleep.
 * Return: The heap, or an ERR_PTR(): -ENODEV if there is no such region, -EEXIST if
 * another heap has the name, -EINVAL if the region is not of whole pages or can't be
 * mapped, as the kernel maps it already, -EBUSY if it is the pool of all devices,
 * -ENOSPC if there are too many heaps, -ENOMEM.
 */
struct coherent_heap *coherent_heap_add(struct device_node *np)
{
	const char *name = region_name(np);
	struct dma_heap_export_info exp_info = {
		.name = name,
		.owner = THIS_MODULE,
		.ops = &coherent_heap_ops,
	};
	size_t len = strlen(name) + 1;
	struct coherent_heap *heap;
	int ret;

	if (!of_device_is_available(np))
		return ERR_PTR(-ENODEV);

	heap = kzalloc_flex(*heap, name, len);
	if (!heap)
		return ERR_PTR(-ENOMEM);
	kref_init(&heap->ref);
	INIT_LIST_HEAD(&heap->list);
	memcpy(heap->name, name, len);

	heap->mem = dma_coherent_mem_of_node(np);
	if (IS_ERR(heap->mem)) {
		ret = PTR_ERR(heap->mem);
		goto err;
	}

	ret = -EEXIST;
	if (name_is_taken(name))
		goto err;

	exp_info.priv = heap;
	heap->heap = dma_heap_add(&exp_info);
	if (!IS_ERR(heap->heap))
		return heap;

	ret = PTR_ERR(heap->heap);
err:
	coherent_heap_put(heap);
	return ERR_PTR(ret);
}
EXPORT_SYMBOL_NS_GPL(coherent_heap_add, "DMA_BUF_HEAP");

/**
 * coherent_heap_remove() - take back a region that coherent_heap_add() has given away
 * @heap: the heap
 *
 * There are no allocations from then on: files of the heap that are open answer
 * -ENODEV. Buffers keep their memory until they are released.
 *
 * Context: Process context. May sleep.
 */
void coherent_heap_remove(struct coherent_heap *heap)
{
	dma_heap_remove(heap->heap);
	coherent_heap_put(heap);
}
EXPORT_SYMBOL_NS_GPL(coherent_heap_remove, "DMA_BUF_HEAP");

static void __init add_region(struct device_node *np)
{
	struct coherent_heap *heap = coherent_heap_add(np);

	if (IS_ERR(heap))
		pr_warn("no heap for %s: error %pe\n", region_name(np), heap);
	else
		list_add(&heap->list, &own_heaps);
}

static bool __init is_coherent_pool(struct device_node *np)
{
	return of_device_is_available(np) && of_device_is_compatible(np, "shared-dma-pool") &&
	       !of_property_read_bool(np, "reusable");
}

static void __init add_all_regions(struct device_node *parent)
{
	struct device_node *np;

	for_each_child_of_node(parent, np) {
		if (is_coherent_pool(np))
			add_region(np);
	}
}

/* Is @name the first one of @list? */
static bool __init is_first(const char *list, const char *name)
{
	size_t len = strlen(name);

	return !strncmp(list, name, len) && (!list[len] || list[len] == ',');
}

/* Returns the length of the name that @list begins with: there may be a comma in it */
static size_t __init add_first_region(struct device_node *parent, const char *list)
{
	size_t len = strcspn(list, ",");
	struct device_node *np;

	for_each_child_of_node(parent, np) {
		if (is_first(list, region_name(np))) {
			add_region(np);
			len = strlen(region_name(np));
			of_node_put(np);
			return len;
		}
	}
	if (len)
		pr_warn("no heap for %.*s: no such reserved memory region\n", (int)len, list);
	return len;
}

static int __init coherent_heap_init(void)
{
	/* NULL is a parent without children */
	struct device_node *parent = of_find_node_by_path("/reserved-memory");
	const char *list = regions ?: "";

	/* Without the parameter drivers can still add heaps */
	while (*list) {
		if (is_first(list, "all")) {
			add_all_regions(parent);
			list += strlen("all");
		} else {
			list += add_first_region(parent, list);
		}
		list += *list == ',';
	}
	of_node_put(parent);
	return 0;
}
module_init(coherent_heap_init);

static void __exit coherent_heap_exit(void)
{
	struct coherent_heap *heap, *next;

	list_for_each_entry_safe(heap, next, &own_heaps, list)
		coherent_heap_remove(heap);
}
module_exit(coherent_heap_exit);

MODULE_DESCRIPTION("DMA-BUF Heap of Coherent Reserved Memory");
MODULE_LICENSE("GPL");
MODULE_ALIAS("dma-heap-coherent");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("DMA_BUF_HEAP");
