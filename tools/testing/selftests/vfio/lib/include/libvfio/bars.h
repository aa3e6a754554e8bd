/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The BARs of a device under test, mapped, with contents that can be told apart, so
 * that a test can say of each mapping whether it is alive, dead (SIGBUS, nothing
 * else) or wrong; and all that the memory of a device goes away with.
 *
 * All that a function has is mapped in several windows: each BAR as a whole, its
 * first and last page, its upper half. Of a BAR that is known to be RAM each page
 * that is looked at has a word of its own, which nothing but this BAR at this
 * offset has; of known registers it is an id register. A read of a function that
 * does not answer gives ~0, so a stray access is seen.
 */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_BARS_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_BARS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <linux/pci_regs.h>
#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio/vfio_pci_device.h>

#define MAX_WINDOWS (4 * PCI_STD_NUM_BARS)
#define MAX_SIBLINGS 8

/* Faults of a thread beside those that are counted: its stack, code, data */
#define OTHER_FAULTS 8

/* Set by who has main() */
extern const char *device_bdf;
extern u64 page;

int factor(const char *name);
int rounds(int n);

/* Long enough for a kernel with sanitizers in an emulated machine */
#define BAR_TEST(_fixture, _name) \
	TEST_F_TIMEOUT(_fixture, _name, 120 * factor("VMTEST_SCALE"))

/*
 * What is known of the BARs of some functions. @reg is a register that reads as @id
 * where @mask is set, always.
 */
struct known_bar {
	u16 vendor, device;
	int index;
	bool ram;
	u32 reg, mask, id;
};

struct bar {
	int index;
	u64 offset;	/* of the region */
	u64 size;	/* as the function has it */
	u64 len;	/* as it can be mapped */
	struct known_bar known;
};

struct window {
	struct bar *bar;
	u64 off, len;
	void *map;
};

/* The device under test */
struct dut {
	struct iommu *iommu;
	bool shared_iommu;
	struct vfio_pci_device *device;
	struct bar bars[PCI_STD_NUM_BARS];
	int nr_bars;
	struct window windows[MAX_WINDOWS];
	int nr_windows;
	bool lend;	/* Map by dma-bufs, which can only be of whole pages */
};

/* Of threads, each with its own. False for a SIGBUS, which has to be one of this very access */
bool peek(const void *addr, u32 *value);
bool poke(void *addr, u32 value);
void catch_sigbus(void);

enum { WRONG = -1, DEAD, ALIVE };

u32 tag(const struct bar *bar, u64 off);
u64 next_page(u64 off);
int word_state(const struct bar *bar, const void *map, u64 off, bool last);
int page_state(const struct bar *bar, const void *map, u64 off);
int not_as(int want, const struct bar *bar, const void *map, u64 off, u64 len);
int windows_not_as(int want, struct dut *dut);

#define EXPECT_ALIVE(_dut) EXPECT_EQ(0, windows_not_as(ALIVE, _dut))
#define EXPECT_DEAD(_dut) EXPECT_EQ(0, windows_not_as(DEAD, _dut))

void *map_fd(int fd, void *at, u64 off, u64 len);
void *map_at(struct dut *dut, struct bar *bar, void *at, u64 off, u64 len);
void *map_bar(struct dut *dut, struct bar *bar, u64 off, u64 len);
void unmap(void *map, u64 len);
void map_window(struct dut *dut, struct bar *bar, u64 off, u64 len);
void map_windows(struct dut *dut);
void unmap_windows(struct dut *dut);
struct bar *biggest(struct dut *dut, bool ram);

int try_open(struct vfio_pci_device *device);
void close_fds(struct vfio_pci_device *device);
void dut_setup(struct dut *dut, const char *bdf);
void dut_open(struct dut *dut, const char *mode);
void dut_close(struct dut *dut);
void memory_off(struct dut *dut);
void memory_on(struct dut *dut);

int try_sysfs_write(const char *bdf, const char *name, const char *text);
bool sysfs_is(const char *bdf, const char *name, const char *text);
bool sysfs_has(const char *bdf, const char *name);
long open_files(void);
long dma_bufs(void);

/* A thread that reads all windows until it is told to stop, by what it found */
struct reader {
	pthread_t thread;
	struct dut *dut;
	atomic_bool stop;
	unsigned long count[3];	/* WRONG + 1, DEAD + 1, ALIVE + 1 */
};

void reader_start(struct reader *r, struct dut *dut);
void reader_stop(struct reader *r);

/* Of a mapping of a BAR that has been cut up */
struct piece {
	void *map;
	u64 off, len;
};

struct bar *sixteen_pages(struct dut *dut);
int pieces_not_as(int want, struct bar *bar, struct piece *p, int nr);
int check_pieces(struct dut *dut, struct bar *bar, struct piece *p, int nr);

int load_module(const char *name);

/* What a page table has for an address; the attributes are those of the architecture */
struct entry {
	u64 pfn, size, prot;
};

enum { ATTR_NC, ATTR_WC, ATTR_OTHER };

bool get_entry(const void *addr, struct entry *entry);
int entry_attr(const struct entry *entry);
int entries_not_as_expected(struct window *w);

/*
 * A mapping that can have huge pages. @va: where it starts in a block of @align, @off:
 * in the BAR; its length is @len, or up to the end of the BAR, or of 4 MiB if @align is
 * of 2 MiB.
 */
struct huge_window {
	u64 align, va, off, len;
};

/* NULL, or why there is none */
const char *map_huge(struct dut *dut, struct window *w, const struct huge_window *huge);

long expected_faults(struct window *w);
long minor_faults(void);
long faults_of_reading(struct window *w);

int feature(struct dut *dut, u32 nr, void *data, size_t size);
bool has_reset(struct dut *dut);
void reset(struct dut *dut);
bool has_sysfs_reset(struct dut *dut);
void sysfs_reset(struct dut *dut);
bool has_runtime_pm(struct dut *dut);
void low_power(struct dut *dut);
void low_power_exit(struct dut *dut);
void low_power_with_wakeup(struct dut *dut);
bool was_woken(void);
void host_wake(struct dut *dut);

struct hot_reset_set {
	struct vfio_pci_hot_reset_info info;
	struct vfio_pci_dependent_device devices[MAX_SIBLINGS];
};

bool get_hot_reset_set(struct dut *dut, struct hot_reset_set *set);
int try_hot_reset(struct dut *dut);
void hot_reset(struct dut *dut);

/*
 * Once @enter has returned all mappings are dead, until @leave does, whatever is
 * written to COMMAND if @sticky; without @leave it is over when @enter returns.
 */
struct revoke_kind {
	const char *name;
	bool (*supported)(struct dut *dut);
	void (*enter)(struct dut *dut);
	void (*leave)(struct dut *dut);
	bool sticky, with_siblings;
};

enum {
	REVOKE_MEMORY,
	REVOKE_D3HOT,
	REVOKE_FLR,
	REVOKE_RESET,
	REVOKE_HOT_RESET,
	REVOKE_LOW_POWER,
	REVOKE_LOW_POWER_WOKEN_BY_HOST,
	REVOKE_LOW_POWER_WOKEN_BY_IOCTL,
	REVOKE_SYSFS_RESET,
	NR_REVOKE_KINDS
};

extern const struct revoke_kind revoke_kinds[NR_REVOKE_KINDS];

int open_siblings(struct dut *dut, struct dut *sibling);

/* Opens the device, and what @kind concerns as well; 0 if the device has no such thing */
int open_with_siblings(struct dut *dut, const struct revoke_kind *kind);
int all_not_as(int want, struct dut *dut, int nr);

/* What an access by other means fails with */
int proc_mem_errno(const void *addr);
int process_vm_errno(const void *addr, bool write);

/* Of the process at the other end: it is sent WANT, and answers with a number */
int ask_not_as(int sock, int want);

/* @main has a process of its own, and writes a byte to @fd: @usec later it is killed */
void run_and_kill(void (*main)(int fd), unsigned int usec);

/* A thread that unbinds the driver of the device */
struct unbinder {
	pthread_t thread;
	atomic_bool done;
	int ret;
};

void unbinder_start(struct unbinder *u);
int unbinder_join(struct unbinder *u);
void bind_again(void);

/* Memory off and on until it is told to stop, or until the fd is closed */
struct toggler {
	pthread_t thread;
	struct dut *dut;
	int fd;
	u64 command;
	u16 off, on;
	atomic_bool stop;
	atomic_ulong rounds;
};

void toggler_start(struct toggler *t, struct dut *dut);
void toggler_stop(struct toggler *t);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_BARS_H */
