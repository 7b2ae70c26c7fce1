//! `kiln kubeconfig`.

use std::path::PathBuf;

use anyhow::Result;

use super::Context;
use crate::kubeconfig::{self, Server};

/// Arguments of `kiln kubeconfig`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A server of the cluster: what ssh reaches it by
    host: String,

    /// Port of its sshd
    #[arg(long, default_value_t = 22, value_name = "PORT")]
    port: u16,

    /// Private key for ssh
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,

    /// Option of ssh, such as StrictHostKeyChecking=accept-new
    #[arg(short = 'o', long = "ssh-option", value_name = "OPTION")]
    options: Vec<String>,

    /// Where the API server is, ADDRESS or ADDRESS:PORT [default: HOST]
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,

    /// Name of cluster, user and context
    #[arg(long, default_value = "kiln", value_name = "NAME")]
    name: String,

    /// Write it to this file, which only its owner may read, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let server = Server {
        host: args.host.clone(),
        port: args.port,
        key: args.identity.clone(),
        options: args.options.clone(),
    };
    let text = kubeconfig::fetch(&server, args.server.as_deref().unwrap_or(&args.host), &args.name)?;
    let Some(out) = &args.out else {
        context.ui.raw(text.as_bytes());
        return Ok(());
    };
    kubeconfig::write(out, text.as_bytes())?;
    context.ui.status("Wrote", out.display().to_string());
    Ok(())
}
