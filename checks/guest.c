// SPDX-License-Identifier: GPL-2.0
/* What checks/30-verdict runs in the guest: one program, one misbehaviour each */
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
	if (!strcmp(what, "vanish"))	/* no exit record */
		return reboot(RB_POWER_OFF);
	return 1;
}
