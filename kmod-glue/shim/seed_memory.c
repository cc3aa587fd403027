// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What a seed consists of: its mappings, its open files, and the pages of its
 * chunks. The first three are asked about the calling process, which freezes;
 * pages are collected later, by others, from its page tables.
 */
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "compat.h"
#include "fork.h"

static_assert(PMD_SHIFT == MITOSIS_CHUNK_SHIFT);
static_assert(PTRS_PER_PTE == MITOSIS_CHUNK_PAGES);

static bool mitosis_vma_is_file(const struct vm_area_struct *vma)
{
	return vma->vm_file && vma->vm_ops;
}

static u32 mitosis_vma_flags(const struct vm_area_struct *vma)
{
	static const struct {
		unsigned long kernel;
		u32 ours;
	} flags[] = {
		{ VM_READ, MITOSIS_VMA_READ },
		{ VM_WRITE, MITOSIS_VMA_WRITE },
		{ VM_EXEC, MITOSIS_VMA_EXEC },
		{ VM_GROWSDOWN, MITOSIS_VMA_GROWSDOWN },
		{ VM_NORESERVE, MITOSIS_VMA_NORESERVE },
		{ VM_DONTCOPY, MITOSIS_VMA_DONTFORK },
		{ VM_WIPEONFORK, MITOSIS_VMA_WIPEONFORK },
		{ VM_SHARED | VM_MAYSHARE, MITOSIS_VMA_SHARED },
		{ VM_HUGETLB, MITOSIS_VMA_HUGETLB },
	};
	u32 found = 0;
	u32 i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		if (vma->vm_flags & flags[i].kernel)
			found |= flags[i].ours;
	}
	if ((vma->vm_flags & VM_SHARED) && (vma->vm_flags & VM_MAYWRITE))
		found |= MITOSIS_VMA_MAYWRITE;
	if (mitosis_vma_is_file(vma))
		found |= MITOSIS_VMA_FILE;
	else if (vma->vm_ops)
		found |= MITOSIS_VMA_SPECIAL;
	if (vma->vm_file && (vma->vm_flags & (VM_IO | VM_PFNMAP)))
		found |= MITOSIS_VMA_DEVICE;
	return found;
}

int mitosis_each_vma(int (*take)(void *, const struct mitosis_vma *),
		     void *context)
{
	struct mm_struct *mm = current->mm;
	char *room = kmalloc(PATH_MAX, GFP_KERNEL);
	struct vm_area_struct *vma;
	VMA_ITERATOR(iterator, mm, 0);
	int ret = 0;

	if (!room)
		return -ENOMEM;
	mmap_read_lock(mm);
	for_each_vma(iterator, vma) {
		struct mitosis_vma found = {
			.start = vma->vm_start,
			.end = vma->vm_end,
			.pgoff = vma->vm_pgoff,
			.flags = mitosis_vma_flags(vma),
		};

		if (vma->vm_start >= TASK_SIZE_MAX)
			break;
		if (found.flags & MITOSIS_VMA_FILE) {
			char *path = file_path(vma->vm_file, room, PATH_MAX);

			if (!IS_ERR(path)) {
				found.path = (const u8 *)path;
				found.path_len = strlen(path);
			}
		}
		ret = take(context, &found);
		if (ret)
			break;
	}
	mmap_read_unlock(mm);
	kfree(room);
	return ret;
}

/* What all mappings of a process are, and how many; none where it has no memory. */
u32 mitosis_process_vma_flags(struct pid *pid, u32 *count)
{
	struct task_struct *task = get_pid_task(pid, PIDTYPE_TGID);
	struct mm_struct *mm = task ? get_task_mm(task) : NULL;
	u32 found = 0;

	*count = 0;
	if (task)
		put_task_struct(task);
	if (!mm)
		return 0;
	if (!mmap_read_lock_killable(mm)) {
		struct vm_area_struct *vma;
		VMA_ITERATOR(iterator, mm, 0);

		for_each_vma(iterator, vma) {
			if (vma->vm_start >= TASK_SIZE_MAX)
				break;
			found |= mitosis_vma_flags(vma);
			(*count)++;
		}
		mmap_read_unlock(mm);
	}
	mmput(mm);
	return found;
}

/* Where the next page table begins that may hold something, at or after `address`. */
static pmd_t *mitosis_pmd(struct mm_struct *mm, unsigned long address,
			  unsigned long *next)
{
	pgd_t *pgd = pgd_offset(mm, address);
	p4d_t *p4d;
	pud_t *pud;

	*next = (address & PGDIR_MASK) + PGDIR_SIZE;
	if (pgd_none(READ_ONCE(*pgd)) || pgd_bad(READ_ONCE(*pgd)))
		return NULL;
	p4d = p4d_offset(pgd, address);
	*next = (address & P4D_MASK) + P4D_SIZE;
	if (p4d_none(READ_ONCE(*p4d)) || p4d_bad(READ_ONCE(*p4d)))
		return NULL;
	pud = pud_offset(p4d, address);
	*next = (address & PUD_MASK) + PUD_SIZE;
	if (pud_none(READ_ONCE(*pud)) || pud_bad(READ_ONCE(*pud)))
		return NULL;
	*next = (address & PMD_MASK) + PMD_SIZE;
	return pmd_offset(pud, address);
}

/*
 * Chunks in which something is mapped, in order, each once. Any page of a file
 * may be there, whether or not it has been touched.
 */
int mitosis_each_chunk(int (*take)(void *, u64 chunk), void *context)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	u64 last = U64_MAX;
	VMA_ITERATOR(iterator, mm, 0);
	int ret = 0;

	mmap_read_lock(mm);
	for_each_vma(iterator, vma) {
		unsigned long address = vma->vm_start;
		bool file = mitosis_vma_is_file(vma);

		if (address >= TASK_SIZE_MAX)
			break;
		if (!file && vma->vm_ops)
			continue;
		while (address < vma->vm_end && !ret) {
			unsigned long next = (address & PMD_MASK) + PMD_SIZE;
			u64 chunk = address >> MITOSIS_CHUNK_SHIFT;
			bool there = file;

			if (!file) {
				pmd_t *pmd = mitosis_pmd(mm, address, &next);

				there = pmd && !pmd_none(pmdp_get_lockless(pmd));
			}
			if (there && chunk != last) {
				ret = take(context, chunk);
				last = chunk;
			}
			if (next <= address)
				break;
			address = next;
		}
		if (ret)
			break;
	}
	mmap_read_unlock(mm);
	return ret;
}

/* Pages of the present table of a chunk that are young, from `address` to `end`. */
static bool mitosis_young(pmd_t *pmd, unsigned long address, unsigned long end,
			  u64 *touched)
{
	bool found = false;
	pmd_t table;

	/* RCU keeps the table if its entry is emptied at this moment. */
	rcu_read_lock();
	table = pmdp_get_lockless(pmd);
	if (!pmd_present(table) || pmd_trans_huge(table) || pmd_bad(table))
		goto out;
	for (; address < end; address += PAGE_SIZE) {
		u32 slot = pte_index(address);
		pte_t entry = READ_ONCE(*pte_offset_kernel(&table, address));

		if (!pte_present(entry) || !pte_young(entry) ||
		    pte_special(entry) || is_zero_pfn(pte_pfn(entry)))
			continue;
		touched[slot / 64] |= 1ULL << (slot % 64);
		found = true;
	}
out:
	rcu_read_unlock();
	return found;
}

/*
 * Chunks of which the caller has touched pages since it was forked, in order,
 * each once: fork() makes what it copies old, and copies nothing of files.
 * Around a page of a file the kernel maps its neighbours too, and has them young.
 */
int mitosis_each_recent(int (*take)(void *, u64 chunk, const u64 *touched),
			void *context)
{
	struct mm_struct *mm = current->mm;
	u64 touched[MITOSIS_CHUNK_PAGES / 64] = {};
	struct vm_area_struct *vma;
	u64 last = 0;
	bool found = false;
	VMA_ITERATOR(iterator, mm, 0);
	int ret = 0;

	mmap_read_lock(mm);
	for_each_vma(iterator, vma) {
		unsigned long address = vma->vm_start;
		unsigned long next;

		if (address >= TASK_SIZE_MAX)
			break;
		if ((vma->vm_ops && !mitosis_vma_is_file(vma)) ||
		    (vma->vm_flags & (VM_IO | VM_PFNMAP | VM_HUGETLB)))
			continue;
		for (; address < vma->vm_end && !ret; address = next) {
			u64 chunk = address >> MITOSIS_CHUNK_SHIFT;
			pmd_t *pmd = mitosis_pmd(mm, address, &next);

			if (next <= address)
				break;
			if (!pmd)
				continue;
			if (chunk != last && found) {
				ret = take(context, last, touched);
				memset(touched, 0, sizeof(touched));
				found = false;
			}
			last = chunk;
			if (mitosis_young(pmd, address,
					  min(next, vma->vm_end), touched))
				found = true;
		}
		if (ret)
			break;
	}
	if (found && !ret)
		ret = take(context, last, touched);
	mmap_read_unlock(mm);
	return ret;
}

struct mitosis_files {
	int (*take)(void *context, const struct mitosis_open_file *file);
	void *context;
	char *room;
};

static int mitosis_take_file(const void *argument, struct file *file,
			     unsigned int fd)
{
	const struct mitosis_files *files = argument;
	struct mitosis_open_file found = {
		.fd = fd,
		.status_flags = file->f_flags,
		.mode = file_inode(file)->i_mode,
		.position = file->f_pos,
	};
	char *path = file_path(file, files->room, PATH_MAX);

	if (!IS_ERR(path)) {
		found.path = (const u8 *)path;
		found.path_len = strlen(path);
	}
	return files->take(files->context, &found);
}

int mitosis_each_file(int (*take)(void *, const struct mitosis_open_file *),
		      void *context)
{
	struct mitosis_files files = {
		.take = take,
		.context = context,
		.room = kmalloc(PATH_MAX, GFP_KERNEL),
	};
	int ret;

	if (!files.room)
		return -ENOMEM;
	ret = iterate_fd(current->files, 0, mitosis_take_file, &files);
	kfree(files.room);
	return ret;
}

static void mitosis_take_page(struct page *page, u32 slot, struct page **pages,
			      u64 *present)
{
	get_page(page);
	pages[slot] = page;
	present[slot / 64] |= 1ULL << (slot % 64);
}

/* A file's page that nobody has touched may still be in the page cache. */
static void mitosis_collect_cached(struct vm_area_struct *vma,
				   unsigned long address, u32 slot,
				   struct page **pages, u64 *present,
				   u64 *elsewhere)
{
	pgoff_t index = vma->vm_pgoff + ((address - vma->vm_start) >> PAGE_SHIFT);
	struct page *page = find_get_page(vma->vm_file->f_mapping, index);

	if (page && PageUptodate(page)) {
		pages[slot] = page;
		present[slot / 64] |= 1ULL << (slot % 64);
		return;
	}
	if (page)
		put_page(page);
	elsewhere[slot / 64] |= 1ULL << (slot % 64);
}

/* What cannot be looked at now is asked for when it is needed. */
static void mitosis_leave(unsigned long address, unsigned long end,
			  u64 *elsewhere)
{
	for (; address < end; address += PAGE_SIZE) {
		u32 slot = pte_index(address);

		elsewhere[slot / 64] |= 1ULL << (slot % 64);
	}
}

static void mitosis_collect_table(struct mm_struct *mm, pmd_t *pmd,
				  unsigned long address, unsigned long end,
				  struct page **pages, u64 *present,
				  u64 *elsewhere)
{
	pmd_t table;
	spinlock_t *lock;

	/* RCU keeps the table if its entry is emptied at this moment. */
	rcu_read_lock();
	table = pmdp_get_lockless(pmd);
	if (!pmd_present(table) || pmd_bad(table)) {
		mitosis_leave(address, end, elsewhere);
		goto out;
	}
	lock = pte_lockptr(mm, pmd);
	spin_lock(lock);
	if (!pmd_same(table, pmdp_get_lockless(pmd))) {
		mitosis_leave(address, end, elsewhere);
		goto unlock;
	}
	for (; address < end; address += PAGE_SIZE) {
		u32 slot = pte_index(address);
		pte_t entry = READ_ONCE(*pte_offset_kernel(&table, address));

		if (pte_none(entry))
			continue;
		if (!pte_present(entry)) {
			elsewhere[slot / 64] |= 1ULL << (slot % 64);
			continue;
		}
		/* The zero page is as good as none. */
		if (pte_special(entry) || is_zero_pfn(pte_pfn(entry)) ||
		    !pfn_valid(pte_pfn(entry)))
			continue;
		mitosis_take_page(pfn_to_page(pte_pfn(entry)), slot, pages,
				  present);
	}
unlock:
	spin_unlock(lock);
out:
	rcu_read_unlock();
}

static bool mitosis_collect_huge(struct mm_struct *mm, pmd_t *pmd,
				 unsigned long address, unsigned long end,
				 struct page **pages, u64 *present)
{
	spinlock_t *lock = pmd_lock(mm, pmd);
	bool huge = pmd_present(*pmd) && pmd_trans_huge(*pmd);

	for (; huge && address < end; address += PAGE_SIZE) {
		u32 slot = pte_index(address);

		mitosis_take_page(pfn_to_page(pmd_pfn(*pmd) + slot), slot,
				  pages, present);
	}
	spin_unlock(lock);
	return huge;
}

/*
 * Takes references on the pages of a chunk. `present` says which there are,
 * `elsewhere` which must be asked for: swapped out, or of a file and not in
 * memory. Returns how many there are, or 0 also if the process is gone.
 */
u32 mitosis_collect(struct mm_struct *mm, u64 chunk, struct page **pages,
		    u64 *present, u64 *elsewhere)
{
	unsigned long start = chunk << MITOSIS_CHUNK_SHIFT;
	unsigned long end = start + PMD_SIZE;
	struct vm_area_struct *vma;
	u32 slot, count = 0;
	VMA_ITERATOR(iterator, mm, start);

	memset(pages, 0, MITOSIS_CHUNK_PAGES * sizeof(*pages));
	memset(present, 0, MITOSIS_CHUNK_PAGES / 8);
	memset(elsewhere, 0, MITOSIS_CHUNK_PAGES / 8);
	if (start >= TASK_SIZE_MAX || !mmget_not_zero(mm))
		return 0;
	mmap_read_lock(mm);
	for_each_vma_range(iterator, vma, end) {
		unsigned long from = max(start, vma->vm_start);
		unsigned long to = min(end, vma->vm_end);
		unsigned long address, next;
		pmd_t *pmd;

		if (vma->vm_flags & (VM_IO | VM_PFNMAP | VM_HUGETLB))
			continue;
		pmd = mitosis_pmd(mm, from, &next);
		if (pmd && !pmd_none(pmdp_get_lockless(pmd)) &&
		    !mitosis_collect_huge(mm, pmd, from, to, pages, present))
			mitosis_collect_table(mm, pmd, from, to, pages,
					      present, elsewhere);
		if (!mitosis_vma_is_file(vma))
			continue;
		for (address = from; address < to; address += PAGE_SIZE) {
			slot = pte_index(address);
			if (!pages[slot] &&
			    !(elsewhere[slot / 64] & 1ULL << (slot % 64)))
				mitosis_collect_cached(vma, address, slot, pages,
						       present, elsewhere);
		}
	}
	mmap_read_unlock(mm);
	mmput(mm);
	for (slot = 0; slot < MITOSIS_CHUNK_PAGES; slot++) {
		if (pages[slot])
			pages[count++] = pages[slot];
	}
	return count;
}

void mitosis_pages_put(struct page **pages, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++)
		put_page(pages[i]);
}

/* One page, wherever it is; brings it into memory. */
int mitosis_page_copy(s32 pid, struct mm_struct *mm, u64 address, void *to)
{
	struct task_struct *task;
	int len = 0;

	rcu_read_lock();
	task = pid_task(find_pid_ns(pid, &init_pid_ns), PIDTYPE_TGID);
	if (task && task->mm == mm)
		get_task_struct(task);
	else
		task = NULL;
	rcu_read_unlock();
	if (!task)
		return -ESRCH;
	len = access_process_vm(task, address, to, PAGE_SIZE, FOLL_FORCE);
	put_task_struct(task);
	return len == PAGE_SIZE ? 0 : -EFAULT;
}
