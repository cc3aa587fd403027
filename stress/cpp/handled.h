// What a child may do with its memory as any process may, and what others may do with a child. None of it may change what
// nobody changes: each returns how many pages, or words of another's account of them, were wrong.
#pragma once

#include <cstddef>

#include "known.h"

// Gives up six pages of every thirty-two, before and after others near them are touched: zeros are there then.
std::size_t give_up(const Known& memory);
// Protects, moves and shares memory that has been touched, and such that has not, and asks for huge pages.
std::size_t handle(const Known& memory);
// Threads look at pages all at once while another gives some up.
std::size_t touch_by_threads(const Known& memory);
// A debugger's work on a copy of this process: its memory, and a breakpoint.
std::size_t trace_a_copy(const Known& memory);
// What a copy that aborts leaves in its core file.
std::size_t dump_a_copy(const Known& memory);
