//! `kiln test --cluster`: a scenario of a real cluster, with its names, its addresses and the credentials that its nodes will be given.
//!
//! What stands beside the cluster is played by machines with the profile `edge`: one has the gateways of all networks and routes
//! between them, serves time, and gives addresses to nodes that ask for one; others stand where the NFS server and the router of BGP
//! do. Secrets stay where they are: the scenario has a token of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;
use serde_json::json;

use super::credentials::plain;
use crate::error::{Failure, Kind};
use crate::scenario::spec::Scenario;
use crate::spec::cluster::{Addressing, Cluster, Network};
use crate::spec::{Host, Role};

/// What nodes join by in the scenario.
const TOKEN: &str = "of-this-scenario-alone";
/// K3s' control plane and SQLite beside pods.
const SERVER_MEMORY: &str = "3GiB";
const AGENT_MEMORY: &str = "2GiB";
/// Where `edge` may export from.
const EXPORTS: &str = "/srv/";

/// The scenario of `cluster`, named as it. `machines` are the profiles that are no product.
///
/// # Errors
/// [`Kind::Input`]: no place for the machine that stands for the gateway, or DHCP on more than one network. [`Kind::Internal`]: what was made is no scenario.
pub fn scenario(cluster: &Cluster, machines: &BTreeSet<String>) -> Result<Scenario> {
    let text = text(cluster)?;
    let file = format!("the scenario of {}", cluster.file);
    Scenario::parse(&cluster.name, &file, &text, machines).map_err(|error| {
        let failure = Failure::new(Kind::Internal, format!("{file} is none")).because(error);
        failure.into()
    })
}

/// A machine beside the cluster.
#[derive(Default)]
struct Beside {
    /// Networks and its addresses there.
    nics: BTreeMap<String, Ipv4Addr>,
    /// Lines below `serves`.
    serves: BTreeMap<&'static str, String>,
}

/// The text of the scenario, as a person would have written it.
fn text(cluster: &Cluster) -> Result<String, Failure> {
    let mut out = String::new();
    let nodes = cluster.nodes.len();
    let _ = writeln!(
        out,
        "schema = 1\ndescription = {}\nlimit = \"25min\"\n",
        json!(format!(
            "the cluster {} of {}: its {nodes} nodes come up, join and reach each other",
            cluster.name, cluster.file
        ))
    );
    for network in cluster.networks.values().filter(|network| used(cluster, network)) {
        let _ = writeln!(out, "[network.{}]\nsubnet = \"{}\"\n", network.name, network.subnet);
    }
    for node in cluster.nodes.values() {
        let memory = if node.role == Role::Server { SERVER_MEMORY } else { AGENT_MEMORY };
        let address = node.address().map_or("dhcp".to_owned(), |address| address.to_string());
        let mac = node.mac.map(|mac| format!(", mac = \"{mac}\"")).unwrap_or_default();
        let _ = writeln!(
            out,
            "[node.{}]\nprofile = {}\nmemory = \"{memory}\"\nnics = [{{ network = \"{}\", address = \"{address}\"{mac} }}]",
            node.name,
            json!(node.profile),
            node.network
        );
        if node.role == Role::Agent {
            // The servers' K3s has work for two; emulated processors that are more than the host's wait for each other.
            out.push_str("cpus = 1\n");
        }
        let _ = writeln!(out, "[node.{}.credentials]\n\"k3s.token\" = \"{TOKEN}\"", node.name);
        for credential in plain(cluster, node)? {
            // The engine derives these two from the same names.
            if ["system.hostname", "system.machine_id"].contains(&credential.name.as_str()) {
                continue;
            }
            let value = String::from_utf8_lossy(credential.value.expose());
            let _ = writeln!(out, "{} = {}", json!(credential.name), json!(value));
        }
        out.push('\n');
    }
    let beside = beside(cluster)?;
    for (name, machine) in &beside {
        let nics = machine.nics.iter().map(|(n, a)| format!("{{ network = \"{n}\", address = \"{a}\" }}"));
        let nics: Vec<String> = nics.collect();
        let _ = writeln!(
            out,
            "[node.{name}]\nprofile = \"edge\"\ncpus = 1\nnics = [{}]\n[node.{name}.serves]",
            nics.join(", ")
        );
        for (key, value) in &machine.serves {
            let _ = writeln!(out, "{key} = {value}");
        }
        out.push('\n');
    }
    steps(cluster, beside.keys().map(String::as_str), &mut out);
    Ok(out)
}

/// What nodes are told of and no machine of the scenario stands for: hosts that are named, that have IPv6 addresses, or that are in no
/// network of the nodes. Each is a sentence for whoever starts the scenario.
///
/// # Errors
/// As [`scenario()`].
pub fn left_out(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let machines = beside(cluster)?;
    let played: BTreeSet<Ipv4Addr> =
        machines.values().flat_map(|machine| machine.nics.values().copied()).collect();
    let absent = |host: &Host| host.v4().is_none_or(|address| !played.contains(&address));
    let mut out = BTreeSet::new();
    for node in cluster.nodes.values() {
        let Addressing::Static { dns, ntp, .. } = &node.addressing else { continue };
        let dns = dns.iter().map(|address| ("name server", Host::Address(*address)));
        for (what, host) in
            dns.chain(ntp.iter().map(|host| ("time server", host.clone()))).filter(|(_, h)| absent(h))
        {
            out.insert(format!("no machine stands for the {what} {host}: nodes do without it here"));
        }
    }
    if let Some(nfs) = &cluster.nfs
        && !machines.values().any(|machine| machine.serves.contains_key("nfs"))
    {
        let why = match &nfs.server {
            Host::Name(_) => "machines here have addresses and no names that others could ask for".to_owned(),
            host if host.is_v6() => "machines here have IPv4 addresses".to_owned(),
            _ if !nfs.path.starts_with(EXPORTS) => format!("what is exported here is below {EXPORTS}"),
            _ => "its address is in no network of the nodes".to_owned(),
        };
        out.insert(format!("no machine stands for the NFS server {}: {why}", nfs.server));
    }
    if let Some(bgp) = cluster.bgp.as_ref().filter(|bgp| !played.contains(&bgp.peer)) {
        out.insert(format!(
            "no machine stands for the router {}: its address is in no network of the nodes",
            bgp.peer
        ));
    }
    Ok(out.into_iter().collect())
}

fn used(cluster: &Cluster, network: &Network) -> bool {
    cluster.nodes.values().any(|node| node.network == network.name)
}

/// The machines beside the cluster, by name.
fn beside(cluster: &Cluster) -> Result<BTreeMap<String, Beside>, Failure> {
    let mut taken: BTreeSet<Ipv4Addr> = cluster.nodes.values().filter_map(|node| node.address()).collect();
    taken.extend(cluster.networks.values().filter_map(|network| network.gateway));
    taken.extend(cluster.nfs.as_ref().and_then(|nfs| nfs.server.v4()));
    taken.extend(cluster.bgp.as_ref().map(|bgp| bgp.peer));
    let mut machines: BTreeMap<String, Beside> = BTreeMap::new();
    let mut edge = Beside::default();
    edge.serves.insert("ntp", "true".to_owned());
    edge.serves.insert("dns", "true".to_owned());
    edge.serves.insert("router", "true".to_owned());
    for network in cluster.networks.values().filter(|network| used(cluster, network)) {
        let own = match network.gateway {
            Some(gateway) => gateway,
            None => free(network, &taken)?,
        };
        taken.insert(own);
        edge.nics.insert(network.name.to_string(), own);
        let asks = |n: &&crate::spec::cluster::Node| n.network == network.name && n.address().is_none();
        let asking = cluster.nodes.values().filter(asks).count();
        if asking == 0 {
            continue;
        }
        let lease = lease(network, &taken, asking)?;
        if edge.serves.insert("dhcp", lease).is_some() {
            let text = "nodes of two networks ask for their addresses, and in QEMU they are given on one network only";
            return Err(Failure::new(Kind::Input, text).hint("write the addresses of those of one network"));
        }
    }
    machines.insert(name(cluster, &machines, "edge"), edge);
    // An export that edge cannot have, or a server that is in no network of the nodes, is left out.
    if let Some(nfs) = cluster.nfs.as_ref().filter(|nfs| nfs.path.starts_with(EXPORTS))
        && let Some(address) = nfs.server.v4()
    {
        serve(cluster, &mut machines, address, "nfs", json!([nfs.path]).to_string());
    }
    if let Some(bgp) = &cluster.bgp {
        let line = format!("{{ asn = {}, peer_asn = {} }}", bgp.peer_asn, bgp.asn);
        serve(cluster, &mut machines, bgp.peer, "bgp", line);
    }
    Ok(machines)
}

/// Lets the machine at `address` serve something: one that is there already, or a new one named as what it serves.
fn serve(
    cluster: &Cluster,
    machines: &mut BTreeMap<String, Beside>,
    address: Ipv4Addr,
    what: &'static str,
    line: String,
) {
    if let Some(machine) = machines.values_mut().find(|machine| machine.nics.values().any(|a| *a == address))
    {
        machine.serves.insert(what, line);
        return;
    }
    let networks = cluster.networks.values().filter(|network| used(cluster, network));
    let Some(network) = networks.into_iter().find(|network| network.subnet.contains(&address)) else {
        return;
    };
    let mut machine = Beside::default();
    machine.nics.insert(network.name.to_string(), address);
    machine.serves.insert(what, line);
    machines.insert(name(cluster, machines, what), machine);
}

/// A name that no node has.
fn name(cluster: &Cluster, machines: &BTreeMap<String, Beside>, wanted: &str) -> String {
    let free = |name: &String| !cluster.nodes.contains_key(name.as_str()) && !machines.contains_key(name);
    let numbered = (2..).map(|n| format!("{wanted}-{n}"));
    std::iter::once(wanted.to_owned()).chain(numbered).find(free).unwrap_or_default()
}

/// The first address of a network that nobody has.
fn free(network: &Network, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, Failure> {
    network.subnet.hosts().find(|address| !taken.contains(address)).ok_or_else(|| full(network))
}

fn full(network: &Network) -> Failure {
    let text = format!(
        "the network `{}` ({}) has no address left for a machine beside it",
        network.name, network.subnet
    );
    Failure::new(Kind::Input, text).hint("write a larger `subnet`")
}

/// A range of so many addresses in a row that nobody has, as `serves.dhcp`; the last ones, where people seldom put anything.
fn lease(network: &Network, taken: &BTreeSet<Ipv4Addr>, count: usize) -> Result<String, Failure> {
    let mut row: Vec<Ipv4Addr> = Vec::new();
    for bits in (u32::from(network.subnet.network()) + 1..u32::from(network.subnet.broadcast())).rev() {
        let address = Ipv4Addr::from(bits);
        if taken.contains(&address) {
            row.clear();
            continue;
        }
        row.push(address);
        if row.len() == count
            && let (Some(last), Some(first)) = (row.first(), row.last())
        {
            return Ok(format!("{{ network = \"{}\", range = [\"{first}\", \"{last}\"] }}", network.name));
        }
    }
    Err(full(network))
}

/// What is proven: the nodes come up, join under their names and addresses, and pods on each reach those on all others.
fn steps<'n>(cluster: &'n Cluster, beside: impl Iterator<Item = &'n str>, out: &mut String) {
    let Some(server) = cluster.first_server().map(|node| node.name.as_str()) else { return };
    let count = cluster.nodes.len();
    let expected: Vec<String> = cluster
        .nodes
        .values()
        .filter_map(|node| Some(format!("{} {}", node.name, node.address()?)))
        .collect();
    let labels: Vec<String> = cluster
        .nodes
        .values()
        .flat_map(|node| {
            node.labels.iter().map(|(key, value)| {
                format!("kubectl get nodes -l '{key}={value}' -o name | grep -qx 'node/{}'", node.name)
            })
        })
        .collect();
    let of =
        |role| cluster.nodes.values().filter(move |node| node.role == role).map(|node| node.name.as_str());
    let first: Vec<&str> = of(Role::Server).chain(beside).collect();
    let agents: Vec<&str> = of(Role::Agent).collect();
    let mut come_up = |name: &str, on: &[&str]| {
        let _ = write!(
            out,
            "[[step]]\nname = \"{name}\"\non = {}\nready = true\nlimit = \"5min\"\n\n",
            json!(on)
        );
    };
    come_up("the server comes up with no failed unit", &first);
    if !agents.is_empty() {
        come_up("its agents come up with no failed unit: they have joined", &agents);
    }
    let _ = write!(
        out,
        r#"[[step]]
name = "{count} nodes are Ready"
on = ["{server}"]
run = """
kubectl get nodes -o wide
test "$(kubectl get nodes --no-headers | grep -cw Ready)" = {count}
"""
until = true
limit = "3min"

[[step]]
name = "they have the addresses and labels of the real ones"
on = ["{server}"]
run = '''
kubectl get nodes -o 'jsonpath={{range .items[*]}}{{.metadata.name}} {{.status.addresses[0].address}}{{"\n"}}{{end}}' >/run/addresses
cat /run/addresses
{}
{}
'''
limit = "30s"

[[step]]
name = "a pod on each node is asked for"
on = ["{server}"]
run = '''
cat >/run/web.yaml <<'END'
apiVersion: apps/v1
kind: DaemonSet
metadata: {{ name: web }}
spec:
  selector: {{ matchLabels: {{ app: web }} }}
  template:
    metadata: {{ labels: {{ app: web }} }}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{{ operator: Exists }}]
      containers:
        - name: web
          image: kiln.invalid/toolbox:1
          imagePullPolicy: Never
          command: [sh, -c, 'mkdir -p /tmp/www; echo "$NODE" >/tmp/www/node; exec httpd -f -p 8080 -h /tmp/www']
          env: [{{ name: NODE, valueFrom: {{ fieldRef: {{ fieldPath: spec.nodeName }} }} }}]
END
kubectl apply --validate=false -f /run/web.yaml
kubectl rollout status daemonset/web --timeout 240s
'''
limit = "5min"

[[step]]
name = "every pod reaches every other"
on = ["{server}"]
run = '''
kubectl get pods -l app=web -o 'jsonpath={{range .items[*]}}{{.metadata.name}} {{.status.podIP}}{{"\n"}}{{end}}' >/run/web
test "$(grep -c . /run/web)" = {count}
addresses=$(cut -d ' ' -f 2 /run/web | tr '\n' ' ')
for pod in $(cut -d ' ' -f 1 /run/web); do
  kubectl exec "$pod" -- sh -ec "for address in $addresses; do wget -qO- -T 20 http://\$address:8080/node; done"
done
'''
until = true
limit = "3min"

[[step]]
name = "at the end no unit has failed anywhere"
on = "every"
check = "units"
"#,
        expected
            .iter()
            .map(|line| format!("grep -qx '{line}' /run/addresses"))
            .collect::<Vec<_>>()
            .join("\n"),
        labels.join("\n"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::accel::Accel;
    use crate::scenario::check::{check, host::Host};
    use crate::spec::Project;
    use crate::spec::cluster::Cluster;
    use std::path::Path;

    const HOMELAB: &str = r#"
        schema = 1
        name = "homelab"
        [network.lan]
        subnet = "192.168.50.0/24"
        gateway = "192.168.50.1"
        dns = ["192.168.50.1"]
        [network.far]
        subnet = "192.168.3.0/24"
        gateway = "192.168.3.1"
        [node.server]
        role = "server"
        mac = "bc:24:11:00:00:10"
        address = "192.168.50.100"
        [node.agent-1]
        role = "agent"
        address = "192.168.50.111"
        labels = { "example.org/rack" = "a" }
        [node.agent-2]
        role = "agent"
        mac = "bc:24:11:00:00:12"
        address = "192.168.3.100"
        [nfs]
        server = "192.168.50.20"
        path = "/srv/nfs/k8s"
        [bgp]
        asn = 64512
        peer = "192.168.50.1"
        peer-asn = 64513
        [secret]
        token = { env = "KILN_NO_SUCH_SECRET" }
    "#;

    fn made(text: &str) -> (Project, Cluster, Scenario) {
        let project = Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let cluster = Cluster::parse("cluster.toml", text, Path::new("/nowhere"), &project).unwrap();
        let scenario = scenario(&cluster, &project.machines.keys().cloned().collect()).unwrap();
        (project, cluster, scenario)
    }

    #[test]
    fn the_nodes_have_their_names_addresses_and_cards_and_are_told_what_real_ones_are() {
        let (_, cluster, scenario) = made(HOMELAB);
        for node in cluster.nodes.values() {
            let machine = &scenario.nodes[&node.name];
            assert_eq!(machine.address_on(&node.network), node.address().map(Into::into));
            assert!(node.mac.is_none_or(|mac| machine.nics[0].mac == mac));
            for credential in plain(&cluster, node).unwrap() {
                let value = String::from_utf8(credential.value.expose().to_vec()).unwrap();
                match credential.name.as_str() {
                    "system.hostname" => assert_eq!(value, node.name.as_str()),
                    "system.machine_id" => assert_eq!(value, machine.uuid.simple().to_string()),
                    name => assert_eq!(machine.credentials[name], value, "{name}"),
                }
            }
        }
    }

    #[test]
    fn what_is_beside_the_nodes_stands_at_its_addresses() {
        let (_, _, scenario) = made(HOMELAB);
        let edge = &scenario.nodes["edge"];
        assert_eq!(edge.address_on("lan"), Some(Ipv4Addr::new(192, 168, 50, 1).into()));
        assert_eq!(edge.address_on("far"), Some(Ipv4Addr::new(192, 168, 3, 1).into()));
        let serves = edge.serves.as_ref().unwrap();
        assert!(serves.router && serves.bgp.is_some_and(|bgp| (bgp.asn, bgp.peer_asn) == (64513, 64512)));
        assert_eq!(scenario.nodes["nfs"].address_on("lan"), Some(Ipv4Addr::new(192, 168, 50, 20).into()));
        assert_eq!(scenario.nodes["nfs"].serves.as_ref().unwrap().nfs, ["/srv/nfs/k8s"]);
    }

    #[test]
    fn it_fits_the_project_and_a_machine_that_is_large_enough() {
        let (project, _, scenario) = made(HOMELAB);
        let host = Host { memory: 64 << 30, space: 64 << 30, cpus: 8, folder: "/tmp".into() };
        check(&scenario, &project, Path::new("/nowhere"), &host, Accel::Kvm, 0).unwrap();
    }

    #[test]
    fn a_node_that_asks_for_its_address_gets_one_that_nobody_has() {
        let text = HOMELAB.replace("\"192.168.50.111\"", "\"dhcp\"\nnetwork = \"lan\"");
        let (_, _, scenario) = made(&text);
        let dhcp = scenario.nodes["edge"].serves.as_ref().unwrap().dhcp.clone().unwrap();
        assert_eq!(
            (dhcp.first, dhcp.last),
            (Ipv4Addr::new(192, 168, 50, 254).into(), Ipv4Addr::new(192, 168, 50, 254).into())
        );
    }
}
