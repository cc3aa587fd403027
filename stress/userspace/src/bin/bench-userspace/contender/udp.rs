//! A datagram of the payload's size through two UDP sockets, polled without sleeping.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;

use super::{ready, repeat, Measured, PAYLOAD};

const ROUNDS: u64 = 100;

pub fn serve() -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_nonblocking(true)?;
    ready(&socket.local_addr()?.to_string())?;
    let mut bytes = [0; PAYLOAD];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((len, from)) => drop(socket.send_to(&bytes[..len], from)?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
}

pub fn measure(greeting: &str, time: Duration) -> Result<Measured> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(greeting.trim())?;
    socket.set_nonblocking(true)?;
    let mut bytes = [7; PAYLOAD];
    repeat(time, || {
        for _ in 0..ROUNDS {
            socket.send(&bytes)?;
            loop {
                match socket.recv(&mut bytes) {
                    Ok(_) => break,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(ROUNDS)
    })
}
