//! Tables for people: what came out first, what is wrong next, then each demand, in lines for a terminal of 100 columns.

use super::check::{LINUX, Row, Table, Verdict};
use crate::arch::Arch;

/// A kernel that was held against the features of some profiles, with one result for all of them.
#[derive(Debug)]
pub struct Shown<'a> {
    /// The profiles.
    pub profiles: Vec<&'a str>,
    /// Their machine.
    pub arch: Arch,
    /// `uname -r`.
    pub kernel: &'a str,
    /// What came out.
    pub table: &'a Table,
}

impl Shown<'_> {
    fn title(&self) -> String {
        format!("{} ({})", self.profiles.join(", "), self.arch)
    }
}

/// A sum of each first, then what is not met, then all rows with the sources as numbers into a list at the end.
pub fn lines(all: &[Shown<'_>]) -> Vec<String> {
    let mut lines = Vec::new();
    for shown in all {
        let table = shown.table;
        let count = match table.unmet().count() {
            0 => "all met".to_owned(),
            lacking => format!("{lacking} NOT MET"),
        };
        lines.push(format!("{}: Linux {}", shown.title(), shown.kernel));
        lines.push(format!("  {} features, {} demands: {count}", table.features.len(), table.rows.len()));
    }
    for shown in all.iter().filter(|shown| !shown.table.met) {
        lines.push(String::new());
        lines.push(format!("not met by the kernel of {}:", shown.title()));
        lines.extend(shown.table.unmet().flat_map(problem));
    }
    let mut sources = Vec::new();
    for shown in all {
        lines.push(String::new());
        if all.len() > 1 {
            lines.push(format!("{}:", shown.title()));
        }
        lines.extend(rows(shown.table, &mut sources));
    }
    if !sources.is_empty() {
        lines.extend([String::new(), "SOURCES".to_owned()]);
    }
    lines.extend(sources.iter().zip(1..).map(|(source, number)| format!("{number:>3}  {source}")));
    lines
}

/// A row that is not met: who needs what, what there is, and what would help.
pub fn problem(row: &Row) -> Vec<String> {
    let what = match row.symbol.as_str() {
        LINUX => format!("Linux {}", row.wanted),
        symbol => format!("CONFIG_{symbol}={}", row.wanted),
    };
    let found = row.finding.as_deref().unwrap_or_default();
    let mut lines = vec![
        format!("  {} ({}) needs {what}: {found}", row.feature, row.component),
        format!("    for: {} [{}]", row.why, row.source),
    ];
    lines.extend(row.remedy.iter().map(|remedy| format!("    -> {remedy}")));
    lines
}

fn rows<'a>(table: &'a Table, sources: &mut Vec<&'a str>) -> Vec<String> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![["FEATURE", "WANTED", "HAS", "MODULE", "VERDICT", "SOURCE"].map(str::to_owned)];
    for row in &table.rows {
        let source = row.source.as_str();
        let number = sources.iter().position(|known| *known == source).unwrap_or_else(|| {
            sources.push(source);
            sources.len() - 1
        });
        // What is wrong should be seen when somebody looks down the column.
        let verdict = if row.verdict.is_met() {
            row.verdict.to_string()
        } else {
            row.verdict.to_string().to_uppercase()
        };
        let symbol = format!("  {}", row.symbol);
        let source = (number + 1).to_string();
        cells.push([symbol, row.wanted.clone(), or_dash(&row.has), or_dash(&row.module), verdict, source]);
    }
    let widths: [usize; 6] =
        std::array::from_fn(|column| cells.iter().map(|line| line[column].len()).max().unwrap_or(0));
    let line = |cells: &[String; 6]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
        padded.collect::<String>().trim_end().to_owned()
    };
    let mut lines: Vec<String> = cells.first().map(line).into_iter().collect();
    let mut feature = "";
    for (row, cells) in table.rows.iter().zip(cells.iter().skip(1)) {
        if row.feature != feature {
            feature = &row.feature;
            lines.push(format!("{feature} ({})", row.component));
        }
        lines.push(line(cells));
        if row.verdict == Verdict::Gone {
            lines.extend(row.finding.iter().map(|finding| format!("    {finding}")));
        }
    }
    lines
}
