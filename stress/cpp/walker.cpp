// The walker of `make fork-faults` and `make bench-fork`: a process with known memory that does, on either side of a remote
// fork, what it is told, a line at a time, and says what came of it and how long it took.
//
// Each page's words follow from a secret and the page's number, so that a child needs nothing to tell a right page from a
// wrong one, and a page of zeros from either.

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <ctime>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mitosis_fork.h"

namespace {

constexpr std::size_t kPageWords = 512;
constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15;
constexpr std::size_t kProgress = 512;  // pages between two lines that say how far it is
constexpr int kAttempts = 20;           // at a process whose addresses leave room for the seed's vdso
constexpr char kAttempt[] = "WALKER_ATTEMPT";

std::uint64_t mix(std::uint64_t value) {
    value += kStep;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

std::uint64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1000000000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// Microseconds, as many as a child's number has room for.
std::uint32_t now_us() { return static_cast<std::uint32_t>(now_ns() / 1000); }

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

// Unbuffered: what a buffer held, a child would have too.
void say(const std::string& line) {
    const std::string whole = line + "\n";
    for (std::size_t at = 0; at < whole.size();) {
        const ssize_t written = write(1, whole.data() + at, whole.size() - at);
        if (written < 0 && errno != EINTR) fail("standard output");
        if (written > 0) at += static_cast<std::size_t>(written);
    }
}

bool hear(std::string& line) {
    line.clear();
    for (char c;;) {
        const ssize_t length = read(0, &c, 1);
        if (length < 0 && errno == EINTR) continue;
        if (length <= 0) return false;
        if (c == '\n') return true;
        line.push_back(c);
    }
}

class Walker {
public:
    Walker(std::size_t mib, std::uint64_t secret, bool small) : pages_((mib << 20) / 4096), secret_(secret) {
        // Whole chunks, so that the kernel may use huge pages.
        constexpr std::size_t kChunk = 2 << 20;
        void* raw = mmap(nullptr, (mib << 20) + kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (raw == MAP_FAILED) fail("mmap");
        const auto address = (reinterpret_cast<std::uintptr_t>(raw) + kChunk - 1) / kChunk * kChunk;
        words_ = reinterpret_cast<std::uint64_t*>(address);
        if (small && madvise(words_, mib << 20, MADV_NOHUGEPAGE) != 0) fail("madvise");
        for (std::size_t page = 0; page < pages_; ++page)
            for (std::size_t i = 0; i < kPageWords; ++i) words_[page * kPageWords + i] = right(page, i);
    }

    // Until it is told to end, or its input ends.
    void obey() {
        for (std::string line; hear(line);) {
            std::istringstream words(line);
            std::string what;
            words >> what;
            const auto number = [&words](std::uint64_t otherwise) {
                std::uint64_t value = 0;
                return words >> value ? value : otherwise;
            };
            if (what == "end") return;
            else if (what == "fork") fork_here();
            else if (what == "prepare") prepare();
            else if (what == "unprepare") unprepare();
            else if (what == "spoil") spoil();
            else if (what == "read" || what == "touch" || what == "write") {
                const std::size_t first = number(0);
                const std::size_t count = std::min<std::size_t>(number(pages_), pages_);
                const std::size_t stride = std::max<std::size_t>(number(1), 1);
                walk(what, first, count, stride);
            } else throw std::runtime_error("walker: what is " + line + "?");
        }
    }

private:
    std::uint64_t right(std::size_t page, std::size_t word) const { return mix(secret_ ^ page) + kStep * word; }

    // read looks at every word, touch at one a page; write changes one a page, and changes it back.
    void walk(const std::string& what, std::size_t first, std::size_t count, std::size_t stride) {
        std::vector<std::uint64_t> each;
        each.reserve(count);
        std::size_t wrong = 0, walked = 0;
        const std::uint64_t begun = now_ns();
        for (std::size_t page = first; page < pages_ && walked < count; page += stride, ++walked) {
            volatile std::uint64_t* words = words_ + page * kPageWords;
            const std::uint64_t before = now_ns();
            if (what == "write") words[7] = words[7] ^ before;
            const std::uint64_t found = words[0];
            const std::uint64_t after = now_ns();
            each.push_back(after - before);
            if (what == "write") words[7] = words[7] ^ before;
            bool right_page = found == right(page, 0);
            if (what != "touch")
                for (std::size_t i = 1; i < kPageWords; ++i) right_page &= words[i] == right(page, i);
            wrong += !right_page;
            if (what != "touch" && (walked + 1) % kProgress == 0) say("at: page=" + std::to_string(page));
        }
        const std::uint64_t took = now_ns() - begun;
        std::sort(each.begin(), each.end());
        std::ostringstream line;
        line << "walked: pages=" << walked << " wrong=" << wrong << " ns=" << took
             << " median_ns=" << (each.empty() ? 0 : each[each.size() / 2]);
        say(line.str());
    }

    // What prepare has to be compared with.
    void fork_here() {
        int ends[2];
        if (pipe(ends) != 0) fail("pipe");
        const std::uint64_t begun = now_ns();
        const pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid == 0) {
            const char word = 1;
            _exit(write(ends[1], &word, 1) == 1 ? 0 : 1);
        }
        const std::uint64_t forked = now_ns();
        char word;
        if (read(ends[0], &word, 1) != 1) fail("the copy");
        const std::uint64_t heard = now_ns();
        int status = 0;
        if (waitpid(pid, &status, 0) != pid || status != 0) fail("the copy's end");
        close(ends[0]);
        close(ends[1]);
        say("forked: ns=" + std::to_string(forked - begun) + " heard_ns=" + std::to_string(heard - begun));
    }

    void prepare() {
        const std::uint64_t begun = now_ns();
        const int who = mitosis_prepare(nullptr, &seed_);
        const std::uint64_t took = now_ns() - begun;
        if (who < 0) throw std::runtime_error(std::string("cannot be prepared: ") + mitosis_error());
        if (who == 1) {
            // The number is the time at which the resumer began: the same machine's clock.
            const std::uint32_t us = now_us() - seed_.child;
            say("begun: us=" + std::to_string(us));
            return;
        }
        std::ostringstream line;
        line << "prepared: ns=" << took << " id=" << seed_.id.id << " generation=" << seed_.id.generation
             << " capability=";
        for (auto byte : seed_.capability.bytes) {
            char digits[3];
            std::snprintf(digits, sizeof digits, "%02x", byte);
            line << digits;
        }
        say(line.str());
    }

    void unprepare() {
        const std::uint64_t begun = now_ns();
        if (mitosis_unprepare(&seed_) != 0)
            throw std::runtime_error(std::string("cannot be unprepared: ") + mitosis_error());
        say("unprepared: ns=" + std::to_string(now_ns() - begun));
    }

    // What the parent does to its own memory, no child sees.
    void spoil() {
        for (std::size_t page = 0; page < pages_; ++page) words_[page * kPageWords] ^= ~0ull;
        say("spoilt: pages=" + std::to_string(pages_));
    }

    std::uint64_t* words_;
    std::size_t pages_;
    std::uint64_t secret_;
    mitosis_seed seed_{};
};

[[noreturn]] void usage() {
    std::fprintf(stderr,
                 "usage: fork-walker MIB SECRET [small]\n"
                 "       fork-walker resume GID SERVICE ID GENERATION CAPABILITY|- [PREFETCH [eager]]\n");
    std::exit(2);
}

int refused() {
    say(std::string("refused: ") + mitosis_error());
    return 1;
}

// Becomes a child.
int resume(int argc, char** argv) {
    if (argc < 7) usage();
    std::uint8_t gid[16];
    if (mitosis_gid(argv[2], gid) != 0) return refused();
    const auto service = static_cast<std::uint32_t>(std::stoul(argv[3]));
    const mitosis_seed_id id{static_cast<std::uint32_t>(std::stoul(argv[4])),
                             static_cast<std::uint32_t>(std::stoul(argv[5]))};
    mitosis_capability capability{};
    const std::string digits = argv[6];
    const bool entitled = digits != "-";
    if (entitled && digits.size() != 32) usage();
    for (std::size_t i = 0; entitled && i < 16; ++i)
        capability.bytes[i] = static_cast<std::uint8_t>(std::stoul(digits.substr(2 * i, 2), nullptr, 16));
    const auto prefetch = static_cast<std::uint32_t>(argc > 7 ? std::stoul(argv[7]) : 0);
    const std::uint32_t flags = argc > 8 ? MITOSIS_OPEN_EAGER : 0;

    const std::uint64_t begun = now_ns();
    mitosis_image* image = mitosis_open(gid, service, id, entitled ? &capability : nullptr, flags, prefetch);
    if (!image) return refused();
    say("opened: ns=" + std::to_string(now_ns() - begun));
    mitosis_resume(image, now_us(), 0);
    const char* told = getenv(kAttempt);
    const int attempt = told ? std::atoi(told) : 1;
    if (errno != EAGAIN || attempt >= kAttempts) return refused();
    setenv(kAttempt, std::to_string(attempt + 1).c_str(), 1);
    execv("/proc/self/exe", argv);
    fail("cannot start anew");
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc > 1 && std::string(argv[1]) == "resume") return resume(argc, argv);
        if (argc < 3) usage();
        Walker walker(std::stoul(argv[1]), std::stoull(argv[2]), argc > 3);
        say("ready: pages=" + std::to_string((std::stoul(argv[1]) << 20) / 4096));
        walker.obey();
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "fork-walker: %s\n", error.what());
        return 1;
    }
}
