//! Templates: what a run or a build is, read from `templates-run/*.toml` and `templates-build/*.toml`.
//!
//! ```toml
//! server_running_secs = 80          # top-level numbers are parameters; a `name=value` on the command line wins
//!
//! [build]
//! template = "templates-build/…"    # what makes the modules, unless another build was made last
//! programs = "templates-build/…"    # what makes the programs
//!
//! [[pass]]                          # in order; a run's pass happens on all hosts of its role at once
//! name = "server"
//! role = "parent"                   # or "child"
//! module = "mitosis_rpc_server"     # insmod it, or: program = "rpc-server", which runs as long as the pass lasts and whose
//!                                   # lines count as the host's log; or: command = "…", a shell command there
//! arguments = "running_secs={server_running_secs}"
//! optional = ["payload_size"]       # follows as payload_size=… (a program's: --payload-size …) where the command line
//!                                   # gives it
//! ready = "rpc server ready"        # the next pass waits for a log line with this text on each of these hosts
//! expected = ["…"]                  # log lines with these texts are no findings: the pass brings them about
//! done = "stress test done"         # the run lasts until a log line with this text came from each of these hosts
//!
//! [[pass]]
//! name = "the parent"
//! role = "parent"
//! program = "lean-parent"           # copied there, and run in the directory that it is copied to
//! interactive = true                # it is spoken with: what it prints is no log, the end of its input tells it to end
//! files = ["lean-parent.data"]      # copied with it
//! ready = "prepared: "              # in what a program prints; without it, the run lasts until the program ends
//! gives = ["seed"]                  # values for later passes: the words seed=… of its ready line
//! left = "./mitosis-lean left"      # run before anything is unloaded; fails where something is left behind
//! counts = "containers"             # what it reports is that of `mitosis-lean`
//! ```
//!
//! A build's pass has `each = "kernel"`, `"host"` or `"once"` and a `command`. `{name}` stands for a parameter or for one
//! of the built-in values ([`RUN_VALUES`], [`BUILD_VALUES`]). A template is outside input: whatever it holds that is not
//! understood is an error that names the file, the place and the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::Deserialize;

use crate::cluster::Role;
use crate::refusal::Refusal;

/// Values that a run template may use besides its parameters.
pub const RUN_VALUES: &[&str] = &["address", "gid", "random"];
/// Values that a build template may use besides its parameters.
pub const BUILD_VALUES: &[&str] = &["headers", "out", "release"];

/// A template whose passes are of kind `P`.
#[derive(Debug)]
pub struct Template<P> {
    /// Where it was read from.
    pub path: PathBuf,
    /// The numbers at its top.
    pub parameters: BTreeMap<String, u64>,
    /// Parameters that have no value unless the command line gives one.
    pub optional: BTreeSet<String>,
    /// The build template that makes its modules.
    pub build: Option<PathBuf>,
    /// The build template that makes its programs.
    pub programs: Option<PathBuf>,
    /// In order.
    pub passes: Vec<P>,
}

/// One step of a run: the same thing on every host of a role.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPass {
    /// What messages call it.
    pub name: String,
    /// The hosts.
    pub role: Role,
    /// A kernel module to load…
    pub module: Option<String>,
    /// …or a program of this project's to run…
    pub program: Option<String>,
    /// …or a shell command to run, as root.
    pub command: Option<String>,
    /// Whether the run talks with the program: what it prints is then its own and not the host's log, and the end of its
    /// standard input tells it to end, rather than a signal.
    #[serde(default)]
    pub interactive: bool,
    /// Files of the same place that an interactive program needs.
    #[serde(default)]
    pub files: Vec<String>,
    /// What follows the module or the command, with placeholders.
    #[serde(default)]
    pub arguments: String,
    /// Parameters that have no value unless the command line gives one; they follow the arguments as `name=value`, or as
    /// `--name value` where it is a program.
    #[serde(default)]
    pub optional: Vec<String>,
    /// Log lines with these texts are no findings while the run lasts: this pass brings them about.
    #[serde(default)]
    pub expected: Vec<String>,
    /// A log line with this text, or a line of an interactive program's, says that the next pass can start.
    pub ready: Option<String>,
    /// Values that later passes may use: the program's ready line has each as `name=value`.
    #[serde(default)]
    pub gives: Vec<String>,
    /// A shell command, run before anything is unloaded: it fails where something of this pass is left behind.
    pub left: Option<String>,
    /// A log line with this text says that this host's part is done.
    pub done: Option<String>,
    /// What its hosts report of themselves at its end.
    #[serde(default)]
    pub counts: Counts,
}

/// What a run counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Counts {
    /// Answered requests, as the RPC's modules do.
    #[default]
    Requests,
    /// Verified containers, as `mitosis-lean` does.
    Containers,
}

/// What a run with these passes counts.
pub fn counts(passes: &[RunPass]) -> Counts {
    let containers = |pass: &RunPass| pass.counts == Counts::Containers;
    if passes.iter().any(containers) {
        Counts::Containers
    } else {
        Counts::Requests
    }
}

/// One step of a build, on the machine that the runner is on unless it says `each = "host"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildPass {
    /// What messages call it.
    pub name: String,
    /// How often.
    pub each: Each,
    /// A shell command, with placeholders.
    pub command: String,
    /// The modules that it makes. A run that loads one of these brings it up to date with the template that made it last.
    #[serde(default)]
    pub makes: Vec<String>,
}

/// How often a build's pass happens.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Each {
    /// Once for each kernel release in the cluster.
    Kernel,
    /// On each host of a real cluster; virtual machines are gone after their run.
    Host,
    /// Once, here.
    Once,
}

/// What a pass must offer to be checked.
pub trait Pass: DeserializeOwned {
    /// Built-in values besides the parameters.
    const VALUES: &'static [&'static str];
    /// The texts that may hold placeholders.
    fn texts(&self) -> Vec<&str>;
    /// Parameters that the command line may give and the template does not.
    fn optional(&self) -> &[String] {
        &[]
    }
    /// Values that later passes may use.
    fn gives(&self) -> &[String] {
        &[]
    }
    /// Whatever serde cannot say.
    fn check(&self) -> Result<(), String>;
}

impl Pass for RunPass {
    const VALUES: &'static [&'static str] = RUN_VALUES;

    fn texts(&self) -> Vec<&str> {
        let mut texts = vec![self.arguments.as_str()];
        texts.extend(self.command.as_deref());
        texts.extend(self.left.as_deref());
        texts
    }

    fn optional(&self) -> &[String] {
        &self.optional
    }

    fn gives(&self) -> &[String] {
        &self.gives
    }

    fn check(&self) -> Result<(), String> {
        match (&self.module, &self.program, &self.command) {
            (Some(module), None, None) => check_name("module", module)?,
            (None, Some(program), None) => check_name("program", program)?,
            (None, None, Some(command)) if !command.trim().is_empty() => {}
            (None, None, Some(_)) => return Err("`command` is empty".into()),
            (None, None, None) => {
                return Err("it has neither `module` nor `program` nor `command`".into())
            }
            _ => {
                return Err(
                    "it has more than one of `module`, `program` and `command`; keep one".into(),
                )
            }
        }
        for file in &self.files {
            check_file_name("files", file)?;
        }
        if self.interactive && self.program.is_none() {
            return Err("`interactive` takes a `program` to speak with".into());
        }
        if !self.files.is_empty() && !self.interactive {
            return Err("`files` takes an interactive `program` that needs them".into());
        }
        if !self.gives.is_empty() && (!self.interactive || self.ready.is_none()) {
            return Err(
                "`gives` takes an interactive `program` with a `ready` line to give values".into(),
            );
        }
        if self.counts == Counts::Containers && !self.interactive {
            return Err(
                "`counts = \"containers\"` takes an interactive `program` that counts them".into(),
            );
        }
        let expected = self.expected.iter().map(|text| ("expected", Some(text)));
        let awaited = [("ready", self.ready.as_ref()), ("done", self.done.as_ref())];
        for (key, text) in awaited.into_iter().chain(expected) {
            if text.is_some_and(|text| text.trim().is_empty()) {
                return Err(format!(
                    "`{key}` is empty: every log line would match; give a text or leave it out"
                ));
            }
        }
        Ok(())
    }
}

impl Pass for BuildPass {
    const VALUES: &'static [&'static str] = BUILD_VALUES;

    fn texts(&self) -> Vec<&str> {
        vec![&self.command]
    }

    fn check(&self) -> Result<(), String> {
        if self.command.trim().is_empty() {
            return Err("`command` is empty".into());
        }
        for module in &self.makes {
            check_name("module", module)?;
        }
        if self.each != Each::Kernel && !self.makes.is_empty() {
            return Err("`makes` names modules, which are made with each = \"kernel\"".into());
        }
        if self.each != Each::Kernel && self.command.contains("{release}") {
            return Err("`{release}` has a value only in a pass with each = \"kernel\"".into());
        }
        Ok(())
    }
}

/// The name of a module or a program becomes a file name and a word of a shell command.
fn check_name(key: &str, name: &str) -> Result<(), String> {
    let is_of_name =
        |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (b == b'-' && key == "program");
    if !name.is_empty() && !name.starts_with('-') && name.bytes().all(is_of_name) {
        return Ok(());
    }
    Err(format!(
        "`{key}` is {name:?}; a {key}'s name is made of letters, digits and _"
    ))
}

/// A name below a directory, and a word of a shell command.
fn check_file_name(key: &str, name: &str) -> Result<(), String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.bytes().all(fine) {
        return Ok(());
    }
    Err(format!(
        "`{key}` is {name:?}; the name of a program or file is made of letters, digits, _, - and dots"
    ))
}

impl<P> Template<P> {
    /// The name of its target: the file's, without `.toml`.
    pub fn target(&self) -> String {
        self.path
            .file_stem()
            .map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned())
    }

    /// Whether a run of it can be given this parameter.
    pub fn knows(&self, parameter: &str) -> bool {
        self.parameters.contains_key(parameter) || self.optional.contains(parameter)
    }
}

impl RunPass {
    /// What follows the arguments: its optional parameters, as far as they have a value.
    pub fn optional_arguments<'a>(
        &'a self,
        value: impl Fn(&str) -> Option<u64> + 'a,
    ) -> impl Iterator<Item = String> + 'a {
        self.optional.iter().filter_map(move |name| {
            let value = value(name)?;
            Some(match self.program {
                Some(_) => format!("--{} {value}", name.replace('_', "-")),
                None => format!("{name}={value}"),
            })
        })
    }
}

impl Template<RunPass> {
    /// The first module that it loads, which stands for all that are made with it.
    pub fn first_module(&self) -> Option<&str> {
        self.passes.iter().find_map(|pass| pass.module.as_deref())
    }
}

impl<P: Pass> Template<P> {
    /// Reads and checks the template at `path`.
    pub fn load(path: &Path) -> Result<Self, Refusal> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Refusal::of(format!(
                "{}: cannot read the template: {error}",
                path.display()
            ))
        })?;
        Self::parse(path, &text)
    }

    /// Checks the template `text`; messages call it `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Refusal> {
        let refuse = |reason: String| Refusal::of(format!("{}: {reason}", path.display()));
        let mut table: toml::Table = toml::from_str(text)
            .map_err(|error| refuse(error.to_string().trim_end().to_string()))?;

        let mut passes = Vec::new();
        match table.remove("pass") {
            None => return Err(refuse("it has no [[pass]]: nothing would happen".into())),
            Some(toml::Value::Array(values)) => {
                for (index, value) in values.into_iter().enumerate() {
                    let place = match value.get("name").and_then(toml::Value::as_str) {
                        Some(name) => format!("pass {} ({name:?})", index + 1),
                        None => format!("pass {}", index + 1),
                    };
                    let pass: P = value.try_into().map_err(|error: toml::de::Error| {
                        refuse(format!("{place}: {}", error.message()))
                    })?;
                    pass.check()
                        .map_err(|reason| refuse(format!("{place}: {reason}")))?;
                    passes.push((place, pass));
                }
            }
            Some(_) => {
                return Err(refuse(
                    "`pass` is not a list of tables; write [[pass]]".into(),
                ))
            }
        }

        let build = match table.remove("build") {
            None => Build::default(),
            Some(value) => {
                let build: Build = value.try_into().map_err(|error: toml::de::Error| {
                    refuse(format!("[build]: {}", error.message()))
                })?;
                build
            }
        };

        let mut parameters = BTreeMap::new();
        for (name, value) in table {
            let number = value
                .as_integer()
                .and_then(|number| u64::try_from(number).ok())
                .ok_or_else(|| {
                    refuse(format!(
                        "`{name}` is {value}; a parameter is a whole number that is not negative"
                    ))
                })?;
            parameters.insert(name, number);
        }

        let mut given: Vec<&str> = Vec::new();
        for (place, pass) in &passes {
            for text in pass.texts() {
                fill(text, |name| {
                    let known = parameters.contains_key(name)
                        || P::VALUES.contains(&name)
                        || given.contains(&name);
                    known.then(String::new)
                })
                .map_err(|name| {
                    refuse(format!("{place}: {{{name}}} is neither a parameter of this template nor one of {:?}, nor given by an earlier pass", P::VALUES))
                })?;
            }
            given.extend(pass.gives().iter().map(String::as_str));
        }
        let passes: Vec<P> = passes.into_iter().map(|(_, pass)| pass).collect();
        let optional = passes.iter().flat_map(|pass| pass.optional()).cloned();
        Ok(Self {
            path: path.to_path_buf(),
            optional: optional.collect(),
            parameters,
            build: build.template,
            programs: build.programs,
            passes,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    template: Option<PathBuf>,
    programs: Option<PathBuf>,
}

/// Replaces each `{name}` in `text` by its value. Braces around anything but a lower-case name stay as they are.
///
/// Fails with the first name that has no value.
pub fn fill(text: &str, mut value: impl FnMut(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        let name = after
            .split_once('}')
            .map(|(name, _)| name)
            .filter(|name| is_name(name));
        match name {
            Some(name) => {
                filled.push_str(&value(name).ok_or_else(|| name.to_string())?);
                rest = &after[name.len() + 1..];
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<P: Pass + std::fmt::Debug>(text: &str) -> String {
        Template::<P>::parse(Path::new("t.toml"), text)
            .expect_err("must be refused")
            .to_string()
    }

    const GOOD: &str = r#"
        running_secs = 80 # comment
        [build]
        template = "templates-build/b.toml"
        [[pass]]
        name = "server"
        role = "parent"
        module = "mitosis_rpc_server"
        arguments = "running_secs={running_secs} gid={gid}"
        ready = "ready"
        [[pass]]
        name = "load"
        role = "child"
        command = "for i in 1 2; do { echo $i; }; done"
    "#;

    #[test]
    fn a_good_template_is_understood() {
        let template = Template::<RunPass>::parse(Path::new("a/peak.toml"), GOOD).unwrap();
        assert_eq!(template.target(), "peak");
        assert_eq!(template.parameters["running_secs"], 80);
        assert_eq!(
            template.build.as_deref(),
            Some(Path::new("templates-build/b.toml"))
        );
        assert_eq!(template.passes.len(), 2);
        assert_eq!(template.passes[0].role, Role::Parent);
    }

    #[test]
    fn the_message_names_the_file_the_place_and_the_reason() {
        let pass = |fields: &str| format!("[[pass]]\nname = \"p\"\nrole = \"child\"\n{fields}");
        let cases = [
            (String::new(), "t.toml: it has no [[pass]]"),
            ("a = ".into(), "t.toml: TOML parse error at line 1"),
            ("pass = 3".into(), "`pass` is not a list of tables"),
            (
                format!("a = -1\n{}", pass("module = \"m\"")),
                "`a` is -1; a parameter is a whole number",
            ),
            (
                format!("a = \"x\"\n{}", pass("module = \"m\"")),
                "`a` is \"x\"",
            ),
            (
                pass("modul = \"m\""),
                "pass 1 (\"p\"): unknown field `modul`",
            ),
            (pass(""), "neither `module` nor `program` nor `command`"),
            (
                pass("module = \"m\"\ncommand = \"c\""),
                "more than one of `module`, `program` and `command`",
            ),
            (pass("program = \"../p\""), "a program's name is made of"),
            (pass("program = \"-p\""), "a program's name is made of"),
            (pass("module = \"../m\""), "a module's name is made of"),
            (pass("module = \"m\"\ndone = \" \""), "`done` is empty"),
            (
                pass("module = \"m\"\nexpected = [\"\"]"),
                "`expected` is empty",
            ),
            (
                pass("module = \"m\"\narguments = \"a={b}\""),
                "{b} is neither a parameter",
            ),
            (
                pass("program = \"p\"\ninteractive = true\nfiles = [\"/etc/x\"]"),
                "the name of a program or file",
            ),
            (
                pass("program = \"p\"\ngives = [\"seed\"]"),
                "`gives` takes an interactive `program`",
            ),
            (
                pass("module = \"m\"\ncounts = \"containers\""),
                "takes an interactive `program` that counts them",
            ),
            (
                pass("module = \"m\"\ninteractive = true"),
                "`interactive` takes a `program`",
            ),
            (
                pass("program = \"p\"\nfiles = [\"x\"]"),
                "`files` takes an interactive `program`",
            ),
            (
                pass("program = \"p\"\narguments = \"{seed}\""),
                "nor given by an earlier pass",
            ),
            (
                pass("module = \"m\"\n[build]\ntemplat = \"x\""),
                "[build]: unknown field `templat`",
            ),
            (
                "[[pass]]\nname = \"p\"\nrole = \"boss\"\nmodule = \"m\"".into(),
                "unknown variant `boss`",
            ),
            (
                "[[pass]]\nrole = \"child\"\nmodule = \"m\"".into(),
                "pass 1: missing field `name`",
            ),
        ];
        for (text, want) in cases {
            let message = refusal::<RunPass>(&text);
            assert!(
                message.starts_with("t.toml: ") && message.contains(want),
                "{text}\n gave {message}"
            );
        }
        let message = refusal::<BuildPass>(
            "[[pass]]\nname = \"x\"\neach = \"once\"\ncommand = \"make {release}\"",
        );
        assert!(message.contains("each = \"kernel\""), "{message}");
    }

    #[test]
    fn only_names_in_braces_are_replaced() {
        let value = |name: &str| (name == "a").then(|| "1".to_string());
        assert_eq!(fill("x={a} {a}{a}", value), Ok("x=1 11".into()));
        assert_eq!(fill("{ a; } {} {", value), Ok("{ a; } {} {".into()));
        assert_eq!(fill("x={b}", value), Err("b".into()));
    }
}
