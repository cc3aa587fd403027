// The parent of the lean-container test: a C++ program with state of every kind that a process has, which is prepared for
// remote fork, and whose continuations on other machines prove what they are.
//
// Its memory is made up from a secret, and summed up in one number, the state. The parent prints it. A child reads a
// nonce, computes the state anew from what it finds in its own memory, and answers with a mixture of both;
// stress/src/lean/proof.rs has the other half of the exchange.

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <unistd.h>
#include <unordered_map>
#include <vector>

#include "mitosis_fork.h"

namespace {

constexpr std::size_t kBlockWords = 8192;  // 64 KiB, so that blocks have neighbours of other kinds
constexpr std::size_t kPageWords = 512;
constexpr unsigned kRecords = 1000;

// The finalizer of SplitMix64.
std::uint64_t mix(std::uint64_t value) {
    value += 0x9e3779b97f4a7c15;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

// A checksum in which each word's place counts.
class Sum {
public:
    void word(std::uint64_t value) {
        sum_ = (sum_ ^ value) * 0x9fb21c651e98df25;
        sum_ = (sum_ << 29) | (sum_ >> 35);
    }
    void text(const std::string& text) {
        word(text.size());
        for (unsigned char c : text) word(c);
    }
    std::uint64_t value() const { return mix(sum_); }

private:
    std::uint64_t sum_ = 0x243f6a8885a308d3;
};

// Two kinds of record, so that a child calls through virtual tables.
class Record {
public:
    virtual ~Record() = default;
    virtual void sum(Sum& sum) const = 0;
};

class Number : public Record {
public:
    explicit Number(std::uint64_t value) : value_(value) {}
    void sum(Sum& sum) const override { sum.word(value_); }

private:
    std::uint64_t value_;
};

class Note : public Record {
public:
    explicit Note(std::string text) : text_(std::move(text)) {}
    void sum(Sum& sum) const override { sum.text(text_); }

private:
    std::string text_;
};

// Globals: constructed before main, initialised data, zeros.
std::map<std::uint64_t, std::string> by_number;
std::unordered_map<std::string, std::vector<std::uint64_t>> by_name;
std::uint64_t initialised[1024] = {1, 1, 2, 3, 5, 8, 13, 21};
std::uint64_t zeros[4096];

struct Diary {
    Diary() : lines(1, "begun") {}
    std::vector<std::string> lines;
    std::uint64_t pages = 0;
};
thread_local Diary diary;

std::string hexadecimal(std::uint64_t value) {
    std::ostringstream text;
    text << std::hex << std::setw(16) << std::setfill('0') << value;
    return text.str();
}

class State {
public:
    State(std::uint64_t secret, std::size_t working_set_mib, const std::string& file) {
        std::mt19937_64 random(secret);
        const std::size_t blocks = working_set_mib * ((1 << 20) / sizeof(std::uint64_t)) / kBlockWords;
        for (std::size_t i = 0; i < blocks; ++i) {
            std::vector<std::uint64_t> block(kBlockWords);
            for (auto& word : block) word = random();
            blocks_.push_back(std::move(block));
        }
        for (unsigned i = 0; i < kRecords; ++i) {
            const std::uint64_t value = random();
            if (value & 1) records_.push_back(std::make_unique<Number>(value));
            else records_.push_back(std::make_unique<Note>("note " + hexadecimal(value)));
            by_number[value] = hexadecimal(~value);
            by_name["name " + std::to_string(i)] = {value, mix(value)};
        }
        for (auto& word : initialised) word ^= random();
        zeros[17] = random();
        diary.pages = random();
        for (int i = 0; i < 100; ++i) diary.lines.push_back(hexadecimal(random()));

        file_ = open(file.c_str(), O_RDONLY | O_CLOEXEC);
        if (file_ < 0) throw std::system_error(errno, std::generic_category(), file);
        // Children go on from the middle of it.
        const off_t length = lseek(file_, 0, SEEK_END);
        if (lseek(file_, length / 2, SEEK_SET) < 0) throw std::system_error(errno, std::generic_category(), file);
    }

    // From all that there is. Leaves everything as it was.
    std::uint64_t sum() const {
        Sum sum;
        for (const auto& block : blocks_)
            for (auto word : block) sum.word(word);
        for (const auto& record : records_) record->sum(sum);
        for (const auto& [number, text] : by_number) {
            sum.word(number);
            sum.text(text);
        }
        for (unsigned i = 0; i < kRecords; ++i)
            for (auto word : by_name.at("name " + std::to_string(i))) sum.word(word);
        for (auto word : initialised) sum.word(word);
        for (auto word : zeros) sum.word(word);
        sum.word(diary.pages);
        for (const auto& line : diary.lines) sum.text(line);
        sum_of_file(sum);
        // An exception unwinds through frames that were entered on another machine.
        try {
            by_name.at("a name that is not there");
        } catch (const std::out_of_range&) {
            sum.word(1);
        }
        return sum.value();
    }

    // Changes one word of each page in so many percent of the blocks, and changes it back.
    void write(std::uint64_t pattern, unsigned percent) {
        for (int turn = 0; turn < 2; ++turn)
            for (std::size_t i = 0; i < blocks_.size() * percent / 100; ++i)
                for (std::size_t word = 0; word < kBlockWords; word += kPageWords) blocks_[i][word] ^= pattern;
    }

    // Changes something of every kind.
    void spoil() {
        for (auto& block : blocks_)
            for (auto& word : block) word = ~word;
        by_number.clear();
        records_.pop_back();
        diary.pages = 0;
        zeros[0] = 1;
        lseek(file_, 0, SEEK_SET);
    }

private:
    void sum_of_file(Sum& sum) const {
        const off_t at = lseek(file_, 0, SEEK_CUR);
        if (at < 0) throw std::system_error(errno, std::generic_category(), "the open file's offset");
        sum.word(static_cast<std::uint64_t>(at));
        unsigned char bytes[4096];
        for (;;) {
            const ssize_t length = read(file_, bytes, sizeof bytes);
            if (length < 0) throw std::system_error(errno, std::generic_category(), "the open file");
            if (length == 0) break;
            for (ssize_t i = 0; i < length; ++i) sum.word(bytes[i]);
        }
        lseek(file_, at, SEEK_SET);
    }

    std::vector<std::vector<std::uint64_t>> blocks_;
    std::vector<std::unique_ptr<Record>> records_;
    int file_ = -1;
};

// A child's whole life.
int prove(State& state, std::uint64_t child, unsigned write_percent) {
    std::cout << "begun" << std::endl;
    std::string line;
    if (!std::getline(std::cin, line)) throw std::runtime_error("nobody asked the child for a proof");
    const std::uint64_t nonce = std::stoull(line, nullptr, 16);
    state.write(nonce, write_percent);
    const std::uint64_t answer = mix(nonce ^ mix(state.sum() ^ mix(child)));
    std::cout << "proof " << hexadecimal(answer) << std::endl;
    return 0;
}

struct Options {
    std::size_t working_set_mib = 1;
    unsigned write_percent = 25;
    std::uint64_t secret = 0;
    std::string file;
    enum { kPrepare, kState, kFresh } mode = kPrepare;
};

[[noreturn]] void usage(int status) {
    (status ? std::cerr : std::cout)
        << "usage: lean-parent --file PATH [--working-set-mib N] [--write-percent N] [--secret HEX] [--state|--fresh]\n"
           "  prepares itself for remote fork, says so in one line, and stays until its standard input ends\n"
           "  --state  prints what a process of this secret has to prove, and ends\n"
           "  --fresh  proves it, as a process begun anew: child 0\n";
    std::exit(status);
}

Options parse(int argc, char** argv) {
    Options options;
    std::random_device random;
    options.secret = (static_cast<std::uint64_t>(random()) << 32) | random();
    auto number = [](const std::string& text, int base, std::uint64_t most) {
        std::size_t end = 0;
        const std::uint64_t value = std::stoull(text, &end, base);
        if (end != text.size() || value > most) throw std::out_of_range(text);
        return value;
    };
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--help") usage(0);
        else if (name == "--state") options.mode = Options::kState;
        else if (name == "--fresh") options.mode = Options::kFresh;
        else if (i + 1 == argc) usage(2);
        else if (name == "--file") options.file = argv[++i];
        else if (name == "--working-set-mib") options.working_set_mib = number(argv[++i], 10, 1 << 20);
        else if (name == "--write-percent") options.write_percent = number(argv[++i], 10, 100);
        else if (name == "--secret") options.secret = number(argv[++i], 16, UINT64_MAX);
        else usage(2);
    }
    if (options.file.empty()) usage(2);
    return options;
}

int run(const Options& options) {
    State state(options.secret, options.working_set_mib, options.file);
    if (options.mode == Options::kFresh) return prove(state, 0, options.write_percent);
    const std::uint64_t sum = state.sum();
    if (options.mode == Options::kState) {
        std::cout << hexadecimal(sum) << std::endl;
        return 0;
    }

    mitosis_seed seed{};
    // What it says below is known once the seed has frozen.
    const mitosis_prepare_options wait{0, MITOSIS_PREPARE_WAIT, 0};
    switch (mitosis_prepare(&wait, &seed)) {
    case 0:
        break;
    case 1:
        return prove(state, seed.child, options.write_percent);
    default:
        throw std::runtime_error(std::string("cannot be prepared: ") + mitosis_error());
    }
    std::ostringstream capability;
    for (auto byte : seed.capability.bytes)
        capability << std::hex << std::setw(2) << std::setfill('0') << static_cast<unsigned>(byte);
    std::cout << "prepared: seed=" << seed.id.id << " generation=" << seed.id.generation
              << " capability=" << capability.str() << " state=" << hexadecimal(sum)
              << " descriptor_len=" << seed.descriptor_len << " vmas=" << seed.vmas << " chunks=" << seed.chunks
              << std::endl;

    // What the parent does from here on, no child sees.
    state.spoil();
    for (std::string line; std::getline(std::cin, line);) {
    }
    if (mitosis_unprepare(&seed) != 0) throw std::runtime_error(std::string("cannot be unprepared: ") + mitosis_error());
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    try {
        options = parse(argc, argv);
    } catch (const std::exception& error) {
        std::cerr << "lean-parent: not a number in its range: " << error.what() << '\n';
        usage(2);
    }
    try {
        return run(options);
    } catch (const std::exception& error) {
        std::cerr << "lean-parent: " << error.what() << '\n';
        return 1;
    }
}
