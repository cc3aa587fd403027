//! The RDMA devices of this machine, and their active ports.

use core::ptr::NonNull;

use crate::errno::Errno;
use crate::ffi;
use crate::log::{Line, Part};
use crate::thread::Event;

/// Most ports that a module serves; more are not looked at.
pub const MAX_PORTS: usize = 8;

/// The devices, held: none of them disappears before this is dropped.
///
/// When one is to be removed the event is signalled and [`Devices::removed`] becomes true. The removal waits until
/// the module has dropped everything that it has on any device, and then this.
pub struct Devices<'e> {
    devices: NonNull<ffi::Devices>,
    _event: &'e Event,
}

// SAFETY: the list is guarded by a mutex, and the rest is atomic (shim/devices.c).
unsafe impl Sync for Devices<'_> {}
// SAFETY: any thread may close it: the kernel's client is not a thread's.
unsafe impl Send for Devices<'_> {}

impl<'e> Devices<'e> {
    /// Asks the kernel for its devices. A module holds at most one `Devices`.
    pub fn open(event: &'e Event) -> Result<Devices<'e>, Errno> {
        // SAFETY: the event outlives `self`, and so the callbacks that signal it.
        let devices = unsafe { ffi::mitosis_devices_open(event.as_ptr()) };
        NonNull::new(devices)
            .map(|devices| Devices {
                devices,
                _event: event,
            })
            .ok_or(Errno::NO_DEVICE)
    }

    /// The ports that are active now.
    pub fn ports(&self) -> Ports {
        let mut ports = Ports {
            ports: [Port::NONE; MAX_PORTS],
            len: 0,
        };
        // SAFETY: `Port` is `ffi::Port` in layout, and there is room for MAX_PORTS of them.
        let filled = unsafe {
            ffi::mitosis_devices_ports(
                self.devices.as_ptr(),
                ports.ports.as_mut_ptr().cast(),
                MAX_PORTS as u32,
            )
        };
        ports.len = filled as usize;
        ports
    }

    /// Whether a device is waiting to be removed.
    pub fn removed(&self) -> bool {
        // SAFETY: the devices are open as long as `self` lives.
        unsafe { ffi::mitosis_devices_removed(self.devices.as_ptr()) }
    }
}

impl Drop for Devices<'_> {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed only here.
        unsafe { ffi::mitosis_devices_close(self.devices.as_ptr()) }
    }
}

/// A port of a device. Valid as long as the [`Devices`] it came from is held.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Port(pub(crate) ffi::Port);

// SAFETY: the device behind the pointer may be used from any thread.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

impl Port {
    const NONE: Port = Port(ffi::Port {
        device: core::ptr::null_mut(),
        port_num: 0,
        mtu_bytes: 0,
        ifindex: 0,
        max_qp_wr: 0,
        is_infiniband: 0,
        gid: [0; 16],
        name: [0; 64],
    });

    /// Largest datagram in bytes: the active MTU.
    pub fn mtu_bytes(&self) -> u32 {
        self.0.mtu_bytes
    }

    /// Whether the link is InfiniBand rather than Ethernet.
    pub fn is_infiniband(&self) -> bool {
        self.0.is_infiniband != 0
    }

    /// Entry 0 of its GID table.
    pub fn gid(&self) -> Gid {
        Gid(self.0.gid)
    }

    /// Most work requests in a queue of its device.
    pub fn max_qp_wr(&self) -> u32 {
        self.0.max_qp_wr
    }

    /// Whether both are one port.
    pub fn same(&self, other: &Port) -> bool {
        self.is(other.0.device, other.0.port_num)
    }

    /// Whether this is port `port_num` of `device`.
    pub(crate) fn is(&self, device: *mut ffi::IbDevice, port_num: u32) -> bool {
        self.0.device == device && self.0.port_num == port_num
    }
}

impl Part for Port {
    fn put(&self, line: &mut Line) {
        let name = self.0.name.split(|&byte| byte == 0).next();
        line.push(name.unwrap_or(&[]));
        if self.0.port_num != 1 {
            "/".put(line);
            self.0.port_num.put(line);
        }
    }
}

/// The active ports of a machine.
pub struct Ports {
    ports: [Port; MAX_PORTS],
    len: usize,
}

impl Ports {
    /// The ports.
    pub fn as_slice(&self) -> &[Port] {
        self.ports.get(..self.len).unwrap_or(&[])
    }
}

/// A GID: written as eight groups of four hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// Reads the form that the module parameter has: eight groups of exactly four digits, colons between.
    pub fn parse(text: &[u8]) -> Option<Gid> {
        let mut gid = [0u8; 16];
        let mut groups = text.split(|&byte| byte == b':');
        for pair in gid.chunks_exact_mut(2) {
            let group = groups.next()?;
            if group.len() != 4 {
                return None;
            }
            let value = group.iter().try_fold(0u16, |value, &digit| {
                let digit = char::from(digit).to_digit(16)?;
                Some((value << 4) | digit as u16)
            })?;
            for (place, byte) in pair.iter_mut().zip(value.to_be_bytes()) {
                *place = byte;
            }
        }
        groups.next().is_none().then_some(Gid(gid))
    }
}

impl Part for Gid {
    fn put(&self, line: &mut Line) {
        for (index, &byte) in self.0.iter().enumerate() {
            if index > 0 && index % 2 == 0 {
                line.push(b":");
            }
            for nibble in [byte >> 4, byte & 15] {
                line.push(&[if nibble < 10 {
                    b'0' + nibble
                } else {
                    b'a' + nibble - 10
                }]);
            }
        }
    }
}
