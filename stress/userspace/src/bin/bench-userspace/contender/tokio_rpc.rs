//! tarpc over TCP on loopback: a runtime of one thread at each end.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use tarpc::client::Config;
use tarpc::context;
use tarpc::serde_transport::tcp;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::{ready, Measured, PAYLOAD};

type Payload = [u8; PAYLOAD];

#[tarpc::service]
trait Echo {
    async fn echo(payload: Payload) -> Payload;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: context::Context, payload: Payload) -> Payload {
        payload
    }
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

pub fn serve() -> Result<()> {
    use futures::StreamExt;
    runtime()?.block_on(async {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut listener = tcp::listen(here, Bincode::default).await?;
        ready(&listener.local_addr().to_string())?;
        while let Some(transport) = listener.next().await {
            let transport = transport?;
            transport.get_ref().set_nodelay(true)?;
            let channel = BaseChannel::with_defaults(transport);
            channel
                .execute(Server.serve())
                .for_each(|reply| reply)
                .await;
        }
        Ok(())
    })
}

pub fn measure(greeting: &str, window: usize, time: Duration) -> Result<Measured> {
    runtime()?.block_on(async {
        let transport = tcp::connect(greeting.trim(), Bincode::default).await?;
        transport.get_ref().set_nodelay(true)?;
        let client = EchoClient::new(Config::default(), transport).spawn();
        call_until(&client, window, Instant::now() + time / 10).await?;
        let start = Instant::now();
        let calls = call_until(&client, window, start + time).await?;
        Ok(Measured {
            calls,
            elapsed: start.elapsed(),
        })
    })
}

/// As many tasks as calls may be outstanding, each of which makes one call after the other.
async fn call_until(client: &EchoClient, window: usize, end: Instant) -> Result<u64> {
    let mut callers = JoinSet::new();
    for _ in 0..window {
        let client = client.clone();
        callers.spawn(async move {
            let mut calls = 0;
            while Instant::now() < end {
                let payload = [calls as u8; PAYLOAD];
                let reply = client.echo(context::current(), payload).await?;
                anyhow::ensure!(reply == payload, "the reply is another");
                calls += 1;
            }
            Ok(calls)
        });
    }
    let mut calls = 0;
    while let Some(caller) = callers.join_next().await {
        calls += caller??;
    }
    Ok(calls)
}
