//! The machine's package sources: apt's files, its proxies and passwords, mirrors that are incomplete.

use std::io::Write;
use std::net::TcpListener;

use crate::common::archive::Archive;
use crate::common::mirror::{Manner, Mirror};
use crate::common::run::{Env, Run};

const LOCK: &str = "project/images/kiln.lock";

/// A project, an archive of the sample and a server that has it; apt knows of nothing yet.
fn site() -> (Env, Archive, Mirror) {
    site_of(Archive::sample())
}

fn site_of(mut archive: Archive) -> (Env, Archive, Mirror) {
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    Archive::project(&env, &["hello"]);
    (env, archive, mirror)
}

fn with(env: &Env, variables: &[(&str, &str)], args: &[&str]) -> Run {
    Run::of(&env.command().envs(variables.iter().copied()).args(args).output().unwrap())
}

#[test]
fn an_index_is_asked_for_by_its_name_where_a_mirror_has_no_by_hash_folder() {
    let (env, _, mirror) = site_of(Archive { by_hash: true, ..Archive::sample() });
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"]).ok();
    let asked: Vec<String> = mirror.asked("main/binary-amd64").into_iter().map(|(path, _)| path).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].contains("/by-hash/SHA256/") && asked[1].ends_with("/Packages.xz"), "{asked:?}");
    // Other bytes under that name are not taken.
    let (env, _, mirror) = site_of(Archive { by_hash: true, ..Archive::sample() });
    mirror.answer("Packages.xz", Manner::Flipped);
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"]).fails(4, &["wrong digest"]);
}

#[test]
fn an_index_in_any_packing_is_read_and_the_next_is_asked_for_if_one_is_not_there() {
    for packings in [&[".gz"][..], &[".zst"], &[""], &[".xz", ".gz", ""], &[".xz", ".gz"]] {
        let (env, _, mirror) = site_of(Archive { packings, ..Archive::sample() });
        env.mirrors(&[&mirror.base]);
        env.kiln(&["update"]).ok();
        assert!(env.read(LOCK).contains("hello 1.0-1"), "{packings:?}");
    }
    let (env, _, mirror) = site_of(Archive { packings: &[".lzma"], ..Archive::sample() });
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"])
        .fails(1, &["has no main/binary-amd64/Packages, packed with xz, zstd, gzip or plain"]);
}

#[test]
fn a_release_file_with_its_signature_beside_it_is_believed_by_the_same_rules() {
    let (env, _, mirror) = site_of(Archive { detached: true, ..Archive::sample() });
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"]).ok();
    for (archive, why) in [
        (Archive { signed_by: 1, ..Archive::sample() }, "no good signature by a pinned key"),
        (Archive { age: -30 * 86_400, valid: -86_400, ..Archive::sample() }, "was valid until"),
    ] {
        let (env, _, mirror) = site_of(Archive { detached: true, ..archive });
        env.mirrors(&[&mirror.base]);
        env.kiln(&["update"]).fails(4, &["/Release: ", why]);
    }
    // A changed text, and no signature at all.
    let (env, mut archive, mirror) = site_of(Archive { detached: true, ..Archive::sample() });
    env.mirrors(&[&mirror.base]);
    archive.files.get_mut("dists/trixie/Release").unwrap().extend(b"Changelogs: no\n");
    mirror.replace(&archive.files);
    env.kiln(&["update"]).fails(4, &["it does not fit the text"]);
    archive.files.remove("dists/trixie/Release.gpg");
    mirror.replace(&archive.files);
    env.kiln(&["update"])
        .fails(4, &["/InRelease: it is not there (404 Not Found), nor is Release with Release.gpg"]);
}

#[test]
fn times_are_dates() {
    let (env, _, mirror) = site_of(Archive { age: -30 * 86_400, valid: -3 * 86_400, ..Archive::sample() });
    env.mirrors(&[&mirror.base]);
    let run = env.kiln(&["update"]).fails(4, &["was valid until 20", " UTC, 3 days ago"]);
    assert!(!run.stderr.contains("since 1970"), "{}", run.text());
}

#[test]
fn a_bad_entry_of_an_index_is_left_out_alone_and_named_if_it_is_wanted() {
    let entry = |name: &str, version: &str, more: &str| {
        format!(
            "\nPackage: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\nSize: 1\n{more}"
        )
    };
    let digest = format!("SHA256: {}\n", "a".repeat(64));
    let mut junk = entry("nodigest", "1", "").into_bytes();
    junk.extend(entry("odd", "v1.2.3", &digest).bytes());
    junk.extend(
        entry("latin", "1", &format!("{digest}Description: caf?\n"))
            .bytes()
            .map(|b| if b == b'?' { 0xe9 } else { b }),
    );
    junk.extend(entry("cut", "1", &format!("{digest}no field\n")).bytes());
    junk.extend(entry("last", "1", &digest).bytes());
    let (env, _, mirror) = site_of(Archive { junk, ..Archive::sample() });
    env.mirrors(&[&mirror.base]);
    let run = env.kiln(&["-v", "update"]).ok();
    for said in [
        "): it has no SHA256 field with a digest",
        "): `v1.2.3` is not a Debian version",
        "Left out cut (line ",
    ] {
        assert!(run.stderr.contains(said), "{said}: {}", run.text());
    }
    assert!(env.kiln(&["update"]).ok().stderr.contains("and 2 more"));
    for good in ["latin", "last"] {
        Archive::project(&env, &["hello", good]);
        env.kiln(&["update"]).ok();
        assert!(env.read(LOCK).contains(&format!("name = \"{good}\"")), "{good}");
    }
    for (bad, why) in [("odd", "v1.2.3"), ("nodigest", "SHA256"), ("cut", "no colon")] {
        Archive::project(&env, &["hello", bad]);
        env.kiln(&["update"]).fails(
            1,
            &["a package was left out since its entry cannot be used", bad, why, "trixie/main index"],
        );
    }
}

#[test]
fn sources_that_are_switched_off_or_cannot_be_used_are_left_out_and_that_is_said() {
    let (env, _, mirror) = site();
    let off = Mirror::serve(&Archive::sample().files);
    let stanza = |url: &str, more: &str| {
        format!("Types: deb\nURIs: {url}\nSuites: trixie\nComponents: main\n{more}\n")
    };
    let text = format!(
        "{}{}{}{}",
        stanza(&off.base, "Enabled: off\n"),
        stanza("ftp://bob:s3cr3t@ftp.test/debian", ""),
        stanza("http://x.test/debian", "").replace("Suites: trixie\n", ""),
        stanza(&mirror.base, "")
    );
    env.write("apt/sources.list.d/debian.sources", text.replace('\n', "\r\n"));
    env.write("apt/sources.list.d/third.list", "deb [arch=amd64] http://third.test/apt stable-third main\n");
    env.write("apt/sources.list.d/debian.sources.old", stanza(&off.base, ""));
    let said = [
        "debian.sources:1: `Enabled: off`",
        "debian.sources:7: ftp://***@ftp.test/debian trixie: kiln does not fetch by `ftp`",
        "debian.sources:12: the entry has no `URIs` or no `Suites`",
        "third.list:1: http://third.test/apt stable-third: not a suite of Debian itself",
        "debian.sources.old: apt does not read files with this ending",
    ];
    let verbose = env.kiln(&["-v", "update"]).ok();
    let doctor = env.kiln(&["doctor"]);
    for said in said {
        assert!(verbose.stderr.contains(said), "{said}: {}", verbose.text());
        assert!(doctor.stdout.contains(said), "{said}: {}", doctor.text());
    }
    let known = format!("1. {} (", mirror.base);
    assert!(
        doctor.stdout.contains(&known) && doctor.stdout.contains("debian.sources:16)"),
        "{}",
        doctor.text()
    );
    assert!(!format!("{}{}", verbose.text(), doctor.text()).contains("s3cr3t"));
    assert_eq!(off.asked("").len(), 0);
    // Without -v only the mistake is said.
    let run = env.kiln(&["update"]).ok();
    assert!(run.stderr.contains("debian.sources:12") && !run.stderr.contains("third.test"), "{}", run.text());
}

#[test]
fn lists_of_mirrors_are_read_from_files_and_from_the_network() {
    let (env, archive, mirror) = site();
    let mut files = archive.files.clone();
    files.insert("list".to_owned(), format!("# mirrors\nfile:/nowhere\n{}/\n", mirror.base).into_bytes());
    let lists = Mirror::serve(&files);
    let mut partial = archive.files.clone();
    partial.retain(|path, _| path.starts_with("pool/"));
    let partial = Mirror::serve(&partial);
    let list = format!("{}\tpriority:2\n{}\tpriority:1 type:deb arch:amd64\n", mirror.base, partial.base);
    env.write("lists/debian.list", list);
    let path = env.path("lists/debian.list");
    let update = |source: &str| {
        env.write("apt/sources.list", format!("deb {source} trixie main\n"));
        env.kiln(&["-v", "update"])
    };
    for source in [format!("mirror+file:{}", path.display()), format!("mirror+file://{}", path.display())] {
        update(&source).ok();
        assert_eq!(partial.asked("dists").len(), 0, "it is for packages only");
        env.kiln(&["build", "--profile", "server"]).fails(1, &["no package of the profile holds a kernel"]);
        assert!(!partial.asked("pool").is_empty());
    }
    for scheme in ["mirror+http", "mirror"] {
        let run = update(&format!("{}/list", lists.base.replacen("http", scheme, 1))).ok();
        assert!(run.stderr.contains("names no files of this machine"), "{}", run.text());
    }
    let run = update(&format!("mirror+file:{}", env.path("none").display()))
        .fails(4, &["no mirror has usable metadata"]);
    assert!(run.stderr.contains("sources.list:1: the list of mirrors file:"), "{}", run.text());
}

#[test]
fn folders_of_this_machine_are_mirrors() {
    let (env, archive, _) = site();
    let folder = env.path("srv/my mirror/debian");
    archive.write_to(&folder);
    let encoded = folder.display().to_string().replace(' ', "%20");
    let fetched = |env: &Env, variables: &[(&str, &str)]| {
        fs_err::remove_dir_all(env.store()).ok();
        fs_err::remove_file(env.path(LOCK)).ok();
        with(env, variables, &["update"]).ok();
        with(env, variables, &["build", "--profile", "server"]).fails(1, &["holds a kernel"]);
    };
    for scheme in ["file:", "file://", "copy:"] {
        let stanza = format!("Types: deb\nURIs: {scheme}{encoded}\nSuites: trixie\nComponents: main\n");
        env.write("apt/sources.list.d/a.sources", stanza);
        fetched(&env, &[]);
    }
    fs_err::remove_dir_all(env.path("apt/sources.list.d")).unwrap();
    let above = encoded.trim_end_matches("/debian");
    for value in
        [format!("file://{above}"), format!("file://{above}/{{archive}}"), format!("file://{encoded}/")]
    {
        fetched(&env, &[("KILN_DEBIAN_MIRROR", &value)]);
    }
    env.write("home/.config/kiln/config.toml", format!("mirrors = [\"file:{above}\"]\n"));
    fetched(&env, &[]);
    // What is not there, and what cannot be a mirror, is said.
    env.write("home/.config/kiln/config.toml", "mirrors = [\"file:/nowhere\"]\n");
    with(&env, &[("KILN_DEBIAN_MIRROR", "gopher://h.test/x")], &["update"]).fails(
        4,
        &[
            "file:/nowhere/debian/dists/trixie/InRelease: it is not there",
            "KILN_DEBIAN_MIRROR: gopher://h.test/x: kiln does not fetch by `gopher`",
        ],
    );
}

#[test]
fn passwords_are_sent_where_they_belong_and_shown_nowhere() {
    // base64 of bob:s3cr3t
    const HEADER: &str = "authorization: Basic Ym9iOnMzY3IzdA==";
    let sent = |mirror: &Mirror| {
        mirror.heads("").iter().filter(|head| head.to_lowercase().contains(&HEADER.to_lowercase())).count()
    };
    let (env, _, mirror) = site();
    let host = mirror.base.trim_start_matches("http://").to_owned();
    let with_password = format!("http://bob:s3cr3t@{host}");
    env.mirrors(&[&with_password]);
    let mut said = env.kiln(&["-v", "update"]).ok().text();
    assert_eq!(sent(&mirror), mirror.asked("").len());
    said.push_str(&env.read(LOCK));
    for args in [&["doctor"][..], &["--json", "doctor"]] {
        said.push_str(&env.kiln(args).text());
    }
    mirror.answer("dists", Manner::Broken);
    for args in [&["-v", "update"][..], &["--json", "update"], &["doctor"]] {
        said.push_str(&env.kiln(args).text());
    }
    let run = env.command().env("KILN_LOG", "trace").args(["update"]).output().unwrap();
    said.push_str(&Run::of(&run).text());
    env.write("apt/sources.list", "");
    said.push_str(&with(&env, &[("KILN_DEBIAN_MIRROR", &with_password)], &["-v", "update"]).text());
    env.write("home/.config/kiln/config.toml", "mirrors = [\"http://bob:s3cr3t@h.test\", 1]\n");
    said.push_str(&env.kiln(&["update"]).text());
    assert!(!said.contains("s3cr3t") && said.contains("http://***@127.0.0.1"), "{said}");

    // By auth.conf: in clear only where it names the scheme.
    let (env, _, mirror) = site();
    env.mirrors(&[&mirror.base]);
    let machine =
        |scheme: &str| format!("machine {scheme}{}\nlogin bob\npassword s3cr3t\n", host_of(&mirror));
    env.write("apt/auth.conf.d/a.conf", machine(""));
    env.kiln(&["update"]).ok();
    assert_eq!(sent(&mirror), 0);
    let doctor = env.kiln(&["doctor"]).stdout;
    assert!(
        doctor.contains("a.conf:1 is not sent without TLS: write `machine http://127.0.0.1`"),
        "{doctor}"
    );
    env.write("apt/auth.conf", machine("http://"));
    let run = env.kiln(&["-v", "update"]).ok();
    assert!(sent(&mirror) > 0 && !run.text().contains("s3cr3t"));
    assert!(env.kiln(&["doctor"]).stdout.contains("with a password of auth.conf"));
}

fn host_of(mirror: &Mirror) -> String {
    mirror.origin().trim_start_matches("http://").to_owned()
}

/// Sends whoever asks to `to`.
fn redirector(to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/debian", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            let n = std::io::Read::read(&mut stream, &mut buffer).unwrap_or(0);
            let head = String::from_utf8_lossy(&buffer[..n]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {to}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            .ok();
        }
    });
    base
}

#[test]
fn a_redirect_is_followed_without_the_password_of_the_first_place_and_shows_none() {
    let (env, _, mirror) = site();
    let base = redirector(mirror.origin());
    env.mirrors(&[&base.replace("http://", "http://bob:s3cr3t@")]);
    env.kiln(&["update"]).ok();
    assert!(mirror.heads("").iter().all(|head| !head.to_lowercase().contains("authorization")));
    let base = redirector("http://ann:t0ken@127.0.0.1:9".to_owned());
    env.mirrors(&[&base]);
    let run = env.kiln(&["-v", "update"]).fails(4, &["it redirects to http://***@127.0.0.1:9/"]);
    assert!(!run.text().contains("t0ken"));
    let base = redirector("file:///etc/passwd?".to_owned());
    env.mirrors(&[&base]);
    env.kiln(&["update"]).fails(4, &["it redirects to a place without TLS"]);
}

#[test]
fn proxies_of_apt_and_of_the_environment_are_used_and_named() {
    let (env, _, proxy) = site();
    env.mirrors(&["http://deb.invalid/debian"]);
    let conf = |text: &str| env.write("apt/apt.conf.d/80proxy", text);
    conf(&format!("Acquire {{ http {{ Proxy \"{}\"; }}; }};\n", proxy.origin()));
    env.kiln(&["update"]).ok();
    assert!(!proxy.asked("InRelease").is_empty());
    let doctor = env.kiln(&["doctor"]).stdout;
    let said = format!("through the proxy {} of Acquire::http::Proxy (", proxy.origin());
    assert!(doctor.contains(&said) && doctor.contains("80proxy:1)"), "{doctor}");

    conf("// comment\nAcquire::http::Proxy \"http://bob:s3cr3t@127.0.0.1:9/\";\n");
    let run = env
        .kiln(&["update"])
        .fails(4, &["the proxy http://***@127.0.0.1:9/ of Acquire::http::Proxy (", "80proxy:2) is between"]);
    assert!(!run.text().contains("s3cr3t"));
    conf(&format!(
        "Acquire::http::Proxy \"http://127.0.0.1:9\" {{ deb.invalid \"{}\"; }};\n",
        proxy.origin()
    ));
    env.kiln(&["update"]).ok();
    conf("Acquire::http::Proxy::deb.invalid \"DIRECT\";\n");
    let run = with(&env, &[("http_proxy", &proxy.origin())], &["update"]).fails(4, &["deb.invalid"]);
    assert!(!run.stderr.contains("http_proxy"), "{}", run.text());

    conf("");
    with(&env, &[("http_proxy", &proxy.origin())], &["update"]).ok();
    with(&env, &[("http_proxy", "http://127.0.0.1:9")], &["update"])
        .fails(4, &["the proxy http://127.0.0.1:9 of http_proxy is between"]);
    with(&env, &[("http_proxy", "ftp://127.0.0.1:9")], &["update"])
        .fails(4, &["the proxy ftp://127.0.0.1:9 of http_proxy is of a kind that kiln does not know"]);
    with(&env, &[("all_proxy", "socks5://bob:s3cr3t@127.0.0.1:9")], &["update"])
        .fails(4, &["the proxy socks5://***@127.0.0.1:9 of all_proxy is between"]);
    conf("Acquire::http::Proxy-Auto-Detect \"/bin/false\";\n");
    let run = env.kiln(&["-v", "update"]);
    assert!(run.stderr.contains("kiln does not run the program that finds a proxy"), "{}", run.text());
}

/// Speaks enough of SOCKS 5 (RFC 1928) to connect to `target`, whatever is asked for.
fn socks(target: String) -> String {
    use std::io::Read;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let target = target.clone();
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut head = [0; 2];
                stream.read_exact(&mut head)?;
                stream.read_exact(&mut vec![0; usize::from(head[1])])?;
                stream.write_all(&[5, 0])?;
                let mut request = [0; 5];
                stream.read_exact(&mut request)?;
                // A name of so many bytes, and a port.
                stream.read_exact(&mut vec![0; usize::from(request[4]) + 2])?;
                stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
                let mut to = std::net::TcpStream::connect(target)?;
                let (mut back, mut from) = (stream.try_clone()?, to.try_clone()?);
                std::thread::spawn(move || std::io::copy(&mut from, &mut back));
                std::io::copy(&mut stream, &mut to).map(drop)
            });
        }
    });
    address
}

#[test]
fn a_socks_proxy_of_all_proxy_leads_to_a_mirror() {
    let (env, _, mirror) = site();
    env.mirrors(&["http://deb.invalid/debian"]);
    let proxy = format!("socks5h://{}", socks(host_of(&mirror)));
    with(&env, &[("all_proxy", &proxy)], &["update"]).ok();
    assert!(!mirror.asked("InRelease").is_empty());
}

#[test]
fn what_apt_says_about_certificates_is_used_or_the_option_is_named() {
    let (env, ..) = site();
    env.mirrors(&["https://127.0.0.1:9/debian"]);
    let no_proxy = [("no_proxy", "127.0.0.1")];
    for (option, file, why) in [
        ("Acquire::https::CaInfo", "/nowhere.pem", "cannot be read"),
        ("Acquire::https::127.0.0.1::CaInfo", "/dev/null", "is not what it should be in PEM format"),
        ("Acquire::https::SslCert::127.0.0.1", "/dev/null", "is not what it should be in PEM format"),
    ] {
        env.write("apt/apt.conf", format!("{option} \"{file}\";\n"));
        with(&env, &no_proxy, &["update"]).fails(4, &[option, "apt.conf:1", why]);
    }
    env.write("apt/apt.conf", "Acquire::https::Verify-Peer \"false\";\n");
    let doctor = with(&env, &no_proxy, &["doctor"]).stdout;
    assert!(doctor.contains("its certificate is not looked at, since Verify-Peer is false"), "{doctor}");
}
