//! The body of the fuzz target `session_script`: bytes as a script, which is played against the model.

use arbitrary::{Arbitrary, Unstructured};

use crate::call::Work;
use crate::endpoint::Settings;
use crate::network::{Faults, Reception};
use crate::random::Chance;
use crate::scenario::{Script, Step};
use crate::world::Order;

/// A script of more steps tells no more than several of fewer.
const STEPS: usize = 40;

/// Plays the script that the bytes make. Whatever happens: calls end once and are executed at most once, replies are those
/// of their requests; and unless a cut, a crash, damage or impatience excuses it, every call ends in its answer, also where
/// strangers send what they overheard and changed.
pub fn session_script(bytes: &[u8]) {
    let Ok(script) = script(&mut Unstructured::new(bytes)) else {
        return;
    };
    if let Err(failure) = script.play(false) {
        let traced = script.play(true).err().unwrap_or(failure);
        panic!("{script:#?}\n{traced}");
    }
}

fn script(from: &mut Unstructured<'_>) -> arbitrary::Result<Script> {
    let base = match bool::arbitrary(from)? {
        true => Settings::PATIENT,
        false => Settings::IMPATIENT,
    };
    let mut settings = Settings {
        datagram_len: *from.choose(&[256, 1024, 2048, 4096])?,
        slots: 1 << from.int_in_range(0..=3)?,
        credits: from.int_in_range(1..=16)?,
        keyed: from.arbitrary()?,
        ..base
    };
    let clients = from.int_in_range(1..=4)?;
    let reception = match from.arbitrary()? {
        true => Reception::INSTANT,
        false => Reception {
            ring: from.int_in_range(8..=64)?,
            service_ns: from.int_in_range(1..=20_000)?,
        },
    };
    let seed = u64::from(u16::arbitrary(from)?);
    let mut steps = Vec::new();
    while !from.is_empty() && steps.len() < STEPS {
        steps.push(step(from)?);
    }
    // A datagram whose request's number is damaged uses that number up, and its call is not answered any more: it ends when
    // its client's patience does.
    let damages = |step: &Step| matches!(step, Step::Wires(faults) if faults.damaged_arrive);
    if steps.iter().any(damages) {
        settings.call_timeout_ns = Settings::IMPATIENT.call_timeout_ns;
    }
    // Without a key, whoever sends a Connect is entitled to a session, and a forged request in it to its execution.
    settings.keyed |= steps.iter().any(|step| matches!(step, Step::Forge(..)));
    Ok(Script {
        seed,
        clients,
        settings,
        reception,
        steps,
    })
}

fn step(from: &mut Unstructured<'_>) -> arbitrary::Result<Step> {
    let client = u32::from(u8::arbitrary(from)? & 3);
    Ok(match from.int_in_range(0..=18)? {
        0..=3 => Step::Calls(client, order(from)?),
        4..=6 => Step::Milliseconds(from.int_in_range(0..=40)?),
        7 => Step::Wires(wires(from)?),
        8 => Step::CutClient(client),
        9 => Step::HealClient(client),
        10 => Step::CutServer,
        11 => Step::HealServer,
        12 => Step::CrashClient(client),
        13 => Step::RestartClient(client),
        14 => Step::LeaveClient(client),
        15 => Step::CrashServer,
        16 => Step::RestartServer,
        17 => Step::Repeat(u8::arbitrary(from)?.into()),
        _ => Step::Forge(u8::arbitrary(from)?.into(), u16::arbitrary(from)?.into()),
    })
}

fn order(from: &mut Unstructured<'_>) -> arbitrary::Result<Order> {
    let work = *from.choose(&[Work::Immediate, Work::Immediate, Work::Late, Work::Failing])?;
    let most = if from.ratio(1, 5)? { 20_000 } else { 100 };
    let count = from.int_in_range(1..=20)?;
    let request_len = from.int_in_range(24..=most)?;
    let reply_len = from.int_in_range(0..=most)?;
    Ok(Order::of(count, work, request_len, reply_len))
}

fn wires(from: &mut Unstructured<'_>) -> arbitrary::Result<Faults> {
    let mut chance = |most: u32| -> arbitrary::Result<Chance> {
        Ok(Chance::percent(from.int_in_range(0..=most)?.into()))
    };
    let (loss, duplication, reordering) = (chance(45)?, chance(30)?, chance(30)?);
    let corruption = chance(10)?;
    Ok(Faults {
        loss,
        duplication,
        reordering,
        corruption,
        damaged_arrive: from.ratio(1, 8)?,
        delay_ns: from.int_in_range(0..=1_000_000)?,
        detour_ns: *from.choose(&[100_000, 3_000_000, 100_000_000])?,
        bytes_per_us: from.int_in_range(0..=5_000)?,
        ..Faults::NONE
    })
}
