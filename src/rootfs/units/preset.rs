//! Preset files: which units are enabled on a fresh system. First match wins; a unit that nothing matches is enabled.

use std::collections::BTreeMap;

use globset::GlobMatcher;

use super::Wishes;
use crate::rootfs::step::{StepError, names, text};
use crate::tree::{Tree, TreePath};

/// Where preset files lie, strongest first.
const FOLDERS: [&str; 3] =
    ["etc/systemd/system-preset", "usr/local/lib/systemd/system-preset", "usr/lib/systemd/system-preset"];

/// What becomes of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Enabled; for a template with these instances, or its default one if there are none.
    Enable(Vec<String>),
    /// Not enabled.
    Disable,
    /// Left as it is.
    Ignore,
}

/// The rules in order.
#[derive(Debug, Clone, Default)]
pub struct Presets {
    rules: Vec<(GlobMatcher, Decision)>,
}

impl Presets {
    /// The wishes of a profile, then the preset files of `tree` by file name.
    pub fn of(tree: &Tree, wishes: &Wishes) -> Result<Self, StepError> {
        let mut presets = Presets::default();
        let profile = TreePath::new("profile").expect("a plain name is a path");
        for (list, decision) in
            [(&wishes.disable, Decision::Disable), (&wishes.enable, Decision::Enable(Vec::new()))]
        {
            for name in list {
                presets.rule(name, decision.clone(), &profile, 1)?;
            }
        }
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for folder in FOLDERS.iter().rev() {
            for name in names(tree, folder).into_iter().filter(|n| n.ends_with(".preset")) {
                files.insert(name.clone(), format!("{folder}/{name}"));
            }
        }
        for path in files.into_values() {
            let text = text(tree, &path)?.unwrap_or_default();
            let path = TreePath::new(&path)?;
            for (index, line) in text.lines().enumerate() {
                let mut words = line.split_whitespace();
                let (verb, pattern) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let decision = match verb {
                    "enable" => Decision::Enable(words.map(str::to_owned).collect()),
                    "disable" => Decision::Disable,
                    "ignore" => Decision::Ignore,
                    "" => continue,
                    comment if comment.starts_with(['#', ';']) => continue,
                    other => {
                        let reason = format!("`{other}` is no preset: enable, disable and ignore are");
                        return Err(StepError::Line { path, line: index + 1, reason });
                    }
                };
                presets.rule(pattern, decision, &path, index + 1)?;
            }
        }
        Ok(presets)
    }

    fn rule(
        &mut self,
        pattern: &str,
        decision: Decision,
        path: &TreePath,
        line: usize,
    ) -> Result<(), StepError> {
        let glob = globset::Glob::new(pattern).map_err(|e| StepError::Line {
            path: path.clone(),
            line,
            reason: format!("`{pattern}` is no pattern: {}", e.kind()),
        })?;
        self.rules.push((glob.compile_matcher(), decision));
        Ok(())
    }

    /// What the first matching rule says of unit `name`.
    pub fn decide(&self, name: &str) -> Decision {
        let rule = self.rules.iter().find(|(glob, _)| glob.is_match(name));
        rule.map_or(Decision::Enable(Vec::new()), |(_, decision)| decision.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::step::put;
    use crate::tree::Entry;

    #[test]
    fn the_first_match_wins_and_silence_enables() {
        let mut tree = Tree::new();
        let dir = "usr/lib/systemd/system-preset";
        put(
            &mut tree,
            &format!("{dir}/10.preset"),
            Entry::file(0o644, "# x\ndisable a.*\nenable g@.service tty1 tty2\n", "p"),
        )
        .unwrap();
        put(
            &mut tree,
            &format!("{dir}/20.preset"),
            Entry::file(0o644, "enable a.service\nignore i.service\n", "p"),
        )
        .unwrap();
        let presets = Presets::of(&tree, &Wishes::default()).unwrap();
        assert_eq!(presets.decide("a.service"), Decision::Disable);
        assert_eq!(presets.decide("g@.service"), Decision::Enable(vec!["tty1".into(), "tty2".into()]));
        assert_eq!(presets.decide("i.service"), Decision::Ignore);
        assert_eq!(presets.decide("z.service"), Decision::Enable(vec![]));
        let wishes = Wishes { enable: vec!["a.service".into()], ..Wishes::default() };
        assert_eq!(Presets::of(&tree, &wishes).unwrap().decide("a.service"), Decision::Enable(vec![]));
        put(&mut tree, &format!("{dir}/30.preset"), Entry::file(0o644, "enalbe a\n", "p")).unwrap();
        assert!(
            Presets::of(&tree, &Wishes::default()).unwrap_err().to_string().contains("30.preset:1: `enalbe`")
        );
    }
}
