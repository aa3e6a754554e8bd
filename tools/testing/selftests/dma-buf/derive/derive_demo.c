// SPDX-License-Identifier: GPL-2.0
/*
 * The story of a read-only dma-buf fd, with two processes on a real heap: a
 * producer fills a buffer and hands a derived fd to a consumer, which reads it
 * and then tries every way of writing to it. Each comment line tells what was
 * observed, and is followed by the verdict on it.
 */
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "../../kselftest.h"
#include "derive.h"

#define SIZE (1024 * 1024)

static const char *who;

#define tell(fmt, ...) ksft_print_msg("%s: " fmt "\n", who, ##__VA_ARGS__)

static const char *result(int ret)
{
	return ret < 0 ? strerrorname_np(-ret) : "it worked";
}

/* An attempt that must fail with this errno */
static void refused(const char *what, int ret, int err)
{
	tell("tries %s: %s", what, result(ret));
	ksft_test_result(ret == -err, "%s is refused\n", what);
	if (ret > 0)
		close(ret);
}

/* Something that a read-only fd is good for */
static int works(const char *what, int ret)
{
	tell("%s: %s", what, result(ret));
	ksft_test_result(ret >= 0, "%s works\n", what);
	return ret;
}

/* Frame nr, as the producer writes it */
static uint8_t pattern(int nr, size_t i)
{
	return (i * 7 + (i >> 8) + nr * 101) & 0xff;
}

static size_t wrong_bytes(const volatile uint8_t *p, int nr)
{
	size_t i, wrong = 0;

	for (i = 0; i < SIZE; i++)
		wrong += p[i] != pattern(nr, i);
	return wrong;
}

static void check_frame(const char *when, const volatile uint8_t *p, int nr)
{
	size_t wrong = wrong_bytes(p, nr);

	tell("%s: %zu of %d bytes differ from frame %d", when, wrong, SIZE, nr);
	ksft_test_result(!wrong, "%s: frame %d is there\n", when, nr);
}

static void fill_frame(int fd, uint8_t *p, int nr)
{
	size_t i;

	sync_cpu(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE);
	for (i = 0; i < SIZE; i++)
		p[i] = pattern(nr, i);
	sync_cpu(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE);
	tell("wrote frame %d", nr);
}

static int try_mprotect(void *p)
{
	return mprotect(p, SIZE, PROT_READ | PROT_WRITE) ? -errno : 0;
}

static int try_vm_writev(void *p)
{
	char byte = 0x55;
	struct iovec from = { &byte, 1 }, to = { p, 1 };

	return process_vm_writev(getpid(), &from, 1, &to, 1, 0) < 0 ? -errno : 0;
}

/* A debugger can write to what a program maps read-only, but not to this */
static int try_ptrace(void *p)
{
	int ret = 0, status;
	pid_t pid = fork();

	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
		return -ECHILD;
	if (ptrace(PTRACE_POKEDATA, pid, p, (void *)0x55))
		ret = -errno;
	ptrace(PTRACE_CONT, pid, NULL, NULL);
	waitpid(pid, &status, 0);
	return ret;
}

static int try_write(int fd)
{
	return write(fd, "x", 1) < 0 ? -errno : 0;
}

static int try_poll(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 1000) == 1 && pfd.revents == POLLIN ? 0 : -EIO;
}

/* A private mapping, if the exporter has them, is a copy */
static void private_copy(int fd, const volatile uint8_t *shared)
{
	uint8_t *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	if (p == MAP_FAILED) {
		tell("tries a private writable mapping: %s", result(-errno));
		ksft_test_result_pass("a private mapping does not reach the buffer\n");
		return;
	}
	p[0] ^= 0xff;
	tell("writes 0x%02x to a private mapping: the buffer still has 0x%02x",
	     p[0], shared[0]);
	ksft_test_result(shared[0] == pattern(1, 0),
			 "a private mapping does not reach the buffer\n");
	munmap(p, SIZE);
}

static void change_access_mode(int fd)
{
	int ret = fcntl(fd, F_SETFL, O_RDWR);
	int mode = fcntl(fd, F_GETFL) & O_ACCMODE;

	tell("asks F_SETFL for O_RDWR: %s, and the access mode is %s",
	     result(ret ? -errno : 0), mode == O_RDONLY ? "O_RDONLY" : "wider");
	ksft_test_result(mode == O_RDONLY, "F_SETFL does not widen the access\n");
}

static void import_into_driver(int fd)
{
	int vgem = open_drm("vgem");

	if (vgem < 0) {
		ksft_test_result_skip("importing it into vgem (PRIME) is refused\n");
		return;
	}
	refused("importing it into vgem (PRIME)", prime_import(vgem, fd), EACCES);
	close(vgem);
}

static void attempts(int fd, volatile uint8_t *p)
{
	void *addr = (void *)p;

	refused("mmap() for writing",
		try_mmap(fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED), EACCES);
	refused("mprotect() for writing", try_mprotect(addr), EACCES);
	refused("writing through /proc/self/mem", write_proc_mem(addr, 0x55), EIO);
	refused("writing with ptrace()", try_ptrace(addr), EIO);
	refused("process_vm_writev()", try_vm_writev(addr), EFAULT);
	refused("write()", try_write(fd), EBADF);
	refused("DMA_BUF_IOCTL_SYNC for writing", sync_cpu(fd, DMA_BUF_SYNC_WRITE), EACCES);
	refused("DMA_BUF_IOCTL_SYNC for both", sync_cpu(fd, DMA_BUF_SYNC_RW), EACCES);
	refused("importing a write fence", import_sync_file(fd, DMA_BUF_SYNC_WRITE), EACCES);
	refused("renaming the buffer", set_name(fd, "mine"), EACCES);
	refused("deriving an O_WRONLY fd", derive(fd, O_WRONLY), EACCES);
	refused("deriving an O_RDWR fd", derive(fd, O_RDWR), EACCES);
	refused("reopening it for writing through /proc/self/fd", reopen(fd, O_RDWR), ENXIO);
	import_into_driver(fd);
	private_copy(fd, p);
	change_access_mode(fd);
}

/*
 * The processes take turns, and the results are numbered across both, so the
 * count goes with the turn. If it does not come the story ends.
 */
static void pass_turn(int sock)
{
	fflush(stdout);
	if (write(sock, &ksft_cnt, sizeof(ksft_cnt)) != sizeof(ksft_cnt))
		ksft_exit_fail_msg("%s: the other side is gone\n", who);
}

static void wait_turn(int sock)
{
	if (read(sock, &ksft_cnt, sizeof(ksft_cnt)) != sizeof(ksft_cnt))
		exit(KSFT_FAIL);
}

static void consumer(int sock)
{
	volatile uint8_t *p;
	struct stat st;
	int fd;

	who = "consumer";
	fd = recv_fd(sock);
	wait_turn(sock);
	if (fd < 0 || fstat(fd, &st))
		ksft_exit_fail_msg("consumer: no fd came\n");
	tell("got fd %d, inode %lu, %ld bytes, access mode %s", fd,
	     (unsigned long)st.st_ino, (long)lseek(fd, 0, SEEK_END),
	     (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY ? "O_RDONLY" : "wider");

	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		ksft_exit_fail_msg("consumer: mmap(PROT_READ): %s\n", strerror(errno));
	works("DMA_BUF_IOCTL_SYNC for reading", sync_cpu(fd, DMA_BUF_SYNC_READ));
	check_frame("reads its mapping", p, 1);
	sync_cpu(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);

	attempts(fd, p);
	check_frame("reads again after all attempts", p, 1);

	works("poll()", try_poll(fd));
	close(works("exporting the fences as a sync file",
		    export_sync_file(fd, DMA_BUF_SYNC_READ)));
	works("importing a read fence", import_sync_file(fd, DMA_BUF_SYNC_READ));
	close(works("deriving another O_RDONLY fd", derive(fd, O_RDONLY)));

	pass_turn(sock);
	wait_turn(sock);
	check_frame("reads what the producer wrote meanwhile", p, 2);

	pass_turn(sock);
	wait_turn(sock);
	check_frame("still reads it after the producer closed its fds", p, 2);
	tell("exits");
	pass_turn(sock);
}

static void producer(int sock, int heap_fd)
{
	struct stat st;
	uint8_t *p;
	int ro;

	who = "producer";
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, heap_fd, 0);
	if (p == MAP_FAILED || fstat(heap_fd, &st))
		ksft_exit_fail_msg("producer: %s\n", strerror(errno));
	tell("has a buffer of the system heap, fd %d, inode %lu, %d bytes",
	     heap_fd, (unsigned long)st.st_ino, SIZE);
	set_name(heap_fd, "frame");
	fill_frame(heap_fd, p, 1);

	ro = derive(heap_fd, O_RDONLY | O_CLOEXEC);
	tell("derives an O_RDONLY fd: %s, access in its fdinfo: \"%s\"",
	     result(ro), ro < 0 ? "" : fdinfo(ro, "derived"));
	ksft_test_result(ro >= 0, "the producer derives a read-only fd\n");
	if (ro < 0)
		ksft_exit_fail_msg("no DMA_BUF_IOCTL_DERIVE in this kernel (%s)\n", result(ro));
	if (send_fd(sock, ro))
		ksft_exit_fail_msg("SCM_RIGHTS failed\n");
	tell("passes it to the consumer over SCM_RIGHTS, and closes its own");
	close(ro);

	pass_turn(sock);
	wait_turn(sock);
	check_frame("looks at the buffer after the consumer's attempts", p, 1);
	tell("the name of the buffer is \"%s\"", fdinfo(heap_fd, "name"));
	ksft_test_result(!strcmp(fdinfo(heap_fd, "name"), "frame"),
			 "the name of the buffer is unchanged\n");
	fill_frame(heap_fd, p, 2);

	pass_turn(sock);
	wait_turn(sock);
	munmap(p, SIZE);
	close(heap_fd);
	tell("has closed its fd of the buffer and unmapped it");
	pass_turn(sock);
	wait_turn(sock);
}

int main(void)
{
	int sock[2], heap_fd, status;
	ino_t ino;
	pid_t pid;

	ksft_print_header();
	if (access("/dev/dma_heap/system", F_OK))
		ksft_exit_skip("no system heap\n");
	heap_fd = heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC);
	if (heap_fd < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sock))
		ksft_exit_fail_msg("set-up: %s\n", strerror(errno));
	ino = inode_of(heap_fd);
	if (buffer_exists(ino) != 1)
		ksft_exit_skip("debugfs is needed to see buffers come and go\n");
	ksft_set_plan(29);
	fflush(stdout);

	pid = fork();
	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		close(heap_fd);
		close(sock[0]);
		consumer(sock[1]);
		exit(0);
	}
	close(sock[1]);
	producer(sock[0], heap_fd);
	waitpid(pid, &status, 0);
	tell("sees the consumer gone: the buffer with inode %lu %s",
	     (unsigned long)ino,
	     buffer_exists(ino) ? "is still there" : "is gone too");
	ksft_test_result(!status && !buffer_exists(ino),
			 "the buffer goes with its last user\n");
	ksft_finished();
}
