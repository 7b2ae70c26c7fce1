//! The checks that are built into kiln: what is asked of each node, and what follows from all their answers.
//!
//! A check is a script for each node, which prints facts, one a line (a word, then the rest), and a judgement over all nodes' facts
//! and what is known of the images. The script may fail to find a fact, but its exit code is 0; so that a fact that is missing is
//! judged like a wrong one. What the checks mean is said at [`Check`].

mod contract;
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use crate::manifest::Manifest;
use crate::qemu::ready::{RESTARTING, unsettled};
use crate::scenario::spec::model::DOMAIN;
use crate::scenario::spec::{Address, Check, Name, Node, Scenario};
use crate::spec::Profile;

/// What is known without asking.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The nodes that are up.
    pub up: &'a BTreeSet<Name>,
    /// What each node boots.
    pub profiles: &'a BTreeMap<Name, &'a Profile>,
    /// The manifest of each node's image.
    pub manifests: &'a BTreeMap<Name, &'a Manifest>,
    /// The script that confirms the kernel contract of each node.
    pub probes: &'a BTreeMap<Name, &'a str>,
}

/// What a node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the script printed.
    pub text: String,
    /// When it was begun, seconds since 1970 by this machine's clock.
    pub asked: i64,
    /// When its answer was there.
    pub answered: i64,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The node that says so.
    pub node: Name,
    /// What would have been right.
    pub expected: String,
    /// What is.
    pub found: String,
}

/// What the answers of all nodes are gathered in while they are judged.
#[derive(Debug, Default)]
struct Verdict(Vec<Wrong>);

impl Verdict {
    fn wrong(&mut self, node: &Name, expected: impl Into<String>, found: impl Into<String>) {
        let (expected, mut found) = (expected.into(), found.into());
        if found.is_empty() {
            "nothing".clone_into(&mut found);
        }
        self.0.push(Wrong { node: node.clone(), expected, found });
    }

    fn equal(&mut self, node: &Name, what: &str, expected: &str, found: &str) {
        if expected != found {
            self.wrong(node, format!("{what} {expected}"), found);
        }
    }
}

/// The facts of an answer.
struct Facts<'a>(&'a str);

impl<'a> Facts<'a> {
    /// What stands behind `word` in each line that begins with it.
    fn all(&self, word: &'a str) -> impl Iterator<Item = &'a str> {
        let text = self.0;
        text.lines().filter_map(move |line| {
            let (first, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
            (first == word).then_some(rest.trim())
        })
    }

    /// The first of them, or nothing.
    fn one(&self, word: &'a str) -> &'a str {
        self.all(word).next().unwrap_or("")
    }
}

const IDENTITY: &str = r#"
echo "hostname $(cat /proc/sys/kernel/hostname)"
echo "machine-id $(cat /etc/machine-id)"
echo "boot-id $(cat /proc/sys/kernel/random/boot_id)"
for card in /sys/class/net/*; do
  [ -e "$card/device" ] && echo "card ${card##*/} $(cat "$card/address")"
done
ip -o address show scope global | while read -r number name family address rest; do echo "address $name ${address%/*}"; done
"#;

const SAME_IMAGE: &str = r#"
echo "kernel $(uname -r)"
echo "version $(sed -n 's/^IMAGE_VERSION=//p' /etc/os-release)"
dmsetup table root | while read -r start length kind version data hash size1 size2 blocks first algorithm root rest; do
  echo "root $kind $root"
done
"#;

const UNITS: &str = r#"
echo "state $(systemctl is-system-running)"
restarting
systemctl list-units --state=failed --no-legend --plain | while read -r unit rest; do
  echo "failed $unit"
  systemctl status --no-pager --full --lines=20 "$unit" | while IFS= read -r line; do echo "log $line"; done
done
"#;

const CLOCK: &str = r#"
echo "synchronised $(timedatectl show -p NTPSynchronized --value)"
echo "server $(timedatectl show-timesync -p ServerAddress --value 2>/dev/null)"
echo "now $(date +%s)"
"#;

const READONLY_ROOT: &str = r#"
echo "root $(findmnt -no FSTYPE,OPTIONS /)"
echo "verity $(dmsetup status root)"
try() { if (eval "$2") >/dev/null 2>&1; then echo "written $1"; fi; }
try / 'echo x >/kiln-test'
try /etc 'echo x >/etc/kiln-test'
try /usr 'echo x >/usr/kiln-test'
try 'the root after a remount' 'mount -o remount,rw / && echo x >/kiln-test'
try 'the device of the root' 'dd if=/dev/zero of=/dev/dm-0 bs=4096 count=1 conv=fsync,notrunc'
echo x >/var/kiln-test && rm /var/kiln-test && echo "var writable"
"#;

impl Check {
    /// What `node` is asked.
    pub fn script(self, known: &Known<'_>, node: &Node) -> String {
        match self {
            Check::Identity => IDENTITY.to_owned(),
            Check::SameImage => SAME_IMAGE.to_owned(),
            Check::Units => format!("{RESTARTING}{UNITS}"),
            Check::Clock => CLOCK.to_owned(),
            Check::ReadonlyRoot => READONLY_ROOT.to_owned(),
            Check::Disk => disk::SCRIPT.to_owned(),
            Check::Contract => contract::script(known, node),
            Check::Reach => reach_script(known, node),
            Check::Sysctls => {
                let keys = known.profiles.get(&node.name).into_iter().flat_map(|p| p.layer.sysctl.keys());
                keys.map(|key| format!("echo \"{key} $(sysctl -n {key})\"\n")).collect()
            }
        }
    }

    /// What is wrong by the answers of all nodes that were asked.
    pub fn judge(self, known: &Known<'_>, answers: &BTreeMap<Name, Answer>) -> Vec<Wrong> {
        let mut verdict = Verdict::default();
        for (name, answer) in answers {
            let Some(node) = known.scenario.nodes.get(name) else { continue };
            let facts = Facts(&answer.text);
            match self {
                Check::Identity => identity(node, &facts, &mut verdict),
                Check::SameImage => same_image(known, node, &facts, &mut verdict),
                Check::Units => units(node, &facts, &mut verdict),
                Check::Clock => clock(known, node, answer, &facts, &mut verdict),
                Check::Reach => reach(known, node, &facts, &mut verdict),
                Check::ReadonlyRoot => readonly_root(node, &facts, &mut verdict),
                Check::Disk => disk::judge(known, node, &facts, &mut verdict),
                Check::Contract => contract::judge(known, node, &facts, &mut verdict),
                Check::Sysctls => sysctls(known, node, &facts, &mut verdict),
            }
        }
        if self == Check::Identity {
            distinct(answers, &mut verdict);
        }
        verdict.0
    }
}

fn identity(node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    let name = &node.name;
    verdict.equal(name, "the host name", name, facts.one("hostname"));
    verdict.equal(name, "the machine id", &node.uuid.simple().to_string(), facts.one("machine-id"));
    let cards: BTreeMap<&str, &str> =
        facts.all("card").filter_map(|c| c.split_once(' ')).map(|(card, mac)| (mac, card)).collect();
    let addresses: Vec<&str> = facts.all("address").collect();
    for nic in &node.nics {
        let Some(card) = cards.get(nic.mac.to_string().as_str()) else {
            verdict.wrong(
                name,
                format!("a card with the address {}", nic.mac),
                facts.all("card").collect::<Vec<_>>().join(", "),
            );
            continue;
        };
        if let Some(ip) = nic.address.fixed() {
            let wanted = format!("{card} {ip}");
            if !addresses.contains(&wanted.as_str()) {
                verdict.wrong(name, format!("{ip} on {card}"), addresses.join(", "));
            }
        }
    }
}

/// No two nodes have the same host name, machine id or boot id.
fn distinct(answers: &BTreeMap<Name, Answer>, verdict: &mut Verdict) {
    for word in ["hostname", "machine-id", "boot-id"] {
        let mut seen: BTreeMap<&str, &Name> = BTreeMap::new();
        for (name, answer) in answers {
            let value = Facts(&answer.text).one(word);
            if let Some(other) = seen.insert(value, name) {
                verdict.wrong(name, format!("another {word} than {other}"), value);
            }
        }
    }
}

fn same_image(known: &Known<'_>, node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    let Some(manifest) = known.manifests.get(&node.name) else {
        return verdict.wrong(&node.name, "an image with a manifest", "none");
    };
    verdict.equal(&node.name, "the root", &format!("verity {}", manifest.root_hash), facts.one("root"));
    verdict.equal(&node.name, "the kernel", &manifest.kernel, facts.one("kernel"));
    verdict.equal(&node.name, "the version", &manifest.version, facts.one("version").trim_matches('"'));
}

fn units(node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    let failed: Vec<&str> = facts.all("failed").collect();
    let again: Vec<&str> = facts.all("restart").collect();
    if facts.one("state") != "running" || !failed.is_empty() || !again.is_empty() {
        let mut found = format!("{}, failed units: {}", facts.one("state"), failed.join(", "));
        for unit in again {
            let _ = write!(found, "\n{}", unsettled(unit));
        }
        for line in facts.all("log") {
            let _ = write!(found, "\n{line}");
        }
        verdict.wrong(&node.name, "running, no unit failed or started again and again", found);
    }
}

/// How far the clock of a node may be from this machine's, in seconds: both are cut to whole ones.
const SKEW: i64 = 2;

fn clock(known: &Known<'_>, node: &Node, answer: &Answer, facts: &Facts<'_>, verdict: &mut Verdict) {
    let name = &node.name;
    verdict.equal(name, "a synchronised clock:", "yes", facts.one("synchronised"));
    let servers: Vec<String> = known.scenario.servers_of(node, |s| s.ntp).map(|ip| ip.to_string()).collect();
    if !servers.is_empty() && !servers.iter().any(|ip| ip == facts.one("server")) {
        verdict.wrong(name, format!("time from {}", servers.join(" or ")), facts.one("server"));
    }
    let range = answer.asked - SKEW..=answer.answered + SKEW;
    if !facts.one("now").parse::<i64>().is_ok_and(|now| range.contains(&now)) {
        verdict.wrong(name, format!("a time from {} to {}", range.start(), range.end()), facts.one("now"));
    }
}

/// Whom `node` must reach: name and address of each card on a network that both are on, or that a router leads to.
fn peers<'a>(known: &Known<'a>, node: &'a Node) -> impl Iterator<Item = (&'a Name, IpAddr)> {
    let (scenario, up) = (known.scenario, known.up);
    let others = scenario.nodes().filter(move |other| other.name != node.name && up.contains(&other.name));
    others.flat_map(move |other| {
        let reached = other.nics.iter().filter(|nic| {
            let network = &nic.network;
            node.nics.iter().any(|own| own.network == *network)
                || (is_routed(scenario, up, node, network) && !is_router(other))
        });
        reached.filter_map(|nic| Some((&other.name, nic.address.fixed()?)))
    })
}

fn is_router(node: &Node) -> bool {
    node.serves.as_ref().is_some_and(|serves| serves.router)
}

/// Whether a router that is up stands between a network of `node` and `network`.
fn is_routed(scenario: &Scenario, up: &BTreeSet<Name>, node: &Node, network: &str) -> bool {
    !is_router(node)
        && scenario.nodes().filter(|router| is_router(router) && up.contains(&router.name)).any(|router| {
            let near = node.nics.iter().filter(|nic| nic.address != Address::None);
            router.address_on(network).is_some()
                && near.into_iter().any(|nic| router.address_on(&nic.network).is_some())
        })
}

/// Whether `node` can ask for names.
fn has_dns(known: &Known<'_>, node: &Node) -> bool {
    known.scenario.servers_of(node, |s| s.dns).next().is_some()
}

/// One echo is enough; a lost one is asked again. All at once, since each answer takes its time.
fn reach_script(known: &Known<'_>, node: &Node) -> String {
    let mut script = String::from(
        "reach() { if ping -n -c 1 -W 3 \"$2\" >/dev/null 2>&1 || ping -n -c 3 -W 5 \"$2\" >/dev/null 2>&1; then echo \"reached $1 $2\"; fi; }\n\
         look() { getent ahostsv4 \"$1\" | while read -r address kind rest; do [ \"$kind\" = STREAM ] && echo \"name $1 $address\"; done; }\n",
    );
    for (peer, ip) in peers(known, node) {
        let _ = writeln!(script, "reach {peer} {ip} &");
    }
    if has_dns(known, node) {
        for peer in peers(known, node).map(|(peer, _)| peer).collect::<BTreeSet<_>>() {
            let _ = writeln!(script, "look {peer}.{DOMAIN} &");
        }
    }
    script.push_str("wait\n");
    script
}

fn reach(known: &Known<'_>, node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    let reached: BTreeSet<&str> = facts.all("reached").collect();
    let names: BTreeSet<&str> = facts.all("name").collect();
    for (peer, ip) in peers(known, node) {
        if !reached.contains(format!("{peer} {ip}").as_str()) {
            verdict.wrong(&node.name, format!("an echo from {peer} at {ip}"), "");
        }
        if has_dns(known, node) && !names.contains(format!("{peer}.{DOMAIN} {ip}").as_str()) {
            let seen = names.iter().copied().filter(|n| n.starts_with(&format!("{peer}.{DOMAIN} ")));
            verdict.wrong(
                &node.name,
                format!("{peer}.{DOMAIN} at {ip}"),
                seen.collect::<Vec<_>>().join(", "),
            );
        }
    }
}

fn readonly_root(node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    let name = &node.name;
    let root = facts.one("root");
    let options = root.split_once(' ').map_or("", |(_, options)| options.trim());
    if !root.starts_with("erofs ") || !options.split(',').any(|option| option == "ro") {
        verdict.wrong(name, "a root of erofs, read-only", root);
    }
    // `start length verity V`: V is verified so far, C is corruption (verity.rst of the kernel).
    if !facts.one("verity").ends_with(" verity V") {
        verdict.wrong(name, "a root that dm-verity vouches for", facts.one("verity"));
    }
    for place in facts.all("written") {
        verdict.wrong(name, format!("{place} cannot be written"), "it was written");
    }
    verdict.equal(name, "/var is", "writable", facts.one("var"));
}

fn sysctls(known: &Known<'_>, node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    for (key, value) in known.profiles.get(&node.name).into_iter().flat_map(|p| &p.layer.sysctl) {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = Facts(facts.0).all(key).next().unwrap_or("").to_owned();
        verdict.equal(&node.name, &format!("{key} ="), &words(&value.to_string()), &words(&found));
    }
}

#[cfg(test)]
mod tests;
