//! `mitosis`: remote fork. `docs/fork.md` is its specification.
//!
//! - [`entry`] is what the shim calls: the device, images, page faults. [`calls`] are the device's calls.
//! - [`prepare`] freezes a process, [`seed`] keeps what is frozen, [`seeds`] lets it be found, [`service`] lets other machines
//!   ask for it.
//! - [`machine`] is another machine: a [`channel`] to ask it, a [`link`] to read its memory.
//! - [`image`] is another machine's seed here, with the pages that were fetched, each [`chunk`] for itself; [`resume`] makes a
//!   child of it. What the seed touched last ([`recent`]) is fetched first.
//!
//! The state is one [`Fork`], from insmod to rmmod. While a file of the module is open, and while there are a seed or a child,
//! rmmod is refused by the kernel, so that nothing here outlives it.

pub mod arguments;
pub mod calls;
pub mod channel;
mod chunk;
pub mod clients;
pub mod complaints;
pub mod entry;
#[allow(missing_docs)]
pub mod ffi;
pub mod image;
mod images;
mod incoming;
pub mod link;
pub mod lost;
pub mod machine;
pub mod memory;
pub mod prepare;
pub mod process;
mod recent;
pub mod refusal;
pub mod resume;
pub mod seed;
pub mod seeds;
pub mod service;

use core::sync::atomic::{AtomicPtr, Ordering};

use mitosis_core::descriptor::identity::CpuidRegister;
use mitosis_core::descriptor::CpuFeatures;
use mitosis_core::session::ClusterKey;
use mitosis_core::sync::count::Tally;
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::fork::QUEUE_HINT;
use mitosis_core::wire::resolution::MAX_SERVICE_ID;

use self::clients::Clients;
use self::complaints::Complaints;
use self::images::Images;
use self::link::{Door, LinkListener, Visitors};
use self::machine::Machines;
use self::seeds::Seeds;
use self::service::SeedService;
use crate::devices::{Devices, Port};
use crate::errno::Errno;
use crate::key;
use crate::lock::{Mutex, Shared};
use crate::memory::{Owned, Page};
use crate::module::{Control, Slot};
use crate::server;
use crate::thread::{random, Event};
use crate::verbs::ProtectionDomain;
use crate::{error, info};

/// What has happened since insmod.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub prepared: Tally,
    pub unprepared: Tally,
    pub children: Tally,
    pub faults: Tally,
    pub faults_zero: Tally,
    pub faults_cached: Tally,
    pub faults_read: Tally,
    pub faults_rpc: Tally,
    pub faults_failed: Tally,
    pub pages_read: Tally,
    pub cached_pages: Tally,
}

/// The module's state. Fields are dropped in this order: what is on a device before the devices.
pub struct Fork {
    /// Other machines' seeds.
    pub images: Images,
    /// Other machines.
    pub machines: Machines,
    /// Connections of other machines.
    pub visitors: Visitors,
    /// This machine's seeds.
    pub seeds: Seeds,
    /// Who has the device open.
    pub clients: Clients,
    /// What the log says about failed calls.
    pub complaints: Complaints,
    /// What has happened.
    pub counters: Counters,
    /// What this machine's processors have.
    pub cpu: CpuFeatures,
    /// Which incarnation this is.
    pub epoch: u64,
    /// Where this machine's module listens.
    pub service: u32,
    /// Pages to read with one that was touched.
    pub prefetch: u32,
    /// Pages of images to keep.
    pub cache_pages: u32,
    /// Pages that a seed touched last to read when it is opened, at most.
    pub warm_pages: u32,
    /// What the cluster knows.
    pub cluster_key: Option<ClusterKey>,
    /// Wanted by nobody: a process that looks for a machine gives up by itself.
    pub resolving: Stop,
    /// The RDMA devices, until one is removed: all are let go then.
    devices: Mutex<Option<Shared<Devices<'static>>>>,
    /// Signalled when a device goes away.
    _event: Owned<Event>,
}

impl Fork {
    /// The RDMA devices. Whoever has something on one holds them.
    pub fn devices(&self) -> Result<Shared<Devices<'static>>, Errno> {
        self.devices.lock().clone().ok_or(Errno::NO_DEVICE)
    }

    /// Lets go of everything on any device.
    fn leave_devices(&self) {
        let devices = self.devices.lock().take();
        self.machines.forget_all();
        self.images.settle();
        drop(devices);
    }

    /// Ends the seeds that were made through an open file, but for those that have a lease.
    fn release_of(&self, owner: u64) {
        self.seeds.call_off_all(owner);
        let mut from = 0;
        while let Some((index, seed)) = self.seeds.next(from, |seed| seed.origin.owner == owner) {
            from = index + 1;
            if seed.leased.value() == 0 {
                seed.release();
            }
        }
    }
}

static FORK: AtomicPtr<Fork> = AtomicPtr::new(core::ptr::null_mut());
static SLOT: Slot = Slot::empty();

/// The module's state, between insmod and rmmod.
pub fn fork() -> Option<&'static Fork> {
    // Acquire: pairs with the Release in `mitosis_fork_start`.
    // SAFETY: what is stored there lives until rmmod, which waits for all who call this.
    unsafe { FORK.load(Ordering::Acquire).as_ref() }
}

/// Starts the module. Called by insmod.
///
/// # Safety
/// `parameters` is valid during the call.
#[no_mangle]
pub unsafe extern "C" fn mitosis_fork_start(parameters: *const ffi::ForkParameters) -> i32 {
    // SAFETY: by this function's contract.
    let parameters = unsafe { *parameters };
    // SAFETY: by this function's contract.
    match start(&parameters, unsafe { parameters.cluster_key.bytes() }) {
        Ok(()) => 0,
        Err(errno) => errno.0,
    }
}

fn start(parameters: &ffi::ForkParameters, key: &[u8]) -> Result<(), Errno> {
    if parameters.service_id > MAX_SERVICE_ID {
        error!(
            "service_id is ",
            parameters.service_id, ", more than ", MAX_SERVICE_ID
        );
        return Err(Errno::INVALID);
    }
    if !(1..=link::READ_PAGES as u32).contains(&parameters.prefetch) {
        error!(
            "prefetch is ",
            parameters.prefetch,
            ", not between 1 and ",
            link::READ_PAGES
        );
        return Err(Errno::INVALID);
    }
    let cluster_key = key::parse(key).map_err(|complaint| {
        error!(complaint);
        Errno::INVALID
    })?;
    let event = Owned::new(Event::new()?)?;
    // SAFETY: the event lies in memory of its own, which is dropped after the devices.
    let devices = Devices::open(unsafe { &*core::ptr::from_ref::<Event>(&*event) })?;
    let fork = Owned::new(Fork {
        images: Images::new()?,
        machines: Machines::new()?,
        visitors: Visitors::new()?,
        seeds: Seeds::new()?,
        clients: Clients::new()?,
        complaints: Complaints::new()?,
        counters: Counters::default(),
        cpu: cpu_features(),
        epoch: random(),
        service: parameters.service_id,
        prefetch: parameters.prefetch,
        cache_pages: parameters.cache_pages,
        warm_pages: parameters.warm_pages,
        cluster_key,
        resolving: Stop::new(),
        devices: Mutex::new(Some(Shared::new(devices)?))?,
        _event: event,
    })?;
    let raw = fork.into_raw();
    // Release: pairs with the Acquire in `fork`.
    FORK.store(raw, Ordering::Release);
    // SAFETY: stored just now, and taken back only after the thread has been joined.
    let fork: &'static Fork = unsafe { &*raw };
    let started = SLOT.load(c"mitosis", move |control| {
        if let Err(failure) = serve(fork, control) {
            failure.log();
            fork.leave_devices();
            error!("mitosis serves no more until it is inserted again");
        }
    });
    if let Err(errno) = started {
        end();
        return Err(errno);
    }
    Ok(())
}

/// Stops the module. Called by rmmod, when no file of the module is open.
#[no_mangle]
pub extern "C" fn mitosis_fork_stop() {
    SLOT.unload();
    end();
}

/// What programs on this machine may use (descriptor.md §3.1).
fn cpu_features() -> CpuFeatures {
    let mut features = CpuFeatures::default();
    let mut places = features.0.iter_mut();
    for (source, place) in CpuFeatures::SOURCES.iter().zip(&mut places) {
        let mut registers = [0; 4];
        // SAFETY: there is room for four registers.
        unsafe { ffi::mitosis_cpuid(source.leaf, source.subleaf, &mut registers) };
        let [eax, ebx, ecx, edx] = registers;
        let register = match source.register {
            CpuidRegister::Eax => eax,
            CpuidRegister::Ebx => ebx,
            CpuidRegister::Ecx => ecx,
            CpuidRegister::Edx => edx,
        };
        *place = register & source.mask;
    }
    if let Some(place) = places.next() {
        // SAFETY: no preconditions.
        *place = unsafe { ffi::mitosis_xcr0() };
    }
    features
}

fn end() {
    // Acquire: pairs with the Release in `start`.
    let raw = FORK.swap(core::ptr::null_mut(), Ordering::Acquire);
    // SAFETY: the swap makes this the only taker, and no file is open through which somebody could look at it.
    if let Some(fork) = unsafe { Owned::from_raw(raw) } {
        fork.leave_devices();
    }
}

/// The life of the serving thread. What is declared first is dropped last.
fn serve(fork: &'static Fork, control: &Control) -> Result<(), server::Failure> {
    let devices = fork.devices().map_err(server::kernel("no devices"))?;
    let ports = server::open_ports(&devices)?;
    let door = Door {
        visitors: &fork.visitors,
        ports: &ports,
    };
    let _visitors = Farewell { fork };
    let listen = |infiniband| -> Result<Option<LinkListener<'_>>, server::Failure> {
        let wanted = ports
            .iter()
            .any(|(port, _): &(Port, ProtectionDomain)| port.is_infiniband() == infiniband);
        wanted
            .then(|| LinkListener::open(fork.service, infiniband, &control.event, &door))
            .transpose()
            .map_err(server::kernel(
                "cannot listen for connections (another server?)",
            ))
    };
    let _listeners = (listen(false)?, listen(true)?);
    let service = SeedService {
        fork,
        page: Page::new().map_err(server::kernel("cannot allocate"))?,
    };
    let place = server::Place {
        qd_hint: QUEUE_HINT,
        service_id: fork.service,
        cluster_key: fork.cluster_key,
        running_ns: u64::MAX,
    };
    info!("mitosis ready: service ", fork.service);
    server::serve_on(&place, control, &devices, &ports, service, &|| {
        fork.visitors.sweep(false);
        fork.machines.keep();
    })
}

/// What the ports' domains hold goes before they do: regions of seeds, and connections.
struct Farewell {
    fork: &'static Fork,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let mut from = 0;
        while let Some((index, seed)) = self.fork.seeds.next(from, |_| true) {
            from = index + 1;
            seed.revoke();
        }
        self.fork.visitors.sweep(true);
    }
}
