// SPDX-License-Identifier: GPL-2.0-only
/*
 * What page table entries the mapping of a dma-buf can have, and a file for
 * selftests that tells which one an address has.
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/sizes.h>

#include <kunit/test.h>

#include "vfio_pci_priv.h"

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

#define MAX_RANGES	4
#define MAX_TEST_ORDER	4

/* Ranges in pages, and where they start: a page frame number */
struct layout {
	const char *name;
	u32 nr;
	struct {
		unsigned long pfn, pages;
	} range[MAX_RANGES];
};

static const struct layout layouts[] = {
	{ "aligned", 1, { { 64, 32 } } },
	{ "misaligned by one", 1, { { 65, 32 } } },
	{ "misaligned by eight", 1, { { 72, 30 } } },
	{ "single page", 1, { { 67, 1 } } },
	{ "in order", 2, { { 64, 16 }, { 80, 16 } } },
	{ "reversed", 2, { { 80, 16 }, { 64, 16 } } },
	{ "with a gap", 3, { { 64, 8 }, { 80, 8 }, { 96, 16 } } },
	{ "overlapping", 2, { { 64, 16 }, { 72, 16 } } },
	{ "split in odd places", 4, { { 64, 3 }, { 67, 5 }, { 72, 17 }, { 89, 7 } } },
	{ "above 4 GiB", 1, { { SZ_4G >> PAGE_SHIFT, 32 } } },
};

static void layout_to_desc(const struct layout *layout, char *desc)
{
	strscpy(desc, layout->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(layout, layouts, layout_to_desc);

static struct vfio_pci_dma_buf *new_dma_buf(struct kunit *test,
					    const struct layout *layout)
{
	struct vfio_pci_dma_buf *priv;
	u32 i;

	if (sizeof(phys_addr_t) == 4 && layout->range[0].pfn >= SZ_4G >> PAGE_SHIFT)
		kunit_skip(test, "needs 64-bit physical addresses");

	priv = kunit_kzalloc(test, struct_size(priv, phys_vec, MAX_RANGES),
			     GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, priv);
	priv->nr_ranges = layout->nr;
	for (i = 0; i < layout->nr; i++) {
		priv->phys_vec[i].paddr = PFN_PHYS(layout->range[i].pfn);
		priv->phys_vec[i].len = layout->range[i].pages << PAGE_SHIFT;
		priv->size += priv->phys_vec[i].len;
	}

	return priv;
}

/* The range and page frame behind page @index of the dma-buf, page by page */
static bool page_of(const struct layout *layout, unsigned long index,
		    u32 *range, unsigned long *pfn)
{
	for (*range = 0; *range < layout->nr; (*range)++) {
		if (index < layout->range[*range].pages) {
			*pfn = layout->range[*range].pfn + index;
			return true;
		}
		index -= layout->range[*range].pages;
	}

	return false;
}

/* What a page table allows, looking at each page of the block */
static bool expected(const struct layout *layout,
		     const struct vm_area_struct *vma, pgoff_t vm_pgoff,
		     unsigned long address, unsigned int order,
		     unsigned long *pfn)
{
	unsigned long pages = 1UL << order, i, page_pfn;
	unsigned long block = address & ~((pages << PAGE_SHIFT) - 1);
	u32 range, first_range;

	for (i = 0; i < pages; i++) {
		unsigned long at = block + (i << PAGE_SHIFT);

		if (at < vma->vm_start || at >= vma->vm_end)
			return false;
		if (!page_of(layout, vma->vm_pgoff - vm_pgoff +
			     ((at - vma->vm_start) >> PAGE_SHIFT),
			     &range, &page_pfn))
			return false;
		if (!i) {
			*pfn = page_pfn;
			first_range = range;
		}
		if (range != first_range || page_pfn != *pfn + i)
			return false;
	}

	return !(*pfn & (pages - 1));
}

static void check_vma(struct kunit *test, const struct layout *layout,
		      const struct vfio_pci_dma_buf *priv,
		      const struct vm_area_struct *vma)
{
	unsigned long address, pfn, want;
	unsigned int order;
	bool can;

	for (order = 0; order <= MAX_TEST_ORDER; order++) {
		for (address = vma->vm_start; address < vma->vm_end;
		     address += PAGE_SIZE) {
			can = expected(layout, vma, priv->vm_pgoff, address,
				       order, &want);
			pfn = 0;
			KUNIT_ASSERT_EQ_MSG(test, can,
					    vfio_pci_dma_buf_find_pfn(priv, vma,
								      address + 8,
								      order, &pfn),
					    "%s: VMA %lx-%lx at page %lu, %lx, order %u",
					    layout->name, vma->vm_start,
					    vma->vm_end, vma->vm_pgoff, address,
					    order);
			if (can)
				KUNIT_ASSERT_EQ(test, want, pfn);
		}
	}
}

/* Each place and each length in the dma-buf, at each alignment of the address */
static void find_pfn_matrix(struct kunit *test)
{
	const struct layout *layout = test->param_value;
	struct vfio_pci_dma_buf *priv = new_dma_buf(test, layout);
	unsigned long pages = priv->size >> PAGE_SHIFT, at, nr, shift;

	for (priv->vm_pgoff = 0; priv->vm_pgoff <= 48; priv->vm_pgoff += 48) {
		for (at = 0; at < pages; at++) {
			for (nr = 1; nr <= pages - at; nr++) {
				for (shift = 0; shift < 16; shift = shift * 2 ?: 1) {
					struct vm_area_struct vma = {
						.vm_start = SZ_1M + (shift << PAGE_SHIFT),
						.vm_pgoff = priv->vm_pgoff + at,
					};

					vma.vm_end = vma.vm_start + (nr << PAGE_SHIFT);
					check_vma(test, layout, priv, &vma);
				}
			}
		}
	}
}

/* Nothing is behind the dma-buf, nor before it */
static void find_pfn_outside(struct kunit *test)
{
	const struct layout *layout = test->param_value;
	struct vfio_pci_dma_buf *priv = new_dma_buf(test, layout);
	struct vm_area_struct vma = { .vm_start = SZ_2M, .vm_end = SZ_4M };
	unsigned long pfn;
	unsigned int order;

	for (order = 0; order <= MAX_TEST_ORDER; order++) {
		vma.vm_pgoff = priv->size >> PAGE_SHIFT;
		KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_find_pfn(priv, &vma, SZ_2M,
								   order, &pfn));
		vma.vm_pgoff = ULONG_MAX;
		KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_find_pfn(priv, &vma, SZ_2M,
								   order, &pfn));
#ifdef CONFIG_64BIT
		/* In bytes this is 0 again */
		vma.vm_pgoff = 1UL << (BITS_PER_LONG - PAGE_SHIFT);
		KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_find_pfn(priv, &vma, SZ_2M,
								   order, &pfn));
#endif
		priv->vm_pgoff = 1;
		vma.vm_pgoff = 0;
		KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_find_pfn(priv, &vma, SZ_2M,
								   order, &pfn));
		priv->vm_pgoff = 0;
	}
}

/* The orders that page tables have, in a BAR that a mapping keys high up */
static void find_pfn_huge(struct kunit *test)
{
	static const unsigned int shifts[] = { PMD_SHIFT, PUD_SHIFT };
	const phys_addr_t bar = (phys_addr_t)PUD_SIZE * 4;
	struct vfio_pci_dma_buf *priv = new_dma_buf(test, &layouts[0]);
	struct vm_area_struct vma = {};
	unsigned long pfn;
	unsigned int i;

	if (!IS_ENABLED(CONFIG_64BIT))
		kunit_skip(test, "needs 64-bit addresses");

	priv->vm_pgoff = VFIO_PCI_INDEX_TO_OFFSET(4ULL) >> PAGE_SHIFT;
	priv->size = PUD_SIZE * 2;
	priv->phys_vec[0].paddr = bar;
	priv->phys_vec[0].len = PUD_SIZE * 2;
	vma.vm_pgoff = priv->vm_pgoff;
	vma.vm_start = PUD_SIZE;
	vma.vm_end = vma.vm_start + PUD_SIZE * 2;

	for (i = 0; i < ARRAY_SIZE(shifts); i++) {
		KUNIT_EXPECT_TRUE(test, vfio_pci_dma_buf_find_pfn(priv, &vma, vma.vm_end - 1,
								  shifts[i] - PAGE_SHIFT, &pfn));
		KUNIT_EXPECT_EQ(test, pfn,
				PHYS_PFN(bar + PUD_SIZE * 2 - (1UL << shifts[i])));
	}

	/* A page further on nothing is aligned any more */
	vma.vm_pgoff++;
	vma.vm_end -= PAGE_SIZE;
	for (i = 0; i < ARRAY_SIZE(shifts); i++)
		KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_find_pfn(priv, &vma, vma.vm_start,
								   shifts[i] - PAGE_SHIFT, &pfn));
	KUNIT_EXPECT_TRUE(test, vfio_pci_dma_buf_find_pfn(priv, &vma, vma.vm_start, 0, &pfn));
	KUNIT_EXPECT_EQ(test, pfn, PHYS_PFN(bar) + 1);
}

static struct kunit_case vfio_pci_dma_buf_cases[] = {
	KUNIT_CASE_PARAM_ATTR(find_pfn_matrix, layout_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	KUNIT_CASE_PARAM(find_pfn_outside, layout_gen_params),
	KUNIT_CASE(find_pfn_huge),
	{}
};

static struct kunit_suite vfio_pci_dma_buf_suite = {
	.name = "vfio-pci-dma-buf",
	.test_cases = vfio_pci_dma_buf_cases,
};

kunit_test_suite(vfio_pci_dma_buf_suite);

/*
 * The entry of the page table that the caller has for the address that is the
 * position in the file: page frame number, size, attributes, in hexadecimal.
 */
static ssize_t mapping_read(struct file *file, char __user *buf, size_t count,
			    loff_t *ppos)
{
	struct follow_pfnmap_args args = { .address = *ppos };
	char text[64];
	int len;

	mmap_read_lock(current->mm);
	args.vma = vma_lookup(current->mm, args.address);
	len = args.vma ? follow_pfnmap_start(&args) : -EFAULT;
	if (!len) {
		len = scnprintf(text, sizeof(text), "%lx %lx %llx\n",
				args.pfn, ~args.addr_mask + 1,
				(u64)pgprot_val(args.pgprot));
		follow_pfnmap_end(&args);
	}
	mmap_read_unlock(current->mm);
	if (len < 0)
		return len;

	len = min_t(size_t, len, count);
	return copy_to_user(buf, text, len) ? -EFAULT : len;
}

static const struct file_operations mapping_fops = {
	.owner = THIS_MODULE,
	.read = mapping_read,
	.llseek = default_llseek,
};

static struct dentry *mapping_file;

static int __init vfio_pci_dmabuf_test_init(void)
{
	mapping_file = debugfs_create_file("vfio_pci_dmabuf_test", 0400, NULL,
					   NULL, &mapping_fops);
	return 0;
}
module_init(vfio_pci_dmabuf_test_init);

static void __exit vfio_pci_dmabuf_test_exit(void)
{
	debugfs_remove(mapping_file);
}
module_exit(vfio_pci_dmabuf_test_exit);

MODULE_DESCRIPTION("KUnit tests for the dma-bufs of VFIO PCI");
MODULE_LICENSE("GPL");
