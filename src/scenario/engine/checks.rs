//! The checks that are built into kiln: one script per node, one judgement over all answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::cluster::Cluster;
use super::context::{Context, Trouble};
use super::node::Node;
use crate::scenario::result::{Evidence, text};
use crate::scenario::spec::{self, Check};

/// How far a node's clock may be from this machine's: a question and its answer take some of it under TCG.
const SKEW: Duration = Duration::from_secs(2);

const IDENTITY: &str = r#"
echo "hostname $(cat /proc/sys/kernel/hostname)"
echo "machine-id $(cat /etc/machine-id)"
echo "boot-id $(cat /proc/sys/kernel/random/boot_id)"
for card in /sys/class/net/*; do
  [ -e "$card/device" ] || continue
  mac=$(cat "$card/address")
  ip -o addr show dev "${card##*/}" scope global | while read -r number name family address rest; do
    echo "address $mac $address"
  done
done
"#;

const IMAGE: &str = r#"
for word in $(cat /proc/cmdline); do
  case $word in roothash=*) echo "root-hash ${word#roothash=}";; esac
done
echo "kernel $(uname -r)"
. /usr/lib/os-release
echo "version $IMAGE_VERSION"
"#;

const UNITS: &str = r#"
echo "state $(systemctl is-system-running)"
systemctl list-units --state=failed --no-legend --plain | while read -r unit rest; do echo "failed $unit"; done
"#;

const CLOCK: &str = r#"
echo "now $(date +%s)"
echo "synchronized $(timedatectl show -p NTPSynchronized --value)"
echo "server $(timedatectl show-timesync -p ServerAddress --value)"
"#;

const READONLY: &str = r#"
read -r device where kind options rest <<END
$(grep ' / ' /proc/mounts)
END
echo "root $kind $device $options"
echo "verity $(dmsetup status root)"
try() { if (eval "$2") >/dev/null 2>&1; then echo "writable $1"; else echo "refused $1"; fi; }
try / 'echo x >/kiln-test'
try /usr 'echo x >/usr/kiln-test'
try /etc 'echo x >/etc/kiln-test'
try remount 'mount -o remount,rw / && echo x >/kiln-test'
try /var 'echo x >/var/kiln-test && rm /var/kiln-test'
"#;

const DISK: &str = r#"
part=$(readlink -f /dev/kiln/var)
disk=/sys/class/block/${part##*/}/..
disk=$(cd -P "$disk" && pwd)
name=${disk##*/}
echo "disk $(($(cat "$disk/size") * 512))"
for p in "$disk"/"$name"*; do
  label=$(lsblk -dnro PARTLABEL "/dev/${p##*/}")
  echo "partition $(($(cat "$p/start") * 512)) $(($(cat "$p/size") * 512)) $label"
done
echo "backup $(tail -c 512 "/dev/$name" | head -c 8)"
echo "var $(findmnt -bnro SIZE /var)"
"#;

/// Facts by name, each with its values in the order they came.
type Facts = BTreeMap<String, Vec<String>>;

/// Does `check` on `nodes`, all at once.
pub(super) fn run(
    context: &Context<'_>,
    cluster: &Cluster<'_>,
    nodes: &[&Node<'_>],
    up: &BTreeSet<spec::Name>,
    check: Check,
    limit: Duration,
) -> Result<Vec<Evidence>, Trouble> {
    let answers = cluster.each(nodes, |node| {
        let script = script(cluster, node, up, check)?;
        // Taken around the question: a slow guest is not a wrong clock.
        let before = crate::lock::time::now();
        let output = node.run(context, &script, limit)?;
        let after = crate::lock::time::now();
        let mut facts = Facts::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            facts.entry(name.to_owned()).or_default().push(value.trim().to_owned());
        }
        let evidence = Evidence {
            node: node.name().to_owned(),
            command: format!("check {}", check.word()),
            status: Some(output.status),
            stdout: text::excerpt(&output.stdout),
            stderr: text::excerpt(&output.stderr),
            ..Evidence::default()
        };
        let wrong = judge(cluster, node, check, &facts, (before, after));
        Ok((facts, evidence, wrong))
    });
    let (mut evidence, mut wrong, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (node, answer) in nodes.iter().zip(answers) {
        let (facts, mut shown, bad) = answer?;
        shown.failed = !bad.is_empty();
        wrong.extend(bad.into_iter().map(|why| format!("{}: {why}", node.name())));
        evidence.push(shown);
        all.push((node.name(), facts));
    }
    if check == Check::Identity {
        for name in ["hostname", "machine-id", "boot-id"] {
            wrong.extend(twice(&all, name));
        }
    }
    if wrong.is_empty() {
        return Ok(evidence);
    }
    Err(Trouble { why: wrong.join("\n"), evidence, over: false })
}

fn script(
    cluster: &Cluster<'_>,
    node: &Node<'_>,
    up: &BTreeSet<spec::Name>,
    check: Check,
) -> Result<String, Trouble> {
    let fixed = match check {
        Check::Identity => IDENTITY,
        Check::SameImage => IMAGE,
        Check::Units => UNITS,
        Check::Clock => CLOCK,
        Check::ReadonlyRoot => READONLY,
        Check::Disk => DISK,
        Check::Reach => return Ok(reach(cluster, node, up)),
        Check::Sysctls => {
            let mut script = String::new();
            for name in cluster.image(node.spec())?.sysctl.keys() {
                let _ = writeln!(script, "echo \"{name} $(cat /proc/sys/{})\"", sysctl_path(name));
            }
            return Ok(script);
        }
    };
    Ok(fixed.to_owned())
}

/// A `.` parts names, and a `/` in a name stands for a dot in a part (sysctl.d(5)).
fn sysctl_path(name: &str) -> String {
    name.chars().map(|c| if c == '.' { '/' } else if c == '/' { '.' } else { c }).collect()
}

/// Pings every other node on every network that both are on.
fn reach(cluster: &Cluster<'_>, node: &Node<'_>, up: &BTreeSet<spec::Name>) -> String {
    let mut script = String::from(
        "try() { if ping -n -q -c 1 -W 10 \"$2\" >/dev/null 2>&1; then echo \"reached $1\"; else echo \"lost $1\"; fi; }\n",
    );
    let spec = node.spec();
    for other in cluster.scenario.nodes().filter(|other| other.name != spec.name && up.contains(&other.name)) {
        for nic in &spec.nics {
            let Some(address) = other.address_on(&nic.network) else { continue };
            let _ = writeln!(script, "try {}:{} {address}", other.name, nic.network);
            if cluster.scenario.server(&nic.network, |serves| serves.dns).is_some() {
                let name = format!("{}.{}", other.name, super::cluster::DOMAIN);
                let _ = writeln!(script, "try {name} {name}");
            }
        }
    }
    script
}

/// What is wrong on one node.
fn judge(cluster: &Cluster<'_>, node: &Node<'_>, check: Check, facts: &Facts, time: (i64, i64)) -> Vec<String> {
    let spec = node.spec();
    let all = |name: &str| facts.get(name).map(Vec::as_slice).unwrap_or_default();
    let one = |name: &str| all(name).first().map(String::as_str).unwrap_or_default();
    let mut wrong = Vec::new();
    let mut same = |what: &str, is: &str, should: &str| {
        if is != should {
            wrong.push(format!("{what} is `{is}`, not `{should}`"));
        }
    };
    match check {
        Check::Identity => {
            same("the host name", one("hostname"), &spec.name);
            same("the machine id", one("machine-id"), &spec.uuid.simple().to_string());
            for nic in &spec.nics {
                if let spec::Address::Fixed { ip, prefix } = nic.address {
                    let wanted = format!("{} {ip}/{prefix}", nic.mac);
                    if !all("address").contains(&wanted) {
                        let has = all("address").join(", ");
                        wrong.push(format!("no card has the address {wanted}; there is: {has}"));
                    }
                }
            }
        }
        Check::SameImage => match cluster.image(spec) {
            Ok(image) => {
                same("the root hash", one("root-hash"), &image.manifest.root_hash.to_string());
                same("the kernel", one("kernel"), &image.manifest.kernel);
                same("IMAGE_VERSION", one("version"), &image.manifest.version);
            }
            Err(trouble) => wrong.push(trouble.why),
        },
        Check::Units => {
            same("the state", one("state"), "running");
            wrong.extend(all("failed").iter().map(|unit| format!("{unit} has failed")));
        }
        Check::Clock => {
            same("NTPSynchronized", one("synchronized"), "yes");
            let servers: Vec<String> = (spec.nics.iter())
                .filter_map(|nic| cluster.scenario.server(&nic.network, |serves| serves.ntp))
                .map(|(_, address)| address.to_string())
                .collect();
            if !servers.is_empty() && !servers.iter().any(|server| server == one("server")) {
                wrong.push(format!("it took the time from `{}`, not {}", one("server"), servers.join(" or ")));
            }
            let skew = i64::try_from(SKEW.as_secs()).unwrap_or(i64::MAX);
            match one("now").parse::<i64>() {
                Ok(now) if now < time.0 - skew || now > time.1 + skew => {
                    wrong.push(format!("its clock says {now}, this machine's {} to {}", time.0, time.1));
                }
                Ok(_) => {}
                Err(_) => wrong.push("it tells no time".to_owned()),
            }
        }
        Check::Reach => {
            wrong.extend(all("lost").iter().map(|other| format!("{other} does not answer")));
            if all("reached").is_empty() && all("lost").is_empty() {
                wrong.push("it shares no network with another node that is up".to_owned());
            }
        }
        Check::ReadonlyRoot => {
            let root: Vec<&str> = one("root").split(' ').collect();
            if root.first() != Some(&"erofs") || !root.get(2).is_some_and(|o| o.split(',').any(|o| o == "ro")) {
                wrong.push(format!("the root is mounted as `{}`", one("root")));
            }
            if !one("verity").ends_with("verity V") {
                wrong.push(format!("the verity device says `{}`", one("verity")));
            }
            for place in ["/", "/usr", "/etc", "remount"] {
                if all("writable").iter().any(|w| w == place) || !all("refused").iter().any(|r| r == place) {
                    wrong.push(format!("{place} can be written to"));
                }
            }
            if !all("writable").iter().any(|w| w == "/var") {
                wrong.push("/var cannot be written to".to_owned());
            }
        }
        Check::Disk => wrong.extend(disk(&facts_of_disk(facts), one("backup"), spec)),
        Check::Sysctls => match cluster.image(spec) {
            Ok(image) => {
                for (name, wanted) in &image.sysctl {
                    // The kernel parts the numbers of a list by tabs.
                    let is = one(name).split_whitespace().collect::<Vec<_>>().join(" ");
                    let wanted = wanted.split_whitespace().collect::<Vec<_>>().join(" ");
                    same(name, &is, &wanted);
                }
            }
            Err(trouble) => wrong.push(trouble.why),
        },
    }
    wrong
}

/// The size of the disk, and its partitions by place: offset, size, label.
fn facts_of_disk(facts: &Facts) -> (u64, Vec<(u64, u64, String)>) {
    let first = |name: &str| facts.get(name).and_then(|v| v.first()?.parse().ok()).unwrap_or(0);
    let mut partitions: Vec<(u64, u64, String)> = facts
        .get("partition")
        .into_iter()
        .flatten()
        .filter_map(|line| {
            let mut words = line.splitn(3, ' ');
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned()))
        })
        .collect();
    partitions.sort_unstable();
    (first("disk"), partitions)
}

/// The backup GPT takes 33 sectors at the end (UEFI 2.10, 5.3.1), and partitions begin at a MiB.
const SLACK: u64 = 4 << 20;

fn disk(facts: &(u64, Vec<(u64, u64, String)>), backup: &str, spec: &spec::Node) -> Vec<String> {
    let (size, partitions) = facts;
    let mut wrong = Vec::new();
    let expected = spec.disks.first().map_or(0, |disk| disk.size.bytes());
    if *size != expected {
        wrong.push(format!("the boot disk has {size} bytes, not {expected}"));
    }
    for (beginning, count) in [("esp", 1), ("verity-", 1), ("root-", 1), ("_empty", 2), ("var", 1)] {
        let found = partitions.iter().filter(|(_, _, label)| label.starts_with(beginning)).count();
        if found != count {
            wrong.push(format!("{found} partitions are called `{beginning}…`, not {count}"));
        }
    }
    for pair in partitions.windows(2) {
        if let [(start, length, label), (next, _, other)] = pair
            && start + length > *next
        {
            wrong.push(format!("{label} and {other} overlap"));
        }
    }
    let end = partitions.last().map_or(0, |(start, length, _)| start + length);
    if end + SLACK < *size {
        wrong.push(format!("the last partition ends at {end}, {} bytes before the disk's end", size - end));
    }
    if backup != "EFI PART" {
        wrong.push(format!("the disk's last sector begins with `{backup}`, not with a backup GPT"));
    }
    wrong
}

/// Nodes that say the same where each must have its own.
fn twice(all: &[(&str, Facts)], name: &str) -> Vec<String> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (node, facts) in all {
        let Some(value) = facts.get(name).and_then(|values| values.first()) else {
            wrong.push(format!("{node} tells no {name}"));
            continue;
        };
        if let Some(other) = seen.insert(value, node) {
            wrong.push(format!("{other} and {node} have the same {name} {value}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_is_a_part_with_a_dot() {
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn an_identity_on_two_nodes_and_none_at_all_are_told() {
        let facts = |id: &str| Facts::from([("machine-id".to_owned(), vec![id.to_owned()])]);
        let all = [("a", facts("1")), ("b", facts("2")), ("c", facts("1")), ("d", Facts::new())];
        assert_eq!(twice(&all, "machine-id"), ["a and c have the same machine-id 1", "d tells no machine-id"]);
    }
}
