// The walker of `make fork-faults` and `make bench-fork`: a process with known memory that does, on either side of a remote
// fork, what it is told, a line at a time, and says what came of it and how long it took. `fork-walker cycle` makes children
// of it one after another, and lets each prove what it is.
//
// Each page's words follow from a secret and the page's number, so that a child needs nothing to tell a right page from a
// wrong one, and a page of zeros from either.

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <ctime>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "handled.h"
#include "known.h"
#include "mitosis_fork.h"

namespace {

constexpr std::size_t kProgress = 512;  // pages between two lines that say how far it is
constexpr int kAttempts = 20;           // at a process whose addresses leave room for the seed's vdso
constexpr char kAttempt[] = "WALKER_ATTEMPT";

std::uint64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1000000000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// Microseconds, as many as a child's number has room for.
std::uint32_t now_us() { return static_cast<std::uint32_t>(now_ns() / 1000); }

void write_all(int fd, const std::string& text, const char* what) {
    for (std::size_t at = 0; at < text.size();) {
        const ssize_t written = write(fd, text.data() + at, text.size() - at);
        if (written < 0 && errno != EINTR) fail(what);
        if (written > 0) at += static_cast<std::size_t>(written);
    }
}

// Unbuffered: what a buffer held, a child would have too.
void say(const std::string& line) { write_all(1, line + "\n", "standard output"); }

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

// A checksum of pages in which each word's place counts.
class Sum {
public:
    void word(std::uint64_t value) {
        sum_ = (sum_ ^ value) * 0x9fb21c651e98df25;
        sum_ = (sum_ << 29) | (sum_ >> 35);
    }
    // For whoever asks with a number of its own, the child of this number.
    std::uint64_t proof(std::uint64_t nonce, std::uint32_t child) const {
        return mix(nonce ^ mix(sum_ ^ mix(child)));
    }

private:
    std::uint64_t sum_ = 0x243f6a8885a308d3;
};

class Walker {
public:
    Walker(std::size_t mib, std::uint64_t secret, bool small) : memory_(mib, secret, small) {}

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
            else if (what == "prepare") {
                std::string how;
                words >> how;
                prepare(how == "wait" ? MITOSIS_PREPARE_WAIT : 0);
            }
            else if (what == "unprepare") unprepare();
            else if (what == "compare") compare(number(1));
            else if (what == "hold") hold(number(0));
            else if (what == "desert") desert();
            else if (what == "let") let();
            else if (what == "kill") kill_held();
            else if (what == "share") share();
            else if (what == "spoil") spoil();
            else if (what == "drop") found(give_up(memory_));
            else if (what == "handle") found(handle(memory_));
            else if (what == "threads") found(touch_by_threads(memory_));
            else if (what == "trace") found(trace_a_copy(memory_));
            else if (what == "dump") found(dump_a_copy(memory_));
            else if (what == "exec") exec_anew();
            else if (what == "prove") prove(number(0));
            else if (what == "read" || what == "touch" || what == "write") {
                const std::size_t first = number(0);
                const std::size_t count = std::min<std::size_t>(number(memory_.pages()), memory_.pages());
                const std::size_t stride = std::max<std::size_t>(number(1), 1);
                walk(what, first, count, stride);
            } else throw std::runtime_error("walker: what is " + line + "?");
        }
    }

private:
    // read looks at every word, touch at one a page; write changes one a page, and changes it back.
    void walk(const std::string& what, std::size_t first, std::size_t count, std::size_t stride) {
        std::vector<std::uint64_t> each;
        each.reserve(count);
        std::size_t wrong = 0, walked = 0;
        const std::uint64_t begun = now_ns();
        for (std::size_t page = first; page < memory_.pages() && walked < count; page += stride, ++walked) {
            volatile std::uint64_t* words = memory_.at(page);
            const std::uint64_t before = now_ns();
            if (what == "write") words[7] = words[7] ^ before;
            const std::uint64_t found = words[0];
            const std::uint64_t after = now_ns();
            each.push_back(after - before);
            if (what == "write") words[7] = words[7] ^ before;
            bool right_page = found == memory_.right(page, 0);
            if (what != "touch")
                for (std::size_t i = 1; i < kPageWords; ++i) right_page &= words[i] == memory_.right(page, i);
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

    void found(std::size_t wrong) {
        say("walked: pages=" + std::to_string(memory_.pages()) + " wrong=" + std::to_string(wrong));
    }

    // Becomes a program with memory of its own, which a child may as anybody.
    [[noreturn]] void exec_anew() {
        execl("/proc/self/exe", "fork-walker", "1", "1", static_cast<char*>(nullptr));
        fail("exec");
    }

    // Forks, prepares, and prepares until it has frozen, in turn, and says the medians.
    void compare(std::size_t times) {
        std::vector<std::uint64_t> forked, heard, named, frozen;
        for (std::size_t i = 0; i < times; ++i) {
            const auto [returned, ran] = fork_once();
            forked.push_back(returned);
            heard.push_back(ran);
            named.push_back(prepare_once(0));
            frozen.push_back(prepare_once(MITOSIS_PREPARE_WAIT));
        }
        const auto median = [](std::vector<std::uint64_t>& each) {
            std::sort(each.begin(), each.end());
            return std::to_string(each[each.size() / 2]);
        };
        say("compared: ns=" + median(named) + " frozen_ns=" + median(frozen) + " forked_ns=" + median(forked) +
            " heard_ns=" + median(heard));
    }

    // Nobody resumes what it makes.
    std::uint64_t prepare_once(std::uint32_t flags) {
        const mitosis_prepare_options options{0, flags, 0};
        mitosis_seed seed{};
        const std::uint64_t begun = now_ns();
        const int who = mitosis_prepare(&options, &seed);
        const std::uint64_t took = now_ns() - begun;
        if (who != 0 || mitosis_unprepare(&seed) != 0)
            throw std::runtime_error(std::string("cannot be prepared and unprepared: ") + mitosis_error());
        return took;
    }

    // How long fork() takes until it returns, and until the copy runs.
    std::pair<std::uint64_t, std::uint64_t> fork_once() {
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
        return {forked - begun, heard - begun};
    }

    void prepare(std::uint32_t flags) {
        const mitosis_prepare_options options{0, flags, 0};
        const std::uint64_t begun = now_ns();
        const int who = mitosis_prepare(&options, &seed_);
        const std::uint64_t took = now_ns() - begun;
        if (who < 0) throw std::runtime_error(std::string("cannot be prepared: ") + mitosis_error());
        if (who == 1) say_begun();
        else say_prepared(took);
    }

    void say_begun() const {
        // The number is the time at which the resumer began: the same machine's clock.
        const std::uint32_t us = now_us() - seed_.child;
        say("begun: us=" + std::to_string(us));
    }

    void say_prepared(std::uint64_t took) const {
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

    // As prepare, with a copy that is held up on its way until it is let go, or, with a lease, until its parent is gone.
    void hold(std::uint64_t lease_ms) {
        const std::uint64_t token = begin_copy(lease_ms != 0);
        if (token == 0) return;
        const std::uint64_t begun = now_ns();
        const mitosis_prepare_options options{lease_ms, 0, 0};
        if (mitosis_await_frozen(token, seed_.pid, &options, &seed_) != 0)
            throw std::runtime_error(std::string("cannot be prepared: ") + mitosis_error());
        say_prepared(now_ns() - begun);
    }

    // A copy that freezes when its parent is gone, which has told nobody of it.
    void desert() {
        if (begin_copy(true) != 0) say("deserted: pid=" + std::to_string(seed_.pid));
    }

    // Forks a copy that waits before it freezes. Its token, and 0 in a child.
    std::uint64_t begin_copy(bool outlives) {
        int gate[2];
        std::uint64_t token;
        // The device is closed before the gate where the process ends: the copy freezes through a file that nobody else has.
        if (mitosis_token(&token) != 0) throw std::runtime_error(mitosis_error());
        if (pipe(gate) != 0) fail("pipe");
        const pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid == 0) {
            char word;
            close(gate[1]);
            const ssize_t got = read(gate[0], &word, 1);
            if (got < 0 || (got == 0 && !outlives)) _exit(1);
            if (mitosis_freeze(token, 0, &seed_.child) != 1) {
                say(std::string("not frozen: ") + mitosis_error());
                _exit(1);
            }
            say_begun();
            return 0;
        }
        close(gate[0]);
        gate_ = gate[1];
        seed_.pid = pid;
        return token;
    }

    // Lets it go, and where that is its end, waits for it.
    void let() {
        const char word = 1;
        if (write(gate_, &word, 1) != 1) fail("the copy");
        close(gate_);
        mitosis_seed_info info{};
        info.seed = seed_.id;
        if (mitosis_query(&info) == 0) return say("let: frozen=1 chunks=" + std::to_string(info.chunks));
        say("let: frozen=0 status=" + std::to_string(end_of_copy()));
    }

    void kill_held() {
        if (::kill(seed_.pid, SIGKILL) != 0) fail("kill");
        close(gate_);
        say("killed: status=" + std::to_string(end_of_copy()));
    }

    int end_of_copy() const {
        int status = 0;
        if (waitpid(seed_.pid, &status, __WALL) != seed_.pid) fail("waitpid");
        return status;
    }

    // Something that cannot be carried.
    void share() {
        void* shared = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (shared == MAP_FAILED) fail("mmap");
        mitosis_seed seed{};
        if (mitosis_prepare(nullptr, &seed) >= 0) throw std::runtime_error("shared memory is carried");
        munmap(shared, 4096);
        say(std::string("refused: ") + mitosis_error());
    }

    void unprepare() {
        const std::uint64_t begun = now_ns();
        if (mitosis_unprepare(&seed_) != 0)
            throw std::runtime_error(std::string("cannot be unprepared: ") + mitosis_error());
        say("unprepared: ns=" + std::to_string(now_ns() - begun));
    }

    // From what is found in each page, of which every fourth is written to before.
    void prove(std::uint64_t nonce) {
        for (int turn = 0; turn < 2; ++turn)
            for (std::size_t page = 0; page < memory_.pages(); page += 4) {
                volatile std::uint64_t* words = memory_.at(page);
                words[7] = words[7] ^ nonce;
            }
        Sum sum;
        for (std::size_t i = 0; i < memory_.pages() * kPageWords; ++i) sum.word(memory_.words()[i]);
        say("proof: value=" + std::to_string(sum.proof(nonce, seed_.child)));
    }

    // What the parent does to its own memory, no child sees. Done twice, it is as before.
    void spoil() {
        for (std::size_t page = 0; page < memory_.pages(); ++page) *memory_.at(page) ^= ~0ull;
        say("spoilt: pages=" + std::to_string(memory_.pages()));
    }

    Known memory_;
    mitosis_seed seed_{};
    int gate_ = -1;
};

[[noreturn]] void usage() {
    std::fprintf(stderr,
                 "usage: fork-walker MIB SECRET [small]\n"
                 "       fork-walker resume GID SERVICE ID GENERATION CAPABILITY|- [PREFETCH [eager]]\n"
                 "       fork-walker cycle GID SERVICE MIB SECRET\n"
                 "  makes children for each line `seed ID GENERATION CAPABILITY FIRST COUNT ANEW` that it reads, numbered from\n"
                 "  FIRST: COUNT of them, of which ANEW each open the seed for themselves\n");
    std::exit(2);
}

int refused() {
    say(std::string("refused: ") + mitosis_error());
    return 1;
}

mitosis_capability capability_of(const std::string& digits) {
    if (digits.size() != 32) usage();
    mitosis_capability capability{};
    for (std::size_t i = 0; i < 16; ++i)
        capability.bytes[i] = static_cast<std::uint8_t>(std::stoul(digits.substr(2 * i, 2), nullptr, 16));
    return capability;
}

// Something of this process lies where the seed has its vdso: another may do better.
[[noreturn]] void start_anew(char** argv) {
    const char* told = getenv(kAttempt);
    const int attempt = told ? std::atoi(told) : 1;
    if (attempt >= kAttempts) throw std::runtime_error("the seed's vdso finds no room");
    setenv(kAttempt, std::to_string(attempt + 1).c_str(), 1);
    execv("/proc/self/exe", argv);
    fail("cannot start anew");
}

// Children of one parent's seeds, one after another.
class Cycle {
public:
    Cycle(const std::string& gid, std::uint32_t service, std::size_t mib, std::uint64_t secret) : service_(service) {
        if (mitosis_gid(gid.c_str(), gid_) != 0) throw std::runtime_error(mitosis_error());
        for (std::size_t page = 0; page < (mib << 20) / 4096; ++page)
            for (std::size_t i = 0; i < kPageWords; ++i) sum_.word(right(secret, page, i));
    }

    // False where this process cannot become a child, and another may.
    bool obey(const std::string& line) {
        std::istringstream words(line);
        std::string what, digits;
        std::uint32_t first = 0, count = 0, anew = 0;
        if (!(words >> what >> id_.id >> id_.generation >> digits >> first >> count >> anew) || what != "seed")
            throw std::runtime_error("walker: what is " + line + "?");
        capability_ = capability_of(digits);
        const std::uint64_t begun = now_ns();
        mitosis_image* image = nullptr;
        for (std::uint32_t number = first; number < first + count; ++number) {
            if (number - first >= anew && !image) image = open();
            if (!child(number, image)) return false;
        }
        if (image) mitosis_image_close(image);
        std::ostringstream said;
        said << "cycled: count=" << count << " ns=" << now_ns() - begun;
        say(said.str());
        return true;
    }

private:
    mitosis_image* open() const {
        mitosis_image* image = mitosis_open(gid_, service_, id_, &capability_, 0, 0);
        if (!image) throw std::runtime_error(std::string("cannot open the seed: ") + mitosis_error());
        return image;
    }

    // Forks, resumes, and compares what the child says.
    bool child(std::uint32_t number, const mitosis_image* image) const {
        constexpr int kOther = 75;
        int in[2], out[2];
        if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) fail("pipe");
        const pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid == 0) {
            if (dup2(in[0], 0) != 0 || dup2(out[1], 1) != 1) _exit(1);
            for (int fd : {in[0], in[1], out[0], out[1]}) close(fd);
            try {
                mitosis_resume(image ? image : open(), number, 0);
                if (errno == EAGAIN) _exit(kOther);
                throw std::runtime_error(mitosis_error());
            } catch (const std::exception& error) {
                std::fprintf(stderr, "fork-walker: child %u: %s\n", number, error.what());
                _exit(1);
            }
        }
        close(in[0]);
        close(out[1]);
        const std::uint64_t nonce = mix(now_ns() ^ number);
        write_all(in[1], "prove " + std::to_string(nonce) + "\nend\n", "a child's standard input");
        close(in[1]);
        std::string said;
        char bytes[512];
        for (ssize_t length; (length = read(out[0], bytes, sizeof bytes)) != 0;) {
            if (length < 0 && errno != EINTR) fail("a child's standard output");
            if (length > 0) said.append(bytes, static_cast<std::size_t>(length));
        }
        close(out[0]);
        int status = 0;
        if (waitpid(pid, &status, 0) != pid) fail("waitpid");
        if (WIFEXITED(status) && WEXITSTATUS(status) == kOther) return false;
        const std::string expected = "\nproof: value=" + std::to_string(sum_.proof(nonce, number)) + "\n";
        if (status != 0 || said.find(expected) == std::string::npos)
            throw std::runtime_error("child " + std::to_string(number) + " ended with status " + std::to_string(status) +
                                     " and is not its parent's continuation: it said " + said + ", and" + expected +
                                     "is right");
        return true;
    }

    std::uint8_t gid_[16];
    std::uint32_t service_;
    mitosis_seed_id id_{};
    mitosis_capability capability_{};
    Sum sum_;
};

int cycle(int argc, char** argv) {
    if (argc < 6) usage();
    // Of one that ended before, whose line it was.
    constexpr char kLine[] = "WALKER_LINE";
    signal(SIGPIPE, SIG_IGN);
    Cycle cycle(argv[2], static_cast<std::uint32_t>(std::stoul(argv[3])), std::stoul(argv[4]), std::stoull(argv[5]));
    const char* left = getenv(kLine);
    std::string line = left ? left : "";
    if (!left) say(std::string("ready: mib=") + argv[4]);
    while (left || hear(line)) {
        if (line == "end") break;
        if (!cycle.obey(line)) {
            setenv(kLine, line.c_str(), 1);
            start_anew(argv);
        }
        left = nullptr;
    }
    return 0;
}

// Becomes a child.
int resume(int argc, char** argv) {
    if (argc < 7) usage();
    std::uint8_t gid[16];
    if (mitosis_gid(argv[2], gid) != 0) return refused();
    const auto service = static_cast<std::uint32_t>(std::stoul(argv[3]));
    const mitosis_seed_id id{static_cast<std::uint32_t>(std::stoul(argv[4])),
                             static_cast<std::uint32_t>(std::stoul(argv[5]))};
    const bool entitled = std::string(argv[6]) != "-";
    const mitosis_capability capability = entitled ? capability_of(argv[6]) : mitosis_capability{};
    const auto prefetch = static_cast<std::uint32_t>(argc > 7 ? std::stoul(argv[7]) : 0);
    const std::uint32_t flags = argc > 8 ? MITOSIS_OPEN_EAGER : 0;

    say("opening: attempt=" + std::string(getenv(kAttempt) ? getenv(kAttempt) : "1"));
    const std::uint64_t begun = now_ns();
    mitosis_image* image = mitosis_open(gid, service, id, entitled ? &capability : nullptr, flags, prefetch);
    if (!image) return refused();
    say("opened: ns=" + std::to_string(now_ns() - begun));
    mitosis_resume(image, now_us(), 0);
    if (errno != EAGAIN) return refused();
    start_anew(argv);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc > 1 && std::string(argv[1]) == "resume") return resume(argc, argv);
        if (argc > 1 && std::string(argv[1]) == "cycle") return cycle(argc, argv);
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
