// SPDX-License-Identifier: GPL-2.0
/*
 * Devmem TCP with dma-bufs of the system heap that were derived with less access,
 * sent from one netdevsim to another, each in its own network namespace. The
 * sending one reads the data by their DMA addresses. netdevsim cannot receive
 * into a dma-buf: binding one for that gets as far as the queue.
 */
#include <arpa/inet.h>
#include <net/if.h>
#include <sched.h>
#include <netinet/in.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/errqueue.h>
#include <linux/genetlink.h>
#include <linux/io_uring.h>
#include <linux/netdev.h>
#include <linux/netlink.h>

#include "../../../dma-buf/derive/buffer.h"
#include "kselftest_harness.h"

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef SCM_DEVMEM_DMABUF
#define SCM_DEVMEM_DMABUF 79
#endif

#define BUS	"/sys/bus/netdevsim/"
#define SIZE	(1024 * 1024)
#define PAGE	4096
#define PORT	5201
#define WAIT_MS	10000

/* A netlink request, and then what came back */
struct message {
	struct nlmsghdr nl;
	union {
		struct {
			struct genlmsghdr genl;
			char attrs[4096];
		};
		struct nlmsgerr err;
	};
};

static struct nlattr *put(struct message *msg, int type, const void *data, int len)
{
	struct nlattr *attr = (void *)msg + NLMSG_ALIGN(msg->nl.nlmsg_len);

	attr->nla_type = type;
	attr->nla_len = NLA_HDRLEN + len;
	memcpy((void *)attr + NLA_HDRLEN, data, len);
	msg->nl.nlmsg_len = NLMSG_ALIGN(msg->nl.nlmsg_len) + NLA_ALIGN(attr->nla_len);
	return attr;
}

static void put_u32(struct message *msg, int type, uint32_t value)
{
	put(msg, type, &value, sizeof(value));
}

/* The data of the attribute of that type, in what is from start to the end */
static void *find(struct message *msg, void *start, int type)
{
	void *end = (void *)msg + msg->nl.nlmsg_len;
	struct nlattr *attr;

	for (attr = start; (void *)attr + NLA_HDRLEN <= end && attr->nla_len >= NLA_HDRLEN;
	     attr = (void *)attr + NLA_ALIGN(attr->nla_len))
		if ((attr->nla_type & NLA_TYPE_MASK) == type)
			return (void *)attr + NLA_HDRLEN;
	return NULL;
}

static struct message request(int family, int cmd)
{
	struct message msg = {
		.nl.nlmsg_len = NLMSG_HDRLEN + GENL_HDRLEN,
		.nl.nlmsg_type = family,
		.nl.nlmsg_flags = NLM_F_REQUEST,
		.genl.cmd = cmd,
		.genl.version = 1,
	};

	return msg;
}

/* Returns 0 or an errno, and then the message that explains it in why */
static int call(int nl, struct message *msg, char why[128])
{
	const char *text;

	why[0] = 0;
	if (send(nl, msg, msg->nl.nlmsg_len, 0) < 0 || recv(nl, msg, sizeof(*msg), 0) < 0)
		return errno;
	if (msg->nl.nlmsg_type != NLMSG_ERROR)
		return 0;
	text = find(msg, &msg->err + 1, NLMSGERR_ATTR_MSG);
	if (text)
		snprintf(why, 128, "%s", text);
	return -msg->err.error;
}

static int nl_open(void)
{
	int one = 1, nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);

	setsockopt(nl, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one));
	setsockopt(nl, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one));
	return nl;
}

static int nl_family(int nl)
{
	struct message msg = request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
	char why[128];
	uint16_t *id;

	put(&msg, CTRL_ATTR_FAMILY_NAME, NETDEV_FAMILY_NAME, sizeof(NETDEV_FAMILY_NAME));
	if (call(nl, &msg, why))
		return -1;
	id = find(&msg, msg.attrs, CTRL_ATTR_FAMILY_ID);
	return id ? *id : -1;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = write(fd, text, strlen(text)) < 0 ? errno : 0;

	close(fd);
	return ret;
}

static int write_id(const char *path, int id)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", id);
	return write_file(path, text);
}

static int set_address(const char *address)
{
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;
	struct ifreq ifr = { .ifr_name = "eth0" };
	struct sockaddr_in *in = (void *)&ifr.ifr_addr;

	in->sin_family = AF_INET;
	in->sin_addr.s_addr = inet_addr(address);
	ret = ioctl(sock, SIOCSIFADDR, &ifr);
	if (!ret) {
		in->sin_addr.s_addr = inet_addr("255.255.255.0");
		ret = ioctl(sock, SIOCSIFNETMASK, &ifr);
	}
	if (!ret) {
		ifr.ifr_flags = IFF_UP;
		ret = ioctl(sock, SIOCSIFFLAGS, &ifr);
	}
	close(sock);
	return ret ? errno : 0;
}

/* What one side has */
struct side {
	int id, net, ifindex;
};

/* Leaves the caller in the new namespace */
static int side_open(struct side *side, int id, const char *address)
{
	int ret;

	if (unshare(CLONE_NEWNET))
		return errno;
	side->net = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	ret = write_id(BUS "new_device", id);
	if (ret)
		return ret;
	side->id = id;
	side->ifindex = if_nametoindex("eth0");
	return side->ifindex ? set_address(address) : ENODEV;
}

static int side_link(const struct side *a, const struct side *b)
{
	char text[64];

	snprintf(text, sizeof(text), "%d:%d %d:%d", a->net, a->ifindex, b->net, b->ifindex);
	return write_file(BUS "link_device", text);
}

static int side_delete(struct side *side)
{
	int ret = side->id ? write_id(BUS "del_device", side->id) : 0;

	side->id = 0;
	return ret;
}

static void side_close(struct side *side)
{
	side_delete(side);
	close(side->net);
}

FIXTURE(devmem) {
	struct buffer buf;
	struct side from, to;
	int tx, rx, nl, family;
	int users;
	char why[128];
};

/* The connection, from the namespace of the sender */
static int tcp_connect(FIXTURE_DATA(devmem) *self)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET,
		.sin_port = htons(PORT),
		.sin_addr.s_addr = inet_addr("192.0.2.2"),
	};
	int one = 1, listener, ret;

	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ret = setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ?:
	      bind(listener, (void *)&to, sizeof(to)) ?: listen(listener, 1);
	if (!ret)
		ret = setns(self->from.net, CLONE_NEWNET);
	if (!ret) {
		self->tx = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ret = setsockopt(self->tx, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)) ?:
		      connect(self->tx, (void *)&to, sizeof(to));
	}
	if (!ret) {
		self->rx = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		ret = self->rx < 0;
	}
	close(listener);
	return ret ? errno : 0;
}

/* Returns what failed, or NULL */
static const char *set_up(FIXTURE_DATA(devmem) *self)
{
	if (!buffer_alloc(&self->buf, SIZE, O_RDWR))
		return "the heap";
	if (!buffer_derived(&self->buf))
		return "deriving";
	self->users = users(self->buf.fd);

	if (side_open(&self->from, 2 * getpid(), "192.0.2.1") ||
	    side_open(&self->to, 2 * getpid() + 1, "192.0.2.2"))
		return "a netdevsim";
	if (side_link(&self->from, &self->to))
		return "linking the netdevsims";
	if (tcp_connect(self))
		return "the connection";
	self->nl = nl_open();
	self->family = nl_family(self->nl);
	return self->family > 0 ? NULL : "netlink";
}

/* Is nothing left of the bindings? */
static bool clean_up(FIXTURE_DATA(devmem) *self)
{
	bool released;

	close(self->tx);
	close(self->rx);
	close(self->nl);
	released = self->buf.fd < 0 ||
		   users_become(self->buf.fd, self->users, WAIT_MS) == self->users;
	/* what is left of a binding may need its device */
	if (released) {
		side_close(&self->from);
		side_close(&self->to);
	}
	buffer_free(&self->buf);
	return released;
}

FIXTURE_SETUP(devmem)
{
	const char *failed;

	*self = (FIXTURE_DATA(devmem)) {
		.buf = { .fd = -1, .r = -1, .w = -1, .rw = -1, .map = MAP_FAILED },
		.from.net = -1, .to.net = -1, .tx = -1, .rx = -1, .nl = -1,
	};
	if (access(BUS, F_OK))
		SKIP(return, "no netdevsim");
	if (access("/dev/dma_heap/system", F_OK))
		SKIP(return, "no system heap");

	failed = set_up(self);
	/* there is no teardown after this */
	if (failed)
		clean_up(self);
	ASSERT_EQ(NULL, failed) {
		TH_LOG("failed: %s", failed);
	}
}

FIXTURE_TEARDOWN(devmem)
{
	EXPECT_TRUE(clean_up(self));
}

static int bind_tx(FIXTURE_DATA(devmem) *self, int fd, uint32_t *id)
{
	struct message msg = request(self->family, NETDEV_CMD_BIND_TX);
	uint32_t *got;
	int ret;

	put_u32(&msg, NETDEV_A_DMABUF_IFINDEX, self->from.ifindex);
	put_u32(&msg, NETDEV_A_DMABUF_FD, fd);
	ret = call(self->nl, &msg, self->why);
	if (ret)
		return ret;
	got = find(&msg, msg.attrs, NETDEV_A_DMABUF_ID);
	*id = got ? *got : 0;
	return *id ? 0 : EPROTO;
}

/* To the one receive queue that there is */
static int bind_rx(FIXTURE_DATA(devmem) *self, int fd)
{
	struct message msg = request(self->family, NETDEV_CMD_BIND_RX);
	struct nlattr *queue;

	put_u32(&msg, NETDEV_A_DMABUF_IFINDEX, self->from.ifindex);
	put_u32(&msg, NETDEV_A_DMABUF_FD, fd);
	queue = put(&msg, NETDEV_A_DMABUF_QUEUES | NLA_F_NESTED, "", 0);
	put_u32(&msg, NETDEV_A_QUEUE_ID, 0);
	put_u32(&msg, NETDEV_A_QUEUE_TYPE, NETDEV_QUEUE_TYPE_RX);
	queue->nla_len = (void *)&msg + msg.nl.nlmsg_len - (void *)queue;
	return call(self->nl, &msg, self->why);
}

/* Unbinds all of them */
static void unbind(FIXTURE_DATA(devmem) *self)
{
	close(self->nl);
	self->nl = nl_open();
}

/* Returns what sendmsg() does */
static ssize_t send_from(int sock, uint32_t id, size_t offset, size_t len)
{
	struct iovec iov = { (void *)offset, len };
	union {
		char buf[CMSG_SPACE(sizeof(uint32_t))];
		struct cmsghdr align;
	} control = {};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_DEVMEM_DMABUF;
	cmsg->cmsg_len = CMSG_LEN(sizeof(id));
	memcpy(CMSG_DATA(cmsg), &id, sizeof(id));
	return sendmsg(sock, &msg, MSG_ZEROCOPY | MSG_DONTWAIT);
}

/* Takes the completions that there are. Returns 0, or an errno if the data was copied. */
static int completions(int sock)
{
	struct sock_extended_err *err;
	struct cmsghdr *cmsg;
	char control[256];
	int ret = 0;

	for (;;) {
		struct msghdr msg = {
			.msg_control = control, .msg_controllen = sizeof(control),
		};

		if (recvmsg(sock, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
			return ret;
		cmsg = CMSG_FIRSTHDR(&msg);
		err = cmsg ? (void *)CMSG_DATA(cmsg) : NULL;
		if (!err || err->ee_origin != SO_EE_ORIGIN_ZEROCOPY || err->ee_errno)
			ret = EPROTO;
		else if (err->ee_code & SO_EE_CODE_ZEROCOPY_COPIED)
			ret = EALREADY;
	}
}

/* Receives len bytes, and sends them before, from offset, unless id is 0 */
static int transfer(FIXTURE_DATA(devmem) *self, uint32_t id, size_t offset, void *to,
		    size_t len)
{
	size_t sent = id ? 0 : len, got = 0;
	ssize_t n;
	int ret;

	while (got < len) {
		struct pollfd fds[] = {
			{ .fd = self->rx, .events = POLLIN },
			{ .fd = self->tx, .events = sent < len ? POLLOUT : 0 },
		};

		ret = poll(fds, 2, WAIT_MS) < 1 ? ETIMEDOUT : completions(self->tx);
		if (ret)
			return ret;
		if (sent < len) {
			n = send_from(self->tx, id, offset + sent, len - sent);
			if (n < 0 && errno != EAGAIN)
				return errno;
			sent += n < 0 ? 0 : n;
		}
		n = recv(self->rx, to + got, len - got, MSG_DONTWAIT);
		if (n < 0 && errno != EAGAIN)
			return errno;
		got += n < 0 ? 0 : n;
	}
	return 0;
}

/* Is the whole buffer, which has that content, what is sent by this binding? */
static int sends(FIXTURE_DATA(devmem) *self, uint32_t id, int seed)
{
	static uint32_t data[SIZE / 4];
	int ret;

	memset(data, 0, SIZE);
	ret = transfer(self, id, 0, data, SIZE);
	return ret ?: wrong_bytes(data, SIZE, seed) ? EILSEQ : 0;
}

TEST_F(devmem, bind_tx)
{
	uint32_t id;

	EXPECT_EQ(0, bind_tx(self, self->buf.fd, &id));
	EXPECT_EQ(0, bind_tx(self, self->buf.r, &id));
	EXPECT_EQ(0, bind_tx(self, self->buf.rw, &id));
	EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
	EXPECT_NE(NULL, strstr(self->why, "access"));
}

/* Where a file with full access gets as far as the queue, others are refused */
TEST_F(devmem, bind_rx)
{
	int before = users(self->buf.fd), i;

	ASSERT_LT(0, before);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.r));
		EXPECT_NE(NULL, strstr(self->why, "access"));
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.w));
		EXPECT_NE(NULL, strstr(self->why, "access"));
		EXPECT_EQ(before, users(self->buf.fd));
		EXPECT_EQ(EINVAL, bind_rx(self, self->buf.fd));
		EXPECT_STREQ("tcp-data-split is disabled", self->why);
		EXPECT_EQ(EINVAL, bind_rx(self, self->buf.rw));
		EXPECT_STREQ("tcp-data-split is disabled", self->why);
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
	}
}

/* A file that its exporter made O_RDONLY has all access, as ever: it was not derived */
TEST_F(devmem, exported_read_only)
{
	int fd = heap_alloc("system", SIZE, O_RDONLY | O_CLOEXEC), before = users(fd);
	uint32_t id;

	ASSERT_LE(0, fd);
	EXPECT_EQ(0, bind_tx(self, fd, &id));
	EXPECT_EQ(EINVAL, bind_rx(self, fd));
	EXPECT_STREQ("tcp-data-split is disabled", self->why);
	unbind(self);
	EXPECT_EQ(before, users_become(fd, before, WAIT_MS));
	close(fd);
}

/* What is no dma-buf, as ever */
TEST_F(devmem, other_fds)
{
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);
	int path = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	uint32_t id;

	EXPECT_EQ(EINVAL, bind_tx(self, file, &id));
	EXPECT_EQ(EBADF, bind_tx(self, path, &id));
	EXPECT_EQ(EBADF, bind_tx(self, -1, &id));
	EXPECT_STREQ("", self->why);
	EXPECT_EQ(EINVAL, bind_rx(self, file));
	EXPECT_EQ(EBADF, bind_rx(self, path));
	close(path);
	close(file);
}

/* The device reads what is in the buffer when it sends */
TEST_F_TIMEOUT(devmem, contents, 120)
{
	uint32_t id, full;
	int seed;

	ASSERT_EQ(0, bind_tx(self, self->buf.fd, &full));
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	for (seed = 1; seed < 4; seed++) {
		buffer_fill(&self->buf, seed);
		EXPECT_EQ(0, sends(self, id, seed));
		EXPECT_EQ(0, sends(self, full, seed));
	}
}

TEST_F(devmem, offsets)
{
	static const struct {
		size_t offset, len;
	} parts[] = {
		{ 0, 1 }, { 1, 1 }, { PAGE - 1, 2 }, { 5 * PAGE + 100, 1024 },
		{ 2 * PAGE - 3, 9 * PAGE }, { SIZE - PAGE, PAGE }, { SIZE - 1, 1 },
	};
	char got[9 * PAGE];
	uint32_t id;
	size_t i;

	buffer_fill(&self->buf, 4);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		memset(got, 0, sizeof(got));
		ASSERT_EQ(0, transfer(self, id, parts[i].offset, got, parts[i].len));
		EXPECT_EQ(0, memcmp(got, (char *)self->buf.map + parts[i].offset,
				    parts[i].len)) {
			TH_LOG("at %zu", parts[i].offset);
		}
	}
	EXPECT_EQ(-1, send_from(self->tx, id, SIZE, 1));
	EXPECT_EQ(EFAULT, errno);
}

/* A connection that looks for the MTU makes packets of its own from what is to be sent */
TEST_F_TIMEOUT(devmem, mtu_probe, 120)
{
	uint32_t id;
	int i;

	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_mtu_probing", "2"));
	close(self->tx);
	close(self->rx);
	ASSERT_EQ(0, setns(self->to.net, CLONE_NEWNET));
	ASSERT_EQ(0, tcp_connect(self));
	buffer_fill(&self->buf, 10);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	for (i = 0; i < 4; i++)
		EXPECT_EQ(0, sends(self, id, 10));
}

/* Each binding is made by the fd that is given for it */
TEST_F_TIMEOUT(devmem, alternating_fds, 120)
{
	uint32_t id;
	int i;

	buffer_fill(&self->buf, 5);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
		EXPECT_EQ(0, sends(self, id, 5));
		EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.r));
		ASSERT_EQ(0, bind_tx(self, self->buf.rw, &id));
		EXPECT_EQ(0, sends(self, id, 5));
		EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
	}
}

/* A binding is one reference, until its socket is closed; a refused fd is none */
TEST_F_TIMEOUT(devmem, references, 120)
{
	int before = users(self->buf.fd), i;
	uint32_t id;

	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 6);
	for (i = 0; i < 5; i++) {
		EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.r));
		EXPECT_EQ(before, users(self->buf.fd));
		ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
		EXPECT_EQ(before + 1, users(self->buf.fd));
		EXPECT_EQ(0, sends(self, id, 6));
		ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
		EXPECT_EQ(before + 2, users(self->buf.fd));
		unbind(self);
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
		EXPECT_EQ(-1, send_from(self->tx, id, 0, 1));
		EXPECT_EQ(EINVAL, errno);
	}
}

/* What is being sent when the binding goes keeps the buffer until it has arrived */
TEST_F_TIMEOUT(devmem, unbind_while_sending, 120)
{
	int before = users(self->buf.fd);
	static uint32_t got[SIZE / 4];
	struct pollfd pfd = { .fd = self->tx, .events = POLLOUT };
	ssize_t n, sent = 0;
	uint32_t id;

	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 7);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	/* until the receiver has no room, and the sender none either */
	while (poll(&pfd, 1, 500) > 0) {
		ASSERT_EQ(0, completions(self->tx));
		n = send_from(self->tx, id, sent, SIZE - sent);
		sent += n < 0 ? 0 : n;
		ASSERT_GT(SIZE, sent);
	}
	ASSERT_LT(0, sent);
	unbind(self);
	close(self->buf.r);
	self->buf.r = -1;
	self->users--;
	usleep(200000);
	EXPECT_EQ(before, users(self->buf.fd));

	ASSERT_EQ(0, transfer(self, 0, 0, got, sent));
	EXPECT_EQ(0, memcmp(got, self->buf.map, sent));
	EXPECT_EQ(before - 1, users_become(self->buf.fd, before - 1, WAIT_MS));
}

/* The device can go before what is bound to it, and does not wait for that */
TEST_F(devmem, device_goes)
{
	int before = users(self->buf.fd);
	uint32_t id;

	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 9);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	EXPECT_EQ(0, sends(self, id, 9));
	ASSERT_EQ(0, side_delete(&self->from));
	EXPECT_EQ(-1, send_from(self->tx, id, 0, 1));
	EXPECT_EQ(before + 1, users(self->buf.fd));
	unbind(self);
	EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
}

static int ring_open(void)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			 IORING_SETUP_CQE32,
	};

	return syscall(SYS_io_uring_setup, 8, &params);
}

/* With the buffer as what is received into by the one queue. Returns 0 or an errno. */
static int register_zcrx(FIXTURE_DATA(devmem) *self, int ring, int fd)
{
	struct io_uring_zcrx_area_reg area = {
		.len = SIZE,
		.flags = IORING_ZCRX_AREA_DMABUF,
		.dmabuf_fd = fd,
	};
	struct io_uring_region_desc region = { .size = 65536 };
	struct io_uring_zcrx_ifq_reg reg = {
		.if_idx = self->from.ifindex,
		.rq_entries = 8,
		.area_ptr = (uintptr_t)&area,
		.region_ptr = (uintptr_t)&region,
	};

	return syscall(SYS_io_uring_register, ring, IORING_REGISTER_ZCRX_IFQ, &reg, 1) ?
	       errno : 0;
}

/* As with bind_rx: the file with full access gets as far as the queue */
TEST_F(devmem, zcrx)
{
	int before = users(self->buf.fd), ring, i;

	ASSERT_LT(0, before);
	ring = ring_open();
	if (ring < 0)
		SKIP(return, "no io_uring");
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(EACCES, register_zcrx(self, ring, self->buf.r));
		EXPECT_EQ(EACCES, register_zcrx(self, ring, self->buf.w));
		EXPECT_EQ(before, users(self->buf.fd));
		/* there is no tcp-data-split */
		EXPECT_EQ(EINVAL, register_zcrx(self, ring, self->buf.fd));
		EXPECT_EQ(EINVAL, register_zcrx(self, ring, self->buf.rw));
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
	}
	close(ring);
}

/* Binding for TX needs no privilege, so this is all that such a sender can do */
TEST_F(devmem, unprivileged)
{
	pid_t pid;
	int status;

	buffer_fill(&self->buf, 8);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		uint32_t id;

		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
			_exit(1);
		unbind(self);
		if (bind_rx(self, self->buf.fd) != EPERM)
			_exit(2);
		if (bind_tx(self, self->buf.w, &id) != EACCES)
			_exit(3);
		if (bind_tx(self, self->buf.r, &id))
			_exit(4);
		_exit(sends(self, id, 8) ? 5 : 0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_HARNESS_MAIN
