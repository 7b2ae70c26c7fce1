//! Steps: one action each, modifiers that fit it, and nodes that are in a state for it.

use std::collections::{BTreeMap, BTreeSet};

use super::actions::{action, default_limit, fitting_modifiers, only_action};
use super::{ALL, EVERY, Place, default_on};
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::file::{File, On, StepFile};
use crate::scenario::spec::model::{Action, BootWhen, Cable, Check, Node, Nodes, Step};
use crate::scenario::spec::text::Text;
use crate::scenario::spec::words::Name;

/// What a node is doing when a step begins, if no fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It is off.
    Off,
    /// It was switched on, and nobody has waited for it.
    Booting,
    /// It is ready.
    Up,
    /// Its CPUs are stopped; `up`: it was ready before.
    Paused { up: bool },
    /// It boots, and must not get ready.
    Doomed,
}

/// A node's life, and the step that began it.
#[derive(Debug, Clone)]
struct State<'a> {
    life: Life,
    since: Option<&'a str>,
}

pub(super) fn steps(shape: &File, place: Place<'_>, problems: &mut Problems<'_>) -> Vec<Step> {
    let mut walk = Walk {
        place,
        saves: shape.step.iter().filter_map(|step| step.save.as_ref()).map(Name::as_str).collect(),
        saved: BTreeMap::new(),
        states: place
            .nodes
            .values()
            .map(|node| (&node.name, State { life: born(node), since: None }))
            .collect(),
        steps: Vec::new(),
    };
    let mut names = BTreeSet::new();
    for (index, file) in shape.step.iter().enumerate() {
        if file.name.trim().is_empty() {
            problems
                .add(spot!["step", index, "name"], "the step has an empty name")
                .hint("say what it proves");
        } else if !names.insert(file.name.trim()) {
            let text = format!("two steps are called `{}`", file.name.escape_debug());
            problems.add(spot!["step", index, "name"], text);
        }
        walk.step(index, file, problems);
    }
    walk.steps
}

fn born(node: &Node) -> Life {
    match (node.boot, node.doomed) {
        (BootWhen::Manual, _) => Life::Off,
        (BootWhen::Auto, false) => Life::Booting,
        (BootWhen::Auto, true) => Life::Doomed,
    }
}

/// What an action needs of its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// That they answer: ready, or else they are waited for.
    Answer,
    /// That they boot or are ready.
    On,
    /// That they run anything.
    Running,
    /// That they are off.
    Off,
    /// That they are paused.
    Paused,
    /// That they are doomed and on.
    Doomed,
    /// Nothing.
    Nothing,
}

impl Needs {
    fn of(action: &Action) -> Self {
        match action {
            Action::Run(_)
            | Action::Unit(_)
            | Action::Port(_)
            | Action::Copy { .. }
            | Action::Fetch { .. }
            | Action::Reboot
            | Action::Crash
            | Action::PowerOff
            | Action::Check { .. }
            | Action::PowerCuts(_) => Needs::Answer,
            Action::Ready | Action::PowerCut | Action::Pause => Needs::On,
            Action::Console(_) | Action::Screenshot(_) => Needs::Running,
            Action::Start => Needs::Off,
            Action::Resume => Needs::Paused,
            Action::Refused(_) => Needs::Doomed,
            Action::Link { .. } | Action::Heal { .. } | Action::Wait(_) => Needs::Nothing,
        }
    }

    fn are_met(self, life: Life) -> bool {
        match self {
            Needs::Answer | Needs::On => matches!(life, Life::Booting | Life::Up),
            Needs::Running => matches!(life, Life::Booting | Life::Up | Life::Doomed),
            Needs::Off => life == Life::Off,
            Needs::Paused => matches!(life, Life::Paused { .. }),
            Needs::Doomed => life == Life::Doomed,
            Needs::Nothing => true,
        }
    }
}

/// The walk through the steps.
struct Walk<'a> {
    place: Place<'a>,
    /// Every name that some step saves.
    saves: BTreeSet<&'a str>,
    /// Which nodes have saved a name so far.
    saved: BTreeMap<&'a str, BTreeSet<Name>>,
    states: BTreeMap<&'a Name, State<'a>>,
    steps: Vec<Step>,
}

impl<'a> Walk<'a> {
    fn step(&mut self, index: usize, file: &'a StepFile, problems: &mut Problems<'_>) {
        let Some(word) = only_action(index, file, problems) else { return };
        fitting_modifiers(index, file, word, problems);
        let Some(mut action) = action(index, file, word, &self.saves, problems) else { return };
        let Some(on) = self.nodes(index, file, &action, problems) else { return };
        if let Action::Link { cables, .. } | Action::Heal { cables } = &mut action {
            *cables = self.cables(index, file, &on, problems);
        }
        if (file.equal || file.distinct) && on.len() == 1 {
            let key = if file.equal { "equal" } else { "distinct" };
            let text =
                format!("`{key}` compares the outputs of several nodes, and the step is for `{on}` only");
            problems.add(spot!["step", index, Part::Name(key.to_owned())], text);
        }
        self.references(index, &action, &on, problems);
        self.possible(index, &action, &on, problems);
        let needs = Needs::of(&action);
        if needs == Needs::Answer {
            self.wait_for(&on);
        }
        let step = Step {
            name: file.name.trim().to_owned(),
            limit: file.limit.unwrap_or_else(|| default_limit(&action)),
            up: self.up(),
            on,
            action,
            implied: false,
            long: file.long,
        };
        self.change(&step, &file.name);
        if let Some(name) = &file.save {
            self.saved.entry(name.as_str()).or_default().extend(step.on.iter().cloned());
        }
        self.steps.push(step);
    }

    fn up(&self) -> BTreeSet<Name> {
        self.states.iter().filter(|(_, s)| s.life == Life::Up).map(|(name, _)| (*name).clone()).collect()
    }

    /// Puts a step in front that waits for those of `on` that nobody waited for.
    fn wait_for(&mut self, on: &Nodes) {
        let booting = on.iter().filter(|name| self.states.get(name).is_some_and(|s| s.life == Life::Booting));
        let Some(on) = Nodes::new(booting.cloned()) else { return };
        let step = Step {
            name: format!("{on} {} ready", if on.len() == 1 { "is" } else { "are" }),
            limit: default_limit(&Action::Ready),
            up: self.up(),
            on,
            action: Action::Ready,
            implied: true,
            long: false,
        };
        self.change(&step, "");
        self.steps.push(step);
    }

    /// What the nodes are after `step`.
    fn change(&mut self, step: &Step, name: &'a str) {
        for node in step.on.iter() {
            let doomed = self.place.nodes.get(node).is_some_and(|n| n.doomed);
            let Some(state) = self.states.get_mut(node) else { continue };
            let next = match (&step.action, state.life) {
                (Action::Start, _) => {
                    if doomed {
                        Life::Doomed
                    } else {
                        Life::Booting
                    }
                }
                (
                    Action::Ready | Action::Reboot | Action::Crash | Action::PowerCut | Action::PowerCuts(_),
                    _,
                ) => Life::Up,
                (Action::PowerOff | Action::Refused(_), _) => Life::Off,
                (Action::Pause, life) => Life::Paused { up: life == Life::Up },
                (Action::Resume, Life::Paused { up }) => {
                    if up {
                        Life::Up
                    } else {
                        Life::Booting
                    }
                }
                (_, life) => life,
            };
            if next != state.life {
                *state = State { life: next, since: (!name.is_empty()).then_some(name) };
            }
        }
    }

    /// The nodes of a step. Those that stand for several leave out who is in no state for it.
    fn nodes(
        &self,
        index: usize,
        file: &StepFile,
        action: &Action,
        problems: &mut Problems<'_>,
    ) -> Option<Nodes> {
        let needs = Needs::of(action);
        if let Action::Wait(_) = action {
            return Nodes::new(self.place.nodes.keys().cloned());
        }
        let On(words) = file.on.clone().unwrap_or_else(default_on);
        if words.is_empty() {
            problems.add(spot!["step", index, "on"], "the step is for no node");
            return None;
        }
        let mut names = Vec::new();
        let mut wrong = false;
        for (item, word) in words.iter().enumerate() {
            let spot = || spot!["step", index, "on", item];
            if [ALL, EVERY].contains(&word.as_str()) {
                let mut meant =
                    self.place.nodes.values().filter(|node| node.product || word == EVERY).peekable();
                if meant.peek().is_none() {
                    problems
                        .add(
                            spot(),
                            format!("`{word}` is for nodes with a product profile, and there is none"),
                        )
                        .hint(format!("name the nodes, or write `{EVERY}`"));
                    wrong = true;
                    continue;
                }
                names.extend(meant.filter(|node| self.is_fit(node, needs)).map(|node| node.name.clone()));
                continue;
            }
            match self.place.node(word, spot(), problems) {
                Some(node) if self.is_fit(node, needs) => names.push(node.name.clone()),
                Some(node) => {
                    self.explain(node, action, spot(), problems);
                    wrong = true;
                }
                None => wrong = true,
            }
        }
        if wrong {
            return None;
        }
        let nodes = Nodes::new(names);
        if nodes.is_none() {
            let what = match needs {
                Needs::Off => "off",
                Needs::Paused => "paused",
                Needs::Doomed => "doomed and on",
                _ => "up",
            };
            problems.add(spot!["step", index, "on"], format!("no node is {what} when this step begins"));
        }
        nodes
    }

    fn is_fit(&self, node: &Node, needs: Needs) -> bool {
        self.states.get(&node.name).is_some_and(|state| needs.are_met(state.life))
    }

    /// Says why `node` is in no state for `action`.
    fn explain(&self, node: &Node, action: &Action, spot: Vec<Part>, problems: &mut Problems<'_>) {
        let Some(state) = self.states.get(&node.name) else { return };
        let name = &node.name;
        let since = match (state.since, state.life) {
            (Some(step), _) => format!(" since the step `{step}`"),
            (None, Life::Off) => " from the beginning (`boot = \"manual\"`)".to_owned(),
            (None, _) => String::new(),
        };
        let (is, help) = match state.life {
            Life::Off => (format!("is off{since}"), "put a step with `start = true` before this one"),
            Life::Paused { .. } => {
                (format!("is paused{since}"), "put a step with `resume = true` before this one")
            }
            Life::Doomed => (
                "is doomed and does not get ready".to_owned(),
                "a step with `refused` says how it must stop; after that it is off",
            ),
            Life::Booting | Life::Up if *action == Action::Resume => {
                ("is not paused here".to_owned(), "a step with `pause = true` does that")
            }
            Life::Booting | Life::Up if matches!(action, Action::Refused(_)) => (
                "is not doomed".to_owned(),
                "give it `damage = { partition = \"root\" }`, or `doomed = true`",
            ),
            Life::Booting | Life::Up => {
                (format!("is on here{since}"), "a step with `power_off = true` switches it off")
            }
        };
        problems.add(spot, format!("`{}` cannot be done: `{name}` {is}", action.word())).hint(help);
    }

    fn cables(&self, index: usize, file: &StepFile, on: &Nodes, problems: &mut Problems<'_>) -> Vec<Cable> {
        let nodes = on.iter().filter_map(|name| self.place.nodes.get(name));
        let Some(link) = &file.link else { return nodes.flat_map(Node::cables).collect() };
        let key = if link.network.is_some() {
            spot!["step", index, "link", "network"]
        } else {
            spot!["step", index, "link"]
        };
        nodes
            .filter_map(|node| self.place.cable(node, link.network.as_deref(), key.clone(), problems))
            .collect()
    }

    /// Checks that nothing in the scenario could make come true.
    fn possible(&self, index: usize, action: &Action, on: &Nodes, problems: &mut Problems<'_>) {
        let Action::Check { check, .. } = action else { return };
        let others = |node: &'a Node| self.place.nodes.values().filter(move |other| other.name != node.name);
        let shared = |one: &Node, other: &Node| {
            one.nics.iter().any(|nic| other.nics.iter().any(|far| far.network == nic.network))
        };
        for node in on.iter().filter_map(|name| self.place.nodes.get(name)) {
            let spot = spot!["step", index, "check"];
            let tells_time =
                |other: &&Node| other.serves.as_ref().is_some_and(|serves| serves.ntp) && shared(node, other);
            if *check == Check::Clock && !others(node).any(|other| tells_time(&other)) {
                problems
                    .add(spot, format!("nobody tells `{}` the time", node.name))
                    .hint("give a node with the profile `edge` a card on its network and `serves.ntp`");
            } else if *check == Check::Reach && !others(node).any(|other| shared(node, other)) {
                problems.add(spot, format!("there is nobody whom `{}` could reach", node.name));
            }
        }
    }

    /// Every `{name}` must have one meaning on each node of the step.
    fn references(&self, index: usize, action: &Action, on: &Nodes, problems: &mut Problems<'_>) {
        let texts: Vec<(Vec<Part>, &Text)> = match action {
            Action::Run(run) => [(spot!["step", index, "run"], &run.script)]
                .into_iter()
                .chain(run.expect.stdout.iter().map(|text| (spot!["step", index, "stdout"], text)))
                .collect(),
            Action::PowerCuts(cuts) => vec![
                (spot!["step", index, "power_cuts", "write"], &cuts.write),
                (spot!["step", index, "power_cuts", "verify"], &cuts.verify),
            ],
            _ => return,
        };
        for (spot, text) in texts {
            for name in text.references().collect::<BTreeSet<_>>() {
                let Some(savers) = self.saved.get(name) else {
                    problems
                        .add(
                            spot.clone(),
                            format!("`{{{name}}}` is not known yet: only a later step saves it"),
                        )
                        .hint("move the step with `save` before this one");
                    continue;
                };
                if savers.len() > 1
                    && let Some(without) = on.iter().find(|node| !savers.contains(*node))
                {
                    let text = format!(
                        "`{{{name}}}` was saved by several nodes, but not by `{without}`: whose is meant?"
                    );
                    problems.add(spot.clone(), text).hint("save it in a step for one node");
                }
            }
        }
    }
}
