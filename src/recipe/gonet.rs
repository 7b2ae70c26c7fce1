//! How this machine's Go gets modules, and what of that works in a sandbox.
//!
//! Go takes each setting from its environment, else from the file that `go env -w` writes, else from go.env of its installation
//! (`go help environment`). The sandbox has the network, but neither git nor the person's files. So
//! a folder of a `file:` proxy and .netrc are shown to it, what needs git is left out of a list and refused where nothing else is in the
//! list, and flags about another module are left out. Nothing of this can change the result: that has a digest.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fs_err as fs;
use globset::GlobBuilder;

use crate::error::{Failure, Kind};
use crate::exec::on_path;

/// Variables that say how Go gets modules and how anybody gets out.
const SETTINGS: [&str; 17] = [
    "GOAUTH",
    "GOFLAGS",
    "GOINSECURE",
    "GONOPROXY",
    "GONOSUMCHECK",
    "GONOSUMDB",
    "GOPRIVATE",
    "GOPROXY",
    "GOSUMDB",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];
/// Flags in GOFLAGS that are about the module that a person works on.
const FLAGS: [&str; 4] = ["C", "mod", "modfile", "overlay"];
/// What a proxy that can be used looks like.
const REMEDY: &str = "set GOPROXY to the URL of a module proxy, or to file:///FOLDER in the form of one, such as \
                      file://$(go env GOMODCACHE)/cache/download (`go env -w GOPROXY=…`, or a variable)";

/// What a sandbox needs, to get modules as this machine does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Its variables.
    pub(super) env: BTreeMap<String, String>,
    /// Folders below /inputs.
    pub(super) folders: BTreeMap<String, PathBuf>,
    /// The file with passwords by machine, if Go would look into one.
    pub(super) netrc: Option<PathBuf>,
    /// What this machine says and the sandbox cannot do, with the reason.
    pub(super) left_out: Vec<String>,
}

/// Where modules are fetched: what the sandbox has, and what is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need<'a> {
    /// The tool set of the sandbox.
    pub(super) tools: &'a str,
    /// Whether git is in it.
    pub(super) git: bool,
    /// Paths of the modules that are needed, as far as they are known.
    pub(super) modules: &'a [&'a str],
}

/// What this machine's Go says about getting modules: a variable wins over its file, and that over its installation. As for Go, a variable
/// that is empty is not set.
pub(super) fn settings() -> BTreeMap<String, String> {
    let text =
        |path: Option<PathBuf>| path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    read(|name| std::env::var(name).ok(), &[&text(go_env_file()), &text(installed())])
}

fn read(env: impl Fn(&str) -> Option<String>, files: &[&str]) -> BTreeMap<String, String> {
    let set = |line: &str| {
        let (name, value) = line.split_once('=')?;
        (SETTINGS.contains(&name) && !value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    let mut settings = BTreeMap::new();
    for file in files.iter().rev() {
        settings.extend(file.lines().filter_map(set));
    }
    let of_env = |name: &&str| Some(((*name).to_owned(), env(name).filter(|value| !value.is_empty())?));
    settings.extend(SETTINGS.iter().filter_map(of_env));
    settings
}

fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The file that `go env -w` writes (`go help env`).
fn go_env_file() -> Option<PathBuf> {
    match set("GOENV") {
        Some(path) => Some(path).filter(|path| path != Path::new("off")),
        None => Some(set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?.join("go/env")),
    }
}

/// What the distribution says for its Go.
fn installed() -> Option<PathBuf> {
    let root = set("GOROOT").or_else(|| {
        let go = fs::canonicalize(on_path("go")?).ok()?;
        Some(go.parent()?.parent()?.to_owned())
    })?;
    Some(root.join("go.env"))
}

/// What of `settings` a sandbox can do.
///
/// # Errors
/// [`Kind::Input`] with a remedy: nothing of it can work.
pub(super) fn plan(settings: &BTreeMap<String, String>, need: Need<'_>) -> Result<Plan, Failure> {
    let mut plan = Plan { env: settings.clone(), ..Plan::default() };
    if let Some(value) = settings.get("GOPROXY") {
        plan.proxies(value, need)?;
    }
    if !need.git {
        direct(settings, need)?;
    }
    if let Some(flags) = settings.get("GOFLAGS") {
        plan.flags(flags);
    }
    let auth = settings.get("GOAUTH").map_or("netrc", String::as_str).to_owned();
    plan.auth(&auth);
    Ok(plan)
}

impl Plan {
    /// GOPROXY: entries parted by `,` or `|`, each of which says when the next one is asked (`go help goproxy`).
    fn proxies(&mut self, value: &str, need: Need<'_>) -> Result<(), Failure> {
        let mut kept = String::new();
        let mut all = Vec::new();
        for part in value.split_inclusive([',', '|']) {
            let end = part.trim_end_matches([',', '|']);
            let (entry, after) = (end.trim(), &part[end.len()..]);
            if entry.is_empty() {
                continue;
            }
            all.push(shown(entry));
            match self.proxy(entry, need) {
                Ok(entry) => kept += &format!("{entry}{after}"),
                Err(why) => self.left_out.push(format!("{} of GOPROXY: {why}", shown(entry))),
            }
            if entry == "off" {
                break;
            }
        }
        let kept = kept.trim_end_matches([',', '|']);
        if kept.is_empty() || kept == "off" {
            let why = self.left_out.join("\n  ");
            let why = if why.is_empty() { "`off` forbids it" } else { &why };
            let text = format!("Go modules cannot be fetched with GOPROXY={}: {why}", all.join(","));
            return Err(Failure::new(Kind::Input, text).hint(REMEDY));
        }
        self.env.insert("GOPROXY".to_owned(), kept.to_owned());
        Ok(())
    }

    /// An entry of GOPROXY as the sandbox has it.
    fn proxy(&mut self, entry: &str, need: Need<'_>) -> Result<String, String> {
        if entry == "off" || entry == "direct" && need.git {
            return Ok(entry.to_owned());
        }
        if entry == "direct" {
            return Err(format!("it needs git, which is not in the tool set `{}`", need.tools));
        }
        let Some((scheme, rest)) = entry.split_once(":/") else {
            // Go puts https:// before what looks like a host.
            if entry.contains(['.', ':', '/']) && !entry.starts_with('/') {
                return Ok(entry.to_owned());
            }
            let remedy =
                if entry.starts_with('/') { format!(": write file://{entry}") } else { String::new() };
            return Err(format!("it is no URL{remedy}"));
        };
        match scheme {
            "http" | "https" => return Ok(entry.to_owned()),
            "file" => {}
            _ => return Err("Go knows http, https and file".to_owned()),
        }
        let path = match rest.strip_prefix('/') {
            None => format!("/{rest}"),
            Some(path) if path.starts_with('/') => path.to_owned(),
            Some(_) => {
                return Err("it names a host: write three slashes, as in file:///srv/goproxy".to_owned());
            }
        };
        if path.contains(['?', '#']) {
            return Err("a file: URL is a path and nothing else".to_owned());
        }
        let folder = decode(&path).ok_or("it is no URL")?;
        readable(&folder)?;
        let name = format!("goproxy-{}", self.folders.len());
        self.folders.insert(name.clone(), folder);
        Ok(format!("file:///inputs/{name}"))
    }

    fn flags(&mut self, flags: &str) {
        let about = |flag: &&str| {
            let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
            FLAGS.contains(&name)
        };
        let (out, kept): (Vec<&str>, Vec<&str>) = flags.split_whitespace().partition(about);
        let note = |flag: &&str| format!("{} of GOFLAGS: it is about another module", flag.escape_debug());
        self.left_out.extend(out.iter().map(note));
        self.env.insert("GOFLAGS".to_owned(), kept.join(" "));
    }

    /// GOAUTH: ways to a password, parted by `;` (`go help goauth`). Programs of this machine are not in the sandbox.
    fn auth(&mut self, auth: &str) {
        let words = || auth.split(';').map(str::trim).filter(|word| !word.is_empty());
        let here = |word: &str| word == "netrc" || word == "off";
        for word in words().filter(|word| !here(word)) {
            // Its arguments may be secret.
            let program = word.split_whitespace().next().unwrap_or_default().escape_debug();
            self.left_out.push(format!(
                "`{program}` of GOAUTH: programs of this machine are not in the sandbox; ~/.netrc is read there"
            ));
        }
        let kept: Vec<&str> = words().filter(|word| here(word)).collect();
        if kept.is_empty() {
            self.env.remove("GOAUTH");
        } else {
            self.env.insert("GOAUTH".to_owned(), kept.join(";"));
        }
        if !kept.contains(&"off") {
            let netrc = set("NETRC").or_else(|| Some(set("HOME")?.join(".netrc")));
            self.netrc = netrc.filter(|path| path.is_file());
        }
    }
}

/// Refuses modules that Go would fetch from where they are developed.
fn direct(settings: &BTreeMap<String, String>, need: Need<'_>) -> Result<(), Failure> {
    let of = |name: &'static str| settings.get(name).map(|value| (name, value.as_str()));
    let Some((name, patterns)) = of("GONOPROXY").or_else(|| of("GOPRIVATE")) else { return Ok(()) };
    for module in need.modules {
        if let Some(pattern) = patterns.split(',').find(|pattern| covers(pattern.trim(), module)) {
            let (module, pattern) = (module.escape_debug(), pattern.trim().escape_debug());
            let text = format!(
                "the module {module} would be fetched from its own repository, since {name} has `{pattern}`, and that needs git, \
                 which is not in the tool set `{}`",
                need.tools
            );
            return Err(Failure::new(Kind::Input, text)
                .hint("with GONOPROXY=none it comes from GOPROXY as the others; a file: proxy can hold it"));
        }
    }
    Ok(())
}

/// Whether `pattern` matches the first parts of `module`, as many as it has itself (golang.org/x/mod, module.MatchPrefixPatterns).
fn covers(pattern: &str, module: &str) -> bool {
    let pattern = pattern.trim_end_matches('/');
    if pattern.is_empty() {
        return false;
    }
    let parts: Vec<&str> = module.split('/').collect();
    let Some(begin) = parts.get(..pattern.matches('/').count() + 1) else { return false };
    // Braces are letters for Go.
    let pattern = pattern.replace('{', "[{]").replace('}', "[}]");
    let glob = GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build();
    glob.is_ok_and(|glob| glob.compile_matcher().is_match(begin.join("/")))
}

/// Whether the sandbox's user can read the folder.
fn readable(folder: &Path) -> Result<(), String> {
    let at = folder.display().to_string().escape_debug().to_string();
    let meta = fs::metadata(folder).map_err(|e| format!("{at}: {}", e.kind()))?;
    if !meta.is_dir() {
        return Err(format!("{at} is not a folder"));
    }
    // Root's sandbox is a user whom nobody knows.
    if rustix::process::geteuid().is_root() && meta.permissions().mode() & 0o005 != 0o005 {
        return Err(format!("{at} cannot be read by the sandbox's user: chmod o+rX"));
    }
    fs::read_dir(folder).map(drop).map_err(|e| format!("{at} cannot be read: {}", e.kind()))
}

/// The path in a URL.
fn decode(path: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.extend(hex::decode(digits).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    if bytes.contains(&0) {
        return None;
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// An entry of GOPROXY for people: without who is let in by it, and fit for a terminal.
fn shown(entry: &str) -> String {
    let entry = entry.split(['?', '#']).next().unwrap_or_default();
    let begin = entry.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = entry.split_at(begin);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority =
        authority.rsplit_once('@').map_or(authority.to_owned(), |(_, host)| format!("***@{host}"));
    format!("{scheme}{authority}{path}").escape_debug().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: Need<'_> = Need { tools: "build-go", git: false, modules: &[] };

    fn with(pairs: &[(&str, &str)], need: Need<'_>) -> Result<Plan, Failure> {
        plan(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), need)
    }

    #[test]
    fn settings_are_those_about_getting_modules_and_the_environment_wins() {
        let file = "GOPROXY=https://file.example\nGOOS=plan9\n# comment\nGONOSUMDB=a,b\r\nGOFLAGS=-x\n";
        let installed = "GOPROXY=https://installed.example\nGOSUMDB=off\nGOTOOLCHAIN=auto\n";
        let env = |name: &str| match name {
            "GOPROXY" | "GOARCH" => Some("https://env.example".to_owned()),
            "GOFLAGS" | "HTTP_PROXY" => Some(String::new()),
            _ => None,
        };
        let expected =
            [("GOFLAGS", "-x"), ("GONOSUMDB", "a,b"), ("GOPROXY", "https://env.example"), ("GOSUMDB", "off")];
        assert_eq!(read(env, &[file, installed]), expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn a_list_of_proxies_is_used_without_what_cannot_work() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let folder = dir.path().join("go proxy");
        fs::create_dir(&folder).unwrap();
        let url = format!("file://{}", folder.display().to_string().replace(' ', "%20"));
        for (value, kept, left) in [
            ("https://a.example,direct", "https://a.example", 1),
            ("direct,https://a.example", "https://a.example", 1),
            (
                "https://u:p@a.example|https://b.example,direct|off",
                "https://u:p@a.example|https://b.example,off",
                1,
            ),
            ("https://a.example,off,https://b.example", "https://a.example,off", 0),
            ("a.example/x,/srv/y", "a.example/x", 1),
            (" https://a.example , ,ssh://b.example", "https://a.example", 1),
            ("file:///no/such/folder|https://a.example", "https://a.example", 1),
            ("file://host/srv|https://a.example", "https://a.example", 1),
            (
                &format!("{url},https://a.example|{url}"),
                "file:///inputs/goproxy-0,https://a.example|file:///inputs/goproxy-1",
                0,
            ),
            (&url.replacen("file://", "file:", 1), "file:///inputs/goproxy-0", 0),
        ] {
            let plan = with(&[("GOPROXY", value)], NEED).unwrap();
            assert_eq!((plan.env["GOPROXY"].as_str(), plan.left_out.len()), (kept, left), "{value}");
            assert!(plan.folders.values().all(|path| *path == folder), "{plan:?}");
        }
        let git = with(&[("GOPROXY", "https://a.example,direct")], Need { git: true, ..NEED }).unwrap();
        assert_eq!(git.env["GOPROXY"], "https://a.example,direct");
    }

    #[test]
    fn what_cannot_work_at_all_is_refused_with_a_remedy_and_without_a_password() {
        for (value, why) in [
            ("direct", "needs git"),
            ("off", "forbids"),
            ("off,https://a.example", "forbids"),
            ("direct|off", "needs git"),
            ("/srv/goproxy", "write file:///srv/goproxy"),
            ("file:///no/such/folder", "/no/such/folder"),
            ("ssh://me:hush@a.example/x?token=hush", "http, https and file"),
            (",|", "GOPROXY="),
            ("word", "no URL"),
        ] {
            let failure = with(&[("GOPROXY", value)], NEED).unwrap_err();
            let text = failure.to_string();
            assert!(text.contains(why) && !text.contains("hush"), "{value}: {text}");
            assert!(failure.kind == Kind::Input && failure.hints()[0].contains("file:///FOLDER"));
        }
        assert_eq!(shown("https://me:hush@a.example/x?t=hush"), "https://***@a.example/x");
        assert_eq!(shown("me:hu@sh@a.example/\x1b"), "***@a.example/\\u{1b}");
    }

    #[test]
    fn modules_of_ones_own_need_git_unless_a_proxy_has_them() {
        let need = Need { modules: &["example.org/a", "git.corp.example/team/tool"], ..NEED };
        for (name, value) in [
            ("GOPRIVATE", "git.corp.example"),
            ("GOPRIVATE", "x.example,*.corp.example/"),
            ("GONOPROXY", "git.corp.example/te?m"),
            ("GONOPROXY", "*"),
        ] {
            let text = with(&[(name, value)], need).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("git"), "{value}: {text}");
            assert!(with(&[(name, value)], Need { git: true, ..need }).is_ok());
        }
        for value in [
            "corp.example",
            "git.corp.example/other",
            "git.corp.example/team/tool/x",
            "{git}.corp.example",
            "[",
        ] {
            assert!(with(&[("GOPRIVATE", value)], need).is_ok(), "{value}");
        }
        assert!(with(&[("GOPRIVATE", "*"), ("GONOPROXY", "none")], need).is_ok());
    }

    #[test]
    fn flags_about_another_module_and_programs_for_passwords_are_left_out() {
        let plan = with(
            &[
                ("GOFLAGS", "-modcacherw -mod=vendor --modfile=x.mod -x"),
                ("GOAUTH", "netrc; /bin/login --key hush"),
            ],
            NEED,
        )
        .unwrap();
        assert_eq!((plan.env["GOFLAGS"].as_str(), plan.env["GOAUTH"].as_str()), ("-modcacherw -x", "netrc"));
        assert_eq!(plan.left_out.len(), 3);
        assert!(!plan.left_out.join("").contains("hush"), "{plan:?}");
        let plan = with(&[("GOAUTH", "git /home/me")], NEED).unwrap();
        assert!(!plan.env.contains_key("GOAUTH"));
        assert_eq!(with(&[("GOAUTH", "off")], NEED).unwrap().netrc, None);
    }
}
