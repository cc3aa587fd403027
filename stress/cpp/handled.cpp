#include "handled.h"

#include <atomic>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include <elf.h>
#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

// Pages before and after which others are given up.
constexpr std::size_t kBlock = 32;

bool zeros(const std::uint64_t* place) {
    const volatile std::uint64_t* words = place;
    return words[0] == 0 && words[kPageWords - 1] == 0;
}

int end_of(pid_t pid) {
    int status = 0;
    if (waitpid(pid, &status, 0) != pid) fail("waitpid");
    return status;
}

// Where a debugger stops the copy.
__attribute__((noinline, used)) std::uint64_t passed(std::uint64_t value) {
    asm volatile("nop" : "+r"(value));
    return value + 1;
}

// What a debugger sees of a copy that stands still, and does to it.
class Copy {
public:
    explicit Copy(pid_t pid) : pid_(pid) {}

    std::uint64_t peek(const void* place) const {
        errno = 0;
        const long word = ptrace(PTRACE_PEEKDATA, pid_, place, nullptr);
        if (errno != 0) fail("PTRACE_PEEKDATA");
        return static_cast<std::uint64_t>(word);
    }
    void poke(void* place, std::uint64_t word) const {
        if (ptrace(PTRACE_POKEDATA, pid_, place, word) != 0) fail("PTRACE_POKEDATA");
    }
    void go_on() const {
        if (ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) fail("PTRACE_CONT");
    }
    void stops_by(int signal) const {
        const int status = end_of(pid_);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) != signal)
            throw std::runtime_error("the copy did not stop by " + std::string(strsignal(signal)) + ", but with status " +
                                     std::to_string(status));
    }

    // Puts a breakpoint at a function, lets the copy come to it, and go on as if there were none.
    void stop_at(void* function) const {
        const std::uint64_t code = peek(function);
        poke(function, (code & ~0xffull) | 0xcc);
        go_on();
        stops_by(SIGTRAP);
        user_regs_struct registers{};
        if (ptrace(PTRACE_GETREGS, pid_, nullptr, &registers) != 0) fail("PTRACE_GETREGS");
        if (registers.rip != reinterpret_cast<std::uintptr_t>(function) + 1)
            throw std::runtime_error("the copy stopped where there is no breakpoint");
        poke(function, code);
        --registers.rip;
        if (ptrace(PTRACE_SETREGS, pid_, nullptr, &registers) != 0) fail("PTRACE_SETREGS");
        go_on();
    }

private:
    pid_t pid_;
};

// A core file, in memory.
class Core {
public:
    explicit Core(const std::string& path) {
        const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat about {};
        if (fd < 0 || fstat(fd, &about) != 0) fail(path);
        len_ = static_cast<std::size_t>(about.st_size);
        void* mapped = mmap(nullptr, len_, PROT_READ, MAP_PRIVATE, fd, 0);
        if (mapped == MAP_FAILED) fail(path);
        close(fd);
        bytes_ = static_cast<const char*>(mapped);
    }
    ~Core() { munmap(const_cast<char*>(bytes_), len_); }
    Core(const Core&) = delete;
    Core& operator=(const Core&) = delete;

    // Where the file has what the process had at an address; null where it has not.
    const void* page(const void* place) const {
        const auto address = reinterpret_cast<std::uintptr_t>(place);
        Elf64_Ehdr header{};
        std::memcpy(&header, bytes_, sizeof header);
        for (std::size_t i = 0; i < header.e_phnum; ++i) {
            Elf64_Phdr part{};
            std::memcpy(&part, bytes_ + header.e_phoff + i * sizeof part, sizeof part);
            if (part.p_type != PT_LOAD || address < part.p_vaddr || address - part.p_vaddr + kPageBytes > part.p_filesz)
                continue;
            const std::size_t offset = part.p_offset + (address - part.p_vaddr);
            return offset + kPageBytes <= len_ ? bytes_ + offset : nullptr;
        }
        return nullptr;
    }

private:
    const char* bytes_;
    std::size_t len_;
};

}  // namespace

std::size_t give_up(const Known& memory) {
    const std::size_t given_up[] = {7, 20};
    std::size_t wrong = 0;
    for (std::size_t block = 0; block < memory.pages(); block += kBlock) {
        wrong += !memory.is(memory.at(block + 2), block + 2);
        for (const std::size_t at : given_up)
            if (madvise(memory.at(block + at), 3 * kPageBytes, MADV_DONTNEED) != 0) fail("madvise");
        // The other way round: what is given up is near what has just been touched.
        for (std::size_t at = kBlock; at-- > 0;) {
            const bool gone = (at >= 7 && at < 10) || (at >= 20 && at < 23);
            const std::uint64_t* place = memory.at(block + at);
            wrong += gone ? !zeros(place) : !memory.is(place, block + at);
        }
    }
    return wrong;
}

std::size_t handle(const Known& memory) {
    constexpr std::size_t kSome = 96;
    std::uint64_t* const first = memory.words();
    // Whether a child's memory may be huge is the kernel's affair; that it stays what it is, is not.
    madvise(first, memory.pages() * kPageBytes, MADV_HUGEPAGE);
    std::size_t wrong = memory.wrong_at(first, 0, kSome / 2);
    if (mprotect(first, kSome * kPageBytes, PROT_READ) != 0) fail("mprotect");
    wrong += memory.wrong_at(first, 0, kSome);
    if (mprotect(first, kSome * kPageBytes, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
    for (int turn = 0; turn < 2; ++turn)
        for (std::size_t page = 0; page < kSome; ++page) *memory.at(page) ^= ~0ull;
    wrong += memory.wrong_at(first, 0, kSome);

    std::uint64_t* const home = memory.at(kSome);
    wrong += memory.wrong_at(home, kSome, kSome / 4);
    void* away = mmap(nullptr, kSome * kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (away == MAP_FAILED) fail("mmap");
    constexpr int kThere = MREMAP_MAYMOVE | MREMAP_FIXED;
    if (mremap(home, kSome * kPageBytes, kSome * kPageBytes, kThere, away) != away) fail("mremap");
    wrong += memory.wrong_at(away, kSome, kSome / 2);
    if (mremap(away, kSome * kPageBytes, kSome * kPageBytes, kThere, home) != home) fail("mremap");
    wrong += memory.wrong_at(home, kSome, kSome);

    const pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid == 0) _exit(memory.wrong() == 0 ? 0 : 1);
    wrong += end_of(pid) != 0;
#ifdef MADV_COLLAPSE
    madvise(first, memory.pages() * kPageBytes, MADV_COLLAPSE);
#endif
    return wrong + memory.wrong();
}

std::size_t touch_by_threads(const Known& memory) {
    constexpr std::size_t kThreads = 4;
    const std::size_t kept = memory.pages() / 4 * 3;
    std::atomic<std::size_t> wrong{0};
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < kThreads; ++thread)
        threads.emplace_back([&, thread] {
            for (std::size_t page = thread; page < kept; page += kThreads) wrong += !memory.is(memory.at(page), page);
        });
    threads.emplace_back([&] {
        for (std::size_t page = kept; page < memory.pages(); ++page) {
            wrong += !memory.is(memory.at(page), page);
            if (madvise(memory.at(page), kPageBytes, MADV_DONTNEED) != 0) fail("madvise");
            wrong += !zeros(memory.at(page));
        }
    });
    for (std::thread& thread : threads) thread.join();
    return wrong;
}

std::size_t trace_a_copy(const Known& memory) {
    const pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(2);
        raise(SIGSTOP);
        if (passed(7) != 8) _exit(3);
        _exit(memory.wrong() == 0 ? 0 : 1);
    }
    const Copy copy(pid);
    copy.stops_by(SIGSTOP);

    // Words that neither has touched; every other page is written to, and back.
    std::size_t wrong = 0;
    for (std::size_t page = 0; page < memory.pages() / 2; page += 5) {
        std::uint64_t* const place = memory.at(page) + 3;
        wrong += copy.peek(place) != memory.right(page, 3);
        if (page % 2 == 0) continue;
        copy.poke(place, ~memory.right(page, 3));
        wrong += copy.peek(place) != ~memory.right(page, 3);
        wrong += *static_cast<volatile std::uint64_t*>(place) != memory.right(page, 3);
        copy.poke(place, memory.right(page, 3));
    }
    // All of it at once.
    std::vector<std::uint64_t> seen(memory.pages() * kPageWords);
    const iovec here{seen.data(), seen.size() * 8}, there{memory.words(), seen.size() * 8};
    if (process_vm_readv(pid, &here, 1, &there, 1, 0) != static_cast<ssize_t>(seen.size() * 8)) fail("process_vm_readv");
    wrong += memory.wrong_at(seen.data(), 0, memory.pages());

    copy.stop_at(reinterpret_cast<void*>(&passed));
    const int status = end_of(pid);
    if (status != 0) throw std::runtime_error("the copy that was traced ended with status " + std::to_string(status));
    wrong += passed(7) != 8;
    return wrong + memory.wrong();
}

std::size_t dump_a_copy(const Known& memory) {
    char directory[] = "core-XXXXXX";
    if (!mkdtemp(directory)) fail("mkdtemp");
    const pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid == 0) {
        const rlimit all{RLIM_INFINITY, RLIM_INFINITY};
        if (chdir(directory) != 0 || setrlimit(RLIMIT_CORE, &all) != 0) _exit(2);
        std::abort();
    }
    const int status = end_of(pid);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !WCOREDUMP(status))
        throw std::runtime_error("a copy that aborts leaves no core file: status " + std::to_string(status));
    const std::string path = std::string(directory) + "/core";
    std::size_t wrong = 0;
    {
        const Core core(path);
        for (std::size_t page = 0; page < memory.pages(); ++page) {
            const void* place = core.page(memory.at(page));
            wrong += !place || !memory.is(place, page);
        }
    }
    if (unlink(path.c_str()) != 0 || rmdir(directory) != 0) fail(path);
    return wrong + memory.wrong();
}
