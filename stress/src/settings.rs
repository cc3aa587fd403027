//! Which cluster: the upper-case names of the Makefile and of the user's `makefile`.
//!
//! Everything comes from the command line as `name=value`; the environment is not read, because `USER` is always set
//! there and says nothing about a cluster.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use crate::refusal::Refusal;

/// The RDMA path MTUs that a virtual cluster can have, in bytes.
pub const MTUS: [u32; 3] = [1024, 2048, 4096];

/// The kernel series that modules are built and machines booted for.
pub const KERNELS: &[&str] = &["6.1", "6.12"];
/// The most client machines of one run.
const MOST_CLIENTS: u32 = 64;

/// Where a run takes place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The machines.
    pub machines: Machines,
    /// The server's GID, where the user gave one.
    pub parent_gid: Option<Gid>,
    /// What members of the cluster know: 32 hexadecimal digits, or nothing.
    pub cluster_key: String,
}

/// The machines of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machines {
    /// Booted here for the run.
    Virtual(Virtual),
    /// The user's, reached by ssh.
    Real(Real),
}

/// Virtual machines: one server and `clients` clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virtual {
    /// The series of the kernel to boot, `6.12`.
    pub kernel: String,
    /// How many client machines.
    pub clients: u32,
    /// Virtual CPUs of each machine.
    pub cpus: u32,
    /// Memory of each machine.
    pub memory_mib: u32,
    /// The RDMA path MTU in bytes; one of [`MTUS`].
    pub mtu: u32,
    /// Where nothing is said, their kernels look for misuse of memory, but for comparisons of speed.
    pub debugging: Option<MemoryDebugging>,
}

/// Whether a machine's kernel looks for misuse of memory: guards and poison around and in what is allocated and freed.
/// Each packet is an allocation, and pays for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryDebugging {
    /// It does not.
    Off,
    /// It does.
    On,
    /// It also remembers who allocated and who freed each object, which a finding then shows; packets take about twice as long.
    Owners,
}

/// Machines that the user's `makefile` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Real {
    /// The account on all of them; `None` leaves it to ssh.
    pub user: Option<String>,
    /// A directory on each of them.
    pub project_path: PathBuf,
    /// The server.
    pub parent: String,
    /// The clients.
    pub children: Vec<String>,
}

/// An RDMA port's global identifier, shown as the kernel shows it: eight groups of four hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Gid(Ipv6Addr);

impl Gid {
    /// Whether all of it is zero, as in an unused entry of a port's table.
    pub fn is_zero(self) -> bool {
        self.0.is_unspecified()
    }
}

impl FromStr for Gid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Gid).map_err(|_| {
            format!(
                "{text:?} is not a GID, which looks like fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c"
            )
        })
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in self.0.segments().into_iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{group:04x}")?;
        }
        Ok(())
    }
}

impl From<Gid> for String {
    fn from(gid: Gid) -> String {
        gid.to_string()
    }
}

/// What the command line assigns, told apart: settings are upper case, parameters lower case.
#[derive(Debug, Default)]
pub struct Assignments {
    settings: Vec<(String, String)>,
    /// For [`crate::parameters::resolve`].
    pub parameters: Vec<(String, String)>,
}

impl Assignments {
    /// Takes `name=value` words apart. Later words win.
    pub fn parse(words: &[String]) -> Result<Self, Refusal> {
        let mut assignments = Self::default();
        let mut reasons = Vec::new();
        for word in words {
            match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    let pair = (name.to_string(), value.trim().to_string());
                    if name.starts_with(|c: char| c.is_ascii_uppercase()) {
                        assignments.settings.push(pair);
                    } else {
                        assignments.parameters.push(pair);
                    }
                }
                _ => reasons.push(format!("{word:?}: not of the form name=value")),
            }
        }
        Refusal::unless_empty(reasons)?;
        Ok(assignments)
    }

    /// The cluster that the settings describe.
    pub fn settings(&self) -> Result<Settings, Refusal> {
        let mut reader = Reader {
            pairs: &self.settings,
            reasons: Vec::new(),
        };
        reader.refuse_unknown();
        let clients = reader.number("CLIENTS", 1, MOST_CLIENTS);
        let cpus = reader.number("VM_CPUS", 1, 64);
        let memory_mib = reader.number("VM_MEMORY", 128, 1 << 20);
        let mtu = reader.number("VM_MTU", 1, 4096);
        if let Some(mtu) = mtu.filter(|mtu| !MTUS.contains(mtu)) {
            reader
                .reasons
                .push(format!("VM_MTU={mtu}: must be one of 1024, 2048, 4096"));
        }
        let debugging = reader.number("VM_DEBUG", 0, 2).map(|number| match number {
            0 => MemoryDebugging::Off,
            1 => MemoryDebugging::On,
            _ => MemoryDebugging::Owners,
        });
        let kernel = reader.text("KERNEL").unwrap_or("6.12").to_string();
        if !KERNELS.contains(&kernel.as_str()) {
            reader.reasons.push(format!(
                "KERNEL={kernel}: must be one of {}",
                KERNELS.join(", ")
            ));
        }
        let parent_gid = reader
            .text("PARENT_GID")
            .and_then(|text| match text.parse() {
                Ok(gid) => Some(gid),
                Err(reason) => {
                    reader.reasons.push(format!("PARENT_GID: {reason}"));
                    None
                }
            });
        let cluster_key = reader.text("CLUSTER_KEY").unwrap_or("").to_string();
        let is_key = cluster_key.len() == 32 && cluster_key.bytes().all(|b| b.is_ascii_hexdigit());
        if !cluster_key.is_empty() && !is_key {
            // The value is a secret, also a mistyped one.
            reader
                .reasons
                .push("CLUSTER_KEY: must be 32 hexadecimal digits".into());
        }
        let machines = match reader.real(clients) {
            Some(real) => Machines::Real(real),
            None => Machines::Virtual(Virtual {
                kernel,
                clients: clients.unwrap_or(2),
                cpus: cpus.unwrap_or(1),
                memory_mib: memory_mib.unwrap_or(512),
                mtu: mtu.unwrap_or(4096),
                debugging,
            }),
        };
        Refusal::unless_empty(reader.reasons)?;
        Ok(Settings {
            machines,
            parent_gid,
            cluster_key,
        })
    }
}

const NAMES: &[&str] = &[
    "CHILD_HOSTS",
    "CLIENTS",
    "CLUSTER_KEY",
    "KERNEL",
    "PARENT_GID",
    "PARENT_HOST",
    "PROJECT_PATH",
    "STR_CHILD_HOSTS",
    "USER",
    "VM_CPUS",
    "VM_DEBUG",
    "VM_MEMORY",
    "VM_MTU",
];

struct Reader<'a> {
    pairs: &'a [(String, String)],
    reasons: Vec<String>,
}

impl<'a> Reader<'a> {
    fn refuse_unknown(&mut self) {
        for (name, _) in self.pairs {
            if !NAMES.contains(&name.as_str()) {
                self.reasons.push(format!(
                    "{name}: unknown setting; there are {}",
                    NAMES.join(", ")
                ));
            }
        }
    }

    /// The last value of `name`; an empty one counts as none, as an empty line of a makefile does.
    fn text(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.pairs.iter().rev().find(|(n, _)| n == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    fn number(&mut self, name: &str, least: u32, most: u32) -> Option<u32> {
        let text = self.text(name)?;
        match text.parse::<u32>() {
            Ok(number) if (least..=most).contains(&number) => return Some(number),
            Ok(_) => self
                .reasons
                .push(format!("{name}={text}: must be from {least} to {most}")),
            Err(_) => self
                .reasons
                .push(format!("{name}: {text:?} is not a whole number")),
        }
        None
    }

    /// A host or a user, which becomes a word of an ssh command.
    fn check_word(&mut self, name: &str, word: &str) {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        if word.is_empty() || word.starts_with('-') || !word.chars().all(fine) {
            self.reasons.push(format!(
                "{name}: {word:?} is not a name that ssh can be given"
            ));
        }
    }

    fn real(&mut self, clients: Option<u32>) -> Option<Real> {
        let (parent, children) = match (self.text("PARENT_HOST"), self.text("CHILD_HOSTS")) {
            (None, None) => return None,
            (Some(parent), Some(children)) => (parent, children),
            (Some(_), None) => {
                self.reasons
                    .push("CHILD_HOSTS: missing; PARENT_HOST alone is no cluster".into());
                return None;
            }
            (None, Some(_)) => {
                self.reasons
                    .push("PARENT_HOST: missing; CHILD_HOSTS alone is no cluster".into());
                return None;
            }
        };
        let mut children: Vec<String> = children
            .split(',')
            .map(|host| host.trim().to_string())
            .collect();
        self.check_word("PARENT_HOST", parent);
        for (index, child) in children.iter().enumerate() {
            self.check_word("CHILD_HOSTS", child);
            if child == parent || children[..index].contains(child) {
                self.reasons.push(format!(
                    "CHILD_HOSTS: {child} is named twice; a machine has one part in a run"
                ));
            }
        }
        if let Some(quoted) = self.text("STR_CHILD_HOSTS") {
            let same: Vec<&str> = quoted
                .split(',')
                .map(|host| host.trim().trim_matches(['\'', '"']))
                .collect();
            if same != children {
                self.reasons.push("STR_CHILD_HOSTS: does not name the same hosts as CHILD_HOSTS, in the same order".into());
            }
        }
        match clients {
            Some(clients) if clients as usize > children.len() => self.reasons.push(format!(
                "CLIENTS={clients}: CHILD_HOSTS names only {} machines",
                children.len()
            )),
            Some(clients) => children.truncate(clients as usize),
            None if children.len() > MOST_CLIENTS as usize => {
                self.reasons
                    .push(format!("CHILD_HOSTS: more than {MOST_CLIENTS} machines"));
            }
            None => {}
        }
        let user = self.text("USER");
        if let Some(user) = user {
            self.check_word("USER", user);
        }
        let project_path = PathBuf::from(self.text("PROJECT_PATH").unwrap_or_default());
        if !project_path.is_absolute() {
            self.reasons
                .push("PROJECT_PATH: must be an absolute path on each machine".into());
        }
        Some(Real {
            user: user.map(str::to_string),
            project_path,
            parent: parent.to_string(),
            children,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(words: &[&str]) -> Result<Settings, Refusal> {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        Assignments::parse(&words)?.settings()
    }

    const REAL: &[&str] = &[
        "PARENT_HOST=val01",
        "CHILD_HOSTS=val02,val03",
        "PROJECT_PATH=/home/u/mitosis",
    ];

    #[test]
    fn without_hosts_the_cluster_is_virtual() {
        let settings = settings(&["USER=someone", "thread_count=3"]).unwrap();
        let Machines::Virtual(machines) = settings.machines else {
            panic!("real")
        };
        assert_eq!((machines.kernel.as_str(), machines.clients), ("6.12", 2));
    }

    #[test]
    fn with_hosts_it_is_real() {
        let words = [REAL, &["USER=u", "STR_CHILD_HOSTS='val02','val03'"]].concat();
        let Machines::Real(real) = settings(&words).unwrap().machines else {
            panic!("virtual")
        };
        assert_eq!(
            (real.parent.as_str(), real.user.as_deref()),
            ("val01", Some("u"))
        );
        assert_eq!(real.children, ["val02", "val03"]);
        let words = [REAL, &["CLIENTS=1"]].concat();
        let Machines::Real(real) = settings(&words).unwrap().machines else {
            panic!("virtual")
        };
        assert_eq!(real.children, ["val02"]);
    }

    #[test]
    fn a_gid_is_shown_as_the_kernel_shows_it() {
        let gid: Gid = "fe80::ec0d:9a03:ca:2f4c".parse().unwrap();
        assert_eq!(gid.to_string(), "fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name_and_reason() {
        let cases: &[(&[&str], &str)] = &[
            (&["CLIENTS"], "not of the form name=value"),
            (&["=3"], "not of the form name=value"),
            (&["CLIENT=3"], "CLIENT: unknown setting"),
            (&["CLIENTS=0"], "CLIENTS=0: must be from 1 to 64"),
            (&["CLIENTS=65"], "CLIENTS=65: must be from 1 to 64"),
            (&["CLIENTS=two"], "CLIENTS: \"two\" is not a whole number"),
            (&["VM_MEMORY=1"], "VM_MEMORY=1"),
            (&["VM_CPUS=0"], "VM_CPUS=0"),
            (&["VM_DEBUG=yes"], "VM_DEBUG: \"yes\" is not a whole number"),
            (&["VM_DEBUG=3"], "VM_DEBUG=3: must be from 0 to 2"),
            (
                &["VM_MTU=1500"],
                "VM_MTU=1500: must be one of 1024, 2048, 4096",
            ),
            (&["KERNEL=5.10"], "KERNEL=5.10: must be one of 6.1, 6.12"),
            (&["PARENT_GID=fe80"], "PARENT_GID: \"fe80\" is not a GID"),
            (&["PARENT_HOST=val01"], "CHILD_HOSTS: missing"),
            (&["CHILD_HOSTS=val02"], "PARENT_HOST: missing"),
            (
                &["PARENT_HOST=a", "CHILD_HOSTS=b", "PROJECT_PATH=x"],
                "PROJECT_PATH: must be an absolute path",
            ),
            (
                &["PARENT_HOST=a", "CHILD_HOSTS=b"],
                "PROJECT_PATH: must be an absolute path",
            ),
            (
                &["PARENT_HOST=a", "CHILD_HOSTS=b,b", "PROJECT_PATH=/x"],
                "b is named twice",
            ),
            (
                &["PARENT_HOST=a", "CHILD_HOSTS=a", "PROJECT_PATH=/x"],
                "a is named twice",
            ),
            (
                &[
                    "PARENT_HOST=-oProxyCommand=x",
                    "CHILD_HOSTS=b",
                    "PROJECT_PATH=/x",
                ],
                "PARENT_HOST: \"-oProxyCommand=x\"",
            ),
            (
                &["PARENT_HOST=a", "CHILD_HOSTS=b,,c", "PROJECT_PATH=/x"],
                "CHILD_HOSTS: \"\" is not a name",
            ),
            (
                &[
                    "PARENT_HOST=a",
                    "CHILD_HOSTS=b",
                    "PROJECT_PATH=/x",
                    "USER=u;v",
                ],
                "USER: \"u;v\"",
            ),
            (
                &[
                    "PARENT_HOST=a",
                    "CHILD_HOSTS=b",
                    "PROJECT_PATH=/x",
                    "CLIENTS=2",
                ],
                "CHILD_HOSTS names only 1",
            ),
            (
                &[
                    "PARENT_HOST=a",
                    "CHILD_HOSTS=b",
                    "PROJECT_PATH=/x",
                    "STR_CHILD_HOSTS='c'",
                ],
                "STR_CHILD_HOSTS: does not",
            ),
        ];
        for (words, want) in cases {
            let message = settings(words).expect_err("must be refused").to_string();
            assert!(message.contains(want), "{words:?} gave {message}");
        }
    }
}
