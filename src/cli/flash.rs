//! `kiln flash`.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Result;

use super::Context;
use crate::built::{IMAGES, locate};
use crate::cluster::secret::Keeper;
use crate::cluster::{Credential, credentials, seal};
use crate::config::state_folder;
use crate::deploy::flash::claim::{self, Candidate, Wish, choose, confirm};
use crate::deploy::flash::device::Machine;
use crate::deploy::flash::job::{self, Built, Order};
use crate::deploy::flash::proof;
use crate::deploy::flash::receipt::Receipt;
use crate::deploy::flash::{Phase, Watch};
use crate::error::{Failure, Kind};
use crate::manifest;
use crate::spec::Project;
use crate::spec::cluster::{Cluster, DiskContract, Node};
use crate::ui::{Bar, Ui, human_bytes};

const EXAMPLES: &str = "\
Examples:
  kiln flash --list
      What disks there are, and what is on them
  kiln flash --node agent-1
      The image and the identity of a node onto the disk of its contract
  kiln flash --node agent-1 --device /dev/disk/by-id/usb-Stick_0123 --yes 0123
      The same onto a stick, without a terminal
  kiln flash --image server --device /dev/sdb --device /dev/sdc
      An image without any identity onto two disks at once
  kiln flash --node agent-1 --keep-state
      Anew, and /var stays as it is";

/// Arguments of `kiln flash`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// List the disks of this machine and what is on them; write nothing
    #[arg(long, conflicts_with_all = ["node", "device", "image"])]
    list: bool,

    /// The node of cluster.toml whose image and identity is written; several at once, each onto a
    /// disk of its own
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,

    /// Write onto this disk; default: the only one that fits the node's disk contract. With
    /// several nodes: one for each, in the same order
    #[arg(long, value_name = "PATH")]
    device: Vec<PathBuf>,

    /// The image: a profile, a manifest, or a .raw or .raw.zst beside its manifest; default: that
    /// of the node's profile
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    /// The file of the cluster; default: cluster.toml in the project
    #[arg(long, value_name = "FILE")]
    cluster: Option<PathBuf>,

    /// The serial number of the disk, in place of typing it; its name if it has none
    #[arg(long, value_name = "SERIAL")]
    yes: Vec<String>,

    /// Lose what makes the disk part of something larger: lvm, raid, zfs, ceph, luks, bcache,
    /// bitlocker, vmfs or hibernation
    #[arg(long, value_name = "KIND")]
    overwrite: Vec<String>,

    /// Leave /var as it is, if the disk is a node's and the image fits into its first slot
    #[arg(long)]
    keep_state: bool,

    /// Begin anew where an earlier run was interrupted
    #[arg(long)]
    restart: bool,

    /// Flash an image that no run of `kiln test` proved; the receipt gives your reason
    #[arg(long, value_name = "REASON")]
    unproven: Option<String>,

    /// Write no identity: the node gets it from its firmware, or has none
    #[arg(long)]
    no_identity: bool,

    /// Leave a stick plugged in when it is done
    #[arg(long)]
    no_eject: bool,

    /// Folder with the reports of `kiln test`; default: `out/test` in the project
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Folder with the images; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What is to be done to one disk, before the disk is chosen.
struct Target<'a> {
    node: Option<&'a Node>,
    device: Option<&'a Path>,
    image: Built,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let machine = Machine::this();
    if args.list {
        return list(context, &machine);
    }
    claim::check_words(&args.overwrite)?;
    let cluster = (!args.node.is_empty())
        .then(|| super::cluster::read(context, args.cluster.as_deref()))
        .transpose()?;
    let targets = targets(context, args, cluster.as_ref())?;
    let mut orders: Vec<Order<'_>> = Vec::new();
    for target in &targets {
        let order = order(context, args, &machine, target, cluster.as_ref())?;
        if let Some(twice) = orders.iter().find(|other| other.chosen.disk.name == order.chosen.disk.name) {
            let text = format!("{} is meant twice", twice.chosen.disk.path.display());
            return Err(Failure::new(Kind::Input, text).hint("each node needs a disk of its own").into());
        }
        orders.push(order);
    }
    // Secrets are asked for when everything else is right, and before anything is written.
    if let Some(cluster) = &cluster
        && !args.no_identity
    {
        let mut keeper = Keeper::new(cluster);
        for (order, target) in orders.iter_mut().zip(&targets) {
            let Some(node) = target.node else { continue };
            order.identity = identity(cluster, node, &mut keeper)?;
            if !seal::names(&order.identity).is_empty() {
                let text = format!(
                    "{} puts its secrets under its own key ({}) at its first boot; until then whoever holds the disk can read them",
                    node.name, node.seal
                );
                context.ui.notice("Note", text);
            }
            order.node = Some((cluster.name.to_string(), node.name.to_string()));
        }
    }
    flash(context, &machine, &orders, &state_folder()?)
}

fn list(context: &Context, machine: &Machine) -> Result<()> {
    let all = Candidate::all(machine);
    if context.ui.json() {
        return context.ui.result_json(&all);
    }
    claim::table(&all, None).iter().for_each(|line| context.ui.result(line));
    Ok(())
}

fn identity(cluster: &Cluster, node: &Node, keeper: &mut Keeper<'_>) -> Result<Vec<Credential>, Failure> {
    credentials(cluster, node, keeper)
}

fn targets<'a>(context: &Context, args: &'a Args, cluster: Option<&'a Cluster>) -> Result<Vec<Target<'a>>> {
    let wrong = |what: &str, fix: &str| Failure::new(Kind::Input, what).hint(fix);
    let devices: Vec<Option<&Path>> = args.device.iter().map(|device| Some(device.as_path())).collect();
    let Some(cluster) = cluster else {
        let Some(image) = &args.image else {
            return Err(wrong(
                "nothing says what to flash",
                "name a node with --node, or an image with --image and a disk with --device",
            )
            .into());
        };
        if devices.is_empty() {
            return Err(wrong(
                "nothing says which disk is meant",
                "name it with --device; `kiln flash --list` shows all",
            )
            .into());
        }
        return devices
            .into_iter()
            .map(|device| Ok(Target { node: None, device, image: image_of(context, args, image)? }))
            .collect();
    };
    if !devices.is_empty() && devices.len() != args.node.len() {
        let what = format!("{} nodes and {} devices are named", args.node.len(), devices.len());
        return Err(wrong(&what, "name one device for each node, in the same order").into());
    }
    let devices = devices.into_iter().chain(std::iter::repeat(None));
    args.node
        .iter()
        .zip(devices)
        .map(|(name, device)| {
            let node = cluster.node(name)?;
            let image = image_of(context, args, args.image.as_deref().unwrap_or(&node.profile))?;
            if image.manifest.role != Some(node.role) {
                let role = image.manifest.role.map_or("none".to_owned(), |role| role.to_string());
                let what = format!(
                    "{name} has the role {}, and the image {} is for {role}",
                    node.role, image.manifest.profile
                );
                return Err(wrong(&what, "leave --image out, or name an image of that role").into());
            }
            if !args.no_identity {
                seal::check(node, &image.manifest.units)?;
            }
            Ok(Target { node: Some(node), device, image })
        })
        .collect()
}

/// The image that `name` means, with its proof.
fn image_of(context: &Context, args: &Args, name: &str) -> Result<Built> {
    let out = context.out(args.out.as_ref());
    let path = locate(name, &out)?;
    let manifest = manifest::read(&path)?;
    let exact = IMAGES[..2].iter().any(|end| name.ends_with(end));
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = if exact { PathBuf::from(name) } else { Built::find(folder, &manifest)? };
    let project: Option<Project> = context.project().ok();
    let reports = args.report.clone().unwrap_or_else(|| match &project {
        Some(project) => project.dir.join("out/test"),
        None => out.join("test"),
    });
    let proof = proof::find(&reports, manifest.disk.sha256, &manifest.profile, args.unproven.as_deref())?;
    let profile = project.as_ref().and_then(|project| project.profile(&manifest.profile).ok());
    let least = profile.map(|profile| job::least(profile, &manifest)).transpose()?.unwrap_or(0);
    Ok(Built { file, manifest, proof, least })
}

fn order<'a>(
    context: &Context,
    args: &'a Args,
    machine: &Machine,
    target: &'a Target<'_>,
    cluster: Option<&Cluster>,
) -> Result<Order<'a>> {
    let contract = target.node.map_or_else(DiskContract::default, |node| node.disk.clone());
    let least = target.image.least.max(target.image.manifest.disk.size);
    let wish = Wish { contract, device: target.device, overwrite: &args.overwrite, least, ..Wish::default() };
    let chosen = choose(machine, &wish)?;
    let disk = &chosen.disk;
    let model = disk.model.as_deref().unwrap_or("a disk");
    context.ui.status(
        "Chosen",
        format!(
            "{} ({model}, {}, {}, serial {}) for {}: {}",
            disk.path.display(),
            human_bytes(disk.size),
            disk.bus,
            disk.serial.as_deref().unwrap_or("none"),
            target.node.map_or("no node", |node| node.name.as_str()),
            chosen.summary()
        ),
    );
    confirm(disk, &wish, &args.yes, |question| context.ui.ask(question))?;
    if cluster.is_none() && !args.no_identity {
        context.ui.notice("Note", "no node is named, so no identity is written");
    }
    Ok(Order {
        chosen,
        wish,
        image: &target.image,
        node: None,
        identity: Vec::new(),
        keep_state: args.keep_state,
        restart: args.restart,
        eject: !args.no_eject,
    })
}

/// Progress of one disk.
struct Line<'a> {
    bar: Bar,
    name: String,
    ui: &'a Ui,
    phase: Mutex<Option<Phase>>,
}

impl Watch for Line<'_> {
    fn begin(&self, phase: Phase, bytes: u64) {
        let word = match phase {
            Phase::Preparing => "Preparing",
            Phase::Writing => "Writing",
            Phase::Verifying => "Verifying",
            Phase::Finishing => "Finishing",
        };
        if let Ok(mut now) = self.phase.lock() {
            *now = Some(phase);
        }
        self.bar.reset(word, bytes);
        self.ui.detail(word, &self.name);
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

/// All disks at once; one that fails does not hurt the others.
fn flash(context: &Context, machine: &Machine, orders: &[Order<'_>], folder: &Path) -> Result<()> {
    let one = |order: &Order<'_>| {
        let name = order.chosen.disk.path.display().to_string();
        let bar = context.ui.bytes_bar("Flashing", 0);
        bar.message(name.clone());
        let line = Line { bar, name, ui: &context.ui, phase: Mutex::new(None) };
        let result = job::flash(machine, order, folder, &line);
        drop(line);
        if let Ok(receipt) = &result {
            told(context, receipt);
        }
        result
    };
    let results: Vec<Result<Receipt, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = orders.iter().map(|order| scope.spawn(|| one(order))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a flash does not panic")).collect()
    });
    let (mut receipts, mut failures) = (Vec::new(), Vec::new());
    for (order, result) in orders.iter().zip(results) {
        match result {
            Ok(receipt) => receipts.push(receipt),
            Err(failure) => failures.push((order.chosen.disk.path.display().to_string(), failure)),
        }
    }
    if context.ui.json() && !receipts.is_empty() {
        context.ui.result_json(&receipts)?;
    }
    let count = failures.len();
    let Some((_, last)) = failures.pop() else { return Ok(()) };
    for (name, failure) in failures {
        context.ui.bad("Failed", format!("{name}: {:#}", anyhow::Error::from(failure)));
    }
    if orders.len() == 1 {
        return Err(last.into());
    }
    Err(anyhow::Error::from(last).context(format!("{count} of {} disks are not done", orders.len())))
}

fn told(context: &Context, receipt: &Receipt) {
    let work = &receipt.work;
    context.ui.status(
        "Flashed",
        format!(
            "{} with {} {}: {} written, {} zeroed, {} found there, all {} read back; {}/s",
            receipt.device.path.display(),
            receipt.image.profile,
            receipt.image.version,
            human_bytes(work.written),
            human_bytes(work.zeroed),
            human_bytes(work.resumed),
            human_bytes(work.verified),
            human_bytes(receipt.write_rate),
        ),
    );
    if receipt.ejected {
        context.ui.status("Ejected", format!("{}: it can be unplugged", receipt.device.path.display()));
    }
}
