//! A machine that was booted over the network writes its own disk: the same choice, the same refusals, the same reading back and the same
//! receipt as where a person flashes it, which goes to the server.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::flash::claim::{Wish, choose};
use super::flash::device::Machine;
use super::flash::job::{self, About, receipt};
use super::flash::journal::Journal;
use super::flash::proof::Proof;
use super::flash::receipt::Receipt;
use super::flash::{Facts, Options, Source, Watch};
use crate::cluster::Credential;
use crate::cluster::secret::Value;
use crate::error::{Failure, Kind};
use crate::fetch::NodeServer;
use crate::lock::time;
use crate::manifest::Manifest;
use crate::spec::cluster::DiskContract;
use crate::sys;

/// Between two questions for the credentials.
const PAUSE: Duration = Duration::from_secs(5);
/// So often is asked: an hour.
const ASKED: u32 = 720;
/// More than all credentials of a node can be.
const LONGEST: u64 = 16 << 20;

/// The credential by which an installed node knows whom to tell that it joined (images/k3s/joined).
const REPORT: &str = "kiln.report";

/// What the server plans, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Plan {
    /// `install`, or something else for another kind of boot.
    pub(super) mode: String,
    pub(super) node: String,
    #[serde(default)]
    pub(super) contract: DiskContract,
    /// Bytes of a disk with all partitions but `/var`, and of the least `/var`.
    #[serde(default)]
    layout_size: u64,
    #[serde(default)]
    pub(super) state_size: u64,
    install: Option<Order>,
    /// For a node that runs diskless with its state on a disk.
    pub(super) state: Option<StateOrder>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StateOrder {
    pub(super) cluster: String,
}

#[derive(Debug, Deserialize)]
struct Order {
    cluster: String,
    overwrite: Vec<String>,
    proof: Proof,
    manifest: Manifest,
}

/// What this machine reports.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    pub(super) event: &'static str,
    pub(super) detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receipt: Option<serde_json::Value>,
}

impl Plan {
    /// Asks for it.
    pub(super) fn ask(server: &NodeServer) -> Result<Self> {
        serde_json::from_slice(&server.get("plan", LONGEST)?).context("the plan of the server")
    }
}

/// Installs what the server plans for this machine, and tells it how that went; `said` hears a word and a line for people.
///
/// # Errors
/// The plan is another one; as [`choose`] and [`job::install`]; the server does not answer.
pub fn install(
    machine: &Machine,
    server: &NodeServer,
    watch: &dyn Watch,
    said: &dyn Fn(&str, String),
) -> Result<Receipt> {
    let result = plan(server).and_then(|(plan, order)| work(machine, server, &plan, &order, watch, said));
    let event = match &result {
        Ok(receipt) => Event {
            event: "installed",
            detail: Some(format!(
                "on {} (serial {})",
                receipt.device.path.display(),
                receipt.device.serial.as_deref().unwrap_or("none")
            )),
            receipt: Some(serde_json::to_value(receipt)?),
        },
        Err(error) => Event { event: "failed", detail: Some(format!("{error:#}")), receipt: None },
    };
    // Without the server's word that it knows, the next boot by the network would install again.
    let told = server.post("event", &serde_json::to_vec(&event)?);
    let receipt = result?;
    told.context("the disk is done, but the server does not know")?;
    Ok(receipt)
}

fn plan(server: &NodeServer) -> Result<(Plan, Order)> {
    let mut plan = Plan::ask(server)?;
    match plan.install.take().filter(|_| plan.mode == "install") {
        Some(order) => Ok((plan, order)),
        None => {
            let text = format!("the server plans `{}` for {}, not `install`", plan.mode, plan.node);
            let again = format!("`kiln pxe reinstall {}` begins anew", plan.node);
            Err(Failure::new(Kind::Input, text).hint(again).into())
        }
    }
}

fn work(
    machine: &Machine,
    server: &NodeServer,
    plan: &Plan,
    order: &Order,
    watch: &dyn Watch,
    said: &dyn Fn(&str, String),
) -> Result<Receipt> {
    let manifest = &order.manifest;
    let least = plan.layout_size + plan.state_size;
    let wish =
        Wish { contract: plan.contract.clone(), overwrite: &order.overwrite, least, ..Wish::default() };
    let chosen = choose(machine, &wish)?;
    let disk = &chosen.disk;
    let detail = format!(
        "{} ({}): {}",
        disk.path.display(),
        disk.serial.as_deref().unwrap_or("no serial number"),
        chosen.summary()
    );
    said("Chosen", detail.clone());
    let event = Event { event: "installing", detail: Some(detail), receipt: None };
    server.post("event", &serde_json::to_vec(&event)?)?;
    // A disk is not touched for a node that would not know who it is.
    let mut identity = credentials(server, &plan.node, said)?;
    identity.push(Credential {
        name: REPORT.to_owned(),
        value: Value::new(server.url("event")),
        secret: false,
    });
    let started = time::iso(time::now());
    let facts = Facts { digest: manifest.disk.sha256, size: manifest.disk.size, epoch: manifest.epoch };
    let source = Source::new(Box::new(server.stream("image.raw")?), facts)?;
    let options = Options { identity: &identity, least, ..Options::default() };
    let written = job::install(machine, &chosen, &wish, source, &options, || Ok(Journal::none()), watch)?;
    let node = Some((order.cluster.clone(), plan.node.clone()));
    let about = About { node, proof: order.proof.clone(), keep_state: false, started, ejected: false };
    Ok(receipt(disk, manifest, about, written))
}

/// What the node is told, when a person lets it have that.
fn credentials(server: &NodeServer, node: &str, said: &dyn Fn(&str, String)) -> Result<Vec<Credential>> {
    for round in 0..ASKED {
        sys::check_interrupt()?;
        if let Some(archive) = server.ask("credentials", LONGEST)? {
            return unpack(&archive);
        }
        if round == 0 {
            said("Waiting", format!("for this node's credentials: `kiln pxe release {node}`"));
        }
        std::thread::sleep(PAUSE);
    }
    Err(Failure::new(Kind::Fetch, format!("the server gave {node} no credentials within an hour"))
        .hint(format!("`kiln pxe release {node}`, then start the machine again"))
        .into())
}

fn unpack(archive: &[u8]) -> Result<Vec<Credential>> {
    let mut archive = tar::Archive::new(archive);
    let mut list = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        // All are kept from others: what is no secret is not worth telling apart here.
        list.push(Credential { name, value: Value::new(bytes), secret: true });
    }
    Ok(list)
}
