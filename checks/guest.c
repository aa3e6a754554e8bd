// SPDX-License-Identifier: GPL-2.0
/* What checks/30-runner runs in the guest: one program, one behaviour each */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/reboot.h>

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		perror(path);
		return 1;
	}
	return 0;
}

/* The heaps are exactly those of argv */
static int heaps(char **argv)
{
	int wrong = 0, found = 0, wanted = 0;
	DIR *dir = opendir("/dev/dma_heap");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		char **a = argv;

		if (e->d_name[0] == '.')
			continue;
		while (*a && strcmp(*a, e->d_name))
			a++;
		printf("heap %s%s\n", e->d_name, *a ? "" : ", unexpected");
		wrong |= !*a;
		found++;
	}
	while (*argv++)
		wanted++;
	if (found != wanted)
		printf("%d heaps, expected %d\n", found, wanted);
	return wrong || found != wanted;
}

/* A module's suites, whose results are printed, but not as this program's own */
static int kunit(const char *module)
{
	char command[128];

	snprintf(command, sizeof(command), "/bin/modprobe %s", module);
	return system(command) || system("sed 's/^/| /' /sys/kernel/debug/kunit/*/results") ||
	       !system("grep -q 'not ok' /sys/kernel/debug/kunit/*/results");
}

static long most_bounced(void)
{
	FILE *f = fopen("/sys/kernel/debug/swiotlb/io_tlb_used_hiwater", "r");
	long n = -1;

	if (!f || fscanf(f, "%ld", &n) != 1)
		perror("io_tlb_used_hiwater");
	return n;
}

/* DMA mappings, here those of KUnit's importers, go through the bounce buffers */
static int swiotlb(void)
{
	long before = most_bounced(), after;

	if (system("/bin/modprobe st-udmabuf"))
		return 1;
	after = most_bounced();
	printf("bounce buffers in use: %ld, then %ld\n", before, after);
	return before < 0 || after <= before;
}

/* All of a large write arrives, and what bash needs for <(...) is there */
static int output(void)
{
	static char buf[100000];
	int fd = open("/dev/fd/1", O_WRONLY), err = open("/dev/stderr", O_WRONLY);

	memset(buf, 'x', sizeof(buf));
	memcpy(buf + sizeof(buf) - 2, "y\n", 2);
	if (fd < 0 || err < 0 || write(1, buf, sizeof(buf)) != sizeof(buf))
		return 1;
	return dprintf(fd, "and more\n") < 0;
}

/* What the kernel says counts, whatever level the console has */
static int quiet(void)
{
	return put("/proc/sys/kernel/printk", "1 4 1 7") ||
	       put("/dev/kmsg", "<4>UBSAN: not really, in guest.c");
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(what, "hello")) {
		printf("hello from the guest, %d arguments, the last is '%s'\n", argc - 1, argv[argc - 1]);
		fprintf(stderr, "and from stderr\n");
		return getuid();
	}
	if (!strcmp(what, "exit7"))
		return 7;
	if (!strcmp(what, "ktap")) {
		printf("TAP version 13\n1..3\nok 1 one\nok 2 two\nok 3 three\n");
		return 0;
	}
	if (!strcmp(what, "fail")) {
		printf("TAP version 13\n1..2\nok 1 one\nnot ok 2 two\n");
		return 0;
	}
	if (!strcmp(what, "skip")) {
		printf("TAP version 13\n1..2\nok 1 one\nok 2 two # SKIP no such device\n");
		return 0;
	}
	if (!strcmp(what, "truncated")) {
		printf("TAP version 13\n1..3\nok 1 one\n");
		return 0;
	}
	if (!strcmp(what, "hang"))
		for (;;)
			pause();
	if (!strcmp(what, "warn"))	/* a real WARN, by the kernel's own crash test module */
		return system("/bin/modprobe lkdtm") ||
		       put("/sys/kernel/debug/provoke-crash/DIRECT", "WARNING");
	if (!strcmp(what, "panic"))
		return put("/proc/sysrq-trigger", "c");
	if (!strcmp(what, "heaps"))
		return heaps(argv + 2);
	if (!strcmp(what, "swiotlb"))
		return swiotlb();
	if (!strcmp(what, "kunit"))
		return kunit(argv[2]);
	if (!strcmp(what, "output"))
		return output();
	if (!strcmp(what, "quiet"))
		return quiet();
	if (!strcmp(what, "vanish"))	/* no exit record */
		return reboot(RB_POWER_OFF);
	return 1;
}
