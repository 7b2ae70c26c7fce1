//! The kernel contract on a running node.

use kiln::arch::Arch;
use kiln::contract::{Finding, Offer, check, probe_script, stage};
use kiln::kernel;
use kiln::lock::{Lock, SetKind};
use kiln::packages::Work;
use kiln::qemu::ready;
use kiln::spec::Project;
use kiln::store::Store;
use kiln::ui::{Ui, Verbosity};

use super::common::images;
use super::node::Setup;

const UNIT: &str = "[Unit]
Description=Confirm the kernel contract
[Service]
Type=exec
ExecStart=/bin/sh -c 'until [ -c /dev/virtio-ports/kiln.check ]; do sleep 0.1; done; exec >/dev/virtio-ports/kiln.check; \
  sh /run/credentials/@system/kiln.contract; echo end $?'
";

/// Comes with the unit that reports readiness, which comes with multi-user.target.
const DROPIN: &str = "[Unit]
Wants=kiln-contract.service
";

/// Every feature that the server's kernel has, whether the profile asks for it or not.
fn features(project: &Project, arch: Arch) -> Vec<String> {
    let locked = Lock::load(&project.dir).unwrap().check(project).unwrap();
    let (store, ui) = (Store::open(&images::store()).unwrap(), Ui::new(Verbosity::Quiet, false));
    let work = Work { project, locked: &locked, store: &store, ui: &ui, threads: 2 };
    let packages = work.set(SetKind::Profile, "bare", arch).unwrap();
    let (package, release) = kernel::find(&packages).unwrap();
    let bytes =
        package.tree.get(&format!("boot/config-{release}")).unwrap().content().unwrap().read().unwrap();
    let (config, version) = stage::config("the server's", &bytes, Some(&release)).unwrap();
    let offer = Offer { config: &config, version, arch, modules: None };
    let has = |name: &String| check(&project.contracts, std::slice::from_ref(name), offer).unwrap().met;
    project.contracts.names().into_iter().filter(has).collect()
}

#[test]
fn a_server_has_on_the_running_kernel_what_the_features_need() {
    let image = images::image("bare", "amd64");
    let project = Project::load(images::project()).unwrap();
    let setup = Setup::of(&image);
    let features = features(&project, setup.arch);
    let script = probe_script(&project.contracts, &features, setup.arch).unwrap();
    let mut credentials = ready::credentials();
    for (name, text) in [
        ("systemd.extra-unit.kiln-contract.service", UNIT),
        ("systemd.unit-dropin.kiln-ready.service", DROPIN),
        ("kiln.contract", script.as_str()),
    ] {
        credentials.push((name.to_owned(), text.as_bytes().to_vec()));
    }
    let mut node = Setup { credentials, report: false, ..setup }.boot();
    let ready = node.ready();
    assert!(ready.is_good(), "{ready:?}");
    let mut findings = Vec::new();
    let end = std::time::Instant::now() + node.limit();
    let code = loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let Some(line) = node.machine.ports[1].next_line(left) else {
            panic!("no end of the script: {findings:#?}\n{}", node.machine.console.last_lines(20))
        };
        if let Some(code) = line.strip_prefix("end ") {
            break code.to_owned();
        }
        findings.push(Finding::parse(&line).unwrap_or_else(|| panic!("no finding: {line}")));
    };
    let wrong: Vec<&Finding> = findings.iter().filter(|finding| !finding.ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(code, "0");
    // Every demand of the manifest was looked at, but those that this Linux does not know any more, and devices were made.
    let manifest = images::manifest("bare", "amd64");
    for (feature, demands) in &manifest.features {
        let seen = findings.iter().filter(|finding| finding.feature == *feature).count();
        assert!(seen + 1 >= *demands, "{feature}: {seen} of {demands}");
    }
    for what in
        ["a VXLAN device", "a WireGuard device", "an overlay that is written to", "a BPF program on a device"]
    {
        assert!(findings.iter().any(|finding| finding.text == what), "{what}: {findings:#?}");
    }
}
