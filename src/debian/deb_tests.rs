use super::*;
use proptest::prelude::*;
use std::io::Write;

/// What a package gave, as lines of text.
#[derive(Default)]
struct Lines(Vec<String>);

impl Sink for Lines {
    fn entry(&mut self, path: TreePath, meta: Meta, node: Node<'_>) -> io::Result<()> {
        let what = match node {
            Node::File { size, reader } => {
                let mut text = String::new();
                reader.read_to_string(&mut text)?;
                assert_eq!(text.len() as u64, size);
                format!("file {text:?}")
            }
            other => format!("{other:?}"),
        };
        self.0.push(format!("{path} {:o} {}:{} {} {what}", meta.mode, meta.uid, meta.gid, meta.mtime));
        Ok(())
    }
}

/// Reads nothing of what it is given.
struct Blind;

impl Sink for Blind {
    fn entry(&mut self, _: TreePath, _: Meta, _: Node<'_>) -> io::Result<()> {
        Ok(())
    }
}

const CONTROL: &str =
    "Package: demo\nVersion: 1.0-1\nArchitecture: all\nDescription: a demo\n of two lines\n";

/// A header with `path` put in as it is, since `tar::Builder` would refuse the hostile ones.
fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header
}

#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, mut header: tar::Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn dir(self, path: &str) -> Self {
        self.raw(header(path, tar::EntryType::Directory, 0), b"")
    }

    fn file(self, path: &str, text: &str) -> Self {
        self.raw(header(path, tar::EntryType::Regular, text.len() as u64), text.as_bytes())
    }

    fn link(self, kind: tar::EntryType, path: &str, target: &str) -> Self {
        let mut header = header(path, kind, 0);
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut len = rest.len() + 1;
            while format!("{len}{rest}").len() != len {
                len += 1;
            }
            text.push_str(&format!("{len}{rest}"));
        }
        self.raw(header("pax", tar::EntryType::XHeader, text.len() as u64), text.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = AR_MAGIC.to_vec();
    for (name, bytes) in members {
        out.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).bytes(),
        );
        out.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

fn control_tar() -> Vec<u8> {
    Tar::default()
        .dir("./")
        .file("./control", CONTROL)
        .file("./conffiles", "/etc/demo\nremove-on-upgrade /etc/old\n")
        .file("./postinst", "#!/bin/sh\n")
        .file("./config", "#!/bin/sh\n")
        .file("./md5sums", "")
        .file("./triggers", "activate-noawait ldconfig\n")
        .end()
}

fn deb_with(data: Vec<u8>) -> Vec<u8> {
    ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar()), ("data.tar", &data)])
}

fn read_lines(deb: &[u8], limits: &Limits) -> Result<(Control, Vec<String>), DebError> {
    let mut lines = Lines::default();
    read(deb, limits, &mut lines).map(|control| (control, lines.0))
}

/// The whole error of a package with this data archive: cause and all.
fn refusal(data: Tar) -> String {
    let error = read_lines(&deb_with(data.end()), &Limits::default()).unwrap_err();
    format!("{:#}", anyhow::Error::from(error))
}

fn sample() -> Tar {
    Tar::default()
        .dir("./")
        .dir("./usr/")
        .file("./usr/a", "hello")
        .link(tar::EntryType::Link, "./usr/b", "./usr/a")
        .link(tar::EntryType::Symlink, "./usr/c", "/nowhere")
        .file("./usr/empty", "")
}

const SAMPLE: [&str; 5] = [
    "usr 644 1:2 3 Dir",
    "usr/a 644 1:2 3 file \"hello\"",
    "usr/b 644 1:2 3 HardLink { target: \"usr/a\" }",
    "usr/c 644 1:2 3 Symlink { target: \"/nowhere\" }",
    "usr/empty 644 1:2 3 file \"\"",
];

fn xz(bytes: &[u8]) -> Vec<u8> {
    // Blocks of 4 KiB, so that the decoder of several threads has something to share out.
    let stream = MtStreamBuilder::new().threads(1).preset(1).block_size(4096).encoder().unwrap();
    let mut out = Vec::new();
    liblzma::read::XzEncoder::new_stream(bytes, stream).read_to_end(&mut out).unwrap();
    out
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

#[test]
fn reads_control_and_entries_whatever_the_compression_and_the_threads() {
    let (control, data) = (control_tar(), sample().file("./usr/big", &"x".repeat(100_000)).end());
    let zst = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let debs = [
        ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &data)]),
        ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz", &gz(&control)), ("data.tar.gz", &gz(&data))]),
        ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", &xz(&control)), ("data.tar.xz", &xz(&data))]),
        ar(&[
            ("debian-binary/", b"2.1\nx\n"),
            ("control.tar.zst", &zst(&control)),
            ("data.tar.zst", &zst(&data)),
        ]),
    ];
    for deb in debs {
        for threads in [1, 3] {
            let (control, lines) = read_lines(&deb, &Limits { threads, ..Limits::default() }).unwrap();
            assert_eq!(lines[..5], SAMPLE);
            assert!(lines[5].starts_with("usr/big") && lines[5].len() > 100_000);
            assert_eq!((control.package.as_str(), control.version.as_str()), ("demo", "1.0-1"));
            assert_eq!(
                (control.architecture.as_str(), control.get("description")),
                ("all", Some("a demo\n of two lines"))
            );
            assert_eq!(control.conffiles, [TreePath::new("etc/demo").unwrap()]);
            assert_eq!(control.scripts, ["config", "postinst"]);
            assert_eq!(control.triggers.as_deref(), Some("activate-noawait ldconfig\n"));
        }
        read(deb.as_slice(), &Limits::default(), &mut Blind).unwrap();
    }
}

#[test]
fn a_package_cut_at_any_byte_is_refused() {
    let whole = ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", &xz(&control_tar())),
        ("data.tar.xz", &xz(&sample().end())),
    ]);
    read(whole.as_slice(), &Limits::default(), &mut Blind).unwrap();
    for len in 0..whole.len() {
        assert!(
            read(&whole[..len], &Limits::default(), &mut Blind).is_err(),
            "cut at {len} of {}",
            whole.len()
        );
    }
}

#[test]
fn paths_that_leave_the_package_are_refused_with_their_name() {
    for (path, reason) in [
        ("../etc/passwd", "`..` component"),
        ("./usr/../../x", "`..` component"),
        ("/etc/passwd", "the path is absolute"),
        ("./a//b", "empty component"),
    ] {
        let error = refusal(Tar::default().file(path, "x"));
        assert!(error.contains(path) && error.contains(reason), "{error}");
    }
    let error =
        refusal(Tar::default().link(tar::EntryType::Symlink, "./usr/x", "/etc").file("./usr/x/y", ""));
    assert_eq!(error, "data.tar: ./usr/x/y: it goes through the symbolic link /usr/x of the same package");
    let error = refusal(Tar::default().link(tar::EntryType::Link, "./x", "../../etc/shadow"));
    assert!(error.contains("the target of the hard link"), "{error}");
    let deep = "a/".repeat(65);
    assert!(
        refusal(Tar::default().dir(&deep[..90]).pax(&[("path", &deep)]).dir("x")).contains("levels deep")
    );
}

#[test]
fn what_cannot_be_kept_is_refused() {
    use tar::EntryType;
    let short = |path| header(path, EntryType::Regular, 0);
    let mut sparse = header("s", EntryType::GNUSparse, 0);
    sparse.as_gnu_mut().unwrap().realsize[..11].copy_from_slice(b"00000000000");
    for (data, reason) in [
        (Tar::default().raw(sparse, b""), "no package has"),
        (Tar::default().raw(header("v", EntryType::new(b'V'), 0), b""), "an entry of type 'V'"),
        (Tar::default().raw(header("g", EntryType::XGlobalHeader, 0), b""), "an entry of type 'g'"),
        (Tar::default().pax(&[("GNU.sparse.major", "1")]).file("x", ""), "`GNU.sparse.major`"),
        (Tar::default().pax(&[("size", "5")]).raw(short("x"), b"hello"), "`size`"),
        (Tar::default().raw(header("d", EntryType::Directory, 3), b"abc"), "only a regular file"),
        (Tar::default().raw(short("file/"), b""), "ends with a slash"),
        (Tar::default().link(EntryType::Symlink, "x", ""), "without a target"),
        (Tar::default().file("./", ""), "not a plain directory"),
    ] {
        let error = refusal(data);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn long_names_times_and_attributes_come_from_pax_records() {
    let long = format!("./{}/{}", "d".repeat(200), "f".repeat(200));
    let data = Tar::default()
        .pax(&[("path", &long), ("mtime", "1700000000.25"), ("uid", "4000000"), ("SCHILY.xattr.user.x", "v")])
        .file("short", "hi");
    struct One(Vec<(String, Meta)>);
    impl Sink for One {
        fn entry(&mut self, path: TreePath, meta: Meta, _: Node<'_>) -> io::Result<()> {
            self.0.push((path.to_string(), meta));
            Ok(())
        }
    }
    let mut one = One(Vec::new());
    read(deb_with(data.end()).as_slice(), &Limits::default(), &mut one).unwrap();
    let (path, meta) = &one.0[0];
    assert_eq!(path, &long[2..]);
    assert_eq!((meta.mtime, meta.uid), (1_700_000_000, 4_000_000));
    assert_eq!(meta.xattrs["user.x"], b"v");
}

#[test]
fn each_limit_stops_the_reading() {
    let data = sample().file("./big", &"x".repeat(10_000)).end();
    let deb =
        ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar()), ("data.tar.gz", &gz(&data))]);
    let base = Limits::default;
    for (limits, reason) in [
        (Limits { max_file: 9_999, ..base() }, "/big: its size of 10000 bytes is over the limit of 9999"),
        (Limits { max_total: 8_000, ..base() }, "its unpacked size is over the limit"),
        (Limits { max_control: 600, ..base() }, "control.tar: its unpacked size is over the limit"),
        (Limits { max_entries: 3, ..base() }, "more than 3 entries"),
        (Limits { max_depth: 1, ..base() }, "levels deep"),
    ] {
        let error = read_lines(&deb, &limits).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let xz = ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", &xz(&control_tar()))]);
    for threads in [1, 2] {
        let small = Limits { xz_memory: 1000, threads, ..base() };
        assert!(read_lines(&xz, &small).unwrap_err().to_string().contains("control.tar.xz"));
    }
}

#[test]
fn a_name_or_record_that_claims_gigabytes_is_not_read_into_memory() {
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
        let data = Tar::default().raw(header("x", kind, 3 << 20), &vec![b'a'; 3 << 20]).file("y", "");
        let error = refusal(data);
        assert!(error.contains("the header of an entry is over the limit"), "{error}");
    }
}

#[test]
fn a_failing_sink_is_told_apart_from_a_damaged_package() {
    struct Full;
    impl Sink for Full {
        fn entry(&mut self, _: TreePath, _: Meta, _: Node<'_>) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let error = read(deb_with(sample().end()).as_slice(), &Limits::default(), &mut Full).unwrap_err();
    assert!(
        matches!(&error, DebError::Sink { path, source } if path == "usr" && source.kind() == io::ErrorKind::StorageFull)
    );
    // A file that announces more than there is.
    let mut data = Tar::default().file("x", &"y".repeat(600)).0;
    data.truncate(700);
    let error = read(deb_with(data).as_slice(), &Limits::default(), &mut Lines::default()).unwrap_err();
    assert_eq!(error.to_string(), "data.tar: /x: the archive ends inside its content");
}

#[test]
fn the_outer_archive_must_be_that_of_a_deb() {
    let (control, data) = (control_tar(), sample().end());
    let bin: (&str, &[u8]) = ("debian-binary", b"2.0\n");
    let garbage =
        [&deb_with(data.clone())[..], b"garbage behind the last member, longer than a header of sixty bytes"]
            .concat();
    let doubled = [gz(&data), b"junk".to_vec()].concat();
    let hidden = [data.clone(), sample().end()].concat();
    for (deb, reason) in [
        (b"PK\x03\x04 not ar".to_vec(), "magic"),
        (ar(&[("control.tar", &control)]), "not `debian-binary`"),
        (ar(&[("debian-binary", b"3.0\n"), ("control.tar", &control)]), "not 2.x"),
        (ar(&[bin, ("data.tar", &data)]), "before its control"),
        (ar(&[bin, ("control.tar", &control)]), "no data.tar"),
        (ar(&[bin]), "no control.tar"),
        (ar(&[bin, ("control.tar", &control), ("other", b"")]), "`other` has no place"),
        (ar(&[bin, ("control.tar", &control), ("data.tar.bz2", b"")]), "`.bz2` is not read"),
        (ar(&[bin, ("control.tar", &control), ("data.tar.lz4", b"")]), "unknown compression `.lz4`"),
        (ar(&[bin, ("control.tar", &control), ("data.tar.gz", &doubled)]), "data.tar.gz"),
        (ar(&[bin, ("control.tar", &control), ("data.tar", &hidden)]), "behind the end of the archive"),
        (garbage, "garbage where a member should start"),
    ] {
        let error = read_lines(&deb, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let extra =
        ar(&[bin, ("_x", b"?"), ("control.tar", &control), ("data.tar", &data), ("_gpgorigin", b"abc")]);
    assert_eq!(read_lines(&extra, &Limits::default()).unwrap().1, SAMPLE);
}

#[test]
fn a_control_file_must_name_package_version_and_architecture() {
    for (control, reason) in [
        ("", "it is empty"),
        ("Package: x1\nVersion: 1\n", "Architecture is missing"),
        ("Package: ../x\nVersion: 1\nArchitecture: all\n", "not a package name"),
        ("Package: x1\nVersion: one\nArchitecture: all\n", "not a Debian version"),
        ("Package: x1\nVersion: 1\nArchitecture: a/b\n", "not an architecture"),
        ("Package: x1\nPackage: x2\nVersion: 1\nArchitecture: all\n", "stands there twice"),
    ] {
        let control = Tar::default().file("./control", control).end();
        let deb =
            ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &sample().end())]);
        let error = read_lines(&deb, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn all_bytes_are_read_so_that_a_digest_below_is_that_of_the_file() {
    let deb = ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar", &control_tar()),
        ("data.tar.xz", &xz(&sample().end())),
        ("_after", b"x"),
    ]);
    let mut hashing = crate::digest::Hashing::new(deb.as_slice());
    read(&mut hashing, &Limits::default(), &mut Blind).unwrap();
    assert_eq!(hashing.finish().1, crate::digest::Digest::of(&deb));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_panics_when_bytes_are_changed(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut deb = ar(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar", &control_tar()),
            ("data.tar", &sample().pax(&[("mtime", "1"), ("SCHILY.xattr.user.a", "b")]).file("z", "z").end()),
        ]);
        for (at, byte) in changes {
            let at = at.index(deb.len());
            deb[at] = byte;
        }
        let _ = read(deb.as_slice(), &Limits::default(), &mut Blind);
    }
}
