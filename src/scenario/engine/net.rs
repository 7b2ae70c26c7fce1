//! The networks of a run: a switch for each, a port for each cable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind};
use crate::qemu::switch::{self, Direction, PortId, Switch, Tap};
use crate::scenario::result;
use crate::scenario::spec::{Cable, Conditions, Cut, Scenario};

/// All networks of a run.
#[derive(Debug)]
pub(super) struct Net {
    switches: BTreeMap<String, Switch>,
    ports: BTreeMap<Cable, Port>,
}

#[derive(Debug)]
struct Port {
    id: PortId,
    socket: PathBuf,
    /// What the cable is like when nothing is wrong with it.
    beginning: Conditions,
    /// The capture, relative to the report.
    pcap: Option<String>,
}

impl Net {
    /// Makes the switches; sockets are made in `sockets`, captures in `report`/pcap: of cables that ask for it, or of all.
    pub(super) fn new(
        scenario: &Scenario,
        seed: u64,
        sockets: &Path,
        report: &Path,
        capture_all: bool,
    ) -> anyhow::Result<Self> {
        let mut switches = BTreeMap::new();
        for name in scenario.networks.keys() {
            switches.insert(name.to_string(), Switch::new(name, seed)?);
        }
        let mut ports = BTreeMap::new();
        for (index, cable) in scenario.cables().into_iter().enumerate() {
            let Some(switch) = switches.get(cable.network.as_str()) else { continue };
            // Short names: the path of a socket has 107 bytes.
            let socket = sockets.join(format!("n{index}.sock"));
            let id = switch.port(&cable.to_string(), &socket)?;
            let (beginning, pcap) = scenario.beginning(&cable);
            let pcap = (pcap || capture_all).then(|| format!("pcap/{}-{}.pcapng", cable.node, cable.network));
            if let Some(file) = &pcap {
                fs_err::create_dir_all(report.join("pcap"))?;
                switch.capture(id, &report.join(file))?;
            }
            ports.insert(cable, Port { id, socket, beginning, pcap });
        }
        let net = Net { switches, ports };
        net.ports.keys().try_for_each(|cable| net.heal(cable))?;
        Ok(net)
    }

    /// The socket that QEMU plugs the cable's card into.
    pub(super) fn socket(&self, cable: &Cable) -> Option<&Path> {
        Some(&self.ports.get(cable)?.socket)
    }

    /// From now on the cable does this to frames.
    pub(super) fn set(&self, cable: &Cable, conditions: &Conditions) -> Result<(), Failure> {
        let Some((switch, port)) = self.at(cable) else { return Ok(()) };
        for direction in [Direction::ToNode, Direction::FromNode] {
            switch.set(port.id, direction, one_way(conditions, direction))?;
        }
        Ok(())
    }

    /// The cable is as it was in the beginning.
    pub(super) fn heal(&self, cable: &Cable) -> Result<(), Failure> {
        self.ports.get(cable).map_or(Ok(()), |port| self.set(cable, &port.beginning))
    }

    /// A plug into the network `name` for this program.
    pub(super) fn tap(&self, name: &str) -> Result<Tap, Failure> {
        match self.switches.get(name) {
            Some(switch) => switch.tap("outside"),
            None => Err(Failure::new(Kind::Internal, format!("there is no network {name}"))),
        }
    }

    fn at(&self, cable: &Cable) -> Option<(&Switch, &Port)> {
        Some((self.switches.get(cable.network.as_str())?, self.ports.get(cable)?))
    }

    /// Frames that nodes sent so far.
    pub(super) fn frames(&self) -> u64 {
        let sent = |(cable, port): (&Cable, &Port)| {
            let (switch, _) = self.at(cable)?;
            Some(switch.counters(port.id).ok()?.from_node.frames)
        };
        self.ports.iter().filter_map(sent).sum()
    }

    /// What went over the cables.
    pub(super) fn links(&self) -> Vec<result::Link> {
        let link = |(cable, port): (&Cable, &Port)| {
            let (switch, _) = self.at(cable)?;
            let counters = switch.counters(port.id).ok()?;
            Some(result::Link {
                node: cable.node.to_string(),
                network: cable.network.to_string(),
                sent: traffic(&counters.from_node),
                received: traffic(&counters.to_node),
                pcap: port.pcap.clone(),
            })
        };
        self.ports.iter().filter_map(link).collect()
    }
}

fn traffic(counted: &switch::Traffic) -> result::Traffic {
    let lost = counted.dropped.cut + counted.dropped.loss;
    result::Traffic {
        frames: counted.frames,
        bytes: counted.bytes,
        lost,
        dropped: counted.dropped.total().saturating_sub(lost),
    }
}

fn one_way(conditions: &Conditions, direction: Direction) -> switch::Conditions {
    let cut = match conditions.cut {
        Cut::Whole => false,
        Cut::Both => true,
        Cut::In => direction == Direction::ToNode,
        Cut::Out => direction == Direction::FromNode,
    };
    switch::Conditions {
        cut,
        loss: conditions.loss.share(),
        duplicate: conditions.duplicate.share(),
        delay: conditions.delay.duration(),
        jitter: conditions.jitter.duration(),
        rate: conditions.rate.map(|rate| rate.bits()),
    }
}

/// What a person reads of a cable's conditions.
pub(super) fn words(conditions: &Conditions) -> String {
    let mut words = Vec::new();
    match conditions.cut {
        Cut::Whole => {}
        Cut::Both => words.push("cut".to_owned()),
        Cut::In => words.push("cut towards the node".to_owned()),
        Cut::Out => words.push("cut from the node".to_owned()),
    }
    let mut say = |name: &str, value: String, zero: bool| {
        if !zero {
            words.push(format!("{name} {value}"));
        }
    };
    let percent = |share: f64| format!("{} %", share * 100.0);
    say("loss", percent(conditions.loss.share()), conditions.loss.share() == 0.0);
    say("delay", conditions.delay.to_string(), conditions.delay.duration().is_zero());
    say("jitter", conditions.jitter.to_string(), conditions.jitter.duration().is_zero());
    say("duplicate", percent(conditions.duplicate.share()), conditions.duplicate.share() == 0.0);
    if let Some(rate) = conditions.rate {
        say("rate", rate.to_string(), false);
    }
    if words.is_empty() { "perfect".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::spec::{Fraction, Span};

    #[test]
    fn a_one_way_cut_is_seen_from_the_node() {
        let cut = |cut| {
            let conditions = Conditions { cut, ..Conditions::default() };
            (one_way(&conditions, Direction::ToNode).cut, one_way(&conditions, Direction::FromNode).cut)
        };
        assert_eq!(cut(Cut::Whole), (false, false));
        assert_eq!(cut(Cut::Both), (true, true));
        assert_eq!(cut(Cut::In), (true, false), "the node hears nothing");
        assert_eq!(cut(Cut::Out), (false, true), "the node is not heard");
    }

    #[test]
    fn conditions_are_told_in_words() {
        assert_eq!(words(&Conditions::default()), "perfect");
        let bad = Conditions {
            cut: Cut::In,
            loss: Fraction::new(0.1).unwrap(),
            delay: Span::millis(20),
            ..Conditions::default()
        };
        assert_eq!(words(&bad), "cut towards the node, loss 10 %, delay 20ms");
    }
}
