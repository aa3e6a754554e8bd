// SPDX-License-Identifier: GPL-2.0
/*
 * f_tcm with a RAM disk, spoken to by the Bulk-Only Transport: a command that
 * fails has nothing to do with the memory of the one before. What the host gets
 * instead of data is not from there, and what it sends does not go there.
 */
#include <scsi/scsi.h>

#include "../../../dma-buf/derive/buffer.h"
#include "../../../kselftest_harness.h"
#include "../functionfs/gadget.h"

#define TCM		GADGET "/functions/tcm.selftest"
#define TARGET		CONFIGFS "/target"
#define HBA		TARGET "/core/rd_mcp_57"
#define DISK		HBA "/selftest"
#define FABRIC		TARGET "/usb_gadget"
#define NAME		"naa.selftest"
#define TPG		FABRIC "/" NAME "/tpgt_1"
#define LUN		TPG "/lun/lun_0"

#define BLOCK		512
#define BLOCKS		41	/* of several pages, and not all of the last one */
#define SIZE		(BLOCKS * BLOCK)
#define COMMAND_LEN	31
#define STATUS_LEN	13
#define BEYOND		0x40000000	/* the disk has no such block */
#define LONG		5000	/* ms that nothing takes */
#define TIMEOUT		120	/* s of a test: the host alone may take 20 to see the device */

/* What follows the last field of these is not sent */
struct command_wrapper {
	uint32_t signature, tag, length;
	uint8_t flags, lun, cdb_length, cdb[16];
};

struct status_wrapper {
	uint32_t signature, tag, residue;
	uint8_t status;
};

FIXTURE(bot) {
	struct gadget g;
	int pages[2];		/* a pipe */
	uint32_t tag;
	uint32_t data[SIZE / 4];
	struct status_wrapper status;
};

static int disk_make(void)
{
	return make_dir(HBA) ?: make_dir(DISK) ?: put(DISK "/control", "rd_pages=64") ?:
	       put(DISK "/enable", "1");
}

/* The nexus comes last: what is added to one later is reported by commands that fail */
static int fabric_make(void)
{
	int ret = make_dir(FABRIC) ?: make_dir(FABRIC "/" NAME) ?: make_dir(TPG) ?:
		  make_dir(LUN);

	if (ret)
		return ret;
	if (symlink(DISK, LUN "/disk"))
		return errno;
	return put(TPG "/nexus", NAME) ?: put(TPG "/enable", "1");
}

/* Also of what was made in part, or by a test that was killed */
static void tcm_stop(struct gadget *g)
{
	gadget_unbind(g);
	unlink(CONFIG "/tcm");
	put(TPG "/enable", "0");
	unlink(LUN "/disk");
	rmdir(LUN);
	rmdir(TPG);
	rmdir(FABRIC "/" NAME);
	rmdir(FABRIC);
	rmdir(DISK);
	rmdir(HBA);
	gadget_remove(TCM);
}

/* Those of the first setting, which is that of the Bulk-Only Transport */
static int find_endpoints(struct gadget *g)
{
	uint8_t descs[1024], *d;
	ssize_t len = pread(g->host, descs, sizeof(descs), 0);
	bool bot = false;

	for (d = descs; d + 4 <= descs + len && d[0]; d += d[0]) {
		if (d[1] == USB_DT_INTERFACE)
			bot = !((struct usb_interface_descriptor *)d)->bAlternateSetting;
		if (d[1] != USB_DT_ENDPOINT || !bot)
			continue;
		if (d[2] & USB_DIR_IN)
			g->in_addr = d[2];
		else
			g->out_addr = d[2];
	}
	return g->in_addr && g->out_addr ? 0 : ENXIO;
}

/* Errors as those of gadget_make() */
static int tcm_make(struct gadget *g)
{
	*g = (struct gadget) { .ep0 = -1, .in = -1, .out = -1, .host = -1 };
	tcm_stop(g);
	return gadget_make(TCM);
}

/* The function takes the target when it is linked, so that has to be there */
static int tcm_start(struct gadget *g)
{
	int ret = disk_make() ?: fabric_make();

	if (ret)
		return ret;
	if (symlink(TCM, CONFIG "/tcm"))
		return errno;
	return gadget_connect(g) ?: find_endpoints(g);
}

static int bulk_exactly(struct gadget *g, uint8_t addr, void *data, size_t len)
{
	size_t done = len;

	return host_bulk(g, addr, data, &done, LONG) ?: done == len ? 0 : EREMOTEIO;
}

/* The data are sent or received in self->data; then there is self->status */
static int command(FIXTURE_DATA(bot) *self, uint8_t opcode, uint32_t block, size_t len)
{
	bool in = opcode != WRITE_10;
	struct command_wrapper cbw = {
		.signature = htole32(0x43425355),
		.tag = ++self->tag,
		.length = htole32(len),
		.flags = in ? 0x80 : 0,
		.cdb_length = 10,
		.cdb = { opcode, 0, block >> 24, block >> 16, block >> 8, block,
			 0, len / BLOCK >> 8, len / BLOCK },
	};
	struct gadget *g = &self->g;
	int ret;

	ret = bulk_exactly(g, g->out_addr, &cbw, COMMAND_LEN);
	if (!ret && len)
		ret = bulk_exactly(g, in ? g->in_addr : g->out_addr, self->data, len);
	ret = ret ?: bulk_exactly(g, g->in_addr, &self->status, STATUS_LEN);
	if (ret)
		return ret;
	return self->status.signature == htole32(0x53425355) &&
	       self->status.tag == cbw.tag ? 0 : EPROTO;
}

/* It ends with that status, and that many bytes were not for it */
static int ends(FIXTURE_DATA(bot) *self, uint8_t status, size_t residue)
{
	return self->status.status == status && le32toh(self->status.residue) == residue ?
	       0 : EIO;
}

/* A new target may have something to say first, by commands that fail */
static int ready(FIXTURE_DATA(bot) *self)
{
	int ret = 0, i;

	for (i = 0; !ret && i < 10; i++) {
		ret = command(self, TEST_UNIT_READY, 0, 0);
		if (!ret && !ends(self, 0, 0))
			return 0;
	}
	return ret ?: EBUSY;
}

static int writes(FIXTURE_DATA(bot) *self, uint32_t seed)
{
	fill_words(self->data, SIZE, seed);
	return command(self, WRITE_10, 0, SIZE) ?: ends(self, 0, 0);
}

static int reads(FIXTURE_DATA(bot) *self, uint32_t seed)
{
	memset(self->data, 0, SIZE);
	return command(self, READ_10, 0, SIZE) ?: ends(self, 0, 0) ?:
	       wrong_bytes(self->data, SIZE, seed) ? EBADMSG : 0;
}

/* Whether the beginning of the data of a seed is in what was received */
static bool got_data_of(FIXTURE_DATA(bot) *self, size_t len, uint32_t seed)
{
	uint32_t start[16];

	fill_words(start, sizeof(start), seed);
	return memmem(self->data, len, start, sizeof(start));
}

FIXTURE_SETUP(bot)
{
	int ret = tcm_make(&self->g);

	if (ret == ENODEV) {
		tcm_stop(&self->g);
		SKIP(return, "no " UDC ", or no f_tcm for it");
	}
	ret = ret ?: tcm_start(&self->g) ?: ready(self);
	if (!ret && pipe(self->pages))
		ret = errno;
	ASSERT_EQ(0, ret)
		tcm_stop(&self->g);
}

FIXTURE_TEARDOWN(bot)
{
	tcm_stop(&self->g);
	close(self->pages[0]);
	close(self->pages[1]);
}

TEST_F_TIMEOUT(bot, read_beyond, TIMEOUT)
{
	ASSERT_EQ(0, writes(self, 1));
	ASSERT_EQ(0, reads(self, 1));
	memset(self->data, 0, SIZE);
	ASSERT_EQ(0, command(self, READ_10, BEYOND, SIZE));
	EXPECT_EQ(0, ends(self, 1, SIZE));
	EXPECT_FALSE(got_data_of(self, SIZE, 1));
	EXPECT_EQ(0, reads(self, 1));
}

/* A command that has no data, but the host wants some, and not whole packets */
TEST_F_TIMEOUT(bot, read_nothing, TIMEOUT)
{
	const size_t len = 3 * BLOCK + 100;

	ASSERT_EQ(0, writes(self, 2));
	ASSERT_EQ(0, reads(self, 2));
	memset(self->data, 0, SIZE);
	ASSERT_EQ(0, command(self, TEST_UNIT_READY, 0, len));
	EXPECT_EQ(0, ends(self, 0, len));
	EXPECT_FALSE(got_data_of(self, len, 2));
	EXPECT_EQ(0, reads(self, 2));
}

/*
 * A pipe gets the pages that the command before has freed, if there is nobody
 * else: they are of the same kind. It holds zeros and nothing else.
 */
TEST_F_TIMEOUT(bot, write_beyond, TIMEOUT)
{
	static const uint8_t zero[65536];
	static uint8_t piped[sizeof(zero)];

	ASSERT_EQ(0, writes(self, 3));
	ASSERT_EQ(sizeof(zero), write(self->pages[1], zero, sizeof(zero)));
	fill_words(self->data, SIZE, 4);
	ASSERT_EQ(0, command(self, WRITE_10, BEYOND, SIZE));
	EXPECT_EQ(0, ends(self, 1, SIZE));
	ASSERT_EQ(sizeof(zero), read(self->pages[0], piped, sizeof(piped)));
	EXPECT_EQ(0, memcmp(piped, zero, sizeof(zero)));
	EXPECT_EQ(0, reads(self, 3));
}

TEST_HARNESS_MAIN
