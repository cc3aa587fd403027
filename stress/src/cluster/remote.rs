//! A real cluster: the machines that the user's `makefile` names, reached with the user's ssh keys.

use std::path::PathBuf;

use super::{Host, Role, SUDO_SHELL};
use crate::settings::Real;

/// A machine that does not answer is found within seconds, before a run and during one. No password is ever asked for:
/// a run has nobody to type it.
const OPTIONS: &[&str] = &[
    "-T",
    "-oBatchMode=yes",
    "-oConnectTimeout=10",
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3",
    "-oLogLevel=ERROR",
];

/// The hosts of `real`: its parent, then its children.
pub fn hosts(real: &Real) -> Vec<Host> {
    let parent = std::iter::once((&real.parent, Role::Parent));
    let children = real.children.iter().map(|child| (child, Role::Child));
    parent
        .chain(children)
        .map(|(name, role)| host(real, name, role))
        .collect()
}

fn host(real: &Real, name: &str, role: Role) -> Host {
    let mut ssh = vec!["ssh".to_string()];
    ssh.extend(OPTIONS.iter().map(|option| option.to_string()));
    if let Some(user) = &real.user {
        ssh.push(format!("-l{user}"));
    }
    ssh.extend([name.to_string(), "--".to_string()]);
    if real.user.as_deref() != Some("root") {
        ssh.push(SUDO_SHELL.to_string());
    }
    // Not the checkout itself: what a run copies there stays apart from the user's files.
    let directory: PathBuf = real.project_path.join("out/modules/loaded");
    Host {
        name: name.to_string(),
        role,
        address: name.to_string(),
        ssh,
        directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_needs_no_sudo_and_others_do() {
        let mut real = Real {
            user: Some("root".into()),
            project_path: "/opt/mitosis".into(),
            parent: "val01".into(),
            children: vec!["val02".into()],
        };
        let root = hosts(&real);
        assert_eq!(root.len(), 2);
        assert_eq!((root[0].role, root[1].role), (Role::Parent, Role::Child));
        assert!(
            root[0]
                .ssh
                .ends_with(&["-lroot".into(), "val01".into(), "--".into()]),
            "{:?}",
            root[0].ssh
        );
        real.user = Some("someone".into());
        let command = hosts(&real)[1].command("echo 'a b'; id");
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let (script, before) = words.split_last().unwrap();
        assert!(
            before.ends_with(&["--".into(), SUDO_SHELL.into()]),
            "{words:?}"
        );
        assert!(
            script.starts_with('\'') && script.ends_with(r"echo '\''a b'\''; id'"),
            "{script}"
        );
    }

    #[test]
    fn a_script_comes_through_both_shells_as_it_was() {
        use crate::cluster::shell::Limit;
        // What ssh does: the words after the host, with blanks between, are one command for the account's shell.
        let ssh = "sudo() { [ \"$1\" = -n ] && shift && command \"$@\"; }; eval \"$*\"";
        let words = ["sh", "-c", ssh, "ssh", SUDO_SHELL];
        let host = Host {
            name: "val02".into(),
            role: Role::Child,
            address: String::new(),
            ssh: words.map(str::to_string).into(),
            directory: "/".into(),
        };
        let limit = Limit {
            timeout: std::time::Duration::from_secs(20),
            interrupt: None,
        };
        let script =
            "x='a  b'; printf '%s|' \"$x\" '$x' \"it's\" | cat; echo \"$(echo $((1 + 1)))\"";
        assert_eq!(host.run(script, limit).unwrap(), "a  b|$x|it's|2\n");
    }
}
