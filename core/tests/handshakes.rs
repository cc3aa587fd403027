//! What the ends ask for and grant, and which refusals are heeded (wire.md §5, §6.1, §7.6).

use crate::network::{bytes_of, client_config, Network, MS, SERVER};
use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event};
use mitosis_core::rpc::server::{Action, Server, ServerConfig, ServerSlot, Session, ANSWER_LEN};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{
    Accept, Connect, Datagram, ErrorCode, Kind, Message, Reason, Refusal, MAX_CONTROL_LEN,
    MAX_MESSAGE,
};

/// wire.md §6.1: a refusal without a nonce is heeded if it says that the Connect could not be read, and one with the nonce
/// of another Connect never is.
#[test]
fn a_connecting_client_heeds_only_refusals_of_its_own_connect() {
    let config = client_config(5);
    let nonce = config.nonce + 1;
    for code in ErrorCode::ALL.iter().copied() {
        let unread = matches!(code, ErrorCode::BadVersion | ErrorCode::BadRequest);
        for (client_nonce, heeded) in [
            (0, unread),
            (nonce - 1, false),
            (nonce + 1, false),
            (nonce, true),
        ] {
            let mut network = Network::new(1);
            let place = network.add_client_with(config);
            let client = &mut network.peers[place].client;
            let reason = (code == ErrorCode::NotAuthorised).then_some(Reason::WrongKey);
            let refusal = Refusal {
                code,
                reason,
                client_nonce,
            };
            let refused = bytes_of(SessionId::NONE, 0, 0, Message::Error(refusal));
            // Nothing has been asked for.
            let early = client.handle_datagram(0, &refused);
            assert_eq!(early, Err(Rejected::Unexpected(Kind::Error)));
            client.connect(0);
            let expected = match heeded {
                true => Ok(Some(Event::Refused(refusal))),
                false => Err(Rejected::OtherSession),
            };
            assert_eq!(client.handle_datagram(0, &refused), expected, "{refusal:?}");
        }
    }
}

/// What both ends are told at their start is brought within the bounds that their configurations name.
#[test]
fn configurations_are_brought_into_their_bounds() {
    for (idle_timeout_ns, idle_timeout_ms) in [
        (0, 1),
        (999_999, 1),
        (1_000_000, 1),
        (2_999_999, 2),
        (1_500 * MS, 1_500),
        (u64::MAX, u32::MAX),
    ] {
        for (datagram_len, granted_len) in [(0, 256), (255, 256), (257, 257), (u16::MAX, 4096)] {
            let config = ServerConfig {
                idle_timeout_ns,
                datagram_len,
                max_slots: 0,
                max_credits: 0,
                max_message_len: u32::MAX,
                ..SERVER
            };
            let mut sessions = [Session::new()];
            let mut slots = [const { ServerSlot::new() }; 4];
            let mut server = Server::new(config, &mut sessions, &mut slots);
            let mut out = [0; ANSWER_LEN];
            let connect = Connect {
                client_key: 5,
                client_nonce: 6,
                datagram_len: 4096,
                slots: 4,
                credits: 8,
                max_message_len: u32::MAX,
                tag: None,
            };
            let connect = bytes_of(SessionId::NONE, 0, 0, Message::Connect(connect));
            let action = server.handle_datagram(0, 7, &connect, &mut out);
            let Action::Answer { len, .. } = action else {
                panic!("{action:?}")
            };
            let granted = Accept {
                client_nonce: 6,
                server_nonce: 0,
                datagram_len: granted_len,
                slots: 1,
                credits: 1,
                max_message_len: MAX_MESSAGE,
                idle_timeout_ms,
                tag: None,
            };
            let accept = Datagram::parse(&out[..len]).unwrap().message;
            assert_eq!(accept, Message::Accept(granted));
        }
    }
    for (datagram_len, slots, room, asked_len, asked_slots) in [
        (0, 0, 8, 256, 1),
        (255, 8, 8, 256, 8),
        (257, 9, 8, 257, 8),
        (4097, 100, 100, 4096, 64),
    ] {
        let config = ClientConfig {
            datagram_len,
            slots,
            credits: 0,
            max_message_len: u32::MAX,
            ..client_config(5)
        };
        let mut calls = vec![CallSlot::new(); room];
        let mut client = Client::new(config, &mut calls);
        client.connect(0);
        let mut out = [0; MAX_CONTROL_LEN];
        let len = client.poll_transmit(0, &mut out).unwrap().header_len;
        let asked = Connect {
            client_key: config.client_key,
            client_nonce: config.nonce + 1,
            datagram_len: asked_len,
            slots: asked_slots,
            credits: 1,
            max_message_len: MAX_MESSAGE,
            tag: None,
        };
        let connect = Datagram::parse(&out[..len]).unwrap().message;
        assert_eq!(connect, Message::Connect(asked));
    }
}
