// Memory whose words all follow from a secret, so that whoever knows it needs nothing else to tell a right page from a wrong
// one, and a page of zeros from either.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <system_error>

#include <sys/mman.h>

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kPageWords = kPageBytes / 8;
constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15;

[[noreturn]] inline void fail(const std::string& what) {
    throw std::system_error(errno, std::generic_category(), what);
}

inline std::uint64_t mix(std::uint64_t value) {
    value += kStep;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

// What a word of a page is.
inline std::uint64_t right(std::uint64_t secret, std::size_t page, std::size_t word) {
    return mix(secret ^ page) + kStep * word;
}

class Known {
public:
    // `small`: without huge pages.
    Known(std::size_t mib, std::uint64_t secret, bool small) : pages_((mib << 20) / kPageBytes), secret_(secret) {
        // Whole chunks, so that the kernel may use huge pages.
        constexpr std::size_t kChunk = 2 << 20;
        void* raw = mmap(nullptr, (mib << 20) + kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (raw == MAP_FAILED) fail("mmap");
        const auto address = (reinterpret_cast<std::uintptr_t>(raw) + kChunk - 1) / kChunk * kChunk;
        words_ = reinterpret_cast<std::uint64_t*>(address);
        if (small && madvise(words_, mib << 20, MADV_NOHUGEPAGE) != 0) fail("madvise");
        for (std::size_t page = 0; page < pages_; ++page)
            for (std::size_t i = 0; i < kPageWords; ++i) at(page)[i] = right(page, i);
    }

    std::size_t pages() const { return pages_; }
    std::uint64_t* words() const { return words_; }
    std::uint64_t* at(std::size_t page) const { return words_ + page * kPageWords; }
    std::uint64_t right(std::size_t page, std::size_t word) const { return ::right(secret_, page, word); }

    // Whether what is at `place` is a page of this memory, by its ends.
    bool is(const void* place, std::size_t page) const {
        const volatile auto* words = static_cast<const volatile std::uint64_t*>(place);
        return words[0] == right(page, 0) && words[kPageWords - 1] == right(page, kPageWords - 1);
    }

    // How many of `count` pages at `place`, which are those from `first` on, are wrong.
    std::size_t wrong_at(const void* place, std::size_t first, std::size_t count) const {
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < count; ++i) wrong += !is(static_cast<const char*>(place) + i * kPageBytes, first + i);
        return wrong;
    }
    std::size_t wrong() const { return wrong_at(words_, 0, pages_); }

private:
    std::uint64_t* words_;
    std::size_t pages_;
    std::uint64_t secret_;
};
