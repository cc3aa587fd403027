//! Our own calls, over shared memory.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use mitosis::{Address, Client, ClientOptions, Server, ServerOptions};

use super::{ready, repeat, Measured, PAYLOAD};

const RPC_ID: u32 = 778;
const BATCH: u64 = 1000;

fn address() -> Result<Address> {
    Ok("shm://bench".parse()?)
}

pub fn serve(dir: &Path) -> Result<()> {
    let mut options = ServerOptions::default();
    options.shm.dir = dir.to_owned();
    let mut server = Server::bind_with(&address()?, &options)?;
    server.register(RPC_ID, |request, reply| {
        reply.extend_from_slice(request);
        Ok(())
    });
    ready("")?;
    server.serve()?;
    Ok(())
}

fn connect(dir: &Path, window: usize) -> Result<Client> {
    let options = ClientOptions {
        window: u16::try_from(window)?,
        max_message_len: 1024,
        shm_dir: dir.to_owned(),
        ..ClientOptions::default()
    };
    Ok(Client::connect_with(&address()?, &options)?)
}

pub fn measure_one(dir: &Path, time: Duration) -> Result<Measured> {
    let mut client = connect(dir, 1)?;
    let mut request = [0; PAYLOAD];
    let measured = repeat(time, || {
        for number in 0..BATCH {
            request[..8].copy_from_slice(&number.to_le_bytes());
            let reply = client.call(RPC_ID, &request)?;
            anyhow::ensure!(reply == request, "the reply is another");
        }
        Ok(BATCH)
    })?;
    client.close();
    Ok(measured)
}

pub fn measure_window(dir: &Path, window: usize, time: Duration) -> Result<Measured> {
    let mut client = connect(dir, window)?;
    let mut requests = vec![[0_u8; PAYLOAD]; window];
    let mut number = 0_u64;
    let measured = repeat(time, || {
        let mut ended = 0;
        while ended < BATCH {
            while client.outstanding() < window {
                let mut request = [0; PAYLOAD];
                request[..8].copy_from_slice(&number.to_le_bytes());
                number += 1;
                let call = client.start(RPC_ID, &request)?;
                requests[call.slot()] = request;
            }
            client.poll(|call, reply| {
                assert!(reply.is_ok_and(|reply| reply == requests[call.slot()]));
                ended += 1;
            })?;
        }
        Ok(ended)
    })?;
    client.close();
    Ok(measured)
}
