//! The daemons of `edge` read what is written for them.

use std::net::Ipv4Addr;
use std::time::Duration;

use kiln::scenario::edge::{Bgp, Dhcp, EdgeConfig, Host, Interface, Peer, credentials};

use super::judge;

fn everything() -> EdgeConfig {
    let address = |last| Ipv4Addr::new(10, 77, 0, last);
    let host = |name: &str, last: u8, address, dhcp| Host {
        name: name.to_owned(),
        mac: format!("52:54:00:00:00:{last:02x}"),
        address,
        dhcp,
    };
    EdgeConfig {
        domain: "cluster.test".to_owned(),
        interfaces: vec![Interface { network: "lan".to_owned(), address: address(1), prefix: 24 }],
        hosts: vec![
            host("server", 11, Some(address(11)), false),
            host("agent-1", 12, Some(address(12)), true),
            host("agent-2", 13, None, true),
        ],
        dhcp: Some(Dhcp {
            network: "lan".to_owned(),
            first: address(100),
            last: address(199),
            lease: Duration::from_secs(3600),
        }),
        dns: true,
        ntp: true,
        nfs: vec!["/srv/nfs/a".to_owned()],
        router: true,
        bgp: Some(Bgp {
            asn: 64512,
            peers: vec![Peer { name: "agent-1".to_owned(), address: address(12), asn: 4_200_000_000 }],
        }),
    }
}

/// Has `program` check the credential `name` of `config`, and then the same with a line that it cannot know, which it must refuse.
#[track_caller]
fn judged(config: &EdgeConfig, name: &str, program: &str, args: &[&str]) {
    let list = credentials(config).unwrap();
    let (_, text) = list.iter().find(|(n, _)| n == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let check = |text: &[u8]| {
        fs_err::write(&file, text).unwrap();
        judge(program).args(args).arg(&file).run()
    };
    check(text).unwrap_or_else(|e| panic!("{e}"));
    check(&[text, b"\nno-such-word x\n".as_slice()].concat()).unwrap_err();
}

#[test]
fn dnsmasq_reads_its_configuration() {
    let little = EdgeConfig { dns: false, ntp: false, router: false, ..everything() };
    judged(&little, "edge.dnsmasq", "usr/sbin/dnsmasq", &["--test", "-C"]);
    judged(&everything(), "edge.dnsmasq", "usr/sbin/dnsmasq", &["--test", "-C"]);
}

#[test]
fn chronyd_reads_its_configuration() {
    judged(&everything(), "edge.chrony", "usr/sbin/chronyd", &["-p", "-f"]);
}

#[test]
fn bird_reads_its_configuration() {
    judged(&everything(), "edge.bird", "usr/sbin/bird", &["-p", "-c"]);
}
