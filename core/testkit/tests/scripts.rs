//! Stories that proptest makes up and, if one goes wrong, shortens. What it then prints is the
//! whole script with its seed, which `the_last_failure` below plays with a trace.

use mitosis_testkit::call::Work;
use mitosis_testkit::endpoint::Settings;
use mitosis_testkit::network::{Faults, Reception};
use mitosis_testkit::random::Chance;
use mitosis_testkit::scenario::{Failure, Report, Script, Step};
use mitosis_testkit::world::Order;
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn settings() -> impl Strategy<Value = Settings> {
    let datagram_len = prop_oneof![Just(256), Just(1024), Just(2048), Just(4096)];
    let slots = prop_oneof![Just(1), Just(2), Just(4), Just(8)];
    (datagram_len, slots, 1..=16_u16, any::<bool>()).prop_map(
        |(datagram_len, slots, credits, keyed)| Settings {
            datagram_len,
            slots,
            credits,
            keyed,
            ..Settings::PATIENT
        },
    )
}

fn calls() -> impl Strategy<Value = Step> {
    let work = prop_oneof![
        4 => Just(Work::Immediate),
        1 => Just(Work::Late),
        1 => Just(Work::Failing),
    ];
    let len = || prop_oneof![4 => 24..100_u32, 1 => 100..20_000_u32];
    (0..4_u32, 1..20_u32, work, len(), len()).prop_map(|(client, count, work, request, reply)| {
        Step::Calls(client, Order::of(count, work, request, reply))
    })
}

fn wires() -> impl Strategy<Value = Faults> {
    let few = || 0..30_u32;
    let detour_us = prop_oneof![Just(100_u64), Just(3_000), Just(100_000)];
    (
        0..45_u32,
        few(),
        few(),
        few(),
        0..1_000_u64,
        0..5_000_u64,
        detour_us,
    )
        .prop_map(
            |(loss, duplication, reordering, corruption, delay_us, rate, detour_us)| Faults {
                detour_ns: detour_us * 1_000,
                loss: Chance::percent(loss.into()),
                duplication: Chance::percent(duplication.into()),
                reordering: Chance::percent(reordering.into()),
                corruption: Chance::percent(f64::from(corruption) / 10.0),
                delay_ns: delay_us * 1_000,
                bytes_per_us: rate,
                ..Faults::NONE
            },
        )
}

/// What excuses nothing: every call must end in its answer.
fn calm() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => calls(),
        2 => (1..20_u32).prop_map(Step::Milliseconds),
        1 => wires().prop_map(Step::Wires),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => calm(),
        1 => (0..4_u32).prop_map(Step::CutClient),
        1 => (0..4_u32).prop_map(Step::HealClient),
        1 => Just(Step::CutServer),
        1 => Just(Step::HealServer),
        1 => (0..4_u32).prop_map(Step::CrashClient),
        1 => (0..4_u32).prop_map(Step::RestartClient),
        1 => (0..4_u32).prop_map(Step::LeaveClient),
        1 => Just(Step::CrashServer),
        2 => Just(Step::RestartServer),
    ]
}

fn impatient() -> impl Strategy<Value = Settings> {
    settings().prop_map(|settings| Settings {
        datagram_len: settings.datagram_len,
        slots: settings.slots,
        credits: settings.credits,
        keyed: settings.keyed,
        ..Settings::IMPATIENT
    })
}

fn script(
    settings: impl Strategy<Value = Settings>,
    step: impl Strategy<Value = Step>,
) -> impl Strategy<Value = Script> {
    let steps = prop::collection::vec(step, 1..30);
    (any::<u64>(), 1..=4_u32, settings, steps).prop_map(|(seed, clients, settings, steps)| Script {
        seed,
        clients,
        settings,
        reception: Reception::INSTANT,
        steps,
    })
}

/// Plays it twice: the second time must be like the first, and shows what happened if it failed.
fn play(script: &Script) -> Result<Report, TestCaseError> {
    let fail = |failure: Box<Failure>| TestCaseError::fail(failure.to_string());
    let report = script
        .play(false)
        .map_err(|failure| match script.play(true) {
            Err(traced) => fail(traced),
            Ok(_) => TestCaseError::fail(format!("{failure}, but not again")),
        })?;
    prop_assert_eq!(script.play(false).map_err(fail)?, report);
    Ok(report)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn while_nobody_crashes_every_call_is_answered(script in script(settings(), calm())) {
        let report = play(&script)?;
        prop_assert_eq!(report.tally.answered(), report.tally.ordered);
        prop_assert_eq!(report.tally.executed, report.tally.ordered);
    }

    #[test]
    fn whatever_happens_calls_end_once_and_are_executed_at_most_once(
        script in script(prop_oneof![settings(), impatient()], any_step())
    ) {
        play(&script)?;
    }

    #[test]
    fn damaged_datagrams_that_arrive_do_no_harm_but_to_contents(
        script in script(impatient(), any_step()),
        corruption in 1..40_u32,
    ) {
        let mut script = script;
        for step in &mut script.steps {
            if let Step::Wires(faults) = step {
                faults.damaged_arrive = true;
                faults.corruption = Chance::percent(corruption.into());
            }
        }
        play(&script)?;
    }

    #[test]
    fn a_slow_server_with_a_small_ring_answers_every_call(
        script in script(settings(), calm()),
        ring in 8..64_u32,
        service_us in 1..20_u64,
    ) {
        let mut script = script;
        script.reception = Reception { ring, service_ns: service_us * 1000 };
        play(&script)?;
    }
}

fn story(steps: Vec<Step>) -> Script {
    Script {
        seed: 1,
        clients: 2,
        settings: Settings::PATIENT,
        reception: Reception::INSTANT,
        steps,
    }
}

#[test]
fn without_faults_nothing_is_sent_in_vain() {
    let calls = Order::of(100, Work::Immediate, 64, 64);
    let report = story(vec![Step::Calls(0, calls)]).play(false).unwrap();
    assert_eq!(report.tally.replied, 100);
    assert_eq!(report.tally.sessions, 2);
    let handshakes = 2 * 4;
    let sent = report.traffic.sent;
    assert!((200..=200 + handshakes).contains(&sent), "{sent}");
}

#[test]
fn a_restarted_server_is_found_again_and_executes_nothing_twice() {
    let calls = Order::of(1000, Work::Immediate, 64, 64);
    let report = story(vec![
        Step::Calls(0, calls),
        Step::Calls(1, calls),
        Step::Milliseconds(1),
        Step::CrashServer,
        Step::Milliseconds(10),
        Step::RestartServer,
    ])
    .play(false)
    .unwrap();
    assert_eq!(report.tally.sessions, 4);
    assert!(report.tally.closed > 0, "{:?}", report.tally);
    assert_eq!(report.tally.ended(), 2000);
    assert!(report.virtual_ns < 5000 * MS);
}

#[test]
fn a_restarted_client_is_another_client() {
    let calls = Order::of(1000, Work::Immediate, 64, 64);
    let report = story(vec![
        Step::Calls(0, calls),
        Step::Milliseconds(1),
        Step::CrashClient(0),
        Step::Milliseconds(1),
        Step::RestartClient(0),
    ])
    .play(false)
    .unwrap();
    assert_eq!(report.tally.sessions, 3);
    assert_eq!(report.tally.abandoned, 4);
    assert_eq!(report.tally.ended(), 1000);
}

#[test]
fn seeds_differ_and_stand_for_the_same_run_each_time() {
    let run = |seed| {
        let mut script = story(vec![
            Step::Wires(Faults {
                loss: Chance::percent(30.0),
                ..Faults::NONE
            }),
            Step::Calls(0, Order::of(50, Work::Late, 64, 3000)),
        ]);
        script.seed = seed;
        script.play(false).unwrap()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).fingerprint, run(2).fingerprint);
}

/// To look into a failure: paste the script that proptest printed in place of this one.
#[test]
#[ignore = "prints a trace for people"]
fn the_last_failure() {
    let script = story(vec![Step::Calls(0, Order::of(3, Work::Immediate, 64, 64))]);
    if let Err(failure) = script.play(true) {
        panic!("{failure}");
    }
}
