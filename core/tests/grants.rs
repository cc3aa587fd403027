//! What a session is granted of slots, credits and lengths, and that it comes back (wire.md §7.6, §8.2).

use crate::messages::bytes;
use crate::network::{client_config, is_reply, Network, ECHO, SERVER};
use mitosis_core::rpc::client::{CallError, ClientConfig, Event};
use mitosis_core::rpc::server::ServerConfig;
use mitosis_core::wire::{ErrorCode, MAX_MESSAGE};

#[test]
fn grants_are_what_both_ends_can() {
    let config = ServerConfig {
        max_slots: 6,
        max_credits: 5,
        max_message_len: 4000,
        ..SERVER
    };
    let mut network = Network::with_slots(config, 2, 5);
    let place = network.add_client();
    assert_eq!(network.connect(place), [Event::Connected]);
    let granted = network.peers[place].client.granted();
    assert_eq!((granted.slots, granted.credits), (4, 5), "a power of two");
    assert_eq!(
        (granted.datagram_len, granted.max_message_len),
        (1024, 4000)
    );
    // What was not granted has a place in the client's memory, and no call.
    for slot in [4, 7] {
        let call = network.peers[place].client.call(0, slot, ECHO, 0);
        assert_eq!(call, Err(CallError::NoSuchSlot { slot, slots: 4 }));
    }
    // The second finds what was kept for it, and it works.
    let second = network.add_client();
    assert_eq!(network.connect(second), [Event::Connected]);
    assert_eq!(network.peers[second].client.granted().slots, 1);
    assert!(is_reply(&network.call(second, ECHO, &bytes(4000))));
}

#[test]
fn credits_are_shared_out_and_come_back() {
    let config = ServerConfig {
        receive_buffers: 10,
        ..SERVER
    };
    let mut network = Network::with_slots(config, 4, 100);
    for credits in [7, 1, 1, 1] {
        let place = network.add_client();
        assert_eq!(network.connect(place), [Event::Connected]);
        assert_eq!(network.peers[place].client.granted().credits, credits);
        assert!(is_reply(&network.call(place, ECHO, &bytes(5000))));
    }
    network.peers[0].client.disconnect();
    network.settle();
    let place = network.add_client();
    assert_eq!(network.connect(place), [Event::Connected]);
    assert_eq!(network.peers[place].client.granted().credits, 7);

    let config = ServerConfig {
        receive_buffers: 1,
        ..SERVER
    };
    let mut network = Network::with_server(config, 4);
    network.connected_client();
    let place = network.add_client();
    assert!(matches!(
        network.connect(place)[..],
        [Event::Refused(refusal)] if refusal.code == ErrorCode::Busy
    ));
}

#[test]
fn credits_return_before_all_slots_together_have_used_them_up() {
    for (credits, slots) in [(1, 1), (2, 1), (3, 2), (8, 8), (20, 4), (32, 1)] {
        let mut network = Network::new(16);
        let place = network.add_client_with(ClientConfig {
            datagram_len: 1024,
            slots,
            credits,
            max_message_len: MAX_MESSAGE,
            ..client_config(0)
        });
        assert_eq!(network.connect(place), [Event::Connected]);
        for number in 0..slots as u8 {
            network.start_call(place, ECHO, &vec![number; 20_000]);
        }
        assert_eq!(network.settle().len(), usize::from(slots));
        assert_eq!(network.now_ns, 0, "nothing waited for a timer");
    }
}
