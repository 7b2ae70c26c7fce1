//! `/etc/pam.d/common-*` as `pam-auth-update` makes them, and the few files of `/etc` that packages ship as templates.
//!
//! Each package with a login module ships a profile in `/usr/share/pam-configs`; the templates in `/usr/share/pam` have a Primary
//! block, of which one module must succeed, and an Additional block, which all run. `end` in a control such as
//! `[success=end default=ignore]` becomes the number of lines to jump over to leave the Primary block. Profiles with `Default: yes`
//! are taken, higher `Priority` first, then by name.

use std::collections::BTreeMap;

use crate::rootfs::step::{StepError, names, put, text};
use crate::tree::{Entry, Tree, TreePath};

/// Owner of what this step makes.
const STEP: &str = "kiln:pam";
/// Where templates lie.
const TEMPLATES: &str = "usr/share/pam";
/// Where profiles lie.
const PROFILES: &str = "usr/share/pam-configs";
/// The files to make: name after `common-`, the field prefix of profiles, and whether people sit at it.
const FILES: [(&str, &str, bool); 5] = [
    ("account", "Account", true),
    ("auth", "Auth", true),
    ("password", "Password", true),
    ("session", "Session", true),
    ("session-noninteractive", "Session", false),
];
/// Lines of the templates around the two blocks.
const PRIMARY: &str = "# here are the per-package modules (the \"Primary\" block)";
const FALLBACK: &str = "# here's the fallback if no module succeeds";
const ADDITIONAL: &str = "# and here are more per-package modules (the \"Additional\" block)";
const END: &str = "# end of pam-auth-update config";

/// A profile: its fields by name, those of several lines as lines.
#[derive(Debug, Default)]
struct Profile {
    fields: BTreeMap<String, Vec<String>>,
}

impl Profile {
    fn parse(text: &str) -> Self {
        let mut profile = Profile::default();
        let mut key = String::new();
        for line in text.lines() {
            if line.starts_with([' ', '\t']) {
                let lines = profile.fields.entry(key.clone()).or_default();
                lines.extend(Some(line.trim_start().to_owned()).filter(|l| !l.is_empty()));
            } else if let Some((name, value)) = line.split_once(':') {
                name.clone_into(&mut key);
                let value = value.trim();
                profile
                    .fields
                    .insert(key.clone(), Vec::from_iter((!value.is_empty()).then(|| value.to_owned())));
            }
        }
        profile
    }

    fn field(&self, name: &str) -> &str {
        self.fields.get(name).and_then(|v| v.first()).map_or("", String::as_str)
    }
}

/// Writes the five `common-*` files; nothing if the tree has no templates (no libpam-runtime).
pub fn pam(tree: &mut Tree) -> Result<(), StepError> {
    let mut profiles = Vec::new();
    for name in names(tree, PROFILES) {
        let profile = Profile::parse(&text(tree, &format!("{PROFILES}/{name}"))?.unwrap_or_default());
        if profile.field("Default") == "yes" {
            profiles.push((profile.field("Priority").parse::<i64>().unwrap_or(0), name, profile));
        }
    }
    profiles.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (name, prefix, interactive) in FILES {
        let path = format!("{TEMPLATES}/common-{name}");
        let Some(template) = text(tree, &path)? else { continue };
        let fitting: Vec<&Profile> = profiles
            .iter()
            .map(|(_, _, p)| p)
            .filter(|p| interactive || p.field(&format!("{prefix}-Interactive-Only")) != "yes")
            .collect();
        let made = fill(&template, prefix, &fitting).ok_or_else(|| StepError::Missing {
            what: format!("a marker line of /{path}"),
            remedy: "its layout is not the one of Debian 13's libpam-runtime; pin that version".to_owned(),
        })?;
        put(tree, &format!("etc/pam.d/common-{name}"), Entry::file(0o644, made, STEP))?;
    }
    Ok(())
}

/// The template with both blocks filled; `None` if one of its marker lines is missing.
fn fill(template: &str, prefix: &str, profiles: &[&Profile]) -> Option<String> {
    let kind = prefix.to_lowercase();
    let mut out = String::new();
    let mut lines = template.lines();
    for (begin, end, block) in [(PRIMARY, FALLBACK, "Primary"), (ADDITIONAL, END, "Additional")] {
        loop {
            let line = lines.next()?;
            out += &format!("{line}\n");
            if line.starts_with(begin) {
                break;
            }
        }
        let modules = block_lines(prefix, block, profiles);
        if modules.is_empty() && block == "Primary" {
            out += &format!("{kind}\t[default=1]\t\t\tpam_permit.so\n");
        }
        // In the Additional block a jump must not leave the file, so it goes one line less far.
        let reach = modules.len() - usize::from(block == "Additional" && !modules.is_empty());
        for (index, line) in modules.iter().enumerate() {
            let line = line.replace("=end", &format!("={}", reach.saturating_sub(index)));
            out += &format!("{kind}\t{line}\n");
        }
        loop {
            let line = lines.next()?;
            if line.starts_with(end) {
                out += &format!("{line}\n");
                break;
            }
        }
    }
    lines.for_each(|line| out += &format!("{line}\n"));
    Some(out)
}

/// The lines of all profiles for one block. The first profile of a block may have lines of its own for that place.
fn block_lines(prefix: &str, block: &str, profiles: &[&Profile]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first = true;
    for profile in profiles.iter().filter(|p| p.field(&format!("{prefix}-Type")) == block) {
        let initial = profile.fields.get(&format!("{prefix}-Initial")).filter(|l| first && !l.is_empty());
        first = false;
        let found = initial.or_else(|| profile.fields.get(prefix));
        lines.extend(found.into_iter().flatten().map(|line| normal(line)));
    }
    lines
}

/// `CONTROL MODULE OPTIONS` with one blank before the options, also when there are none: the tool's own spelling.
fn normal(line: &str) -> String {
    let control = match line.strip_prefix('[').and_then(|l| l.find(']')) {
        Some(at) => at + 2,
        None => line.find(char::is_whitespace).unwrap_or(line.len()),
    };
    let (control, rest) = line.split_at(control);
    let module = rest.trim_start();
    let blanks = &rest[..rest.len() - module.len()];
    let (module, options) = module.split_once(char::is_whitespace).unwrap_or((module, ""));
    format!("{control}{blanks}{module} {}", options.trim())
}

/// Copies what base-files and libc-bin ship as templates: `/etc/profile`, `/etc/motd`, root's shell files and
/// `/etc/nsswitch.conf`, to which the installed NSS modules are added. What stands there already is kept.
pub fn templates(tree: &mut Tree) -> Result<(), StepError> {
    const BASE: &str = "usr/share/base-files";
    for (from, to) in [
        ("profile", "etc/profile"),
        ("motd", "etc/motd"),
        ("dot.profile", "root/.profile"),
        ("dot.bashrc", "root/.bashrc"),
    ] {
        if tree.get(to).is_none()
            && let Some(content) = text(tree, &format!("{BASE}/{from}"))?
        {
            put(tree, to, Entry::file(0o644, content, "kiln:templates"))?;
        }
    }
    if tree.get("etc/nsswitch.conf").is_none()
        && let Some(template) = text(tree, "usr/share/libc-bin/nsswitch.conf")?
    {
        let made = nsswitch(&template, |module| has_nss(tree, module));
        put(tree, "etc/nsswitch.conf", Entry::file(0o644, made, "kiln:templates"))?;
    }
    Ok(())
}

/// Whether an NSS module's library is in any of Debian's library folders.
fn has_nss(tree: &Tree, module: &str) -> bool {
    let file = format!("libnss_{module}.so.2");
    let is_it = |path: &TreePath| path.name() == file;
    tree.below("usr/lib").any(|(path, _)| is_it(path))
}

/// Adds the modules that are there, in the places that nss-systemd(8), nss-resolve(8) and nss-myhostname(8) name.
fn nsswitch(template: &str, has: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    for line in template.lines() {
        let database = line.split(':').next().unwrap_or_default();
        let mut line = line.to_owned();
        match database {
            "passwd" | "group" | "shadow" | "gshadow" if has("systemd") && !line.contains("systemd") => {
                line += " systemd";
            }
            "hosts" => {
                if has("resolve") && !line.contains("resolve") {
                    line = line.replacen(" dns", " resolve [!UNAVAIL=return] dns", 1);
                }
                if has("myhostname") && !line.contains("myhostname") {
                    line = line.replacen("files", "files myhostname", 1);
                }
            }
            _ => {}
        }
        out += &line;
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX: &str = "Name: Unix\nDefault: yes\nPriority: 256\nAuth-Type: Primary\nAuth:\n\t[success=end default=ignore]\tpam_unix.so try_first_pass\nAuth-Initial:\n\t[success=end default=ignore]\tpam_unix.so\n";
    const LDAP: &str = "Name: Ldap\nDefault: yes\nPriority: 128\nAuth-Type: Primary\nAuth:\n\t[success=end default=ignore]\tpam_ldap.so use_first_pass\n";

    fn tree(profiles: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        for kind in ["auth", "session", "session-noninteractive"] {
            let word = kind.split('-').next().unwrap();
            let template = format!(
                "# head\n{PRIMARY}\n${word}_primary\n{FALLBACK}\n{word} requisite pam_deny.so\n{ADDITIONAL}\n${word}_additional\n{END}\n"
            );
            put(
                &mut tree,
                &format!("{TEMPLATES}/common-{kind}"),
                Entry::file(0o644, template, "libpam-runtime"),
            )
            .unwrap();
        }
        for (name, text) in profiles {
            put(&mut tree, &format!("{PROFILES}/{name}"), Entry::file(0o644, *text, "p")).unwrap();
        }
        tree
    }

    fn modules(tree: &Tree, kind: &str) -> Vec<String> {
        let text = text(tree, &format!("etc/pam.d/common-{kind}")).unwrap().unwrap();
        text.lines().filter(|l| l.contains("pam_")).map(str::to_owned).collect()
    }

    #[test]
    fn jumps_count_to_the_end_of_the_primary_block_in_order_of_priority() {
        let mut tree = tree(&[
            ("a-ldap", LDAP),
            ("unix", UNIX),
            ("off", "Default: no\nAuth-Type: Primary\nAuth:\n\trequired\tpam_off.so\n"),
        ]);
        pam(&mut tree).unwrap();
        assert_eq!(
            modules(&tree, "auth"),
            [
                "auth\t[success=2 default=ignore]\tpam_unix.so ",
                "auth\t[success=1 default=ignore]\tpam_ldap.so use_first_pass",
                "auth requisite pam_deny.so",
            ]
        );
    }

    #[test]
    fn an_empty_primary_block_gets_a_jump_and_interactive_profiles_stay_out_of_cron() {
        let systemd = "Default: yes\nPriority: 0\nSession-Interactive-Only: yes\nSession-Type: Additional\nSession:\n\toptional\tpam_systemd.so\n";
        let mut tree = tree(&[("systemd", systemd)]);
        pam(&mut tree).unwrap();
        let jump = "session\t[default=1]\t\t\tpam_permit.so";
        let deny = "session requisite pam_deny.so";
        assert_eq!(modules(&tree, "session"), [jump, deny, "session\toptional\tpam_systemd.so "]);
        assert_eq!(modules(&tree, "session-noninteractive"), [jump, deny]);
    }

    #[test]
    fn a_template_of_another_layout_is_refused() {
        let mut tree = tree(&[]);
        put(&mut tree, "usr/share/pam/common-auth", Entry::file(0o644, "# other\n", "p")).unwrap();
        assert!(pam(&mut tree).unwrap_err().to_string().contains("common-auth"));
    }

    #[test]
    fn nsswitch_gets_the_modules_that_are_there() {
        let mut tree = Tree::new();
        put(
            &mut tree,
            "usr/share/libc-bin/nsswitch.conf",
            Entry::file(0o644, "passwd: files\nhosts: files dns\n", "libc-bin"),
        )
        .unwrap();
        for module in ["systemd", "resolve"] {
            put(
                &mut tree,
                &format!("usr/lib/x86_64-linux-gnu/libnss_{module}.so.2"),
                Entry::file(0o644, "", "p"),
            )
            .unwrap();
        }
        templates(&mut tree).unwrap();
        let made = text(&tree, "etc/nsswitch.conf").unwrap().unwrap();
        assert_eq!(made, "passwd: files systemd\nhosts: files resolve [!UNAVAIL=return] dns\n");
    }
}
