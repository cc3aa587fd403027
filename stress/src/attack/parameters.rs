//! Every parameter of every module, beyond what it may be and at the edge of it: what is refused is refused by its name,
//! and what is taken does no harm.

use std::collections::BTreeSet;

use anyhow::{ensure, Result};

use super::{lines, Attack, Row, CLIENT, FLOOD, FORK, NEAR, SERVER};
use crate::cluster::shell::quote;
use crate::klog::watch::Watch;
use crate::scene::STEP;

/// What becomes of a value.
#[derive(Clone, Copy)]
enum Fate {
    /// insmod fails, and the log has this.
    Refused(&'static str),
    /// The module is inserted.
    Taken,
}
use Fate::{Refused, Taken};

/// What the kernel says of what is no number, or none of 32 bits.
const NO_NUMBER: Fate = Refused("' invalid for parameter `");
const NO_KEY: Fate = Refused("cluster_key is not 32 hexadecimal digits");
const NO_GID: Fate = Refused("gid is not eight groups");
const NO_SERVICE: Fate = Refused("more than 255");
const NO_THREADS: Fate = Refused("thread_count is not in 1 to 64");
const NO_WINDOW: Fate = Refused("window is not in 1 to 16");
const NO_PAYLOAD: Fate = Refused("payload_size and its checksum are more than a message");
const NO_PREFETCH: Fate = Refused("not between 1 and 16");
const NO_PLAY: Fate = Refused("play is none of");

const TOO_LONG: &str = "00112233445566778899aabbccddeeff0";
const NO_DIGIT: &str = "0123456789abcdef0123456789abcdeg";
const SOMEBODY: &str = "fe80:0000:0000:0000:5054:00ff:fe49:00ff";

/// Numbers that are taken whatever they are: the largest, and the ones beyond it that are not.
const ANY_NUMBER: &[(&str, Fate)] = &[("0", Taken), ("4294967295", Taken)];
const SERVICE: &[(&str, Fate)] = &[
    ("255", Taken),
    ("256", NO_SERVICE),
    ("4294967295", NO_SERVICE),
];
const KEY: &[(&str, Fate)] = &[
    ("0", NO_KEY),
    (NO_DIGIT, NO_KEY),
    (TOO_LONG, NO_KEY),
    ("", Taken),
];
const GID: &[(&str, Fate)] = &[
    ("", NO_GID),
    ("fe80::1", NO_GID),
    ("fe80:0000:0000:0000:5054:00ff:fe49:00f", NO_GID),
    ("fe80:0000:0000:0000:5054:00ff:fe49:00ff:0000", NO_GID),
    ("fe80:0000:0000:0000:5054:00ff:fe49:00fg", NO_GID),
];

/// A module's parameter that is a number, or is text; its values, and what becomes of them.
struct Parameter {
    module: &'static str,
    name: &'static str,
    is_number: bool,
    values: &'static [(&'static str, Fate)],
}

const fn number(
    module: &'static str,
    name: &'static str,
    values: &'static [(&'static str, Fate)],
) -> Parameter {
    Parameter {
        module,
        name,
        is_number: true,
        values,
    }
}

const fn text(
    module: &'static str,
    name: &'static str,
    values: &'static [(&'static str, Fate)],
) -> Parameter {
    Parameter {
        module,
        name,
        is_number: false,
        values,
    }
}

const PARAMETERS: &[Parameter] = &[
    number(
        SERVER,
        "running_secs",
        &[("0", Refused("running_secs is 0")), ("4294967295", Taken)],
    ),
    number(SERVER, "test_rpc_id", ANY_NUMBER),
    number(SERVER, "qd_hint", ANY_NUMBER),
    number(SERVER, "service_id", SERVICE),
    text(SERVER, "cluster_key", KEY),
    number(CLIENT, "server_qd_hint", ANY_NUMBER),
    number(CLIENT, "client_qd_hint", ANY_NUMBER),
    number(CLIENT, "server_service_id", SERVICE),
    number(CLIENT, "client_service_id_base", ANY_NUMBER),
    number(CLIENT, "test_rpc_id", ANY_NUMBER),
    number(
        CLIENT,
        "running_secs",
        &[("0", Refused("running_secs is 0")), ("4294967295", Taken)],
    ),
    number(
        CLIENT,
        "report_interval",
        &[
            ("0", Refused("report_interval is 0")),
            ("4294967295", Taken),
        ],
    ),
    number(
        CLIENT,
        "thread_count",
        &[
            ("0", NO_THREADS),
            ("64", Taken),
            ("65", NO_THREADS),
            ("4294967295", NO_THREADS),
        ],
    ),
    number(
        CLIENT,
        "window",
        &[
            ("0", NO_WINDOW),
            ("16", Taken),
            ("17", NO_WINDOW),
            ("4294967295", NO_WINDOW),
        ],
    ),
    number(CLIENT, "session_id_base", ANY_NUMBER),
    // The largest number is what it is if it is not given.
    number(
        CLIENT,
        "payload_size",
        &[
            ("8388608", Taken),
            ("8388609", NO_PAYLOAD),
            ("4294967294", NO_PAYLOAD),
            ("4294967295", Taken),
        ],
    ),
    text(CLIENT, "gid", GID),
    text(CLIENT, "cluster_key", KEY),
    number(FLOOD, "server_qd_hint", ANY_NUMBER),
    number(FLOOD, "server_service_id", SERVICE),
    number(FLOOD, "datagrams", ANY_NUMBER),
    number(FLOOD, "seed", ANY_NUMBER),
    number(FLOOD, "test_rpc_id", ANY_NUMBER),
    text(FLOOD, "play", &[("", NO_PLAY), ("loud", NO_PLAY)]),
    // Looked at by whoever plays them.
    text(FLOOD, "connect", &[("xyz", Taken)]),
    text(FLOOD, "confirm", &[("xyz", Taken)]),
    text(FLOOD, "gid", GID),
    number(FORK, "service_id", SERVICE),
    number(
        FORK,
        "prefetch",
        &[
            ("0", NO_PREFETCH),
            ("16", Taken),
            ("17", NO_PREFETCH),
            ("4294967295", NO_PREFETCH),
        ],
    ),
    number(FORK, "cache_pages", ANY_NUMBER),
    number(FORK, "warm_pages", ANY_NUMBER),
    text(FORK, "cluster_key", KEY),
];

/// What is no number for any parameter that is one.
const NO_NUMBERS: [&str; 4] = ["-1", "4294967296", "0x", "many"];

/// What a module is given besides, so that only the value in question is wrong. What comes last counts.
fn others(module: &str) -> String {
    match module {
        CLIENT | FLOOD => format!("gid={SOMEBODY}"),
        _ => String::new(),
    }
}

impl Attack<'_> {
    pub(super) fn parameters(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        for module in [SERVER, CLIENT, FLOOD, FORK] {
            self.all_are_known(watch, module)?;
        }
        let (mut refused, mut taken) = (0, 0);
        for parameter in PARAMETERS {
            let wrong = NO_NUMBERS.iter().map(|value| (*value, NO_NUMBER));
            let wrong = wrong.filter(|_| parameter.is_number);
            for (value, fate) in parameter.values.iter().copied().chain(wrong) {
                match fate {
                    Refused(_) => refused += 1,
                    Taken => taken += 1,
                }
                self.give(watch, parameter, value, fate)?;
            }
        }
        row.refused = Some(refused);
        row.taken = Some(taken);
        Ok(())
    }

    /// No module has a parameter of which nothing is known here.
    fn all_are_known(&self, watch: &mut Watch<'_>, module: &str) -> Result<()> {
        let said = self.say(watch, NEAR, &format!("modinfo -F parm {module}.ko"), STEP)?;
        let has: BTreeSet<&str> = said
            .iter()
            .filter_map(|line| line.split_once(':').map(|(name, _)| name))
            .collect();
        let of_module = PARAMETERS.iter().filter(|known| known.module == module);
        let known: BTreeSet<&str> = of_module.map(|known| known.name).collect();
        ensure!(
            has == known,
            "{module} has the parameters {has:?}, and values are known for {known:?}"
        );
        Ok(())
    }

    fn give(
        &self,
        watch: &mut Watch<'_>,
        parameter: &Parameter,
        value: &str,
        fate: Fate,
    ) -> Result<()> {
        let Parameter { module, name, .. } = parameter;
        let before = lines(watch, NEAR);
        let given = quote(&format!("{name}={value}"));
        let script = format!(
            "if insmod {module}.ko {} {given} 2>&1; then echo inserted; rmmod {module}; fi",
            others(module)
        );
        let said = self.say(watch, NEAR, &script, STEP)?;
        let inserted = said.iter().any(|line| line == "inserted");
        match fate {
            Taken => ensure!(inserted, "{module} refuses {name}={value}: {said:?}"),
            Refused(why) => {
                ensure!(!inserted, "{module} takes {name}={value}");
                let what = format!("{module} refuses {name}={value} without saying {why:?}");
                self.await_line_after(watch, NEAR, before, &what, |text| text.contains(why))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_parameter_has_a_value_that_is_at_an_edge() {
        for parameter in PARAMETERS {
            assert!(!parameter.values.is_empty(), "{}", parameter.name);
        }
        let names: BTreeSet<_> = PARAMETERS
            .iter()
            .map(|known| (known.module, known.name))
            .collect();
        assert_eq!(names.len(), PARAMETERS.len());
    }
}
