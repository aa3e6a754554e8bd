// SPDX-License-Identifier: GPL-2.0
/*
 * The story of a read-only dma-buf fd, with two processes, a camera (vivid) and
 * buffers of the system heap: the producer has the camera fill the buffers and
 * hands a derived fd of each to a consumer, which looks at every frame, and at one
 * of them tries every way of writing to it. Each comment line tells what was
 * observed, and is followed by the verdict on it.
 */
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/videodev2.h>

#include "../../kselftest.h"
#include "derive.h"

#define WIDTH 320
#define HEIGHT 180
#define PIXELS (WIDTH * HEIGHT)
#define SIZE (PIXELS * 3)
#define BUFFERS 3

enum pattern { BARS, CHECKERS };

/* The names of vivid's test patterns */
static const char * const pattern_name[] = { "100% Colorbar", "16x16 Checkers" };

enum act { LOOK, ATTEMPT, CAPTURE, LEAVE };

/*
 * The processes take turns, and the results are numbered across both, so the
 * count goes with the turn. The producer says which frame the turn is about and
 * what the consumer shall do with it; the turn back returns the buffer.
 */
static struct turn {
	struct ksft_count cnt;
	enum act act;
	int nr;
	enum pattern pattern;
	unsigned int sequence;
	unsigned int buffer;
	bool first;		/* of this buffer: an fd follows */
} turn;

static const char *who;
static char camera[32];
static int heap_fd[BUFFERS];

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

/* The bars are those of ITU-R BT.471, 100/0/100/0, from left to right */
static uint32_t colour(enum pattern pattern, int x, int y)
{
	static const uint32_t bars[] = {
		0xffffff, 0xffff00, 0x00ffff, 0x00ff00,
		0xff00ff, 0xff0000, 0x0000ff, 0x000000,
	};

	if (pattern == BARS)
		return bars[x * 8 / WIDTH];
	return (x / 16 + y / 16) % 2 ? 0x000000 : 0xffffff;
}

static int right_pixels(enum pattern pattern, const volatile uint8_t *p)
{
	int x, y, right = 0;

	for (y = 0; y < HEIGHT; y++) {
		for (x = 0; x < WIDTH; x++, p += 3) {
			uint32_t rgb = p[0] << 16 | p[1] << 8 | p[2];

			right += rgb == colour(pattern, x, y);
		}
	}
	return right;
}

/* Is all of the turn's frame in its buffer? */
static void check_frame(const char *when, int fd, const volatile uint8_t *p)
{
	int ret = sync_cpu(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ);
	int right = right_pixels(turn.pattern, p);

	ret = ret ?: sync_cpu(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
	if (ret)
		tell("DMA_BUF_IOCTL_SYNC: %s", result(ret));
	tell("frame %d (sequence %u, buffer %u) %s: %d of %d pixels are those of \"%s\"",
	     turn.nr, turn.sequence, turn.buffer, when, right, PIXELS,
	     pattern_name[turn.pattern]);
	ksft_test_result(!ret && right == PIXELS, "frame %d %s is right\n", turn.nr, when);
}

/* Set a control by its name, a menu by the name of the item (else to 0) */
static int set_control(int cam, const char *name, const char *item)
{
	struct v4l2_queryctrl query = { .id = V4L2_CTRL_FLAG_NEXT_CTRL };
	struct v4l2_querymenu menu = {};
	struct v4l2_control control = {};

	while (!ioctl(cam, VIDIOC_QUERYCTRL, &query) && strcmp((char *)query.name, name))
		query.id |= V4L2_CTRL_FLAG_NEXT_CTRL;
	if (strcmp((char *)query.name, name))
		return -ENOENT;
	control.id = query.id;
	for (menu.id = query.id; item; menu.index++) {
		if (menu.index > (unsigned int)query.maximum)
			return -ENOENT;
		if (!ioctl(cam, VIDIOC_QUERYMENU, &menu) && !strcmp((char *)menu.name, item))
			break;
	}
	control.value = menu.index;
	return buf_ioctl(cam, VIDIOC_S_CTRL, &control);
}

/* Open vivid's capture device, and put its path into camera[] */
static int open_camera(void)
{
	int i, cam;

	for (i = 0; i < 64; i++) {
		struct v4l2_capability cap = {};

		snprintf(camera, sizeof(camera), "/dev/video%d", i);
		cam = open(camera, O_RDWR | O_CLOEXEC);
		if (cam < 0)
			continue;
		if (!ioctl(cam, VIDIOC_QUERYCAP, &cap) && !strcmp((char *)cap.driver, "vivid") &&
		    cap.device_caps & V4L2_CAP_VIDEO_CAPTURE)
			return cam;
		close(cam);
	}
	return -ENODEV;
}

/* Nothing but the test pattern may be in a frame, in the format that is expected */
static int set_up_camera(int cam)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_pix_format *pix = &format.fmt.pix;
	int input = 0, ret;	/* the webcam */

	pix->width = WIDTH;
	pix->height = HEIGHT;
	pix->pixelformat = V4L2_PIX_FMT_RGB24;
	pix->field = V4L2_FIELD_NONE;
	ret = buf_ioctl(cam, VIDIOC_S_INPUT, &input) ?:
	      buf_ioctl(cam, VIDIOC_S_FMT, &format) ?:
	      set_control(cam, "OSD Text Mode", "None") ?:
	      set_control(cam, "Horizontal Movement", "No Movement") ?:
	      set_control(cam, "Vertical Movement", "No Movement") ?:
	      set_control(cam, "Show Border", NULL) ?:
	      set_control(cam, "Show Square", NULL) ?:
	      set_control(cam, "Insert SAV Code in Image", NULL) ?:
	      set_control(cam, "Insert EAV Code in Image", NULL);
	if (!ret && (pix->width != WIDTH || pix->height != HEIGHT || pix->sizeimage != SIZE ||
		     pix->pixelformat != V4L2_PIX_FMT_RGB24 || pix->field != V4L2_FIELD_NONE))
		ret = -EINVAL;
	return ret;
}

static int request_buffers(int cam, unsigned int count)
{
	struct v4l2_requestbuffers req = {
		.count = count,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
	};
	int ret = buf_ioctl(cam, VIDIOC_REQBUFS, &req);

	return ret ?: req.count == count ? 0 : -ENOBUFS;
}

static int queue_buffer(int cam, unsigned int index, int fd)
{
	struct v4l2_buffer buf = {
		.index = index,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
		.m.fd = fd,
	};

	return buf_ioctl(cam, VIDIOC_QBUF, &buf);
}

/* The index of the buffer with the next frame, and the frame's number */
static int dequeue_buffer(int cam, unsigned int *sequence)
{
	struct v4l2_buffer buf = {
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
	};
	struct pollfd pfd = { .fd = cam, .events = POLLIN };
	int ret;

	if (poll(&pfd, 1, 120 * 1000) != 1)
		return -ETIMEDOUT;
	ret = buf_ioctl(cam, VIDIOC_DQBUF, &buf);
	if (ret)
		return ret;
	*sequence = buf.sequence;
	return buf.flags & V4L2_BUF_FLAG_ERROR ? -EIO : (int)buf.index;
}

static int start_camera(int cam)
{
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;

	return request_buffers(cam, BUFFERS) ?: buf_ioctl(cam, VIDIOC_STREAMON, &type);
}

static int stop_camera(int cam)
{
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;

	return buf_ioctl(cam, VIDIOC_STREAMOFF, &type) ?: request_buffers(cam, 0);
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
	refused("a private mapping",
		try_mmap(fd, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE), EINVAL);
	change_access_mode(fd);
}

/* What is allowed */
static void uses(int fd)
{
	works("DMA_BUF_IOCTL_SYNC for reading", sync_cpu(fd, DMA_BUF_SYNC_READ));
	sync_cpu(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
	works("poll()", try_poll(fd));
	close(works("exporting the fences as a sync file",
		    export_sync_file(fd, DMA_BUF_SYNC_READ)));
	works("importing a read fence", import_sync_file(fd, DMA_BUF_SYNC_READ));
	close(works("deriving another O_RDONLY fd", derive(fd, O_RDONLY)));
}

/*
 * The camera is free, so anyone may capture into a buffer of his own, another
 * pattern for instance, but not into one that he has a read-only fd of.
 */
static void capture_attempt(int fd)
{
	int cam = open(camera, O_RDWR | O_CLOEXEC);
	int own = heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC);
	unsigned int sequence;
	int ret;

	set_control(cam, "Test Pattern", pattern_name[turn.pattern == BARS ? CHECKERS : BARS]);
	start_camera(cam);
	ret = queue_buffer(cam, 0, fd);
	tell("tries queueing it for the camera to capture into: %s", result(ret));
	/* videobuf2 makes EINVAL of any error */
	ksft_test_result(ret == -EINVAL || ret == -EACCES,
			 "queueing it for the camera to capture into is refused\n");
	works("capturing into a buffer of its own instead",
	      queue_buffer(cam, 1, own) ?: dequeue_buffer(cam, &sequence));
	close(own);
	close(cam);
}

/* If the turn does not come the story ends */
static void pass_turn(int sock)
{
	fflush(stdout);
	turn.cnt = ksft_cnt;
	if (write(sock, &turn, sizeof(turn)) != sizeof(turn))
		ksft_exit_fail_msg("%s: the other side is gone\n", who);
}

static void wait_turn(int sock)
{
	if (read(sock, &turn, sizeof(turn)) != sizeof(turn))
		exit(KSFT_FAIL);
	ksft_cnt = turn.cnt;
}

static volatile uint8_t *accept_buffer(int fd)
{
	struct stat st;
	void *p;

	if (fd < 0 || fstat(fd, &st))
		ksft_exit_fail_msg("consumer: no fd came\n");
	tell("got fd %d, inode %lu, %ld bytes, access mode %s", fd,
	     (unsigned long)st.st_ino, (long)lseek(fd, 0, SEEK_END),
	     (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY ? "O_RDONLY" : "wider");
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		ksft_exit_fail_msg("consumer: mmap(PROT_READ): %s\n", strerror(errno));
	return p;
}

static void consumer(int sock)
{
	volatile uint8_t *map[BUFFERS], *p;
	int fds[BUFFERS], fd;

	who = "consumer";
	for (;;) {
		wait_turn(sock);
		if (turn.first) {
			fds[turn.buffer] = recv_fd(sock);
			map[turn.buffer] = accept_buffer(fds[turn.buffer]);
		}
		fd = fds[turn.buffer];
		p = map[turn.buffer];
		switch (turn.act) {
		case LOOK:
			check_frame("as it came", fd, p);
			break;
		case ATTEMPT:
			check_frame("as it came", fd, p);
			attempts(fd, p);
			check_frame("after all attempts", fd, p);
			uses(fd);
			break;
		case CAPTURE:
			capture_attempt(fd);
			check_frame("after that attempt", fd, p);
			break;
		case LEAVE:
			check_frame("after the producer closed its fds", fd, p);
			tell("exits");
			pass_turn(sock);
			return;
		}
		pass_turn(sock);
	}
}

static void ask_consumer(int sock, enum act act, int fd)
{
	turn.act = act;
	turn.first = fd >= 0;
	pass_turn(sock);
	if (turn.first && send_fd(sock, fd))
		ksft_exit_fail_msg("SCM_RIGHTS failed\n");
	wait_turn(sock);
}

static int derive_for_consumer(void)
{
	int ro = derive(heap_fd[turn.buffer], O_RDONLY | O_CLOEXEC);

	tell("derives an O_RDONLY fd of buffer %u: %s, access in its fdinfo: \"%s\"",
	     turn.buffer, result(ro), ro < 0 ? "" : fdinfo(ro, "derived"));
	ksft_test_result(ro >= 0, "deriving a read-only fd for frame %d works\n", turn.nr);
	if (ro < 0)
		ksft_exit_fail_msg("no DMA_BUF_IOCTL_DERIVE in this kernel (%s)\n", result(ro));
	tell("passes it to the consumer over SCM_RIGHTS, and closes its own");
	return ro;
}

static void look_after_attempts(void)
{
	int fd = heap_fd[turn.buffer];
	uint8_t *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		ksft_exit_fail_perror("producer: mmap");
	check_frame("after the consumer's attempts", fd, p);
	munmap(p, SIZE);
	tell("the name of the buffer is \"%s\"", fdinfo(fd, "name"));
	ksft_test_result(!strcmp(fdinfo(fd, "name"), "frame"),
			 "the name of the buffer is unchanged\n");
}

static void queue_frame(int cam, int buffer)
{
	int ret = queue_buffer(cam, buffer, heap_fd[buffer]);

	if (ret)
		ksft_exit_fail_msg("producer: VIDIOC_QBUF: %s\n", result(ret));
}

/*
 * Each buffer goes from the camera to the consumer and back so many times. None is
 * queued while the pattern changes, so all frames of these rounds have it.
 */
static void show_frames(int sock, int cam, enum pattern pattern, int rounds, enum act act)
{
	int ret = set_control(cam, "Test Pattern", pattern_name[pattern]);
	static bool shared[BUFFERS];
	int i, ro;

	if (ret)
		ksft_exit_fail_msg("producer: no test pattern: %s\n", result(ret));
	tell("sets the test pattern to \"%s\" and queues the buffers", pattern_name[pattern]);
	turn.pattern = pattern;
	for (i = 0; i < BUFFERS; i++)
		queue_frame(cam, i);
	for (i = 0; i < rounds * BUFFERS; i++, act = LOOK) {
		ret = dequeue_buffer(cam, &turn.sequence);
		if (ret < 0)
			ksft_exit_fail_msg("producer: no frame: %s\n", result(ret));
		turn.nr++;
		turn.buffer = ret;
		ro = shared[turn.buffer] ? -1 : derive_for_consumer();
		shared[turn.buffer] = true;
		ask_consumer(sock, act, ro);
		close(ro);
		if (act == ATTEMPT)
			look_after_attempts();
		if (i < (rounds - 1) * BUFFERS)
			queue_frame(cam, turn.buffer);
	}
}

static void producer(int sock, int cam)
{
	int i;

	who = "producer";
	for (i = 0; i < BUFFERS; i++) {
		set_name(heap_fd[i], "frame");
		tell("has buffer %d from the system heap, fd %d, inode %lu, %d bytes", i,
		     heap_fd[i], (unsigned long)inode_of(heap_fd[i]), SIZE);
	}
	tell("has the camera %s (vivid), which captures %dx%d RGB24", camera, WIDTH, HEIGHT);
	works("starting the camera", start_camera(cam));
	show_frames(sock, cam, BARS, 2, LOOK);
	show_frames(sock, cam, CHECKERS, 2, ATTEMPT);

	works("stopping the camera", stop_camera(cam));
	ask_consumer(sock, CAPTURE, -1);
	works("starting the camera again", start_camera(cam));
	show_frames(sock, cam, BARS, 1, LOOK);

	works("stopping the camera again", stop_camera(cam));
	close(cam);
	for (i = 0; i < BUFFERS; i++)
		close(heap_fd[i]);
	tell("has closed the camera and its fds of the buffers");
	ask_consumer(sock, LEAVE, -1);
}

int main(void)
{
	int sock[2], cam, i, ret, status, left = 0;
	ino_t ino[BUFFERS];
	pid_t pid;

	ksft_print_header();
	if (access("/dev/dma_heap/system", F_OK))
		ksft_exit_skip("no system heap\n");
	cam = open_camera();
	if (cam < 0)
		ksft_exit_skip("no camera: the module vivid is not there\n");
	ret = set_up_camera(cam);
	if (ret)
		ksft_exit_fail_msg("set-up of %s: %s\n", camera, result(ret));
	for (i = 0; i < BUFFERS; i++) {
		heap_fd[i] = heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC);
		if (heap_fd[i] < 0)
			ksft_exit_fail_msg("system heap: %s\n", result(heap_fd[i]));
		ino[i] = inode_of(heap_fd[i]);
	}
	if (buffer_exists(ino[0]) != 1)
		ksft_exit_skip("debugfs is needed to see buffers come and go\n");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sock))
		ksft_exit_fail_perror("socketpair");
	ksft_set_plan(51);
	fflush(stdout);

	pid = fork();
	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		for (i = 0; i < BUFFERS; i++)
			close(heap_fd[i]);
		close(cam);
		close(sock[0]);
		consumer(sock[1]);
		exit(0);
	}
	close(sock[1]);
	producer(sock[0], cam);
	waitpid(pid, &status, 0);
	for (i = 0; i < BUFFERS; i++)
		left += buffer_exists(ino[i]) != 0;
	tell("sees the consumer gone: %d of the %d buffers are still there", left, BUFFERS);
	ksft_test_result(!status && !left, "the buffers go with their last user\n");
	ksft_finished();
}
