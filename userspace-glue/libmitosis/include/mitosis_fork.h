/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Remote fork for programs: -lmitosis_fork. docs/libmitosis.md has the rules of
 * what a child keeps.
 *
 * A function that fails returns -1 (or NULL) and sets errno; mitosis_error()
 * says in words what happened, and what to do about it.
 */
#ifndef MITOSIS_FORK_H
#define MITOSIS_FORK_H

#include <stddef.h>
#include <stdint.h>

#include "mitosis.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mitosis_prepare_options {
	uint64_t lease_ms;	/* life of the seed; 0: until this process ends */
	uint32_t flags;		/* MITOSIS_FREEZE_*, MITOSIS_PREPARE_* */
	uint32_t reserved;	/* 0 */
};

struct mitosis_seed {
	struct mitosis_seed_id id;
	struct mitosis_capability capability;
	uint64_t descriptor_len; /* this and the next two: 0 if it has not frozen yet */
	uint32_t vmas;
	uint32_t chunks;	/* of 2 MiB, with at least one page */
	int32_t pid;		/* the frozen process; 0: not this process's */
	uint32_t child;		/* in a child: the number that it was resumed with */
};

/*
 * Makes a seed of the calling process: a copy by fork(), with its handlers,
 * which freezes. Returns 0 with the seed, and then 1 in each child, of which
 * seed->child is the number; -1 if there is no seed. Where the process has
 * other threads, a child has only this one, as with fork(). Options may be NULL.
 *
 * As fork(), it does not wait until the copy has run, but for one that has
 * something that cannot be carried. Whoever opens the seed, or queries it, waits.
 * With MITOSIS_PREPARE_WAIT it returns when the seed has frozen, or with the reason
 * why there is none.
 *
 * The seed lives as long as this process keeps /dev/mitosis open, which the
 * library sees to. It is a child process that a plain wait() does not see.
 */
int mitosis_prepare(const struct mitosis_prepare_options *options,
		    struct mitosis_seed *seed);

/*
 * The halves of mitosis_prepare(), for runtimes with a fork of their own. Draw a
 * token, which opens /dev/mitosis for both; fork; let the copy call mitosis_freeze(), which returns 1 in a child
 * and otherwise -1, whereupon the copy must _exit(); and the original
 * mitosis_await_frozen().
 */
int mitosis_token(uint64_t *token);
int mitosis_freeze(uint64_t token, uint32_t flags, uint32_t *child);
int mitosis_await_frozen(uint64_t token, int32_t pid,
			 const struct mitosis_prepare_options *options,
			 struct mitosis_seed *seed);

/*
 * Ends a seed, and waits for its process, also where it fails with ENOENT because its lease is over. Only id is
 * looked at if pid is 0.
 */
int mitosis_unprepare(const struct mitosis_seed *seed);

/* Fills in as many as there is room for; returns how many there are. */
int mitosis_list(struct mitosis_seed_info *seeds, uint32_t capacity);
/* info->seed is the question. */
int mitosis_query(struct mitosis_seed_info *info);

/* A seed, opened on the machine where it is to go on. */
struct mitosis_image;

/* A GID from its text, or from an IP address. */
int mitosis_gid(const char *text, uint8_t gid[16]);

/* Flags are MITOSIS_OPEN_*. Without a capability (NULL), for root. */
struct mitosis_image *mitosis_open(const uint8_t gid[16], uint32_t service,
				   struct mitosis_seed_id seed,
				   const struct mitosis_capability *capability,
				   uint32_t flags, uint32_t prefetch);
/* The descriptor (docs/descriptor.md), valid until the image is closed. */
const void *mitosis_image_descriptor(const struct mitosis_image *image,
				     size_t *len);
int mitosis_image_fd(const struct mitosis_image *image);
/* Children go on. */
void mitosis_image_close(struct mitosis_image *image);

/* Leave files closed that cannot be opened here, rather than fail. */
#define MITOSIS_RESUME_SKIP_FILES 1

/*
 * Replaces the calling process, of one thread, by a child of the image's seed.
 * Returns only -1. With EAGAIN something of this process lies where the seed has
 * its vdso: another process, freshly started, may do better. With EOWNERDEAD the
 * process is no longer what it was, and can only end.
 */
int mitosis_resume(const struct mitosis_image *image, uint32_t child,
		   uint32_t flags);

int mitosis_connect(const uint8_t gid[16], uint32_t service);
int mitosis_disconnect(const uint8_t gid[16], uint32_t service);
int mitosis_ping(const uint8_t gid[16], uint32_t service, uint64_t *rtt_ns);
int mitosis_stats(struct mitosis_stats *stats);

/* Why the last call of this thread that failed did; valid until the next such call. */
const char *mitosis_error(void);

#ifdef __cplusplus
}
#endif
#endif
