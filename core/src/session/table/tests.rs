//! What the public face does not show: which keys share a bucket.

use super::*;
use std::vec;
use std::vec::Vec;

const MS: u64 = 1_000_000;
const EPOCH: u32 = 0xe0;
const PEER: PeerId = 7;

fn with_table(places: usize, epoch: u32, body: impl FnOnce(Table<'_>)) {
    let mut sessions = vec![Session::new(); places];
    let mut slots = vec![ServerSlot::new(); places];
    body(Table::new(
        &mut sessions,
        &mut slots,
        1 << 20,
        epoch,
        1000 * MS,
        200 * MS,
    ));
}

fn wanted(peer: PeerId, client_key: u64) -> Wanted {
    Wanted {
        peer,
        client_key,
        client_nonce: 1,
        datagram_len: 1024,
        max_message_len: 100,
        slots: 1,
        credits: 1,
    }
}

fn opened(table: &mut Table<'_>, peer: PeerId, client_key: u64) -> Result<u32, Full> {
    let index = table.open(0, &wanted(peer, client_key))?;
    table.confirm(index);
    Ok(index)
}

/// wire.md §7.2: 16 sessions whose keys share a bucket, all of which are found, and no more of them.
#[test]
fn a_bucket_has_sixteen_sessions_and_no_more() {
    with_table(64, EPOCH, |mut table| {
        let keys: Vec<u64> = (0..)
            .filter(|key| table.bucket(PEER, *key) == 0)
            .take(MAX_CHAIN + 2)
            .collect();
        let (first, late) = keys.split_at(MAX_CHAIN);
        let mut indices = Vec::new();
        for key in first {
            indices.push(opened(&mut table, PEER, *key).unwrap());
        }
        assert_eq!(opened(&mut table, PEER, late[0]), Err(Full::Chain));
        let elsewhere = (0..).find(|key| table.bucket(PEER, *key) == 1).unwrap();
        opened(&mut table, PEER, elsewhere).unwrap();
        let found = |table: &Table<'_>, key| {
            let found = table.find_opened(&wanted(PEER, key));
            found.map(|(index, _)| index)
        };
        // Whichever of them ends, there is room for another then, and the rest are found.
        for gone in [0, MAX_CHAIN / 2, MAX_CHAIN - 1] {
            for (key, index) in first.iter().zip(&indices) {
                assert_eq!(found(&table, *key), Some(*index));
            }
            table.disconnect(indices[gone]);
            assert_eq!(found(&table, first[gone]), None);
            assert_eq!(table.poll_closed().unwrap().session_index, indices[gone]);
            let index = opened(&mut table, PEER, late[1]).unwrap();
            assert_eq!(found(&table, late[1]), Some(index));
            assert_eq!(opened(&mut table, PEER, late[0]), Err(Full::Chain));
            table.disconnect(index);
            table.poll_closed().unwrap();
            indices[gone] = opened(&mut table, PEER, first[gone]).unwrap();
        }
    });
}

/// wire.md §7.2: those of the same address, with the same key and an earlier nonce, also where the numbers come round.
#[test]
fn a_confirmed_session_ends_its_clients_earlier_ones_and_no_others() {
    for first in [0, 1, u64::MAX - 1, u64::MAX / 2, 1 << 63] {
        with_table(64, EPOCH, |mut table| {
            let mut open = |peer, client_key, after: u64| {
                let wanted = Wanted {
                    client_nonce: first.wrapping_add(after),
                    ..wanted(peer, client_key)
                };
                table.open(0, &wanted).unwrap()
            };
            let ours = [0, 1, 2, 3].map(|after| open(PEER, 5, after));
            let others = [open(PEER, 6, 0), open(PEER + 1, 5, 0)];
            let live = |table: &Table<'_>, index| table.at(index).unwrap().is_live();
            assert_eq!(table.confirm(ours[2]), 2);
            for (place, index) in ours.into_iter().enumerate() {
                assert_eq!(live(&table, index), place >= 2, "{place} from {first}");
            }
            // A second time, or one that has ended.
            assert_eq!((table.confirm(ours[2]), table.confirm(ours[0])), (0, 0));
            assert_eq!(table.confirm(ours[3]), 1);
            assert!(others.iter().all(|index| live(&table, *index)));
            assert_eq!(table.live(), 3);
        });
    }
}

/// Keys and addresses need not be drawn at random to be spread.
#[test]
#[cfg_attr(miri, ignore = "it counts for an hour")]
fn those_who_differ_little_do_not_share_buckets() {
    const PLACES: usize = 1024;
    for epoch in [0, EPOCH, u32::MAX] {
        with_table(PLACES, epoch, |table| {
            let spread = |of: &dyn Fn(u64) -> (PeerId, u64), what: &str, shift: u32| {
                let mut shared = [0; PLACES];
                for number in 0..PLACES as u64 {
                    let (peer, key) = of(number);
                    shared[table.bucket(peer, key)] += 1;
                }
                let most = *shared.iter().max().unwrap();
                assert!(most <= MAX_CHAIN, "{epoch:#x} {what} {shift}: {most}");
            };
            for base in [0, u64::MAX] {
                for shift in 0..=54 {
                    for peer in [0, PEER, PeerId::MAX] {
                        let key = |number| (peer, base ^ number << shift);
                        spread(&key, "keys", shift);
                    }
                }
                for shift in 0..=22 {
                    for peers in [0, PeerId::MAX] {
                        let peer = |number| (peers ^ (number as PeerId) << shift, base);
                        spread(&peer, "peers", shift);
                    }
                }
            }
        });
    }
}
