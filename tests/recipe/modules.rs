//! Go modules from a proxy of the test, as the machine's own settings name it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use kiln::digest::Digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::common::mirror::Mirror;
use crate::common::run::Run;
use crate::lab::Lab;

/// A zip archive of stored files (APPNOTE.TXT 4.3): local headers with data, the central directory, its end.
pub(super) fn zip(files: &[(String, &[u8])]) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let size = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let offset = u32::try_from(out.len()).unwrap().to_le_bytes();
        let name_length = u16::try_from(name.len()).unwrap().to_le_bytes();
        // Version 2.0, no flags, stored, no time; then checksum, both sizes, length of the name, no extra field.
        let mut header = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header.extend(crc.sum().to_le_bytes());
        header.extend([size, size].concat());
        header.extend(name_length);
        header.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&header);
        out.extend(name.bytes());
        out.extend(*bytes);
        central.extend(b"PK\x01\x02\x14\x00");
        central.extend(&header);
        central.extend([0; 10]);
        central.extend(offset);
        central.extend(name.bytes());
    }
    let count = u16::try_from(files.len()).unwrap().to_le_bytes();
    let start = u32::try_from(out.len()).unwrap().to_le_bytes();
    let length = u32::try_from(central.len()).unwrap().to_le_bytes();
    out.extend(central);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count, count].concat());
    out.extend([length, start].concat());
    out.extend([0, 0]);
    out
}

/// Go's dirhash (golang.org/x/mod/sumdb/dirhash, Hash1): the digest of a list of digests, in base64.
fn h1(files: &[(String, &[u8])]) -> String {
    let list: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", Digest::of(bytes))).collect();
    let digest = Digest::of(list.as_bytes());
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("h1:");
    for group in digest.as_bytes().chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, i| bits << 8 | u32::from(*group.get(i).unwrap_or(&0)));
        for i in 0..4_usize {
            let index = usize::try_from(bits >> (18 - 6 * i) & 63).unwrap();
            text.push(if i <= group.len() { char::from(LETTERS[index]) } else { '=' });
        }
    }
    text
}

const MODULE: &str = "example.test/greet";
const GO_MOD: &[u8] = b"module example.test/greet\n\ngo 1.24\n";
const GREET: &[u8] = b"package greet\n\nconst Word = \"hello from a module\"\n";

/// A proxy with one module, and the lines of go.sum for it.
fn proxy() -> (Mirror, String) {
    let (served, sums) = files();
    (Mirror::serve(&served), sums)
}

/// What a proxy with one module has, by path, and the lines of go.sum for it.
fn files() -> (BTreeMap<String, Vec<u8>>, String) {
    let name = |file: &str| format!("{MODULE}@v1.0.0/{file}");
    let files = [(name("go.mod"), GO_MOD), (name("greet.go"), GREET)];
    let sums = format!(
        "{MODULE} v1.0.0 {}\n{MODULE} v1.0.0/go.mod {}\n",
        h1(&files),
        h1(&[("go.mod".to_owned(), GO_MOD)])
    );
    let served: BTreeMap<String, Vec<u8>> = [
        ("info", b"{\"Version\":\"v1.0.0\",\"Time\":\"2026-01-01T00:00:00Z\"}".to_vec()),
        ("mod", GO_MOD.to_vec()),
        ("zip", zip(&files)),
    ]
    .map(|(kind, bytes)| (format!("{MODULE}/@v/v1.0.0.{kind}"), bytes))
    .into();
    (served, sums)
}

fn lab(sums: &str) -> Lab {
    let lab = Lab::new();
    let script = r#"
        if bash -c "exec 3<>/dev/tcp/127.0.0.1/$PORT"; then echo "the build has a network"; exit 1; fi
        cp -r /inputs/recipe/program src
        ln -s /inputs/modules src/vendor
        cd src
        go build -mod=vendor -trimpath -o hello .
        ./hello 2> "$KILN_OUT/result"
    "#;
    let env = "[env]\nCGO_ENABLED = \"0\"\nGOCACHE = \"/build/cache\"\nGOPROXY = \"off\"\nGOTOOLCHAIN = \"local\"\n";
    lab.recipe(
        "modules",
        script,
        &format!("{env}PORT = \"1\"\n[inputs.modules]\ngo-modules = \"program\"\n"),
    );
    lab.file("modules", "recipe.toml", lab.read("modules", "recipe.toml").replace("build-c", "build-go"));
    let require = format!("module example.test/hello\n\ngo 1.24\n\nrequire {MODULE} v1.0.0\n");
    lab.file("modules", "program/go.mod", require);
    lab.file("modules", "program/go.sum", sums);
    let main = format!("package main\n\nimport \"{MODULE}\"\n\nfunc main() {{\n\tprintln(greet.Word)\n}}\n");
    lab.file("modules", "program/main.go", main);
    lab
}

/// kiln on a machine whose `go env -w` names the proxy.
fn kiln(lab: &Lab, proxy: &str, args: &[&str]) -> Run {
    fs_err::create_dir_all(lab.path(".config/go")).unwrap();
    fs_err::write(lab.path(".config/go/env"), format!("GOPROXY={proxy}\nGONOSUMDB=*\nGOFLAGS=-modcacherw\n"))
        .unwrap();
    Run::of(&lab.command(args).output().unwrap())
}

#[test]
fn go_modules_come_from_the_machines_own_proxy_by_digest_and_the_build_has_no_network() {
    let (mirror, sums) = proxy();
    let lab = lab(&sums);
    let kiln = |args: &[&str]| kiln(&lab, &mirror.base, args);
    let port = mirror.base.split(['/', ':']).nth(4).unwrap().to_owned();
    let set = |from: &str, to: &str| {
        let text = lab.read("modules", "recipe.toml");
        assert!(text.contains(from), "{text}");
        lab.file("modules", "recipe.toml", text.replace(from, to));
    };
    set("PORT = \"1\"", &format!("PORT = \"{port}\""));
    kiln(&["build", "modules"])
        .fails(1, &["input `modules`: it has no `sha256`", "kiln recipe hash modules"]);
    let hashes = kiln(&["hash", "modules", "--json"]).ok().json();
    let right = hashes["modules"].as_str().unwrap().to_owned();
    assert_eq!(mirror.asked("greet/@v/v1.0.0.zip").len(), 1);

    let wrong = right.replace(|c: char| c.is_ascii_digit(), "a");
    set("go-modules = \"program\"", &format!("go-modules = \"program\"\nsha256 = \"{wrong}\""));
    let run = kiln(&["build", "modules"]);
    run.fails(
        1,
        &[&format!("got    {right}"), &format!("wanted {wrong}"), &format!("set sha256 = \"{right}\"")],
    );

    set(&wrong, &right);
    let asked = mirror.asked("").len();
    let run = kiln(&["build", "modules"]).ok();
    assert_eq!(mirror.asked("").len(), asked, "what `hash` fetched is not fetched again: {}", run.text());
    let result = fs_err::read_to_string(std::path::Path::new(run.stdout.trim()).join("result")).unwrap();
    assert_eq!(result, "hello from a module\n");
}

#[test]
fn modules_that_go_sum_does_not_know_or_no_proxy_has_are_errors_of_the_network() {
    let (mirror, sums) = proxy();
    let lab = lab(&sums);
    kiln(&lab, "http://127.0.0.1:9", &["hash", "modules"]).fails(4, &["connection refused", "the whole log"]);
    lab.file("modules", "program/go.sum", sums.replace("h1:", "h1:AAAA"));
    kiln(&lab, &mirror.base, &["hash", "modules"])
        .fails(4, &["fetching Go modules `modules` of recipe modules failed"]);
    lab.file("modules", "program/go.sum", "");
    kiln(&lab, &mirror.base, &["hash", "modules"]).fails(4, &["missing go.sum entry"]);
}

/// The proxy's files in a folder, as `file:` proxies and Go's own cache have them.
fn folder(lab: &Lab, name: &str) -> (String, String) {
    let (served, sums) = files();
    for (path, bytes) in served {
        let path = lab.path(name).join(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }
    for folder in [lab.path(""), lab.path(name)] {
        fs_err::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    (format!("file://{}", lab.path(name).display().to_string().replace(' ', "%20")), sums)
}

#[test]
fn a_proxy_in_a_folder_of_this_machine_is_shown_to_the_sandbox_and_direct_is_left_out_of_a_list() {
    let (_, sums) = files();
    let lab = lab(&sums);
    let (url, _) = folder(&lab, "go proxy");
    for list in [
        url.clone(),
        format!("{url},direct"),
        format!("direct|{url}"),
        format!("file:///no/such/proxy|{url},off"),
    ] {
        let run = kiln(&lab, &list, &["-v", "hash", "modules", "--json"]).ok();
        assert_eq!(run.json()["modules"].as_str().unwrap().len(), 64, "{}", run.text());
        let said = [("direct", "direct of GOPROXY: it needs git"), ("no/such", "/no/such/proxy of GOPROXY")];
        for (word, text) in said {
            assert_eq!(run.stderr.contains(text), list.contains(word), "{list}: {}", run.text());
        }
    }
    // The list is there for what its first proxy does not have.
    fs_err::create_dir_all(lab.path("empty")).unwrap();
    let empty = format!("file://{}", lab.path("empty").display());
    kiln(&lab, &format!("{empty},{url}"), &["hash", "modules"]).ok();
    let run = kiln(&lab, &format!("{empty},direct"), &["hash", "modules"]);
    run.fails(4, &["left out: direct of GOPROXY: it needs git"]);
}

#[test]
fn what_needs_git_or_is_no_proxy_is_refused_at_once_with_a_remedy() {
    let (_, sums) = files();
    let lab = lab(&sums);
    // Before anything is unpacked: this store has nothing.
    let kiln = |setting: &str| {
        let mut kiln = lab.command(&["hash", "modules"]);
        let (name, value) = setting.split_once('=').unwrap();
        Run::of(&kiln.env("KILN_STORE", lab.path("new store")).env(name, value).output().unwrap())
    };
    for (setting, words) in [
        ("GOPROXY=direct", &["GOPROXY=direct", "needs git", "build-go", "file:///FOLDER"][..]),
        ("GOPROXY=off", &["GOPROXY=off", "forbids", "file:///FOLDER"]),
        ("GOPROXY=/srv/goproxy", &["write file:///srv/goproxy"]),
        ("GOPROXY=file:///srv/no-such-proxy", &["/srv/no-such-proxy"]),
        ("GOPROXY=ftp://me:hush@a.example", &["ftp://***@a.example", "http, https and file"]),
        ("GOPRIVATE=*.test", &["example.test/greet", "GOPRIVATE", "needs git", "GONOPROXY=none"]),
    ] {
        let run = kiln(setting).fails(1, words);
        assert!(
            !run.text().contains("hush") && !run.text().contains("Fetching"),
            "{setting}: {}",
            run.text()
        );
    }
}

/// kiln with these variables; nothing that it says, or leaves as a log, has the password.
fn with(lab: &Lab, variables: &[(&str, &str)]) -> Run {
    let mut kiln = lab.command(&["-vv", "hash", "modules"]);
    kiln.env("GONOSUMDB", "*").envs(variables.iter().copied());
    let run = Run::of(&kiln.output().unwrap());
    let log = Run::of(&lab.command(&["log", "modules-modules"]).output().unwrap());
    assert!(!run.text().contains("hush") && !log.text().contains("hush"), "{}{}", run.text(), log.text());
    run
}

#[test]
fn passwords_and_certificates_of_a_proxy_are_there_and_are_never_shown() {
    let (served, sums) = files();
    let lab = lab(&sums);
    let door = Door::serve(&served, "Basic bWU6aHVzaA==");
    let url = |user: &str| format!("https://{user}{}", door.host);
    let trust = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/certificate.pem");
    let (named, open) = (url("me:hush@"), url(""));
    with(&lab, &[("GOPROXY", &named)]).fails(4, &["certificate"]);
    with(&lab, &[("GOPROXY", &named), ("SSL_CERT_FILE", trust)]).ok();
    with(&lab, &[("GOPROXY", &url("me:wrong-hush@")), ("SSL_CERT_FILE", trust)]).fails(4, &["401"]);
    with(&lab, &[("GOPROXY", &open), ("SSL_CERT_FILE", trust)]).fails(4, &["401"]);

    // In a file that its owner alone can read, with an authority out of a folder.
    let folder = lab.path("trusted");
    fs_err::create_dir(&folder).unwrap();
    fs_err::copy(trust, folder.join("own.pem")).unwrap();
    let folder = folder.display().to_string();
    let netrc = |path: &Path| {
        let bare = door.host.split(':').next().unwrap();
        let lines = [bare, &door.host].map(|machine| format!("machine {machine} login me password hush\n"));
        fs_err::write(path, lines.concat()).unwrap();
        fs_err::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    netrc(&lab.path("elsewhere"));
    let elsewhere = lab.path("elsewhere").display().to_string();
    with(&lab, &[("GOPROXY", &open), ("SSL_CERT_DIR", &folder), ("NETRC", &elsewhere)]).ok();
    netrc(&lab.path(".netrc"));
    with(&lab, &[("GOPROXY", &open), ("SSL_CERT_DIR", &folder)]).ok();
    with(&lab, &[("GOPROXY", &open), ("SSL_CERT_DIR", &folder), ("GOAUTH", "off")]).fails(4, &["401"]);
    // Programs of this machine that know passwords are not there, and that is said.
    let run =
        with(&lab, &[("GOPROXY", &open), ("SSL_CERT_DIR", &folder), ("GOAUTH", "/bin/login --key hush")]);
    assert!(run.ok().stderr.contains("`/bin/login` of GOAUTH"));
}

/// A proxy by TLS that wants this Authorization.
struct Door {
    /// `127.0.0.1:port`.
    host: String,
}

impl Door {
    fn serve(files: &BTreeMap<String, Vec<u8>>, wanted: &'static str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let files = files.clone();
        let pem = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
        let certificate = CertificateDer::from_pem_file(pem("certificate.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(pem("key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(tls, stream);
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.extend(byte);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
                let (status, body) = match files.get(path) {
                    _ if !head.contains(wanted) => ("401 Unauthorized", &[][..]),
                    Some(bytes) => ("200 OK", bytes.as_slice()),
                    None => ("404 Not Found", &[][..]),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), body].concat());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        Door { host }
    }
}
