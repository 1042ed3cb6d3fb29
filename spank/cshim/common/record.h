/*
 * record.h - the encoding in which Carme's processes talk: an ordered list of
 * key=value entries, each ended by NUL, behind their total length as a 32-bit
 * little-endian number. The Go side is internal/wire/record.go; a test there
 * compares RECORD_MAX with its own constant.
 */
#ifndef CARME_RECORD_H
#define CARME_RECORD_H

#include <stdarg.h>
#include <stddef.h>

/* Bytes of all entries together, without the length in front. */
#define RECORD_MAX (1024 * 1024)

struct record {
	char *buf;  /* 4 bytes of length, then the entries */
	size_t len; /* bytes used in buf, including the length */
	size_t cap;
	int bad; /* an append failed: too large or out of memory */
};

void record_init(struct record *r);
void record_free(struct record *r);

/* Append key=value. Errors are kept in r->bad and seen by record_ok(). */
void record_add(struct record *r, const char *key, const char *value);
void record_addf(struct record *r, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int record_ok(const struct record *r);

/* First value of key, or NULL. */
const char *record_get(const struct record *r, const char *key);
/* Value of key after prev (NULL: the first), or NULL. Walks lists. */
const char *record_next(const struct record *r, const char *key,
			const char *prev);
/* Any entry after prev (NULL: the first) as "key=value", or NULL. */
const char *record_entry(const struct record *r, const char *prev);
/* Number under key, or fallback when absent or not a plain number. */
long record_num(const struct record *r, const char *key, long fallback);

/* Take len bytes as a record. 0, or -1 with errno EBADMSG or ENOMEM. */
int record_parse(struct record *r, const char *bytes, size_t len);

#endif
