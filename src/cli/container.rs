//! `kiln container`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use fs_err as fs;
use serde::Serialize;

use super::Context;
use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind, Place, WritesTo};
use crate::oci::read::Layout;
use crate::oci::reference::Reference;
use crate::oci::{self, Archive};
use crate::packages::Work;
use crate::ui::{human_bytes, plain};

/// Arguments of `kiln container`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the container images of the project, and whether they are in the store
    List {
        /// Machine
        #[arg(long, value_enum, default_value = "amd64")]
        arch: Arch,
    },
    /// Put container images together, or pull them, as their files in images/containers say
    Build {
        /// Files in images/containers, without `.toml`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,

        /// Machine
        #[arg(long, value_enum, default_value = "amd64")]
        arch: Arch,

        /// Folder for the archives, as NAME-ARCH.tar; default: only into the store
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,

        /// Write OCI layout folders, NAME-ARCH, instead of archives
        #[arg(long, requires = "out")]
        layout: bool,
    },
    /// Take an image from a registry by digest, as an OCI archive
    ///
    /// Credentials are those of the file that KILN_REGISTRY_AUTH names, in Docker's form, else of Podman's
    /// auth.json (or what REGISTRY_AUTH_FILE names) and ~/.docker/config.json. Credential helpers that such a
    /// file names (credsStore, credHelpers) are run when the registry asks for a password. A registry on this
    /// machine (localhost, 127.0.0.1) is spoken to over HTTP, any other over TLS only.
    Pull {
        /// Such as registry.example.org/repository:tag@sha256:…; the digest is an index's or a manifest's
        #[arg(value_name = "REFERENCE")]
        reference: String,

        /// Machine
        #[arg(long, value_enum, default_value = "amd64")]
        arch: Arch,

        /// Folder for the archive
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Check every blob of an OCI archive or layout folder and list its images
    Show {
        /// The archive or the folder
        path: PathBuf,
    },
}

/// What `list --json` says of each container.
#[derive(Serialize)]
struct Listed {
    name: String,
    description: String,
    reference: String,
    /// `composed` or `pulled`.
    origin: &'static str,
    /// Whether it is in the store.
    built: bool,
    /// Digest of its manifest, if it is.
    digest: Option<Digest>,
    /// Bytes of its archive, if it is.
    size: Option<u64>,
}

/// What `build --json` and `pull --json` say.
#[derive(Serialize)]
struct Report {
    /// Name of its TOML file; nothing for one that was pulled by hand.
    name: Option<String>,
    reference: String,
    /// The archive.
    path: String,
    /// Digest of the manifest.
    digest: Digest,
    /// Bytes of the archive.
    size: u64,
}

/// What `show --json` says of each image.
#[derive(Serialize)]
struct Shown {
    name: Option<String>,
    /// Digest of the manifest.
    digest: Digest,
    os: String,
    architecture: String,
    layers: usize,
    /// Bytes of config and layers.
    size: u64,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    match &args.verb {
        Verb::List { arch } => with_work(context, |work| list(work, *arch)),
        Verb::Build { names, arch, out, layout } => {
            with_work(context, |work| build(work, names, *arch, out.as_deref(), *layout))
        }
        Verb::Pull { reference, arch, out } => pull(context, reference, *arch, out),
        Verb::Show { path } => show(context, path),
    }
}

fn with_work(context: &Context, run: impl FnOnce(&Work<'_>) -> Result<()>) -> Result<()> {
    let (project, locked) = context.locked()?;
    let store = context.store()?;
    run(&context.work(&project, &locked, &store))
}

fn list(work: &Work<'_>, arch: Arch) -> Result<()> {
    let mut rows = Vec::new();
    for (name, spec) in &work.project.containers {
        let found = oci::find(work, name, arch)?;
        rows.push(Listed {
            name: name.clone(),
            description: spec.description.clone(),
            reference: spec.reference.clone(),
            origin: if spec.image.is_some() { "pulled" } else { "composed" },
            built: found.is_some(),
            digest: found.as_ref().map(|archive| archive.digest),
            size: found.as_ref().map(|archive| archive.size),
        });
    }
    if work.ui.json() {
        return work.ui.result_json(&rows);
    }
    if rows.is_empty() {
        work.ui.status("Nothing", "there is no container image in images/containers/");
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        let state = row.size.map_or_else(|| "not in the store".to_owned(), human_bytes);
        work.ui.result(format!(
            "{:width$}  {}  {} ({}, {state})",
            row.name, row.reference, row.description, row.origin
        ));
    }
    Ok(())
}

fn build(work: &Work<'_>, names: &[String], arch: Arch, out: Option<&Path>, layout: bool) -> Result<()> {
    let mut reports = Vec::new();
    for name in names {
        let archive = oci::archive(work, name, arch)?;
        let path = match out {
            Some(out) if layout => unfold(&archive, arch, out).writes_to(Place::Out, out)?,
            Some(out) => place(&archive, arch, out)?,
            None => archive.path,
        };
        reports.push(Report {
            name: Some(archive.name),
            reference: archive.reference,
            path: path.display().to_string(),
            digest: archive.digest,
            size: archive.size,
        });
    }
    if work.ui.json() {
        return work.ui.result_json(&reports);
    }
    reports.iter().for_each(|report| work.ui.result(&report.path));
    Ok(())
}

/// A file of `out` that appears under its name only when it is whole.
fn whole(out: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    appear(out, name, fill).writes_to(Place::Out, out)
}

fn appear(out: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    fs::create_dir_all(out)?;
    let path = out.join(name);
    let temp = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".part").tempfile_in(out)?;
    fill(temp.path())?;
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temp.persist(&path).map_err(|e| e.error).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn place(archive: &Archive, arch: Arch, out: &Path) -> Result<PathBuf> {
    whole(out, &format!("{}-{arch}.tar", archive.name), |to| {
        std::io::copy(&mut fs::File::open(&archive.path)?, &mut fs::File::create(to)?)?;
        Ok(())
    })
}

/// The layout folder of an archive, in the place of an older one.
fn unfold(archive: &Archive, arch: Arch, out: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out)?;
    let path = out.join(format!("{}-{arch}", archive.name));
    let temp =
        tempfile::Builder::new().prefix(&format!(".{}.", archive.name)).suffix(".part").tempdir_in(out)?;
    let layout = Layout::open(&archive.path)?;
    for image in layout.images()? {
        layout.export(&image, temp.path())?;
    }
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    if path.join("oci-layout").is_file() {
        fs::remove_dir_all(&path)?;
    }
    fs::rename(temp.path(), &path)?;
    Ok(path)
}

fn pull(context: &Context, reference: &str, arch: Arch, out: &Path) -> Result<()> {
    let ui = &context.ui;
    let reference: Reference = reference.parse().map_err(|e| Failure::new(Kind::Input, format!("{e}")))?;
    let image = oci::pull(&context.store()?, ui, &reference, &reference, arch)?;
    let stem = reference.repository.rsplit('/').next().unwrap_or_default();
    let mut digest = None;
    let path = whole(out, &format!("{stem}-{arch}.tar"), |to| {
        digest = Some(oci::write_archive(&image, to)?);
        Ok(())
    })?;
    let report = Report {
        name: None,
        reference: image.name,
        size: fs::metadata(&path)?.len(),
        path: path.display().to_string(),
        digest: digest.context("an archive that was written has a digest")?,
    };
    if ui.json() {
        return ui.result_json(&report);
    }
    ui.result(&report.path);
    Ok(())
}

fn show(context: &Context, path: &Path) -> Result<()> {
    let ui = &context.ui;
    let read = || -> Result<Vec<Shown>, oci::read::LayoutError> {
        let layout = Layout::open(path)?;
        let images = layout.images()?;
        images.iter().try_for_each(|image| layout.verify(image))?;
        let shown = images.into_iter().map(|image| Shown {
            size: image.size(),
            digest: image.digest(),
            layers: image.manifest.layers.len(),
            name: image.name,
            os: image.config.os,
            architecture: image.config.architecture,
        });
        Ok(shown.collect())
    };
    let images = read().map_err(|error| {
        Failure::new(Kind::Input, format!("{} is no whole OCI layout", path.display()))
            .hint("an archive must not be compressed; `kiln container pull` or `build` write one")
            .because(error)
    })?;
    if ui.json() {
        return ui.result_json(&images);
    }
    for image in images {
        let name = plain(image.name.as_deref().unwrap_or("(no name)"));
        let machine = plain(&format!("{}/{}", image.os, image.architecture));
        let (digest, size) = (image.digest, human_bytes(image.size));
        ui.result(format!("{name}  {machine}  sha256:{digest}  {} layers, {size}", image.layers));
    }
    Ok(())
}
