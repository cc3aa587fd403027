//! Loads in small, as `simulate` runs them in large.

use mitosis_testkit::endpoint::Settings;
use mitosis_testkit::network::{Faults, Reception};
use mitosis_testkit::random::Chance;
use mitosis_testkit::scenario::{Crashes, Load, Report};
use mitosis_testkit::world::Order;

const MS: u64 = 1_000_000;

fn load(seed: u64) -> Load {
    Load {
        seed,
        clients: 4,
        calls: 1000,
        order: Order {
            count: 0,
            failing: Chance::percent(5.0),
            late: Chance::percent(5.0),
            request_len: (24, 64),
            reply_len: (0, 64),
            large: Chance::percent(5.0),
            large_len: 10_000,
        },
        settings: Settings::PATIENT,
        faults: Faults {
            loss: Chance::percent(30.0),
            duplication: Chance::percent(10.0),
            reordering: Chance::percent(10.0),
            corruption: Chance::percent(1.0),
            ..Faults::NONE
        },
        reception: Reception::INSTANT,
        crashes: None,
    }
}

/// A failure tells its seed, and what happened last.
fn run(load: &Load) -> Report {
    load.run(false).unwrap_or_else(|failure| {
        let traced = load.run(true).err().unwrap_or(failure);
        panic!("{traced}")
    })
}

#[test]
fn every_call_is_answered_at_30_percent_loss() {
    for seed in 0..10 {
        let tally = run(&load(seed)).tally;
        assert_eq!((tally.answered(), tally.executed), (1000, 1000));
    }
}

#[test]
fn nothing_is_executed_twice_whoever_crashes() {
    let mut total = Report::default();
    for seed in 0..10 {
        let crashes = Some(Crashes {
            every_ns: MS,
            down_ns: MS,
            times: 20,
        });
        let mut load = load(seed);
        load.crashes = crashes;
        load.faults.detour_ns = 3 * MS;
        total.add(&run(&load));
    }
    let tally = total.tally;
    assert_eq!((tally.ended(), tally.executed_twice), (10_000, 0));
    assert!(tally.closed > 0 && tally.abandoned > 0, "{tally:?}");
}

#[test]
fn a_run_is_the_same_each_time() {
    assert_eq!(run(&load(7)), run(&load(7)));
    assert_ne!(run(&load(7)).fingerprint, run(&load(8)).fingerprint);
}

/// 64 clients with 8 slots could have 512 requests in a ring of 192.
#[test]
fn credits_keep_a_receive_ring_from_overflowing() {
    let overrun = |receive_buffers| {
        let load = Load {
            clients: 64,
            calls: 64 * 50,
            settings: Settings {
                slots: 8,
                sessions: 64,
                receive_buffers,
                // Longer than a full ring takes: nothing is sent again while it waits.
                rto_ns: (10 * MS, 10 * MS, 100 * MS),
                ..Settings::PATIENT
            },
            faults: Faults::NONE,
            reception: Reception {
                ring: 192,
                service_ns: 1000,
            },
            ..load(1)
        };
        run(&load).traffic.overrun
    };
    assert_eq!(overrun(128), 0);
    assert!(overrun(1 << 16) > 0);
}

#[test]
fn damaged_datagrams_that_arrive_do_not_bring_a_run_down() {
    for seed in 0..10 {
        let mut load = load(seed);
        load.settings = Settings::IMPATIENT;
        load.faults.damaged_arrive = true;
        load.faults.corruption = Chance::percent(20.0);
        let report = run(&load);
        assert!(report.tally.ended() >= 1000, "{:?}", report.tally);
    }
}

/// The longest messages that there are, over each datagram length that InfiniBand knows.
#[test]
fn messages_of_8_mib_arrive_whole() {
    const LONGEST: u32 = 8 << 20;
    for datagram_len in [1024, 2048, 4096] {
        let mut load = load(u64::from(datagram_len));
        load.clients = 1;
        load.calls = 2;
        load.order.large = Chance::NEVER;
        load.order.failing = Chance::NEVER;
        load.order.request_len = (LONGEST, LONGEST);
        load.order.reply_len = (LONGEST, LONGEST);
        load.settings.datagram_len = datagram_len;
        load.settings.max_message_len = LONGEST;
        load.faults.loss = Chance::percent(5.0);
        assert_eq!(run(&load).tally.replied, 2);
    }
}
