//! Servers and clients over shared memory, as programs meet them: calls of all lengths, windows, limits, and errors that say
//! what to do.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mitosis::fabric::FabricErrorKind;
use mitosis::server::HandlerFailed;
use mitosis::{Address, Client, ClientOptions, ClusterKey, Error, Server, ServerOptions};

const ECHO: u32 = 1;
const FAIL: u32 = 2;

fn address() -> Address {
    "shm://test".parse().unwrap()
}

fn server_options(dir: &Path) -> ServerOptions {
    let mut options = ServerOptions::default();
    options.shm.dir = dir.to_owned();
    options
}

fn client_options(dir: &Path) -> ClientOptions {
    ClientOptions {
        shm_dir: dir.to_owned(),
        connect_timeout: Duration::from_secs(5),
        ..ClientOptions::default()
    }
}

fn bind(options: &ServerOptions) -> Result<Server, Error> {
    let mut server = Server::bind_with(&address(), options)?;
    server.register(ECHO, |request, reply| {
        reply.extend_from_slice(request);
        Ok(())
    });
    server.register(FAIL, |_, _| Err(HandlerFailed));
    Ok(server)
}

fn fabric_error(error: Error) -> (FabricErrorKind, String) {
    match error {
        Error::Fabric(error) => (error.kind(), error.to_string()),
        other => panic!("no error of the fabric: {other}"),
    }
}

#[test]
fn messages_of_all_lengths_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let server = bind(&server_options(dir.path())).unwrap().spawn();
    let options = ClientOptions {
        max_message_len: 8 << 20,
        ..client_options(dir.path())
    };
    let mut client = Client::connect_with(&address(), &options).unwrap();
    for len in [
        0,
        1,
        7,
        8,
        15,
        16,
        17,
        32,
        4055,
        4056,
        4057,
        70_000,
        8 << 20,
    ] {
        let request: Vec<u8> = (0..len).map(|at: usize| ((at * 31) >> 3) as u8).collect();
        assert!(
            client.call(ECHO, &request).unwrap() == request,
            "{len} bytes"
        );
    }
    assert!(matches!(
        client.call(ECHO, &vec![0; (8 << 20) + 1]),
        Err(Error::TooLong { .. })
    ));
    client.close();
    let counters = server.shutdown().unwrap();
    assert_eq!(counters.requests, 13);
}

#[test]
fn a_full_window_is_answered_whatever_its_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let _server = bind(&server_options(dir.path())).unwrap().spawn();
    let mut client = Client::connect_with(&address(), &client_options(dir.path())).unwrap();
    let mut requests = vec![Vec::new(); client.window()];
    assert_eq!(requests.len(), 64);
    for round in 0..20_usize {
        for place in 0..64 {
            let request = vec![(round + place) as u8; (round * 997 + place * 131) % 30_000];
            let call = client.start(ECHO, &request).unwrap();
            requests[call.slot()] = request;
        }
        let full = client.start(ECHO, b"one more").unwrap_err();
        assert!(matches!(full, Error::WindowFull { window: 64 }), "{full}");
        let mut ended = 0;
        while client.outstanding() > 0 {
            client
                .wait(None, |call, reply| {
                    assert!(reply.unwrap() == requests[call.slot()]);
                    ended += 1;
                })
                .unwrap();
        }
        assert_eq!(ended, 64);
    }
}

#[test]
fn a_call_that_waits_does_not_swallow_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let _server = bind(&server_options(dir.path())).unwrap().spawn();
    let mut client = Client::connect_with(&address(), &client_options(dir.path())).unwrap();
    let first = client.start(ECHO, b"first").unwrap();
    let second = client.start(FAIL, b"second").unwrap();
    assert_eq!(client.call(ECHO, b"third").unwrap(), b"third");
    let mut ended = Vec::new();
    while ended.len() < 2 {
        client
            .wait(None, |call, reply| {
                ended.push((call, reply.map(<[u8]>::to_vec).ok()))
            })
            .unwrap();
    }
    ended.sort_by_key(|(call, _)| call.slot());
    assert_eq!(ended, [(first, Some(b"first".to_vec())), (second, None)]);
}

#[test]
fn a_handler_that_fails_or_is_missing_is_an_error_of_the_call_alone() {
    let dir = tempfile::tempdir().unwrap();
    let _server = bind(&server_options(dir.path())).unwrap().spawn();
    let mut client = Client::connect_with(&address(), &client_options(dir.path())).unwrap();
    let failed = client.call(FAIL, b"").unwrap_err().to_string();
    assert_eq!(failed, "the call failed: handler failed");
    let missing = client.call(99, b"").unwrap_err().to_string();
    assert_eq!(missing, "the call failed: no such rpc id");
    assert_eq!(client.call(ECHO, b"on").unwrap(), b"on");
}

/// Both ends sleep between the calls: each call wakes one and then the other.
#[test]
fn those_who_sleep_are_woken() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = server_options(dir.path());
    options.spin = Duration::ZERO;
    let server = bind(&options).unwrap().spawn();
    let options = ClientOptions {
        spin: Duration::ZERO,
        // Long enough that a lost wake-up is seen as such.
        rto_initial: Duration::from_secs(30),
        rto_min: Duration::from_secs(30),
        rto_max: Duration::from_secs(30),
        ..client_options(dir.path())
    };
    let mut client = Client::connect_with(&address(), &options).unwrap();
    for number in 0..2000_u32 {
        assert_eq!(
            client.call(ECHO, &number.to_le_bytes()).unwrap(),
            number.to_le_bytes()
        );
    }
    client.close();
    assert_eq!(server.shutdown().unwrap().replays, 0);
}

#[test]
fn a_server_that_shuts_down_is_noticed_and_can_be_followed() {
    let dir = tempfile::tempdir().unwrap();
    let options = server_options(dir.path());
    let server = bind(&options).unwrap().spawn();
    let mut client = Client::connect_with(&address(), &client_options(dir.path())).unwrap();
    client.call(ECHO, b"").unwrap();
    server.shutdown().unwrap();
    let start = Instant::now();
    let gone = client.call(ECHO, b"").unwrap_err();
    let told = matches!(gone, Error::ServerGone { .. } | Error::Failed(_));
    assert!(told && start.elapsed() < Duration::from_secs(1), "{gone}");
    let _server = bind(&options).unwrap().spawn();
    client.reconnect().unwrap();
    assert_eq!(client.call(ECHO, b"again").unwrap(), b"again");
}

#[test]
fn there_is_no_server() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect_with(&address(), &client_options(dir.path())).map(drop);
    let (kind, text) = fabric_error(error.unwrap_err());
    assert_eq!(kind, FabricErrorKind::NotFound);
    assert!(
        text.contains("there is no server shm://test; start it first"),
        "{text}"
    );
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
}

#[test]
fn a_name_is_one_servers() {
    let dir = tempfile::tempdir().unwrap();
    let options = server_options(dir.path());
    let first = bind(&options).unwrap();
    let (kind, text) = fabric_error(bind(&options).map(drop).unwrap_err());
    assert_eq!(kind, FabricErrorKind::InUse);
    assert!(
        text.contains("shm://test is served by another process"),
        "{text}"
    );
    drop(first);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing is left"
    );
    bind(&options).unwrap();
}

#[test]
fn an_unusable_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (_, text) = fabric_error(bind(&server_options(&file)).map(drop).unwrap_err());
    assert!(
        text.contains(file.to_str().unwrap()) && text.contains("MITOSIS_RUNTIME_DIR"),
        "{text}"
    );

    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (kind, text) = fabric_error(bind(&server_options(&open)).map(drop).unwrap_err());
    assert_eq!(kind, FabricErrorKind::Denied);
    assert!(text.contains("that others cannot write"), "{text}");

    let long = dir.path().join("x".repeat(120));
    let (kind, text) = fabric_error(bind(&server_options(&long)).map(drop).unwrap_err());
    assert_eq!(kind, FabricErrorKind::Misuse);
    assert!(text.contains("too long"), "{text}");
}

#[test]
fn a_full_server_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = server_options(dir.path());
    options.shm.peers = 1;
    let _server = bind(&options).unwrap().spawn();
    let first = Client::connect_with(&address(), &client_options(dir.path())).unwrap();
    let error = Client::connect_with(&address(), &client_options(dir.path())).map(drop);
    let (kind, text) = fabric_error(error.unwrap_err());
    assert_eq!(kind, FabricErrorKind::Exhausted);
    assert!(text.contains("as many clients as it takes"), "{text}");
    first.close();
    // The place is free once the server has noticed.
    let end = Instant::now() + Duration::from_secs(5);
    while Client::connect_with(&address(), &client_options(dir.path())).is_err() {
        assert!(Instant::now() < end);
    }
}

#[test]
fn a_server_that_does_not_poll_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let _server = bind(&server_options(dir.path())).unwrap();
    let options = ClientOptions {
        connect_timeout: Duration::from_millis(50),
        ..client_options(dir.path())
    };
    let error = Client::connect_with(&address(), &options)
        .map(drop)
        .unwrap_err();
    let (_, text) = fabric_error(error);
    assert!(text.contains("lives but does not answer"), "{text}");
}

#[test]
fn a_call_that_times_out_ends_a_wait() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = bind(&server_options(dir.path())).unwrap();
    let connected = Arc::new(AtomicBool::new(false));
    let polling = std::thread::spawn({
        let connected = Arc::clone(&connected);
        move || {
            while !connected.load(Ordering::Relaxed) {
                server.poll().unwrap();
            }
            server
        }
    });
    let options = ClientOptions {
        call_timeout: Duration::from_millis(100),
        ..client_options(dir.path())
    };
    let mut client = Client::connect_with(&address(), &options).unwrap();
    connected.store(true, Ordering::Relaxed);
    // It lives, and does not answer any more.
    let _server = polling.join().unwrap();
    client.start(ECHO, b"x").unwrap();
    let mut ended = Vec::new();
    while ended.is_empty() {
        let waited = client.wait(Some(Duration::from_secs(30)), |_, reply| {
            ended.push(reply.map(<[u8]>::to_vec));
        });
        assert!(waited.unwrap());
    }
    assert!(matches!(ended[..], [Err(Error::TimedOut)]), "{ended:?}");
    assert_eq!(client.outstanding(), 0);
    assert!(matches!(client.call(ECHO, b"x"), Err(Error::TimedOut)));
}

#[test]
fn keys_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = server_options(dir.path());
    options.cluster_key = Some(ClusterKey([7; 16]));
    let _server = bind(&options).unwrap().spawn();
    let with = |cluster_key| ClientOptions {
        cluster_key,
        ..client_options(dir.path())
    };
    for key in [None, Some(ClusterKey([8; 16]))] {
        let error = Client::connect_with(&address(), &with(key))
            .map(drop)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("give both ends the same cluster key"),
            "{error}"
        );
    }
    let mut client = Client::connect_with(&address(), &with(options.cluster_key)).unwrap();
    assert_eq!(client.call(ECHO, b"member").unwrap(), b"member");
}

#[test]
fn an_address_that_this_build_cannot_reach_says_why() {
    for error in [
        Client::connect("rdma://[fe80::1]/0/73").map(drop),
        Server::bind("rdma://[fe80::1]/0/73").map(drop),
    ] {
        let text = error.unwrap_err().to_string();
        assert!(text.contains("rdma://[fe80::1]/0/73"), "{text}");
    }
    let text = Client::connect("nonsense")
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(text.contains("'nonsense' is not an address"), "{text}");
}

/// What does not greet as it should costs the server nothing but the connection.
#[test]
fn strangers_are_turned_away() {
    use std::os::unix::net::UnixStream;
    let dir = tempfile::tempdir().unwrap();
    let _server = bind(&server_options(dir.path())).unwrap().spawn();
    // The socket carries packets: a stream cannot even connect.
    assert!(UnixStream::connect(dir.path().join("test")).is_err());
    let mut client = Client::connect_with(&address(), &client_options(dir.path())).unwrap();
    assert_eq!(client.call(ECHO, b"on").unwrap(), b"on");
}
