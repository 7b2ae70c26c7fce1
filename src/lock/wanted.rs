//! Which sets of packages a project wants to have locked.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::digest::Digest;
use crate::spec::Project;

/// Whether a set is an image's or a tool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetKind {
    /// The packages of a profile or of a machine of scenarios.
    Profile,
    /// The packages of a tool set.
    Tool,
}

/// Names a set in the lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SetId {
    /// Profile or tool.
    pub kind: SetKind,
    /// Name of the profile or of the tool set.
    pub name: String,
    /// Architecture of the packages.
    pub arch: Arch,
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SetKind::Profile => "profile",
            SetKind::Tool => "tool set",
        };
        write!(f, "{kind} {} ({})", self.name, self.arch)
    }
}

/// What a set asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Which set.
    #[serde(flatten)]
    pub id: SetId,
    /// Packages or relations, sorted.
    pub wants: Vec<String>,
    /// Packages that are never taken, sorted.
    pub without: Vec<String>,
    /// Names that count as installed, sorted.
    pub provided: Vec<String>,
    /// Whether dependencies and Essential packages come too.
    pub dependencies: bool,
}

/// Everything that `project` wants to have locked, in the order of the lock.
pub fn wants(project: &Project) -> Vec<Want> {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list.dedup();
        list
    };
    let mut wants = Vec::new();
    for profile in project.images() {
        for arch in &project.archive.architectures {
            let packages = &profile.layer.packages;
            wants.push(Want {
                id: SetId { kind: SetKind::Profile, name: profile.name.clone(), arch: *arch },
                wants: profile.wants(*arch),
                without: sorted(&packages.without),
                provided: sorted(&packages.provided),
                dependencies: true,
            });
        }
    }
    for (name, set) in &project.tools.set {
        for arch in &set.architectures {
            wants.push(Want {
                id: SetId { kind: SetKind::Tool, name: name.clone(), arch: *arch },
                wants: sorted(&set.packages),
                without: sorted(&set.without),
                provided: Vec::new(),
                dependencies: set.dependencies,
            });
        }
    }
    wants.sort_by(|a, b| a.id.cmp(&b.id));
    wants
}

/// Digest of all that a resolution depends on in the TOML files: the archive and the wants, not the text of a baked file.
pub(super) fn fingerprint(project: &Project, wants: &[Want]) -> Digest {
    let text = serde_json::to_string(&(&project.archive, wants)).expect("spec types always serialise");
    Digest::of(text.as_bytes())
}
