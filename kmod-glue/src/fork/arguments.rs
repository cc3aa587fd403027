//! What a call on `/dev/mitosis` is given, looked at before anything is done for it: a known number, a structure of the
//! number's length, reserved fields that are 0, no unknown flag. Nothing here needs a kernel.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use mitosis_core::uapi::{self, FREEZE_STRICT_FILES, OPEN_EAGER, OPEN_PRIVATE, PREPARE_WAIT};

/// A call and its argument, which is what the caller is given back.
#[allow(missing_docs)]
pub enum Call<'a> {
    Freeze(&'a uapi::Freeze),
    Prepare(&'a mut uapi::Prepare),
    Unprepare(&'a uapi::SeedId),
    List(&'a mut uapi::List),
    Query(&'a mut uapi::SeedInfo),
    Open(&'a mut uapi::Open),
    Connect(&'a uapi::Machine),
    Disconnect(&'a uapi::Machine),
    Ping(&'a mut uapi::Ping),
    Stats(&'a mut uapi::Stats),
}

/// Why a call is refused before it is looked at any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no call of this number: ENOTTY.
    NoSuchCall,
    /// Its argument is not what the header allows: EINVAL.
    Invalid,
}

impl<'a> Call<'a> {
    /// The call of this number. `argument` is aligned to 8.
    pub fn of(number: u32, argument: &'a mut [u8]) -> Result<Self, Refused> {
        let call = match number {
            uapi::FREEZE => Call::Freeze(typed(argument)?),
            uapi::PREPARE => Call::Prepare(typed(argument)?),
            uapi::UNPREPARE => Call::Unprepare(typed(argument)?),
            uapi::LIST => Call::List(typed(argument)?),
            uapi::QUERY => Call::Query(typed(argument)?),
            uapi::OPEN => Call::Open(typed(argument)?),
            uapi::CONNECT => Call::Connect(typed(argument)?),
            uapi::DISCONNECT => Call::Disconnect(typed(argument)?),
            uapi::PING => Call::Ping(typed(argument)?),
            uapi::STATS => Call::Stats(typed(argument)?),
            _ => return Err(Refused::NoSuchCall),
        };
        if call.is_valid() {
            Ok(call)
        } else {
            Err(Refused::Invalid)
        }
    }

    fn is_valid(&self) -> bool {
        match self {
            Call::Freeze(call) => call.reserved == 0 && call.flags & !FREEZE_STRICT_FILES == 0,
            Call::Prepare(call) => {
                call.flags & !PREPARE_WAIT == 0 && call.reserved == 0 && call.token != 0
            }
            Call::Open(call) => {
                call.flags & !(OPEN_EAGER | OPEN_PRIVATE) == 0 && call.machine.reserved == 0
            }
            Call::Connect(machine) | Call::Disconnect(machine) => machine.reserved == 0,
            Call::Ping(call) => call.machine.reserved == 0,
            Call::Unprepare(_) | Call::List(_) | Call::Query(_) | Call::Stats(_) => true,
        }
    }
}

fn typed<T>(argument: &mut [u8]) -> Result<&mut T, Refused>
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable,
{
    T::mut_from_bytes(argument).map_err(|_| Refused::Invalid)
}
