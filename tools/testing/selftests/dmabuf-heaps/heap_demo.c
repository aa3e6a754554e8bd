// SPDX-License-Identifier: GPL-2.0
/*
 * The story of the heaps: what is allocated from each, and that their modules can be
 * unloaded when nothing of theirs is in use, and not before. Each comment line tells
 * what was observed, and is followed by the verdict on it.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include "../kselftest.h"
#include "heap.h"
#include "module.h"

#define SIZE (1024 * 1024)

static const struct demo_heap {
	const char *module, *name, *what;
} heaps[] = {
	{ "system_heap", "system", "pages from anywhere" },
	{ "cma_heap", "default_cma_region", "contiguous memory" },
	{ "coherent_heap", NULL, "coherent reserved memory" },
};

#define tell(heap, fmt, ...) ksft_print_msg("%s: " fmt "\n", (heap)->module, ##__VA_ARGS__)

static bool holds(const unsigned char *p, unsigned char value)
{
	size_t i;

	for (i = 0; i < SIZE && p[i] == value; i++)
		;
	return i == SIZE;
}

static void skip(const struct demo_heap *heap, const char *step, const char *why)
{
	char name[80];

	snprintf(name, sizeof(name), "%s: %s", heap->module, step);
	ksft_test_result_code(KSFT_SKIP, name, "%s", why);
}

/* Returns the mapping of a buffer, all that is left of it, or NULL */
static unsigned char *use(const struct demo_heap *heap, const char *name, const char *when)
{
	int dev = open_heap(name), buf = dev < 0 ? -errno : alloc(dev, SIZE);
	unsigned char *p = MAP_FAILED;
	bool clean = false;

	if (buf >= 0)
		p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	if (p != MAP_FAILED) {
		clean = holds(p, 0);
		memset(p, 0x5a, SIZE);
	}
	tell(heap, "/dev/dma_heap/%s, %s: a buffer of 1 MiB, %s", name, heap->what,
	     buf < 0 ? strerror(-buf) : clean ? "all zeroes" : "not clean");
	ksft_test_result(clean && holds(p, 0x5a), "%s: allocate, map, write, read%s\n",
			 heap->module, when);
	close(buf);
	close(dev);
	return p == MAP_FAILED ? NULL : p;
}

static void unload_and_load(const struct demo_heap *heap, const char *name, unsigned char *p)
{
	int ret = unload(heap->module);

	if (ret == -ENOENT) {
		skip(heap, "is not unloaded while it is in use", "it is built in");
		skip(heap, "is unloaded", "it is built in");
		skip(heap, "allocate, map, write, read again", "it is built in");
		return;
	}
	tell(heap, "unload, with the buffer still mapped: %s", strerror(-ret));
	ksft_test_result(ret == -EWOULDBLOCK && p && holds(p, 0x5a),
			 "%s: is not unloaded while it is in use\n", heap->module);
	if (p)
		munmap(p, SIZE);

	ret = unload_soon(heap->module);
	tell(heap, "unload, with nothing in use: %s", ret ? strerror(-ret) : "it is gone");
	ksft_test_result(!ret && open_heap(name) < 0 && errno == ENOENT,
			 "%s: is unloaded\n", heap->module);

	ret = modprobe(heap->module);
	tell(heap, "load: %s", ret ? "failed" : "it is back");
	p = use(heap, name, " again");
	if (p)
		munmap(p, SIZE);
}

int main(void)
{
	bool regions = !access("/proc/device-tree/reserved-memory", F_OK);
	unsigned int i;
	char *name;

	ksft_print_header();
	ksft_set_plan(4 * ARRAY_SIZE(heaps));
	for (i = 0; i < ARRAY_SIZE(heaps); i++) {
		const struct demo_heap *heap = &heaps[i];

		modprobe(heap->module);
		name = strdup(heap->name ?: coherent_heap() ?: "");
		if (!heap->name && !regions) {
			skip(heap, "allocate, map, write, read", "there is no device tree");
			skip(heap, "is not unloaded while it is in use", "there is no device tree");
			ksft_test_result(!unload(heap->module) && !modprobe(heap->module),
					 "%s: is unloaded\n", heap->module);
			skip(heap, "allocate, map, write, read again", "there is no device tree");
		} else {
			unload_and_load(heap, name, use(heap, name, ""));
		}
		free(name);
	}
	ksft_finished();
}
