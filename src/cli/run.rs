//! `kiln run`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use fs_err as fs;
use serde::Serialize;

use super::Context;
use crate::arch::Arch;
use crate::cluster::judge_credential;
use crate::error::{Failure, Kind};
use crate::pipeline::Target;
use crate::qemu::accel::Accel;
use crate::qemu::config::Format;
use crate::qemu::ready::Ready;
use crate::qemu::run::{Options, Until, boot};
use crate::spec::ssh;
use crate::tools;

/// Arguments of `kiln run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Profile whose image in the output folder is booted
    #[arg(long, value_name = "NAME", required_unless_present = "image")]
    profile: Option<String>,

    /// A disk image to boot in its place (raw, or qcow2 by its name)
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    image: Option<PathBuf>,

    /// Machine of the image
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,

    /// Folder with the images; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// End when the node is up, with no unit that failed or is started again and again; exit code 7 if it does not get there
    #[arg(long, value_enum)]
    until: Option<UntilArg>,

    /// Memory of the machine in MiB
    #[arg(long, value_name = "MIB", default_value = "2048")]
    memory: u32,

    /// Processors of the machine
    #[arg(long, value_name = "N", default_value = "2")]
    cpus: u32,

    /// Size of the disk that the node sees, in GiB
    #[arg(long, value_name = "GIB", default_value = "12")]
    disk: u64,

    /// Give the node a systemd credential; @FILE reads the value from a file
    #[arg(long = "credential", value_name = "NAME=VALUE")]
    credentials: Vec<String>,

    /// Forward this port of 127.0.0.1 to the node's ssh
    #[arg(long, value_name = "PORT")]
    ssh: Option<u16>,

    /// Forward a TCP port of 127.0.0.1 to one of the node, such as 6443:6443
    #[arg(long, value_name = "HERE:NODE", value_parser = ports)]
    forward: Vec<(u16, u16)>,

    /// Use this accelerator; default: KVM if a test guest runs under it, else TCG
    #[arg(long, value_enum)]
    accel: Option<AccelArg>,

    /// Seconds to get ready under KVM; TCG gets six times as much
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    limit: u64,

    /// Keep console log and disk overlay when the run fails
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UntilArg {
    /// Boot has ended, and every service that was started again has been up for 30 seconds
    Ready,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum AccelArg {
    /// The host's processor
    Kvm,
    /// Emulation
    Tcg,
}

impl From<AccelArg> for Accel {
    fn from(asked: AccelArg) -> Self {
        match asked {
            AccelArg::Kvm => Accel::Kvm,
            AccelArg::Tcg => Accel::Tcg,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    image: String,
    accelerator: &'a str,
    accelerator_reason: &'a str,
    ready: Option<&'a Ready>,
    powered_off: Option<bool>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    // Before the image is looked for: a mistake in an argument is reported first.
    let credentials = args.credentials.iter().map(|c| credential(c)).collect::<Result<Vec<_>>>()?;
    let (project, locked) = context.locked()?;
    let store = context.store()?;
    let work = context.work(&project, &locked, &store);
    let image = match (&args.image, &args.profile) {
        (Some(image), _) => image.clone(),
        (None, Some(profile)) => {
            let out = args.out.clone().unwrap_or_else(|| project.dir.join("out"));
            Target { profile: project.profile(profile)?, arch: args.arch, out: &out }.raw()
        }
        (None, None) => unreachable!("clap asks for one of both"),
    };
    if !image.is_file() {
        let build = args
            .profile
            .as_ref()
            .map_or("kiln build".to_owned(), |p| format!("kiln build --profile {p} --arch {}", args.arch));
        return Err(Failure::new(Kind::Input, format!("there is no image {}", image.display()))
            .hint(format!("run `{build}` first"))
            .into());
    }
    let set = match args.arch {
        Arch::Amd64 => "qemu",
        Arch::Arm64 => "qemu-arm64",
    };
    let tools = tools::folder(&work, set)?;
    let mut options = Options::new(args.arch);
    options.name = args.profile.clone().unwrap_or_else(|| "node".to_owned());
    options.format =
        if image.extension().is_some_and(|e| e == "qcow2") { Format::Qcow2 } else { Format::Raw };
    options.memory = args.memory;
    options.cpus = args.cpus;
    options.disk = args.disk << 30;
    options.accel = args.accel.map(Into::into);
    options.forward = args.ssh.map(|port| (port, 22)).into_iter().chain(args.forward.clone()).collect();
    options.credentials = credentials;
    options.until = if args.until.is_some() { Until::Ready } else { Until::Ended };
    options.limit = Duration::from_secs(args.limit);
    options.keep = args.keep;
    let spinner = args.until.map(|_| context.ui.spinner("Booting", image.display().to_string()));
    let outcome = boot(&tools, &image, &options, &|line| context.ui.status("Booting", line))?;
    drop(spinner);
    if context.ui.json() {
        return context.ui.result_json(&Report {
            image: image.display().to_string(),
            accelerator: outcome.accel.accel.word(),
            accelerator_reason: &outcome.accel.reason,
            ready: outcome.ready.as_ref(),
            powered_off: outcome.powered_off,
        });
    }
    if outcome.ready.is_some() {
        context.ui.status(
            "Ready",
            format!("{} reached multi-user; no unit failed or is started again", options.name),
        );
    }
    Ok(())
}

/// `HERE:NODE`, two TCP ports.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let both = text.split_once(':').and_then(|(here, there)| Some((port(here)?, port(there)?)));
    both.ok_or_else(|| "write two ports, such as 6443:6443".to_owned())
}

/// `NAME=VALUE` or `NAME=@FILE`.
fn credential(text: &str) -> Result<(String, Vec<u8>)> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        // It may be the value of a secret, without its name.
        Failure::new(Kind::Input, "a credential has no `=`").hint("write NAME=VALUE or NAME=@FILE")
    })?;
    let bytes = match value.strip_prefix('@') {
        Some(file) => fs::read(file).with_context(|| format!("reading the credential {name}"))?,
        None => value.as_bytes().to_vec(),
    };
    judge_credential(name, &bytes)?;
    let bytes = if name == "ssh.authorized_keys.root" { authorized_keys(&bytes)? } else { bytes };
    Ok((name.to_owned(), bytes))
}

/// Lines that sshd takes; one that it would pass over is refused: it may be the only way into the node.
fn authorized_keys(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let refuse = |why: String| {
        Failure::new(Kind::Input, format!("the credential ssh.authorized_keys.root cannot be used: {why}"))
    };
    let keys = ssh::keys(bytes).map_err(|refusal| refuse(refusal.to_string()).hint(refusal.hint))?;
    if keys.is_empty() {
        return Err(refuse("there is no key in it".to_owned()).hint("give the content of a .pub file"));
    }
    Ok((keys.join("\n") + "\n").into_bytes())
}
