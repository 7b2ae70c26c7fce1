use super::*;

fn read(name: &str, text: &str) -> (Vec<String>, Vec<String>) {
    let mut left_out = Vec::new();
    let mut found = Found { arch: "amd64", sources: Vec::new(), left_out: &mut left_out };
    if name == "sources" {
        found.deb822(text, "f");
    } else {
        found.one_line(text, "f");
    }
    let sources =
        found.sources.iter().map(|s| format!("{} {} {}", s.archive, s.url.exposed(), s.at)).collect();
    (sources, left_out.iter().map(|l| format!("{}{l}", if l.mistake { "! " } else { "" })).collect())
}

const P: &str = "Types: deb\nURIs: http://a/d\nSuites: trixie\nComponents: main\n";
const Q: &str = "Types: deb\nURIs: http://b/d\nSuites: trixie\nComponents: main\n";

/// Each expectation was seen with apt 2.6.1 (`apt-get update --print-uris`), but that apt reads nothing when an entry is malformed.
#[test]
fn deb822_is_read_as_apt_reads_it() {
    let crlf = format!("{P}\n{Q}").replace('\n', "\r\n");
    for (text, want) in [
        (format!("{P}\n{Q}"), "a b"),
        (crlf, "a b"),
        (format!("{P}\t\n\n{Q}"), "a b"),
        // A line of blanks ends no entry, and so the second URIs counts.
        (format!("{P} \n{Q}"), "b"),
        (format!("#\n\n\n#c\n{P}\n#\n#\n{Q}"), "a b"),
        (format!("{P}#\n\n#\n{Q}"), "a b"),
        (P.replace("Suites", "# comment\n  http://c/d\nSuites"), "a c"),
        (P.replace("Suites", "#http://c/d\nSuites"), "a"),
        (P.replace("URIs: http://a/d", "URIs:\n http://a/d\n\thttp://c/d"), "a c"),
        (format!("{P}Enabled: no\n"), ""),
        (format!("{P}Enabled: Off\r\n"), ""),
        (format!("{P}Enabled: false\n"), ""),
        (format!("{P}Enabled: without\n"), ""),
        (format!("{P}Enabled: disable\n"), ""),
        (format!("{P}Enabled: 0\n"), ""),
        (format!("{P}Enabled: 0x0\n"), ""),
        (format!("{P}Enabled:\n no\n"), ""),
        (format!("{P}Enabled: nope\n"), "a"),
        (format!("{P}Enabled: no no\n"), "a"),
        (format!("{P}Enabled:\n"), "a"),
        (format!("{P}#Enabled: no\n"), "a"),
        (format!("{P}URIs: http://dup/d\n"), "dup"),
        (P.to_lowercase(), "a"),
        (P.replace("URIs:", "URIs :"), "a"),
        (P.replace("deb\n", "deb-src\n"), ""),
        (P.replace("deb\n", "deb-src deb\n"), "a"),
        (P.trim_end().to_owned(), "a"),
        // Malformed entries.
        (format!("junk\n\n{Q}"), "b"),
        (format!("{P}junk\n\n{Q}"), "b"),
        (format!("{}\n{Q}", P.replace("Types: deb\n", "")), "b"),
        (format!("{}\n{Q}", P.replace("Components: main\n", "")), "b"),
        (format!("{}\n{Q}", P.replace("trixie", "./")), "b"),
        (format!("{}\n{Q}", P.replace("http://a/d", "a/d")), "b"),
        (format!("{}\n{Q}", P.replace("http://a/d", "http://a/d # http://z/d")), "a z b"),
        (format!("{}\n{Q}", P.replace("deb\n", "deb rpm\n")), "b"),
        (format!("\u{feff}{P}\n{Q}"), "b"),
    ] {
        let (sources, _) = read("sources", &text);
        let hosts: Vec<&str> = sources.iter().map(|s| s.split('/').nth(2).unwrap()).collect();
        assert_eq!(hosts.join(" "), want, "{text:?}");
    }
}

#[test]
fn what_is_left_out_is_said_with_its_line() {
    let text = format!(
        "# top\n{P}Enabled: off\n\n{}\n{}\n{}\n{}",
        P.replace("http://a", "ftp://bob:s3cr3t@a"),
        P.replace("trixie", "nodistro"),
        P.replace("Suites: trixie", "Suites: deb/").replace("Components: main\n", ""),
        P.replace("Types: deb\n", ""),
    );
    let (sources, left_out) = read("sources", &text);
    assert_eq!(sources, [""; 0]);
    assert_eq!(
        left_out,
        [
            "f:2: `Enabled: off`",
            "f:8: ftp://***@a/d trixie: kiln does not fetch by `ftp`",
            "f:13: http://a/d nodistro: not a suite of Debian itself",
            "f:18: http://a/d deb/: an exact path is not a Debian archive with suites",
            "! f:22: the entry has no `Types`",
        ]
    );
}

#[test]
fn one_line_entries_are_read_as_apt_reads_them() {
    for (line, want) in [
        ("deb http://a/d trixie main", "debian http://a/d f:1"),
        ("deb [ arch=amd64 ] http://a/d/ trixie main", "debian http://a/d f:1"),
        ("deb [arch=amd64 signed-by=/k] http://a/d trixie main", "debian http://a/d f:1"),
        ("deb [trusted=yes#1] http://a/d trixie main # x", "debian http://a/d f:1"),
        ("deb [ arch=\"amd64\" ] http://a/d trixie main", "debian http://a/d f:1"),
        ("deb \"http://a/d\" \"trixie\" main", "debian http://a/d f:1"),
        ("\tdeb\thttp://a/d\ttrixie-security\tmain\r", "debian-security http://a/d f:1"),
        ("deb http://a/$(ARCH)/d trixie main", "debian http://a/amd64/d f:1"),
        ("deb http://a/d buster/updates main", "debian-security http://a/d f:1"),
        ("deb file:/srv/d trixie main", "debian file:/srv/d f:1"),
        ("deb copy:///srv/d trixie main", "debian copy:///srv/d f:1"),
        ("deb mirror+file:/etc/l trixie main", "debian mirror+file:/etc/l f:1"),
        ("deb mirror://h/l trixie main", "debian mirror://h/l f:1"),
        ("deb http://bob:p@ss@a/d trixie main", "debian http://bob:p@ss@a/d f:1"),
        ("# deb http://a/d trixie main", ""),
        ("", ""),
    ] {
        let (sources, left_out) = read("list", line);
        assert_eq!((sources.join(" ").as_str(), left_out.len()), (want, 0), "{line}: {left_out:?}");
    }
    for (line, why) in [
        ("deb cdrom:[Debian 12 _x_ - amd64]/ trixie main", "does not fetch by `cdrom`"),
        ("deb tor+http://a/d trixie main", "does not fetch by `tor+http`"),
        ("deb tor+mirror+http://a/d trixie main", "does not fetch by `tor+mirror+http`"),
        ("deb HTTP://a/d trixie main", "does not fetch by `HTTP`"),
        ("deb ssh://bob@a/d trixie main", "does not fetch by `ssh`"),
        ("deb file:d trixie main", "names no file of this machine"),
        ("deb http:///d trixie main", "names no host"),
        ("deb http://a/d ./", "an exact path"),
        ("deb http://a/d trixie/", "an exact path"),
        ("deb http://a/d trixie-pgdg main", "not a suite of Debian itself"),
        ("deb-src http://a/d trixie main", "source packages only"),
        ("deb http://a/d trixie", "! f:1: it names no component"),
        ("deb http://a/d ./ main", "! f:1: the exact path `./` has no components"),
        ("deb http://a/d", "! f:1: it names no suite"),
        ("deb", "! f:1: a line must be"),
        ("rpm http://a/d trixie main", "! f:1: `rpm` is not a source type"),
        ("deb [arch=amd64 http://a/d trixie main", "! f:1: an option is not"),
        ("deb [arch] http://a/d trixie main", "! f:1: an option is not"),
        ("deb [arch=amd64", "! f:1: its options do not end"),
        ("deb a/d trixie main", "! f:1: `a/d` is no URL"),
    ] {
        let (sources, left_out) = read("list", line);
        assert_eq!(sources, [""; 0], "{line}");
        assert!(left_out.len() == 1 && left_out[0].contains(why), "{line}: {left_out:?}");
    }
}

#[test]
fn a_source_is_asked_for_its_architectures_only() {
    let of = |line: &str| {
        let mut left_out = Vec::new();
        let mut found = Found { arch: "amd64", sources: Vec::new(), left_out: &mut left_out };
        if line.starts_with("deb") {
            found.one_line(line, "f");
        } else {
            found.deb822(line, "f");
        }
        let has = |arch: &str| found.sources[0].architectures.has(arch);
        (has("amd64"), has("arm64"), has("all"))
    };
    assert_eq!(of("deb http://a/d trixie main"), (true, true, true));
    assert_eq!(of("deb [arch=arm64,i386] http://a/d trixie main"), (false, true, true));
    assert_eq!(of("deb [arch-=amd64] http://a/d trixie main"), (false, true, true));
    assert_eq!(of("deb [arch+=arm64] http://a/d trixie main"), (true, true, true));
    assert_eq!(of(&format!("{P}Architectures: amd64\n")), (true, false, true));
    assert_eq!(of(&format!("{P}Architectures-Remove: amd64\n")), (false, true, true));
}

proptest::proptest! {
    #[test]
    fn any_text_is_read(text in "(deb |Types: |URIs:|\\[|\\]|\"|[ -~]|\\n|\\r|\\t|é){0,60}") {
        let _ = (read("list", &text), read("sources", &text));
    }
}
