//! Which way a component comes into an image: options of every verb that bakes.

use clap::ValueEnum;

use crate::spec::{Project, WantedWay};

/// Options of verbs that bake.
#[derive(Debug, clap::Args)]
pub(super) struct Ways {
    /// Build this component from source, even if its release can be had
    #[arg(long, value_enum, value_name = "COMPONENT", conflicts_with = "no_fallback")]
    source: Vec<Component>,

    /// Fail where the release of a component cannot be had; default: build it from source then
    #[arg(long)]
    no_fallback: bool,
}

/// What comes as a release or from source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Component {
    /// The programs of K3s
    K3s,
}

impl Ways {
    /// Lets all profiles take what the options say; what a profile asks for without `auto` stands against `--no-fallback`.
    pub(super) fn apply(&self, project: &mut Project) {
        let profiles = project.profiles.values_mut().chain(project.machines.values_mut());
        for k3s in profiles.filter_map(|profile| profile.layer.k3s.as_mut()) {
            if self.source.contains(&Component::K3s) {
                k3s.way = Some(WantedWay::Source);
            } else if self.no_fallback && k3s.way.unwrap_or_default() == WantedWay::Auto {
                k3s.way = Some(WantedWay::Binary);
            }
        }
    }
}
