//! The table at the end of a run.

use comfy_table::{presets, CellAlignment, Table};

use super::{Figures, Report, Verdict};
use crate::klog::lines::Latency;

/// A row for each machine, a row for all, the findings, and the verdict in the last line.
pub fn render(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let counted = match report.totals {
        Figures::Requests(_) => ["requests", "requests/s"],
        Figures::Containers(_) => ["verified", "containers/s"],
    };
    table.set_header([
        "machine",
        counted[0],
        counted[1],
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "errors",
        "findings",
    ]);
    for host in &report.cluster.hosts {
        let figures = report
            .hosts
            .iter()
            .find(|figures| figures.name == host.name)
            .map(|host| &host.figures);
        table.add_row(row(&host.name, figures, findings_of(report, &host.name)));
    }
    table.add_row(row("all", Some(&report.totals), report.findings.len()));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }

    let mut text = table
        .lines()
        .map(|line| line.trim_end().to_string() + "\n")
        .collect::<String>();
    for finding in &report.findings {
        let kind = serde_json::to_string(&finding.kind).unwrap_or_default();
        text += &format!(
            "{}: {}: {}\n",
            finding.host,
            kind.trim_matches('"'),
            finding.line
        );
    }
    let verdict = match report.verdict() {
        Verdict::Pass => "pass".to_string(),
        Verdict::Fail => format!("fail, {} findings", report.findings.len()),
    };
    text + &format!("{}: {verdict} ({:.1} s)\n", report.target, report.seconds)
}

fn findings_of(report: &Report, host: &str) -> usize {
    report
        .findings
        .iter()
        .filter(|finding| finding.host == host)
        .count()
}

fn row(name: &str, figures: Option<&Figures>, findings: usize) -> Vec<String> {
    let us = |pick: fn(&Latency) -> u64| match figures.and_then(Figures::latency_ns) {
        Some(latency) => format!("{:.1}", pick(&latency) as f64 / 1000.0),
        None => "-".into(),
    };
    let number =
        |pick: fn(&Figures) -> u64| figures.map_or("-".into(), |figures| pick(figures).to_string());
    let rate = figures.map_or("-".into(), |figures| match figures {
        Figures::Requests(figures) => figures.requests_per_s.to_string(),
        Figures::Containers(figures) => format!("{:.2}", figures.containers_per_s),
    });
    vec![
        name.to_string(),
        number(Figures::done),
        rate,
        us(|latency| latency.p50),
        us(|latency| latency.p99),
        us(|latency| latency.p999),
        number(Figures::errors),
        findings.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::klog::audit::{Finding, Kind};

    #[test]
    fn each_machine_has_a_row_and_the_verdict_comes_last() {
        let mut report = super::super::tests::sample();
        let lines = |report: &Report| {
            render(report)
                .lines()
                .map(str::to_string)
                .collect::<Vec<_>>()
        };
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_string)
                .collect::<Vec<_>>()
        };
        let text = lines(&report);
        assert_eq!(
            words(&text[1]),
            ["val01", "-", "-", "-", "-", "-", "-", "0"]
        );
        assert_eq!(
            words(&text[2]),
            ["val02", "40000", "4000", "400.0", "900.0", "1500.0", "0", "0"]
        );
        assert_eq!(words(&text[3])[..3], ["all", "40000", "4000"]);
        assert_eq!(text[4], "peak-rpc-kernel-module: pass (12.3 s)");

        report.findings.push(Finding {
            host: "val02".into(),
            kind: Kind::ZeroThroughput,
            line: "why".into(),
        });
        let text = lines(&report);
        assert!(words(&text[2]).ends_with(&["1".into()]));
        assert_eq!(text[4], "val02: zero-throughput: why");
        assert_eq!(text[5], "peak-rpc-kernel-module: fail, 1 findings (12.3 s)");
    }
}
