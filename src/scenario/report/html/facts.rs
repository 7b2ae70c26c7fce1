//! The facts: faults, invariants and findings; cables; machines and images; consoles; the environment.

use maud::{Markup, html};

use super::{Page, beside, glyph, seconds};
use crate::scenario::result::{Finding, Traffic};
use crate::ui::human_bytes;

/// More rows of one table are only counted.
const ROWS: usize = 300;
/// So many of a console's last lines.
const TAIL: usize = 60;

impl Page<'_> {
    /// Faults, invariants, and what the consoles said.
    pub(super) fn happenings(&self) -> Markup {
        let run = self.run;
        html! {
            @if !run.faults.is_empty() {
                section #faults {
                    h2 { "Faults" }
                    div.scroll { table {
                        thead { tr { th.number { "at" } th.number { "healed" } th { "node" } th { "fault" } } }
                        tbody { @for fault in run.faults.iter().take(ROWS) {
                            tr {
                                td.number { (seconds(fault.at_ms)) }
                                td.number { @if let Some(until) = fault.until_ms { (seconds(until)) } @else { "–" } }
                                td.who { (fault.node) }
                                td { (fault.kind.replace('_', " ")) @if !fault.detail.is_empty() { ": " (fault.detail) } }
                            }
                        } }
                    } }
                    (more(run.faults.len()))
                }
            }
            @if !run.invariants.is_empty() {
                section #invariants {
                    h2 { "Invariants" }
                    div.scroll { table {
                        thead { tr { th {} th { "what has to hold" } th { "on" } th.number { "checked" } th { "came of it" } } }
                        tbody { @for invariant in run.invariants.iter().take(ROWS) {
                            tr.(invariant.outcome.word()) {
                                td.sign { (glyph(&invariant.outcome)) }
                                td { (invariant.name) }
                                td { (invariant.nodes.join(", ")) }
                                td.number { (invariant.checked) " ×" }
                                td { (invariant.outcome.word()) @if !invariant.outcome.is_passed() { ": " (invariant.outcome.why()) } }
                            }
                        } }
                    } }
                }
            }
            @if !run.findings.is_empty() {
                section #findings {
                    h2 { "What the consoles said" }
                    div.scroll { table {
                        thead { tr { th {} th.number { "at" } th { "node" } th { "rule" } th { "line" } } }
                        tbody { @for finding in run.findings.iter().take(ROWS) { (finding_row(finding)) } }
                    } }
                    (more(run.findings.len()))
                }
            }
        }
    }

    pub(super) fn warnings(&self) -> Markup {
        if self.run.warnings.is_empty() {
            return html! {};
        }
        html! {
            section #warnings {
                h2 { "Warnings" }
                ul { @for warning in self.run.warnings.iter().take(ROWS) { li { (warning) } } }
                (more(self.run.warnings.len()))
            }
        }
    }

    pub(super) fn links(&self) -> Markup {
        if self.run.links.is_empty() {
            return html! {};
        }
        html! {
            section #links {
                h2 { "Links" }
                div.scroll { table {
                    thead {
                        tr { th rowspan="2" { "cable" } th.group colspan="4" { "sent by the node" }
                            th.group colspan="4" { "received by the node" } th rowspan="2" { "capture" } }
                        tr { @for _ in 0..2 { th.number.first { "frames" } th.number { "bytes" } th.number { "lost" } th.number { "dropped" } } }
                    }
                    tbody { @for link in self.run.links.iter().take(ROWS) {
                        tr {
                            th scope="row" { (link.node) span.note { " on " (link.network) } }
                            (traffic(&link.sent)) (traffic(&link.received))
                            td { @if let Some(pcap) = &link.pcap { a href=(beside(pcap)) { (file_name(pcap)) } } @else { "–" } }
                        }
                    } }
                } }
                p.note { "Lost: as the scenario asked (cut, loss). Dropped: because a queue was full." }
                (more(self.run.links.len()))
            }
        }
    }

    /// The nodes as they were built, and the image files.
    pub(super) fn machines(&self) -> Markup {
        html! {
            section #machines {
                h2 { "Machines" }
                div.scroll { table {
                    thead { tr { th { "node" } th { "profile" } th.number { "CPUs" } th.number { "memory" } th { "disks" } th { "network cards" } } }
                    tbody { @for node in &self.run.nodes {
                        tr {
                            th scope="row" { (node.name) }
                            td { (variant(&node.profile, node.flavour.as_deref())) @if node.role != "product" && node.role != node.profile { span.note { " " (node.role) } } }
                            td.number { (node.cpus) }
                            td.number { (node.memory_mib) " MiB" }
                            td { @for disk in &node.disks { div.item { (disk.bus) " " span.note { (disk_size(disk.size)) } } } }
                            td { @for nic in &node.nics {
                                div.item { (nic.network) " " (nic.address) " " span.note { (nic.model) " " (nic.mac) } }
                            } }
                        }
                    } }
                } }
                h2 { "Images" }
                @for image in &self.run.images {
                    @let outcome = image.outcome();
                    article.image.(outcome.word()) {
                        h3 {
                            span.sign { (glyph(&outcome)) }
                            " " (image.file) " "
                            span.note {
                                @if outcome.is_passed() { "unchanged by the run" } @else { (outcome.why()) }
                            }
                        }
                        dl.facts {
                            dt { "profile" } dd { (variant(&image.profile, image.flavour.as_deref())) }
                            dt { "kernel" } dd { (image.kernel) }
                            dt { "sha256" }
                            dd {
                                code { (image.sha256_before) }
                                @if outcome.is_passed() { span.note { " before and after" } }
                            }
                            @if outcome.is_failed() {
                                dt { "sha256 after" } dd { code { (image.sha256_after.as_deref().unwrap_or_default()) } }
                            }
                            dt { "root hash" } dd { code { (image.root_hash) } }
                        }
                    }
                }
            }
        }
    }

    /// The last lines of every console, and where the whole ones are.
    pub(super) fn consoles(&self) -> Markup {
        html! {
            section #consoles {
                h2 { "Consoles" }
                div.rows {
                    @for node in &self.run.nodes {
                        @let tail = node.console_tail.get(node.console_tail.len().saturating_sub(TAIL)..).unwrap_or_default();
                        @if tail.is_empty() {
                            p.flat { strong { (node.name) } span.note { "said nothing" } (log(node.console_log.as_deref())) }
                        } @else {
                            details {
                                summary.flat {
                                    strong { (node.name) } span.note { "the last " (tail.len()) " lines" }
                                    (log(node.console_log.as_deref()))
                                }
                                (self.console(&node.name, tail, None))
                            }
                        }
                    }
                }
            }
        }
    }

    pub(super) fn environment(&self) -> Markup {
        let run = self.run;
        html! {
            section #environment {
                h2 { "Environment" }
                dl.facts {
                    dt { "scenario" } dd { (run.scenario.file) }
                    dt { "its sha256" } dd { code { (run.scenario.sha256) } }
                    dt { "the same again" } dd { code { "kiln test " (run.scenario.file) " --seed " (run.seed) } }
                    dt { "began" } dd { (run.started) }
                    dt { "accelerator" }
                    dd {
                        (run.accelerator.name) ": " (run.accelerator.reason)
                        @if run.accelerator.calibration > 1.0 {
                            span.note { (format!(" (everything may take {:.1} times as long as under KVM)", run.accelerator.calibration)) }
                        }
                    }
                    dt { "host" }
                    dd { (run.host.cpus) " CPUs, " (run.host.memory_mib) " MiB, " (run.host.kernel) }
                    dt { "kiln" }
                    dd { (run.kiln_version) span.note { " used at most " (human_bytes(run.peak_memory_kib.saturating_mul(1024))) " of memory" } }
                }
            }
        }
    }
}

fn finding_row(finding: &Finding) -> Markup {
    let class = if finding.counts() { "failed" } else { "skipped" };
    html! {
        tr.(class) {
            td.sign { @if finding.counts() { "✕" } @else { "–" } }
            td.number { (seconds(finding.at_ms)) }
            td.who { (finding.node) }
            td { (finding.rule) " " span.note { (finding.severity.word()) } }
            td {
                code { (finding.line) }
                @if let Some(reason) = &finding.allowed_by { div.note { "allowed: " (reason) } }
            }
        }
    }
}

fn traffic(traffic: &Traffic) -> Markup {
    let count = |count: u64| html! { td.number.zero[count == 0] { (grouped(count)) } };
    html! {
        td.number.first { (grouped(traffic.frames)) }
        td.number { (human_bytes(traffic.bytes)) }
        (count(traffic.lost)) (count(traffic.dropped))
    }
}

/// `12 345 678`, with spaces that do not break.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A size as scenarios spell it where it is a round one: `12 GiB`.
fn disk_size(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    human_bytes(bytes)
}

fn variant(profile: &str, flavour: Option<&str>) -> String {
    flavour.map_or_else(|| profile.to_owned(), |flavour| format!("{profile} ({flavour})"))
}

fn log(path: Option<&str>) -> Markup {
    html! { @if let Some(path) = path { a.push href=(beside(path)) { "whole log" } } }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn more(rows: usize) -> Markup {
    html! { @if rows > ROWS { p.note { (rows - ROWS) " more are in report.json." } } }
}
