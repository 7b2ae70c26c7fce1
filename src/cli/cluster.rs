//! `kiln cluster` and `kiln token`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::Context;
use crate::cluster::{Credential, seal, token};
use crate::spec::cluster::{Addressing, Cluster, DisklessState, FILE, Look, Node};

/// Arguments of `kiln cluster`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check cluster.toml and its secrets: all that is wrong, each thing with its line. Commands that print secrets are run
    Check {
        /// The file; default: cluster.toml in the project
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show the cluster, or a node of it; never a secret, only where each is
    Show {
        /// The file; default: cluster.toml in the project
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,

        /// Show this node, and what it is told
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
}

/// Arguments of `kiln token`.
#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token by which nodes join a new cluster: 256 bits of the kernel's random source
    New {
        /// Write it to this new file, mode 0600, and not to the terminal
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,

        /// Make it secure: it also says which server is meant, the one with this CA (PEM, as the server has it at /cacerts)
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
}

/// `kiln cluster check --json`.
#[derive(Serialize)]
struct Checked<'a> {
    file: &'a str,
    name: &'a str,
    nodes: usize,
    warnings: &'a [String],
}

/// `kiln cluster show --node NAME --json`.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    node: &'a Node,
    credentials: Vec<ShownCredential>,
}

#[derive(Serialize)]
struct ShownCredential {
    name: String,
    /// Where it is, for a secret; else what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// The cluster of `file`, or of the project; its warnings are said.
pub(super) fn read(context: &Context, file: Option<&Path>) -> Result<Cluster> {
    read_with(context, file, None)
}

fn read_with(context: &Context, file: Option<&Path>, look: Option<&Look<'_>>) -> Result<Cluster> {
    let project = context.project()?;
    let path = file.map_or_else(|| project.dir.join(FILE), Path::to_owned);
    let cluster = match look {
        Some(look) => Cluster::read_and_look(&path, &project, look)?,
        None => Cluster::read(&path, &project)?,
    };
    for warning in &cluster.warnings {
        context.ui.warn(warning);
    }
    Ok(cluster)
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Check { file } => {
            let cluster = read_with(context, file.as_deref(), Some(&crate::cluster::secret::look))?;
            let nodes = cluster.nodes.len();
            if context.ui.json() {
                let warnings = &cluster.warnings;
                return context.ui.result_json(&Checked {
                    file: &cluster.file,
                    name: &cluster.name,
                    nodes,
                    warnings,
                });
            }
            context
                .ui
                .status("Fits", format!("{}: the cluster {} of {nodes} nodes", cluster.file, cluster.name));
            Ok(())
        }
        Verb::Show { file, node } => {
            let cluster = read(context, file.as_deref())?;
            match node {
                Some(name) => show_node(context, &cluster, cluster.node(name)?),
                None if context.ui.json() => context.ui.result_json(&cluster),
                None => {
                    lines(&cluster).into_iter().for_each(|line| context.ui.result(line));
                    Ok(())
                }
            }
        }
    }
}

fn show_node(context: &Context, cluster: &Cluster, node: &Node) -> Result<()> {
    let shown = |credential: Credential| ShownCredential {
        name: credential.name,
        from: None,
        text: Some(String::from_utf8_lossy(credential.value.expose()).into_owned()),
    };
    let mut credentials: Vec<ShownCredential> =
        crate::cluster::plain(cluster, node)?.into_iter().map(shown).collect();
    let secrets = &cluster.secrets;
    let mut secret = Vec::new();
    for (name, reference) in [
        ("k3s.token", &secrets.token),
        ("k3s.registries", &secrets.registries),
        ("passwd.hashed-password.root", &secrets.root_password),
    ] {
        let Some(reference) = reference else { continue };
        secret.push(name);
        let from = Some(reference.to_string());
        credentials.push(ShownCredential { name: name.to_owned(), from, text: None });
    }
    credentials.extend(seal::order(node.seal, secret).map(shown));
    if context.ui.json() {
        return context.ui.result_json(&Shown { node, credentials });
    }
    context.ui.result(format!("{}  {}  {}", node.name, node.role, address(node)));
    context.ui.result(format!("profile  {}", node.profile));
    context.ui.result(format!("mac      {}", node.mac.map_or("any".to_owned(), |mac| mac.to_string())));
    context.ui.result(format!("disk     {}", node.disk));
    if node.diskless_state == DisklessState::Disk {
        context.ui.result("diskless /var is on that disk");
    }
    context.ui.result(format!("seal     {}", node.seal));
    for credential in credentials {
        match (credential.from, credential.text) {
            (Some(from), _) => context.ui.result(format!("\n{}\n  (secret: {from})", credential.name)),
            (None, text) => {
                let text = text.unwrap_or_default();
                context.ui.result(format!(
                    "\n{}\n  {}",
                    credential.name,
                    text.trim_end().replace('\n', "\n  ")
                ));
            }
        }
    }
    Ok(())
}

fn address(node: &Node) -> String {
    match &node.addressing {
        Addressing::Dhcp => format!("DHCP on {}", node.network),
        Addressing::Static { address, prefix, .. } => format!("{address}/{prefix} on {}", node.network),
    }
}

fn lines(cluster: &Cluster) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", cluster.name, cluster.endpoint)];
    let width = cluster.nodes.keys().map(|name| name.len()).max().unwrap_or(0);
    for node in cluster.nodes.values() {
        let mac = node.mac.map_or("any card".to_owned(), |mac| mac.to_string());
        lines.push(format!(
            "  {:width$}  {:6}  {mac:17}  {}  [{}]",
            node.name,
            node.role,
            address(node),
            node.disk
        ));
    }
    let other = |what: &str, text: Option<String>| text.map(|text| format!("{what:8} {text}"));
    lines.extend(other("pool", cluster.lb_pool.map(|pool| pool.to_string())));
    lines.extend(other(
        "nfs",
        cluster.nfs.as_ref().map(|nfs| format!("{}:{}", nfs.server.bracketed(), nfs.path)),
    ));
    lines.extend(other(
        "bgp",
        cluster.bgp.as_ref().map(|bgp| format!("AS {} with {}, AS {}", bgp.asn, bgp.peer, bgp.peer_asn)),
    ));
    lines.extend(other("token", cluster.secrets.token.as_ref().map(ToString::to_string)));
    lines
}

pub(super) fn token(context: &Context, args: &TokenArgs) -> Result<()> {
    let TokenVerb::New { out, ca } = &args.verb;
    let ca = ca.as_ref().map(fs_err::read).transpose()?;
    let token = token::new(ca.as_deref())?;
    let Some(out) = out else {
        context.ui.result(String::from_utf8_lossy(token.expose()));
        return Ok(());
    };
    token::write(out, &token)?;
    let reference = format!("token = {{ file = {:?} }}", out.display().to_string());
    if context.ui.json() {
        return context.ui.result_json(&serde_json::json!({ "file": out, "reference": reference }));
    }
    context.ui.status("Wrote", format!("{} (mode 0600)", out.display()));
    context.ui.status(
        "Next",
        format!("write `{reference}` below [secret] of {FILE}, and keep the file out of Git"),
    );
    Ok(())
}
