use super::*;

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

fn host(name: &str, last: u8, address: Option<Ipv4Addr>, dhcp: bool) -> Host {
    Host { name: name.to_owned(), mac: format!("52:54:00:00:00:{last:02x}"), address, dhcp }
}

/// Everything served, to a server with an address of its own, an agent with a reserved one, and one that takes what comes.
fn everything() -> EdgeConfig {
    EdgeConfig {
        domain: "cluster.test".to_owned(),
        interfaces: vec![
            Interface { network: "lan".to_owned(), address: address(1), prefix: 24 },
            Interface { network: "wan".to_owned(), address: Ipv4Addr::new(192, 0, 2, 1), prefix: 30 },
        ],
        hosts: vec![
            host("edge", 1, Some(address(1)), false),
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
        nfs: vec!["/srv/nfs/a".to_owned(), "/srv/nfs/b".to_owned()],
        router: true,
        bgp: Some(Bgp {
            asn: 64512,
            peers: vec![
                Peer { name: "server".to_owned(), address: address(11), asn: 64513 },
                Peer { name: "agent-1".to_owned(), address: address(12), asn: 64513 },
            ],
        }),
    }
}

fn text(config: &EdgeConfig) -> String {
    credentials(config)
        .unwrap()
        .into_iter()
        .map(|(name, bytes)| format!("== {name}\n{}\n", String::from_utf8(bytes).unwrap()))
        .collect()
}

#[test]
fn everything_that_can_be_served_has_this_configuration() {
    insta::assert_snapshot!(text(&everything()));
}

#[test]
fn addresses_without_names_routes_and_time_offer_none_of_these() {
    let config =
        EdgeConfig { dns: false, ntp: false, router: false, nfs: Vec::new(), bgp: None, ..everything() };
    insta::assert_snapshot!(text(&config));
}

#[test]
fn a_machine_that_serves_nothing_has_no_credentials() {
    let config = EdgeConfig {
        domain: "cluster.test".to_owned(),
        interfaces: everything().interfaces,
        ..EdgeConfig::default()
    };
    assert_eq!(credentials(&config).unwrap(), []);
}

#[test]
fn values_that_do_not_fit_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut EdgeConfig)| {
        let mut config = everything();
        change(&mut config);
        credentials(&config).unwrap_err().to_string()
    };
    let dhcp = |change: fn(&mut Dhcp)| with(&move |c| c.dhcp.iter_mut().for_each(change));
    let peer = |change: fn(&mut Peer)| with(&move |c| change(&mut c.bgp.as_mut().unwrap().peers[1]));
    for (found, wanted) in [
        (with(&|c| c.domain = "a b".to_owned()), "`a b` is no domain"),
        (with(&|c| c.interfaces.clear()), "it is on no network"),
        (with(&|c| c.interfaces[0].prefix = 33), "network lan: a network part of 33 bits"),
        (with(&|c| c.hosts[1].name = "a,b".to_owned()), "`a,b` is no host name"),
        (with(&|c| c.hosts[1].mac = "52:54".to_owned()), "server: `52:54` is no hardware address"),
        (with(&|c| c.hosts[1].address = None), "server has no address and does not ask for one"),
        (with(&|c| c.nfs[1] = "/etc".to_owned()), "`/etc` cannot be exported"),
        (with(&|c| c.nfs[1] = "/srv/../etc".to_owned()), "`/srv/../etc` cannot be exported"),
        (with(&|c| c.nfs[1] = "/srv/a b".to_owned()), "`/srv/a b` cannot be exported"),
        (with(&|c| c.nfs[1] = "/srv/nfs/a".to_owned()), "/srv/nfs/a is exported twice"),
        (dhcp(|d| d.network = "dmz".to_owned()), "it gives addresses on the network dmz, on which it is not"),
        (dhcp(|d| d.first = address(200)), "10.77.0.200 to 10.77.0.199 is no range of 10.77.0.0/24"),
        (
            dhcp(|d| d.last = Ipv4Addr::BROADCAST),
            "10.77.0.100 to 255.255.255.255 is no range of 10.77.0.0/24",
        ),
        (dhcp(|d| d.lease = Duration::from_secs(60)), "a lease of 60 s, give 120 s or more"),
        (
            peer(|p| p.address = Ipv4Addr::new(10, 78, 0, 1)),
            "the BGP peer agent-1 at 10.78.0.1 is on none of its networks",
        ),
        (peer(|p| p.address = address(11)), "two BGP peers have the address 10.77.0.11"),
        (peer(|p| p.asn = 0), "0 is no autonomous system (RFC 7607)"),
        (peer(|p| p.name = "a'b".to_owned()), "`a'b` is no host name"),
    ] {
        assert_eq!(found, format!("edge: {wanted}"));
    }
}

#[test]
fn networks_of_any_size_know_their_addresses() {
    let interface =
        |prefix| Interface { network: String::new(), address: Ipv4Addr::new(10, 77, 0, 1), prefix };
    for (prefix, other, reached) in [
        (0, Ipv4Addr::new(192, 0, 2, 1), true),
        (24, address(255), true),
        (24, Ipv4Addr::new(10, 77, 1, 1), false),
        (31, address(0), true),
        (31, address(2), false),
        (32, address(1), true),
        (32, address(0), false),
    ] {
        assert_eq!(interface(prefix).reaches(other), reached, "{other}/{prefix}");
    }
}
