#include "record.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEAD 4

static void put_length(struct record *r)
{
	uint32_t n = (uint32_t) (r->len - HEAD);

	for (int i = 0; i < HEAD; i++)
		r->buf[i] = (char) (n >> (8 * i));
}

static uint32_t get_length(const char *b)
{
	uint32_t n = 0;

	for (int i = 0; i < HEAD; i++)
		n |= (uint32_t) (unsigned char) b[i] << (8 * i);
	return n;
}

void record_init(struct record *r)
{
	memset(r, 0, sizeof(*r));
	r->cap = 512;
	r->buf = malloc(r->cap);
	if (!r->buf) {
		r->bad = 1;
		return;
	}
	r->len = HEAD;
	put_length(r);
}

void record_free(struct record *r)
{
	free(r->buf);
	memset(r, 0, sizeof(*r));
	r->bad = 1;
}

static int grow(struct record *r, size_t more)
{
	size_t want = r->len + more;
	size_t cap = r->cap;
	char *p;

	if (want > RECORD_MAX + HEAD)
		return -1;
	while (cap < want)
		cap *= 2;
	if (cap == r->cap)
		return 0;
	p = realloc(r->buf, cap);
	if (!p)
		return -1;
	r->buf = p;
	r->cap = cap;
	return 0;
}

void record_add(struct record *r, const char *key, const char *value)
{
	size_t klen = strlen(key);
	size_t vlen = strlen(value);

	if (r->bad)
		return;
	if (grow(r, klen + vlen + 2)) {
		r->bad = 1;
		return;
	}
	memcpy(r->buf + r->len, key, klen);
	r->buf[r->len + klen] = '=';
	memcpy(r->buf + r->len + klen + 1, value, vlen + 1);
	r->len += klen + vlen + 2;
	put_length(r);
}

void record_addf(struct record *r, const char *key, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t) n >= sizeof(text)) {
		r->bad = 1;
		return;
	}
	record_add(r, key, text);
}

int record_ok(const struct record *r)
{
	return !r->bad && r->buf;
}

const char *record_entry(const struct record *r, const char *prev)
{
	const char *end;
	const char *p;

	if (!record_ok(r))
		return NULL;
	end = r->buf + r->len;
	p = prev ? prev + strlen(prev) + 1 : r->buf + HEAD;
	return p < end ? p : NULL;
}

const char *record_next(const struct record *r, const char *key,
			const char *prev)
{
	size_t klen = strlen(key);
	const char *e = NULL;

	/* A value starts right behind its key, so prev leads to its entry. */
	if (prev)
		e = prev - klen - 1;
	while ((e = record_entry(r, e)))
		if (!strncmp(e, key, klen) && e[klen] == '=')
			return e + klen + 1;
	return NULL;
}

const char *record_get(const struct record *r, const char *key)
{
	return record_next(r, key, NULL);
}

long record_num(const struct record *r, const char *key, long fallback)
{
	const char *v = record_get(r, key);
	char *end;
	long n;

	if (!v || !*v)
		return fallback;
	errno = 0;
	n = strtol(v, &end, 10);
	return (errno || *end) ? fallback : n;
}

static int entries_valid(const char *p, size_t n)
{
	const char *end = p + n;

	if (n && end[-1] != '\0')
		return 0;
	while (p < end) {
		const char *eq = strchr(p, '=');

		if (!eq || eq == p)
			return 0;
		p += strlen(p) + 1;
	}
	return 1;
}

int record_parse(struct record *r, const char *bytes, size_t len)
{
	if (len < HEAD || len > RECORD_MAX + HEAD ||
	    get_length(bytes) != len - HEAD ||
	    !entries_valid(bytes + HEAD, len - HEAD)) {
		errno = EBADMSG;
		return -1;
	}
	memset(r, 0, sizeof(*r));
	r->buf = malloc(len);
	if (!r->buf) {
		errno = ENOMEM;
		return -1;
	}
	memcpy(r->buf, bytes, len);
	r->len = r->cap = len;
	return 0;
}
