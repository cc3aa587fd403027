//! kill -9 of either end at random moments: the other end says so within a second and goes on, nothing of the dead stays
//! mapped or open, and the next connection works.
//!
//! `MITOSIS_KILLS=1000` makes it a thousand of each; by default they are a few, for every test run.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mitosis::{Address, Client, ClientOptions, Error, Server, ServerOptions};
use rand::RngExt;

const RPC_ID: u32 = 7;
fn kills() -> u32 {
    let asked = std::env::var("MITOSIS_KILLS").ok();
    asked.map_or(20, |kills| {
        kills.parse().expect("MITOSIS_KILLS is a number")
    })
}

/// Within what a death must be noticed. In the short form, which runs beside other tests on a machine that may be busy, the
/// time says little.
fn limit() -> Duration {
    match std::env::var_os("MITOSIS_KILLS") {
        Some(_) => Duration::from_secs(1),
        None => Duration::from_secs(10),
    }
}

fn address() -> Address {
    "shm://victim".parse().unwrap()
}

fn serve(dir: &Path) -> Server {
    let mut options = ServerOptions::default();
    options.shm.dir = dir.to_owned();
    let mut server = Server::bind_with(&address(), &options).unwrap();
    server.register(RPC_ID, |request, reply| {
        reply.extend(request.iter().map(|byte| !byte));
        Ok(())
    });
    server
}

fn connect(dir: &Path) -> Result<Client, Error> {
    let options = ClientOptions {
        window: 8,
        shm_dir: dir.to_owned(),
        ..ClientOptions::default()
    };
    Client::connect_with(&address(), &options)
}

/// What a client's life is: as many calls as it may have outstanding, of all lengths up to several datagrams.
fn keep_calling(client: &mut Client, calls: &AtomicU64) -> Error {
    let mut random = rand::rng();
    let mut requests: Vec<Vec<u8>> = vec![Vec::new(); client.window()];
    loop {
        while client.outstanding() < client.window() {
            let len = match random.random_range(0..16) {
                0 => random.random_range(0..20_000),
                _ => random.random_range(0..64),
            };
            let request = vec![random.random(); len];
            match client.start(RPC_ID, &request) {
                Ok(call) => requests[call.slot()] = request,
                Err(error) => return error,
            }
        }
        let mut lost = None;
        let waited = client.wait(None, |call, reply| match reply {
            Ok(reply) => {
                let expected = requests[call.slot()].iter().map(|byte| !byte);
                assert!(reply.iter().copied().eq(expected), "a damaged reply");
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => lost = Some(error),
        });
        if let Some(error) = lost.or(waited.err()) {
            return error;
        }
    }
}

/// A process of this program that plays one of the roles below.
struct Victim(Child);

impl Victim {
    /// Starts it, and waits until it says that it has begun.
    fn start(role: &str, dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "role", "--nocapture", "--test-threads=1"])
            .env("MITOSIS_ROLE", role)
            .env("MITOSIS_DIR", dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("begun")));
        Self(child)
    }

    fn kill_at_some_moment(&mut self) -> Instant {
        let micros = rand::rng().random_range(0..3000);
        let moment = Instant::now() + Duration::from_micros(micros);
        while Instant::now() < moment {
            std::thread::yield_now();
        }
        self.0.kill().unwrap();
        // It is dead once the kernel has got round to it.
        self.0.wait().unwrap();
        Instant::now()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what a victim does.
#[test]
fn role() {
    let Ok(role) = std::env::var("MITOSIS_ROLE") else {
        return;
    };
    let dir = std::env::var_os("MITOSIS_DIR").unwrap();
    let begun = || {
        println!("begun");
        std::io::stdout().flush().unwrap();
    };
    match role.as_str() {
        "server" => {
            let mut server = serve(dir.as_ref());
            begun();
            server.serve().unwrap();
        }
        "client" => {
            let mut client = connect(dir.as_ref()).unwrap();
            begun();
            panic!("{}", keep_calling(&mut client, &AtomicU64::new(0)));
        }
        other => panic!("{other} is no role"),
    }
}

fn segments_mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains("mitosis-shm"))
        .count()
}

fn files_open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Both, one after the other: what is mapped and open is the whole process's.
#[test]
fn the_other_end_goes_on() {
    servers_are_killed();
    clients_are_killed();
}

fn servers_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (mapped, open) = (segments_mapped(), files_open());
    let calls = AtomicU64::new(0);
    let mut worst = Duration::ZERO;
    for kill in 0..kills() {
        let mut server = Victim::start("server", dir.path());
        // After a killed server: its name is taken over, its socket replaced.
        let mut client = connect(dir.path()).unwrap_or_else(|error| panic!("kill {kill}: {error}"));
        let (error, noticed, dead) = std::thread::scope(|scope| {
            let calling = scope.spawn(|| {
                let error = keep_calling(&mut client, &calls);
                (error, Instant::now())
            });
            let dead = server.kill_at_some_moment();
            let (error, noticed) = calling.join().unwrap();
            (error, noticed, dead)
        });
        assert!(
            matches!(error, Error::ServerGone { .. }),
            "kill {kill}: {error}"
        );
        worst = worst.max(noticed.saturating_duration_since(dead));
        assert!(client.is_gone());
        assert!(matches!(
            client.call(RPC_ID, b"?"),
            Err(Error::ServerGone { .. })
        ));
        // While there is no server, its stale name is told from none at all.
        let error = connect(dir.path()).map(drop).unwrap_err().to_string();
        assert!(
            error.contains("is dead, and has left its socket"),
            "{error}"
        );
    }
    assert!(worst < limit(), "one was noticed after {worst:?}");
    assert_eq!((segments_mapped(), files_open()), (mapped, open));
    let calls = calls.into_inner();
    assert!(calls > 0);
    println!(
        "{} servers killed after {calls} calls, noticed within {worst:?}",
        kills()
    );
}

fn clients_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (mapped, open) = (segments_mapped(), files_open());
    let mut server = serve(dir.path());
    let shutdown = server.shutdown_handle();
    let sessions = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let calls = AtomicU64::new(0);
    let mut worst = Duration::ZERO;
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if !server.poll().unwrap() {
                    server.wait(Some(Duration::from_millis(5))).unwrap();
                }
                sessions.store(server.sessions() as u64, Ordering::Relaxed);
            }
            drop(server);
        });
        // Somebody whom none of it may hold up.
        let mut bystander = connect(dir.path()).unwrap();
        for _ in 0..kills() {
            let mut client = Victim::start("client", dir.path());
            let dead = client.kill_at_some_moment();
            while sessions.load(Ordering::Relaxed) > 1 {
                assert!(
                    dead.elapsed() < limit(),
                    "the dead client's session is still there"
                );
                assert_eq!(bystander.call(RPC_ID, &[1, 2]).unwrap(), [!1, !2]);
                calls.fetch_add(1, Ordering::Relaxed);
            }
            worst = worst.max(dead.elapsed());
            assert_eq!(bystander.call(RPC_ID, &[3]).unwrap(), [!3]);
        }
        // The server's side of the bystander and the bystander's own.
        assert_eq!(segments_mapped(), mapped + 2);
        bystander.close();
        over.store(true, Ordering::Relaxed);
        shutdown.shutdown();
        serving.join().unwrap();
    });
    assert!(worst < limit(), "one was noticed after {worst:?}");
    drop(shutdown);
    assert_eq!((segments_mapped(), files_open()), (mapped, open));
    println!("{} clients killed, noticed within {worst:?}", kills());
}
