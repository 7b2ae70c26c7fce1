//! systemd units: reading them, and the links that `systemctl preset-all` and `systemctl mask` would make.
//!
//! [`Units::of`] reads every unit of a tree with its drop-ins; [`apply`] decides by presets which of them are enabled and links
//! them below `/etc/systemd/system`. What a profile says about units goes before all preset files. The rules are those
//! of systemd.unit(5), systemd.preset(5) and systemctl(1).

mod file;
mod preset;

use std::collections::{BTreeMap, BTreeSet};

use crate::rootfs::step::{StepError, names, put, text};
use crate::tree::{Entry, Kind, Tree};

pub use file::UnitFile;
pub use preset::{Decision, Presets};

/// Owner of what this step makes.
const STEP: &str = "kiln:units";
/// Where units lie, strongest first.
const FOLDERS: [&str; 3] = ["etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"];
/// Where links go.
const ENABLED: &str = "etc/systemd/system";
/// The folders beside a unit that name others, and the directive in `[Install]` which fills them.
const LINKS: [(&str, &str); 3] = [("WantedBy", "wants"), ("RequiredBy", "requires"), ("UpheldBy", "upholds")];
/// What a unit's name may end in.
const KINDS: [&str; 11] = [
    "service",
    "socket",
    "target",
    "mount",
    "automount",
    "timer",
    "path",
    "slice",
    "swap",
    "scope",
    "device",
];

/// What a profile decides about units.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// Enabled whatever presets say.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Not enabled, whatever presets and other units' `Also=` say.
    #[serde(default)]
    pub disable: Vec<String>,
    /// Cannot be started at all.
    #[serde(default)]
    pub mask: Vec<String>,
}

/// Why units cannot be enabled as asked.
#[derive(Debug, thiserror::Error)]
pub enum UnitsError {
    /// A file could not be read, parsed or put in the tree.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The profile names a unit that is not there.
    #[error("there is no unit `{name}` to {verb}{}", near.iter().map(|n| format!(", did you mean `{n}`")).collect::<String>())]
    Unknown {
        /// As written in the profile.
        name: String,
        /// `enable` or `disable`.
        verb: &'static str,
        /// The most similar name, if there is one.
        near: Option<String>,
    },
    /// The profile enables a unit that says nothing about who wants it.
    #[error(
        "unit `{0}` has no [Install] section, so that it cannot be enabled: another unit must want it, or a drop-in add `WantedBy=`"
    )]
    NoInstall(String),
}

/// One unit.
#[derive(Debug, Clone, Default)]
pub struct Unit {
    /// Path in the tree, without leading slash.
    pub path: String,
    /// Its text with all drop-ins applied.
    pub file: UnitFile,
    /// Whether it is switched off by a link to `/dev/null` or an empty file.
    pub masked: bool,
    /// The unit that this name is only another name of.
    pub alias_of: Option<String>,
}

/// All units of a tree by name.
#[derive(Debug, Clone, Default)]
pub struct Units {
    /// By file name, templates (`getty@.service`) included.
    pub by_name: BTreeMap<String, Unit>,
    /// What `.wants`, `.requires` and `.upholds` folders say: unit to the names of links in its folders, with the folder and
    /// the text of the link.
    pub links: BTreeMap<String, Vec<Link>>,
}

/// A link in a `.wants` folder or one like it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Path of the link in the tree.
    pub path: String,
    /// The unit that is wanted.
    pub unit: String,
}

impl Units {
    /// Reads all units of `tree`.
    pub fn of(tree: &Tree) -> Result<Self, StepError> {
        let mut units = Units::default();
        for folder in FOLDERS {
            for name in names(tree, folder) {
                if is_unit(&name) && !units.by_name.contains_key(&name) {
                    let unit = read(tree, folder, &name)?;
                    units.by_name.insert(name, unit);
                }
            }
            units.read_links(tree, folder);
        }
        Ok(units)
    }

    fn read_links(&mut self, tree: &Tree, folder: &str) {
        let folders: Vec<_> =
            tree.children(folder).filter(|(_, e)| e.is_dir()).map(|(p, _)| p.clone()).collect();
        for dir in folders {
            let Some((unit, kind)) = dir.name().rsplit_once('.') else { continue };
            if !LINKS.iter().any(|(_, k)| *k == kind) {
                continue;
            }
            for (path, entry) in tree.children(&dir) {
                if matches!(entry.kind, Kind::Symlink { .. }) {
                    let link = Link { path: path.to_string(), unit: path.name().to_owned() };
                    self.links.entry(unit.to_owned()).or_default().push(link);
                }
            }
        }
    }

    /// The unit behind `name`: aliases are followed, an instance (`getty@tty1.service`) finds its template.
    pub fn get(&self, name: &str) -> Option<(&str, &Unit)> {
        let mut name = name.to_owned();
        for _ in 0..8 {
            let (key, unit) = self
                .by_name
                .get_key_value(&name)
                .or_else(|| self.by_name.get_key_value(&template(&name)?))?;
            match &unit.alias_of {
                Some(target) => name.clone_from(target),
                None => return Some((key, unit)),
            }
        }
        None
    }

    /// Names of all units that a boot to `default.target` starts or lets be started by a socket, timer or path, instances with
    /// their instance name. Names without a unit are in it too.
    pub fn started(&self) -> BTreeSet<String> {
        let mut todo = vec!["default.target".to_owned(), "sysinit.target".into(), "basic.target".into()];
        let mut found = BTreeSet::new();
        while let Some(name) = todo.pop() {
            if !found.insert(name.clone()) {
                continue;
            }
            let Some((key, unit)) = self.get(&name) else { continue };
            if unit.masked {
                continue;
            }
            for key in [key, &name] {
                todo.extend(self.links.get(key).into_iter().flatten().map(|l| l.unit.clone()));
            }
            for directive in ["Wants", "Requires", "BindsTo", "Upholds"] {
                let named = unit.file.words("Unit", directive).map(|w| expand(w, &name));
                todo.extend(named);
            }
            if let Some((stem, kind)) = key.rsplit_once('.')
                && matches!(kind, "socket" | "timer" | "path")
            {
                let section = if kind == "socket" {
                    ("Socket", "Service")
                } else if kind == "timer" {
                    ("Timer", "Unit")
                } else {
                    ("Path", "Unit")
                };
                let named = unit.file.words(section.0, section.1).next().map(str::to_owned);
                let accepts = unit.file.words("Socket", "Accept").last().is_some_and(file::is_true);
                let implied = if accepts { format!("{stem}@.service") } else { format!("{stem}.service") };
                todo.push(named.unwrap_or(implied));
            }
        }
        found
    }
}

/// Makes the links: masks first, then every unit as the profile's wishes or, where they are silent, the presets say. Returns the
/// names of the units that are enabled.
pub fn apply(tree: &mut Tree, wishes: &Wishes) -> Result<BTreeSet<String>, UnitsError> {
    for name in &wishes.mask {
        put(tree, &format!("{ENABLED}/{name}"), Entry::symlink("/dev/null", STEP))?;
    }
    let units = Units::of(tree)?;
    let presets = Presets::of(tree, wishes)?;
    for (verb, list) in [("enable", &wishes.enable), ("disable", &wishes.disable)] {
        for name in list.iter().filter(|n| !n.contains(['*', '?', '['])) {
            let Some((_, unit)) = units.get(name) else {
                return Err(UnitsError::Unknown { name: name.clone(), verb, near: near(&units, name) });
            };
            if verb == "enable" && !unit.file.has("Install") {
                return Err(UnitsError::NoInstall(name.clone()));
            }
        }
    }
    let mut todo: Vec<String> = Vec::new();
    for (name, unit) in &units.by_name {
        if unit.masked || unit.alias_of.is_some() {
            continue;
        }
        if let Decision::Enable(instances) = presets.decide(name) {
            match name.split_once("@.").filter(|_| !instances.is_empty()) {
                Some((stem, kind)) => todo.extend(instances.iter().map(|i| format!("{stem}@{i}.{kind}"))),
                None => todo.push(name.clone()),
            }
        }
    }
    todo.extend(wishes.enable.iter().filter(|n| template(n).is_some_and(|t| t != **n)).cloned());
    let mut enabled = BTreeSet::new();
    while let Some(name) = todo.pop() {
        let unwanted = wishes.disable.contains(&name);
        let Some((key, unit)) = units.get(&name).filter(|(_, u)| !u.masked && !unwanted) else { continue };
        if !unit.file.has("Install") || !enabled.insert(name.clone()) {
            continue;
        }
        install(tree, key, &name, unit)?;
        todo.extend(unit.file.words("Install", "Also").map(|w| expand(w, &name)));
    }
    Ok(enabled)
}

/// Links one unit as its `[Install]` section says.
fn install(tree: &mut Tree, key: &str, name: &str, unit: &Unit) -> Result<(), StepError> {
    // A template that is enabled without an instance takes its default one.
    let default = unit.file.words("Install", "DefaultInstance").last();
    let name = match (name.split_once("@."), default) {
        (Some((stem, kind)), Some(instance)) => format!("{stem}@{instance}.{kind}"),
        _ => name.to_owned(),
    };
    let target = format!("/{}", unit.path);
    for (directive, folder) in LINKS {
        for by in unit.file.words("Install", directive) {
            let by = expand(by, &name);
            // A template without instance can only be wanted by another template.
            if name.contains("@.") && !by.contains("@.") {
                continue;
            }
            put(tree, &format!("{ENABLED}/{by}.{folder}/{name}"), Entry::symlink(target.clone(), STEP))?;
        }
    }
    for alias in unit.file.words("Install", "Alias") {
        let alias = expand(alias, &name);
        if alias != key {
            put(tree, &format!("{ENABLED}/{alias}"), Entry::symlink(target.clone(), STEP))?;
        }
    }
    Ok(())
}

fn read(tree: &Tree, folder: &str, name: &str) -> Result<Unit, StepError> {
    let path = format!("{folder}/{name}");
    let mut unit = Unit { path: path.clone(), ..Unit::default() };
    if let Some(Entry { kind: Kind::Symlink { target }, .. }) = tree.get(&path) {
        let file = target.rsplit('/').next().unwrap_or_default();
        if target == "/dev/null" {
            unit.masked = true;
            return Ok(unit);
        }
        if file != name && is_unit(file) {
            unit.alias_of = Some(file.to_owned());
            return Ok(unit);
        }
    }
    let text_of = text(tree, &path)?.unwrap_or_default();
    unit.masked = text_of.is_empty();
    unit.file.add(&text_of);
    for text in drop_ins(tree, name)? {
        unit.file.add(&text);
    }
    Ok(unit)
}

/// The drop-ins of a unit in the order in which they apply: by file name, a stronger folder replacing a weaker one's file.
fn drop_ins(tree: &Tree, name: &str) -> Result<Vec<String>, StepError> {
    let kind = name.rsplit('.').next().unwrap_or_default();
    let mut dirs = vec![format!("{kind}.d")];
    let stem = &name[..name.len() - kind.len()];
    let dashes = stem.match_indices('-').map(|(at, _)| format!("{}.{kind}.d", &stem[..=at]));
    dirs.extend(dashes);
    dirs.extend(template(name).filter(|t| t != name).map(|t| format!("{t}.d")));
    dirs.push(format!("{name}.d"));
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for dir in dirs {
        for folder in FOLDERS.iter().rev() {
            for file in names(tree, &format!("{folder}/{dir}")) {
                if file.ends_with(".conf") {
                    files.insert(file.clone(), format!("{folder}/{dir}/{file}"));
                }
            }
        }
    }
    let mut found = Vec::new();
    for path in files.into_values() {
        found.extend(text(tree, &path)?);
    }
    Ok(found)
}

/// Whether `name` is the name of a unit.
pub fn is_unit(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, kind)| !stem.is_empty() && KINDS.contains(&kind))
}

/// `getty@.service` for `getty@tty1.service`; `None` for a unit that is no instance and no template.
fn template(name: &str) -> Option<String> {
    let (stem, rest) = name.split_once('@')?;
    let (_, kind) = rest.rsplit_once('.')?;
    Some(format!("{stem}@.{kind}"))
}

/// Replaces the specifiers `%i`, `%I`, `%n`, `%N`, `%p`, `%j`, `%%` in `text` by parts of the unit's `name`.
fn expand(text: &str, name: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(s, _)| s);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('i' | 'I')) => out += instance,
            ('%', Some('n')) => out += name,
            ('%', Some('N')) => out += stem,
            ('%', Some('p' | 'P')) => out += prefix,
            ('%', Some('j' | 'J')) => out += prefix.rsplit('-').next().unwrap_or(prefix),
            ('%', Some('%')) => out.push('%'),
            ('%', Some(other)) => out.extend(['%', other]),
            (c, _) => out.push(c),
        }
    }
    out
}

fn near(units: &Units, name: &str) -> Option<String> {
    let scored = units.by_name.keys().map(|n| (strsim::jaro_winkler(n, name), n));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.8).then(|| best.1.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        for (path, text) in files {
            put(&mut tree, &format!("usr/lib/systemd/{path}"), Entry::file(0o644, *text, "pkg")).unwrap();
        }
        tree
    }

    fn links(tree: &Tree) -> Vec<String> {
        let made = tree.below("etc/systemd/system").filter_map(|(p, e)| match &e.kind {
            Kind::Symlink { target } => {
                Some(format!("{} -> {target}", p.strip_prefix("etc/systemd/system/").unwrap()))
            }
            _ => None,
        });
        made.collect()
    }

    const SSH: &str = "[Unit]\n[Service]\nExecStart=/usr/sbin/sshd\n[Install]\nWantedBy=multi-user.target\nAlias=sshd.service\nAlso=keys.service\n";

    #[test]
    fn enables_by_preset_with_also_alias_default_instance_and_drop_ins() {
        let mut tree = tree(&[
            ("system-preset/90.preset", "enable ssh.service\nenable getty@.service\ndisable *\n"),
            ("system/ssh.service", SSH),
            ("system/keys.service", "[Install]\nRequiredBy=ssh.service\n"),
            ("system/other.service", "[Install]\nWantedBy=multi-user.target\n"),
            ("system/getty@.service", "[Service]\n[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n"),
            ("system/ssh.service.d/x.conf", "[Install]\nUpheldBy=a.target\n"),
        ]);
        let enabled = apply(&mut tree, &Wishes::default()).unwrap();
        assert_eq!(enabled.len(), 3);
        let unit = "/usr/lib/systemd/system";
        assert_eq!(
            links(&tree),
            [
                format!("a.target.upholds/ssh.service -> {unit}/ssh.service"),
                format!("getty.target.wants/getty@tty1.service -> {unit}/getty@.service"),
                format!("multi-user.target.wants/ssh.service -> {unit}/ssh.service"),
                format!("ssh.service.requires/keys.service -> {unit}/keys.service"),
                format!("sshd.service -> {unit}/ssh.service"),
            ]
        );
    }

    #[test]
    fn wishes_go_before_presets_and_masks_before_all() {
        let mut tree = tree(&[
            ("system-preset/90.preset", "enable ssh.service\ndisable *\n"),
            ("system/ssh.service", SSH),
            ("system/keys.service", "[Install]\nWantedBy=a.target\n"),
            ("system/m.service", "[Install]\nWantedBy=a.target\n"),
            ("system/c@.service", "[Service]\n[Install]\nWantedBy=a.target\n"),
        ]);
        let wishes = Wishes {
            enable: vec!["c@ttyS0.service".into()],
            disable: vec!["keys.service".into()],
            mask: vec!["m.service".into()],
        };
        apply(&mut tree, &wishes).unwrap();
        assert_eq!(
            links(&tree),
            [
                "a.target.wants/c@ttyS0.service -> /usr/lib/systemd/system/c@.service",
                "m.service -> /dev/null",
                "multi-user.target.wants/ssh.service -> /usr/lib/systemd/system/ssh.service",
                "sshd.service -> /usr/lib/systemd/system/ssh.service",
            ]
        );
    }

    #[test]
    fn unknown_units_and_units_without_install_are_refused() {
        let mut tree = tree(&[("system/plain.service", "[Service]\nExecStart=/x\n")]);
        let wish = |name: &str| Wishes { enable: vec![name.into()], ..Wishes::default() };
        let error = apply(&mut tree, &wish("plian.service")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no unit `plian.service` to enable, did you mean `plain.service`"
        );
        assert!(matches!(apply(&mut tree, &wish("plain.service")), Err(UnitsError::NoInstall(_))));
    }

    #[test]
    fn started_follows_wants_sockets_and_aliases() {
        let mut tree = tree(&[
            ("system/multi-user.target", "[Unit]\nRequires=basic.target\n"),
            ("system/a.socket", "[Socket]\nListenStream=22\n[Install]\nWantedBy=multi-user.target\n"),
            ("system/a.service", "[Service]\nExecStart=/a\n"),
            ("system/idle.service", "[Service]\nExecStart=/b\n"),
        ]);
        put(&mut tree, "usr/lib/systemd/system/default.target", Entry::symlink("multi-user.target", "p"))
            .unwrap();
        apply(&mut tree, &Wishes::default()).unwrap();
        let started = Units::of(&tree).unwrap().started();
        assert!(started.contains("a.socket") && started.contains("a.service"), "{started:?}");
        assert!(!started.contains("idle.service"));
    }
}
