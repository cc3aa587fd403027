//! Whoever sends what the script says, and does nothing of itself.

use crate::network::Address;
use crate::world::{Endpoint, Order, Port};

/// An address that is nobody's: what is answered there is heard by nobody.
pub struct Stranger;

impl Endpoint for Stranger {
    fn start(&mut self, _port: &mut Port<'_>) {}
    fn crash(&mut self, _port: &mut Port<'_>) {}
    fn receive(&mut self, _port: &mut Port<'_>, _from: Address, _datagram: &[u8]) {}
    fn wake(&mut self, _port: &mut Port<'_>) {}
    fn next_wake_ns(&self) -> Option<u64> {
        None
    }
    fn order(&mut self, _port: &mut Port<'_>, _order: Order) {}
    fn leave(&mut self, _port: &mut Port<'_>) {}
}
