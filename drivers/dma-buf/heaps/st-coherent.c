// SPDX-License-Identifier: GPL-2.0
/* Heaps of coherent reserved memory: what their drivers, their devices and importers get */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-direct.h>
#include <linux/dma-heap.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/iosys-map.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_reserved_mem.h>
#include <linux/panic.h>
#include <linux/sizes.h>
#include <linux/swiotlb.h>
#include <kunit/device.h>
#include <kunit/test.h>
#include <uapi/linux/dma-heap.h>

#include "../st-importer.h"

static const struct st_device wide = { "wide", DMA_BIT_MASK(64), UINT_MAX, false };

/* The region under test, one for a driver that takes it back, and a device's node */
static struct device_node *region, *spare, *user;
static struct coherent_heap *heap, *spare_heap;
static struct file *spare_file;

/* Those who are the first to need a region: all of them have to get the same pool */
static struct racer {
	struct task_struct *task;
	struct dma_coherent_mem *mem;
} racers[8];
static DECLARE_COMPLETION(start);
static atomic_t running;
static bool nobody_had_it;

static struct reserved_mem *mem_of(struct device_node *np)
{
	return of_reserved_mem_lookup(np);
}

static bool is_coherent_pool(struct device_node *np)
{
	return of_device_is_available(np) && of_device_is_compatible(np, "shared-dma-pool") &&
	       !of_property_read_bool(np, "reusable") && mem_of(np);
}

/* By the kernel, as what has no "no-map" is, if it is memory otherwise */
static bool is_mapped(struct device_node *np)
{
	return region_intersects(mem_of(np)->base, mem_of(np)->size, IORESOURCE_SYSTEM_RAM,
				 IORES_DESC_NONE) != REGION_DISJOINT;
}

/* Does a device that can have a driver use it? The driver need not allocate what it uses */
static bool has_owner(struct device_node *np)
{
	struct of_phandle_iterator it;
	struct device_node *dev;
	bool found = false;
	int ret;

	for_each_node_with_property(dev, "memory-region") {
		of_for_each_phandle(&it, ret, dev, "memory-region", NULL, 0)
			found |= it.node == np && of_property_present(dev, "compatible");
	}
	return found;
}

static bool is_candidate(struct device_node *np)
{
	struct reserved_mem *rmem = mem_of(np);

	return is_coherent_pool(np) && of_property_read_bool(np, "no-map") &&
	       !of_property_read_bool(np, "linux,dma-default") && !has_owner(np) &&
	       PAGE_ALIGNED(rmem->base | rmem->size) && rmem->size >= SZ_2M;
}

static void find_regions(void)
{
	struct device_node *parent = of_find_node_by_path("/reserved-memory"), *np;

	for_each_node_with_property(np, "memory-region") {
		region = of_parse_phandle(np, "memory-region", 0);
		if (region && is_candidate(region)) {
			user = np;
			break;
		}
		of_node_put(region);
		region = NULL;
	}
	for_each_child_of_node(parent, np) {
		if (!is_candidate(np) || np == region)
			continue;
		if (!region)
			region = of_node_get(np);
		else if (!spare)
			spare = of_node_get(np);
	}
	of_node_put(parent);
}

static char *path_of(struct device_node *np)
{
	return kasprintf(GFP_KERNEL, "/dev/dma_heap/%s", kbasename(np->full_name));
}

static int race(void *data)
{
	struct racer *racer = data;

	atomic_inc(&running);
	wait_for_completion(&start);
	racer->mem = dma_coherent_mem_of_node(spare);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ);
	return 0;
}

/* A driver gives its region away while others are probed that use it */
static void add_spare_heap(void)
{
	char *path = path_of(spare);
	int i, n = 0;

	nobody_had_it = !mem_of(spare)->priv;
	reinit_completion(&start);
	atomic_set(&running, 0);
	for (i = 0; i < ARRAY_SIZE(racers); i++) {
		racers[i].task = kthread_run(race, &racers[i], "st-race");
		n += !IS_ERR(racers[i].task);
	}
	while (atomic_read(&running) < n)
		usleep_range(500, 1000);
	complete_all(&start);
	spare_heap = coherent_heap_add(spare);
	for (i = 0; i < ARRAY_SIZE(racers); i++) {
		if (!IS_ERR(racers[i].task))
			kthread_stop(racers[i].task);
	}
	spare_file = filp_open(path ?: "", O_RDWR, 0);
	kfree(path);
}

static int st_coherent_init(struct kunit_suite *suite)
{
	char *path;

	find_regions();
	if (!region)
		return st_open(NULL);
	/* Or the parameter of the heap's module has */
	heap = coherent_heap_add(region);
	path = path_of(region);
	st_open(path);
	kfree(path);
	if (spare)
		add_spare_heap();
	return 0;
}

static void st_coherent_exit(struct kunit_suite *suite)
{
	st_close(suite);
	if (!IS_ERR_OR_NULL(spare_file))
		fput(spare_file);
	if (!IS_ERR_OR_NULL(spare_heap))
		coherent_heap_remove(spare_heap);
	if (!IS_ERR_OR_NULL(heap))
		coherent_heap_remove(heap);
	of_node_put(region);
	of_node_put(spare);
	of_node_put(user);
	region = NULL;
	spare = NULL;
	user = NULL;
	heap = NULL;
	spare_heap = NULL;
	spare_file = NULL;
}

static int st_init(struct kunit *test)
{
	if (!region)
		kunit_skip(test, "no coherent reserved memory");
	KUNIT_ASSERT_TRUE(test, !IS_ERR(heap) || heap == ERR_PTR(-EEXIST));
	st_need_exporter(test);
	/* The buffers of the test before this one are there no more */
	flush_delayed_fput();
	test->priv = st_heap_alloc;
	return 0;
}

/* Where bouncing is forced no device can have the memory: st_coherent_bounced() only */
static int st_importer_init(struct kunit *test)
{
	const struct st_device *params = test->param_value;
	struct device *dev;
	bool bounced;

	st_init(test);
	if (params && mem_of(region)->base + mem_of(region)->size - 1 > params->dma_mask)
		kunit_skip(test, "the device does not reach the region");
	/* The name of a driver, as KUnit's devices have one, can be in use after the test */
	dev = root_device_register("bounced");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	bounced = is_swiotlb_force_bounce(dev);
	root_device_unregister(dev);
	if (bounced)
		kunit_skip(test, "all DMA is bounced");
	return 0;
}

static phys_addr_t address_of(struct kunit *test, struct dma_buf *buf)
{
	struct dma_buf_attachment *attach = st_attach(test, buf, &wide);
	struct sg_table *sgt = dma_buf_map_attachment_unlocked(attach, DMA_BIDIRECTIONAL);
	phys_addr_t phys;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	KUNIT_EXPECT_EQ(test, sgt->nents, 1);
	phys = dma_to_phys(attach->dev, sg_dma_address(sgt->sgl));
	dma_buf_unmap_attachment_unlocked(attach, sgt, DMA_BIDIRECTIONAL);
	st_detach(test, attach);
	return phys;
}

/* What the CPU writes is in the region, at the address that devices have, and back */
static void st_coherent_address(struct kunit *test)
{
	struct dma_buf *buf = st_heap_alloc(test, SZ_64K);
	struct reserved_mem *rmem = mem_of(region);
	phys_addr_t phys = address_of(test, buf);
	struct iosys_map map;
	void *there;

	KUNIT_EXPECT_GE(test, phys, rmem->base);
	KUNIT_EXPECT_LE(test, phys + SZ_64K, rmem->base + rmem->size);
	there = memremap(phys, SZ_64K, MEMREMAP_WC);
	KUNIT_ASSERT_NOT_NULL(test, there);
	KUNIT_ASSERT_EQ(test, dma_buf_vmap_unlocked(buf, &map), 0);

	KUNIT_EXPECT_NULL(test, memchr_inv(there, 0, SZ_64K));
	memset(map.vaddr, 0x12, SZ_64K);
	KUNIT_EXPECT_NULL(test, memchr_inv(there, 0x12, SZ_64K));
	memset(there, 0x34, SZ_64K);
	KUNIT_EXPECT_NULL(test, memchr_inv(map.vaddr, 0x34, SZ_64K));

	dma_buf_vunmap_unlocked(buf, &map);
	memunmap(there);
}

/* A device that does not reach the region is refused, and nothing else happens */
static void st_coherent_unreachable(struct kunit *test)
{
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
	int warned = test_taint(TAINT_WARN);
	u32 errors;

	attach = st_attach(test, st_heap_alloc(test, SZ_64K), &wide);
	errors = st_dma_errors(test);
	attach->dev->bus_dma_limit = mem_of(region)->base - 1;
	sgt = dma_buf_map_attachment_unlocked(attach, DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_TRUE(test, sgt == ERR_PTR(-EIO));
	attach->dev->bus_dma_limit = 0;
	sgt = dma_buf_map_attachment_unlocked(attach, DMA_BIDIRECTIONAL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	dma_buf_unmap_attachment_unlocked(attach, sgt, DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
	KUNIT_EXPECT_EQ(test, warned, test_taint(TAINT_WARN));
}

/* Nor is anything bounced: for swiotlb=force */
static void st_coherent_bounced(struct kunit *test)
{
	int warned = test_taint(TAINT_WARN);
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
	u32 errors;

	attach = st_attach(test, st_heap_alloc(test, SZ_64K), &wide);
	errors = st_dma_errors(test);
	sgt = dma_buf_map_attachment_unlocked(attach, DMA_BIDIRECTIONAL);
	if (is_swiotlb_force_bounce(attach->dev)) {
		KUNIT_EXPECT_TRUE(test, sgt == ERR_PTR(-EIO));
	} else {
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
		dma_buf_unmap_attachment_unlocked(attach, sgt, DMA_BIDIRECTIONAL);
	}
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
	KUNIT_EXPECT_EQ(test, warned, test_taint(TAINT_WARN));
}

/* Returns how many blocks of @size the pool has, which are given back */
static int count_blocks(struct kunit *test, struct dma_coherent_mem *mem, size_t size)
{
	size_t max = mem_of(region)->size / PAGE_SIZE;
	void **blocks = kvcalloc(max, sizeof(*blocks), GFP_KERNEL);
	phys_addr_t phys;
	int n = 0, i;

	KUNIT_ASSERT_NOT_NULL(test, blocks);
	while (n < max && (blocks[n] = dma_coherent_mem_alloc(mem, size, &phys)))
		n++;
	for (i = 0; i < n; i++)
		dma_coherent_mem_free(mem, size, blocks[i]);
	kvfree(blocks);
	return n;
}

/* The pool, of which nobody has anything: a driver of the region can be in the way */
static struct dma_coherent_mem *unused_pool(struct kunit *test)
{
	struct dma_coherent_mem *mem = dma_coherent_mem_of_node(region);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, mem);
	if (count_blocks(test, mem, PAGE_SIZE) != mem_of(region)->size / PAGE_SIZE)
		kunit_skip(test, "somebody has memory of the region");
	return mem;
}

/* What is given back can be had again, and is clean */
static void st_coherent_zeroed(struct kunit *test)
{
	struct dma_coherent_mem *mem = unused_pool(test);
	size_t size = mem_of(region)->size;
	struct iosys_map map;
	struct dma_buf *buf;
	int i;

	/* All of it, so that it is the same memory the next time */
	for (i = 0; i < 2; i++) {
		buf = st_heap_alloc(test, size);
		KUNIT_ASSERT_EQ(test, dma_buf_vmap_unlocked(buf, &map), 0);
		KUNIT_EXPECT_NULL(test, memchr_inv(map.vaddr, 0, size));
		memset(map.vaddr, 0xff, size);
		dma_buf_vunmap_unlocked(buf, &map);
		KUNIT_EXPECT_EQ(test, count_blocks(test, mem, PAGE_SIZE), 0);
		st_put_buffer(test, buf);
		KUNIT_EXPECT_EQ(test, count_blocks(test, mem, PAGE_SIZE), size / PAGE_SIZE);
	}
}

/* No page is lost to the size of its neighbour */
static void st_coherent_pages(struct kunit *test)
{
	struct dma_coherent_mem *mem = unused_pool(test);
	int pages = mem_of(region)->size / PAGE_SIZE, n = 0, i;
	void **blocks = kvcalloc(pages / 8 + 1, sizeof(*blocks), GFP_KERNEL);
	phys_addr_t phys;

	KUNIT_ASSERT_NOT_NULL(test, blocks);
	while (n < pages / 8 && (blocks[n] = dma_coherent_mem_alloc(mem, 5 * PAGE_SIZE, &phys))) {
		/* dma_alloc_coherent() promises that */
		KUNIT_EXPECT_TRUE(test, IS_ALIGNED(phys - mem_of(region)->base, 8 * PAGE_SIZE));
		n++;
	}
	KUNIT_EXPECT_EQ(test, n, pages / 8);
	KUNIT_EXPECT_EQ(test, count_blocks(test, mem, PAGE_SIZE), 3 * n + pages % 8);
	for (i = 0; i < n; i++)
		dma_coherent_mem_free(mem, 5 * PAGE_SIZE, blocks[i]);
	kvfree(blocks);
	KUNIT_EXPECT_EQ(test, count_blocks(test, mem, PAGE_SIZE), pages);
}

static void release_region_of(void *dev)
{
	of_reserved_mem_device_release(dev);
}

/* As a driver of the region's own does it */
static struct device *new_user(struct kunit *test, const char *name)
{
	struct device *dev = kunit_device_register(test, name);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	KUNIT_ASSERT_EQ(test, dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64)), 0);
	KUNIT_ASSERT_EQ(test, of_reserved_mem_device_init_by_idx(dev, user, 0), 0);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, release_region_of, dev), 0);
	return dev;
}

/* The devices of the region and the heap have one pool, and nothing in it twice */
static void st_coherent_two_users(struct kunit *test)
{
	dma_addr_t addr[4];
	struct iosys_map map[4];
	struct dma_buf *buf[4];
	struct device *dev;
	void *vaddr[4];
	int i;

	if (!user)
		kunit_skip(test, "no device with the region");
	unused_pool(test);
	dev = new_user(test, "user");
	for (i = 0; i < ARRAY_SIZE(buf); i++) {
		vaddr[i] = dma_alloc_coherent(dev, SZ_64K, &addr[i], GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, vaddr[i]);
		KUNIT_EXPECT_GE(test, addr[i], mem_of(region)->base);
		KUNIT_EXPECT_NULL(test, memchr_inv(vaddr[i], 0, SZ_64K));
		memset(vaddr[i], 0x10 + i, SZ_64K);
		buf[i] = st_heap_alloc(test, SZ_64K);
		KUNIT_ASSERT_EQ(test, dma_buf_vmap_unlocked(buf[i], &map[i]), 0);
		memset(map[i].vaddr, 0x20 + i, SZ_64K);
	}
	for (i = 0; i < ARRAY_SIZE(buf); i++) {
		KUNIT_EXPECT_NULL(test, memchr_inv(vaddr[i], 0x10 + i, SZ_64K));
		KUNIT_EXPECT_NULL(test, memchr_inv(map[i].vaddr, 0x20 + i, SZ_64K));
		dma_buf_vunmap_unlocked(buf[i], &map[i]);
		dma_free_coherent(dev, SZ_64K, vaddr[i], addr[i]);
	}
	/* What one has taken is gone for the other */
	st_heap_alloc(test, SZ_1M);
	KUNIT_EXPECT_NULL(test, dma_alloc_coherent(dev, mem_of(region)->size, &addr[0],
						   GFP_KERNEL | __GFP_NOWARN));
}

/* Who comes first makes the pool, and the others have the same */
static void st_coherent_one_pool(struct kunit *test)
{
	int i;

	if (!spare)
		kunit_skip(test, "no second region");
	if (!nobody_had_it)
		kunit_skip(test, "its pool was there before");
	for (i = 0; i < ARRAY_SIZE(racers); i++) {
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, racers[i].task);
		KUNIT_EXPECT_PTR_EQ(test, racers[i].mem, dma_coherent_mem_of_node(spare));
	}
}

static void expect_refused(struct kunit *test, struct device_node *np, int error)
{
	struct coherent_heap *refused = coherent_heap_add(np);

	KUNIT_EXPECT_PTR_EQ_MSG(test, refused, ERR_PTR(error), "%pOF", np);
	if (!IS_ERR(refused))
		coherent_heap_remove(refused);
}

/* A driver takes its region back, with the heap open and a buffer in use */
static void st_coherent_removed(struct kunit *test)
{
	struct dma_heap_allocation_data data = { .len = SZ_64K, .fd_flags = O_RDWR | O_CLOEXEC };
	struct iosys_map map;
	struct dma_buf *buf;

	if (!spare)
		kunit_skip(test, "no second region");
	if (spare_heap == ERR_PTR(-EEXIST))
		kunit_skip(test, "there is a heap of it already");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, spare_heap);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, spare_file);
	expect_refused(test, spare, -EEXIST);
	KUNIT_ASSERT_EQ(test, st_file_ioctl(test, spare_file, DMA_HEAP_IOCTL_ALLOC, &data,
					    sizeof(data)), 0);
	buf = st_buffer_of_fd(test, data.fd);
	KUNIT_ASSERT_EQ(test, dma_buf_vmap_unlocked(buf, &map), 0);
	memset(map.vaddr, 0x56, SZ_64K);

	coherent_heap_remove(spare_heap);
	spare_heap = NULL;
	data.fd = 0;
	KUNIT_EXPECT_EQ(test, st_file_ioctl(test, spare_file, DMA_HEAP_IOCTL_ALLOC, &data,
					    sizeof(data)), -ENODEV);
	KUNIT_EXPECT_STREQ(test, buf->exp_name, kbasename(spare->full_name));
	KUNIT_EXPECT_NULL(test, memchr_inv(map.vaddr, 0x56, SZ_64K));
	dma_buf_vunmap_unlocked(buf, &map);

	/* Another heap of the region is not what is still open */
	spare_heap = coherent_heap_add(spare);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, spare_heap);
	KUNIT_EXPECT_EQ(test, st_file_ioctl(test, spare_file, DMA_HEAP_IOCTL_ALLOC, &data,
					    sizeof(data)), -ENODEV);
}

/* What is no region for a heap */
static void st_coherent_refused(struct kunit *test)
{
	struct device_node *parent = of_find_node_by_path("/reserved-memory"), *np;

	expect_refused(test, NULL, -ENODEV);
	expect_refused(test, parent, -ENODEV);
	expect_refused(test, region, -EEXIST);
	for_each_child_of_node(parent, np) {
		if (!is_coherent_pool(np))
			expect_refused(test, np, -ENODEV);
		else if (is_mapped(np))
			expect_refused(test, np, -EINVAL);
	}
	of_node_put(parent);
}

static struct kunit_case st_cases[] = {
	KUNIT_CASE(st_coherent_one_pool),
	KUNIT_CASE(st_coherent_bounced),
	KUNIT_CASE(st_coherent_zeroed),
	KUNIT_CASE(st_coherent_pages),
	KUNIT_CASE(st_coherent_two_users),
	KUNIT_CASE(st_coherent_removed),
	KUNIT_CASE(st_coherent_refused),
	{}
};

static struct kunit_case st_importer_cases[] = {
	KUNIT_CASE(st_coherent_address),
	KUNIT_CASE(st_coherent_unreachable),
	ST_EXPORTER_CASES,
	{}
};

static struct kunit_suite coherent_heap_test_suite = {
	.name = "dma-heap-coherent",
	.suite_init = st_coherent_init,
	.suite_exit = st_coherent_exit,
	.init = st_init,
	.test_cases = st_cases,
};

static struct kunit_suite coherent_heap_importer_test_suite = {
	.name = "dma-heap-coherent-importer",
	.suite_init = st_coherent_init,
	.suite_exit = st_coherent_exit,
	.init = st_importer_init,
	.test_cases = st_importer_cases,
};

kunit_test_suites(&coherent_heap_test_suite, &coherent_heap_importer_test_suite);

MODULE_DESCRIPTION("KUnit tests for the heaps of coherent reserved memory");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("DMA_BUF_HEAP");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
