/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What remote fork's Rust may call of the kernel, besides shim.h, and what its
 * C files call of Rust. src/fork/ffi.rs declares the same for Rust.
 */
#ifndef MITOSIS_FORK_H
#define MITOSIS_FORK_H

#include <linux/types.h>

#include "module.h"
#include "shim.h"

struct page;
struct file;
struct mm_struct;
struct pid;
struct mitosis_frozen;
struct mitosis_mutex;
struct mitosis_link;
struct mitosis_region;
struct mitosis_image_file;
struct mitosis_child;

/* A chunk is what one page table of the lowest level maps. */
#define MITOSIS_CHUNK_SHIFT 21
#define MITOSIS_CHUNK_PAGES 512

/* lock.c */
struct mitosis_mutex *mitosis_mutex_create(void);
void mitosis_mutex_destroy(struct mitosis_mutex *mutex);
void mitosis_mutex_lock(struct mitosis_mutex *mutex);
bool mitosis_mutex_try_lock(struct mitosis_mutex *mutex);
void mitosis_mutex_unlock(struct mitosis_mutex *mutex);

/* task.c: the calling process. */
struct mitosis_registers {
	u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8;
	u64 rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss;
	u64 fs_base, gs_base;
};

struct mitosis_task {
	u64 blocked;		/* signal mask */
	u64 rseq;
	u32 rseq_len;
	u32 rseq_signature;
	u64 robust_list;
	u64 robust_list_len;
	u64 clear_child_tid;
	u64 altstack_sp;
	u64 altstack_size;
	u32 altstack_flags;
	u32 personality;
};

struct mitosis_layout {
	u64 start_code, end_code, start_data, end_data;
	u64 start_brk, brk, start_stack;
	u64 arg_start, arg_end, env_start, env_end;
	u64 vdso;
};

struct mitosis_action {
	u64 handler, flags, restorer, mask;
};

struct mitosis_identity {
	u32 uid;		/* effective, in the initial namespace */
	u32 threads;
	s32 pid;		/* in the initial namespace */
	u32 reserved;
	u8 comm[16];
	u8 release[65];
	u8 version[65];
	u8 padding[6];
};

void mitosis_task_registers(struct mitosis_registers *registers);
void mitosis_task_state(struct mitosis_task *task);
void mitosis_task_layout(struct mitosis_layout *layout);
void mitosis_task_identity(struct mitosis_identity *identity);
bool mitosis_task_action(u32 signal, struct mitosis_action *action);
void mitosis_task_set_registers(const struct mitosis_registers *registers);
void mitosis_task_set_state(const struct mitosis_task *task);
void mitosis_task_reach_rseq(void);
int mitosis_task_set_layout(const struct mitosis_layout *layout);
void mitosis_cpuid(u32 leaf, u32 subleaf, u32 registers[4]);
u32 mitosis_xcr0(void);
s32 mitosis_task_tgid(void);
bool mitosis_task_is_admin(void);
s32 mitosis_task_number_here(s32 global_pid);
bool mitosis_task_is_alive(s32 local_pid);
void mitosis_task_kill_self(void);
struct mm_struct *mitosis_task_mm(void);
void mitosis_mm_release(struct mm_struct *mm);

/* task.c: another process. */
struct pid *mitosis_process_child(s32 local_pid);
void mitosis_process_put(struct pid *pid);
bool mitosis_process_is_alive(struct pid *pid);
void mitosis_process_hide(struct pid *pid);

/* A sleep that only a signal of death, a wake-up or time ends: 0, or -EINTR. */
int mitosis_event_wait_frozen(struct mitosis_event *event, u64 timeout_ns);

/* seed_memory.c */
#define MITOSIS_VMA_READ 0x1
#define MITOSIS_VMA_WRITE 0x2
#define MITOSIS_VMA_EXEC 0x4
#define MITOSIS_VMA_GROWSDOWN 0x8
#define MITOSIS_VMA_NORESERVE 0x10
#define MITOSIS_VMA_DONTFORK 0x20
#define MITOSIS_VMA_WIPEONFORK 0x40
#define MITOSIS_VMA_SHARED 0x80
#define MITOSIS_VMA_MAYWRITE 0x100	/* of a shared one */
#define MITOSIS_VMA_DEVICE 0x200
#define MITOSIS_VMA_HUGETLB 0x400
#define MITOSIS_VMA_FILE 0x800
#define MITOSIS_VMA_SPECIAL 0x1000	/* vdso and what belongs to it */

struct mitosis_vma {
	u64 start, end;
	u64 pgoff;
	u32 flags;		/* MITOSIS_VMA_* */
	u32 path_len;
	const u8 *path;		/* valid during the call */
};

struct mitosis_open_file {
	u32 fd;
	u32 status_flags;
	u32 close_on_exec;
	u32 mode;		/* as in stat(2) */
	u64 position;
	u32 path_len;
	u32 reserved;
	const u8 *path;		/* valid during the call */
};

/* Each stops at the first answer that is not 0, and gives it. */
int mitosis_each_vma(int (*take)(void *, const struct mitosis_vma *),
		     void *context);
int mitosis_each_chunk(int (*take)(void *, u64 chunk), void *context);
int mitosis_each_recent(int (*take)(void *, u64 chunk, const u64 *touched),
			void *context);
int mitosis_each_file(int (*take)(void *, const struct mitosis_open_file *),
		      void *context);
u32 mitosis_process_vma_flags(struct pid *pid, u32 *count);
u32 mitosis_collect(struct mm_struct *mm, u64 chunk, struct page **pages,
		    u64 *present, u64 *elsewhere);
void mitosis_pages_put(struct page **pages, u32 count);
int mitosis_page_copy(s32 pid, struct mm_struct *mm, u64 address, void *to);

/* child_memory.c */
int mitosis_child_clear(u64 keep_start, u64 keep_end);
u64 mitosis_child_vdso(void);
struct mitosis_child *mitosis_child_begin(void);
void mitosis_child_end(struct mitosis_child *child);
int mitosis_child_map(struct mitosis_image_file *image,
		      struct mitosis_child *child, u64 start, u64 len,
		      u32 index, u32 flags);
int mitosis_image_file_create(void *image);
int mitosis_copy_to_user(u64 to, const void *from, size_t len);
struct page *mitosis_page_take(void);
struct page *mitosis_page_take_zeroed(void);
void *mitosis_page_address(struct page *page);
void mitosis_page_get(struct page *page);
void mitosis_page_put(struct page *page);

/* link.c: reliable connections. */
struct mitosis_link_request {
	struct ib_device *device;
	u32 port_num;
	u32 private_data_len;
	const u8 *private_data;
	u8 gid[16];		/* of who asks */
};

struct mitosis_link *mitosis_link_connect(const struct mitosis_port *port,
					  struct ib_pd *pd, const u8 *gid,
					  u16 service_port,
					  const u8 *private_data, u32 len,
					  u32 timeout_ms, int *error);
bool mitosis_link_alive(struct mitosis_link *link);
void mitosis_link_break(struct mitosis_link *link);
void mitosis_link_give_up(struct mitosis_link *link);
void mitosis_link_destroy(struct mitosis_link *link);

struct mitosis_link_listener *mitosis_link_listen(u16 service_port,
		bool infiniband, struct mitosis_event *event,
		struct ib_pd *(*admit)(void *, const struct mitosis_link_request *),
		bool (*established)(void *, const struct mitosis_link_request *,
				    struct mitosis_link *),
		void *context, int *error);
void mitosis_link_unlisten(struct mitosis_link_listener *listener);

/* work.c: READs, and what others may READ. */
#define MITOSIS_READ_PAGES 16

struct mitosis_read;
struct mitosis_read *mitosis_read_create(struct ib_device *device);
void mitosis_read_destroy(struct mitosis_read *read);
int mitosis_read_post(struct mitosis_link *link, struct mitosis_read *read,
		      struct page **pages, u32 count, u64 remote, u32 rkey);
int mitosis_read_wait(struct mitosis_read *read);

/* A region holds references on its pages, and gives them back when it goes. */
struct mitosis_region *mitosis_region_create(struct mitosis_link *link,
					     struct page **pages, u32 count,
					     int *error);
u32 mitosis_region_rkey(const struct mitosis_region *region);
u64 mitosis_region_iova(const struct mitosis_region *region);
void mitosis_region_destroy(struct mitosis_region *region);

/* What C calls of Rust: src/fork/entry.rs. */
void *mitosis_client_opened(s32 tgid);
void mitosis_client_flushed(void *client, s32 tgid);
void mitosis_client_closed(void *client);
long mitosis_client_call(void *client, u32 number, void *argument,
			 u32 argument_len);
long mitosis_image_resume(void *image, struct mitosis_image_file *file,
			  u64 child);
int mitosis_image_fault(void *image, u32 vma, u64 page_number, bool dropped,
			struct page **page);
/* Pages that are here around one that was touched: from `from`, which it sets. */
#define MITOSIS_AROUND 32
void mitosis_image_around(void *image, u32 vma, u64 page_number,
			  struct page **pages, u64 *from);
void mitosis_image_closed(void *image);

struct mitosis_fork_parameters {
	u32 service_id;
	u32 prefetch;
	u32 cache_pages;
	u32 warm_pages;
	struct mitosis_text cluster_key;
};

int mitosis_fork_start(const struct mitosis_fork_parameters *parameters);
void mitosis_fork_stop(void);

#endif
