//! Does a scenario fit this project, its images and this machine? Asked before anything starts, and all of it at once.

pub mod drivers;
pub mod host;

use std::path::Path;

use anyhow::Result;
use fs_err as fs;

use self::host::Host;
use super::plan::peak;
use super::problems::{Part, Problems, spot};
use super::spec::{Action, Node, Scenario};
use crate::lock::time;
use crate::qemu::accel::Accel;
use crate::rootfs;
use crate::spec::{Profile, Project, Size};

/// What is left to the rest of this machine, and to kiln itself.
const RESERVE: u64 = 512 << 20;

/// What QEMU takes beside the guest's memory. Under TCG a node of 1 GiB that had touched 400 MiB held 600 MiB more: translated code
/// and what is known of it.
fn qemu(accel: Accel) -> u64 {
    match accel {
        Accel::Kvm => 128 << 20,
        Accel::Tcg => 600 << 20,
    }
}

/// What a node writes to its disk in a run: the file system of /var, the journal, logs.
const WRITTEN: u64 = 256 << 20;
/// GPT and alignment at both ends of a disk.
const EDGES: u64 = 2 << 20;
/// As in [`crate::pipeline`], for profiles that say nothing.
const ESP: Size = Size::mib(96);

/// What is not wrong, but good to know before a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked<'a> {
    /// The image that each node boots, in the order of the nodes.
    pub images: Vec<(&'a Node, &'a Profile)>,
    /// Notes for people, each half a sentence.
    pub notes: Vec<String>,
}

/// Checks `scenario` against `project`, the manifests in the folder `out` (of images that were built already), `host` with the
/// accelerator that it will run under, and the moment `now` in seconds since 1970.
///
/// # Errors
/// [`crate::error::Kind::Input`] with everything that is wrong.
pub fn check<'a>(
    scenario: &'a Scenario,
    project: &'a Project,
    out: &Path,
    host: &Host,
    accel: Accel,
    now: i64,
) -> Result<Checked<'a>> {
    let mut problems = Problems::new(&scenario.file, &scenario.text);
    let mut images = Vec::new();
    for node in scenario.nodes() {
        let Some(profile) = image(node, project, &mut problems) else { continue };
        disk(node, profile, &mut problems);
        drivers::check(node, profile, out, &mut problems);
        images.push((node, profile));
    }
    files(scenario, &project.dir, &mut problems);
    expired(scenario, now, &mut problems);
    waits(scenario, &mut problems);
    let notes = resources(scenario, host, accel, &mut problems);
    match problems.failure() {
        Some(failure) => Err(failure.into()),
        None => Ok(Checked { images, notes }),
    }
}

/// The image of `node`.
fn image<'a>(node: &Node, project: &'a Project, problems: &mut Problems<'_>) -> Option<&'a Profile> {
    let at = |key: &str| spot!["node", node.name.as_str(), key];
    if project.find_image(&node.profile).is_none() {
        let known = project.images().map(|image| image.name.as_str());
        let text = format!("there is no profile `{}` in profiles/ or qemu/machines/", node.profile);
        problems.add(at("profile"), text).near(&node.profile, known);
        return None;
    }
    match project.variant(&node.profile, node.flavour) {
        Ok(profile) => Some(profile),
        Err(error) => {
            let report = crate::error::report(&error);
            let problem = problems.add(at("flavour"), report.chain.join(": "));
            for hint in report.hints {
                problem.hint(hint);
            }
            None
        }
    }
}

/// The least size of a disk on which the first boot can make all partitions (see [`crate::rootfs::state`]); `None` if the profile
/// does not say how large they are.
pub fn least_disk(profile: &Profile) -> Option<u64> {
    let slot = rootfs::slot(profile).ok()?;
    let esp = profile.layer.disk.esp.unwrap_or(ESP).bytes();
    let slots = 2 * (slot.bytes() + rootfs::state::verity_slot(slot));
    Some(EDGES + esp + slots + rootfs::var(profile).bytes())
}

fn disk(node: &Node, profile: &Profile, problems: &mut Problems<'_>) {
    let (Some(disk), Some(least)) = (node.disks.first(), least_disk(profile)) else { return };
    if disk.size.bytes() < least {
        let least = Size::mib(least.div_ceil(1 << 20));
        problems
            .add(
                spot!["node", node.name.as_str(), "disks", 0, "size"],
                format!("a disk of {} is too small for both slots and /var of `{}`", disk.size, profile.name),
            )
            .hint(format!("give it at least {least}"));
    }
}

/// Files to copy into nodes.
fn files(scenario: &Scenario, dir: &Path, problems: &mut Problems<'_>) {
    // Implied steps are not in the file: only the others count its places.
    for (index, step) in scenario.steps.iter().filter(|step| !step.implied).enumerate() {
        let Action::Copy { from, .. } = &step.action else { continue };
        let path = dir.join(from);
        let why = match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => continue,
            Ok(_) => "it is no file".to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            Err(error) => error.kind().to_string(),
        };
        problems
            .add(spot!["step", index, "copy", "from"], format!("{} cannot be copied: {why}", path.display()));
    }
}

fn expired(scenario: &Scenario, now: i64, problems: &mut Problems<'_>) {
    let today: String = time::iso(now).chars().take(10).collect();
    for (index, allow) in scenario.allow.iter().enumerate() {
        if allow.until.as_str() < today.as_str() {
            problems
                .add(spot!["allow", index, "until"], format!("this entry counted until {} only", allow.until))
                .hint(format!("mend what it let pass ({}), or look again and set a later day", allow.reason));
        }
    }
}

/// A run that only waits must fit in its limit.
fn waits(scenario: &Scenario, problems: &mut Problems<'_>) {
    let waits = scenario.steps.iter().map(|step| match &step.action {
        Action::Wait(span) => span.duration(),
        _ => std::time::Duration::ZERO,
    });
    let sum: std::time::Duration = waits.sum();
    if sum >= scenario.limit.duration() {
        let text =
            format!("the steps wait for {} s in all, and the run may take {}", sum.as_secs(), scenario.limit);
        problems.add(spot![Part::Name("limit".to_owned())], text);
    }
}

/// Memory, disk space and CPUs.
fn resources(scenario: &Scenario, host: &Host, accel: Accel, problems: &mut Problems<'_>) -> Vec<String> {
    let peak = peak(scenario);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let wanted = peak.memory + qemu(accel) * peak.nodes as u64 + RESERVE;
    if wanted > host.memory {
        problems
            .add(
                spot![],
                format!(
                    "{} nodes at once want {} MiB of memory (with QEMU itself and a reserve), this machine has {} MiB left",
                    peak.nodes,
                    mib(wanted),
                    mib(host.memory)
                ),
            )
            .hint("give the nodes less memory, switch some on later (`boot = \"manual\"`), or end other programs");
    }
    let written = WRITTEN * scenario.nodes.len() as u64;
    if written > host.space {
        problems
            .add(
                spot![],
                format!(
                    "{} has {} MiB left, and {} nodes write about {} MiB",
                    host.folder.display(),
                    mib(host.space),
                    scenario.nodes.len(),
                    mib(written)
                ),
            )
            .hint("free some space, or set TMPDIR to a folder that has more");
    }
    if peak.cpus > host.cpus {
        return vec![format!(
            "{} virtual CPUs share the {} of this machine: everything takes longer, and limits grow with it",
            peak.cpus, host.cpus
        )];
    }
    Vec::new()
}

#[cfg(test)]
mod tests;
