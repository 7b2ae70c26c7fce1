//! The machines of a run and what they stand on: images, disks, networks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::context::{Context, Trouble, lock};
use super::faults::Gate;
use super::net::Net;
use super::node::Node;
use super::progress::{Activity, WINDOW};
use crate::manifest::Manifest;
use crate::qemu::usage::Usage;
use crate::scenario::calibrate::Calibration;
use crate::scenario::spec::{self, Scenario};
use crate::spec::Profile;

/// An image that nodes boot.
#[derive(Debug, Clone)]
pub struct Image {
    /// The raw disk.
    pub path: PathBuf,
    /// What is known of it.
    pub manifest: Manifest,
    /// What it was baked from.
    pub profile: Profile,
    /// The script that confirms the features of the profile on a running node.
    pub probes: String,
}

/// Images by profile and flavour.
pub type Images = BTreeMap<(String, Option<crate::spec::Flavour>), Image>;

/// All machines of a run.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) images: &'a Images,
    /// The project's folder, for files that are copied into nodes.
    pub(super) project: &'a Path,
    /// The report's folder.
    pub(super) report: &'a Path,
    pub(super) net: Net,
    nodes: BTreeMap<spec::Name, Node<'a>>,
    gate: Mutex<Gate>,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(setup: &super::Setup<'a>, net: Net, nodes: BTreeMap<spec::Name, Node<'a>>) -> Self {
        Cluster {
            scenario: setup.scenario,
            images: setup.images,
            project: setup.project,
            report: setup.report,
            net,
            nodes,
            gate: Mutex::new(Gate::new(setup.scenario.steps.len())),
        }
    }

    pub(super) fn node(&self, name: &str) -> Result<&Node<'a>, Trouble> {
        self.nodes.get(name).ok_or_else(|| Trouble::new(format!("there is no node {name}")))
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.values()
    }

    pub(super) fn image(&self, node: &spec::Node) -> Result<&'a Image, Trouble> {
        image(self.images, node)
    }

    /// The clock of faults.
    pub(super) fn gate(&self) -> MutexGuard<'_, Gate> {
        lock(&self.gate)
    }

    /// Does `work` on all `nodes` at the same time; answers in their order.
    pub(super) fn each<T: Send>(
        &self,
        nodes: &[&Node<'a>],
        work: impl Fn(&Node<'a>) -> Result<T, Trouble> + Sync,
    ) -> Vec<Result<T, Trouble>> {
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
            let answer = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(answer).collect()
        })
    }

    /// Looks at every machine again and again until the run ends: one whose QEMU ends unasked ends the run. Now and then it looks at what
    /// they do, and at what else runs on this machine, where `most` of them are on at once.
    pub(super) fn watch(&self, context: &Context<'_>, calibration: &Calibration, most: usize) {
        let mut looked = Instant::now();
        let mut usage: BTreeMap<u32, Usage> = BTreeMap::new();
        while context.goes_on().is_ok() {
            self.nodes().for_each(|node| node.look(context));
            if looked.elapsed() >= WINDOW {
                looked = Instant::now();
                let now: BTreeMap<u32, Usage> = self.nodes().filter_map(Node::usage).collect();
                let lately =
                    now.iter().filter_map(|(pid, usage_now)| Some(usage_now.since(*usage.get(pid)?)));
                context.busy(calibration.busy_as(most, lately.fold(Usage::default(), Usage::plus)));
                let mut activity = Activity {
                    machines: now.len(),
                    cpu: now.values().map(|usage| usage.wanted()).sum(),
                    frames: self.net.frames(),
                    ..Activity::default()
                };
                for node in self.nodes() {
                    activity.lines += node.told().heard();
                    activity.requests += node.requests();
                    if let Some(why) = node.trouble() {
                        let what = "a file of its disk on this machine cannot be written or read".to_owned();
                        context.incident(Some(node.name()), what, why, Vec::new());
                    }
                }
                if let Some(why) = context.see(activity) {
                    self.nodes().for_each(|node| node.interrupt(&why));
                }
                usage = now;
            }
            std::thread::sleep(super::context::STEP);
        }
    }
}

pub(super) fn image<'i>(images: &'i Images, node: &spec::Node) -> Result<&'i Image, Trouble> {
    images
        .get(&(node.profile.clone(), node.flavour))
        .ok_or_else(|| Trouble::new(format!("there is no image of {} for node {}", node.profile, node.name)))
}
