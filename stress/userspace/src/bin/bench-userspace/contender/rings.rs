//! iceoryx2's request-response, polled as its own benchmark does.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, Result};
use iceoryx2::prelude::*;

use super::{ready, repeat, Measured, PAYLOAD};

type Payload = [u8; PAYLOAD];

const CALLS: u64 = 100;

pub fn serve(dir: &Path) -> Result<()> {
    set_log_level(LogLevel::Error);
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let tail = dir
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("bench");
    let name = format!("mitosis/{tail}/{}", std::process::id());
    let service = node
        .service_builder(&name.as_str().try_into()?)
        .request_response::<Payload, Payload>()
        .open_or_create()?;
    let server = service.server_builder().create()?;
    ready(&name)?;
    loop {
        match server.receive()? {
            Some(request) => {
                let reply = request.loan_uninit()?;
                reply.write_payload(*request.payload()).send()?;
            }
            None => std::hint::spin_loop(),
        }
    }
}

pub fn measure(greeting: &str, time: Duration) -> Result<Measured> {
    set_log_level(LogLevel::Error);
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let service = node
        .service_builder(&greeting.trim().try_into()?)
        .request_response::<Payload, Payload>()
        .open()?;
    let client = service.client_builder().create()?;
    let mut number = 0_u64;
    repeat(time, || {
        for _ in 0..CALLS {
            let mut payload = [0; PAYLOAD];
            payload[..8].copy_from_slice(&number.to_le_bytes());
            number += 1;
            let pending = client.loan_uninit()?.write_payload(payload).send()?;
            let reply = loop {
                match pending.receive()? {
                    Some(reply) => break reply,
                    None => std::hint::spin_loop(),
                }
            };
            if *reply.payload() != payload {
                return Err(anyhow!("the reply is another"));
            }
        }
        Ok(CALLS)
    })
}
