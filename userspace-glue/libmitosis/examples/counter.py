#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR GPL-2.0-only
"""A counter that goes on, on another machine.

    ./counter.py                       prints how to resume it
    mitosis resume GID ID.GENERATION   on the other machine: counts on from there

Takes how many steps to count before and after.
"""

import os
import signal
import sys
import time

import mitosis


def count(who: str, counter: int, steps: int) -> int:
    for step in range(steps):
        if step:
            time.sleep(1)
        print(f"{who} on {os.uname().nodename}, pid {os.getpid()}: counter {counter}", flush=True)
        counter += 1
    return counter


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    counter = count("parent", 0, steps)
    seed = mitosis.prepare()
    if isinstance(seed, mitosis.Child):
        count(f"child {seed.number}", counter, steps)
        return
    with seed:
        print(f"seed {seed}\ncapability {seed.capability.hex()}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
