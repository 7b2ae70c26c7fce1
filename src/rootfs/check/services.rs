//! Checks of the units that a boot starts.

use super::{Found, Look, needs};
use crate::rootfs::step::StepError;
use crate::rootfs::units::{Unit, UnitFile};

/// Kinds of units that generators, the kernel or systemd itself make, so that no file need be there.
const MADE_AT_RUN_TIME: [&str; 5] = ["device", "mount", "swap", "slice", "scope"];
/// Programs that open a port on all addresses without a socket unit saying so.
const DAEMONS: [(&str, &str); 17] = [
    ("sshd", "tcp 22"),
    ("rpcbind", "tcp and udp 111"),
    ("rpc.statd", "random tcp and udp ports"),
    ("rpc.mountd", "tcp and udp 20048"),
    ("rpc.nfsd", "tcp 2049"),
    ("nfsdctl", "tcp 2049"),
    ("avahi-daemon", "udp 5353"),
    ("ntpd", "udp 123"),
    ("exim4", "tcp 25"),
    ("master", "tcp 25"),
    ("cupsd", "tcp 631"),
    ("dnsmasq", "tcp and udp 53"),
    ("named", "tcp and udp 53"),
    ("snmpd", "udp 161"),
    ("apache2", "tcp 80"),
    ("nginx", "tcp 80"),
    ("k3s", "tcp 6443 and 10250"),
];

/// The units that a boot starts, with the names they are started by.
fn started<'a>(look: &'a Look<'_>) -> impl Iterator<Item = (&'a str, &'a Unit)> {
    let found = look.started.iter().filter_map(|name| Some((name.as_str(), look.units.get(name)?.1)));
    found.filter(|(_, unit)| !unit.masked)
}

fn exists(look: &Look<'_>, name: &str) -> bool {
    let kind = name.rsplit('.').next().unwrap_or_default();
    MADE_AT_RUN_TIME.contains(&kind)
        || name.contains('%')
        || look.units.get(name).is_some()
        || look.allow.units.iter().any(|u| u == name)
}

pub(super) fn references(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut found = Vec::new();
    for link in look.units.links.values().flatten() {
        if !exists(look, &link.unit) && look.tree.follow(&link.path).is_none() {
            let text = format!("it enables {}, which is not there", link.unit);
            found.push(Found::new(
                &link.path,
                text,
                "add the package of the unit, or disable it in the profile",
            ));
        }
    }
    for (_, unit) in started(look) {
        for directive in ["Requires", "BindsTo", "Requisite", "Wants"] {
            for name in unit.file.words("Unit", directive).filter(|n| !exists(look, n)) {
                let text = format!("{directive}= names {name}, which is not there");
                let remedy = "add the package of the unit, or name it in `allow.units`";
                found.push(Found::new(&unit.path, text, remedy).note_if(directive == "Wants"));
            }
        }
    }
    Ok(found)
}

/// The commands of a service: program, and whether systemd ignores its failure.
fn commands(file: &UnitFile) -> impl Iterator<Item = (&str, bool)> {
    let keys = ["ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost"];
    let lines = keys.into_iter().flat_map(|key| file.values("Service", key));
    lines.filter_map(|line| {
        let command = line.trim_start_matches(['-', '@', ':', '+', '!', '|']);
        let marks = &line[..line.len() - command.len()];
        let word = command.split_whitespace().next()?.trim_matches('"');
        Some((word, marks.contains('-')))
    })
}

pub(super) fn programs(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut found = Vec::new();
    for (_, unit) in started(look) {
        for (program, optional) in commands(&unit.file) {
            // Specifiers and variables are known only at run time.
            if program.contains(['%', '$']) || needs::runs(look, program) || guarded(&unit.file, program) {
                continue;
            }
            let text = format!("it starts {program}, which is missing");
            let remedy = "add the package of the program, or disable the unit in the profile";
            found.push(Found::new(&unit.path, text, remedy).note_if(optional));
        }
    }
    Ok(found)
}

/// Whether a condition of the unit asks for the program itself, so that the unit is skipped without it.
fn guarded(file: &UnitFile, program: &str) -> bool {
    ["ConditionPathExists", "ConditionFileIsExecutable", "ConditionFileNotEmpty"]
        .into_iter()
        .flat_map(|key| file.values("Unit", key))
        .any(|value| value == program)
}

pub(super) fn listeners(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut found = Vec::new();
    let remedy = |name: &str| format!("disable `{name}`, or name it in `allow.listeners`");
    for (name, unit) in started(look) {
        if look.allow.listeners.iter().any(|l| l == name) {
            continue;
        }
        for key in ["ListenStream", "ListenDatagram", "ListenSequentialPacket"] {
            for address in unit.file.values("Socket", key).filter(|a| is_open(a)) {
                let text = format!("{name} listens on {address} ({key})");
                found.push(Found::new(&unit.path, text, remedy(name)));
            }
        }
        for (program, _) in commands(&unit.file) {
            let program = program.rsplit('/').next().unwrap_or(program);
            if let Some((_, ports)) = DAEMONS.iter().find(|(daemon, _)| *daemon == program) {
                let text = format!("{name} starts {program}, which listens on {ports}");
                found.push(Found::new(&unit.path, text, remedy(name)));
            }
        }
    }
    Ok(found)
}

/// Whether an address of a socket unit can be reached from another machine.
fn is_open(address: &str) -> bool {
    let local = ["/", "@", "%", "vsock:", "127.", "localhost:", "[::1]:"];
    !local.iter().any(|l| address.starts_with(l))
}
