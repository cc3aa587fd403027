//! A run's parameters: the template's values, those of the command line over them, and what makes no sense refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::refusal::Refusal;
use crate::settings::Assignments;
use crate::template::Template;

/// What a parameter may be. A name without a rule is unknown: it is a typing mistake until someone gives it one.
struct Rule {
    name: &'static str,
    least: u64,
    most: u64,
    /// Ends the sentence 'it is …'.
    meaning: &'static str,
}

/// Session keys are handed out in steps of this size, one step a machine, so it bounds the threads of one.
pub const MOST_THREADS: u64 = 64;

/// A run of a week is a mistake; and microseconds of it fit every counter.
const MOST_SECS: u64 = 7 * 24 * 3600;

const fn rule(name: &'static str, least: u64, most: u64, meaning: &'static str) -> Rule {
    Rule {
        name,
        least,
        most,
        meaning,
    }
}

const RULES: &[Rule] = &[
    rule(
        "cpu_percent",
        0,
        6_400,
        "the share of a processor that a container may use; 0: any",
    ),
    rule(
        "client_qd_hint",
        0,
        u16::MAX as u64,
        "the hint under which a client asks",
    ),
    rule(
        "client_running_secs",
        1,
        MOST_SECS,
        "how long the clients call",
    ),
    rule(
        "client_service_id_base",
        0,
        u16::MAX as u64,
        "the first service id of a client",
    ),
    rule(
        "memory_mib",
        0,
        1 << 20,
        "the memory that a container may use, in MiB; 0: any",
    ),
    rule(
        "net_namespace",
        0,
        1,
        "whether a container has a network namespace of its own",
    ),
    rule(
        "payload_size",
        0,
        8 << 20,
        "the bytes that each request and each reply carries",
    ),
    rule(
        "pool_size",
        0,
        256,
        "the prepared containers that are kept in stock on a machine",
    ),
    rule(
        "report_interval",
        1,
        MOST_SECS,
        "the seconds between two throughput lines",
    ),
    rule("run_secs", 1, MOST_SECS, "how long containers are begun"),
    rule(
        "server_qd_hint",
        0,
        u16::MAX as u64,
        "the hint that selects the server's queue pair",
    ),
    rule(
        "server_running_secs",
        1,
        MOST_SECS,
        "how long the server runs",
    ),
    rule(
        "server_service_id",
        0,
        u8::MAX as u64,
        "the server's service",
    ),
    rule(
        "shared_image",
        0,
        1,
        "whether the children of a machine share what any of them has read",
    ),
    rule(
        "test_rpc_id",
        0,
        u32::MAX as u64,
        "the id of the function that is called",
    ),
    rule(
        "thread_count",
        1,
        MOST_THREADS,
        "the threads of a client machine",
    ),
    rule(
        "window",
        1,
        16,
        "the calls that a thread has under way; 1: it calls synchronously",
    ),
    rule(
        "working_set_mib",
        0,
        1 << 20,
        "the memory that a child reads, in MiB",
    ),
    rule(
        "write_percent",
        0,
        100,
        "of that memory, what a child writes to",
    ),
];

/// The values that `assignments` make of `template`'s.
pub fn of<P>(
    template: &Template<P>,
    assignments: &Assignments,
) -> Result<BTreeMap<String, u64>, Refusal> {
    resolve(
        &template.path,
        &template.parameters,
        &template.optional,
        &assignments.parameters,
    )
}

/// The values of a run: `template`'s, with `assignments` (`name`, `value`) over them.
///
/// Refuses all that makes no sense at once; `path` is the template's, for the messages. Names in `optional` have a value
/// only if they are assigned one.
fn resolve(
    path: &Path,
    template: &BTreeMap<String, u64>,
    optional: &BTreeSet<String>,
    assignments: &[(String, String)],
) -> Result<BTreeMap<String, u64>, Refusal> {
    let mut reasons = Vec::new();
    let mut values = template.clone();
    for (name, value) in assignments {
        if !template.contains_key(name) && !optional.contains(name) {
            let known = template.keys().chain(optional).map(String::as_str);
            let known: Vec<&str> = known.collect();
            reasons.push(format!(
                "{name}: {} has no parameter of this name; it has {}",
                path.display(),
                known.join(", ")
            ));
            continue;
        }
        match value.parse::<u64>() {
            Ok(number) => {
                values.insert(name.clone(), number);
            }
            Err(_) => reasons.push(format!(
                "{name}: {value:?} is not a whole number that is not negative"
            )),
        }
    }
    for (name, &value) in &values {
        match RULES.iter().find(|rule| rule.name == name) {
            None => {
                let known: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
                reasons.push(format!(
                    "{name} in {}: unknown; a parameter is one of {}",
                    path.display(),
                    known.join(", ")
                ));
            }
            Some(rule) if value < rule.least || value > rule.most => reasons.push(format!(
                "{name}={value}: must be from {} to {}; it is {}",
                rule.least, rule.most, rule.meaning
            )),
            Some(_) => {}
        }
    }
    if reasons.is_empty() {
        check_together(&values, &mut reasons);
    }
    Refusal::unless_empty(reasons)?;
    Ok(values)
}

fn check_together(values: &BTreeMap<String, u64>, reasons: &mut Vec<String>) {
    let pair = |a: &str, b: &str| Some((*values.get(a)?, *values.get(b)?));
    if let Some((client, server)) = pair("client_running_secs", "server_running_secs") {
        if client >= server {
            reasons.push(format!(
                "client_running_secs={client}: must be less than server_running_secs={server}, \
                 or the clients outlive the server"
            ));
        }
    }
    for running in ["client_running_secs", "run_secs"] {
        if let Some((report, secs)) = pair("report_interval", running) {
            if report > secs {
                reasons.push(format!(
                    "report_interval={report}: must not be more than {running}={secs}, \
                     or no throughput is ever reported"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> BTreeMap<String, u64> {
        [
            ("server_running_secs", 80),
            ("client_running_secs", 60),
            ("thread_count", 12),
            ("test_rpc_id", 778),
            ("server_qd_hint", 73),
            ("server_service_id", 0),
            ("client_qd_hint", 75),
            ("client_service_id_base", 1),
            ("report_interval", 1),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into()
    }

    fn resolved(assignments: &[(&str, &str)]) -> Result<BTreeMap<String, u64>, Refusal> {
        let assignments: Vec<_> = assignments
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect();
        resolve(
            Path::new("t.toml"),
            &template(),
            &BTreeSet::new(),
            &assignments,
        )
    }

    #[test]
    fn the_command_line_wins_over_the_template() {
        assert_eq!(resolved(&[]).unwrap(), template());
        let values =
            resolved(&[("client_running_secs", "5"), ("server_running_secs", "15")]).unwrap();
        assert_eq!(
            (values["client_running_secs"], values["server_running_secs"]),
            (5, 15)
        );
        assert_eq!(values["thread_count"], 12);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name_and_reason() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (
                &[("thread_cout", "3")],
                "thread_cout: t.toml has no parameter of this name",
            ),
            (
                &[("thread_count", "many")],
                "thread_count: \"many\" is not a whole number",
            ),
            (&[("thread_count", "-1")], "thread_count: \"-1\""),
            (&[("thread_count", "1.5")], "thread_count: \"1.5\""),
            (&[("thread_count", "")], "thread_count: \"\""),
            (
                &[("thread_count", "99999999999999999999")],
                "thread_count: ",
            ),
            (
                &[("thread_count", "0")],
                "thread_count=0: must be from 1 to 64",
            ),
            (&[("thread_count", "65")], "thread_count=65"),
            (&[("report_interval", "0")], "report_interval=0"),
            (&[("client_running_secs", "0")], "client_running_secs=0"),
            (&[("server_running_secs", "0")], "server_running_secs=0"),
            (
                &[("server_running_secs", "604801")],
                "server_running_secs=604801",
            ),
            (
                &[("client_running_secs", "80")],
                "the clients outlive the server",
            ),
            (
                &[("server_running_secs", "60")],
                "the clients outlive the server",
            ),
            (
                &[("report_interval", "61")],
                "no throughput is ever reported",
            ),
            (
                &[("server_service_id", "256")],
                "server_service_id=256: must be from 0 to 255",
            ),
            (&[("server_qd_hint", "65536")], "server_qd_hint=65536"),
            (&[("client_qd_hint", "65536")], "client_qd_hint=65536"),
            (
                &[("client_service_id_base", "65536")],
                "client_service_id_base=65536",
            ),
            (&[("test_rpc_id", "4294967296")], "test_rpc_id=4294967296"),
        ];
        for (assignments, want) in cases {
            let message = resolved(assignments)
                .expect_err("must be refused")
                .to_string();
            assert!(message.contains(want), "{assignments:?} gave {message}");
        }
    }

    #[test]
    fn all_reasons_come_at_once() {
        let refusal = resolved(&[("nonsense", "1"), ("thread_count", "0")]).unwrap_err();
        assert_eq!(refusal.0.len(), 2, "{refusal}");
    }

    #[test]
    fn a_template_with_a_name_that_nobody_knows_is_refused() {
        let values = [("thread_cout".to_string(), 3)].into();
        let message = resolve(Path::new("t.toml"), &values, &BTreeSet::new(), &[])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("thread_cout in t.toml: unknown"),
            "{message}"
        );
    }
}
