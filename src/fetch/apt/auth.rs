//! Who apt is at an archive: apt_auth.conf(5), a file like ~/.netrc.

use std::fmt;
use std::path::Path;

use fs_err as fs;

use super::{LeftOut, host_and_port, parts};
use crate::url::Url;

/// A user and a password. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::fetch) struct Login {
    pub(in crate::fetch) user: String,
    pub(in crate::fetch) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// An entry: what follows `machine`, and who to be there.
#[derive(Debug, Clone)]
struct Entry {
    machine: String,
    login: Login,
    at: String,
}

/// The entries of all files, in the order in which they count.
#[derive(Debug, Clone, Default)]
pub(in crate::fetch) struct Auth {
    entries: Vec<Entry>,
}

/// What the files say about a URL.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fetch) enum Answer<'a> {
    /// Nothing.
    Nobody,
    /// Be this one there.
    Login(&'a Login),
    /// There is an entry, `file:line`, but it is for encrypted connections only.
    NotEncrypted(&'a str),
}

impl Auth {
    /// Reads `auth.conf`, then the files of `auth.conf.d` that end in .conf.
    pub(super) fn read(file: &Path, folder: &Path, left_out: &mut Vec<LeftOut>) -> Self {
        let mut auth = Auth::default();
        let first = file.exists().then(|| file.to_owned());
        for file in first.into_iter().chain(parts(folder, &["conf", ""], left_out)) {
            match fs::read(&file) {
                Ok(bytes) => auth.parse(&String::from_utf8_lossy(&bytes), &file.display().to_string()),
                Err(error) => left_out.push(LeftOut::unreadable(&file, &error)),
            }
        }
        auth
    }

    fn parse(&mut self, text: &str, file: &str) {
        let tokens = text
            .lines()
            .enumerate()
            .flat_map(|(number, line)| line.split_whitespace().map(move |t| (number + 1, t)));
        let mut tokens = tokens.peekable();
        let mut open = false;
        while let Some((number, token)) = tokens.next() {
            let mut value = || tokens.next().map(|(_, value)| value.to_owned()).unwrap_or_default();
            match token {
                "machine" => {
                    let login = Login { user: String::new(), password: String::new() };
                    self.entries.push(Entry { machine: value(), login, at: format!("{file}:{number}") });
                    open = true;
                }
                "login" | "password" if open => {
                    let value = value();
                    if let Some(last) = self.entries.last_mut() {
                        *if token == "login" { &mut last.login.user } else { &mut last.login.password } =
                            value;
                    }
                }
                // Comments and tokens of netrc that apt does not know.
                _ => {}
            }
        }
    }

    /// Who to be at `url`. The first entry that fits counts.
    pub(in crate::fetch) fn of(&self, url: &Url) -> Answer<'_> {
        let mut not_encrypted = None;
        for entry in &self.entries {
            match fits(&entry.machine, url) {
                Some(true) => return Answer::Login(&entry.login),
                Some(false) => not_encrypted = not_encrypted.or(Some(entry.at.as_str())),
                None => {}
            }
        }
        not_encrypted.map_or(Answer::Nobody, Answer::NotEncrypted)
    }
}

/// Whether an entry is for `url`: `None` for no, and false for one that fits but names no scheme where the URL is not encrypted.
/// Source: `MaybeAddAuth` in apt-pkg/contrib/netrc.cc.
fn fits(machine: &str, url: &Url) -> Option<bool> {
    let (scheme, rest) = url.exposed().split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let (host, port) = host_and_port(url);
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let (named, machine) = match machine.split_once("://") {
        Some((named, machine)) if named == scheme => (true, machine),
        Some(_) => return None,
        None => (false, machine),
    };
    let with_port = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    let fits = match machine.split_once('/') {
        None => machine == host || machine == with_port,
        Some(_) => format!("{with_port}{path}").starts_with(machine),
    };
    fits.then(|| named || scheme == "https")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(file: &str, url: &str) -> String {
        let mut auth = Auth::default();
        auth.parse(file, "f");
        match auth.of(&Url::new(url)) {
            Answer::Nobody => "nobody".to_owned(),
            Answer::Login(login) => format!("{}:{}", login.user, login.password),
            Answer::NotEncrypted(at) => format!("not encrypted {at}"),
        }
    }

    #[test]
    fn machines_fit_as_the_manual_says() {
        let url = "https://example.org/debian/dists/x";
        for (machine, fits) in [
            ("example.org", true),
            ("example.org/deb", true),
            ("example.org/debian", true),
            ("example.org/debian/", true),
            ("https://example.org/debian/", true),
            ("example.org:443", false),
            ("example.org/deb/", false),
            ("example.org/ubuntu", false),
            ("example.orga", false),
            ("example.net", false),
            ("http://example.org", false),
        ] {
            let expected = if fits { "apt:debian" } else { "nobody" };
            assert_eq!(
                user(&format!("machine {machine} login apt password debian"), url),
                expected,
                "{machine}"
            );
        }
        assert_eq!(user("machine h login a password b", "https://h:8443/x"), "a:b");
        assert_eq!(user("machine h:8443 login a password b", "https://h:8443/x"), "a:b");
        assert_eq!(user("machine h:8443/x login a password b", "https://h:8443/x/y"), "a:b");
        assert_eq!(user("machine h/x login a password b", "https://h:8443/x/y"), "nobody");
    }

    #[test]
    fn a_password_goes_out_in_clear_only_where_the_file_says_so() {
        assert_eq!(user("\n machine h login a password b", "http://h/x"), "not encrypted f:2");
        assert_eq!(user("machine http://h login a password b", "http://h/x"), "a:b");
        assert_eq!(
            user("machine h login a password b machine http://h/x login c password d", "http://h/x"),
            "c:d"
        );
        assert_eq!(user("machine http://h login a password b", "https://h/x"), "nobody");
    }

    #[test]
    fn tokens_may_be_on_lines_of_their_own() {
        let file =
            "# a comment\nmachine h\r\n\tlogin a\n account x\npassword p#1\n\nmachine g login\nb password c";
        assert_eq!(
            (user(file, "https://h/"), user(file, "https://g/")),
            ("a:p#1".to_owned(), "b:c".to_owned())
        );
        assert_eq!(user("login x machine", "https://h/"), "nobody");
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let mut auth = Auth::default();
        auth.parse("machine h login us3r password s3cr3t", "f");
        let shown = format!("{auth:?} {:?}", auth.of(&Url::new("https://h/")));
        assert!(!shown.contains("s3cr3t") && !shown.contains("us3r"), "{shown}");
    }
}
