/* SPDX-License-Identifier: GPL-2.0 */
/* Loading and unloading modules */
#ifndef SELFTESTS_HEAP_MODULE_H
#define SELFTESTS_HEAP_MODULE_H

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static inline int modprobe(const char *name)
{
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		execlp("modprobe", "modprobe", name, NULL);
		_exit(127);
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline int unload(const char *module)
{
	return syscall(SYS_delete_module, module, O_NONBLOCK) ? -errno : 0;
}

/* What has been closed can take a while to end, if that was not its process */
static inline int unload_soon(const char *module)
{
	int ret, i;

	for (i = 0; i < 100; i++) {
		ret = unload(module);
		if (ret != -EWOULDBLOCK)
			break;
		usleep(50000);
	}
	return ret;
}

#endif
