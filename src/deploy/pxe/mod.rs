//! `kiln pxe`: serves the right image to the right machine over the network.
//!
//! ```text
//! firmware ── DHCP ──> [dhcp]   which iPXE           BIOS and UEFI; HTTP Boot gets a URL
//!          ── TFTP ──> [tftp]   iPXE
//! iPXE     ── DHCP ──> [dhcp]   the URL of its script
//!          ── HTTP ──> [http]   script, UKI
//! initrd   ── HTTP ──> [http]   plan, image, credentials; what happened
//! ```
//!
//! [`mod@site`] is all that does not change while it runs, [`board`] all that does. Each protocol is a thread or two over both; what a packet is
//! answered is decided by functions without a socket ([`dhcp::answer`], [`http::route::answer`]). All ports are opened first, then root is
//! given up ([`run`]).
//!
//! What goes over the wire is not secret, but for credentials: those go once to each card, while a person has opened a window, and in clear.
//! That suits a network on which no stranger listens, as PXE itself does. The root file system needs no trust: its hash is in the UKI. The
//! UKI and iPXE are as trustworthy as the network, unless the firmware checks signatures.

pub mod board;
pub mod content;
pub mod control;
pub mod dhcp;
pub mod http;
pub mod image;
pub mod net;
pub mod site;
pub mod table;
pub mod tftp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fs_err as fs;

use self::board::Board;
use self::content::Content;
use self::image::Image;
use self::net::{Place, Sockets, Wanted};
use self::site::{Mode, Node, PROGRAMS, Site};
use self::table::Table;
use crate::arch::Arch;
use crate::cluster::secret::{Keeper, Value};
use crate::cluster::{credentials, seal};
use crate::deploy::flash::{claim, proof};
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::spec::cluster::{Cluster, DisklessState, Seal};
use crate::sys;
use crate::tools;
use crate::ui::{Ui, human_bytes};

/// Threads that serve HTTP: one is enough for a network of 10 Gbit/s, the second goes on while a disk lets the first wait.
const HTTP_THREADS: usize = 2;
/// `nobody`, on every Linux (Linux Standard Base, 23.2).
const NOBODY: u32 = 65_534;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The images.
    pub out: PathBuf,
    /// Where what is known of nodes is kept.
    pub state: PathBuf,
    /// Our address, if it is not to be found out.
    pub address: Option<Ipv4Addr>,
    /// Addresses to give away.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Ports.
    pub ports: Wanted,
    /// For every node that is not named below.
    pub mode: Option<Mode>,
    /// Nodes and what they are to do.
    pub modes: BTreeMap<String, Mode>,
    /// Nodes that are new whatever is known of them.
    pub reinstall: Vec<String>,
    /// Folder with the reports of `kiln test`.
    pub reports: PathBuf,
    /// Why images are installed that no run proved.
    pub unproven: Option<String>,
    /// What of disks may be lost.
    pub overwrite: Vec<String>,
    /// How long credentials are released from the start.
    pub window: Option<Duration>,
}

/// Serves until Ctrl-C.
///
/// # Errors
/// [`Kind::Input`]: something that is asked for cannot be served; it is said before anything is. Later, only a state that cannot be written
/// any more ends the server.
pub fn run(work: &Work<'_>, cluster: &Cluster, options: &Options) -> Result<()> {
    let ui = work.ui;
    let place = Place::find(options.address, cluster)?;
    check(cluster, options, &place)?;
    net::raise_open_files();
    let sockets = Sockets::open(&place, options.ports)?;
    let root = rustix::process::geteuid().is_root();
    if !root {
        // The ports are open, and nothing else needs what the file's capabilities gave.
        sys::drop_capabilities().context("giving up capabilities")?;
    }
    let user = root.then(unprivileged);
    state_folder(&options.state, user)?;
    let mut board = Board::open(&options.state)?;
    let site = site(work, cluster, options, &place)?;
    let control = control::listen(&options.state, user)?;
    if let Some((user, group)) = user {
        board.enter()?;
        sys::become_user(user, group).context("giving up root")?;
    }
    begin(ui, &site, &board, options)?;
    board.save()?;
    let done = serve(ui, &site, &board, &sockets, &control, options.ports);
    // Where root was given up the folder is the current one, and the ways to it may be closed.
    let socket = if root { PathBuf::from(control::SOCKET) } else { options.state.join(control::SOCKET) };
    fs::remove_file(socket).ok();
    board.save()?;
    done?;
    if !ui.json() {
        ui.status("Stopped", format!("what is known of the nodes is in {}", options.state.display()));
    }
    Ok(())
}

/// Refuses what cannot be meant, before anything is opened.
fn check(cluster: &Cluster, options: &Options, place: &Place) -> Result<()> {
    claim::check_words(&options.overwrite)?;
    for name in options.modes.keys().chain(&options.reinstall) {
        let node = cluster.node(name)?;
        if node.mac.is_none() {
            let text = format!(
                "the node `{name}` has no `mac` in {}, and cannot be known on the network",
                cluster.file
            );
            return Err(Failure::new(Kind::Input, text)
                .hint("write the hardware address of its card")
                .into());
        }
    }
    if options.mode.is_none() && options.modes.is_empty() {
        return Err(Failure::new(Kind::Input, "nothing says what the nodes are to do")
            .hint("--mode install writes each node's image to its disk, --mode diskless runs it from memory")
            .hint("for single nodes: --install agent-1, --diskless agent-2; the others boot from their disks then")
            .into());
    }
    if let Some((first, last)) = options.range {
        let inside = place.subnet.contains(&first) && place.subnet.contains(&last);
        if first > last || !inside {
            let text = format!(
                "the range {first}-{last} is none in {}, the network of {}",
                place.subnet, place.address
            );
            return Err(Failure::new(Kind::Input, text)
                .hint("write two addresses of that network, the lower one first")
                .into());
        }
    }
    Ok(())
}

/// Whom root becomes: the person who called sudo, else `nobody`.
fn unprivileged() -> (u32, u32) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok().filter(|id| *id != 0);
    match (number("SUDO_UID"), number("SUDO_GID")) {
        (Some(user), Some(group)) => (user, group),
        _ => (NOBODY, NOBODY),
    }
}

/// Makes the folder with all that is in it writable for `user`, and closed to everybody else.
fn state_folder(folder: &Path, user: Option<(u32, u32)>) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    let Some((user, group)) = user else { return Ok(()) };
    let give = |path: &Path| {
        // Not what a link leads to.
        std::os::unix::fs::lchown(path, Some(user), Some(group))
            .with_context(|| format!("giving {} to user {user}", path.display()))
    };
    give(folder)?;
    let state = folder.join("state.json");
    if state.exists() {
        give(&state)?;
    }
    let receipts = folder.join("receipts");
    if receipts.exists() {
        give(&receipts)?;
    }
    Ok(())
}

fn site(work: &Work<'_>, cluster: &Cluster, options: &Options, place: &Place) -> Result<Site> {
    let mut keeper = Keeper::new(cluster);
    let mut nodes = BTreeMap::new();
    for node in cluster.nodes.values() {
        let Some(mac) = node.mac else {
            work.ui.warn(format!("{} has no `mac` in {}: it is not served", node.name, cluster.file));
            continue;
        };
        let mode = options.modes.get(node.name.as_str()).copied().or(options.mode).unwrap_or(Mode::Local);
        if mode == Mode::Diskless && node.seal != Seal::Null {
            let text =
                format!("{} runs from memory: its secrets lie on no disk, so nothing is sealed", node.name);
            work.ui.notice("Note", text);
        }
        // Secrets are asked for while this process is still the user who may read them, and only if somebody will want them.
        let credentials = match mode {
            Mode::Local => Value::new(Vec::new()),
            _ => archive(&credentials(cluster, node, &mut keeper)?)?,
        };
        let served = Node {
            name: node.name.to_string(),
            role: node.role,
            profile: node.profile.clone(),
            network: cluster.network_of(node).cloned(),
            address: node.address(),
            contract: serde_json::to_value(&node.disk)?,
            mode,
            state: node.diskless_state,
            proof: None,
            overwrite: options.overwrite.clone(),
            credentials,
            sent: AtomicU64::new(0),
        };
        nodes.insert(mac, served);
    }
    let wanted: BTreeSet<&str> =
        nodes.values().filter(|node| node.mode != Mode::Local).map(|node| node.profile.as_str()).collect();
    let mut images = BTreeMap::new();
    for name in wanted {
        let profile = work.project.profile(name)?;
        for arch in Arch::ALL {
            let spinner = work.ui.spinner("Looking at", format!("the image of {name} ({arch})"));
            let image = Image::open(profile, arch, &options.out, &options.state)?;
            drop(spinner);
            images.extend(image.map(|image| ((name.to_owned(), arch), image)));
        }
        if !images.keys().any(|(profile, _)| profile == name) {
            let text = format!("no image of {name} has been built in {}", options.out.display());
            return Err(Failure::new(Kind::Input, text)
                .hint(format!("run `kiln build --profile {name}` first"))
                .into());
        }
    }
    for node in nodes.values_mut().filter(|node| node.mode == Mode::Install) {
        // Images boot by UEFI, of either architecture: a node's own is only known when it asks, and all of its profile are proven by then.
        for ((profile, _), image) in &images {
            if *profile == node.profile {
                let (digest, why) = (image.raw.digest, options.unproven.as_deref());
                seal::check(cluster.node(&node.name)?, &image.units)?;
                node.proof = Some(proof::find(&options.reports, digest, profile, why)?);
            }
        }
    }
    let folder = tools::folder(work, "pxe")?;
    let mut programs = BTreeMap::new();
    for (name, path) in PROGRAMS {
        programs.insert(name, Content::open(&folder.join(path))?);
    }
    let kiln = match Arch::host() {
        Some(arch) => Some((arch, Content::open(Path::new("/proc/self/exe"))?)),
        None => None,
    };
    let network = cluster.networks.values().find(|network| network.subnet.contains(&place.address)).cloned();
    let subnet = network.as_ref().map_or(place.subnet, |network| network.subnet);
    let mut reserved = vec![place.address, subnet.network(), subnet.broadcast()];
    reserved.extend(cluster.nodes.values().filter_map(|node| node.address()));
    for network in cluster.networks.values() {
        reserved.extend(network.gateway);
        reserved.extend(network.dns_v4());
        reserved.extend(network.ntp_v4());
    }
    reserved.extend(cluster.nfs.as_ref().and_then(|nfs| nfs.server.v4()));
    reserved.extend(cluster.bgp.as_ref().map(|bgp| bgp.peer));
    if let (Some((first, last)), Some(pool)) = (options.range, cluster.lb_pool)
        && first <= pool.broadcast()
        && pool.network() <= last
    {
        let text = format!("the range {first}-{last} and the pool {pool} of {} overlap", cluster.file);
        return Err(Failure::new(Kind::Input, text)
            .hint("services have those addresses: choose another range")
            .into());
    }
    Ok(Site {
        cluster: cluster.name.to_string(),
        address: place.address,
        subnet,
        http_port: options.ports.http,
        range: options.range,
        reserved,
        network,
        nodes,
        images,
        programs,
        kiln,
    })
}

/// A tar archive (POSIX ustar) of credentials: files of mode 0600 by their names.
fn archive(credentials: &[crate::cluster::Credential]) -> Result<Value> {
    let mut builder = tar::Builder::new(Vec::new());
    for credential in credentials {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o600);
        header.set_size(credential.value.expose().len() as u64);
        builder.append_data(&mut header, &credential.name, credential.value.expose())?;
    }
    Ok(Value::new(builder.into_inner()?))
}

/// Says what is served.
fn begin(ui: &Ui, site: &Site, board: &Board, options: &Options) -> Result<()> {
    {
        let mut inner = board.lock();
        for name in &options.reinstall {
            let mac = site.nodes.iter().find(|(_, node)| node.name == *name).map(|(mac, _)| *mac);
            mac.into_iter().for_each(|mac| inner.forget(mac));
        }
        inner.open_window(options.window);
    }
    if ui.json() {
        return Ok(());
    }
    for image in site.images.values() {
        ui.status(
            "Serving",
            format!(
                "{} ({}) {}: UKI {}…, {}, needs {} of memory",
                image.profile,
                image.arch,
                image.version,
                image.uki.digest.short(),
                human_bytes(image.raw.len),
                human_bytes(image.memory(DisklessState::Memory))
            ),
        );
    }
    for (mac, node) in &site.nodes {
        let seen = board.seen(*mac);
        let mode = site.mode(node, &seen);
        let installed =
            if node.mode == Mode::Install && mode == Mode::Local { " (installed already)" } else { "" };
        let image = site.image(node, &seen).filter(|_| site.state(node, mode) == DisklessState::Disk);
        let memory = image.map_or(String::new(), |image| {
            let bytes = human_bytes(image.memory(DisklessState::Disk));
            format!(", /var on its disk, needs {bytes} of memory")
        });
        ui.status("Node", format!("{} {mac}: {}{installed}{memory}", node.name, mode.word()));
    }
    let way = match site.range {
        Some((first, last)) => format!("DHCP server, {first}-{last}"),
        None => "beside the DHCP server of the network".to_owned(),
    };
    ui.status("Listening", format!("{} ({way})", site.base()));
    if options.window.is_none() {
        ui.status("Closed", "credentials are released by `kiln pxe open`, or `kiln pxe release NODE`");
    }
    Ok(())
}

fn serve(
    ui: &Ui,
    site: &Site,
    board: &Board,
    sockets: &Sockets,
    control: &std::os::unix::net::UnixListener,
    ports: Wanted,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let clients = http::serve::Clients::default();
    std::thread::scope(|scope| {
        let stop = &stop;
        let mut workers = Vec::new();
        workers.push(scope.spawn(move || {
            dhcp::serve::serve(site, board, &sockets.dhcp, &sockets.boot, ports.dhcp, stop);
            Ok(())
        }));
        workers.push(scope.spawn(move || tftp::serve::serve(site, board, &sockets.tftp, stop)));
        for _ in 0..HTTP_THREADS {
            let clients = &clients;
            workers.push(scope.spawn(move || http::serve::serve(site, board, clients, &sockets.http, stop)));
        }
        workers.push(scope.spawn(move || {
            control::serve(site, board, control, stop);
            Ok(())
        }));
        let mut table = Table::new(ui, site);
        let mut saved = std::time::Instant::now();
        let mut result = Ok(());
        // A worker that ended, by an error or a panic, ends the server: half a server is harder to understand than none.
        while !sys::interrupted() && !workers.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            table.refresh(board);
            if saved.elapsed() >= Duration::from_secs(1) {
                saved = std::time::Instant::now();
                if let Err(error) = board.save() {
                    result = Err(error.context("what is known of the nodes cannot be kept any more"));
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            let ended = worker.join().unwrap_or_else(|_| {
                Err(Failure::new(Kind::Internal, "a thread of the server ended by a mistake in kiln").into())
            });
            result = result.and(ended);
        }
        table.refresh(board);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Credential;
    use std::io::Read as _;

    #[test]
    fn credentials_are_files_of_their_owner_in_a_tar_archive() {
        let credential = |name: &str, value: &str| Credential {
            name: name.to_owned(),
            value: Value::new(value),
            secret: true,
        };
        let list = [credential("k3s.token", "sesame"), credential("network.network.50-nic0", "[Match]\n")];
        let archive = archive(&list).unwrap();
        assert_eq!(&archive.expose()[257..263], b"ustar\0");
        let mut reader = tar::Archive::new(archive.expose());
        let files: Vec<(String, u32, String)> = reader
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap(), text)
            })
            .collect();
        assert_eq!(files[0], ("k3s.token".to_owned(), 0o600, "sesame".to_owned()));
        assert_eq!(files[1].0, "network.network.50-nic0");
    }
}
