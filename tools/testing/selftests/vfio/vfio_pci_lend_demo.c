// SPDX-License-Identifier: GPL-2.0-only
/*
 * The story of a part of a BAR that is lent and taken back: a broker has a device,
 * whose memory is the BAR, and another one that has DMA to it. It lends a page to a
 * borrower, who writes into it, and has the second device write there, too; takes it
 * back from both; and lends it to another borrower. Each comment line tells what was
 * observed, and is followed by the verdict on it.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/io.h>
#include <linux/iommufd.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest.h"

#define BAR 2
#define OFFSET 0x20000
#define IOVA 0xd0000000
#define DMA_AT 1024
#define DMA_LEN 256

static const char *who = "broker";

#define tell(fmt, ...) ksft_print_msg("%s: " fmt "\n", who, ##__VA_ARGS__)

static sigjmp_buf touched;
static void *volatile sigbus_addr;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	sigbus_addr = info->si_addr;
	siglongjmp(touched, 1);
}

/* What a borrower is asked to do, and what came of it */
struct request {
	enum { WRITE, READ, MAP } act;
	u32 offset, word;
	int error;		/* an errno, or that of SIGBUS: EFAULT */
	bool addr_is_right;
};

static void touch(void *map, struct request *r)
{
	sigbus_addr = NULL;
	r->error = 0;
	if (sigsetjmp(touched, 1)) {
		r->error = EFAULT;
		r->addr_is_right = sigbus_addr == map + r->offset;
	} else if (r->act == WRITE) {
		writel(r->word, map + r->offset);
	} else {
		r->word = readl(map + r->offset);
	}
}

static void try_to_map(int fd, struct request *r)
{
	void *map = mmap(NULL, getpagesize(), PROT_READ, MAP_SHARED, fd, 0);

	r->error = map == MAP_FAILED ? errno : 0;
	if (!r->error)
		munmap(map, getpagesize());
}

/* All that a borrower has is the fd that it is sent */
static void borrower(int sock)
{
	struct sigaction act = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	int fd = receive_fd(sock);
	struct request r;
	void *map;

	if (fd < 0)
		exit(KSFT_FAIL);
	sigaction(SIGBUS, &act, NULL);
	map = mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	while (read(sock, &r, sizeof(r)) == sizeof(r)) {
		if (map == MAP_FAILED)
			r.error = ENXIO;
		else if (r.act == MAP)
			try_to_map(fd, &r);
		else
			touch(map, &r);
		if (write(sock, &r, sizeof(r)) != sizeof(r))
			break;
	}
	exit(0);
}

static int new_borrower(pid_t *pid)
{
	int sock[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sock))
		ksft_exit_fail_perror("socketpair");
	fflush(stdout);
	*pid = fork();
	if (*pid < 0)
		ksft_exit_fail_perror("fork");
	if (!*pid) {
		close(sock[0]);
		borrower(sock[1]);
	}
	close(sock[1]);
	return sock[0];
}

static struct request ask(int sock, int act, u32 offset, u32 word)
{
	struct request r = { .act = act, .offset = offset, .word = word };

	if (write(sock, &r, sizeof(r)) != sizeof(r) ||
	    read(sock, &r, sizeof(r)) != sizeof(r))
		ksft_exit_fail_msg("the borrower is gone\n");
	return r;
}

static void expect_sigbus(const char *name, int sock, int act, u32 offset)
{
	struct request r = ask(sock, act, offset, 0xbadbad);

	tell("%s touches the page: %s%s", name,
	     r.error == EFAULT ? "SIGBUS" : r.error ? strerror(r.error) : "it worked",
	     r.error == EFAULT && r.addr_is_right ? ", si_addr is right" : "");
	ksft_test_result(r.error == EFAULT && r.addr_is_right,
			 "%s gets a SIGBUS\n", name);
}

static void expect_word(const char *name, int sock, u32 offset, u32 want)
{
	struct request r = ask(sock, READ, offset, 0);

	tell("%s reads 0x%08x", name, r.error ? 0 : r.word);
	ksft_test_result(!r.error && r.word == want, "%s reads what is there\n", name);
}

static int map_iova(struct iommu *iommu, int fd)
{
	iova_t iova = IOVA;

	return iommu_map_dma_buf(iommu, fd, getpagesize(), IOMMU_IOAS_MAP_FIXED_IOVA,
				 &iova);
}

static void dma(struct vfio_pci_device *device, struct dma_region *ram, u32 word)
{
	u32 *source = ram->vaddr;
	int i;

	for (i = 0; i < DMA_LEN / 4; i++)
		source[i] = word + i;
	vfio_pci_driver_memcpy(device, ram->iova, IOVA + DMA_AT, DMA_LEN);
}

static int words_from(const void *map, u32 word)
{
	int i, right = 0;

	for (i = 0; i < DMA_LEN / 4; i++)
		right += readl(map + DMA_AT + 4 * i) == word + i;
	return right;
}

static void check_dma(const char *what, const void *map, u32 word)
{
	int right = words_from(map, word);

	tell("%s: %d of %d words of the page are 0x%08x and so on", what, right,
	     DMA_LEN / 4, word);
	ksft_test_result(right == DMA_LEN / 4, "%s\n", what);
}

static void take_back(struct vfio_pci_device *device, int fd, int want)
{
	int ret = __vfio_pci_dma_buf_revoke(device, fd);

	tell("takes the page back: %s", ret ? strerror(-ret) : "done");
	ksft_test_result(ret == -want, "taking it back %s\n",
			 want ? "once more is EBADFD" : "works");
}

static void *setup_lender(struct vfio_pci_device *lender)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = BAR };
	void *map;

	vfio_pci_cdev_open(lender, lender->bdf);
	VFIO_ASSERT_EQ(__vfio_device_bind_iommufd(lender->fd, lender->iommu->iommufd,
						  NULL), 0);
	ioctl_assert(lender->fd, VFIO_DEVICE_GET_REGION_INFO, &info);
	if (info.size < OFFSET + getpagesize())
		ksft_exit_skip("%s: BAR%d is too small\n", lender->bdf, BAR);
	map = mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE, MAP_SHARED, lender->fd,
		   info.offset + OFFSET);
	VFIO_ASSERT_NE(map, MAP_FAILED);
	return map;
}

int main(int argc, char *argv[])
{
	struct iova_allocator *iovas;
	struct dma_region ram = {};
	struct vfio_pci_device *lender, *engine;
	struct iommu *iommu;
	struct request r;
	int first, second, fd, again, nr;
	pid_t pid[2];
	void *direct;
	char **bdf;

	ksft_print_header();
	bdf = vfio_selftests_get_bdfs(&argc, argv, &nr);
	if (nr != 2)
		ksft_exit_skip("two devices: one with memory in BAR%d, one with DMA\n", BAR);
	ksft_set_plan(19);
	first = new_borrower(&pid[0]);
	second = new_borrower(&pid[1]);
	iommu = iommu_init(MODE_IOMMUFD);
	engine = vfio_pci_device_init(bdf[1], iommu);
	if (!engine->driver.ops)
		ksft_exit_skip("no driver for %s\n", bdf[1]);
	iovas = iova_allocator_init(iommu);
	region_setup(iommu, iovas, &engine->driver.region, SZ_2M);
	region_setup(iommu, iovas, &ram, getpagesize());
	vfio_pci_driver_init(engine);
	lender = vfio_pci_device_alloc(bdf[0], iommu);
	direct = setup_lender(lender);

	tell("lends the page at 0x%x of BAR%d of %s", OFFSET, BAR, bdf[0]);
	fd = vfio_pci_dma_buf_export(lender, BAR, OFFSET, getpagesize());
	send_fd(first, fd);
	r = ask(first, WRITE, 0, 0x600d1dea);
	tell("the borrower writes 0x%08x, there is 0x%08x", r.word, readl(direct));
	ksft_test_result(!r.error && readl(direct) == 0x600d1dea,
			 "the borrower writes into the BAR\n");
	ksft_test_result(!map_iova(iommu, fd), "the page is mapped for %s\n", bdf[1]);
	dma(engine, &ram, 0x11110000);
	check_dma("the other device writes into the BAR", direct, 0x11110000);
	expect_word("the borrower", first, DMA_AT, 0x11110000);

	take_back(lender, fd, 0);
	expect_sigbus("the borrower", first, READ, DMA_AT);
	expect_sigbus("the borrower", first, WRITE, 0);
	r = ask(first, MAP, 0, 0);
	tell("the borrower maps it again: %s", strerror(r.error));
	ksft_test_result(r.error == ENODEV, "mapping it again is ENODEV\n");
	ksft_test_result(readl(direct) == 0x600d1dea, "the word is as it was\n");
	dma(engine, &ram, 0x22220000);
	check_dma("DMA of the other device gets nowhere", direct, 0x11110000);
	take_back(lender, fd, EBADFD);

	tell("lends the page to another one");
	again = vfio_pci_dma_buf_export(lender, BAR, OFFSET, getpagesize());
	send_fd(second, again);
	expect_word("the second borrower", second, 0, 0x600d1dea);
	dma(engine, &ram, 0x33330000);
	check_dma("DMA is none the wiser", direct, 0x11110000);
	expect_sigbus("the first borrower", first, READ, 0);

	ksft_test_result(!iommu_unmap_dma_buf(iommu, IOVA, getpagesize()) &&
			 !map_iova(iommu, again),
			 "what has been taken back is unmapped, the new one mapped\n");
	dma(engine, &ram, 0x44440000);
	check_dma("the other device writes into the BAR again", direct, 0x44440000);
	expect_word("the second borrower", second, DMA_AT, 0x44440000);

	tell("closes the device");
	munmap(direct, getpagesize());
	close(lender->fd);
	expect_sigbus("the second borrower", second, READ, 0);
	r = ask(second, MAP, 0, 0);
	ksft_test_result(r.error == ENODEV, "mapping it again is ENODEV then, too\n");
	ksft_finished();
}
