/* The encoding, against bytes that the Go side wrote and bytes that nobody
 * would write: testdata/record is compared by internal/wire too. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../common/record.h"
#include "tap.h"

static void golden(const char *path)
{
	struct record mine, theirs;
	char bytes[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, bytes, sizeof(bytes));

	if (fd >= 0)
		close(fd);
	if (!ok(n > 4, "the golden record is there"))
		return;
	record_init(&mine);
	record_add(&mine, "type", "start");
	record_add(&mine, "opt.carme", "");
	record_add(&mine, "env.PATH", "/bin:/usr/bin");
	record_add(&mine, "gids", "10");
	record_add(&mine, "gids", "4294967295");
	record_add(&mine, "opt.carme_bind", "/a=b:/c d\n\"\xff\xfe\"");
	ok(record_ok(&mine) && mine.len == (size_t) n &&
	       !memcmp(mine.buf, bytes, mine.len),
	   "C writes what Go writes");
	ok(!record_parse(&theirs, bytes, (size_t) n), "C reads what Go writes");
	ok(!strcmp(record_get(&theirs, "opt.carme"), ""), "an empty value");
	ok(record_num(&theirs, "gids", -1) == 10, "the first of a list");
	ok(!strcmp(record_next(&theirs, "gids", record_get(&theirs, "gids")),
		   "4294967295"),
	   "the second of a list");
	ok(!record_get(&theirs, "opt.carm"), "part of a key is no key");
	record_free(&mine);
	record_free(&theirs);
}

static int refused(const char *bytes, size_t len)
{
	/* On the heap, so that a read behind the end is seen. */
	char *copy = malloc(len ? len : 1);
	struct record r;
	int rc;

	if (len)
		memcpy(copy, bytes, len);
	errno = 0;
	rc = record_parse(&r, copy, len);
	free(copy);
	if (!rc)
		record_free(&r);
	return rc == -1 && errno == EBADMSG;
}

#define REFUSED(text) refused(text, sizeof(text) - 1)

static void hostile(void)
{
	ok(refused("", 0), "nothing at all is refused");
	ok(REFUSED("\1\0\0"), "less than a length is refused");
	ok(REFUSED("\5\0\0\0a=b\0"), "a length that is too large is refused");
	ok(REFUSED("\3\0\0\0a=b\0"), "a length that is too small is refused");
	ok(REFUSED("\3\0\0\0a=b"), "an entry without an end is refused");
	ok(REFUSED("\3\0\0\0ab\0"), "an entry without '=' is refused");
	ok(REFUSED("\3\0\0\0=b\0"), "an entry without a key is refused");
	ok(REFUSED("\1\0\0\0\0"), "an empty entry is refused");
	ok(REFUSED("\xff\xff\xff\xff"
		   "a=b"),
	   "a length of 4 GiB is refused");
}

static void limits(void)
{
	char *big = malloc(RECORD_MAX + 1);
	struct record r;

	memset(big, 'x', RECORD_MAX);
	big[RECORD_MAX] = '\0';
	record_init(&r);
	record_add(&r, "a", big);
	ok(!record_ok(&r), "more than RECORD_MAX is refused");
	ok(!record_get(&r, "a"), "a bad record holds nothing");
	record_add(&r, "b", "c");
	ok(!record_ok(&r), "and it stays bad");
	record_free(&r);
	record_init(&r);
	big[RECORD_MAX - 3] = '\0';
	record_add(&r, "a", big);
	ok(record_ok(&r), "exactly RECORD_MAX is taken");
	record_free(&r);
	record_init(&r);
	big[600] = '\0';
	record_addf(&r, "a", "%s", big);
	ok(!record_ok(&r), "a formatted value is never cut short");
	record_free(&r);
	ok(!record_get(&r, "a") && !record_entry(&r, NULL),
	   "a freed record holds nothing");
	free(big);
}

static void numbers(void)
{
	struct record r;

	record_init(&r);
	record_add(&r, "good", "-7");
	record_add(&r, "tail", "7x");
	record_add(&r, "none", "");
	record_add(&r, "huge", "99999999999999999999");
	ok(record_num(&r, "good", 0) == -7, "a number");
	ok(record_num(&r, "tail", 5) == 5, "a number with a tail is none");
	ok(record_num(&r, "none", 5) == 5, "an empty value is no number");
	ok(record_num(&r, "huge", 5) == 5, "a number out of range is none");
	ok(record_num(&r, "gone", 5) == 5, "a missing number");
	record_free(&r);
}

/* Every record of up to four bytes behind a right length, and many longer
 * ones: parsed or refused, never read beyond. */
static void noise(void)
{
	static const char alphabet[] = {'\0', '=', 'a', '\n', '\xff'};
	unsigned int seed = 1;
	struct record r;
	int taken = 0;

	for (int i = 0; i < 200000; i++) {
		size_t n = (size_t) (rand_r(&seed) % 12);
		char *b = malloc(4 + n);

		memset(b, 0, 4);
		b[0] = (char) n;
		for (size_t k = 0; k < n; k++)
			b[4 + k] = alphabet[(unsigned int) rand_r(&seed) %
					    sizeof(alphabet)];
		if (!record_parse(&r, b, 4 + n)) {
			const char *e = NULL;

			while ((e = record_entry(&r, e)))
				taken += strchr(e, '=') != NULL;
			record_free(&r);
		}
		free(b);
	}
	ok(taken > 0, "200000 random records do no harm");
}

int main(int argc, char **argv)
{
	golden(argc > 1 ? argv[1] : "spank/cshim/test/testdata/record");
	hostile();
	limits();
	numbers();
	noise();
	return tap_end();
}
