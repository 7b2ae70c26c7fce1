//! `kiln pxe`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;

use super::Context;
use crate::deploy::pxe::control::{Order, ask};
use crate::deploy::pxe::net::Wanted;
use crate::deploy::pxe::site::Mode;
use crate::deploy::pxe::{self, Options};
use crate::error::{Failure, Kind};
use crate::scenario::spec::Span;

const EXAMPLES: &str = "Examples:
  sudo kiln pxe --mode install --window 30m       install every node that starts by the network
  sudo kiln pxe --install agent-1                 only this one; the others boot from their disks
  sudo kiln pxe --mode diskless --dhcp-range 192.168.50.200-192.168.50.220
                                                  a lab network that has no DHCP server
  kiln pxe open --for 10m                         release credentials for ten minutes
  kiln pxe release agent-1                        release those of one node once more
  kiln pxe reinstall agent-1                      let it be installed again";

/// Arguments of `kiln pxe`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// The cluster; default: cluster.toml in the project
    #[arg(long, value_name = "FILE")]
    cluster: Option<PathBuf>,

    /// What every node is to do that no other option names
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// Write this node's image to its disk, then let it boot from there; may be repeated
    #[arg(long, value_name = "NODE")]
    install: Vec<String>,

    /// Run this node from memory; may be repeated
    #[arg(long, value_name = "NODE")]
    diskless: Vec<String>,

    /// Forget that this node was installed, as `kiln pxe reinstall` does; may be repeated
    #[arg(long, value_name = "NODE")]
    reinstall: Vec<String>,

    /// Release credentials, once to each node, for so long from the start, such as 30m
    #[arg(long, value_name = "TIME", value_parser = time)]
    window: Option<Duration>,

    /// Address to serve from; default: this machine's in a network of the cluster
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,

    /// Be the DHCP server of the network and lease these addresses to nodes without one; default: stand beside the one that is there
    #[arg(long, value_name = "FIRST-LAST", value_parser = range)]
    dhcp_range: Option<(Ipv4Addr, Ipv4Addr)>,

    /// Port of HTTP
    #[arg(long, value_name = "PORT", default_value = "8067", value_parser = clap::value_parser!(u16).range(1..))]
    http_port: u16,

    /// Port of DHCP; clients have the next one. For tests
    #[arg(long, value_name = "PORT", default_value = "67", value_parser = clap::value_parser!(u16).range(1..65535))]
    dhcp_port: u16,

    /// Port of the boot service of PXE. For tests
    #[arg(long, value_name = "PORT", default_value = "4011", value_parser = clap::value_parser!(u16).range(1..))]
    boot_port: u16,

    /// Port of TFTP. For tests
    #[arg(long, value_name = "PORT", default_value = "69", value_parser = clap::value_parser!(u16).range(1..))]
    tftp_port: u16,

    /// Where a disk to be installed is part of something larger, lose that: lvm, raid, zfs, ceph, luks, bcache, bitlocker, vmfs or
    /// hibernation; may be repeated
    #[arg(long, value_name = "KIND")]
    overwrite: Vec<String>,

    /// Install images that no run of `kiln test` proved; the receipts give your reason
    #[arg(long, value_name = "REASON")]
    unproven: Option<String>,

    /// Folder with the reports of `kiln test`; default: `out/test` in the project
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Folder with the images; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Folder for what is known of the nodes and for their receipts; default: `pxe` beside the images
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Where a server that runs is found.
#[derive(Debug, clap::Args)]
struct Running {
    /// Folder with the images of the server; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Folder of the server's state; default: `pxe` beside the images
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Let the server that runs release credentials, once to each node
    Open {
        /// For so long
        #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = time)]
        time: Duration,

        #[command(flatten)]
        running: Running,
    },
    /// Let it release no more
    Close {
        #[command(flatten)]
        running: Running,
    },
    /// Let one node have its credentials once more
    Release {
        /// The node
        #[arg(value_name = "NODE")]
        node: String,

        /// Within this time
        #[arg(long = "for", value_name = "TIME", default_value = "30m", value_parser = time)]
        time: Duration,

        #[command(flatten)]
        running: Running,
    },
    /// Forget that a node was installed: it is installed again when it starts by the network
    Reinstall {
        /// The node
        #[arg(value_name = "NODE")]
        node: String,

        #[command(flatten)]
        running: Running,
    },
    /// Show what became of every node, and who asked that is in no cluster.toml
    Status {
        #[command(flatten)]
        running: Running,
    },
}

/// `90s`, `30m`, `2h`, and what scenarios write: `30min`.
fn time(text: &str) -> Result<Duration, String> {
    let minutes = text.strip_suffix('m').map(|number| format!("{number}min"));
    let span: Span = minutes
        .as_deref()
        .unwrap_or(text)
        .parse()
        .map_err(|_| "write a time such as 90s, 30m or 2h".to_owned())?;
    if span.duration().as_secs() == 0 { Err("at least a second".to_owned()) } else { Ok(span.duration()) }
}

/// `FIRST-LAST`.
fn range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), String> {
    let both = text.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    both.ok_or_else(|| "write two addresses, such as 192.168.50.200-192.168.50.220".to_owned())
}

fn state(context: &Context, out: Option<&PathBuf>, state: Option<&PathBuf>) -> PathBuf {
    state.cloned().unwrap_or_else(|| context.out(out).join("pxe"))
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let Some(verb) = &args.verb else { return serve(context, &args.serve) };
    let (order, running) = match verb {
        Verb::Open { time, running } => (Order::Open { seconds: time.as_secs() }, running),
        Verb::Close { running } => (Order::Close, running),
        Verb::Release { node, time, running } => {
            (Order::Release { node: node.clone(), seconds: time.as_secs() }, running)
        }
        Verb::Reinstall { node, running } => (Order::Reinstall { node: node.clone() }, running),
        Verb::Status { running } => (Order::Status, running),
    };
    let reply = ask(&state(context, running.out.as_ref(), running.state.as_ref()), &order)?;
    match reply.board {
        Some(board) if context.ui.json() => return context.ui.result_json(&board),
        Some(_) => context.ui.result(reply.text),
        None if context.ui.json() => {
            return context.ui.result_json(&serde_json::json!({ "done": reply.text }));
        }
        None => context.ui.status("Done", reply.text),
    }
    Ok(())
}

fn serve(context: &Context, args: &Serve) -> Result<()> {
    let cluster = super::cluster::read(context, args.cluster.as_deref())?;
    let (project, locked) = context.locked()?;
    let store = context.store()?;
    let mut modes = BTreeMap::new();
    let install = args.install.iter().map(|name| (name, Mode::Install));
    for (name, mode) in install.chain(args.diskless.iter().map(|name| (name, Mode::Diskless))) {
        if modes.insert(name.clone(), mode).is_some_and(|other| other != mode) {
            let text = format!("`{name}` cannot be installed and run from memory at once");
            return Err(Failure::new(Kind::Input, text).hint("name it once").into());
        }
    }
    let out = context.out(args.out.as_ref());
    let options = Options {
        state: std::path::absolute(state(context, args.out.as_ref(), args.state.as_ref()))?,
        out,
        address: args.address,
        range: args.dhcp_range,
        ports: Wanted {
            dhcp: args.dhcp_port,
            boot: args.boot_port,
            tftp: args.tftp_port,
            http: args.http_port,
        },
        mode: args.mode,
        modes,
        reinstall: args.reinstall.clone(),
        window: args.window,
        reports: args.report.clone().unwrap_or_else(|| project.dir.join("out/test")),
        unproven: args.unproven.clone(),
        overwrite: args.overwrite.clone(),
    };
    let work = context.work(&project, &locked, &store);
    pxe::run(&work, &cluster, &options)
}
