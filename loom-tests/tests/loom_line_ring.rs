//! The ring of lines between two processes, in every interleaving and with every value that the memory model lets a load
//! return. A line has one word of data here.

use loom::sync::{Arc, Notify};
use loom::thread;
use mitosis_loom_tests::sync::line_ring::{Control, Line, Memory, Receiver, Sender};

struct Shared {
    lines: Vec<Line>,
    control: Control,
    /// The socket by which a sleeper is woken.
    socket: Notify,
}

// SAFETY: the lines' witness cells are used by loom alone, which reports a use that the ring does not order.
unsafe impl Sync for Shared {}

// SAFETY: as above.
unsafe impl Send for Shared {}

#[derive(Clone)]
struct Handle(Arc<Shared>);

impl Memory for Handle {
    fn lines(&self) -> &[Line] {
        &self.0.lines
    }
    fn control(&self) -> &Control {
        &self.0.control
    }
}

fn shared(lines: usize) -> Handle {
    Handle(Arc::new(Shared {
        lines: (0..lines).map(|_| Line::new()).collect(),
        control: Control::new(),
        socket: Notify::new(),
    }))
}

/// Datagrams of these many words, of the number of each, so many of which are shown together.
fn loom_datagrams_arrive_whole_and_in_order(lines: usize, datagrams: &'static [usize], group: u64) {
    loom::model(move || {
        let memory = shared(lines);
        let mut sender = Sender::new(memory.clone());
        sender.group(group);
        let mut receiver = Receiver::<_, 2>::new(memory);
        let pushing = thread::spawn(move || {
            for (number, words) in (1_u64..).zip(datagrams) {
                let bytes = number.to_ne_bytes();
                // One word goes the short way, and two do not.
                let payload = if *words == 1 { &[] } else { &bytes[..] };
                while sender.push(&bytes, payload).is_err() {
                    thread::yield_now();
                }
            }
            sender.show();
        });
        for (number, &count) in (1_u64..).zip(datagrams) {
            let len = loop {
                match receiver.pop().unwrap() {
                    Some(len) => break len,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(len, 8 * count);
            let words = &receiver.words()[..count];
            assert!(words.iter().all(|&word| word == number));
        }
        assert_eq!(receiver.pop(), Ok(None));
        pushing.join().unwrap();
    });
}

#[test]
fn loom_line_ring_writes_a_line_again_once_it_was_read() {
    loom_datagrams_arrive_whole_and_in_order(1, &[1, 1, 1], 1);
}

#[test]
fn loom_line_ring_shows_two_lines_or_none() {
    loom_datagrams_arrive_whole_and_in_order(2, &[1, 2, 1], 1);
}

#[test]
fn loom_line_ring_shows_a_group_whole() {
    loom_datagrams_arrive_whole_and_in_order(2, &[1, 1], 2);
}

#[test]
fn loom_line_ring_shows_what_there_is_of_a_group() {
    loom_datagrams_arrive_whole_and_in_order(2, &[1], 2);
    loom_datagrams_arrive_whole_and_in_order(4, &[1, 1, 2], 3);
}

/// A sleeper is woken by whatever is pushed after it looked. loom finds it asleep for ever otherwise.
#[test]
fn loom_line_ring_wakes_a_sleeper() {
    loom::model(|| {
        let memory = shared(2);
        let mut sender = Sender::new(memory.clone());
        let mut receiver = Receiver::<_, 1>::new(memory.clone());
        let pushing = thread::spawn({
            let memory = memory.clone();
            move || {
                sender.push(&[], &7_u64.to_ne_bytes()).unwrap();
                if sender.must_wake() {
                    memory.0.socket.notify();
                }
            }
        });
        while receiver.pop().unwrap().is_none() {
            if receiver.fall_asleep() {
                memory.0.socket.wait();
                receiver.wake_up();
            }
        }
        assert_eq!(receiver.words(), &[7]);
        pushing.join().unwrap();
    });
}
