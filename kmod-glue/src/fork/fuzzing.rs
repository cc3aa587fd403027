//! The body of the fuzz target `ioctl_args`, which `fuzz/` compiles for a host together with what it tests.

use zerocopy::IntoBytes;

use super::arguments::{Call, Refused};

/// As in `shim/fork_module.c`: the longest argument in bytes.
const ARGUMENT_MAX: usize = 192;

/// Of each call of `uapi/mitosis.h`: its number, its argument's length, which bytes of it are reserved, where its flags lie
/// and which there are.
struct Rule {
    number: u32,
    len: usize,
    reserved: Option<usize>,
    flags: Option<(usize, u32)>,
}

const RULES: [Rule; 10] = [
    rule(0x4010_b501, 16, Some(12), Some((8, 1))),
    rule(0xc050_b502, 80, Some(68), Some((12, 2))),
    rule(0x4008_b503, 8, None, None),
    rule(0xc010_b504, 16, None, None),
    rule(0xc048_b505, 72, None, None),
    rule(0xc048_b506, 72, Some(20), Some((64, 3))),
    rule(0x4018_b508, 24, Some(20), None),
    rule(0x4018_b509, 24, Some(20), None),
    rule(0xc020_b50a, 32, Some(20), None),
    rule(0x80a0_b50b, 160, None, None),
];

const PREPARE: u32 = 0xc050_b502;

const fn rule(
    number: u32,
    len: usize,
    reserved: Option<usize>,
    flags: Option<(usize, u32)>,
) -> Rule {
    Rule {
        number,
        len,
        reserved,
        flags,
    }
}

/// Takes the first four bytes for a call's number, and what follows for what lies at its address, at the end of what the
/// caller may read: what the module takes, the header allows; what the header allows, it takes; and what it refuses, it
/// leaves as it is.
pub fn ioctl_args(input: &[u8]) {
    let Some((number, memory)) = input.split_first_chunk() else {
        return;
    };
    let number = u32::from_le_bytes(*number);
    let mut words = [0_u64; ARGUMENT_MAX / size_of::<u64>()];
    let len = (number >> 16 & 0x3fff) as usize;
    // The shim's part: the kind of device, the length, copy_from_user.
    let Some(argument) = words.as_mut_bytes().get_mut(..len) else {
        return;
    };
    if number >> 8 & 0xff != 0xb5 {
        return;
    }
    if number >> 30 & 1 != 0 {
        match memory.get(..len) {
            Some(given) => argument.copy_from_slice(given),
            None => return,
        }
    }
    let mut before = [0; ARGUMENT_MAX];
    before[..len].copy_from_slice(argument);
    let word = |at: usize| u32::from_ne_bytes(before[at..at + 4].try_into().unwrap());
    let allowed = RULES.iter().find(|rule| rule.number == number).map(|rule| {
        assert_eq!(rule.len, len);
        rule.reserved.is_none_or(|at| word(at) == 0)
            && rule.flags.is_none_or(|(at, known)| word(at) & !known == 0)
            && (number != PREPARE || before[..8] != [0; 8])
    });
    match (Call::of(number, argument), allowed) {
        (Ok(call), Some(true)) => assert_eq!(bytes(&call), &before[..len]),
        (Err(Refused::NoSuchCall), None) | (Err(Refused::Invalid), Some(false)) => {}
        (taken, _) => panic!(
            "call {number:#x} of {:?}: {:?}",
            &before[..len],
            taken.err()
        ),
    }
    assert_eq!(
        words.as_bytes(),
        before,
        "who is refused finds what it gave"
    );
}

/// What the module takes for the argument.
fn bytes<'a>(call: &'a Call<'_>) -> &'a [u8] {
    match call {
        Call::Freeze(it) => it.as_bytes(),
        Call::Prepare(it) => it.as_bytes(),
        Call::Unprepare(it) => it.as_bytes(),
        Call::List(it) => it.as_bytes(),
        Call::Query(it) => it.as_bytes(),
        Call::Open(it) => it.as_bytes(),
        Call::Connect(it) | Call::Disconnect(it) => it.as_bytes(),
        Call::Ping(it) => it.as_bytes(),
        Call::Stats(it) => it.as_bytes(),
    }
}

/// Calls `each` with the name and the bytes of each seed of `ioctl_args`' corpus.
pub fn ioctl_args_seeds(each: &mut dyn FnMut(&str, &[u8])) {
    let names = [
        "freeze",
        "prepare",
        "unprepare",
        "list",
        "query",
        "open",
        "connect",
        "disconnect",
        "ping",
        "stats",
    ];
    for (name, rule) in names.into_iter().zip(&RULES) {
        let mut seed = [0; 4 + ARGUMENT_MAX];
        seed[..4].copy_from_slice(&rule.number.to_le_bytes());
        seed[4] = 7;
        let seed = &mut seed[..4 + rule.len];
        each(name, seed);
        if let Some(at) = rule.reserved {
            seed[4 + at] = 1;
            each(&format!("{name}-reserved"), seed);
            seed[4 + at] = 0;
        }
        if let Some((at, known)) = rule.flags {
            seed[4 + at] = known as u8;
            each(&format!("{name}-flags"), seed);
            seed[4 + at + 3] = 0x80;
            each(&format!("{name}-unknown-flag"), seed);
        }
    }
    each("longer-than-any", &[1, 0xb5, 0xff, 0xff, 0, 0]);
    each(
        "of-another-size",
        &[
            1, 0xb5, 0x18, 0x40, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0,
        ],
    );
    each("at-the-end-of-memory", &[2, 0xb5, 0x50, 0xc0, 7, 0]);
}
