//! One end that reads and writes, and another that may do anything.

use super::*;
use crate::sync::primitive::Ordering;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;
use zerocopy::IntoBytes;

struct Shared {
    lines: Vec<Line>,
    control: Control,
}

impl Shared {
    fn new(count: usize) -> Rc<Self> {
        Rc::new(Self {
            lines: (0..count).map(|_| Line::new()).collect(),
            control: Control::new(),
        })
    }
}

impl Memory for Rc<Shared> {
    fn lines(&self) -> &[Line] {
        &self.lines
    }
    fn control(&self) -> &Control {
        &self.control
    }
}

impl Memory for std::sync::Arc<Shared> {
    fn lines(&self) -> &[Line] {
        &self.lines
    }
    fn control(&self) -> &Control {
        &self.control
    }
}

const ROOM: usize = 512;

fn pop<M: Memory>(receiver: &mut Receiver<M, { ROOM / 8 }>) -> Option<Vec<u8>> {
    let len = receiver.pop().unwrap()?;
    Some(receiver.words().as_bytes()[..len].to_vec())
}

/// How many words of a datagram travel, and its first words.
fn travelling(datagram: &[u8], last: [u64; LEAD_WORDS]) -> (usize, [u64; LEAD_WORDS]) {
    let mut first = last;
    let mut travel = 0;
    for (index, bytes) in datagram.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_ne_bytes(word);
        if index >= LEAD_WORDS || std::mem::replace(&mut first[index], word) != word {
            travel += 1;
        }
    }
    (travel, first)
}

#[derive(Clone, Debug)]
enum Operation {
    Push(Vec<u8>, Vec<u8>),
    Pop,
    Group(u64),
    Show,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
    // A header that differs from the last one as that of the same call does.
    let alike = (any::<[u8; 2]>(), bytes(60)).prop_map(|([number, slot], payload)| {
        let mut header = vec![6; 40];
        (header[16], header[38]) = (number, slot % 4);
        Operation::Push(header, payload)
    });
    let operation = prop_oneof![
        3 => alike,
        1 => (bytes(100), bytes(100)).prop_map(|(header, payload)| Operation::Push(header, payload)),
        1 => (proptest::collection::vec(6..8_u8, 40), bytes(300))
            .prop_map(|(header, payload)| Operation::Push(header, payload)),
        4 => Just(Operation::Pop),
        1 => (0..6_u64).prop_map(Operation::Group),
        1 => Just(Operation::Show),
    ];
    proptest::collection::vec(operation, 0..100)
}

proptest! {
    #[test]
    fn it_behaves_as_a_queue_bounded_by_lines(
        operations in operations(),
        size in 0..6_u32,
        start in prop_oneof![Just(0), Just(u64::MAX - 5), Just((1 << 46) - 3), any::<u64>()],
    ) {
        let size = 1 << size;
        let shared = Shared::new(size);
        let (mut sender, mut receiver) = (Sender::new(shared.clone()), Receiver::new(shared.clone()));
        (sender.next, sender.consumed_seen, receiver.next) = (start, start, start);
        shared.control.consumed.0.store(start, Ordering::Relaxed);
        for line in &shared.lines {
            line.stamp.store(stamp(start.wrapping_sub(100), 1), Ordering::Relaxed);
        }
        let mut oracle: VecDeque<(Vec<u8>, usize)> = VecDeque::new();
        let mut last = [0; LEAD_WORDS];
        // How many of the last ones need not be seen yet, at most, and how many are a group.
        let (mut hidden, mut group) = (0, 1_usize);
        for operation in operations {
            match operation {
                Operation::Push(header, payload) => {
                    let datagram = [header.as_slice(), &payload].concat();
                    let taken: usize = oracle.iter().map(|(_, lines)| lines).sum();
                    let (travel, now) = travelling(&datagram, last);
                    let lines = travel.div_ceil(DATA_WORDS).max(1);
                    prop_assert!(lines <= lines_of(datagram.len()));
                    let fits = taken + lines <= size;
                    prop_assert_eq!(sender.push(&header, &payload).is_ok(), fits);
                    if fits {
                        last = now;
                        oracle.push_back((datagram, lines));
                        hidden = (hidden + 1).min(group.saturating_sub(1));
                    } else {
                        hidden = 0;
                    }
                }
                Operation::Pop if oracle.len() <= hidden && !receiver.is_ready() => {
                    prop_assert_eq!(pop(&mut receiver), None);
                }
                Operation::Pop => {
                    let expected = oracle.pop_front().map(|(datagram, _)| datagram);
                    prop_assert_eq!(pop(&mut receiver), expected);
                    hidden = hidden.min(oracle.len());
                }
                Operation::Group(datagrams) => {
                    sender.group(datagrams);
                    group = datagrams as usize;
                    if group <= 1 {
                        hidden = 0;
                    }
                }
                Operation::Show => {
                    sender.show();
                    hidden = 0;
                }
            }
            prop_assert!(receiver.is_ready() || oracle.len() <= hidden);
            prop_assert!(!receiver.is_ready() || !oracle.is_empty());
        }
    }

    /// A peer that writes what it likes: whatever comes of it, nothing is read that is not in the ring, nothing hangs.
    #[test]
    fn it_survives_a_peer_that_writes_anything(
        writes in proptest::collection::vec((0..10_usize, 0..8_usize, prop_oneof![
            any::<u64>(), 0..20_u64, (0..20_u64, 0..1_u64 << NUMBER_SHIFT).prop_map(|(n, kind)| n << NUMBER_SHIFT | kind),
        ]), 0..200),
    ) {
        let shared = Shared::new(8);
        let (mut sender, mut receiver) = (Sender::new(shared.clone()), Receiver::<_, { ROOM / 8 }>::new(shared.clone()));
        for (place, word, value) in writes {
            match (place, word) {
                (9, _) => shared.control.asleep.0.store(value, Ordering::Relaxed),
                (8, _) => shared.control.consumed.0.store(value, Ordering::Relaxed),
                (place, 0) => shared.lines[place].stamp.store(value, Ordering::Relaxed),
                (place, word) => shared.lines[place].data[word - 1].store(value, Ordering::Relaxed),
            }
            match receiver.pop() {
                Ok(Some(len)) => prop_assert!(len <= ROOM),
                Ok(None) => {}
                Err(Broken { len }) => prop_assert!(len > ROOM || lines_of(len) > 8),
            }
            let _ = sender.push(&[1; 40], &[2; 32]);
            let _ = (sender.must_wake(), receiver.fall_asleep());
        }
    }
}

/// Whatever a sender had done when it died: the receiver sees the whole datagram or none.
#[test]
fn a_datagram_without_its_first_stamp_has_not_been_sent() {
    let shared = Shared::new(8);
    let (mut sender, mut receiver) = (Sender::new(shared.clone()), Receiver::new(shared.clone()));
    sender.push(&[1; 40], &[2; 100]).unwrap();
    let first = &shared.lines[0].stamp;
    let written = first.swap(0, Ordering::Relaxed);
    assert_eq!(pop(&mut receiver), None);
    assert!(receiver.fall_asleep());
    first.store(written, Ordering::Relaxed);
    assert_eq!(
        pop(&mut receiver).unwrap(),
        [[1; 40].as_slice(), &[2; 100]].concat()
    );
}

/// A group is seen when it is complete, when it is shown, or when something follows that belongs to none.
#[test]
fn a_group_is_seen_at_once() {
    let shared = Shared::new(64);
    let (mut sender, mut receiver) = (Sender::new(shared.clone()), Receiver::new(shared));
    let datagram = |number: u8| [[6; 40].as_slice(), &[number; 32]].concat();
    let (mut pushed, mut popped) = (0, 0);
    let mut push = |sender: &mut Sender<_>| {
        let datagram = datagram(pushed);
        sender.push(&datagram[..40], &datagram[40..]).unwrap();
        pushed += 1;
    };
    let mut seen = |receiver: &mut _, count| {
        for _ in 0..count {
            assert_eq!(pop(receiver), Some(datagram(popped)));
            popped += 1;
        }
        assert_eq!(pop(receiver), None);
    };
    // The first one is like none before it.
    push(&mut sender);
    seen(&mut receiver, 1);
    sender.group(3);
    for count in [0, 0, 3, 0, 0, 3] {
        push(&mut sender);
        seen(&mut receiver, count);
    }
    push(&mut sender);
    push(&mut sender);
    seen(&mut receiver, 0);
    sender.show();
    seen(&mut receiver, 2);
    sender.show();
    push(&mut sender);
    sender.group(1);
    seen(&mut receiver, 1);
    push(&mut sender);
    seen(&mut receiver, 1);
    sender.group(8);
    push(&mut sender);
    push(&mut sender);
    sender.push(&[5; 40], &[5; 100]).unwrap();
    for _ in 0..2 {
        assert!(receiver.is_ready());
        assert_eq!(pop(&mut receiver).map(|datagram| datagram.len()), Some(72));
    }
    assert_eq!(pop(&mut receiver).map(|datagram| datagram.len()), Some(140));
}

/// Else both ends would wait for ever.
#[test]
fn what_is_held_back_is_seen_where_there_is_no_room() {
    let shared = Shared::new(4);
    let (mut sender, mut receiver) = (Sender::new(shared.clone()), Receiver::new(shared));
    sender.push(&[6; 40], &[]).unwrap();
    sender.group(16);
    for _ in 0..3 {
        sender.push(&[6; 40], &[]).unwrap();
    }
    assert!(pop(&mut receiver).is_some());
    assert!(!receiver.is_ready());
    assert_eq!(sender.push(&[6; 40], &[1; 100]), Err(NoRoom));
    for _ in 0..3 {
        assert_eq!(pop(&mut receiver), Some(vec![6; 40]));
    }
}

/// A payload that looks like the stamps to come, in a line that is a first one later on.
#[test]
fn nothing_in_a_payload_is_taken_for_a_stamp() {
    let shared = Shared::new(4);
    let (mut sender, mut receiver) = (Sender::new(shared.clone()), Receiver::new(shared.clone()));
    let forged: Vec<u8> = (0..28)
        .flat_map(|word| stamp(4 + word / 7, 8).to_ne_bytes())
        .collect();
    sender.push(&[], &forged).unwrap();
    assert_eq!(pop(&mut receiver), Some(forged));
    for _ in 0..4 {
        assert_eq!(pop(&mut receiver), None);
        sender.push(&[5; 8], &[]).unwrap();
        assert_eq!(pop(&mut receiver), Some(vec![5; 8]));
    }
}

/// However much of it is header.
#[test]
fn the_longest_datagram_is_carried_and_a_longer_one_refused() {
    const LINES: usize = lines_of(MAX_LEN).next_power_of_two();
    let datagram: Vec<u8> = (0..=MAX_LEN).map(|place| (place % 251) as u8).collect();
    let all = [0, 8, 39, 40, 41, MAX_LEN];
    // miri keeps what each word of a line has been.
    let some = if cfg!(miri) { &all[2..3] } else { &all };
    for &header_len in some {
        let shared = Shared::new(LINES);
        let (mut sender, mut receiver) = (
            Sender::new(shared.clone()),
            Receiver::<_, { MAX_LEN.div_ceil(8) }>::new(shared.clone()),
        );
        for len in [MAX_LEN, MAX_LEN - 1, MAX_LEN] {
            let (header, payload) = datagram[..len].split_at(header_len.min(len));
            sender.push(header, payload).unwrap();
            assert_eq!(receiver.pop(), Ok(Some(len)));
            assert!(receiver.words().as_bytes()[..len] == datagram[..len]);
            let (header, payload) = datagram.split_at(header_len);
            assert_eq!(sender.push(header, payload), Err(NoRoom));
            assert_eq!(receiver.pop(), Ok(None));
        }
    }
}

fn is_room<const WORDS: usize>() -> bool {
    let shared = Shared::new(8);
    let mut sender = Sender::new(shared.clone());
    let mut receiver = Receiver::<_, WORDS>::new(shared);
    sender.push(&[1; 40], &[2; 60]).unwrap();
    match receiver.pop() {
        Ok(taken) => taken == Some(100),
        Err(broken) => {
            assert_eq!(broken, Broken { len: 100 });
            assert_eq!(receiver.pop(), Err(broken));
            false
        }
    }
}

#[test]
fn a_datagram_that_the_reader_has_no_room_for_is_broken() {
    assert!(!is_room::<10>() && !is_room::<11>() && !is_room::<12>());
    assert!(is_room::<13>() && is_room::<14>());
}

#[test]
fn a_sleeper_is_to_be_woken_once() {
    let shared = Shared::new(2);
    let (mut sender, mut receiver) = (Sender::new(shared.clone()), Receiver::new(shared.clone()));
    assert!(!sender.must_wake());
    assert!(receiver.fall_asleep());
    sender.push(&[1], &[]).unwrap();
    assert!(sender.must_wake());
    assert!(!sender.must_wake());
    assert!(!receiver.fall_asleep(), "something has come");
    assert!(!sender.must_wake(), "who does not sleep is not woken");
    assert_eq!(pop(&mut receiver), Some(vec![1]));
    assert!(receiver.fall_asleep());
    receiver.wake_up();
    assert!(!sender.must_wake());
}

#[test]
fn two_threads_share_a_ring() {
    const MANY: u32 = if cfg!(miri) { 60 } else { 20_000 };
    let shared = std::sync::Arc::new(Shared {
        lines: (0..16).map(|_| Line::new()).collect(),
        control: Control::new(),
    });
    let mut sender = Sender::new(shared.clone());
    let mut receiver = Receiver::new(shared);
    let pushing = std::thread::spawn(move || {
        for number in 0..MANY {
            let payload = vec![number as u8; number as usize % 300];
            while sender.push(&number.to_le_bytes(), &payload).is_err() {
                std::thread::yield_now();
            }
        }
    });
    for number in 0..MANY {
        let datagram = loop {
            match pop(&mut receiver) {
                Some(datagram) => break datagram,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(datagram[..4], number.to_le_bytes());
        assert_eq!(datagram[4..], vec![number as u8; number as usize % 300]);
    }
    pushing.join().unwrap();
}
