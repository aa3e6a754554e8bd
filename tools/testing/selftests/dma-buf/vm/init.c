// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the test guest: set up, run what /vm/job says, report, power off.
 *
 * Three channels leave the guest. The console carries the kernel's log and
 * nothing else. The virtio-serial port "ktap" carries the results, as KTAP with
 * one top-level test per test program. The port "record" carries one line when
 * the guest is up, and at the very end, after the leak scan, the exit record.
 *
 * kselftest's own runner.sh is not used: under it a test that outlives its
 * timeout in a process group of its own holds the pipe, and so the run, forever,
 * and it flattens the nesting of KTAP. Its conventions are kept: the list of the
 * installed tests, "settings", exit code 4 for SKIP.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../../kselftest.h"

#define MAX_LINE 4096

static int ktap = -1, record = -1;
static int slow = 1, scale = 1;

static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void put(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		buf += n;
		len -= n;
	}
}

__printf(2, 3)
static void putf(int fd, const char *fmt, ...)
{
	char buf[MAX_LINE + 64];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	put(fd, buf, n < (int)sizeof(buf) ? n : (int)sizeof(buf) - 1);
}

static void mounts(void)
{
	static const struct {
		const char *type, *dir;
	} fs[] = {
		{ "proc", "/proc" }, { "sysfs", "/sys" },
		{ "devtmpfs", "/dev" }, { "devpts", "/dev/pts" },
		{ "tmpfs", "/dev/shm" }, { "tmpfs", "/tmp" },
		{ "debugfs", "/sys/kernel/debug" },
		{ "configfs", "/sys/kernel/config" },
	};
	static const char * const links[][2] = {
		{ "/proc/self/fd", "/dev/fd" }, { "fd/0", "/dev/stdin" },
		{ "fd/1", "/dev/stdout" }, { "fd/2", "/dev/stderr" },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(fs); i++) {
		mkdir(fs[i].dir, 0755);
		if (mount(fs[i].type, fs[i].dir, fs[i].type, 0, NULL))
			power_off();
	}
	for (i = 0; i < ARRAY_SIZE(links); i++)
		if (symlink(links[i][0], links[i][1]))
			power_off();
}

/* The virtio-serial ports have names in sysfs only */
static int open_port(const char *name)
{
	DIR *dir = opendir("/sys/class/virtio-ports");
	char path[300], got[64];
	struct dirent *e;
	int fd, n;

	while (dir && (e = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name",
			 e->d_name);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		n = read(fd, got, sizeof(got) - 1);
		close(fd);
		got[n > 0 ? n : 0] = 0;
		got[strcspn(got, "\n")] = 0;
		if (strcmp(got, name))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", e->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0) {
			closedir(dir);
			return fd;
		}
	}
	return -1;
}

/* Of the current test: its output has begun, its last line is not complete */
static bool in_subtest, continued;

static bool is_version(const char *s)
{
	return !strncmp(s, "TAP version", 11) || !strncmp(s, "KTAP version", 12);
}

static bool is_ktap(const char *s)
{
	static const char * const start[] = { "#", "ok", "not ok", "1.." };
	size_t i;

	s += strspn(s, " ");
	for (i = 0; i < ARRAY_SIZE(start); i++)
		if (!strncmp(s, start[i], strlen(start[i])))
			return true;
	return false;
}

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000L + ts.tv_nsec / 1000000;
}

/* A line of a test, indented as a subtest's; what is no KTAP becomes a comment */
static void pass_line(const char *name, const char *line)
{
	if (!continued && is_version(line) && !in_subtest) {
		in_subtest = true;
		putf(ktap, "    KTAP version 1\n    # Subtest: %s\n", name);
	} else if (*line) {
		putf(ktap, "    %s%s\n",
		     !continued && is_ktap(line) && !is_version(line) ? "" : "# ",
		     line);
	}
}

/*
 * Pass on the complete lines; a rest only if there is no room for more of it. A
 * line that is cut is no KTAP: its directive may be in the other part.
 */
static void pass_on(const char *name, char *buf, size_t *len, bool flush)
{
	char *line = buf, *nl;

	buf[*len] = 0;
	while ((nl = strchr(line, '\n'))) {
		*nl = 0;
		pass_line(name, line);
		continued = false;
		line = nl + 1;
	}
	*len -= line - buf;
	memmove(buf, line, *len + 1);
	if (*len && (flush || *len == MAX_LINE)) {
		continued |= *len == MAX_LINE;
		pass_line(name, buf);
		continued = true;
		*len = 0;
	}
}

static bool drain(const char *name, int fd, char *buf, size_t *len)
{
	ssize_t n = read(fd, buf + *len, MAX_LINE - *len);
	ssize_t i;

	if (!name) {
		put(ktap, buf, n > 0 ? n : 0);
		return n > 0;
	}
	for (i = 0; i < n; i++) {
		unsigned char *c = (unsigned char *)&buf[*len + i];

		if ((*c < ' ' && *c != '\n' && *c != '\t') || *c == 0x7f)
			*c = '?';
	}
	if (n > 0) {
		*len += n;
		pass_on(name, buf, len, false);
	}
	return n > 0;
}

/*
 * Whatever a test left behind, also in other sessions, goes now. What does not
 * die is stuck in the kernel: the run is red, and the log gets its stack.
 */
static void kill_all(void)
{
	long end = now_ms() + 10000 * slow;
	static bool stuck;
	pid_t pid;

	kill(-1, SIGKILL);
	while (now_ms() < end && !stuck) {
		pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0 && errno == ECHILD)
			return;
		if (!pid)
			usleep(10000);
	}
	if (!stuck) {
		int fd = open("/proc/sysrq-trigger", O_WRONLY);

		put(fd, "w", 1);
		close(fd);
		putf(record, "stuck\n");
	}
	stuck = true;
}

/*
 * Run argv in dir, as the test of that name, or if it has none with its output
 * unchanged. Returns its wait status, -1 if it had to be killed.
 */
static int run(const char *name, const char *dir, char **argv, int timeout)
{
	char buf[MAX_LINE + 1];
	long end = now_ms() + timeout * 1000L;
	int p[2], status = -1;
	size_t len = 0;
	bool done = false;
	pid_t pid;

	if (pipe2(p, O_CLOEXEC | O_NONBLOCK))
		return -1;
	in_subtest = false;
	continued = false;
	pid = fork();
	if (!pid) {
		fcntl(p[1], F_SETFL, 0);
		dup2(p[1], 1);
		dup2(p[1], 2);
		setsid();
		if (!chdir(dir))
			execv(argv[0], argv);
		fprintf(stderr, "%s/%s: %m\n", dir, argv[0]);
		_exit(127);
	}
	close(p[1]);

	/*
	 * The end of the program is the end of the test, whoever still holds
	 * the pipe. Orphans of the test are reaped by the way.
	 */
	while (pid > 0 && !done && now_ms() < end) {
		struct pollfd pfd = { .fd = p[0], .events = POLLIN };
		pid_t got;
		int st;

		if (poll(&pfd, 1, 100) > 0 && !drain(name, p[0], buf, &len))
			usleep(20000);
		while ((got = waitpid(-1, &st, WNOHANG)) > 0) {
			if (got == pid) {
				status = st;
				done = true;
			}
		}
	}

	kill_all();
	while (drain(name, p[0], buf, &len))
		;
	pass_on(name, buf, &len, true);
	close(p[0]);
	return status;
}

/* "timeout=" of the "settings" next to a test; kselftest's default is 45 s */
static int test_timeout(const char *dir)
{
	const char *override = getenv("vmtest_timeout");
	char path[700], line[128];
	int timeout = 45;
	FILE *f;

	if (override)
		return atoi(override);

	snprintf(path, sizeof(path), "%s/settings", dir);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "timeout=%d", &timeout);
	if (f)
		fclose(f);
	return (timeout ?: 3600) * slow * scale;
}

#define MAX_ARGS 16

/* The words of line; $NAME stands for those of that variable of the environment */
static bool split(char *line, char **argv, int *n)
{
	char *word, *save, *value;

	for (word = strtok_r(line, " ", &save); word;
	     word = strtok_r(NULL, " ", &save)) {
		if (*word == '$') {
			value = getenv(word + 1);
			if (!value || !split(strdup(value), argv, n))
				return false;
		} else if (*n < MAX_ARGS) {
			argv[(*n)++] = word;
		}
	}
	argv[*n] = NULL;
	return true;
}

/* line: COLLECTION:PROG [ARG...], which is the name of the test too */
static void run_test(int nr, const char *name)
{
	char line[512], dir[600], *argv[MAX_ARGS + 1], *colon;
	int timeout, status, n = 0;
	long start;

	snprintf(line, sizeof(line), "%s", name);
	if (!split(line, argv, &n)) {
		putf(ktap, "not ok %d %s # left out: no such variable\n", nr, name);
		return;
	}
	colon = n ? strrchr(argv[0], ':') : NULL;
	if (!colon) {
		putf(ktap, "not ok %d %s # left out: not COLLECTION:PROG\n", nr,
		     name);
		return;
	}
	*colon = 0;
	snprintf(dir, sizeof(dir), "/kselftest/%s", argv[0]);
	*colon = '/';
	argv[0] = colon - 1;
	*argv[0] = '.';

	timeout = test_timeout(dir);
	putf(ktap, "# %s, timeout %d s\n", name, timeout);
	start = now_ms();
	status = run(name, dir, argv, timeout);
	putf(ktap, "# %s, %ld s\n", name, (now_ms() - start) / 1000);
	if (status == -1)
		putf(ktap, "not ok %d %s # TIMEOUT %d seconds\n", nr, name,
		     timeout);
	else if (WIFSIGNALED(status))
		putf(ktap, "not ok %d %s # signal %d\n", nr, name,
		     WTERMSIG(status));
	else if (WEXITSTATUS(status) == KSFT_SKIP)
		putf(ktap, "ok %d %s # SKIP\n", nr, name);
	else if (WEXITSTATUS(status))
		putf(ktap, "not ok %d %s # exit=%d\n", nr, name,
		     WEXITSTATUS(status));
	else
		putf(ktap, "ok %d %s\n", nr, name);
}

static void run_tests(void)
{
	char line[512];
	FILE *f = fopen("/vm/job/tests", "r");
	int total = 0, nr = 0;

	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		total++;
	rewind(f);
	putf(ktap, "KTAP version 1\n1..%d\n", total);
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		run_test(++nr, line);
	}
	fclose(f);
}

static int exit_status(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Run argv with its output going straight to fd. Returns its exit status. */
static int run_plain(char **argv, int fd)
{
	pid_t pid = fork(), got = 0;
	int status;

	if (!pid) {
		dup2(fd, 1);
		dup2(fd, 2);
		setsid();
		execv(argv[0], argv);
		dprintf(2, "%s: %m\n", argv[0]);
		_exit(127);
	}
	while (pid > 0 && !got) {
		got = waitpid(pid, &status, WNOHANG);
		if (!got)
			usleep(20000);
	}
	kill_all();
	return got == pid ? exit_status(status) : -1;
}

static int guest(char *what, int fd)
{
	char *argv[] = { "/bin/sh", "/vm/guest.sh", what, NULL };

	return run_plain(argv, fd);
}

/* Environment that setup found out, such as the address of a PCI function */
static void read_env(void)
{
	char line[256];
	FILE *f = fopen("/tmp/env", "r");

	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		putenv(strdup(line));
	}
	if (f)
		fclose(f);
}

static void run_prog(void)
{
	char line[1024], *argv[64] = { "/vm/job/prog" };
	FILE *f = fopen("/vm/job/args", "r");
	int n = 1, status;

	while (f && n < 63 && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		argv[n++] = strdup(line);
	}
	status = run(NULL, "/", argv, getenv("vmtest_timeout") ?
		     atoi(getenv("vmtest_timeout")) : 600 * slow * scale);
	if (status == -1)
		putf(record, "prog timeout\n");
	else
		putf(record, "prog %d\n", exit_status(status));
}

static void run_shell(void)
{
	char *argv[] = { "/bin/setsid", "-c", "/bin/sh", "-l", NULL };
	int fd = open("/dev/console", O_RDWR);

	dup2(fd, 0);
	run_plain(argv, fd);
}

int main(void)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	const char *mode;
	int fd;

	mounts();
	fd = open("/dev/null", O_RDWR);
	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	if (fd > 2)
		close(fd);
	setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin", 1);
	setenv("HOME", "/tmp", 1);
	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	mode = getenv("vmtest_mode") ?: "tests";
	slow = atoi(getenv("vmtest_slow") ?: "1");
	scale = atoi(getenv("VMTEST_SCALE") ?: "1");

	ktap = open_port("ktap");
	record = open_port("record");
	if (ktap < 0 || record < 0)
		power_off();
	putf(record, "up\n");

	if (guest("setup", ktap)) {
		putf(record, "setup failed\n");
		power_off();
	}
	read_env();

	if (!strcmp(mode, "prog"))
		run_prog();
	else if (!strcmp(mode, "shell"))
		run_shell();
	else
		run_tests();

	guest("finish", record);
	putf(record, "end\n");
	power_off();
}
