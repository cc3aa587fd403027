/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR MIT */
/*
 * The interface of /dev/mitosis. docs/fork.md says what the calls mean.
 *
 * A process that is to be forked remotely forks itself; the child calls
 * MITOSIS_FREEZE and sleeps there as the seed, while the parent's
 * MITOSIS_PREPARE returns the seed's name. MITOSIS_QUERY, and MITOSIS_OPEN on
 * whatever machine, wait for a seed on its way. On another machine, or the same,
 * MITOSIS_OPEN fetches the seed's descriptor and gives an image, a file
 * descriptor; MITOSIS_RESUME on an image replaces the calling process by a
 * continuation of the seed.
 *
 * All structures have fixed-width fields and no padding. Reserved fields are 0,
 * or the call fails with EINVAL; so does an unknown flag.
 */
#ifndef MITOSIS_UAPI_H
#define MITOSIS_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define MITOSIS_DEVICE "/dev/mitosis"
#define MITOSIS_ABI_VERSION 1

/* Names a seed. The generation tells apart seeds that had the same id. */
struct mitosis_seed_id {
	__u32 id;
	__u32 generation;
};

/* 128 bits that nobody can guess: who knows them may resume the seed. */
struct mitosis_capability {
	__u8 bytes[16];
};

/* A machine's RDMA port, by its GID, and where the module listens there. */
struct mitosis_machine {
	__u8 gid[16];
	__u32 service;
	__u32 reserved;
};

/* The seed's part: does not return in the seed. In a child it returns 1, with the
 * child's number, as given to MITOSIS_RESUME, in rdx. */
struct mitosis_freeze {
	__u64 token;		/* the same as in the parent's MITOSIS_PREPARE */
	__u32 flags;		/* MITOSIS_FREEZE_* */
	__u32 reserved;
};

/* Refuse, rather than leave out, open files that cannot be carried. */
#define MITOSIS_FREEZE_STRICT_FILES 1

/* Gives the name that the child is found by once it has frozen. Waits for that only
 * where it is told to, or where the child has a mapping that cannot be carried. */
struct mitosis_prepare {
	__u64 token;		/* in: drawn at random before fork() */
	__s32 pid;		/* in: the child that freezes */
	__u32 flags;		/* in: MITOSIS_PREPARE_* */
	__u64 lease_ms;		/* in: life of the seed; 0: until its owner's end */
	struct mitosis_seed_id seed;		/* out */
	struct mitosis_capability capability;	/* out */
	__u64 descriptor_len;	/* out: bytes; 0 if it has not frozen yet */
	__u32 vmas;		/* out: likewise */
	__u32 chunks;		/* out: of 2 MiB, with at least one page; likewise */
	__u32 refused;		/* out with EOPNOTSUPP: MITOSIS_REFUSED_* */
	__u32 reserved;
	__u64 refused_at;	/* out with it: an address, or a file descriptor */
};

/* Wait until the child has frozen, or has failed to. */
#define MITOSIS_PREPARE_WAIT 2

#define MITOSIS_REFUSED_SHARED_MEMORY 1	/* a writable shared mapping */
#define MITOSIS_REFUSED_DEVICE_MEMORY 2	/* a mapping of a device */
#define MITOSIS_REFUSED_HUGETLB 3	/* explicit huge pages */
#define MITOSIS_REFUSED_TOO_MANY_VMAS 4
#define MITOSIS_REFUSED_TOO_LARGE 5	/* address space, or descriptor */
#define MITOSIS_REFUSED_FILE 6		/* MITOSIS_FREEZE_STRICT_FILES */
#define MITOSIS_REFUSED_THREADS 7	/* the seed has more than one thread */
#define MITOSIS_REFUSED_STATE 8	/* a register or setting that no child can have */

/* What is known of a seed of this machine. */
struct mitosis_seed_info {
	struct mitosis_seed_id seed;
	__s32 pid;		/* of the frozen process, in the caller's namespace */
	__u32 uid;		/* of its owner */
	__u64 age_ms;
	__u64 lease_left_ms;	/* 0: no lease */
	__u64 descriptor_len;
	__u32 vmas;
	__u32 chunks;
	__u32 regions;		/* chunks that are registered for READ */
	__u32 opened;		/* times that its descriptor was fetched */
	__u8 comm[16];
};

/* Seeds that the caller may see: those of its user, or with CAP_SYS_ADMIN all. */
struct mitosis_list {
	__u64 seeds;		/* in: address of struct mitosis_seed_info[] */
	__u32 capacity;		/* in: how many there is room for */
	__u32 count;		/* out: how many there are */
};

/* Fetches a seed's descriptor; returns a new file descriptor, the image. */
struct mitosis_open {
	struct mitosis_machine machine;
	struct mitosis_seed_id seed;	/* generation 0: whichever it is; CAP_SYS_ADMIN only */
	struct mitosis_capability capability; /* zeros: none; CAP_SYS_ADMIN only */
	__u64 descriptor;	/* in: address of a buffer */
	__u32 descriptor_room;	/* in: bytes in it */
	__u32 descriptor_len;	/* out: bytes needed; nothing is copied where they do not fit */
	__u32 flags;		/* in: MITOSIS_OPEN_* */
	__u32 prefetch;		/* in: pages read with one that was touched; 0: the module's default */
};

/* Read all pages at once, before the image is resumed. */
#define MITOSIS_OPEN_EAGER 1
/* Give each child pages of its own instead of one copy until it writes. */
#define MITOSIS_OPEN_PRIVATE 2

/* Replaces the caller's memory and registers by the seed's. Returns only if it fails;
 * with EOWNERDEAD it fails too late to go on, and the caller is killed. */
struct mitosis_resume {
	__u64 child;		/* a number for the child to know itself by */
	__u32 flags;		/* 0 */
	__u32 reserved;
};

/* Opens the connections to a machine before they are needed, or asks whether it answers. */
struct mitosis_ping {
	struct mitosis_machine machine;
	__u64 rtt_ns;		/* out */
};

struct mitosis_stats {
	__u64 seeds;			/* now */
	__u64 prepared, unprepared;	/* since the module was loaded */
	__u64 images;			/* now */
	__u64 children;			/* resumed since the module was loaded */
	__u64 regions;			/* now registered for READ */
	__u64 seed_pages;		/* now held for regions */
	__u64 cached_pages;		/* now, of images */
	__u64 faults;			/* that reached the module */
	__u64 faults_zero, faults_cached, faults_read, faults_rpc, faults_failed;
	__u64 pages_read;		/* by READ, prefetched ones included */
	__u64 connections;		/* now, to and from other machines */
	__u64 reserved[4];
};

#define MITOSIS_FREEZE		_IOW(0xb5, 1, struct mitosis_freeze)
#define MITOSIS_PREPARE		_IOWR(0xb5, 2, struct mitosis_prepare)
#define MITOSIS_UNPREPARE	_IOW(0xb5, 3, struct mitosis_seed_id)
#define MITOSIS_LIST		_IOWR(0xb5, 4, struct mitosis_list)
#define MITOSIS_QUERY		_IOWR(0xb5, 5, struct mitosis_seed_info)
#define MITOSIS_OPEN		_IOWR(0xb5, 6, struct mitosis_open)
#define MITOSIS_RESUME		_IOW(0xb5, 7, struct mitosis_resume)
#define MITOSIS_CONNECT		_IOW(0xb5, 8, struct mitosis_machine)
#define MITOSIS_DISCONNECT	_IOW(0xb5, 9, struct mitosis_machine)
#define MITOSIS_PING		_IOWR(0xb5, 10, struct mitosis_ping)
#define MITOSIS_STATS		_IOR(0xb5, 11, struct mitosis_stats)

#endif
