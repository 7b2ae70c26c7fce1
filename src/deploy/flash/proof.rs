//! Whether an image was proven: what `kiln test` reported of the runs that booted it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::scenario::result::Run;

/// What is known of an image before it goes onto a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "is")]
pub enum Proof {
    /// It was booted in a scenario, and that passed.
    Passed {
        /// Name of the scenario.
        scenario: String,
        /// When the run began, RFC 3339 in UTC.
        started: String,
    },
    /// Somebody wanted it all the same.
    Unproven {
        /// In their words.
        reason: String,
        /// What spoke against it.
        instead: String,
    },
}

/// The newest run with the image `digest` below the folder `reports`.
fn last(reports: &Path, digest: Digest) -> Option<Run> {
    let digest = digest.to_string();
    let entries = fs_err::read_dir(reports).ok()?;
    let runs = entries.filter_map(|entry| {
        let text = fs_err::read(entry.ok()?.path().join("report.json")).ok()?;
        let run: Run = serde_json::from_slice(&text).ok()?;
        run.images.iter().any(|image| image.sha256_before == digest).then_some(run)
    });
    // RFC 3339 in UTC sorts as time does.
    runs.max_by(|a, b| a.started.cmp(&b.started))
}

/// Looks for the proof of the image `digest`, whose profile is `profile`, in the reports of `kiln test`; the newest run counts. `unproven`
/// is the reason to do without.
///
/// # Errors
/// [`Kind::Test`]: there is none, or the last run failed or was skipped.
pub fn find(reports: &Path, digest: Digest, profile: &str, unproven: Option<&str>) -> Result<Proof, Failure> {
    let run = last(reports, digest);
    let why = match &run {
        Some(run) if run.verdict.outcome.is_passed() => {
            return Ok(Proof::Passed { scenario: run.scenario.name.clone(), started: run.started.clone() });
        }
        Some(run) => {
            let outcome = &run.verdict.outcome;
            format!(
                "its last run, {} of {}, is {}: {}",
                run.scenario.name,
                run.started,
                outcome.word(),
                outcome.why()
            )
        }
        None => format!("no run in {} booted it", reports.display()),
    };
    if let Some(reason) = unproven {
        return Ok(Proof::Unproven { reason: reason.to_owned(), instead: why });
    }
    Err(Failure::new(
        Kind::Test,
        format!("the image of {profile} (sha256 {}…) is not proven: {why}", digest.short()),
    )
    .hint("run `kiln test`, or `kiln test --cluster cluster.toml`, with this very image")
    .hint("--unproven \"REASON\" flashes it all the same, and the receipt says so"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::result::{Image, Outcome, Scenario};

    #[test]
    fn the_newest_run_of_an_image_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (digest, other) = (Digest::of(b"image"), Digest::of(b"other"));
        let put = |name: &str, started: &str, digest: Digest, outcome: Outcome| {
            let scenario = Scenario { name: name.to_owned(), ..Scenario::default() };
            let mut run = Run::new(scenario, 1, started.to_owned());
            run.images = vec![Image { sha256_before: digest.to_string(), ..Image::default() }];
            run.verdict.outcome = outcome;
            fs_err::create_dir_all(dir.path().join(name)).unwrap();
            fs_err::write(dir.path().join(name).join("report.json"), serde_json::to_vec(&run).unwrap())
                .unwrap();
        };
        let find = |digest, unproven| find(dir.path(), digest, "server", unproven);
        let error = find(digest, None).unwrap_err();
        assert_eq!((error.kind, error.to_string().contains("no run in")), (Kind::Test, true), "{error}");
        put("smoke", "2026-11-01T10:00:00Z", digest, Outcome::Passed);
        put("other", "2026-11-03T10:00:00Z", other, Outcome::failed("no"));
        assert!(matches!(find(digest, None).unwrap(), Proof::Passed { scenario, .. } if scenario == "smoke"));
        put("three-node", "2026-11-02T10:00:00Z", digest, Outcome::failed("agent-1 did not join"));
        let error = find(digest, None).unwrap_err();
        assert!(
            error.to_string().contains("three-node of 2026-11-02")
                && error.to_string().contains("did not join")
        );
        let proof = find(digest, Some("only the lamp changed")).unwrap();
        assert!(
            matches!(proof, Proof::Unproven { reason, instead } if reason.contains("lamp") && instead.contains("join"))
        );
        put("three-node", "2026-11-04T10:00:00Z", digest, Outcome::skipped("no memory"));
        assert!(find(digest, None).unwrap_err().to_string().contains("skipped"));
        put("three-node", "2026-11-05T10:00:00Z", digest, Outcome::Passed);
        find(digest, None).unwrap();
    }
}
